"""Processors: who runs on which, and what the machine below takes away from all of them."""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

CORES = sorted(os.sched_getaffinity(0))
DEVICE_CORE, DRIVER_CORE = CORES[0], CORES[-1]
"""The server's processor, and its client's. On a machine with one they are the same."""

STEAL = 7
"""Which of the numbers in /proc/stat is time that the hypervisor gave to others."""


def run_on(core: int) -> None:
    """Bind the calling thread, and the processes it starts, to a processor."""
    os.sched_setaffinity(0, {core})


def in_threads(*tasks: tuple[int, Callable[[], T]]) -> list[T]:
    """Run each task on its processor, all at once, in threads; their results."""

    def run(core: int, task: Callable[[], T]) -> T:
        run_on(core)
        return task()

    with ThreadPoolExecutor(len(tasks)) as pool:
        futures = [pool.submit(run, core, task) for core, task in tasks]
        return [future.result() for future in futures]


class StolenTime:
    """Counts, from its making on, what share of all processors' time went to other machines."""

    def __init__(self) -> None:
        self._start = self._read()

    def percent(self) -> float:
        """The share until now."""
        spent = [now - before for now, before in zip(self._read(), self._start, strict=True)]
        return 100 * spent[STEAL] / (sum(spent) or 1)

    @property
    def sentence(self) -> str:
        """The same, to be read."""
        return f"{self.percent():.1f} % of the time was stolen by other machines."

    def _read(self) -> list[int]:
        return [int(number) for number in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]


def circumstances(stolen: StolenTime, runs: int, seconds: float) -> str:
    """A sentence for below a table: where, when and how it was measured."""
    today = time.strftime("%Y-%m-%d", time.gmtime())
    measured = f"medians of {runs} runs" if runs > 1 else "one run"
    return f"{processor_name()}, {today}: {measured} of {seconds:g} s; {stolen.sentence}"


def processor_name() -> str:
    """What the processor calls itself, and how many of it there are."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{len(CORES)} x {line.partition(':')[2].strip()}"
    return f"{len(CORES)} processors"
