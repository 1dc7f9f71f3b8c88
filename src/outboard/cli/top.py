"""``outboard top``: what NVMe subsystems are doing, live or once."""

import json as json_module
import sys
import time
from collections.abc import Callable
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Group
from rich.table import Table
from rich.text import Text

from outboard.cli.ctl import ControlSocket, connect
from outboard.cli.ctl_report import console
from outboard.cli.top_rates import TABLES, Row, tables_of
from outboard.errors import SetupError

LEAST_INTERVAL = 0.1


def top(
    *,
    socket: ControlSocket = None,
    interval: float = 1.0,
    once: Annotated[bool, Parameter(negative=())] = False,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Watch controllers, queues and namespaces of `outboard nvme` at work.

    Keys: q ends it, s sorts by the next column, r by the one before, p pauses. Where the output is no
    terminal, it prints once.

    **Examples**

    ```
    outboard top --socket /tmp/control.sock
    outboard top --socket /tmp/control.sock --once --interval 5
    outboard top --socket /tmp/control.sock --once --json
    ```

    Parameters
    ----------
    socket
        The control socket: what `outboard nvme` has as --control, or in its file.
    interval
        Seconds between two looks, of which the rates are the difference.
    once
        Look twice, print the rates and end; needs no terminal.
    json
        Print once, as JSON: rates are numbers a second.
    """
    if not interval >= LEAST_INTERVAL:
        raise SetupError(f"--interval {interval:g}: at least {LEAST_INTERVAL:g} seconds")
    with connect(socket) as client:
        if once or json or not sys.stdout.isatty():
            tables = measured(lambda: client.call("statistics.get"), interval)
            print(json_module.dumps(tables, indent=2)) if json else console().print(as_text(tables))
            return
    try:
        from outboard.cli.top_view import TopView
    except ModuleNotFoundError as missing:
        if (missing.name or "").startswith("outboard"):
            raise
        raise SetupError("the view needs textual: pip install 'outboard[top]'; --once does not") from missing
    TopView(lambda: connect(socket), interval).run()


def measured(ask: Callable[[], dict[str, Any]], interval: float) -> dict[str, list[Row]]:
    """The tables, from two looks."""
    before = ask()
    time.sleep(interval)
    return tables_of(before, ask())


def as_text(tables: dict[str, list[Row]]) -> Group:
    """The tables for people; those without a row are left out."""
    parts = []
    for name, columns in TABLES.items():
        if not tables[name]:
            continue
        made = Table(title=name, title_justify="left", box=None, header_style="dim", pad_edge=False)
        for column in columns:
            made.add_column(column.title, justify="right" if column.number else "left")
        for row in tables[name]:
            made.add_row(*(Text(column.shown(row[column.key])) for column in columns))
        parts.append(made)
    return Group(*parts)
