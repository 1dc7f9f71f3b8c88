"""How exactly are limits kept, and what do they cost those that have none?

A RAM disk with a limit and one without, in one controller; the server on one processor, the driver on the
other. For each limit: what the driver gets, how far that is from what it should get, and what the other
namespace gives meanwhile at rest. A limit above what the machine can do shows what being limited costs.

Run: `python bench/qos.py`, `--quick` for a look.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from harness.cores import DEVICE_CORE, StolenTime, circumstances, run_on
from harness.report import Table, number, size_name
from harness.servers import bench, end, end_servers_when_killed, wait_until_listening
from outboard.devices.nvme import Qos
from outboard.native.jit import available

SIZE = 64 << 20
SMALL, LARGE = 4 << 10, 128 << 10
DEPTH = 32
SERVER = """
import sys
from outboard import serve
from outboard.devices.nvme import Namespace, Nvme, Qos
from outboard.storage import open_storage
first, second = (open_storage(f"ram:{sys.argv[2]}") for _ in range(2))
for storage in (first, second):  # what was never written is not memory yet, and read faster than any
    storage.memory[:] = bytes(range(256)) * (storage.size // 256)
disk = Nvme(Namespace(first, qos=Qos(**eval(sys.argv[3]))), second, doorbells="mmap")
serve(disk, sys.argv[1])
"""

LIMITS = (
    (Qos(), "randread", SMALL, 0.0),
    (Qos(iops=10_000_000), "randread", SMALL, 0.0),
    (Qos(iops=1_000), "randread", SMALL, 1_000.0),
    (Qos(iops=10_000), "randread", SMALL, 10_000.0),
    (Qos(iops=100_000), "randread", SMALL, 100_000.0),
    (Qos(write_iops=100_000), "randwrite", SMALL, 100_000.0),
    (Qos(bytes_per_second=100 << 20), "randread", LARGE, (100 << 20) / LARGE),
    (Qos(write_bytes_per_second=1 << 30), "randwrite", LARGE, (1 << 30) / LARGE),
)
"""Limits, what is done, and how many commands a second should come of it (0: as many as can be)."""


@contextmanager
def limited(socket: Path, qos: Qos) -> Iterator[None]:
    """A server of a disk with these limits, and of one without."""
    arguments = [sys.executable, "-c", SERVER, str(socket), str(SIZE), repr(asdict(qos))]
    process = subprocess.Popen(
        arguments, stdout=subprocess.DEVNULL, text=True, preexec_fn=lambda: run_on(DEVICE_CORE)
    )
    try:
        wait_until_listening(socket, process)
        yield
    finally:
        end(process)


def words(qos: Qos) -> str:
    """The limits that are set."""
    found = [f"{name} {number(value)}" for name, value in asdict(qos).items() if value]
    return ", ".join(found) or "no limit"


def main() -> None:
    """Measures and prints."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--seconds", type=float, help="of a run (default 5, quick 1)")
    arguments.add_argument("--quick", action="store_true", help="short runs: a look, not a measurement")
    arguments.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    options = arguments.parse_args()
    seconds = options.seconds or (1.0 if options.quick else 5.0)
    if not available():
        print("without Numba there is no compiled data plane to measure: pip install 'outboard[fast]'")
        return
    end_servers_when_killed()
    stolen = StolenTime()
    rows = []
    with tempfile.TemporaryDirectory(prefix="outboard-bench-") as folder:
        for order, (qos, rw, bs, expected) in enumerate(LIMITS):
            socket = Path(folder) / f"{order}.sock"
            with limited(socket, qos):
                found = bench(socket, seconds, rw=rw, bs=bs, qd=DEPTH, warm_up=0.3)["iops"]
                other = bench(socket, seconds, rw="randread", bs=SMALL, qd=DEPTH, warm_up=0.3, nsid=2)["iops"]
            error = f"{found / expected - 1:+.1%}" if expected else ""
            rows.append((words(qos), f"{size_name(bs)} {rw}", number(found), error, number(other)))
    table = Table(("limit", "", "commands a second", "off by", "the other namespace"), rows)
    print(table.printed(markdown=options.markdown))
    print(circumstances(stolen, 1, seconds))


if __name__ == "__main__":
    main()
