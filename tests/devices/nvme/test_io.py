"""The NVM commands: what is stored, what is refused, and with which status (N01 to N04)."""

import errno
import random
import struct

import pytest

from outboard.devices.nvme import Namespace
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.io import IO_COMMANDS
from outboard.devices.nvme.layouts import HEALTH_LOG
from outboard.devices.nvme.spec import BROADCAST, PAGE, FeatureId, IoOpcode, LogId
from outboard.devices.nvme.status import Status
from outboard.errors import StorageError
from outboard.storage import RamStorage
from tests.devices.nvme.bench import Bench
from tests.devices.nvme.conftest import MakeBench
from tests.devices.nvme.driver import Driver, QueuePair, do_not_retry, ended

FUA = 1 << 30
BLOCKS = {1: 16384, 2: 1024}
BLOCK_SIZE = {1: 512, 2: 4096}
DATA_COMMANDS = [IoOpcode.READ, IoOpcode.WRITE, IoOpcode.COMPARE, IoOpcode.WRITE_ZEROES]


class Observed(RamStorage):
    """Memory that counts its flushes, and fails when told to: its methods are not to be gone round."""

    fast = None

    def __init__(self, size: int = 1 << 20) -> None:
        super().__init__(size)
        self.flushes = 0
        self.failure = 0

    def _fail(self) -> None:
        if self.failure:
            raise StorageError("the medium is broken", errno=self.failure)

    def flush(self) -> None:
        self._fail()
        self.flushes += 1

    def readinto(self, offset: int, buffer: memoryview) -> None:
        self._fail()
        super().readinto(offset, buffer)

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        self._fail()
        super().write(offset, data)

    def discard(self, offset: int, size: int) -> None:
        self._fail()
        super().discard(offset, size)

    def write_zeroes(self, offset: int, size: int) -> None:
        self._fail()
        super().write_zeroes(offset, size)


@pytest.fixture
def pair(driver: Driver) -> QueuePair:
    return driver.create_queue_pair(1)


@pytest.fixture
def observed(make_bench: MakeBench) -> tuple[Observed, QueuePair]:
    storage = Observed()
    return storage, make_bench(storage).driver.enable().create_queue_pair(1)


def transfer(
    pair: QueuePair, opcode: IoOpcode, slba: int, data: bytes, nsid: int = 1, cdw12: int = 0
) -> Status:
    pair.driver.ram.write(pair.driver.data, data)
    blocks = len(data) // BLOCK_SIZE[nsid]
    command = pair.driver.rw(opcode, slba, blocks, pair.driver.data, len(data), nsid=nsid, cdw12=cdw12)
    return ended(pair.execute(command))


def read(pair: QueuePair, slba: int, size: int, nsid: int = 1, cdw12: int = 0) -> bytes:
    assert transfer(pair, IoOpcode.READ, slba, b"\xee" * size, nsid, cdw12) == Status.SUCCESS
    return pair.driver.ram.read(pair.driver.data, size)


@pytest.mark.point("N01", "N02")
@pytest.mark.parametrize("nsid", [1, 2])
def test_the_first_and_the_last_block_hold_what_was_written(pair: QueuePair, nsid: int) -> None:
    size, last = BLOCK_SIZE[nsid], BLOCKS[nsid] - 1
    for slba in (0, last):
        data = random.Random(slba).randbytes(size)
        assert transfer(pair, IoOpcode.WRITE, slba, data, nsid) == Status.SUCCESS
        assert read(pair, slba, size, nsid) == data
        assert transfer(pair, IoOpcode.COMPARE, slba, data, nsid) == Status.SUCCESS


@pytest.mark.point("N01")
@pytest.mark.parametrize("opcode", DATA_COMMANDS)
@pytest.mark.parametrize("nsid", [1, 2])
def test_blocks_behind_the_end_are_out_of_range(pair: QueuePair, opcode: IoOpcode, nsid: int) -> None:
    end = BLOCKS[nsid]
    for slba, blocks in (
        (end, 1),
        (end - 1, 2),
        (1 << 32, 1),
        ((1 << 64) - 1, 1),
        ((1 << 64) - 1, 2),
        ((1 << 64) - 8, 16),
    ):
        command = pair.driver.rw(opcode, slba, blocks, pair.driver.data, PAGE, nsid=nsid)
        completion = pair.execute(command)
        assert ended(completion) == Status.LBA_OUT_OF_RANGE
        assert do_not_retry(completion)


@pytest.mark.point("N02")
def test_durable_and_limited_retry_bits_are_accepted(observed: tuple[Observed, QueuePair]) -> None:
    storage, pair = observed
    limited_retry = 1 << 31
    assert transfer(pair, IoOpcode.WRITE, 0, b"a" * 512, cdw12=limited_retry) == Status.SUCCESS
    assert storage.flushes == 0
    assert transfer(pair, IoOpcode.WRITE, 0, b"b" * 512, cdw12=FUA) == Status.SUCCESS
    assert storage.flushes == 1
    assert read(pair, 0, 512, cdw12=FUA | limited_retry) == b"b" * 512
    assert storage.flushes == 2
    assert transfer(pair, IoOpcode.WRITE_ZEROES, 0, bytes(512), cdw12=FUA) == Status.SUCCESS
    assert storage.flushes == 3


@pytest.mark.point("N02")
@pytest.mark.parametrize("flags", [3, 3 << 6, 4])
@pytest.mark.parametrize("opcode", sorted(IO_COMMANDS))
def test_reserved_flags_are_invalid(pair: QueuePair, opcode: IoOpcode, flags: int) -> None:
    completion = pair.execute(Command(opcode, flags=flags, nsid=1, prp1=pair.driver.data))
    assert ended(completion) == Status.INVALID_FIELD
    assert do_not_retry(completion)


@pytest.mark.point("N03")
def test_many_overlapping_writes_from_several_queues_leave_what_a_model_has(driver: Driver) -> None:
    chance = random.Random(5)
    pairs = [driver.create_queue_pair(qid, entries=64) for qid in (1, 2, 3, 4)]
    slots = [driver.ram.allocate(8 * 512) for _ in range(48)]
    model = bytearray(256 * 512)
    for _ in range(6):
        for pair in pairs:
            for slot in range(12):
                blocks, address = chance.randint(1, 8), slots[12 * (pair.qid - 1) + slot]
                slba = chance.randrange(256 // 4 - blocks) + (pair.qid - 1) * 64
                data = chance.randbytes(512 * blocks)
                driver.ram.write(address, data)
                model[slba * 512 : slba * 512 + len(data)] = data
                pair.submit(driver.rw(IoOpcode.WRITE, slba, blocks, address, len(data)), cid=slot)
            pair.ring()
        for pair in pairs:
            for cid in range(12):
                assert ended(pair.wait(cid)) == Status.SUCCESS
    for slba in range(0, 256, 8):
        assert read(pairs[0], slba, PAGE) == model[slba * 512 : slba * 512 + PAGE]


@pytest.mark.point("N04")
@pytest.mark.parametrize(("nsid", "flushed"), [(1, (1, 0)), (2, (0, 1)), (BROADCAST, (1, 1))])
def test_flush_reaches_the_namespaces_it_names(
    make_bench: MakeBench, nsid: int, flushed: tuple[int, int]
) -> None:
    storages = Observed(), Observed()
    pair = make_bench(*storages).driver.enable().create_queue_pair(1)
    assert ended(pair.execute(Command(IoOpcode.FLUSH, nsid=nsid))) == Status.SUCCESS
    assert tuple(storage.flushes for storage in storages) == flushed


@pytest.mark.point("N05")
def test_without_the_write_cache_every_write_is_durable(observed: tuple[Observed, QueuePair]) -> None:
    storage, pair = observed
    pair.driver.set_feature(FeatureId.VOLATILE_WRITE_CACHE, 0)
    assert storage.flushes == 1, "what the cache held"
    for opcode in (IoOpcode.WRITE, IoOpcode.WRITE_ZEROES):
        before = storage.flushes
        assert transfer(pair, opcode, 0, b"x" * 512) == Status.SUCCESS
        assert storage.flushes == before + 1


@pytest.mark.point("N15")
@pytest.mark.parametrize("nsid", [0, 3, BROADCAST - 1, BROADCAST])
@pytest.mark.parametrize("opcode", sorted(IO_COMMANDS))
def test_a_namespace_that_is_not_there_is_invalid(pair: QueuePair, opcode: IoOpcode, nsid: int) -> None:
    if (opcode, nsid) == (IoOpcode.FLUSH, BROADCAST):
        return
    completion = pair.execute(Command(opcode, nsid=nsid, prp1=pair.driver.data))
    assert ended(completion) == Status.INVALID_NAMESPACE
    assert do_not_retry(completion)


@pytest.mark.point("A01")
@pytest.mark.parametrize("opcode", [0x03, 0x06, 0x0B, 0x7F, 0x80, 0xFF])
def test_an_unknown_opcode_is_invalid(pair: QueuePair, opcode: int) -> None:
    completion = pair.execute(Command(opcode, nsid=1))
    assert ended(completion) == Status.INVALID_OPCODE
    assert do_not_retry(completion)


@pytest.mark.point("N06")
def test_compare_tells_a_difference_of_one_byte(pair: QueuePair) -> None:
    data = random.Random(1).randbytes(PAGE)
    transfer(pair, IoOpcode.WRITE, 0, data)
    assert transfer(pair, IoOpcode.COMPARE, 0, data) == Status.SUCCESS
    pair.driver.ram.write(pair.driver.data, data[:-1] + bytes([data[-1] ^ 1]))
    completion = pair.execute(pair.driver.rw(IoOpcode.COMPARE, 0, 8, pair.driver.data, PAGE))
    assert ended(completion) == Status.COMPARE_FAILURE
    assert completion.status >> 8 & 7 == 2, "a media error"


@pytest.mark.point("N08")
@pytest.mark.parametrize("deallocate", [0, 1 << 25])
def test_write_zeroes_is_not_limited_by_mdts(pair: QueuePair, deallocate: int) -> None:
    for slba in (0, 9992, 10000):
        transfer(pair, IoOpcode.WRITE, slba, b"\xff" * PAGE)
    command = Command(IoOpcode.WRITE_ZEROES, nsid=1, cdw12=10000 - 1 | deallocate)
    assert ended(pair.execute(command)) == Status.SUCCESS
    assert read(pair, 0, PAGE) == read(pair, 9992, PAGE) == bytes(PAGE)
    assert read(pair, 10000, PAGE) == b"\xff" * PAGE


@pytest.mark.point("N08")
@pytest.mark.parametrize("deallocate", [0, 1 << 25])
def test_write_zeroes_takes_as_many_blocks_as_can_be_said(make_bench: MakeBench, deallocate: int) -> None:
    blocks = 65536
    bench = make_bench(RamStorage((blocks + 16) * 512))
    pair = bench.driver.enable().create_queue_pair(1)
    for slba in (0, 8, blocks, blocks + 8):
        assert transfer(pair, IoOpcode.WRITE, slba, b"\xff" * PAGE) == Status.SUCCESS
    command = Command(IoOpcode.WRITE_ZEROES, nsid=1, cdw10=8, cdw12=blocks - 1 | deallocate)
    assert ended(pair.execute(command)) == Status.SUCCESS
    assert read(pair, 0, PAGE) == read(pair, blocks + 8, PAGE) == b"\xff" * PAGE
    assert read(pair, 8, PAGE) == read(pair, blocks, PAGE) == bytes(PAGE)
    command.cdw10 = 17
    assert ended(pair.execute(command)) == Status.LBA_OUT_OF_RANGE


def ranges(pair: QueuePair, *extents: tuple[int, int], attributes: int = 4) -> Command:
    data = b"".join(struct.pack("<IIQ", 0, blocks, slba) for slba, blocks in extents)
    pair.driver.ram.write(pair.driver.data, data)
    return Command(
        IoOpcode.DATASET_MANAGEMENT,
        nsid=1,
        prp1=pair.driver.data,
        cdw10=len(extents) - 1,
        cdw11=attributes,
    )


@pytest.mark.point("N07")
def test_deallocated_ranges_read_as_zeros(pair: QueuePair) -> None:
    for slba in (0, 8, 16, 24):
        transfer(pair, IoOpcode.WRITE, slba, b"\xff" * PAGE)
    assert ended(pair.execute(ranges(pair, (0, 8), (16, 4), (24, 0)))) == Status.SUCCESS
    assert read(pair, 0, PAGE) == bytes(PAGE)
    assert read(pair, 8, PAGE) == read(pair, 24, PAGE) == b"\xff" * PAGE
    assert read(pair, 16, PAGE) == bytes(2048) + b"\xff" * 2048


@pytest.mark.point("N07")
def test_256_ranges_are_taken_and_hints_change_nothing(pair: QueuePair) -> None:
    transfer(pair, IoOpcode.WRITE, 0, b"\xff" * PAGE)
    every_other = [(2 * number, 1) for number in range(256)]
    assert ended(pair.execute(ranges(pair, *every_other, attributes=3))) == Status.SUCCESS
    assert read(pair, 0, PAGE) == b"\xff" * PAGE
    assert ended(pair.execute(ranges(pair, *every_other))) == Status.SUCCESS
    assert read(pair, 0, PAGE) == (bytes(512) + b"\xff" * 512) * 4


@pytest.mark.point("N07")
@pytest.mark.parametrize("bad", [(16384, 1), (16383, 2), (0, 0xFFFF_FFFF), ((1 << 64) - 1, 1)])
def test_one_range_behind_the_end_fails_all_before_anything_is_lost(
    pair: QueuePair, bad: tuple[int, int]
) -> None:
    transfer(pair, IoOpcode.WRITE, 0, b"\xff" * PAGE)
    assert ended(pair.execute(ranges(pair, (0, 8), bad))) == Status.LBA_OUT_OF_RANGE
    assert read(pair, 0, PAGE) == b"\xff" * PAGE


@pytest.mark.point("N08")
@pytest.mark.parametrize(
    ("opcode", "code", "status"),
    [
        (IoOpcode.READ, errno.EIO, Status.UNRECOVERED_READ_ERROR),
        (IoOpcode.COMPARE, errno.EIO, Status.UNRECOVERED_READ_ERROR),
        (IoOpcode.WRITE, errno.EIO, Status.WRITE_FAULT),
        (IoOpcode.WRITE, errno.ENOSPC, Status.CAPACITY_EXCEEDED),
        (IoOpcode.WRITE_ZEROES, errno.EIO, Status.WRITE_FAULT),
        (IoOpcode.FLUSH, errno.EIO, Status.WRITE_FAULT),
        (IoOpcode.DATASET_MANAGEMENT, errno.EIO, Status.WRITE_FAULT),
    ],
)
def test_a_failing_storage_is_a_media_error_and_counted(
    observed: tuple[Observed, QueuePair], opcode: IoOpcode, code: int, status: Status
) -> None:
    storage, pair = observed
    storage.failure = code
    command = Command(opcode, nsid=1, prp1=pair.driver.data, cdw11=4 if opcode == 9 else 0)
    completion = pair.execute(command)
    assert ended(completion) == status
    assert do_not_retry(completion) == (code == errno.ENOSPC)
    pair.driver.get_log(LogId.HEALTH, 512)
    health = HEALTH_LOG.decode(pair.driver.ram.read(pair.driver.data, 512))
    assert (health["media_errors"], health["error_log_entries"]) == (1, 1)
    storage.failure = 0
    pair.driver.ram.write(pair.driver.data, bytes(512))
    assert ended(pair.execute(command)) == Status.SUCCESS


def test_a_broken_storage_plugin_fails_its_command_only(
    observed: tuple[Observed, QueuePair], caplog: pytest.LogCaptureFixture
) -> None:
    storage, pair = observed
    storage.readinto = None  # type: ignore[assignment, method-assign]
    assert transfer(pair, IoOpcode.READ, 0, bytes(512)) == Status.INTERNAL_ERROR
    assert "opcode 0x2 of queue 1 failed" in caplog.text
    assert transfer(pair, IoOpcode.WRITE, 0, bytes(512)) == Status.SUCCESS


def test_namespaces_hold_their_own_blocks(bench: Bench, pair: QueuePair) -> None:
    transfer(pair, IoOpcode.WRITE, 1, b"1" * PAGE, nsid=1)
    transfer(pair, IoOpcode.WRITE, 1, b"2" * PAGE, nsid=2)
    assert read(pair, 1, PAGE, nsid=1) == b"1" * PAGE
    spaces: dict[int, Namespace] = bench.device.namespaces
    assert spaces[1].storage.read(512, PAGE) == b"1" * PAGE
    assert spaces[2].storage.read(4096, PAGE) == b"2" * PAGE
