"""What `outboard ctl` prints for people: tables, made of what the control socket answers."""

import sys
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from outboard.storage import format_size

SIZES = {"size", "block_size", "unit", "pool", "pool_free"}
USUAL = {"metadata": 0, "zones": 0, "ana_group": 1, "protection": "none", "created": False, "shared": True}
"""Columns that are left out of a table in which nothing else is said."""
WIDEST = 1000
"""Columns of a line that is for no terminal."""


def console() -> Console:
    """Where tables are printed: what does not fit a terminal is cut, a pipe gets all of it."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else WIDEST)


def as_text(value: Any) -> RenderableType:
    """Any JSON: a list of objects as a table, an object as lines, with tables under it."""
    if isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
        return table(value)
    if not isinstance(value, dict):
        return Text(shown("", value))
    lines = Table.grid(padding=(0, 2))
    below: list[RenderableType] = []
    for name, inner in value.items():
        if _is_long(inner):
            below += [Text(""), Text(_title(name), style="bold"), as_text(inner)]
        else:
            lines.add_row(Text(_title(name), style="dim"), Text(shown(name, inner)))
    return Group(lines, *below)


def table(rows: list[dict[str, Any]]) -> RenderableType:
    """A table of objects, with a column for each of their members; what is long in them follows below it."""
    values = {
        name: value
        for row in reversed(rows)
        for name, value in row.items()
        if not _is_long(value) and any(name not in USUAL or row.get(name) != USUAL[name] for row in rows)
    }
    columns = sorted(values, key=list(dict.fromkeys(name for row in rows for name in row)).index)
    made = Table(box=None, header_style="dim", pad_edge=False)
    for name in columns:
        made.add_column(_title(name), justify="right" if _is_number(values[name]) else "left")
    for row in rows:
        made.add_row(
            *(Text("" if _is_long(row.get(name)) else shown(name, row.get(name))) for name in columns)
        )
    below: list[RenderableType] = []
    for row in rows:
        for name, inner in row.items():
            if _is_long(inner):
                title = (
                    f"{_title(name)} of {_title(columns[0])} {row.get(columns[0])}"
                    if columns
                    else _title(name)
                )
                below += [Text(""), Text(title, style="bold"), as_text(inner)]
    return Group(made, *below)


def shown(name: str, value: Any) -> str:
    """One value."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(shown(name, each) for each in value) or "-"
    if name in SIZES:
        return format_size(value) if value else "0"
    if isinstance(value, float):
        return f"{value:.3f}"
    return "-" if value is None else str(value)


def statistics(found: dict[str, Any]) -> RenderableType:
    """What was counted: each controller in a column."""
    parts: list[RenderableType] = []
    for subsystem in found["subsystems"]:
        made = Table(box=None, header_style="dim", pad_edge=False)
        made.add_column(Text(f"controllers of {subsystem['name']}"), style="dim")
        for controller in subsystem["controllers"]:
            made.add_column(str(controller["cntlid"]), justify="right")
        flat = [{**each, **each["counters"]} for each in subsystem["controllers"]]
        for name in flat[0] if flat else ():
            if name not in ("cntlid", "counters", "queues"):
                made.add_row(_title(name), *(Text(shown(name, each.get(name))) for each in flat))
        parts += [made, Text("")]
        for controller in subsystem["controllers"]:
            if controller["queues"]:
                title = f"queues of controller {controller['cntlid']}"
                parts += [Text(title, style="bold"), table(controller["queues"]), Text("")]
        if subsystem["namespaces"]:
            parts += [Text("namespaces", style="bold"), table(subsystem["namespaces"])]
    return Group(*parts)


REPORTS = {"statistics.get": statistics}
"""Those that are told in a way of their own, by their methods."""


def _is_long(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and dict in map(type, value))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _title(name: str) -> str:
    return name.replace("_", " ")
