"""What do more queues, namespaces, DMA maps and devices cost?

4 KiB random reads, 32 in flight in every queue, null and RAM, the servers on one processor and the clients
on the other.

* queues: all of one controller, driven by one thread
* namespaces: the last of so many is read
* maps: the driver's memory is mapped in so many pieces, and what is missing elsewhere. And how long
  DMA_MAP and DMA_UNMAP of one more page take meanwhile: the client's thread and the server's share the
  processors with the loops that spin, so on two processors that is mostly the scheduler's time
* devices: so many servers, each with a client, all at work; the sum

Run: `python bench/growth.py`, `--quick` for a look.
"""

import argparse
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import product
from pathlib import Path

from harness.cores import DRIVER_CORE, StolenTime, in_threads
from harness.report import Table, number
from harness.servers import bench, end_servers_when_killed, fill, result_of, serving, start_bench
from outboard.client import Client
from outboard.client.client import Access
from outboard.drivers.nvme_measure import Doorbells, Measurement, Workload, measuring
from outboard.native.jit import available

QUEUES = (1, 2, 4, 8, 16, 32)
NAMESPACES = (1, 8, 64)
MAPS = (1, 100, 1_000, 10_000)
DEVICES = (1, 2, 4)
QUICK_MOST = 1_000
"""To map 10,000 takes half a minute: not for a look, which takes the first and the last of each."""
PAGE = 4096
LOW, HIGH = 0x10_0000, 1 << 40
"""Where the maps are that nobody uses: below and above the driver's memory."""

WARM_UP = 0.2
BETWEEN_MAPS = 0.005
BACK_ENDS = {"null": "null:1T", "ram": "ram:256M"}


class ManyMaps(Client):
    """A client whose memory is mapped in pieces, and which two threads may use."""

    def __init__(self, path: Path, piece: int | None) -> None:
        self._piece = piece
        self._turn = threading.RLock()
        self.mapped = 0
        super().__init__(path, timeout=60)

    def dma_map(
        self,
        address: int,
        size: int,
        *,
        fd: int | None = None,
        offset: int = 0,
        access: Access | None = None,
        readable: bool = True,
        writable: bool = True,
    ) -> None:
        piece = self._piece or size
        for at in range(0, size, piece):
            with self._turn:
                part = min(piece, size - at)
                super().dma_map(
                    address + at,
                    part,
                    fd=fd,
                    offset=offset + at,
                    access=access,
                    readable=readable,
                    writable=writable,
                )
                self.mapped += 1

    def dma_unmap(self, address: int, size: int) -> None:
        piece = self._piece or size
        for at in range(0, size, piece):
            with self._turn:
                super().dma_unmap(address + at, min(piece, size - at))
                self.mapped -= 1

    def _read(self, region: int, offset: int, size: int) -> bytes:
        with self._turn:
            return super()._read(region, offset, size)


@contextmanager
def server(folder: Path, back_end: str, *, before: int = 0, name: str = "disk") -> Iterator[Path]:
    """A server whose last namespace is the back end, with so many others before it; its socket."""
    socket = folder / f"{name}.sock"
    with serving(socket, *["null:1G"] * before, BACK_ENDS[back_end]):
        if back_end == "ram":
            fill(socket, nsid=before + 1)
        yield socket


def with_queues(folder: Path, back_end: str, count: int, seconds: float) -> dict[str, float]:
    """IOPS of ``count`` queues."""
    with server(folder, back_end) as socket:
        return {"iops": bench(socket, seconds, queues=count, warm_up=WARM_UP)["iops"]}


def with_namespaces(folder: Path, back_end: str, count: int, seconds: float) -> dict[str, float]:
    """IOPS of the last of ``count`` namespaces."""
    with server(folder, back_end, before=count - 1) as socket:
        return {"iops": bench(socket, seconds, nsid=count, warm_up=WARM_UP)["iops"]}


def with_devices(folder: Path, back_end: str, count: int, seconds: float) -> dict[str, float]:
    """IOPS of ``count`` devices together."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(server(folder, back_end, name=f"disk{n}")) for n in range(count)]
        clients = [start_bench(socket, seconds, warm_up=WARM_UP) for socket in sockets]
        return {"iops": sum(result_of(client, seconds)["iops"] for client in clients)}


def with_maps(folder: Path, back_end: str, count: int, seconds: float) -> dict[str, float]:
    """IOPS with ``count`` maps, and the times of one more under load."""
    piece = None if count == 1 else 64 << 10 if count < 1000 else PAGE
    workload = Workload(seconds=seconds, warm_up=WARM_UP)
    with server(folder, back_end) as socket, ManyMaps(socket, piece) as client:
        page = os.memfd_create("page", os.MFD_CLOEXEC)
        try:
            os.truncate(page, PAGE)
            with measuring(client, workload, doorbells=Doorbells.MAPPED) as measurement:
                for index in range(count - client.mapped):
                    base = HIGH if index & 1 else LOW
                    client.dma_map(base + index * 2 * PAGE, PAGE, fd=page)
                quiet = run(measurement)
            with measuring(client, workload, doorbells=Doorbells.MAPPED) as measurement:
                times = while_running(measurement, lambda: map_and_unmap(client, page))
        finally:
            os.close(page)
    return {
        "iops": quiet,
        "map_us": statistics.median(mapping for mapping, _ in times),
        "unmap_us": statistics.median(unmapping for _, unmapping in times),
        "longest_us": max(max(pair) for pair in times),
    }


def run(measurement: Measurement) -> float:
    """IOPS of a measurement in a thread on the driver's processor."""
    in_threads((DRIVER_CORE, measurement.run))
    return measurement.result().iops


def while_running(
    measurement: Measurement, act: Callable[[], tuple[float, float]]
) -> list[tuple[float, float]]:
    """What ``act`` returned, again and again, until the measurement was over."""
    thread = threading.Thread(target=run, args=(measurement,))
    thread.start()
    found: list[tuple[float, float]] = []
    try:
        while thread.is_alive() or not found:
            found.append(act())
            time.sleep(BETWEEN_MAPS)
    finally:
        measurement.stop()
        thread.join()
    return found


def map_and_unmap(client: ManyMaps, page: int) -> tuple[float, float]:
    """Microseconds for one more map, and to take it away."""
    started = time.perf_counter()
    client.dma_map(2 * HIGH, PAGE, fd=page)
    mapped = time.perf_counter()
    client.dma_unmap(2 * HIGH, PAGE)
    return (mapped - started) * 1e6, (time.perf_counter() - mapped) * 1e6


Measure = Callable[[Path, str, int, float], dict[str, float]]
GROWTH: dict[str, tuple[tuple[int, ...], Measure]] = {
    "queues": (QUEUES, with_queues),
    "namespaces": (NAMESPACES, with_namespaces),
    "maps": (MAPS, with_maps),
    "devices": (DEVICES, with_devices),
}
Found = dict[tuple[str, int, str], dict[str, float]]


def measure(axes: list[str], seconds: float, runs: int, *, quick: bool) -> Found:
    """The medians of all runs, by what grows, how many there are, and the back end."""
    every: dict[tuple[str, int, str], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="outboard-bench-") as folder:
        for _ in range(runs):
            for axis in axes:
                counts, act = GROWTH[axis]
                if quick:
                    counts = (counts[0], [count for count in counts if count <= QUICK_MOST][-1])
                for count, back_end in product(counts, BACK_ENDS):
                    found = act(Path(folder), back_end, count, seconds)
                    every.setdefault((axis, count, back_end), []).append(found)
    return {
        key: {name: statistics.median(found[name] for found in runs_found) for name in runs_found[0]}
        for key, runs_found in every.items()
    }


def table_of(found: Found) -> Table:
    """A row for each count; percentages are of the first row of its kind."""
    rows = []
    for axis, (counts, _) in GROWTH.items():
        for count in counts:
            if (axis, count, "null") not in found:
                continue
            row = [axis, str(count)]
            for back_end in BACK_ENDS:
                iops, first = (found[axis, n, back_end]["iops"] for n in (count, counts[0]))
                row += [number(iops), f"{iops / first:.0%}"]
            null = found[axis, count, "null"]
            row += [
                f"{null[name]:.0f}" if name in null else "" for name in ("map_us", "unmap_us", "longest_us")
            ]
            rows.append(row)
    return Table(("", "count", "null", "", "ram", "", "map us", "unmap us", "longest"), rows)


def main() -> None:
    """Measures and prints."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--seconds", type=float, help="of a run (default 3, quick 0.5)")
    arguments.add_argument("--runs", type=int, help="of each; medians are printed (default 5, quick 1)")
    arguments.add_argument("--quick", action="store_true", help="short runs: a look, not a measurement")
    arguments.add_argument("--only", nargs="+", choices=list(GROWTH), default=list(GROWTH))
    arguments.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    arguments.add_argument("--markdown", action="store_true", help="the table as Markdown")
    options = arguments.parse_args()
    if not available():
        print("without Numba there is no compiled data plane to measure: pip install 'outboard[fast]'")
        return
    end_servers_when_killed()
    stolen = StolenTime()
    found = measure(
        options.only,
        options.seconds or (0.5 if options.quick else 3.0),
        options.runs or (1 if options.quick else 5),
        quick=options.quick,
    )
    if options.json:
        print(json.dumps({f"{axis} {count} {end}": values for (axis, count, end), values in found.items()}))
        return
    table = table_of(found)
    print(table.printed(markdown=options.markdown))
    print(stolen.sentence)


if __name__ == "__main__":
    main()
