"""How many commands a second does the NVMe data plane serve, and how many would the machine allow?

`outboard nvme` on one processor, `outboard bench` on the other, for each back end, size and depth. Between
them, in the same rounds, the bounds of the machine:

* null: a bare ring, two compiled loops that only exchange entries at that depth (`harness.ring`);
* RAM: one processor that copies such blocks (`harness.copying`); at depth 1, where nothing overlaps, the
  time of a bare command and that of a copy together;
* file, in the page cache: fio with io_uring on the same file, rw, size and depth, on one processor.

Medians over the runs are printed, and the best run; the ratio is the median of each run's ratio to the bound
of its own round. The file lies where TMPDIR says. Run: `python bench/data_plane.py`, `--quick` for a look,
`--cells 'ram*' null-randread-4k-1` for some.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from harness.chart import Bar, Panel, svg
from harness.copying import CopyBound
from harness.cores import CORES, StolenTime, processor_name
from harness.fio import available as fio_available
from harness.fio import fio_iops
from harness.report import Table, number, size_name, three_digits
from harness.ring import ring_iops, round_trip_ns
from harness.servers import bench, end_servers_when_killed, fill, serving
from outboard.native.jit import available

FILE_SIZE = 256 << 20
SMALL, LARGE = 4 << 10, 128 << 10
DEPTHS = (1, 32, 128)
BACK_ENDS = ("null", "ram", "file")


@dataclass
class Cell:
    """One measurement, and what its runs found."""

    back_end: str
    rw: str
    bs: int
    qd: int
    iops: list[float] = field(default_factory=list)
    p50_us: list[float] = field(default_factory=list)
    p99_us: list[float] = field(default_factory=list)
    bounds: list[float] = field(default_factory=list)

    @property
    def name(self) -> str:
        """What `--cells` chooses by."""
        return f"{self.back_end}-{self.rw}-{self.bs >> 10}k-{self.qd}"

    @property
    def bound(self) -> float | None:
        """The median of its bound."""
        return statistics.median(self.bounds) if self.bounds else None

    @property
    def ratio(self) -> float | None:
        """The median of the ratios to the bound of the same round."""
        if not self.bounds:
            return None
        return statistics.median(mine / bound for mine, bound in zip(self.iops, self.bounds, strict=True))


def all_cells() -> Iterator[Cell]:
    """The table's rows. Writes to a file come last: the kernel writes behind for a while."""
    for back_end in BACK_ENDS:
        yield from (Cell(back_end, "randread", SMALL, depth) for depth in DEPTHS)
        if back_end != "null":
            yield Cell(back_end, "randread", LARGE, 32)
        yield from (Cell(back_end, "randwrite", SMALL, depth) for depth in DEPTHS)


class Machine:
    """What the machine can do, measured once a round for each question."""

    def __init__(self, file: Path, seconds: float, warm_up: float, *, fio: bool) -> None:
        self._file, self._seconds, self._warm_up, self._fio = file, seconds, warm_up, fio
        self._copy = CopyBound()
        self._known: dict[tuple[Any, ...], float] = {}
        self.round_trips: list[float] = []

    def new_round(self) -> None:
        """Forget the last round's answers."""
        self._known.clear()
        self.round_trips.append(round_trip_ns(min(1.0, self._seconds)))

    def bound(self, cell: Cell) -> float | None:
        """The most commands a second that ``cell`` could have here; None if nobody can say."""
        if cell.back_end == "null":
            return self._ring(cell.qd)
        if cell.back_end == "file":
            return self._through_fio(cell) if self._fio else None
        copies = self._copies(cell.bs, "write" in cell.rw)
        return 1 / (1 / copies + 1 / self._ring(1)) if cell.qd == 1 else copies

    def _ring(self, depth: int) -> float:
        if ("ring", depth) not in self._known:
            self._known["ring", depth] = ring_iops(depth, self._seconds)
        return self._known["ring", depth]

    def _copies(self, size: int, write: bool) -> float:
        if ("copy", size, write) not in self._known:
            self._known["copy", size, write] = self._copy.iops(size, self._seconds, write=write)
        return self._known["copy", size, write]

    def _through_fio(self, cell: Cell) -> float:
        return fio_iops(
            self._file,
            rw=cell.rw,
            bs=cell.bs,
            qd=cell.qd,
            seconds=self._seconds,
            warm_up=self._warm_up,
        )


def make_file(path: Path) -> None:
    """A file of noise, in the page cache and on its way to the disk."""
    with path.open("wb") as file:
        noise = os.urandom(1 << 20)
        for _ in range(FILE_SIZE >> 20):
            file.write(noise)
        file.flush()
        os.fsync(file.fileno())


def measure(cells: list[Cell], options: argparse.Namespace) -> dict[str, Any]:
    """Run all cells in turns; what there is to say of the machine meanwhile."""
    warm_up = 0.2 if options.quick else 0.5
    fio = fio_available()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="outboard-bench-")))
        file = folder / "disk.img"
        back_ends = {cell.back_end for cell in cells}
        if "file" in back_ends:
            make_file(file)
        sockets = {}
        for back_end, namespace in (("null", "null:1T"), ("ram", f"ram:{FILE_SIZE}"), ("file", str(file))):
            if back_end in back_ends:
                sockets[back_end] = folder / f"{back_end}.sock"
                stack.enter_context(serving(sockets[back_end], namespace))
        if "ram" in sockets:
            fill(sockets["ram"], size=FILE_SIZE)
        machine = Machine(file, options.seconds, warm_up, fio=fio)
        stolen = StolenTime()
        for run in range(options.runs):
            machine.new_round()
            for cell in cells:
                show(f"run {run + 1} of {options.runs}: {cell.name}")
                bound = machine.bound(cell)
                found = bench(
                    sockets[cell.back_end],
                    options.seconds,
                    rw=cell.rw,
                    bs=cell.bs,
                    qd=cell.qd,
                    warm_up=warm_up,
                )
                cell.iops.append(found["iops"])
                cell.p50_us.append(found["latency_us"]["p50"])
                cell.p99_us.append(found["latency_us"]["p99"])
                if bound is not None:
                    cell.bounds.append(bound)
        show("")
    return {
        "machine": processor_name(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "seconds": options.seconds,
        "runs": options.runs,
        "steal_percent": round(stolen.percent(), 2),
        "round_trip_ns": round(statistics.median(machine.round_trips), 1),
        "fio": fio,
    }


def show(words: str) -> None:
    """Say on a terminal how far it is."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{words}", end="", file=sys.stderr, flush=True)


def table_of(cells: list[Cell]) -> Table:
    """A row for each cell."""
    headings = ("", "depth", "IOPS", "best", "ns each", "p50 us", "p99 us", "bound", "of bound")
    rows = []
    for cell in cells:
        iops = statistics.median(cell.iops)
        rows.append(
            (
                f"{cell.back_end} {size_name(cell.bs)} {cell.rw}",
                str(cell.qd),
                number(iops),
                number(max(cell.iops)),
                f"{1e9 / iops:.0f}",
                three_digits(statistics.median(cell.p50_us)),
                three_digits(statistics.median(cell.p99_us)),
                "" if cell.bound is None else number(cell.bound),
                "" if cell.ratio is None else f"{cell.ratio:.0%}",
            )
        )
    return Table(headings, rows)


def notes(about: dict[str, Any]) -> str:
    """What to know of a run."""
    words = (
        f"{about['machine']}, {about['date']}: medians of {about['runs']} runs of {about['seconds']:g} s; "
        f"{about['steal_percent']:.1f} % of the time was stolen by other machines; "
        f"a word to the other processor and back took {about['round_trip_ns']:.0f} ns."
    )
    if len(CORES) < 2:
        words += " Server and client shared one processor: the numbers say little."
    return words if about["fio"] else words + " There is no fio here: files have no bound."


def chart_of(cells: list[Cell]) -> str:
    """A panel for each back end and size."""
    panels = []
    for back_end, title in (("null", "nothing behind it"), ("ram", "RAM disk"), ("file", "file, page cache")):
        for size in (SMALL, LARGE):
            bars = [
                Bar(
                    f"{cell.rw}, depth {cell.qd}",
                    statistics.median(cell.iops),
                    cell.bound,
                    number(statistics.median(cell.iops))
                    + ("" if cell.ratio is None else f" ({cell.ratio:.0%})"),
                )
                for cell in cells
                if (cell.back_end, cell.bs) == (back_end, size)
            ]
            if bars:
                panels.append(Panel(f"{title}, {size_name(size)}: commands a second", bars))
    return svg("Commands a second by back end, size and depth", panels, "measured, and the machine's bound")


def as_json(cells: list[Cell], about: dict[str, Any]) -> str:
    """Every run of every cell."""
    rows = [
        {
            "cell": cell.name,
            "iops": cell.iops,
            "p50_us": cell.p50_us,
            "p99_us": cell.p99_us,
            "bound": cell.bounds,
            "ratio": cell.ratio,
        }
        for cell in cells
    ]
    return json.dumps({**about, "cells": rows}, indent=2) + "\n"


def main() -> None:
    """Measures and prints."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--seconds", type=float, help="of a run (default 5, quick 1)")
    arguments.add_argument("--runs", type=int, help="of each cell; medians are printed (default 5, quick 3)")
    arguments.add_argument("--quick", action="store_true", help="short runs: a look, not a measurement")
    arguments.add_argument("--cells", nargs="+", default=["*"], help="patterns of BACKEND-RW-SIZE-DEPTH")
    arguments.add_argument("--json", type=Path, metavar="FILE", help="every run's numbers")
    arguments.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    arguments.add_argument("--svg", type=Path, metavar="FILE", help="a chart")
    options = arguments.parse_args()
    options.seconds = options.seconds or (1.0 if options.quick else 5.0)
    options.runs = options.runs or (3 if options.quick else 5)
    cells = [cell for cell in all_cells() if any(fnmatch(cell.name, pattern) for pattern in options.cells)]
    if not cells:
        names = ", ".join(cell.name for cell in all_cells())
        arguments.error(f"no cell has such a name; there are {names}")
    if not available():
        print("without Numba there is no compiled data plane to measure: pip install 'outboard[fast]'")
        return

    end_servers_when_killed()
    about = measure(cells, options)
    table = table_of(cells)
    print(table.printed(markdown=options.markdown))
    print(notes(about))
    if options.json:
        options.json.write_text(as_json(cells, about))
    if options.svg:
        options.svg.write_text(chart_of(cells))


if __name__ == "__main__":
    main()
