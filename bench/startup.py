"""How long until `outboard nvme` listens, warm and cold, and how much memory does it hold?

Cold is with an empty cache, so that the data plane is compiled; warm loads what an earlier start kept. From
the start of the process to the first connection that is accepted; starts take turns. Memory is resident
memory (VmRSS) of the server with a null namespace: as it listens, and with a client that has read.
Run: `python bench/startup.py`.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.cores import DEVICE_CORE, StolenTime
from harness.report import Table
from harness.servers import bench, end, end_servers_when_killed, start, wait_until_listening
from outboard.native.jit import available


def resident_mib(process: int) -> float:
    """The resident memory of a process."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"process {process} has no memory")


@contextmanager
def started(folder: Path, cache: Path) -> "Iterator[tuple[float, int]]":
    """A server with this cache: the seconds until it listened, and its process."""
    path = folder / "disk.sock"
    began = time.perf_counter()
    server = start("nvme", "--socket", str(path), "--namespace", "null:1T", core=DEVICE_CORE, cache=cache)
    try:
        wait_until_listening(path, server)
        yield time.perf_counter() - began, server.pid
    finally:
        end(server)


def measure(runs: int) -> dict[str, list[float]]:
    """Every run's seconds and MiB, by what they are."""
    found: dict[str, list[float]] = {}

    def keep(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)

    for _ in range(runs):
        with tempfile.TemporaryDirectory(prefix="outboard-bench-") as name:
            folder = Path(name)
            cache = folder / "cache"
            with started(folder, cache) as (seconds, process):
                keep("cold_s", seconds)
                keep("cold_mib", resident_mib(process))
            with started(folder, cache) as (seconds, process):
                keep("warm_s", seconds)
                keep("warm_mib", resident_mib(process))
                keep("compile_s", found["cold_s"][-1] - seconds)
                bench(folder / "disk.sock", 0.5)
                keep("serving_mib", resident_mib(process))
    return found


def main() -> None:
    """Measures and prints."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument(
        "--runs", type=int, help="cold and warm starts; medians are printed (default 5, quick 1)"
    )
    arguments.add_argument("--quick", action="store_true", help="one run")
    arguments.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    arguments.add_argument("--markdown", action="store_true", help="the table as Markdown")
    options = arguments.parse_args()
    if not available():
        print("without Numba there is no compiled data plane to start: pip install 'outboard[fast]'")
        return
    end_servers_when_killed()
    stolen = StolenTime()
    found = measure(options.runs or (1 if options.quick else 5))
    if options.json:
        print(json.dumps(found))
        return
    rows = []
    for name, words, unit, wanted in (
        ("warm_s", "warm start to listening", "s", "1"),
        ("cold_s", "cold start to listening", "s", ""),
        ("compile_s", "of that, compiling", "s", "20"),
        ("warm_mib", "resident, listening, warm", "MiB", "250"),
        ("cold_mib", "resident, listening, having compiled", "MiB", "250"),
        ("serving_mib", "resident, warm, having served a client", "MiB", "250"),
    ):
        median, worst = statistics.median(found[name]), max(found[name])
        digits = 2 if unit == "s" else 0
        rows.append((words, f"{median:.{digits}f}", f"{worst:.{digits}f}", unit, wanted))
    table = Table(("", "median", "most", "unit", "less than"), rows)
    print(table.printed(markdown=options.markdown))
    print(stolen.sentence)


if __name__ == "__main__":
    main()
