"""What do zones cost? The same reads and sequential writes of a namespace with zones, and of one without.

Reads of a zoned namespace are the data plane's as ever, while nothing stale is behind a write pointer.
Writes are Python's: each is held against the state machine. `outboard nvme` on one processor, `outboard
bench` on the other. Run: `python bench/zones.py`.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from harness.cores import StolenTime, circumstances
from harness.report import Table, number, size_name
from harness.servers import bench, end_servers_when_killed, serving

# More than is written in a run: a write that would wrap is none in a zone that is full.
SIZE = "null:64T"
ZONES = "zoned=on,zone_size=1G"
CELLS = (("randread", 4 << 10, 32), ("write", 4 << 10, 32), ("write", 128 << 10, 8))


def main() -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description="What zones cost.")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each run")
    parser.add_argument("--runs", type=int, default=3, help="the median of so many is printed")
    parser.add_argument("--markdown", action="store_true", help="print it for the documentation")
    options = parser.parse_args()
    end_servers_when_killed()
    rows, stolen = [], StolenTime()
    with tempfile.TemporaryDirectory() as folder:
        for rw, bs, qd in CELLS:
            found = []
            for kind in (SIZE, f"{SIZE},{ZONES}"):
                runs = []
                for run in range(options.runs):
                    socket = Path(folder) / f"{run}.sock"
                    with serving(socket, kind):
                        runs.append(bench(socket, options.seconds, rw=rw, bs=bs, qd=qd)["iops"])
                found.append(statistics.median(runs))
            plain, zoned = found
            access = f"{rw} {size_name(bs)}, depth {qd}"
            rows.append((access, number(plain), number(zoned), f"{zoned / plain:.1%}"))
    table = Table(("access", "without zones, /s", "with zones, /s", "ratio"), rows)
    print(table.printed(markdown=options.markdown))
    print(circumstances(stolen, options.runs, options.seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
