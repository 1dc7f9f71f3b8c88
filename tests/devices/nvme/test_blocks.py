"""Copy, Verify, Write Uncorrectable, fused pairs, deallocated blocks (N06, N07, N09 to N12)."""

import random
import struct
from pathlib import Path

import pytest

from outboard.devices.nvme import Namespace, Store, Subsystem
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.copying import MOST_BLOCKS, MOST_BLOCKS_OF_RANGE
from outboard.devices.nvme.layouts import ERROR_ENTRY, IDENTIFY_NAMESPACE
from outboard.devices.nvme.spec import Cns, FeatureId, IoOpcode, LogId
from outboard.devices.nvme.status import Status
from outboard.storage import RamStorage
from tests.devices.nvme.bench import Bench
from tests.devices.nvme.conftest import MakeBench
from tests.devices.nvme.driver import Driver, QueuePair, do_not_retry, ended

FIRST, SECOND = 1, 2
SIZE = 8 << 20


@pytest.fixture
def pair(driver: Driver) -> QueuePair:
    return driver.create_queue_pair(1, entries=64)


def transfer(pair: QueuePair, opcode: IoOpcode, slba: int, data: bytes, nsid: int = 1) -> Status:
    pair.driver.ram.write(pair.driver.data, data)
    blocks = len(data) // (512 if nsid == 1 else 4096)
    return ended(pair.execute(pair.driver.rw(opcode, slba, blocks, pair.driver.data, len(data), nsid=nsid)))


def read(pair: QueuePair, slba: int, size: int = 512, nsid: int = 1) -> bytes:
    assert transfer(pair, IoOpcode.READ, slba, bytes(size), nsid) == Status.SUCCESS
    return pair.driver.ram.read(pair.driver.data, size)


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


# Write Uncorrectable and Verify


def plain(opcode: IoOpcode, slba: int, blocks: int, nsid: int = 1) -> Command:
    return Command(opcode, nsid=nsid, cdw10=slba & 0xFFFF_FFFF, cdw11=slba >> 32, cdw12=blocks - 1)


@pytest.mark.point("N10", "N11", "L02")
@pytest.mark.parametrize("opcode", [IoOpcode.READ, IoOpcode.COMPARE, IoOpcode.VERIFY])
def test_a_block_made_uncorrectable_cannot_be_read_until_it_is_written(
    pair: QueuePair, opcode: IoOpcode
) -> None:
    data = noise(4096)
    assert transfer(pair, IoOpcode.WRITE, 8, data) == Status.SUCCESS
    assert ended(pair.execute(plain(IoOpcode.WRITE_UNCORRECTABLE, 11, 2))) == Status.SUCCESS
    failed = pair.execute(pair.driver.rw(opcode, 8, 8, pair.driver.data, 4096))
    assert ended(failed) == Status.UNRECOVERED_READ_ERROR
    assert not do_not_retry(failed)
    pair.driver.get_log(LogId.ERROR_INFORMATION, 64)
    entry = ERROR_ENTRY.decode(pair.driver.ram.read(pair.driver.data, 64))
    assert (entry["lba"], entry["nsid"]) == (11, 1)
    assert transfer(pair, opcode, 8, data[: 3 * 512]) == Status.SUCCESS
    assert transfer(pair, IoOpcode.WRITE, 11, data[3 * 512 : 5 * 512]) == Status.SUCCESS
    assert transfer(pair, opcode, 8, data) == Status.SUCCESS


@pytest.mark.point("N10")
def test_blocks_are_mended_also_where_that_cannot_be_kept(make_bench: MakeBench, tmp_path: Path) -> None:
    (folder := tmp_path / "state").mkdir()
    subsystem = Subsystem(RamStorage(SIZE), store=Store(folder / "state.json"))
    pair = make_bench(subsystem=subsystem).driver.enable().create_queue_pair(1)
    assert ended(pair.execute(plain(IoOpcode.WRITE_UNCORRECTABLE, 5, 1))) == Status.SUCCESS
    folder.rename(tmp_path / "elsewhere")
    assert transfer(pair, IoOpcode.WRITE, 5, bytes(512)) == Status.SUCCESS
    assert transfer(pair, IoOpcode.READ, 5, bytes(512)) == Status.SUCCESS


@pytest.mark.point("N10", "N11")
@pytest.mark.parametrize("opcode", [IoOpcode.WRITE_UNCORRECTABLE, IoOpcode.VERIFY])
@pytest.mark.parametrize(("slba", "blocks"), [(16384, 1), (16383, 2), ((1 << 64) - 1, 1), (1 << 63, 65536)])
def test_blocks_behind_the_end_are_out_of_range(
    pair: QueuePair, opcode: IoOpcode, slba: int, blocks: int
) -> None:
    assert ended(pair.execute(plain(opcode, slba, blocks))) == Status.LBA_OUT_OF_RANGE


@pytest.mark.point("N11")
def test_verify_takes_more_blocks_than_a_transfer(pair: QueuePair) -> None:
    assert ended(pair.execute(plain(IoOpcode.VERIFY, 0, 16384))) == Status.SUCCESS
    pair.execute(plain(IoOpcode.WRITE_UNCORRECTABLE, 16383, 1))
    assert ended(pair.execute(plain(IoOpcode.VERIFY, 0, 16384))) == Status.UNRECOVERED_READ_ERROR


# Copy


def copy_command(
    pair: QueuePair, target: int, *sources: tuple[int, ...], kind: int = 0, nsid: int = 1, **more: int
) -> Command:
    """``sources``: (slba, blocks), with the namespace behind it for formats 2 and 3."""
    size = 40 if kind & 1 else 32
    ranges = [struct.pack("<I4xQH", *source[2:] or (0,), source[0], source[1] - 1) for source in sources]
    pair.driver.ram.write(pair.driver.data, b"".join(each.ljust(size, b"\0") for each in ranges))
    prp1, prp2 = pair.driver.prps(pair.driver.data, size * len(sources))
    return Command(
        IoOpcode.COPY,
        nsid=nsid,
        prp1=prp1,
        prp2=prp2,
        cdw10=target,
        cdw12=len(sources) - 1 | kind << 8 | more.get("cdw12", 0),
    )


def enable_formats(driver: Driver) -> None:
    driver.ram.write(driver.data, bytes([0, 0, 0, 0, 0b1100]).ljust(512, b"\0"))
    assert ended(driver.set_feature(FeatureId.HOST_BEHAVIOR_SUPPORT)) == Status.SUCCESS


@pytest.mark.point("N09")
@pytest.mark.parametrize("kind", [0, 1, 2, 3])
def test_ranges_are_copied_one_behind_the_other(pair: QueuePair, kind: int) -> None:
    enable_formats(pair.driver)
    data = noise(4096)
    transfer(pair, IoOpcode.WRITE, 100, data)
    space = (1,) if kind > 1 else ()
    command = copy_command(pair, 1000, (104, 4, *space), (100, 1, *space), (102, 2, *space), kind=kind)
    assert ended(pair.execute(command)) == Status.SUCCESS
    assert read(pair, 1000, 7 * 512) == data[2048:] + data[:512] + data[1024:2048]
    assert read(pair, 1007) == bytes(512)


@pytest.mark.point("N09")
def test_blocks_are_copied_between_namespaces_of_one_format(make_bench: MakeBench) -> None:
    disks = RamStorage(SIZE), RamStorage(SIZE), Namespace(RamStorage(SIZE), 4096)
    driver = make_bench(*disks).driver.enable()
    pair = driver.create_queue_pair(1)
    enable_formats(driver)
    data = noise(4096)
    transfer(pair, IoOpcode.WRITE, 8, data)
    assert ended(pair.execute(copy_command(pair, 0, (8, 8, 1), kind=2, nsid=2))) == Status.SUCCESS
    assert disks[1].read(0, 4096) == data
    refused = pair.execute(copy_command(pair, 0, (8, 8, 1), kind=2, nsid=3))
    assert ended(refused) == Status.INCOMPATIBLE_NAMESPACE_OR_FORMAT
    assert ended(pair.execute(copy_command(pair, 0, (8, 8, 9), kind=2))) == Status.INVALID_NAMESPACE


@pytest.mark.point("N09")
def test_formats_across_namespaces_have_to_be_enabled(pair: QueuePair) -> None:
    for kind in (2, 3, 4, 15):
        assert ended(pair.execute(copy_command(pair, 0, (8, 8, 1), kind=kind))) == Status.INVALID_FIELD


@pytest.mark.point("N09")
@pytest.mark.parametrize(
    "sources",
    [
        [(100, MOST_BLOCKS_OF_RANGE + 1)],
        [(100, MOST_BLOCKS_OF_RANGE)] * (MOST_BLOCKS // MOST_BLOCKS_OF_RANGE + 1),
        [(100, 1)] * 129,
    ],
    ids=["MSSRL", "MCL", "MSRC"],
)
def test_more_than_the_limits_say_is_a_size_limit_exceeded(
    pair: QueuePair, sources: list[tuple[int, int]]
) -> None:
    pair.driver.data = pair.driver.ram.allocate(8192)
    completion = pair.execute(copy_command(pair, 0, *sources))
    assert ended(completion) == Status.COMMAND_SIZE_LIMIT_EXCEEDED
    assert do_not_retry(completion)


@pytest.mark.point("N09")
@pytest.mark.parametrize(
    ("bad", "status"),
    [
        ((16380, 8), Status.LBA_OUT_OF_RANGE),
        (((1 << 64) - 4, 8), Status.LBA_OUT_OF_RANGE),
        ((1002, 1), Status.OVERLAPPING_IO_RANGE),
        ((996, 5), Status.OVERLAPPING_IO_RANGE),
        ((30, 4), Status.UNRECOVERED_READ_ERROR),
    ],
)
def test_a_bad_range_is_named_and_nothing_is_copied(
    pair: QueuePair, bad: tuple[int, int], status: Status
) -> None:
    pair.execute(plain(IoOpcode.WRITE_UNCORRECTABLE, 33, 1))
    transfer(pair, IoOpcode.WRITE, 1000, b"kept" * 128)
    completion = pair.execute(copy_command(pair, 1000, (0, 2), (4, 2), bad))
    assert (ended(completion), completion.result) == (status, 2)
    assert read(pair, 1000) == b"kept" * 128


@pytest.mark.point("N09")
def test_a_destination_behind_the_end_is_out_of_range(pair: QueuePair) -> None:
    assert ended(pair.execute(copy_command(pair, 16382, (0, 3)))) == Status.LBA_OUT_OF_RANGE


# Fused pairs


def fused(
    pair: QueuePair, slba: int, old: bytes, new: bytes, *, other: dict[str, int] | None = None
) -> tuple[Status, Status]:
    """A Compare and a Write, rung for together; how they ended."""
    driver = pair.driver
    buffers = driver.ram.allocate(4096), driver.ram.allocate(4096)
    for buffer, data in zip(buffers, (old, new), strict=True):
        driver.ram.write(buffer, data)
    blocks = len(old) // 512
    first = driver.rw(IoOpcode.COMPARE, slba, blocks, buffers[0], len(old), flags=FIRST)
    second = driver.rw(IoOpcode.WRITE, slba, blocks, buffers[1], len(new), flags=SECOND)
    for name, value in (other or {}).items():
        setattr(second, name, value)
    cids = pair.submit(first), pair.submit(second)
    pair.ring()
    one, two = (ended(pair.wait(cid)) for cid in cids)
    return one, two


@pytest.mark.point("N06")
def test_a_fused_pair_writes_only_where_it_compares(pair: QueuePair) -> None:
    old, new = noise(1024, 1), noise(1024, 2)
    transfer(pair, IoOpcode.WRITE, 4, old)
    assert fused(pair, 4, new, old) == (Status.COMPARE_FAILURE, Status.ABORTED_FAILED_FUSED)
    assert read(pair, 4, 1024) == old
    assert fused(pair, 4, old, new) == (Status.SUCCESS, Status.SUCCESS)
    assert read(pair, 4, 1024) == new


@pytest.mark.point("N06")
@pytest.mark.parametrize(
    "other", [{"cdw10": 5}, {"cdw12": 0}, {"nsid": 2}, {"opcode": IoOpcode.WRITE_ZEROES}]
)
def test_a_pair_that_does_not_match_is_invalid(pair: QueuePair, other: dict[str, int]) -> None:
    zeros = bytes(1024)
    assert fused(pair, 4, zeros, noise(1024), other=other) == (
        Status.INVALID_FIELD,
        Status.ABORTED_FAILED_FUSED,
    )
    assert read(pair, 4, 1024) == zeros


@pytest.mark.point("N06")
def test_half_a_pair_is_aborted_for_want_of_the_other(pair: QueuePair) -> None:
    driver = pair.driver
    first = driver.rw(IoOpcode.COMPARE, 0, 1, driver.data, 512, flags=FIRST)
    second = driver.rw(IoOpcode.WRITE, 0, 1, driver.data, 512, flags=SECOND)
    assert ended(pair.execute(first)) == Status.ABORTED_MISSING_FUSED
    assert ended(pair.execute(second)) == Status.ABORTED_MISSING_FUSED
    alone = pair.submit(first), pair.submit(plain(IoOpcode.VERIFY, 0, 1)), pair.submit(second)
    pair.ring()
    assert [ended(pair.wait(cid)) for cid in alone] == [
        Status.ABORTED_MISSING_FUSED,
        Status.SUCCESS,
        Status.ABORTED_MISSING_FUSED,
    ]
    firsts = pair.submit(first), pair.submit(first), pair.submit(second)
    pair.ring()
    assert [ended(pair.wait(cid)) for cid in firsts] == [
        Status.ABORTED_MISSING_FUSED,
        Status.SUCCESS,
        Status.SUCCESS,
    ]


@pytest.mark.point("N06")
def test_only_compare_begins_a_pair(pair: QueuePair) -> None:
    command = pair.driver.rw(IoOpcode.READ, 0, 1, pair.driver.data, 512, flags=FIRST)
    assert ended(pair.execute(command)) == Status.INVALID_FIELD


@pytest.mark.point("N06", "Q09")
def test_a_first_whose_second_never_came_ends_with_its_queue(pair: QueuePair, bench: Bench) -> None:
    driver = pair.driver
    cid = pair.submit(driver.rw(IoOpcode.COMPARE, 0, 1, driver.data, 512, flags=FIRST))
    pair.ring()
    assert ended(driver.admin.execute(Command(0x00, cdw10=1))) == Status.SUCCESS
    pair.poll()
    assert ended(pair.done[cid]) in (Status.ABORTED_SQ_DELETION, Status.ABORTED_MISSING_FUSED)


@pytest.mark.point("N06")
def test_a_counter_that_two_queues_raise_by_fused_pairs_misses_nothing(driver: Driver) -> None:
    pairs = [driver.create_queue_pair(qid, entries=64) for qid in (1, 2)]
    value = {pair.qid: 0 for pair in pairs}
    raised = 0
    buffers = {pair.qid: (driver.ram.allocate(512), driver.ram.allocate(512)) for pair in pairs}
    for _ in range(20):
        under_way = []
        for pair in pairs:
            old, new = buffers[pair.qid]
            driver.ram.write(old, struct.pack("<Q", value[pair.qid]))
            driver.ram.write(new, struct.pack("<Q", value[pair.qid] + 1))
            cids = (
                pair.submit(driver.rw(IoOpcode.COMPARE, 9, 1, old, 512, flags=FIRST)),
                pair.submit(driver.rw(IoOpcode.WRITE, 9, 1, new, 512, flags=SECOND)),
            )
            pair.ring()
            under_way.append((pair, cids))
        for pair, cids in under_way:
            outcome = [ended(pair.wait(cid)) for cid in cids]
            raised += outcome == [Status.SUCCESS, Status.SUCCESS]
        for pair in pairs:
            value[pair.qid] = struct.unpack_from("<Q", read(pair, 9))[0]
    assert value == {1: raised, 2: raised}
    assert raised >= 20


# Deallocated blocks


def deallocate(pair: QueuePair, slba: int, blocks: int) -> Status:
    pair.driver.ram.write(pair.driver.data, struct.pack("<IIQ", 0, blocks, slba))
    return ended(pair.execute(Command(IoOpcode.DATASET_MANAGEMENT, nsid=1, prp1=pair.driver.data, cdw11=4)))


@pytest.fixture
def tracked(make_bench: MakeBench) -> QueuePair:
    bench = make_bench(Namespace(RamStorage(SIZE), tracked=True), RamStorage(SIZE))
    return bench.driver.enable().create_queue_pair(1, entries=64)


@pytest.mark.point("N07")
def test_reading_deallocated_blocks_is_an_error_if_the_host_wants_that(tracked: QueuePair) -> None:
    transfer(tracked, IoOpcode.WRITE, 0, noise(4096))
    assert read(tracked, 100) == bytes(512)
    dulbe = 1 << 16
    assert ended(tracked.driver.set_feature(FeatureId.ERROR_RECOVERY, dulbe, nsid=1)) == Status.SUCCESS
    assert transfer(tracked, IoOpcode.READ, 0, bytes(4096)) == Status.SUCCESS
    for opcode in (IoOpcode.READ, IoOpcode.COMPARE, IoOpcode.VERIFY):
        assert transfer(tracked, opcode, 7, bytes(1024)) == Status.DEALLOCATED_OR_UNWRITTEN_BLOCK
    assert deallocate(tracked, 2, 3) == Status.SUCCESS
    assert transfer(tracked, IoOpcode.READ, 4, bytes(512)) == Status.DEALLOCATED_OR_UNWRITTEN_BLOCK
    assert ended(tracked.execute(plain(IoOpcode.WRITE_ZEROES, 2, 2))) == Status.SUCCESS
    assert read(tracked, 2, 1024) == bytes(1024)
    freeing = Command(IoOpcode.WRITE_ZEROES, nsid=1, cdw10=2, cdw12=1 | 1 << 25)
    assert ended(tracked.execute(freeing)) == Status.SUCCESS
    assert transfer(tracked, IoOpcode.READ, 2, bytes(512)) == Status.DEALLOCATED_OR_UNWRITTEN_BLOCK
    assert ended(tracked.driver.set_feature(FeatureId.ERROR_RECOVERY, 0, nsid=1)) == Status.SUCCESS
    assert read(tracked, 2) == bytes(512)


@pytest.mark.point("N07")
def test_only_a_namespace_that_keeps_track_says_that_it_does(tracked: QueuePair) -> None:
    driver = tracked.driver
    transfer(tracked, IoOpcode.WRITE, 0, noise(4096))
    for nsid, nsfeat, used in ((1, 4, 8), (2, 0, 16384)):
        driver.identify(Cns.NAMESPACE, nsid)
        data = IDENTIFY_NAMESPACE.decode(driver.ram.read(driver.data, 4096))
        assert (int(data["nsfeat"]) & 4, data["nuse"]) == (nsfeat, used)
    refused = driver.set_feature(FeatureId.ERROR_RECOVERY, 1 << 16, nsid=2)
    assert ended(refused) == Status.INVALID_FIELD


@pytest.mark.point("N07")
def test_of_too_many_deallocated_blocks_some_are_taken_for_zeros(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outboard.devices.nvme.namespace.MOST_DEALLOCATED", 8)
    space = Namespace(RamStorage(1 << 20), tracked=True)
    pair = make_bench(space).driver.enable().create_queue_pair(1, entries=64)
    assert ended(pair.execute(plain(IoOpcode.WRITE_ZEROES, 0, 2048))) == Status.SUCCESS
    assert deallocate(pair, 1000, 100) == Status.SUCCESS
    assert ended(pair.driver.set_feature(FeatureId.ERROR_RECOVERY, 1 << 16, nsid=1)) == Status.SUCCESS
    for slba in range(0, 100, 2):
        assert deallocate(pair, slba, 1) == Status.SUCCESS
    found = {slba: transfer(pair, IoOpcode.READ, slba, bytes(512)) for slba in range(0, 100, 2)}
    known = [slba for slba in found if found[slba] == Status.DEALLOCATED_OR_UNWRITTEN_BLOCK]
    assert 0 < len(known) < 8
    for slba in found.keys() - set(known):
        assert read(pair, slba) == bytes(512)
    assert transfer(pair, IoOpcode.READ, 1050, bytes(512)) == Status.DEALLOCATED_OR_UNWRITTEN_BLOCK
