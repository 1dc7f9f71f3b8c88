"""What does protection information cost? RAM disks with it, and one without, commands of 4 KiB.

One `outboard nvme` has three namespaces of 4096-byte blocks: plain, with guards of 16 bits and with guards
of 64. `outboard bench` measures them in turns, and has the controller make and check the guards. The ratios
are medians of each round's. Beside them: how fast one processor checks blocks of 4 KiB in its cache.
Run: `python bench/protection.py`, `--quick` for a look.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from harness.cores import StolenTime, circumstances
from harness.report import Table, number
from harness.servers import bench, end_servers_when_killed, fill, serving
from outboard.native.crc import crc16, crc64
from outboard.native.jit import available, entry
from outboard.native.words import Block

SIZE, BLOCK = 256 << 20, 4096
KINDS = {"plain": "", "guard of 16": ",metadata=8,pi=1", "guard of 64": ",metadata=16,pi=1,guard=64"}
RW = ("randread", "randwrite")
DEPTHS = (1, 32, 128)


@entry
def check(width: int, address: int, size: int, times: int) -> int:
    """Check the same bytes many times."""
    total = 0
    for _ in range(times):
        total ^= crc16(0, address, size) if width == 16 else crc64(0, address, size)
    return total


def speed(width: int, seconds: float) -> float:
    """Bytes a second that one processor checks."""
    block, times, done, call = Block(BLOCK), 100_000, 0, check.native
    begun = time.perf_counter()
    while (spent := time.perf_counter() - begun) < seconds or done == 0:
        call(width, block.address, BLOCK, times)
        done += times * BLOCK
    return done / spent


def measure(runs: int, seconds: float) -> dict[tuple[str, int], list[list[float]]]:
    """Commands a second by pattern and depth: a list for each kind, a number for each round."""
    found: dict[tuple[str, int], list[list[float]]] = {
        (rw, depth): [[] for _ in KINDS] for rw in RW for depth in DEPTHS
    }
    with tempfile.TemporaryDirectory(prefix="outboard-bench-") as folder:
        socket = Path(folder) / "disk.sock"
        spaces = [f"ram:{SIZE},block_size={BLOCK}{options}" for options in KINDS.values()]
        with serving(socket, *spaces):
            for nsid in range(1, len(spaces) + 1):
                fill(socket, size=SIZE, nsid=nsid)
            for _ in range(runs):
                for (rw, depth), kinds in found.items():
                    for nsid, each in enumerate(kinds, 1):
                        each.append(bench(socket, seconds, rw=rw, bs=BLOCK, qd=depth, nsid=nsid)["iops"])
    return found


def main() -> None:
    """Measures and prints."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--seconds", type=float, help="of a run (default 3, quick 0.5)")
    arguments.add_argument("--runs", type=int, help="of each cell; medians are printed (default 5, quick 3)")
    arguments.add_argument("--quick", action="store_true", help="short runs: a look, not a measurement")
    arguments.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    options = arguments.parse_args()
    if not available():
        print("without Numba there is no compiled data plane to measure: pip install 'outboard[fast]'")
        return
    end_servers_when_killed()
    seconds = options.seconds or (0.5 if options.quick else 3.0)
    runs, stolen = options.runs or (3 if options.quick else 5), StolenTime()
    found = measure(runs, seconds)
    rows = []
    for (rw, depth), (plain, *others) in found.items():
        row = [f"RAM 4k {rw}", str(depth), number(statistics.median(plain))]
        for each in others:
            ratio = statistics.median(mine / bare for mine, bare in zip(each, plain, strict=True))
            row += [number(statistics.median(each)), f"{ratio:.0%}"]
        rows.append(row)
    headings = ("", "depth", "plain", "guard of 16", "of plain", "guard of 64", "of plain")
    print(Table(headings, rows).printed(markdown=options.markdown))
    speeds = [f"{speed(width, 0.3) / 1e9:.1f}" for width in (16, 64)]
    print(f"Checks of 4 KiB in the cache, one processor: {speeds[0]} GB/s of 16 bits, {speeds[1]} of 64.")
    print(circumstances(stolen, runs, seconds))


if __name__ == "__main__":
    main()
