"""A bench whose controller has pollers, or waits for the kernel: it is given time."""

import time
from collections.abc import Callable

from outboard.devices.nvme.command import Command, Completion
from outboard.devices.nvme.datapath.tuning import Tuning
from outboard.devices.nvme.spec import AdminOpcode
from outboard.devices.nvme.status import Status
from tests.devices.nvme.bench import Bench
from tests.devices.nvme.driver import PAGE, Driver, QueuePair, ended

PATIENCE = 60.0


class LiveBench(Bench):
    """Steps wait a moment."""

    def step(self) -> None:
        self.loop.run_once(timeout=0.001)

    def until(self, condition: Callable[[], object]) -> None:
        """Let the device work until it is so."""
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, "it never happens"
            self.step()


def tuning(lane: str, pollers: int = 1, **more: int) -> Tuning:
    """Pollers that rest soon: two processors are shared by all of them and the test."""
    return Tuning(pollers=pollers, native=lane == "native", **{"spin": 5, **more})


def use_shadow(driver: Driver) -> tuple[int, int]:
    """Set up doorbell buffers; where the doorbells and where the event indices are."""
    doorbells, events = driver.ram.allocate(PAGE), driver.ram.allocate(PAGE)
    command = Command(AdminOpcode.DOORBELL_BUFFER_CONFIG, prp1=doorbells, prp2=events)
    assert ended(driver.admin.execute(command)) == Status.SUCCESS
    return doorbells, events


def complete(bench: LiveBench, pair: QueuePair, commands: list[Command]) -> list[Completion]:
    """Submit all at once, and wait for all, in the order of their identifiers."""
    cids = [pair.submit(command) for command in commands]
    pair.ring()
    found: dict[int, Completion] = {}

    def finished() -> bool:
        found.update((completion.cid, completion) for completion in pair.poll())
        return len(found) == len(cids)

    bench.until(finished)
    return [found[cid] for cid in cids]
