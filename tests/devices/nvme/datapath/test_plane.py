"""Queues that change hands while commands are between the loop and Python."""

import pytest

from outboard.devices.nvme import Namespace, Nvme
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.datapath.plane import DataPlane
from outboard.devices.nvme.datapath.records import IN_FLIGHT
from outboard.devices.nvme.datapath.tuning import Tuning
from outboard.devices.nvme.queues import SubmissionQueue
from outboard.devices.nvme.spec import AdminOpcode, IoOpcode
from outboard.devices.nvme.status import Status
from outboard.loop import Loop
from outboard.storage import NullStorage, RamStorage
from tests.devices.nvme.bench import Bench
from tests.devices.nvme.conftest import MakeBench
from tests.devices.nvme.datapath.live import tuning
from tests.devices.nvme.driver import Driver, QueuePair, ended
from tests.devices.nvme.test_moving import move

FLUSH = Command(IoOpcode.FLUSH, nsid=1)


@pytest.fixture
def plane(bench: Bench) -> DataPlane:
    return bench.device.plane


def taken(bench: Bench, pair: QueuePair) -> SubmissionQueue:
    """The queue, with one more command that was taken from it and has not ended."""
    sq = bench.device.state.submission[pair.qid]
    sq.cq.pending += 1
    return sq


@pytest.mark.point("Q09")
def test_a_deleted_queue_takes_its_commands_and_completions_and_no_others(
    bench: Bench, driver: Driver, plane: DataPlane
) -> None:
    doomed, other = driver.create_queue_pair(1), driver.create_queue_pair(2)
    for pair in (doomed, other):
        plane.complete(taken(bench, pair), 100, 0, 0)
        sq = taken(bench, pair)
        plane.workspaces[0].put_slow(sq.record.address, Command(0x99, cid=101).encode())
    assert plane.slow
    assert plane.returning
    deletion = Command(AdminOpcode.DELETE_IO_SQ, cdw10=1)
    with plane.paused():
        assert [Command.decode(entry).cid for entry in plane.withdraw(bench.device.state.submission[1])] == [
            101
        ]
    bench.device.state.submission[1].cq.pending -= 1
    assert ended(driver.admin.execute(deletion)) == Status.SUCCESS
    assert [(c.cid, ended(c)) for c in doomed.poll()] == [(100, Status.SUCCESS)]
    assert ended(other.wait(100)) == Status.SUCCESS
    assert ended(other.wait(101)) == Status.INVALID_OPCODE
    assert ended(other.execute(FLUSH)) == Status.SUCCESS


def test_completions_on_their_way_to_a_queue_that_is_gone_wait_until_it_is_back(
    bench: Bench, driver: Driver, plane: DataPlane
) -> None:
    pair = driver.create_queue_pair(1)
    plane.complete(taken(bench, pair), 100, 0, 0)
    bench.unmap()
    assert not plane.returning
    bench.map()
    bench.bus_master(True)
    pair.ring()
    assert ended(pair.wait(100)) == Status.SUCCESS
    assert ended(pair.execute(FLUSH)) == Status.SUCCESS


def test_completions_on_their_way_survive_other_changes(
    bench: Bench, driver: Driver, plane: DataPlane
) -> None:
    pair = driver.create_queue_pair(1)
    plane.complete(taken(bench, pair), 100, 0, 0)
    driver.create_queue_pair(2)
    assert ended(pair.wait(100)) == Status.SUCCESS


def test_pollers_can_be_ended_after_their_loop(lane: str) -> None:
    device = Nvme(NullStorage(1 << 20), tuning=tuning(lane, 2))
    loop = Loop()
    device.plane.start(loop, lambda: None)
    assert all(poller.running for poller in device.plane.pollers)
    loop.close()
    device.plane.stop(None)
    assert device.plane.pollers == []
    device.close()


def test_a_command_waits_in_its_queue_while_python_has_enough(
    bench: Bench, driver: Driver, plane: DataPlane
) -> None:
    pair = driver.create_queue_pair(1, entries=1024)
    for number in range(IN_FLIGHT):
        sq = taken(bench, pair)
        plane.workspaces[0].put_slow(sq.record.address, Command(0x99, cid=1000 + number).encode())
    cid = pair.submit(Command(0x99))
    pair.ring()
    plane.run()
    assert sq.waiting == 1
    assert plane.statistics["backed_up"] == 1
    assert ended(pair.wait(cid)) == Status.INVALID_OPCODE
    assert set(pair.done) == {1000 + number for number in range(IN_FLIGHT)}


def test_commands_that_were_taken_and_not_begun_move_with_their_controller(
    bench: Bench, driver: Driver, plane: DataPlane, lane: str, request: pytest.FixtureRequest
) -> None:
    pair = driver.create_queue_pair(1)
    bench.settle()
    for cid in (100, 101):
        sq = taken(bench, pair)
        plane.keep_slow(sq, Command(0x99, cid=cid).encode())
    spaces = [Namespace(RamStorage(8 << 20)), Namespace(RamStorage(4 << 20), 4096)]
    target = move(bench, Nvme(*spaces, tuning=Tuning(pollers=0, native=lane == "native")))
    request.addfinalizer(target.close)
    assert plane.slow  # the source could still go on with them
    for cid in (100, 101):
        assert ended(pair.wait(cid)) == Status.INVALID_OPCODE
    assert ended(pair.execute(FLUSH)) == Status.SUCCESS


def test_memory_that_its_owner_took_away_is_not_touched(make_bench: MakeBench) -> None:
    """The storage says of a block that there is none; the process lives."""
    storage = RamStorage(1 << 20)
    bench = make_bench(storage)
    pair = bench.driver.enable().create_queue_pair(1)
    storage.resize(4096)
    bench.device.subsystem.reconfigure(1)
    read = bench.driver.rw(IoOpcode.READ, 1024, 1, bench.driver.data, 512)
    assert ended(pair.execute(read)) == Status.UNRECOVERED_READ_ERROR
