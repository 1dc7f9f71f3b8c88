"""Protection information where blocks go without the host: Copy, fused pairs, long Verify (N13)."""

import struct

import pytest

from outboard.devices.nvme import Namespace, Protection
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.metadata import Extent
from outboard.devices.nvme.protection import Prinfo, receive
from outboard.devices.nvme.spec import IoOpcode
from outboard.devices.nvme.status import CommandFailed, Status
from outboard.storage import RamStorage
from tests.devices.nvme.conftest import MakeBench
from tests.devices.nvme.driver import Driver, QueuePair, ended
from tests.devices.nvme.protected import ACTION, GUARD, REFERENCE, Model, Request

ALL = GUARD | REFERENCE
FIRST, SECOND = 1, 2


class Disk:
    """A namespace of 512-byte blocks with protection information of type 1, and a driver of it."""

    def __init__(self, make_bench: MakeBench, guard: int = 16, blocks: int = 64) -> None:
        metadata = 8 if guard == 16 else 16
        storage = RamStorage(blocks * (512 + metadata))
        self.space = Namespace(storage, metadata=metadata, protection=Protection(guard=guard))
        self.driver: Driver = make_bench(self.space).driver.enable()
        self.pair: QueuePair = self.driver.create_queue_pair(1, entries=32)
        self.model = Model(self.space)

    def write(self, slba: int, data: bytes) -> None:
        self.driver.ram.write(self.driver.data, data)
        blocks = len(data) // 512
        assert self.run(IoOpcode.WRITE, slba, blocks, ACTION) == Status.SUCCESS

    def run(self, opcode: IoOpcode, slba: int, blocks: int, info: int) -> Status:
        command = self.driver.rw(
            opcode, slba, blocks, self.driver.data, blocks * 512, cdw12=info << 26, cdw14=slba
        )
        return ended(self.pair.execute(command))

    def copy(
        self, target: int, *ranges: tuple[int, int], read: int, write: int, kind: int | None = None
    ) -> tuple[Status, int]:
        """Copy ``(slba, blocks)`` ranges; the status, and dword 0."""
        wide = self.space.protection is not None and self.space.protection.guard == 64
        kind = int(wide) if kind is None else kind
        entries = b""
        for slba, blocks in ranges:
            # The reference tag of a large guard is big endian, and the last of ten bytes.
            tag = bytes(2) + slba.to_bytes(10, "big") if kind else slba.to_bytes(4, "little")
            entries += struct.pack("<8xQH6x", slba, blocks - 1) + tag + bytes(4)
        self.driver.ram.write(self.driver.data, entries)
        cdw12 = len(ranges) - 1 | kind << 8 | read << 12 | write << 26
        command = Command(
            IoOpcode.COPY, nsid=1, prp1=self.driver.data, cdw10=target, cdw12=cdw12, cdw14=target
        )
        completion = self.pair.execute(command)
        return ended(completion), completion.result

    def damage(self, block: int) -> None:
        (byte,) = self.space.storage.read(block * 512, 1)
        self.space.storage.write(block * 512, bytes([byte ^ 1]))


@pytest.fixture(params=[16, 64], ids=["guard16", "guard64"])
def disk(request: pytest.FixtureRequest, make_bench: MakeBench) -> Disk:
    return Disk(make_bench, request.param)


@pytest.mark.point("N09", "N13")
def test_copied_blocks_get_protection_information_of_their_new_place(disk: Disk) -> None:
    data = bytes(range(256)) * 8
    disk.write(3, data)
    found = disk.copy(20, (3, 3), (6, 1), read=ACTION | ALL, write=ACTION | ALL)
    assert found == (Status.SUCCESS, 0)
    for slba in (3, 20):
        disk.driver.ram.write(disk.driver.data, bytes(2048))
        assert disk.run(IoOpcode.READ, slba, 4, ACTION | ALL) == Status.SUCCESS
        assert disk.driver.ram.read(disk.driver.data, 2048) == data


@pytest.mark.point("N09", "N13")
def test_a_copy_finds_what_does_not_pass_and_says_in_which_range(disk: Disk) -> None:
    disk.write(3, bytes(range(256)) * 8)
    disk.damage(5)
    assert disk.copy(20, (3, 2), (5, 2), read=ACTION | ALL, write=ACTION) == (Status.GUARD_CHECK_ERROR, 1)
    assert disk.run(IoOpcode.VERIFY, 20, 2, ALL) == Status.SUCCESS, "the first range was copied"
    assert not any(disk.space.storage.read(22 * 512, 1024))


@pytest.mark.point("N09", "N13")
def test_protection_information_that_is_copied_as_it_is_does_not_fit_elsewhere(disk: Disk) -> None:
    disk.write(3, bytes(range(256)) * 2)
    assert disk.copy(20, (3, 1), read=ALL, write=GUARD) == (Status.SUCCESS, 0)
    assert disk.run(IoOpcode.VERIFY, 20, 1, GUARD) == Status.SUCCESS
    assert disk.run(IoOpcode.VERIFY, 20, 1, ALL) == Status.REFERENCE_TAG_CHECK_ERROR
    assert disk.copy(21, (3, 1), read=ALL, write=ALL) == (Status.REFERENCE_TAG_CHECK_ERROR, 0)


@pytest.mark.point("N09", "N13")
def test_copies_that_cannot_be_are_refused(disk: Disk) -> None:
    assert disk.copy(20, (3, 1), read=ACTION, write=0)[0] == Status.INVALID_FIELD
    assert disk.space.protection is not None
    other = 0 if disk.space.protection.guard == 64 else 1
    assert disk.copy(20, (3, 1), read=0, write=0, kind=other)[0] == Status.INVALID_FORMAT


@pytest.mark.point("N06", "N13")
def test_a_fused_pair_verifies_compares_and_protects(disk: Disk) -> None:
    before, after = b"before  " * 64, b"after   " * 64
    disk.write(7, before)
    driver = disk.driver
    theirs, given, beside = (driver.ram.allocate(4096) for _ in range(3))
    driver.ram.write(theirs, before)
    driver.ram.write(given, after)

    def pair() -> list[Status]:
        compare = driver.rw(
            IoOpcode.COMPARE, 7, 1, theirs, 512, cdw12=ALL << 26, cdw14=7, flags=FIRST, mptr=beside
        )
        write = driver.rw(IoOpcode.WRITE, 7, 1, given, 512, cdw12=(ACTION | ALL) << 26, cdw14=7, flags=SECOND)
        cids = [disk.pair.submit(command) for command in (compare, write)]
        disk.pair.ring()
        return [ended(disk.pair.wait(cid)) for cid in cids]

    assert pair() == [Status.SUCCESS, Status.SUCCESS]
    assert disk.space.storage.read(7 * 512, 512) == after
    assert disk.run(IoOpcode.VERIFY, 7, 1, ALL) == Status.SUCCESS
    assert pair() == [Status.COMPARE_FAILURE, Status.ABORTED_FAILED_FUSED]
    disk.damage(7)
    assert pair() == [Status.GUARD_CHECK_ERROR, Status.ABORTED_FAILED_FUSED]


@pytest.mark.point("N11", "N13")
def test_verify_finds_a_block_far_behind_the_first(make_bench: MakeBench) -> None:
    disk = Disk(make_bench, blocks=8192)
    zeroes = disk.driver.rw(
        IoOpcode.WRITE_ZEROES, 10, 8000, disk.driver.data, 512, cdw12=(ACTION << 26), cdw14=10
    )
    assert ended(disk.pair.execute(zeroes)) == Status.SUCCESS
    assert disk.run(IoOpcode.VERIFY, 10, 8000, ALL) == Status.SUCCESS
    disk.damage(7000)
    assert disk.run(IoOpcode.VERIFY, 10, 8000, ALL) == Status.GUARD_CHECK_ERROR
    errors = disk.driver.get_log(1, 64)
    assert ended(errors) == Status.SUCCESS
    assert int.from_bytes(disk.driver.ram.read(disk.driver.data + 16, 8), "little") == 7000


def test_model_and_device_agree_on_what_a_tuple_is(disk: Disk) -> None:
    disk.write(9, b"\xa5" * 512)
    request = Request(IoOpcode.WRITE, 9, 1, ACTION, reference=9)
    size = disk.space.metadata
    stored = disk.space.inverted(disk.space.storage.read(disk.space.metadata_offset + 9 * size, size))
    assert stored == disk.model.protected(request, 0, b"\xa5" * 512, bytes(size))


@pytest.mark.point("N13")
def test_blocks_whose_namespace_was_formatted_while_memory_was_awaited_are_not_looked_at() -> None:
    space = Namespace(RamStorage(1 << 20), metadata=8, protection=Protection())
    extent = Extent(space, 0, 2)
    space.reformat(6, protection=Protection())
    for action in (True, False):
        with pytest.raises(CommandFailed) as failed:
            receive(extent, Prinfo(action=action, checks=GUARD))
        assert failed.value.status == Status.COMMAND_INTERRUPTED
