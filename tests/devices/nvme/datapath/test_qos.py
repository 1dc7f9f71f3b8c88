"""Limits of namespaces: how much comes through, who waits, and what becomes of what waits."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from outboard.devices.nvme import Namespace, Nvme, Protection, Qos, Subsystem
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.controller import Progress
from outboard.devices.nvme.datapath import held, limits, loop, waiting
from outboard.devices.nvme.datapath.limits import SAVED
from outboard.devices.nvme.datapath.plane import DataPlane
from outboard.devices.nvme.datapath.records import HELD
from outboard.devices.nvme.datapath.tuning import Tuning
from outboard.devices.nvme.spec import AdminOpcode, IoOpcode
from outboard.devices.nvme.status import Status
from outboard.native.libc import SECOND
from outboard.storage import NullStorage, RamStorage, Storage, open_file
from tests.devices.nvme.bench import Bench
from tests.devices.nvme.conftest import MakeBench
from tests.devices.nvme.datapath.live import LiveBench, complete, tuning
from tests.devices.nvme.datapath.test_pollers import MakeLive, make_live  # noqa: F401
from tests.devices.nvme.driver import PAGE, QueuePair, ended
from tests.devices.nvme.test_moving import move

SIZE = 4 << 20
FLUSH = Command(IoOpcode.FLUSH, nsid=1)
NEVER = Qos(bytes_per_second=1)
"""A block takes nine minutes: what comes after the first one waits for longer than any test."""


def read(pair: QueuePair, blocks: int = 1, nsid: int = 1, opcode: IoOpcode = IoOpcode.READ) -> Command:
    """A command that moves blocks to or from one page."""
    return Command(opcode, nsid=nsid, prp1=pair.driver.data, cdw12=blocks - 1)


def write(pair: QueuePair, blocks: int = 1, nsid: int = 1) -> Command:
    return read(pair, blocks, nsid, IoOpcode.WRITE)


def limited(qos: Qos, storage: Storage | None = None) -> Namespace:
    return Namespace(storage or RamStorage(SIZE), qos=qos)


def hold(bench: Bench, pair: QueuePair, *commands: Command) -> list[int]:
    """Submit a read that is due at once, and these commands, which are not; their identifiers."""
    assert ended(pair.execute(read(pair))) == Status.SUCCESS
    cids = [pair.submit(command) for command in commands]
    pair.ring()
    bench.settle()
    assert not pair.poll()
    return cids


def leave_to_python(plane: DataPlane) -> None:
    """From now on no loop serves any queue."""
    with plane.paused():
        plane.frozen = True
        plane.place()


@dataclass
class Clock:
    """The clock of loops that are not compiled, and of Python."""

    now: int = SECOND
    step: int = 0
    """How much later it is at every look."""

    def __call__(self) -> int:
        self.now += self.step
        return self.now

    monotonic_ns = __call__

    def monotonic(self) -> float:
        return self.now / SECOND


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    from outboard.devices.nvme import controller

    clock = Clock()
    for module in (held, loop):
        monkeypatch.setattr(module, "monotonic_ns", clock)
    for timed in (controller, waiting):
        monkeypatch.setattr(timed, "time", clock)
    return clock


def plain_bench(*namespaces: Namespace, subsystem: Subsystem | None = None) -> Bench:
    return Bench(Nvme(*namespaces, subsystem=subsystem, tuning=Tuning(pollers=0, native=False)))


def keep_busy(clock: Clock, benches: list[Bench], make: Callable[[QueuePair], Command]) -> list[int]:
    """Keep eight commands under way in a queue of each for a second; how many of each ended with success."""
    done = [0 for _ in benches]
    pairs = [bench.driver.create_queue_pair(1, entries=64) for bench in benches]
    for pair in pairs:
        for _ in range(8):
            pair.submit(make(pair))
    end = clock.now + SECOND
    while clock.now < end:
        for number, (bench, pair) in enumerate(zip(benches, pairs, strict=True)):
            pair.ring()
            # Its timers go by another clock.
            bench.device.state.wake()
            bench.settle()
            for completion in pair.poll():
                assert ended(completion) == Status.SUCCESS
                done[number] += 1
                pair.submit(make(pair))
        clock.now += 3_000_000
    return done


@pytest.mark.point("T03")
@pytest.mark.parametrize("in_python", [False, True], ids=["loop", "Python"])
@pytest.mark.parametrize(
    ("qos", "make", "expected"),
    [
        pytest.param(Qos(iops=500), read, 500, id="commands"),
        pytest.param(Qos(write_iops=500, read_iops=1), write, 500, id="writes"),
        pytest.param(Qos(bytes_per_second=400 * 4096), lambda pair: read(pair, 8), 400, id="bytes"),
        pytest.param(Qos(read_bytes_per_second=600 * 512), read, 600, id="bytes read"),
        pytest.param(Qos(iops=300, write_bytes_per_second=1 << 30), write, 300, id="the stricter of two"),
    ],
)
def test_a_limit_is_kept_within_five_percent(
    clock: Clock, qos: Qos, make: Callable[[QueuePair], Command], expected: int, in_python: bool
) -> None:
    bench = plain_bench(limited(qos))
    bench.driver.enable()
    if in_python:
        leave_to_python(bench.device.plane)
    (done,) = keep_busy(clock, [bench], make)
    assert abs(done - expected) <= expected * 0.05
    bench.close()


@pytest.mark.point("T03")
@pytest.mark.parametrize("in_python", [False, True], ids=["loop", "one in Python"])
def test_controllers_that_share_a_namespace_share_its_limit_by_turns(clock: Clock, in_python: bool) -> None:
    disks = Subsystem(limited(Qos(iops=400)))
    benches = [plain_bench(subsystem=disks) for _ in range(2)]
    for bench in benches:
        bench.driver.enable()
    if in_python:
        leave_to_python(benches[0].device.plane)
    done = keep_busy(clock, benches, read)
    assert abs(sum(done) - 400) <= 20
    assert abs(done[0] - done[1]) <= 20
    for bench in benches:
        bench.close()


@pytest.mark.parametrize("in_python", [False, True], ids=["loop", "Python"])
@pytest.mark.parametrize("step", [1_000, 300_000, 700_000, 1_900_000])
def test_what_becomes_due_while_it_is_looked_at_is_not_forgotten(
    clock: Clock, step: int, in_python: bool
) -> None:
    bench = plain_bench(limited(Qos(iops=1000)))
    pair = bench.driver.enable().create_queue_pair(1, entries=64)
    if in_python:
        leave_to_python(bench.device.plane)
    count = SAVED * 1000 // SECOND + 8
    for _ in range(count):
        pair.submit(read(pair))
    pair.ring()
    clock.step = step
    done = 0
    while done < count:
        again = bench.device.controller.process() is not Progress.IDLE or bench.device.controller.deferred > 0
        done += len(pair.poll())
        assert again or done == count, "nobody would have looked again"
    bench.close()


@pytest.mark.point("T03")
def test_what_was_not_used_is_saved_up_for_a_moment_only(clock: Clock) -> None:
    bench = plain_bench(limited(Qos(iops=1000)))
    pair = bench.driver.enable().create_queue_pair(1, entries=64)
    assert ended(pair.execute(read(pair))) == Status.SUCCESS
    clock.now += 60 * SECOND
    for _ in range(60):
        pair.submit(read(pair))
    pair.ring()
    bench.settle()
    assert len(pair.poll()) == SAVED * 1000 // SECOND + 1
    bench.close()


def test_a_command_over_the_limit_holds_up_nobody_else(make_bench: MakeBench) -> None:
    bench = make_bench(limited(NEVER), RamStorage(SIZE))
    pair = bench.driver.enable().create_queue_pair(1)
    hold(bench, pair, read(pair), write(pair))
    assert ended(pair.execute(read(pair, nsid=2))) == Status.SUCCESS
    assert ended(pair.execute(FLUSH)) == Status.SUCCESS, "a flush has no limit"
    assert bench.device.statistics["held"] == 3
    assert bench.device.plane.queue_statistics()[1]["depth"] == 2


@pytest.mark.parametrize("in_python", [False, True], ids=["loop", "Python"])
def test_reads_do_not_wait_for_writes(make_bench: MakeBench, in_python: bool) -> None:
    bench = make_bench(limited(Qos(write_bytes_per_second=1)))
    pair = bench.driver.enable().create_queue_pair(1)
    if in_python:
        leave_to_python(bench.device.plane)
    for _ in range(3):
        pair.submit(write(pair))
    pair.ring()
    assert ended(pair.execute(read(pair, 8))) == Status.SUCCESS
    bench.settle()
    assert sorted([*pair.done, *(completion.cid for completion in pair.poll())]) == [0]


def test_what_python_executes_is_limited_too(make_bench: MakeBench) -> None:
    bench = make_bench(limited(NEVER))
    pair = bench.driver.enable().create_queue_pair(1)
    hold(bench, pair, read(pair, opcode=IoOpcode.COMPARE))
    cid = pair.submit(Command(0x99, nsid=1))
    pair.ring()
    assert ended(pair.wait(cid)) == Status.INVALID_OPCODE, "what is nothing is no command of blocks"


@pytest.mark.parametrize("in_python", [False, True], ids=["loop", "Python"])
def test_a_command_that_is_larger_than_may_be_fails_and_costs_nothing(
    make_bench: MakeBench, in_python: bool
) -> None:
    bench = make_bench(limited(NEVER), mdts=1)
    pair = bench.driver.enable().create_queue_pair(1)
    if in_python:
        leave_to_python(bench.device.plane)
    assert ended(pair.execute(read(pair, 1 << 16))) == Status.INVALID_FIELD
    assert ended(pair.execute(read(pair))) == Status.SUCCESS


def test_a_command_without_data_counts_as_one(make_bench: MakeBench) -> None:
    bench = make_bench(limited(NEVER))
    pair = bench.driver.enable().create_queue_pair(1)
    zeroes = read(pair, 1 << 12, opcode=IoOpcode.WRITE_ZEROES)
    hold(bench, pair)
    assert ended(pair.execute(zeroes)) == Status.SUCCESS
    assert ended(pair.execute(zeroes)) == Status.SUCCESS


def test_so_many_commands_are_held_and_the_next_waits_in_its_queue(make_bench: MakeBench) -> None:
    bench = make_bench(limited(NEVER), RamStorage(SIZE))
    pair = bench.driver.enable().create_queue_pair(1, entries=2 * HELD)
    hold(bench, pair, *[read(pair)] * (HELD + 1))
    sq = bench.device.state.submission[1]
    assert (sq.waiting, bench.device.plane.queue_statistics()[1]["depth"]) == (1, HELD + 1)
    bench.device.subsystem.set_qos(1, None)
    bench.settle()
    assert len(pair.poll()) == HELD + 1


def test_so_many_commands_wait_in_python_and_the_next_in_its_queue(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "MOST", 4)
    bench = make_bench(limited(NEVER), RamStorage(SIZE))
    driver = bench.driver.enable()
    pair = driver.create_queue_pair(1, entries=16)
    leave_to_python(bench.device.plane)
    driver.set_feature(1, cdw11=0)
    hold(bench, pair, *[read(pair)] * 6)
    assert bench.device.state.submission[1].waiting == 2
    assert ended(driver.identify(1)) == Status.SUCCESS


@pytest.mark.parametrize("in_python", [False, True], ids=["loop", "Python"])
@pytest.mark.parametrize("qos", [None, Qos(), Qos(iops=1_000_000)], ids=["none", "empty", "another"])
def test_another_limit_is_for_what_waits_too(make_bench: MakeBench, qos: Qos | None, in_python: bool) -> None:
    bench = make_bench(limited(NEVER))
    pair = bench.driver.enable().create_queue_pair(1)
    if in_python:
        leave_to_python(bench.device.plane)
    cids = hold(bench, pair, read(pair), write(pair), read(pair))
    bench.device.subsystem.set_qos(1, qos)
    assert [ended(pair.wait(cid)) for cid in cids] == [Status.SUCCESS] * 3
    assert ended(pair.execute(read(pair))) == Status.SUCCESS


def test_a_limit_may_be_set_at_any_time(make_bench: MakeBench) -> None:
    bench = make_bench(RamStorage(SIZE), RamStorage(SIZE))
    pair = bench.driver.enable().create_queue_pair(1)
    assert ended(pair.execute(read(pair, nsid=2))) == Status.SUCCESS
    bench.device.subsystem.set_qos(2, NEVER)
    bench.device.subsystem.set_qos(1, Qos(iops=1_000_000))
    assert ended(pair.execute(read(pair, nsid=2))) == Status.SUCCESS
    cid = pair.submit(read(pair, nsid=2))
    assert ended(pair.execute(read(pair))) == Status.SUCCESS
    assert cid not in pair.done
    with pytest.raises(KeyError):
        bench.device.subsystem.set_qos(3, None)


@pytest.mark.point("Q09")
@pytest.mark.parametrize("in_python", [False, True], ids=["loop", "Python"])
def test_what_waits_ends_with_its_queue_and_costs_the_others_nothing(
    make_bench: MakeBench, in_python: bool
) -> None:
    bench = make_bench(limited(Qos(read_bytes_per_second=1)))
    driver = bench.driver.enable()
    doomed, other = driver.create_queue_pair(1), driver.create_queue_pair(2)
    if in_python:
        leave_to_python(bench.device.plane)
    cids = hold(bench, doomed, *[read(doomed, 8)] * 3)
    (last,) = [other.submit(read(other))]
    other.ring()
    bench.settle()
    clock = limits.CLOCKS + limits.READ_BYTES
    words = bench.device.namespaces[1].limits._block
    before = words[clock]
    assert ended(driver.admin.execute(Command(AdminOpcode.DELETE_IO_SQ, cdw10=1))) == Status.SUCCESS
    doomed.poll()
    assert [ended(doomed.done[cid]) for cid in cids] == [Status.ABORTED_SQ_DELETION] * 3
    # Its first command had a ticket, which the first one behind it has now.
    bench.settle()
    assert words[clock] == before - 8 * 512 * SECOND + 512 * SECOND
    bench.device.subsystem.set_qos(1, None)
    assert ended(other.wait(last)) == Status.SUCCESS


@pytest.mark.parametrize("in_python", [False, True], ids=["loop", "Python"])
def test_a_command_that_waits_can_be_aborted(make_bench: MakeBench, in_python: bool) -> None:
    bench = make_bench(limited(NEVER))
    driver = bench.driver.enable()
    pair = driver.create_queue_pair(1)
    if in_python:
        leave_to_python(bench.device.plane)
    first, second, third = hold(bench, pair, read(pair), read(pair), read(pair))
    abort = Command(AdminOpcode.ABORT, cdw10=1 | second << 16)
    assert driver.admin.execute(abort).result == 0
    assert ended(pair.wait(second)) == Status.ABORT_REQUESTED
    assert driver.admin.execute(abort).result == 1, "it is gone"
    bench.device.subsystem.set_qos(1, None)
    assert ended(pair.wait(first)) == ended(pair.wait(third)) == Status.SUCCESS


@pytest.mark.point("S01")
@pytest.mark.parametrize("in_python", [False, True], ids=["loop", "Python"])
def test_a_reset_forgets_what_waits(make_bench: MakeBench, in_python: bool) -> None:
    bench = make_bench(limited(NEVER))
    driver = bench.driver.enable()
    pair = driver.create_queue_pair(1)
    if in_python:
        leave_to_python(bench.device.plane)
    hold(bench, pair, read(pair), write(pair))
    driver.disable()
    driver.enable()
    pair = driver.create_queue_pair(1)
    bench.device.subsystem.set_qos(1, None)
    assert ended(pair.execute(read(pair))) == Status.SUCCESS
    bench.settle()
    assert not pair.poll()


def test_what_waits_for_a_namespace_that_goes_ends_without_it(make_bench: MakeBench) -> None:
    bench = make_bench(limited(NEVER), RamStorage(SIZE))
    pair = bench.driver.enable().create_queue_pair(1)
    cids = hold(bench, pair, read(pair), write(pair))
    bench.device.subsystem.remove(1).storage.close()
    assert [ended(pair.wait(cid)) for cid in cids] == [Status.INVALID_NAMESPACE] * 2
    assert ended(pair.execute(read(pair))) == Status.INVALID_NAMESPACE
    assert ended(pair.execute(read(pair, nsid=2))) == Status.SUCCESS


def test_what_waits_goes_on_in_python_when_its_queue_is_out_of_reach(make_bench: MakeBench) -> None:
    bench = make_bench(limited(NEVER))
    driver = bench.driver.enable()
    pair, other = driver.create_queue_pair(1), driver.create_queue_pair(2)
    cids = hold(bench, pair, read(pair), write(pair))
    bench.unmap()
    assert len(bench.device.plane.waiting) == 2
    bench.map()
    bench.bus_master(True)
    cids.append(pair.submit(read(pair)))
    pair.ring()
    bench.settle()
    assert not pair.poll()
    bench.device.subsystem.set_qos(1, None)
    assert [ended(pair.wait(cid)) for cid in cids] == [Status.SUCCESS] * 3
    assert ended(other.execute(read(other))) == Status.SUCCESS


def test_what_waits_moves_with_its_controller(
    make_bench: MakeBench, lane: str, request: pytest.FixtureRequest
) -> None:
    bench = make_bench(limited(NEVER))
    pair = bench.driver.enable().create_queue_pair(1, entries=2 * HELD)
    cids = hold(bench, pair, *[read(pair), write(pair)] * 400)
    target = move(bench, Nvme(limited(NEVER), tuning=Tuning(pollers=0, native=lane == "native")))
    request.addfinalizer(target.close)
    target.settle()
    assert len(pair.poll()) == 1, "they take tickets anew, where nobody has used the limit yet"
    target.device.subsystem.set_qos(1, None)
    target.settle()
    pair.poll()
    assert sorted(pair.done) == cids
    assert all(ended(pair.done[cid]) == Status.SUCCESS for cid in cids)


@pytest.mark.parametrize("extended", [False, True])
def test_blocks_with_metadata_may_be_limited(make_bench: MakeBench, extended: bool) -> None:
    space = Namespace(RamStorage(SIZE), metadata=8, extended=extended, qos=Qos(iops=1_000_000))
    bench = make_bench(space)
    driver = bench.driver.enable()
    pair = driver.create_queue_pair(1)
    source, target = driver.ram.allocate(PAGE), driver.ram.allocate(PAGE)
    driver.ram.write(source, bytes(range(256)) * 16)
    for command in (write(pair, 2), read(pair, 2)):
        buffer = source if command.opcode == IoOpcode.WRITE else target
        command = replace(command, prp1=buffer, mptr=buffer + 2048)
        assert ended(pair.execute(command)) == Status.SUCCESS
    assert driver.ram.read(target, 1024) == driver.ram.read(source, 1024)
    assert bench.device.statistics["diverted"] == 0
    counters = bench.device.plane.namespace_statistics()[1]
    assert counters["bytes_read"] == counters["bytes_written"] == 1024
    assert bench.device.plane.queue_statistics()[1]["bytes"] == 2048


def test_a_block_that_does_not_pass_comes_to_python_when_it_is_due(make_bench: MakeBench) -> None:
    space = Namespace(RamStorage(SIZE), metadata=8, protection=Protection(1), qos=Qos(iops=1_000_000))
    bench = make_bench(space)
    driver = bench.driver.enable()
    pair = driver.create_queue_pair(1)
    driver.ram.write(driver.data, bytes(range(256)) * 2)
    check_guard = 1 << 28
    command = replace(write(pair), cdw12=check_guard, mptr=driver.ram.allocate(PAGE))
    assert ended(pair.execute(command)) == Status.GUARD_CHECK_ERROR
    statistics = bench.device.statistics
    assert (statistics["diverted"], statistics["writes"]) == (1, 0)


def test_nothing_may_be_limited(make_bench: MakeBench) -> None:
    bench = make_bench(limited(Qos(iops=1_000_000), NullStorage(SIZE)))
    pair = bench.driver.enable().create_queue_pair(1)
    for command in (read(pair), write(pair), read(pair)):
        assert ended(pair.execute(command)) == Status.SUCCESS
    counters = bench.device.plane.namespace_statistics()[1]
    assert (counters["reads"], counters["writes"], bench.device.statistics["held"]) == (2, 1, 3)


def test_a_poller_wakes_when_a_command_is_due(make_live: MakeLive) -> None:  # noqa: F811
    bench = make_live(limited(Qos(iops=200)), NullStorage(SIZE), pollers=2)
    driver = bench.driver.enable()
    pairs = [driver.create_queue_pair(qid, entries=32) for qid in (1, 2)]
    for pair in pairs:
        assert [ended(each) for each in complete(bench, pair, [read(pair)] * 8)] == [Status.SUCCESS] * 8


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("pollers", [0, 1])
def test_a_file_may_be_limited(tmp_path: Path, pollers: int, lane: str) -> None:
    storage = open_file(tmp_path / "disk", SIZE)
    bench = LiveBench(Nvme(limited(Qos(iops=1000), storage), tuning=tuning(lane, pollers)))
    pair = bench.driver.enable().create_queue_pair(1, entries=64)
    commands = [read(pair, 8), write(pair, 8)] * 16
    assert {ended(each) for each in complete(bench, pair, commands)} == {Status.SUCCESS}
    assert bench.device.statistics["reads"] == bench.device.statistics["writes"] == 16
    assert bench.device.plane.namespace_statistics()[1]["measured"] == 32
    bench.close()


def test_data_goes_where_it_should_also_when_it_had_to_wait(make_bench: MakeBench) -> None:
    bench = make_bench(limited(Qos(iops=1_000_000)))
    driver = bench.driver.enable()
    pair = driver.create_queue_pair(1)
    source, target = driver.ram.allocate(2 * PAGE), driver.ram.allocate(2 * PAGE)
    driver.ram.write(source, b"limited!" * 1024)
    assert ended(pair.execute(driver.rw(IoOpcode.WRITE, 3, 16, source, 2 * PAGE))) == Status.SUCCESS
    assert ended(pair.execute(driver.rw(IoOpcode.READ, 3, 16, target, 2 * PAGE))) == Status.SUCCESS
    assert driver.ram.read(target, 2 * PAGE) == b"limited!" * 1024
    assert bench.device.statistics["held"] == 2
    assert bench.device.statistics["diverted"] == 0
