"""Processors: who runs on which, and what the machine below takes away from all of them."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

CORES = sorted(os.sched_getaffinity(0))
DEVICE_CORE, DRIVER_CORE = CORES[0], CORES[-1]
"""The server's processor, and its client's. On a machine with one they are the same."""

STEAL = 7
"""Which of the numbers in /proc/stat is time that the hypervisor gave to others."""


def run_on(core: int) -> None:
    """Bind the calling thread, and the processes it starts, to a processor."""
    os.sched_setaffinity(0, {core})


def in_threads(*tasks: tuple[int, Callable[[], int]]) -> list[int]:
    """Run each task on its processor, all at once, in threads; their results."""
    results = [0] * len(tasks)

    def run(index: int, core: int, task: Callable[[], int]) -> None:
        run_on(core)
        results[index] = task()

    threads = [threading.Thread(target=run, args=(index, *task)) for index, task in enumerate(tasks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


class StolenTime:
    """Counts, from its making on, what share of all processors' time went to other machines."""

    def __init__(self) -> None:
        self._start = self._read()

    def percent(self) -> float:
        """The share until now."""
        spent = [now - before for now, before in zip(self._read(), self._start, strict=True)]
        return 100 * spent[STEAL] / (sum(spent) or 1)

    def _read(self) -> list[int]:
        return [int(number) for number in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]


def processor_name() -> str:
    """What the processor calls itself, and how many of it there are."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{len(CORES)} x {line.partition(':')[2].strip()}"
    return f"{len(CORES)} processors"
