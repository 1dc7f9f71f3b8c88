"""What `outboard bench` prints: the numbers, the times of the commands as a histogram, what went wrong."""

from collections.abc import Iterator
from math import floor, log2
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from outboard.cli.bench_run import in_thousands
from outboard.drivers.nvme_measure import Result

MICROSECOND = 1000
"""Latencies are nanoseconds."""

STEPS_A_POWER = 4
"""Lines of the histogram for each power of two, before they are put together."""
MOST_LINES = 20
WIDTH = 50
EIGHTHS = " ▏▎▍▌▋▊▉"
MARKS = (("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999))


def as_json(result: Result) -> dict[str, Any]:
    """The result for programs; times in microseconds."""
    workload, latency = result.workload, result.latency
    return {
        "iops": round(result.iops, 1),
        "bytes_per_second": round(result.bytes_per_second),
        "latency_us": {
            "mean": round(latency.mean / MICROSECOND, 3),
            "p50": latency.p50 / MICROSECOND,
            "p99": latency.p99 / MICROSECOND,
            "p999": latency.p999 / MICROSECOND,
            "max": latency.max / MICROSECOND,
        },
        "errors": result.errors,
        "error_statuses": {f"{kind}/{code:#04x}": count for (kind, code), count in result.failures.items()},
        "first_error": str(first) if (first := result.first_failure or result.corruption) else None,
        "verified": result.compared,
        "corrupt": result.corrupt,
        "operations": result.operations,
        "measured_seconds": round(result.seconds, 6),
        "doorbells": str(result.doorbells),
        "native": result.native,
        "asked": {
            "rw": workload.rw,
            "bs": workload.bs,
            "qd": workload.qd,
            "queues": workload.queues,
            "seconds": workload.seconds,
            "warm_up": workload.warm_up,
            "nsid": workload.nsid,
            "mix": workload.mix if workload.rw == "randrw" else None,
            "verify": workload.verify,
        },
    }


def as_text(result: Result) -> RenderableType:
    """The result for people."""
    return Group(*_parts(result))


def _parts(result: Result) -> Iterator[RenderableType]:
    workload, latency = result.workload, result.latency
    what = f"{workload.rw} of {workload.bs} bytes, depth {workload.qd}"
    if workload.queues > 1:
        what += f" in each of {workload.queues} queues"
    how = f"{result.doorbells} doorbells" + ("" if result.native else ", not compiled")
    yield Text.assemble(f"{what}, {result.seconds:.3g} s, {how}")
    yield Text.assemble(
        (f"{in_thousands(result.iops)} IOPS", "bold"), f"   {in_thousands(result.bytes_per_second)}B/s"
    )
    if latency.buckets:
        times = {
            "mean": latency.mean,
            "p50": latency.p50,
            "p99": latency.p99,
            "p99.9": latency.p999,
            "max": latency.max,
        }
        yield Text("latency  " + "   ".join(f"{name} {duration(value)}" for name, value in times.items()))
        yield histogram(result)
    if workload.verify:
        yield Text(f"{result.compared} reads were compared with what had been written")
    for (kind, code), count in sorted(result.failures.items()):
        yield Text(f"{count} commands failed with status type {kind}, code {code:#04x}", style="red")
    if result.first_failure:
        yield Text(f"the first: {result.first_failure}", style="red")
    if result.corruption:
        yield Text(
            f"{result.corrupt} reads came back wrong. The first: {result.corruption}", style="bold red"
        )


def histogram(result: Result) -> Table:
    """The times of all commands: each line a range, on a logarithmic scale, and its share as a bar."""
    lines = grouped(result.latency.buckets)
    most, total = max(count for _, count in lines), sum(count for _, count in lines)
    table = Table.grid(padding=(0, 1))
    table.add_column(justify="right")
    table.add_column(min_width=WIDTH)
    table.add_column(justify="right")
    table.add_column(style="yellow")
    seen = 0
    for first, count in lines:
        before, seen = seen, seen + count
        marks = " ".join(name for name, share in MARKS if before < share * total <= seen)
        table.add_row(duration(first), Text(bar(count / most), "cyan"), share_of(count, total), marks)
    return table


def grouped(buckets: tuple[tuple[int, int, int], ...]) -> list[tuple[int, int]]:
    """Ranges of equal width on a logarithmic scale, as (first nanosecond, count), with those in between.

    Ranges are a fraction of a power of two wide, or as many powers as leave `MOST_LINES` of them.
    """
    widths = [1 / STEPS_A_POWER, 1 / 2, 1, 2, 4]
    for width in widths:
        lines: dict[int, int] = {}
        for first, _, count in buckets:
            line = step_of(first, width)
            lines[line] = lines.get(line, 0) + count
        low, high = min(lines), max(lines)
        if high - low < MOST_LINES:
            break
    return [(round(2 ** (line * width)), lines.get(line, 0)) for line in range(low, high + 1)]


def step_of(nanoseconds: int, width: float) -> int:
    """The range that a time is in, each ``width`` powers of two wide.

    >>> [step_of(value, 1) for value in (0, 1, 2, 3, 4)]
    [0, 0, 1, 1, 2]
    """
    return floor(log2(max(1, nanoseconds)) / width + 1e-9)


def bar(share: float) -> str:
    """A bar of up to `WIDTH` characters, at least a thin line for anything.

    >>> bar(0.0), bar(1e-9), bar(0.05)
    ('', '▏', '██▌')
    """
    eighths = max(round(share * WIDTH * 8), 1 if share else 0)
    return "█" * (eighths // 8) + EIGHTHS[eighths % 8].strip()


def share_of(count: int, total: int) -> str:
    """A percentage, or the count where that would read as nothing.

    >>> share_of(1, 2), share_of(3, 100_000), share_of(0, 5)
    ('50.00 %', '3', '')
    """
    if not count:
        return ""
    percent = 100 * count / total
    return f"{percent:.2f} %" if percent >= 0.01 else f"{count}"


def duration(nanoseconds: float) -> str:
    """A time of three digits, in the unit that suits it.

    >>> duration(950), duration(12_340), duration(1_500_000), duration(2.5e9)
    ('950 ns', '12.3 us', '1.5 ms', '2.5 s')
    """
    for factor, unit in ((1e9, "s"), (1e6, "ms"), (1e3, "us")):
        if nanoseconds >= factor:
            return f"{nanoseconds / factor:.3g} {unit}"
    return f"{nanoseconds:.3g} ns"
