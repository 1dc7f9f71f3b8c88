"""``outboard proxy``: stands between a VMM and any server; records, decodes, breaks on purpose."""

import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from outboard.cli.access import ANYONE, Access
from outboard.cli.foreground import allow_descriptors
from outboard.cli.log import log_to_stderr
from outboard.cli.trace import NVME_CLASS, line, nvme_class
from outboard.trace.capture import Captured, CaptureWriter
from outboard.trace.describe import Described, Describer
from outboard.trace.fault_spec import parse_fault
from outboard.trace.proxy import Observer, Proxy
from outboard.trace.timeline import TimelineWriter


def proxy(
    *,
    listen: Path,
    connect: Path,
    record: Annotated[Path | None, Parameter(alias="--pcap", allow_leading_hyphen=True)] = None,
    timeline: Path | None = None,
    print: bool = False,
    memory_by_message: Annotated[bool, Parameter(negative=())] = False,
    fault: list[str] | None = None,
    seed: int = 0,
    access: Access = ANYONE,
) -> None:
    """Stand between a VMM and any vfio-user server.

    Every message passes as it is, with its descriptors; guest memory and interrupts are shared
    by both ends as without the proxy. It stays in the foreground until Ctrl-C or SIGTERM and
    takes one client after the other.

    A fault is KIND:KEY=VALUE,... with the kinds

    - `delay` (`ms`), `error` (`errno`), `flip` (`bits`), `disconnect` (`at`: seconds from the
      start, else at a message); they meet messages by `command`, `direction` (to-server,
      to-client), `region` (BAR0 to BAR5, ROM, config) and `offset` (AT or AT+SIZE). Without a
      direction they meet commands, `flip` meets replies.
    - `drop-interrupt`, by `index` (INTX, MSI, MSIX) and `vector`.

    Of those it meets: only the `nth`, or `every` so manyth, each with a `probability`, none before
    `after` seconds.

    **Examples**

    ```
    outboard proxy --listen /tmp/vm.sock --connect /tmp/disk.sock --record boot.pcapng
    outboard proxy --listen /tmp/vm.sock --connect /tmp/disk.sock --print
    outboard proxy --listen /tmp/vm.sock --connect /tmp/disk.sock --fault delay:ms=5,probability=0.1
    ```

    Parameters
    ----------
    listen
        The UNIX socket for the VMM.
    connect
        The server's UNIX socket.
    record
        Write all messages into this file, which Wireshark, `outboard trace` and `outboard replay`
        read; `-` writes to standard output.
    timeline
        Write a timeline for ui.perfetto.dev into this file.
    print
        Print every message as it passes.
    memory_by_message
        Keep the descriptors of guest memory back, so that the server asks for all of it by messages:
        slow, and a recording then holds what the device read.
    fault
        What to break, and when; may be given several times.
    seed
        Another number gives other faults by chance, the same one the same.
    access
        Who may connect.
    """
    faults = [parse_fault(text) for text in fault or []]
    piped = record == Path("-")
    console = Console(highlight=False, soft_wrap=True, stderr=piped)
    log_to_stderr()
    allow_descriptors()
    with ExitStack() as stack:
        told: list[Callable[[Described], None]] = []
        if timeline is not None:
            writer = stack.enter_context(TimelineWriter(stack.enter_context(timeline.open("w"))))
            told.append(writer.add)
        if print:
            told.append(_printer(console))
        capture = None
        if record is not None:
            file = sys.stdout.buffer if piped else stack.enter_context(record.open("wb"))
            capture = CaptureWriter(file)
        between = Proxy(
            listen,
            connect,
            faults=faults,
            seed=seed,
            capture=capture,
            observer=_describing(told),
            share_memory=not memory_by_message,
            **access.options(),
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: between.stop())
        with between:
            console.print(f"[bold]between {listen} and {connect}[/]; Ctrl-C ends it")
            between.serve_forever()


def _describing(told: list[Callable[[Described], None]]) -> Observer | None:
    """What decodes each message, once, for all that want to be told; None if nobody does."""
    if not told:
        return None
    describer = Describer(None, {NVME_CLASS: nvme_class})

    def observe(captured: Captured) -> None:
        described = describer.describe(captured)
        for tell in told:
            tell(described)

    return observe


def _printer(console: Console) -> Callable[[Described], None]:
    """Prints each message on a line; times count from now."""
    started = time.time_ns()

    def tell(described: Described) -> None:
        console.print(line(described, described.captured.time - started))

    return tell
