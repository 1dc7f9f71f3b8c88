"""``outboard bench``: measure any NVMe controller behind a vfio-user socket."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from rich.console import Console

from outboard.cli.bench_report import as_json, as_text
from outboard.cli.bench_run import run_watched
from outboard.client import Client
from outboard.drivers.nvme_measure import Doorbells, Workload, measuring
from outboard.native.jit import available
from outboard.storage import parse_size

NO_NUMBA = "outboard: without Numba the client itself is the slow part: pip install 'outboard[fast]'"


def bench(
    socket: Path,
    /,
    *,
    rw: Literal["read", "write", "randread", "randwrite", "randrw"] = "randread",
    bs: str = "4k",
    qd: int = 32,
    queues: int = 1,
    seconds: float = 5.0,
    warm_up: float = 0.5,
    nsid: int = 1,
    mix: float = 70.0,
    verify: Annotated[bool, Parameter(negative=())] = False,
    doorbells: Literal["auto", "mapped", "shadow", "trapped"] = "auto",
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Measure any NVMe controller behind a vfio-user socket.

    A driver of outboard's own takes the controller, keeps its queues full from one thread and
    takes the time of every command; it polls, no interrupts are used. What writes
    destroys what is on the namespace. Ctrl-C ends it with the result so far. Exit status 1 if a
    command failed, or other data came back than was written.

    **Examples**

    ```
    outboard bench /tmp/disk.sock
    outboard bench /tmp/disk.sock --rw randwrite --bs 128k --qd 8 --seconds 0.5 --json
    outboard bench /tmp/disk.sock --rw randrw --verify
    ```

    Parameters
    ----------
    socket
        The server's UNIX socket. A controller has one client at a time: end QEMU first.
    rw
        In order or at random; randrw mixes.
    bs
        Bytes of a command: 512 to 1M, whole blocks of the namespace.
    qd
        Commands in flight in each queue.
    queues
        Pairs of queues, all driven by one thread.
    seconds
        How long to measure.
    warm_up
        Seconds before that which do not count.
    nsid
        The namespace.
    mix
        The percentage that randrw reads.
    verify
        Write data that tells where and when it was written, and compare all that is read; in the
        end all that was written is read once more. Not for speed.
    doorbells
        How the controller is told of commands: in its doorbells, mapped; in shadow doorbells in
        our memory; by a message each. By itself the first of these that the server offers.
    json
        Print one JSON object.
    """
    workload = Workload(
        rw=rw,
        bs=parse_size(bs),
        qd=qd,
        queues=queues,
        seconds=seconds,
        warm_up=warm_up,
        nsid=nsid,
        mix=mix,
        verify=verify,
    )
    if not available():
        print(NO_NUMBA, file=sys.stderr)
    with Client(socket) as client, measuring(client, workload, doorbells=Doorbells(doorbells)) as measurement:
        run_watched(measurement, Console(stderr=True))
        result = measurement.result()
    if json:
        print(to_json(as_json(result)))
    else:
        Console(highlight=False).print(as_text(result))
    return 1 if result.errors else 0


def to_json(found: dict[str, Any]) -> str:
    """One JSON object."""
    return json.dumps(found, indent=2)
