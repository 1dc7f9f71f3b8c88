"""Compiling data planes before they are needed, and saying so: it takes seconds, once."""

import time

from rich.console import Console

from outboard.native.guard import on_fault
from outboard.native.jit import Entry, available, compile_all


def prepare_data_plane(*entries: Entry) -> None:
    """Have the machine code of ``entries``; a line says so while it is made. Nothing without Numba."""
    # Where there is compiled code, compiled code handles SIGBUS, from the first memory that is mapped.
    needed = (*entries, on_fault) if entries else ()
    if not available() or all(entry.is_ready for entry in needed):
        return
    console = Console(stderr=True)
    started = time.monotonic()
    with console.status("compiling the data plane (once; it is kept for the next time)"):
        compile_all(needed)
    console.print(f"[dim]compiled the data plane in {time.monotonic() - started:.1f} s[/]")
