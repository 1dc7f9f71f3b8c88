"""Weighted round robin with an urgent class: who is served first, and how much of it."""

import pytest

from outboard.devices.nvme import Namespace, Nvme
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.datapath.tuning import Tuning
from outboard.devices.nvme.spec import FeatureId, IoOpcode
from outboard.devices.nvme.status import Status
from outboard.storage import RamStorage
from tests.devices.nvme.bench import Bench
from tests.devices.nvme.conftest import MakeBench
from tests.devices.nvme.datapath.test_qos import leave_to_python
from tests.devices.nvme.driver import CC_ENABLE, Driver, QueuePair, ended
from tests.devices.nvme.test_moving import move

WEIGHTED = CC_ENABLE | 1 << 11
URGENT, HIGH, MEDIUM, LOW = range(4)
FLUSH = Command(IoOpcode.FLUSH, nsid=1)


def weigh(driver: Driver, high: int, medium: int, low: int, burst: int = 7) -> None:
    value = burst | (low - 1) << 8 | (medium - 1) << 16 | (high - 1) << 24
    assert ended(driver.set_feature(FeatureId.ARBITRATION, value)) == Status.SUCCESS


def put(bench: Bench, pairs: list[QueuePair], commands: int = 100) -> None:
    """Put commands into all queues before the device looks at one."""
    for pair in pairs:
        for _ in range(commands):
            pair.submit(FLUSH)
    for pair in pairs:
        bench.device.state.submission[pair.qid].ring(pair.tail)


def served(bench: Bench, pairs: list[QueuePair], rounds: int) -> list[int]:
    """How many commands of each queue have ended after so many looks at all queues."""
    done = [0 for _ in pairs]
    for _ in range(rounds):
        bench.device.plane.run()
        done = [before + len(pair.poll()) for before, pair in zip(done, pairs, strict=True)]
    return done


@pytest.fixture
def bench(make_bench: MakeBench) -> Bench:
    bench = make_bench()
    bench.driver.enable(cc=WEIGHTED)
    return bench


def make_pairs(driver: Driver, *priorities: int) -> list[QueuePair]:
    return [
        driver.create_queue_pair(number, entries=128, priority=priority)
        for number, priority in enumerate(priorities, start=1)
    ]


@pytest.mark.point("Q15")
def test_classes_have_their_weights_while_all_have_commands(bench: Bench) -> None:
    weigh(bench.driver, 8, 4, 1)
    pairs = make_pairs(bench.driver, LOW, HIGH, MEDIUM)
    bench.settle()
    put(bench, pairs)
    assert served(bench, pairs, 3) == [1, 8, 4]
    assert served(bench, pairs, 3) == [1, 8, 4]


@pytest.mark.point("Q15")
def test_queues_of_a_class_share_its_weight_in_bursts(bench: Bench) -> None:
    weigh(bench.driver, 6, 1, 1, burst=1)
    pairs = make_pairs(bench.driver, HIGH, HIGH, HIGH, LOW)
    bench.settle()
    put(bench, pairs)
    assert served(bench, pairs, 1) == [2, 2, 2, 0]
    assert served(bench, pairs, 3) == [2, 2, 2, 2], "by turns: low, high, low"
    assert served(bench, pairs[:1], 1) == [2]


@pytest.mark.point("Q15")
def test_urgent_commands_go_before_all_others(bench: Bench) -> None:
    weigh(bench.driver, 32, 32, 32)
    pairs = make_pairs(bench.driver, HIGH, URGENT, LOW, URGENT)
    bench.settle()
    put(bench, pairs, 40)
    assert served(bench, pairs, 1) == [0, 40, 0, 24]
    assert served(bench, pairs, 1) == [0, 0, 0, 16]
    assert served(bench, pairs, 2) == [32, 0, 32, 0]


@pytest.mark.point("Q15")
def test_a_class_without_commands_costs_the_others_no_turn(bench: Bench) -> None:
    weigh(bench.driver, 4, 4, 4)
    pairs = make_pairs(bench.driver, MEDIUM)
    bench.settle()
    put(bench, pairs, 20)
    assert served(bench, pairs, 2) == [8]
    assert served(bench, pairs, 3) == [12]
    assert served(bench, pairs, 1) == [0]


@pytest.mark.point("Q15")
def test_without_weights_priorities_mean_nothing(make_bench: MakeBench) -> None:
    bench = make_bench()
    weigh(bench.driver.enable(), 32, 4, 1, burst=3)
    pairs = make_pairs(bench.driver, LOW, URGENT, HIGH)
    bench.settle()
    put(bench, pairs)
    assert served(bench, pairs, 1) == [8, 8, 8]


@pytest.mark.point("Q15")
def test_queues_that_python_serves_are_weighted_too(bench: Bench) -> None:
    weigh(bench.driver, 8, 4, 2)
    pairs = make_pairs(bench.driver, LOW, HIGH, MEDIUM, URGENT)
    leave_to_python(bench.device.plane)
    put(bench, pairs[:3], 50)
    bench.device.state.wake()
    bench.step()
    done = [len(pair.poll()) for pair in pairs[:3]]
    assert sum(done) == 64
    assert done[1] > done[2] > done[0]
    put(bench, pairs[3:], 64)
    bench.device.state.wake()
    bench.step()
    assert [len(pair.poll()) for pair in pairs] == [0, 0, 0, 64]


def test_weights_and_priorities_move_with_their_controller(
    bench: Bench, lane: str, request: pytest.FixtureRequest
) -> None:
    weigh(bench.driver, 3, 2, 1)
    pairs = make_pairs(bench.driver, LOW, HIGH)
    spaces = [Namespace(RamStorage(8 << 20)), Namespace(RamStorage(4 << 20), 4096)]
    target = move(bench, Nvme(*spaces, tuning=Tuning(pollers=0, native=lane == "native")))
    request.addfinalizer(target.close)
    target.settle()
    put(target, pairs)
    assert served(target, pairs, 2) == [1, 3]


def test_nothing_more_is_taken_after_a_shutdown(bench: Bench) -> None:
    pairs = make_pairs(bench.driver, HIGH, URGENT)
    bench.settle()
    bench.device.controller.stop()
    put(bench, pairs)
    assert served(bench, pairs, 3) == [0, 0]
