"""Namespaces that come, go, grow and shrink while they are used."""

import os
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from outboard.devices.nvme import Namespace, Subsystem
from outboard.devices.nvme.datapath.tuning import Tuning
from outboard.devices.nvme.management.pool import FolderPool, RamPool
from outboard.devices.nvme.spec import AdminOpcode, Cns, IoOpcode
from outboard.devices.nvme.status import Status
from outboard.errors import DefinitionError, StorageError
from outboard.storage import Data, NullStorage, RamStorage, Storage, open_file
from tests.devices.nvme.conftest import MakeBench
from tests.devices.nvme.driver import ended
from tests.devices.nvme.management.conftest import MakeHosts
from tests.devices.nvme.management.host import MIB, NAMESPACE_CHANGED, Held, Host
from tests.devices.nvme.zoned import SIZE, zoned
from tests.devices.nvme.zoned import Host as ZonedHost

MakeStorage = Callable[[int], Storage]


@pytest.fixture(params=["ram", "file", "direct", "null"])
def make_storage(request: pytest.FixtureRequest, tmp_path: Path) -> MakeStorage:
    """Make a storage of so many bytes, of each kind that can be resized."""
    if request.param == "ram":
        return RamStorage
    if request.param == "null":
        return NullStorage
    direct = request.param == "direct"
    return lambda size: open_file(tmp_path / "disk.img", size, direct=direct)


@pytest.mark.point("M05", "E02")
def test_a_namespace_grows_and_shrinks_and_every_host_is_told(
    make_hosts: MakeHosts, make_storage: MakeStorage
) -> None:
    keeps = not isinstance(storage := make_storage(MIB), NullStorage)
    hosts = host, other = make_hosts(2, storage)
    subsystem = host.bench.device.subsystem
    assert host.write(b"k" * 512, slba=1022) == Status.SUCCESS
    for size in (4 * MIB, MIB // 2, 64 * MIB):
        for each in hosts:
            each.restart()
            each.listen()
        subsystem.resize(1, size)
        last = size // 512
        for each in hosts:
            assert each.heard() == [NAMESPACE_CHANGED]
            assert each.changed() == [1]
            assert each.namespace(1)["nsze"] == last
            assert each.try_read(1, last - 1) == Status.SUCCESS
            assert each.try_read(1, last) == Status.LBA_OUT_OF_RANGE
        assert host.write(b"e" * 512, slba=last - 1) == Status.SUCCESS
        if keeps:
            assert host.read(1, 1022) == b"k" * 512
            assert other.read(1, last - 1) == b"e" * 512


@pytest.mark.point("M05")
@pytest.mark.parametrize("size", [5000, MIB - 1])
def test_what_was_cut_off_does_not_come_back(make_storage: MakeStorage, size: int) -> None:
    storage = make_storage(MIB)
    if hasattr(storage, "alignment"):
        size -= size % storage.alignment
    subsystem = Subsystem(storage)
    storage.write(0, b"\xff" * MIB)
    subsystem.resize(1, size)
    subsystem.resize(1, MIB)
    assert storage.read(size, MIB - size) == bytes(MIB - size)
    storage.close()


@pytest.mark.point("M05", "N02")
@pytest.mark.parametrize("sizes", [(4 * MIB, MIB), (MIB // 2, 3 * MIB), (MIB + 4104, MIB), (7 * MIB,)])
@pytest.mark.parametrize("name", ["ram", "file"])
def test_metadata_stays_with_its_blocks(tmp_path: Path, name: str, sizes: tuple[int, ...]) -> None:
    storage = RamStorage(MIB) if name == "ram" else open_file(tmp_path / "disk.img", MIB)
    space = Namespace(storage, 512, 8)
    subsystem = Subsystem(space)
    first = kept = space.blocks
    for lba in range(first):
        storage.write(lba * 512, struct.pack("<Q", lba) * 64)
        storage.write(space.metadata_offset + lba * 8, struct.pack("<Q", ~lba & 0xFFFF_FFFF))
    for size in sizes:
        subsystem.resize(1, size)
        assert space.blocks == size // 520
        kept = min(kept, space.blocks)
        for lba in range(space.blocks):
            data, metadata = storage.read(lba * 512, 512), storage.read(space.metadata_offset + lba * 8, 8)
            if lba < kept:
                assert data == struct.pack("<Q", lba) * 64
                assert metadata == struct.pack("<Q", ~lba & 0xFFFF_FFFF)
            elif lba >= first:
                assert (data, metadata) == (bytes(512), bytes(8))
    storage.close()


@pytest.mark.point("M05")
def test_a_storage_resized_by_its_owner_is_followed(make_hosts: MakeHosts) -> None:
    storage = RamStorage(MIB)
    (host,) = make_hosts(1, storage)
    subsystem = host.bench.device.subsystem
    storage.size = MIB // 2
    subsystem.resized(1)
    assert host.try_read(1, 1024) == Status.LBA_OUT_OF_RANGE
    assert host.namespace(1)["nsze"] == 1024


@pytest.mark.point("M05")
def test_what_cannot_be_resized_stays(make_hosts: MakeHosts, tmp_path: Path) -> None:
    class Rigid(NullStorage):
        resize = None  # type: ignore[assignment]

    file = open_file(tmp_path / "disk.img", MIB, direct=True)
    (host,) = make_hosts(1, Rigid(MIB), NullStorage(MIB), file, RamStorage(MIB))
    subsystem = host.bench.device.subsystem
    for nsid, size, sentence in (
        (1, 2 * MIB, "one size only"),
        (2, 511, "hold no block"),
        (3, MIB + 1, "multiple of"),
        (4, 1 << 62, "cannot give"),
    ):
        with pytest.raises(StorageError, match=sentence):
            subsystem.resize(nsid, size)
        assert host.namespace(nsid)["nsze"] == 2048
        assert host.try_read(nsid, 2047) == Status.SUCCESS
    with pytest.raises(KeyError):
        subsystem.resize(9, MIB)


@pytest.mark.point("M05", "Z01")
def test_memory_that_its_owner_took_away_is_not_touched(make_hosts: MakeHosts) -> None:
    """Where zones are there has to be something below them: reads fail, and the process lives."""
    storage = RamStorage(1 << 20)
    (host,) = make_hosts(1, zoned(storage))
    host.driver.disable()
    host.bench.driver.ram.rewind(4096)
    reader = ZonedHost(host.bench.driver)
    storage.resize(4096)
    host.bench.device.subsystem.reconfigure(1)
    assert reader.read(1024, 1)[0] == Status.UNRECOVERED_READ_ERROR
    assert reader.read(0, 1)[0] == Status.SUCCESS


@pytest.mark.point("M05", "Z01")
def test_zones_come_and_go_at_the_end(make_hosts: MakeHosts) -> None:
    storage = RamStorage(8 * 8192)
    (host,) = make_hosts(1, zoned(storage))
    host.driver.disable()
    host.bench.driver.ram.rewind(4096)
    reader = ZonedHost(host.bench.driver)
    subsystem = host.bench.device.subsystem
    for zones in (4, 9):
        subsystem.resize(1, zones * 8192)
        assert len(reader.report()) == zones
        last = zones * SIZE - 1
        assert [reader.read(slba, 1)[0] for slba in (last, last + 1)] == [
            Status.SUCCESS,
            Status.LBA_OUT_OF_RANGE,
        ]


@pytest.mark.point("M05", "M01")
def test_the_pool_accounts_for_what_grows(make_hosts: MakeHosts, tmp_path: Path) -> None:
    for pool in (RamPool(4 * MIB), FolderPool(tmp_path / "spaces", 4 * MIB)):
        (host,) = make_hosts(1, pool=pool)
        host.create(2048)
        subsystem = host.bench.device.subsystem
        subsystem.resize(1, 3 * MIB)
        assert host.controller()["unvmcap"] == MIB
        with pytest.raises(StorageError, match="not free"):
            subsystem.resize(1, 5 * MIB)
        assert pool.free == MIB
        subsystem.resize(1, MIB)
        assert pool.free == 3 * MIB


@pytest.mark.point("M05", "M02")
def test_a_namespace_is_not_resized_while_it_is_erased(make_hosts: MakeHosts) -> None:
    held = Held(MIB, "discard")
    (host,) = make_hosts(1, held)
    held.gate.clear()
    cid = host.submit(AdminOpcode.FORMAT_NVM, 1)
    with pytest.raises(DefinitionError, match="afterwards"):
        host.bench.device.subsystem.resize(1, 2 * MIB)
    held.gate.set()
    assert ended(host.driver.admin.wait(cid)) == Status.SUCCESS
    host.bench.device.subsystem.resize(1, 2 * MIB)
    assert host.read(1, 4095) == bytes(512)


@pytest.mark.point("M05")
def test_commands_under_way_end_before_a_namespace_changes(make_hosts: MakeHosts) -> None:
    """What a slow storage has begun is done before; its command is to be tried again, or was too late."""
    order: list[str] = []

    class Noting(Held):
        def write(self, offset: int, data: Data) -> None:
            super().write(offset, data)
            order.append("write")

        def resize(self, size: int) -> None:
            order.append("resize")
            super().resize(size)

    held = Noting(MIB, "write")
    (host,) = make_hosts(1, held)
    subsystem = host.bench.device.subsystem
    for change, end in (
        (lambda: subsystem.resize(1, MIB // 2), Status.COMMAND_INTERRUPTED),
        (lambda: subsystem.remove(1), Status.INVALID_NAMESPACE),
    ):
        order.clear()
        held.gate.clear()
        held.entered.clear()
        cid = host.pair.submit(host.driver.rw(IoOpcode.WRITE, 1, 1, host.driver.data, 512))
        host.pair.ring()
        host.bench.settle()
        assert held.entered.wait(60)
        held.gate.set()
        change()
        assert order[0] == "write"
        assert ended(host.pair.wait(cid)) == end
    assert host.try_read() == Status.INVALID_NAMESPACE
    held.close()


@pytest.mark.point("M05", "E02")
def test_namespaces_come_and_go_under_way(make_hosts: MakeHosts) -> None:
    (host,) = make_hosts(1, RamStorage(MIB))
    subsystem = host.bench.device.subsystem
    for turn in range(20):
        host.restart()
        host.listen()
        added = subsystem.add(RamStorage(MIB))
        assert (added.nsid, host.heard(), host.changed()) == (2, [NAMESPACE_CHANGED], [2])
        assert host.write(bytes([turn]) * 512, 2) == Status.SUCCESS
        assert host.listed(Cns.ACTIVE_NAMESPACES) == [1, 2]
        removed = subsystem.remove(2)
        assert removed.storage.read(0, 1)[0] == turn
        removed.storage.close()
        assert (host.heard(), host.changed()) == ([NAMESPACE_CHANGED], [2])
        assert host.try_read(2) == Status.INVALID_NAMESPACE
        assert host.listed(Cns.ACTIVE_NAMESPACES) == [1]


@pytest.mark.point("M05", "N03")
@pytest.mark.parametrize("kind", ["ram", "file"])
def test_a_poller_serves_a_namespace_that_grows_and_shrinks(
    make_bench: MakeBench, lane: str, tmp_path: Path, kind: str
) -> None:
    """Depth 64 all the time; every command ends well or out of range, and what was written is there."""
    storage = RamStorage(MIB) if kind == "ram" else open_file(tmp_path / "disk.img", MIB)
    subsystem = Subsystem(storage)
    tuning = Tuning(pollers=1, native=lane == "native")
    bench = make_bench(subsystem=subsystem, tuning=tuning)
    driver = bench.driver.enable()
    pair = driver.create_queue_pair(1, entries=65)
    pages = [driver.ram.allocate(4096) for _ in range(64)]
    ends: dict[Status, int] = {}
    for turn in range(40):
        size = (8 if turn & 1 else 1) * MIB
        commands = {}
        for index, page in enumerate(pages):
            slba = index * 256
            driver.ram.write(page, struct.pack("<Q", turn << 32 | slba) * 512)
            commands[pair.submit(driver.rw(IoOpcode.WRITE, slba, 8, page, 4096))] = slba
        pair.ring()
        subsystem.resize(1, size)
        for cid, slba in commands.items():
            end = ended(pair.wait(cid))
            ends[end] = ends.get(end, 0) + 1
            if end == Status.SUCCESS and slba * 512 + 4096 <= size:
                assert storage.read(slba * 512, 4096) == struct.pack("<Q", turn << 32 | slba) * 512
    assert set(ends) == {Status.SUCCESS, Status.LBA_OUT_OF_RANGE}
    assert sum(ends.values()) == 40 * 64


def test_no_descriptor_is_left_of_a_namespace_that_was(make_hosts: MakeHosts, tmp_path: Path) -> None:
    (host,) = make_hosts(1, pool=FolderPool(tmp_path, 4 * MIB))

    def once() -> int:
        assert host.create(64).result == 1
        host.attach(1)
        assert host.write(b"x" * 512) == Status.SUCCESS
        host.delete(1)
        return len(os.listdir("/proc/self/fd"))

    once()
    assert once() == once()
    assert list(tmp_path.iterdir()) == []


def test_a_host_sees_nothing_of_a_namespace_before_it_was_attached(make_hosts: MakeHosts) -> None:
    host: Host
    (host,) = make_hosts(1, pool=RamPool(MIB))
    host.listen()
    host.create(8)
    assert host.heard() == host.changed() == host.listed(Cns.ACTIVE_NAMESPACES) == []


def test_no_thread_is_left_of_a_namespace_that_was(make_hosts: MakeHosts) -> None:
    (host,) = make_hosts(1, RamStorage(MIB))
    subsystem = host.bench.device.subsystem
    before = threading.active_count()
    for _ in range(3):
        held = Held(MIB)
        subsystem.add(held)
        assert host.write(b"x" * 512, 2) == Status.SUCCESS
        assert threading.active_count() == before + 1
        subsystem.remove(2).storage.close()
        assert threading.active_count() == before


def test_a_block_that_was_cut_off_is_not_uncorrectable_when_it_is_back(make_hosts: MakeHosts) -> None:
    (host,) = make_hosts(1, RamStorage(MIB))
    last = MIB // 512 - 1
    command = host.driver.rw(IoOpcode.WRITE_UNCORRECTABLE, last, 1, 0, 0)
    assert ended(host.pair.execute(command)) == Status.SUCCESS
    assert host.try_read(1, last) == Status.UNRECOVERED_READ_ERROR
    subsystem = host.bench.device.subsystem
    subsystem.resize(1, MIB // 2)
    subsystem.resize(1, MIB)
    assert host.read(1, last) == bytes(512)
    assert subsystem.store.get("uncorrectable/1") == []
