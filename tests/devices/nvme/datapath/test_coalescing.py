"""Interrupt coalescing by a clock that stands still: how many are gathered, for how long, and for whom."""

from collections.abc import Iterator

import pytest

from outboard.devices.nvme import Nvme
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.datapath.tuning import Tuning
from outboard.devices.nvme.spec import FeatureId, IoOpcode
from outboard.devices.nvme.status import Status
from outboard.storage import RamStorage
from tests.devices.nvme.bench import Bench
from tests.devices.nvme.datapath.test_qos import Clock, clock  # noqa: F401
from tests.devices.nvme.driver import QueuePair, ended
from tests.devices.nvme.test_interrupts import Listener, find_capability

pytestmark = pytest.mark.point("F05")

FLUSH = Command(IoOpcode.FLUSH, nsid=1)
EIGHT, MILLISECOND = 7, 10 << 8
"""A threshold, which counts from zero, and a time, in units of 100 microseconds."""


class Host:
    """A bench, its vectors, and a queue pair for each of the vectors 1 and 2."""

    def __init__(self) -> None:
        self.bench = Bench(Nvme(RamStorage(1 << 20), tuning=Tuning(pollers=0, native=False)))
        self.bench.config.write(find_capability(self.bench, 0x11) + 2, 2, 0x8000)
        self.listener = Listener(self.bench, 2, 3)
        self.driver = self.bench.driver.enable()
        self.pairs = [self.driver.create_queue_pair(vector, vector=vector) for vector in (1, 2)]
        self.set(FeatureId.INTERRUPT_COALESCING, EIGHT | MILLISECOND)

    def set(self, fid: FeatureId, value: int) -> None:
        assert ended(self.driver.set_feature(fid, value)) == Status.SUCCESS
        self.listener.heard(0)

    def flush(self, pair: QueuePair, count: int) -> int:
        """Execute so many; how often their vector was heard."""
        for _ in range(count):
            pair.submit(FLUSH)
        pair.ring()
        return self.look(pair)

    def look(self, pair: QueuePair) -> int:
        self.bench.device.state.wake()
        while self.bench.loop.run_pending():
            pass
        return self.listener.heard(pair.qid)


@pytest.fixture
def host(clock: Clock) -> Iterator[Host]:  # noqa: F811
    host = Host()
    yield host
    host.listener.close()
    host.bench.close()


def test_so_many_completions_are_one_interrupt(host: Host) -> None:
    assert host.flush(host.pairs[0], 7) == 0
    assert host.flush(host.pairs[0], 1) == 1
    assert len(host.pairs[0].poll()) == 8
    assert host.flush(host.pairs[0], 12) == 1


def test_fewer_are_told_when_the_time_is_up(host: Host, clock: Clock) -> None:  # noqa: F811
    assert host.flush(host.pairs[0], 3) == 0
    clock.now += 900_000
    assert host.look(host.pairs[0]) == 0
    clock.now += 100_000
    assert host.look(host.pairs[0]) == 1


def test_a_vector_may_be_left_out(host: Host) -> None:
    host.set(FeatureId.INTERRUPT_VECTOR_CONFIGURATION, 2 | 1 << 16)
    assert host.flush(host.pairs[1], 1) == 1
    assert host.flush(host.pairs[0], 1) == 0


def test_the_admin_queue_never_waits(host: Host) -> None:
    assert ended(host.driver.identify(1)) == Status.SUCCESS
    host.bench.settle()
    assert host.listener.heard(0) == 1


@pytest.mark.parametrize("value", [0, EIGHT, MILLISECOND], ids=["off", "no time", "a threshold of one"])
def test_half_a_setting_gathers_nothing(host: Host, value: int) -> None:
    host.set(FeatureId.INTERRUPT_COALESCING, value)
    assert host.flush(host.pairs[0], 1) == 1


def test_what_was_consumed_meanwhile_is_not_told(host: Host, clock: Clock) -> None:  # noqa: F811
    assert host.flush(host.pairs[0], 3) == 0
    host.pairs[0].poll()
    clock.now += 10_000_000
    assert host.look(host.pairs[0]) == 0


def test_what_was_gathered_behind_a_mask_is_told_when_it_is_lifted(host: Host) -> None:
    mask = 0x2000 + 16 * 1 + 12
    host.bench.bar.write32(mask, 1)
    assert host.flush(host.pairs[0], 8) == 0
    host.bench.bar.write32(mask, 0)
    assert host.look(host.pairs[0]) == 1
