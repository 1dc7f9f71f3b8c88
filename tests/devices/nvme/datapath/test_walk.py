"""What the loop cannot or may not carry out is left to Python, which says what is wrong with it."""

import struct

import pytest

from outboard.devices.nvme.command import Command
from outboard.devices.nvme.datapath.completion import NEVER, tell
from outboard.devices.nvme.datapath.records import PL_SEGMENT_COUNT
from outboard.devices.nvme.spec import AdminOpcode, IoOpcode
from outboard.devices.nvme.status import Status
from outboard.storage import NullStorage
from tests.devices.nvme.bench import Bench
from tests.devices.nvme.conftest import MakeBench
from tests.devices.nvme.driver import CC, PAGE, Driver, QueuePair, ended
from tests.devices.nvme.test_sgl import BLOCK, BUCKET, LAST, NOWHERE, SEGMENT, chained, straight
from tests.devices.nvme.test_sgl import command as sgl

FLUSH = Command(IoOpcode.FLUSH, nsid=1)


@pytest.fixture
def pair(driver: Driver) -> QueuePair:
    return driver.create_queue_pair(1)


def run(bench: Bench, pair: QueuePair, command: Command) -> tuple[Status, int]:
    """How it ended, and how many commands went to Python."""
    before = bench.device.statistics["diverted"]
    status = ended(pair.execute(command))
    return status, bench.device.statistics["diverted"] - before


@pytest.mark.point("D04")
@pytest.mark.parametrize(
    ("prp1", "prp2", "blocks", "status"),
    [
        (2, 0, 1, Status.PRP_OFFSET_INVALID),
        (NOWHERE, 0, 1, Status.DATA_TRANSFER_ERROR),
        (0, 8, 16, Status.PRP_OFFSET_INVALID),
        (0, NOWHERE, 16, Status.DATA_TRANSFER_ERROR),
        (0, 4, 64, Status.PRP_OFFSET_INVALID),
        (0, NOWHERE, 64, Status.DATA_TRANSFER_ERROR),
    ],
)
def test_prps_that_are_wrong_have_their_status(
    bench: Bench, pair: QueuePair, prp1: int, prp2: int, blocks: int, status: Status
) -> None:
    data = pair.driver.ram.allocate(4 * PAGE)
    pointers = [value if value >= PAGE else data + value for value in (prp1, prp2)]
    command = Command(IoOpcode.READ, nsid=1, prp1=pointers[0], prp2=pointers[1], cdw12=blocks - 1)
    assert run(bench, pair, command) == (status, 1)


@pytest.mark.point("D04")
@pytest.mark.parametrize(("entry", "fast"), [(0, True), (8, False), (-1, False)])
def test_a_list_may_go_on_at_another_page_and_its_entries_are_whole_pages(
    bench: Bench, pair: QueuePair, entry: int, fast: bool
) -> None:
    driver = pair.driver
    pages = [driver.ram.allocate(PAGE) for _ in range(8)][::-1]
    pages[5] = NOWHERE if entry < 0 else pages[5] + entry
    listed = driver.prp_list(pages[1:], offset=PAGE - 32)
    command = Command(IoOpcode.READ, nsid=1, prp1=pages[0], prp2=listed, cdw12=63)
    status, diverted = run(bench, pair, command)
    assert (status == Status.SUCCESS, diverted) == (fast, 0 if fast else 1)


@pytest.mark.point("D04")
def test_the_pointer_to_the_next_list_is_a_page(bench: Bench, pair: QueuePair) -> None:
    driver = pair.driver
    pages = [driver.ram.allocate(PAGE) for _ in range(4)]
    listed = driver.ram.allocate(PAGE) + PAGE - 16
    driver.ram.write(listed, struct.pack("<QQ", pages[1], pages[2] + 8))
    command = Command(IoOpcode.READ, nsid=1, prp1=pages[0], prp2=listed, cdw12=31)
    assert run(bench, pair, command)[1] == 1


@pytest.mark.point("D07")
def test_lists_that_are_in_order_are_walked_by_the_loop(bench: Bench, pair: QueuePair) -> None:
    at = pair.driver.ram.allocate(2 * PAGE)
    driver = pair.driver
    good = [(BLOCK, at, 512), (BLOCK, at, 0), (BLOCK, at + PAGE, 512)]
    bucket = [(BLOCK, at, 512), (BUCKET, 0, 0), (BUCKET, 0, 512)]
    for opcode in (IoOpcode.READ, IoOpcode.WRITE):
        assert run(bench, pair, sgl(opcode, 1024, straight(driver, *good))) == (Status.SUCCESS, 0)
        assert run(bench, pair, sgl(opcode, 1024, chained(driver, *good))) == (Status.SUCCESS, 0)
    assert run(bench, pair, sgl(IoOpcode.READ, 1024, straight(driver, *bucket))) == (Status.SUCCESS, 0)
    ignored = straight(driver, good[0], (BUCKET, 0, 512), good[2])
    assert run(bench, pair, sgl(IoOpcode.WRITE, 1024, ignored)) == (Status.SUCCESS, 0)


@pytest.mark.point("D07")
def test_lists_that_are_wrong_are_left_to_python(bench: Bench, pair: QueuePair) -> None:
    driver = pair.driver
    at = driver.ram.allocate(2 * PAGE)
    for first in (
        (BLOCK, at, 512),
        (BLOCK, at + 2, 1024),
        (BLOCK, NOWHERE, 1024),
        (BUCKET, 0, 1024),
        (LAST, at, 8),
        (LAST, at, 0),
        (LAST, at + 4, 32),
        (LAST, NOWHERE, 32),
        (LAST, at, 16 * 2000),
        straight(driver, (BLOCK, at, 512)),
        straight(driver, (BLOCK, at, 2048)),
        straight(driver, (BUCKET, 0, 2048)),
        straight(driver, (BLOCK, NOWHERE, 1024)),
        straight(driver, (SEGMENT, at, 32)),
        straight(driver, (0x41, at, 1024)),
        (SEGMENT, straight(driver, (BLOCK, at, 1024))[1], 16),
    ):
        status, diverted = run(bench, pair, sgl(IoOpcode.READ, 1024, first))
        assert diverted == 1, first
        assert status in (
            Status.SUCCESS,
            Status.DATA_TRANSFER_ERROR,
            *(named for named in Status if named.name.startswith("SGL") or "SGL" in named.name),
        ), first


def test_what_does_not_fit_into_the_scratch_is_left_to_python(bench: Bench, pair: QueuePair) -> None:
    """It is sized so that everything does; if it were not, nothing would be written beyond it."""
    driver = pair.driver
    record = bench.device.plane.workspaces[0].record
    pages = [driver.ram.allocate(PAGE) for _ in range(4)][::-1]
    blocks = [(BLOCK, page, 512) for page in pages]
    bucket = straight(driver, blocks[0], (BUCKET, 0, 512))
    listed = Command(IoOpcode.READ, nsid=1, prp1=pages[0], prp2=driver.prp_list(pages[1:]), cdw12=31)
    for room in (0, 1, 2):
        record[PL_SEGMENT_COUNT] = room
        assert run(bench, pair, listed) == (Status.SUCCESS, 1)
        assert run(bench, pair, sgl(IoOpcode.READ, 2048, straight(driver, *blocks)))[1] == 1
        if room < 2:
            assert run(bench, pair, sgl(IoOpcode.READ, 1024, bucket))[1] == 1


def test_a_namespace_that_is_nothing_is_read_and_written_by_the_loop(make_bench: MakeBench) -> None:
    bench = make_bench(NullStorage(1 << 20))
    driver = bench.driver.enable()
    pair = driver.create_queue_pair(1)
    for opcode in (IoOpcode.READ, IoOpcode.WRITE):
        assert run(bench, pair, driver.rw(opcode, 0, 8, driver.data, PAGE)) == (Status.SUCCESS, 0)
    assert (bench.device.statistics["reads"], bench.device.statistics["bytes_written"]) == (1, PAGE)


@pytest.mark.point("A03")
def test_while_a_command_is_to_be_aborted_all_of_its_queue_come_to_python(
    bench: Bench, driver: Driver
) -> None:
    pair = driver.create_queue_pair(1, cq_entries=2)
    for cid in range(4):
        pair.submit(FLUSH, cid=cid)
    pair.ring()
    bench.settle()
    abort = driver.admin.execute(Command(AdminOpcode.ABORT, cdw10=1 | 2 << 16))
    assert abort.result == 0
    found = {}
    for _ in range(4):
        bench.settle()
        found.update({completion.cid: ended(completion) for completion in pair.poll()})
    assert found == {
        0: Status.SUCCESS,
        1: Status.SUCCESS,
        2: Status.ABORT_REQUESTED,
        3: Status.SUCCESS,
    }


def test_there_is_nothing_to_tell_where_all_was_told(bench: Bench, driver: Driver) -> None:
    pair = driver.create_queue_pair(1, vector=1)
    pair.submit(FLUSH)
    pair.ring()
    bench.settle()
    cq = bench.device.state.completion[1].record.address
    interrupts = bench.device.statistics["interrupts"]
    assert tell(0, bench.device.plane.workspaces[0].address, cq, 1) == NEVER
    assert bench.device.statistics["interrupts"] == interrupts


@pytest.mark.parametrize("nsid", [0, 3, 0xFFFF_FFFF])
def test_a_namespace_that_is_not_there_is_python_s_to_say(bench: Bench, pair: QueuePair, nsid: int) -> None:
    read = Command(IoOpcode.READ, nsid=nsid, prp1=pair.driver.data)
    assert run(bench, pair, read) == (Status.INVALID_NAMESPACE, 1)


def test_many_writes_at_once_large_and_small_are_all_there_when_they_are_complete(
    bench: Bench, driver: Driver
) -> None:
    pair = driver.create_queue_pair(1, entries=64)
    data = driver.ram.allocate(4 * PAGE)
    driver.ram.write(data, bytes(range(256)) * (4 * PAGE // 256))
    for number in range(20):
        pair.submit(driver.rw(IoOpcode.WRITE, number, 1, data + 256 * number, 512))
    pair.submit(FLUSH)
    pair.submit(driver.rw(IoOpcode.WRITE, 64, 32, data, 4 * PAGE))
    pair.submit(driver.rw(IoOpcode.WRITE, 96, 1, data, 512))
    pair.ring()
    bench.settle()
    assert [ended(completion) for completion in pair.poll()] == [Status.SUCCESS] * 23
    storage = bench.device.namespaces[1].storage
    assert storage.read(0, 512 * 20) == driver.ram.read(data, 512) * 20
    assert storage.read(64 * 512, 4 * PAGE) == driver.ram.read(data, 4 * PAGE)
    assert driver.get_log(2).status == 0
    assert struct.unpack("<Q", driver.ram.read(driver.data + 80, 8)) == (22,), "host write commands"


def test_many_reads_at_once_large_and_small_bring_what_is_there(bench: Bench, driver: Driver) -> None:
    blocks = [1, 32, 1, 8, 16, 32, 3, 1, 1, 16]
    content = b"".join(number.to_bytes(4, "little") * 128 for number in range(sum(blocks)))
    bench.device.namespaces[1].storage.write(0, content)
    pair = driver.create_queue_pair(1, entries=64)
    data = driver.ram.allocate(16 * PAGE)
    at = 0
    for count in blocks:
        pair.submit(driver.rw(IoOpcode.READ, at, count, data + 512 * at, 512 * count))
        at += count
    pair.ring()
    bench.settle()
    assert [ended(completion) for completion in pair.poll()] == [Status.SUCCESS] * len(blocks)
    assert driver.ram.read(data, len(content)) == content


def test_no_command_is_taken_after_a_shutdown(bench: Bench, driver: Driver) -> None:
    pair = driver.create_queue_pair(1)
    driver.bar.write32(CC, driver.bar.read32(CC) | 1 << 14)
    pair.submit(FLUSH)
    pair.ring()
    bench.settle()
    assert pair.poll() == []
