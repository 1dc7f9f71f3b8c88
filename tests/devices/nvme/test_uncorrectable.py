"""Blocks made uncorrectable over a power cycle, how many there can be, and what many of them cost (N10)."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from outboard.devices.nvme import Store, Subsystem
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.spec import BROADCAST, FeatureId, IoOpcode
from outboard.devices.nvme.status import Status
from outboard.devices.nvme.uncorrectable import MOST
from outboard.storage import RamStorage
from tests.devices.nvme.bench import Bench
from tests.devices.nvme.conftest import MakeBench
from tests.devices.nvme.driver import ended

LARGEST = 1 << 16
"""Blocks of a command."""

CC, NORMAL_SHUTDOWN = 0x14, 1 << 14
FORCE_UNIT_ACCESS = 1 << 30


class Disk:
    """A drive with one namespace, whose state is in a file."""

    def __init__(self, make_bench: MakeBench, path: Path, size: int = 1 << 20, count: int = 1) -> None:
        spaces = [RamStorage(size) for _ in range(count)]
        self.make_bench, self.path = make_bench, path
        self.bench: Bench = make_bench(subsystem=Subsystem(*spaces, store=Store(path)))
        self.driver = self.bench.driver.enable()
        self.pair = self.driver.create_queue_pair(1, entries=256)

    def mark(self, slba: int, blocks: int = 1, nsid: int = 1) -> Status:
        return ended(
            self.pair.execute(Command(IoOpcode.WRITE_UNCORRECTABLE, nsid=nsid, cdw10=slba, cdw12=blocks - 1))
        )

    def write(self, slba: int, blocks: int = 1, **more: int) -> Status:
        return self.transfer(IoOpcode.WRITE, slba, blocks, **more)

    def read(self, slba: int) -> Status:
        return self.transfer(IoOpcode.READ, slba, 1)

    def transfer(self, opcode: IoOpcode, slba: int, blocks: int, **more: int) -> Status:
        command = self.driver.rw(opcode, slba, blocks, self.driver.data, blocks * 512, **more)
        return ended(self.pair.execute(command))

    def flush(self, nsid: int = 1) -> None:
        assert ended(self.pair.execute(Command(IoOpcode.FLUSH, nsid=nsid))) == Status.SUCCESS

    def without_cache(self) -> None:
        assert ended(self.driver.set_feature(FeatureId.VOLATILE_WRITE_CACHE, 0)) == Status.SUCCESS

    def after_power_loss(self) -> "Disk":
        """The drive that begins with the file as it is now."""
        kept = self.path.with_name("kept")
        shutil.copy(self.path, kept)
        return Disk(self.make_bench, kept)


@pytest.fixture
def disk(make_bench: MakeBench, tmp_path: Path) -> Disk:
    return Disk(make_bench, tmp_path / "state")


def shut_down(disk: Disk) -> None:
    disk.bench.bar.write32(CC, disk.bench.bar.read32(CC) | NORMAL_SHUTDOWN)
    disk.bench.settle()


@pytest.mark.point("N10", "N04")
@pytest.mark.parametrize(
    "settle",
    [
        pytest.param(lambda disk: disk.flush(), id="flush"),
        pytest.param(lambda disk: disk.flush(BROADCAST), id="flush of all"),
        pytest.param(shut_down, id="shutdown"),
        pytest.param(lambda disk: disk.bench.device.disconnected(), id="disconnect"),
        pytest.param(lambda disk: disk.write(100, cdw12=FORCE_UNIT_ACCESS), id="forced write"),
    ],
)
def test_what_was_made_durable_is_so_after_a_power_loss(disk: Disk, settle: Callable[[Disk], object]) -> None:
    assert disk.mark(4, 8) == Status.SUCCESS
    assert disk.write(6) == Status.SUCCESS
    settle(disk)
    after = disk.after_power_loss()
    assert [after.read(slba) for slba in (4, 6, 11)] == [
        Status.UNRECOVERED_READ_ERROR,
        Status.SUCCESS,
        Status.UNRECOVERED_READ_ERROR,
    ]
    assert after.read(12) == Status.SUCCESS


@pytest.mark.point("N10", "N05")
def test_without_a_write_cache_it_is_so_at_once(disk: Disk) -> None:
    disk.without_cache()
    assert disk.mark(5) == Status.SUCCESS
    assert disk.after_power_loss().read(5) == Status.UNRECOVERED_READ_ERROR
    assert disk.write(5) == Status.SUCCESS
    assert disk.after_power_loss().read(5) == Status.SUCCESS


@pytest.mark.point("N10", "N04")
@pytest.mark.parametrize("opcode", [IoOpcode.WRITE, IoOpcode.WRITE_ZEROES])
def test_a_forced_write_of_an_uncorrectable_block_lasts(disk: Disk, opcode: IoOpcode) -> None:
    disk.mark(5)
    disk.flush()
    assert disk.transfer(opcode, 5, 1, cdw12=FORCE_UNIT_ACCESS) == Status.SUCCESS
    assert disk.after_power_loss().read(5) == Status.SUCCESS


@pytest.mark.point("N10")
def test_the_last_block_that_is_mended_is_kept_with_the_next_flush(disk: Disk) -> None:
    disk.mark(5)
    disk.flush()
    disk.write(5)
    disk.flush()
    assert disk.after_power_loss().read(5) == Status.SUCCESS


@pytest.mark.point("N10")
def test_many_commands_write_the_file_once(disk: Disk) -> None:
    disk.mark(0)
    disk.flush()
    before = disk.path.stat().st_ino, disk.path.read_text()
    for slba in range(0, 2000, 2):
        assert disk.mark(slba) == Status.SUCCESS
    assert (disk.path.stat().st_ino, disk.path.read_text()) == before
    disk.flush()
    after = disk.after_power_loss()
    assert [after.read(slba) for slba in range(1998, 2001)] == [
        Status.UNRECOVERED_READ_ERROR,
        Status.SUCCESS,
        Status.SUCCESS,
    ]


@pytest.mark.point("N10")
def test_there_are_only_so_many_and_a_written_one_makes_room(make_bench: MakeBench, tmp_path: Path) -> None:
    disk = Disk(make_bench, tmp_path / "state", 2 * MOST * 512, count=2)
    for slba in range(0, MOST, LARGEST):
        assert disk.mark(slba, LARGEST) == Status.SUCCESS
    assert disk.mark(MOST) == disk.mark(0, nsid=2) == Status.WRITE_FAULT
    assert disk.mark(MOST - 1, 2) == Status.WRITE_FAULT
    assert disk.mark(0, LARGEST) == Status.SUCCESS, "it is no more than there were"
    assert (disk.read(MOST - 1), disk.read(MOST)) == (Status.UNRECOVERED_READ_ERROR, Status.SUCCESS)
    assert disk.write(7) == Status.SUCCESS
    assert disk.mark(0, nsid=2) == Status.SUCCESS
    assert disk.mark(7) == Status.WRITE_FAULT


@pytest.mark.point("N10")
def test_a_power_cut_brings_back_what_was_kept_last(disk: Disk) -> None:
    assert disk.mark(4) == Status.SUCCESS
    disk.flush()
    assert disk.write(4) == Status.SUCCESS
    assert disk.mark(9) == Status.SUCCESS
    disk.bench.device.power_cut()
    disk.bench.bus_master(True)
    disk.driver = disk.bench.driver.enable()
    disk.pair = disk.driver.create_queue_pair(1)
    assert disk.read(4) == Status.UNRECOVERED_READ_ERROR
    assert disk.read(9) == Status.SUCCESS
