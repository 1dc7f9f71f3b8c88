"""Get LBA Status, the log that goes with it, and the event that says there is something in it."""

import struct
from dataclasses import dataclass

import pytest

from outboard.devices.nvme import Namespace, lba_status
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.events import LBA_STATUS_ALERT, LBA_STATUS_NOTICES
from outboard.devices.nvme.layouts import IDENTIFY_CONTROLLER
from outboard.devices.nvme.lba_status import MOST_RANGES
from outboard.devices.nvme.saved_state import restore, save
from outboard.devices.nvme.spec import AdminOpcode, Cns, FeatureId, IoOpcode, LogId
from outboard.devices.nvme.status import Status
from outboard.devices.nvme.uncorrectable import MOST
from outboard.storage import NullStorage, RamStorage
from tests.devices.nvme.conftest import MakeBench
from tests.devices.nvme.driver import PAGE, Driver, QueuePair, ended
from tests.devices.nvme.test_moving import Move, moved  # noqa: F401

BLOCKS = (8 << 20) // 512
SCAN, TRACKED = 0x10, 0x11


def spoil(
    pair: QueuePair, slba: int, blocks: int = 1, opcode: IoOpcode = IoOpcode.WRITE_UNCORRECTABLE
) -> None:
    """Make blocks uncorrectable; or whatever else ``opcode`` does with them."""
    command = Command(opcode, nsid=1, cdw10=slba & 0xFFFF_FFFF, cdw11=slba >> 32, cdw12=blocks - 1)
    assert ended(pair.execute(command)) == Status.SUCCESS


def ask(
    driver: Driver, slba: int = 0, blocks: int = 0, room: int = PAGE, action: int = TRACKED, nsid: int = 1
) -> Command:
    """A command that asks for the blocks that cannot be read."""
    return Command(
        AdminOpcode.GET_LBA_STATUS,
        nsid=nsid,
        prp1=driver.data,
        cdw10=slba & 0xFFFF_FFFF,
        cdw11=slba >> 32,
        cdw12=room // 4 - 1,
        cdw13=action << 24 | blocks,
    )


def answer(driver: Driver, command: Command) -> tuple[int, list[tuple[int, int]]]:
    """The completion condition, and first blocks and numbers of the ranges."""
    driver.ram.write(driver.data, b"\xee" * PAGE)
    assert ended(driver.admin.execute(command)) == Status.SUCCESS
    data = driver.ram.read(driver.data, PAGE)
    count, condition = struct.unpack_from("<IB", data)
    ranges = [struct.unpack_from("<QIBB", data, 8 + 16 * number) for number in range(count)]
    assert all(status == 0 for *_, status in ranges)
    assert data[8 + 16 * count :] == b"\xee" * (PAGE - 8 - 16 * count), "more than there is to say"
    return condition, [(start, number) for start, number, *_ in ranges]


@dataclass
class Log:
    """The log as it was read; ``ranges`` by namespace, None if there are too many."""

    size: int
    estimate: int
    generation: int
    ranges: dict[int, list[tuple[int, int]] | None]


def read_log(driver: Driver, retain: bool = False) -> Log:
    assert ended(driver.get_log(LogId.LBA_STATUS, PAGE, retain=retain)) == Status.SUCCESS
    data = driver.ram.read(driver.data, PAGE)
    size, elements, estimate, generation = struct.unpack_from("<III2xH", data)
    at = 16
    ranges: dict[int, list[tuple[int, int]] | None] = {}
    for _ in range(elements):
        nsid, count, _ = struct.unpack_from("<IIB", data, at)
        at += 16
        ranges[nsid] = None
        if count != 0xFFFF_FFFF:
            ranges[nsid] = [struct.unpack_from("<QI", data, at + 16 * number) for number in range(count)]
            at += 16 * count
    assert at == size
    return Log(size, estimate, generation, ranges)


@pytest.fixture
def pair(driver: Driver) -> QueuePair:
    return driver.create_queue_pair(1)


@pytest.mark.point("L05")
@pytest.mark.parametrize("action", [SCAN, TRACKED])
def test_blocks_that_cannot_be_read_are_found_until_they_are_written(
    driver: Driver, pair: QueuePair, action: int
) -> None:
    assert answer(driver, ask(driver, action=action)) == (2, [])
    spoil(pair, 100, 8)
    spoil(pair, 0)
    spoil(pair, BLOCKS - 1)
    assert answer(driver, ask(driver, action=action)) == (2, [(0, 1), (100, 8), (BLOCKS - 1, 1)])
    spoil(pair, 102, 2, IoOpcode.WRITE_ZEROES)
    assert answer(driver, ask(driver, action=action)) == (
        2,
        [(0, 1), (100, 2), (104, 4), (BLOCKS - 1, 1)],
    )


@pytest.mark.point("L05")
def test_only_the_range_that_was_asked_for_is_told_of(driver: Driver, pair: QueuePair) -> None:
    spoil(pair, 100, 8)
    assert answer(driver, ask(driver, 103, 2)) == (2, [(103, 2)])
    assert answer(driver, ask(driver, 90, 12)) == (2, [(100, 2)])
    assert answer(driver, ask(driver, 108, 20)) == (2, [])
    assert answer(driver, ask(driver, 106)) == (2, [(106, 2)])


@pytest.mark.point("L05")
@pytest.mark.parametrize(("room", "told"), [(4, 0), (8, 0), (20, 0), (24, 1), (40, 2), (56, 3)])
def test_what_there_is_no_room_for_is_missed(driver: Driver, pair: QueuePair, room: int, told: int) -> None:
    for slba in (1, 3, 5):
        spoil(pair, slba)
    if room < 8:
        driver.ram.write(driver.data, b"\xee" * 16)
        assert ended(driver.admin.execute(ask(driver, room=room))) == Status.SUCCESS
        assert driver.ram.read(driver.data, 16) == bytes(4) + b"\xee" * 12
    else:
        complete = 2 if told == 3 else 1
        assert answer(driver, ask(driver, room=room)) == (complete, [(1, 1), (3, 1), (5, 1)][:told])


@pytest.mark.point("A02")
@pytest.mark.parametrize(
    ("wrong", "status"),
    [
        ({"nsid": 0}, Status.INVALID_NAMESPACE),
        ({"nsid": 0xFFFF_FFFF}, Status.INVALID_NAMESPACE),
        ({"slba": BLOCKS}, Status.LBA_OUT_OF_RANGE),
        ({"slba": (1 << 64) - 1}, Status.LBA_OUT_OF_RANGE),
        ({"slba": BLOCKS - 1, "blocks": 2}, Status.LBA_OUT_OF_RANGE),
        ({"action": 0x02}, Status.INVALID_FIELD),
        ({"action": 0x12}, Status.INVALID_FIELD),
        ({"room": 1 << 34}, Status.INVALID_FIELD),
    ],
)
def test_nonsense_is_refused(driver: Driver, wrong: dict[str, int], status: Status) -> None:
    assert ended(driver.admin.execute(ask(driver, **wrong))) == status


@pytest.mark.point("L05")
def test_the_log_tells_of_all_namespaces(driver: Driver, pair: QueuePair) -> None:
    first = read_log(driver)
    assert (first.size, first.estimate, first.ranges) == (16, 0, {})
    spoil(pair, 100, 8)
    spoil(pair, 7)
    other = Command(IoOpcode.WRITE_UNCORRECTABLE, nsid=2, cdw10=1, cdw12=1)
    assert ended(pair.execute(other)) == Status.SUCCESS
    second = read_log(driver)
    assert (second.estimate, second.ranges) == (11, {1: [(7, 1), (100, 8)], 2: [(1, 2)]})
    assert second.generation != first.generation
    assert read_log(driver) == second
    spoil(pair, 7, opcode=IoOpcode.WRITE_ZEROES)
    assert read_log(driver).generation not in (first.generation, second.generation)


def test_the_log_is_no_longer_than_may_be(driver: Driver, pair: QueuePair) -> None:
    for number in range(MOST_RANGES + 1):
        spoil(pair, 2 * number)
    assert read_log(driver).ranges == {1: None}
    condition, ranges = answer(driver, ask(driver, 2 * MOST_RANGES))
    assert (condition, ranges) == (2, [(2 * MOST_RANGES, 1)])


def test_ranges_are_as_long_as_their_field(make_bench: MakeBench) -> None:
    bench = make_bench(Namespace(NullStorage(1 << 42)))
    driver = bench.driver.enable()
    bench.device.namespaces[1].uncorrectable.add(1, 1 + (1 << 32))
    most = (1 << 32) - 1
    assert answer(driver, ask(driver)) == (2, [(1, most), (1 << 32, 1)])
    log = read_log(driver)
    assert (log.estimate, log.ranges) == (most, {1: [(1, most), (1 << 32, 1)]})


@pytest.mark.point("E02", "E03", "F03")
def test_a_host_that_wants_to_know_is_told_and_not_too_often(
    driver: Driver, pair: QueuePair, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(lba_status, "monotonic", lambda: now)
    driver.identify(Cns.CONTROLLER)
    structure = IDENTIFY_CONTROLLER.decode(driver.ram.read(driver.data, PAGE))
    assert int(structure["oacs"]) & 1 << 9
    assert int(structure["oaes"]) & LBA_STATUS_NOTICES
    driver.set_feature(FeatureId.ASYNC_EVENT_CONFIGURATION, LBA_STATUS_NOTICES)
    driver.set_feature(FeatureId.LBA_STATUS_ATTRIBUTES, 50 | 7 << 16)
    assert driver.get_feature(FeatureId.LBA_STATUS_ATTRIBUTES).result == 50, "polls may come at once"
    request = Command(AdminOpcode.ASYNC_EVENT_REQUEST)
    cid = driver.admin.submit(request)
    driver.admin.ring()
    spoil(pair, 1)
    assert driver.admin.wait(cid).result == LBA_STATUS_ALERT.result
    read_log(driver)
    cid = driver.admin.submit(request)
    driver.admin.ring()
    spoil(pair, 9)
    assert not driver.admin.poll(), "five seconds have not passed"
    now += 5
    spoil(pair, 11)
    assert driver.admin.wait(cid).result == LBA_STATUS_ALERT.result


def test_what_may_not_be_told_yet_is_told_when_time_has_passed(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(lba_status, "monotonic", lambda: now)
    bench = make_bench()
    driver = bench.driver.enable()
    pair = driver.create_queue_pair(1)
    driver.set_feature(FeatureId.ASYNC_EVENT_CONFIGURATION, LBA_STATUS_NOTICES)
    driver.set_feature(FeatureId.LBA_STATUS_ATTRIBUTES, 50)
    spoil(pair, 1)
    read_log(driver)
    cid = driver.admin.submit(Command(AdminOpcode.ASYNC_EVENT_REQUEST))
    driver.admin.ring()
    spoil(pair, 9)
    now += 60
    assert not driver.admin.poll()
    bench.device.on_disconnect()
    bench.device.on_connect()
    assert driver.admin.wait(cid).result == LBA_STATUS_ALERT.result


@pytest.mark.point("N10")
def test_blocks_that_cannot_be_read_move_with_their_controller(make_bench: MakeBench, moved: Move) -> None:  # noqa: F811
    bench = make_bench(RamStorage(1 << 20))
    driver = bench.driver.enable()
    pair = driver.create_queue_pair(1)
    spoil(pair, 8, 4)
    moved(bench, RamStorage(1 << 20))
    assert answer(driver, ask(driver)) == (2, [(8, 4)])
    read = driver.rw(IoOpcode.READ, 8, 1, driver.data, 512)
    assert ended(pair.execute(read)) == Status.UNRECOVERED_READ_ERROR


@pytest.mark.parametrize(
    "runs",
    [
        pytest.param([(-10, 3)], id="before the first block"),
        pytest.param([(BLOCKS - 1, BLOCKS + 1)], id="behind the last one"),
        pytest.param([(8, 9), (4, 5)], id="descending"),
        pytest.param([(4, 6), (5, 7)], id="overlapping"),
        pytest.param([(4, 4)], id="empty"),
    ],
)
def test_a_state_with_uncorrectable_blocks_that_cannot_be_is_refused(
    make_bench: MakeBench, runs: list[tuple[int, int]]
) -> None:
    state = make_bench().device.state
    saved = save(state)
    saved["uncorrectable"]["1"] = runs
    with pytest.raises(ValueError, match="uncorrectable blocks"):
        restore(state, saved)


def test_a_state_with_more_uncorrectable_blocks_than_can_be_is_refused(make_bench: MakeBench) -> None:
    state = make_bench(RamStorage(2 * 512 * MOST)).device.state
    saved = save(state)
    saved["uncorrectable"]["1"] = [(0, MOST + 1)]
    with pytest.raises(ValueError, match="more than"):
        restore(state, saved)
