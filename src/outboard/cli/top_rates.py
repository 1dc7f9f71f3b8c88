"""What `outboard top` shows: rates between two looks at the statistics, in tables whose columns are data."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from outboard.cli.bench_run import in_thousands
from outboard.storage import format_size

Row = dict[str, Any]
"""A line of a table, by the columns' keys."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its key in a row, its title, how a value is shown; numbers stand to the right."""

    key: str
    title: str
    shown: Callable[[Any], str] = str
    number: bool = True


def switch(value: bool) -> str:
    """A truth."""
    return "yes" if value else "no"


def several(values: list[int]) -> str:
    """A list of numbers."""
    return ", ".join(map(str, values)) or "-"


SUBSYSTEM = Column("subsystem", "subsystem", number=False)
CONTROLLER = Column("cntlid", "controller")

TABLES: dict[str, tuple[Column, ...]] = {
    "controllers": (
        SUBSYSTEM,
        CONTROLLER,
        Column("connected", "client", switch, number=False),
        Column("state", "state", number=False),
        Column("reads", "reads/s", in_thousands),
        Column("writes", "writes/s", in_thousands),
        Column("bytes_read", "read B/s", in_thousands),
        Column("bytes_written", "write B/s", in_thousands),
        Column("interrupts", "irq/s", in_thousands),
        Column("waiting", "waiting"),
        Column("errors", "errors"),
    ),
    "queues": (
        SUBSYSTEM,
        CONTROLLER,
        Column("id", "queue"),
        Column("entries", "entries"),
        Column("waiting", "waiting"),
        Column("unconsumed", "unconsumed"),
        Column("vector", "vector"),
        Column("compiled", "compiled", switch, number=False),
    ),
    "namespaces": (
        SUBSYSTEM,
        Column("nsid", "namespace"),
        Column("size", "size", format_size),
        Column("attached", "controllers", several, number=False),
    ),
}
"""The tables, in their order."""

COUNTED = ("reads", "writes", "bytes_read", "bytes_written")


def tables_of(before: dict[str, Any], after: dict[str, Any]) -> dict[str, list[Row]]:
    """The rows of each table, from what the control socket said twice. What is new is shown from zero."""
    seconds = max(after["time"] - before["time"], 1e-3)
    known = {
        (subsystem["name"], each["cntlid"]): each
        for subsystem in before["subsystems"]
        for each in subsystem["controllers"]
    }
    tables: dict[str, list[Row]] = {name: [] for name in TABLES}
    for subsystem in after["subsystems"]:
        name = subsystem["name"]
        for each in subsystem["controllers"]:
            tables["controllers"].append(_controller(name, known.get((name, each["cntlid"])), each, seconds))
            tables["queues"] += _queues(name, each)
        tables["namespaces"] += [{"subsystem": name, **each} for each in subsystem["namespaces"]]
    return tables


def ordered(rows: list[Row], key: str) -> list[Row]:
    """The rows by a column, the largest numbers first; text as in a dictionary."""
    numbers = bool(rows) and isinstance(rows[0][key], int | float)
    return sorted(rows, key=lambda row: row[key], reverse=numbers)


def _controller(name: str, before: Row | None, after: Row, seconds: float) -> Row:
    def rate(value: int, was: int) -> float:
        # A controller of the same number may have been removed and made anew.
        return max(value - was, 0) / seconds

    counters, were = after["counters"], (before or {}).get("counters", {})
    return {
        "subsystem": name,
        **{key: after[key] for key in ("cntlid", "connected", "state", "errors")},
        **{key: rate(after[key], before[key] if before else 0) for key in COUNTED},
        "interrupts": rate(counters.get("interrupts", 0), were.get("interrupts", 0)),
        "waiting": sum(queue["waiting"] for queue in after["queues"]),
    }


def _queues(name: str, controller: Row) -> Iterator[Row]:
    for queue in controller["queues"]:
        yield {"subsystem": name, "cntlid": controller["cntlid"], **queue}
