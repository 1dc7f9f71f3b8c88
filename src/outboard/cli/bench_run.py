"""A measurement in a thread of its own, watched from this one: progress, and Ctrl-C."""

import signal
import threading

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from outboard.drivers.nvme_measure import Measurement

STOPPING = (signal.SIGINT, signal.SIGTERM)

LOOK = 0.25
"""Seconds between two looks: drawing takes the time of a processor that the server may need."""


def run_watched(measurement: Measurement, console: Console) -> None:
    """Run a measurement to its end, or until Ctrl-C or SIGTERM; its exception is raised here.

    Progress is drawn where ``console`` is a terminal.
    """
    failures: list[BaseException] = []

    def run() -> None:
        try:
            measurement.run()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, name="outboard bench")
    # No KeyboardInterrupt: out of a join it would leave the thread at work in memory that is then freed.
    handlers = {number: signal.signal(number, lambda *_: measurement.stop()) for number in STOPPING}
    thread.start()
    try:
        watch(measurement, thread, console)
    finally:
        measurement.stop()
        thread.join()
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if failures:
        raise failures[0]


def watch(measurement: Measurement, thread: threading.Thread, console: Console) -> None:
    """Show how far it is, until the thread ends."""
    if not console.is_terminal:
        thread.join()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as bars:
        task = bars.add_task("warming up", total=measurement.workload.seconds, rate="")
        done, before = 0, 0.0
        while thread.is_alive():
            thread.join(LOOK)
            completed, elapsed = measurement.completed, measurement.elapsed
            rate = (completed - done) / (elapsed - before) if elapsed > before else 0.0
            stage = "reading back" if measurement.reading_back else measurement.workload.rw
            if elapsed:
                bars.update(task, completed=elapsed, description=stage, rate=f"{in_thousands(rate)} IOPS")
            bars.refresh()
            done, before = completed, elapsed


def in_thousands(value: float) -> str:
    """A number of three digits or a few more, and its unit.

    >>> in_thousands(4_236_111), in_thousands(12_345), in_thousands(7)
    ('4.24 M', '12.3 k', '7')
    """
    for factor, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= factor:
            return f"{value / factor:.3g}{unit}" if value < 100 * factor else f"{value / factor:.0f}{unit}"
    return f"{value:.3g}"
