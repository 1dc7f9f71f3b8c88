"""What `outboard top` shows: rates between two looks at the statistics, in tables whose columns are data."""

from collections.abc import Callable, Iterable, Iterator
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


def microseconds(value: float | None) -> str:
    """A time in nanoseconds; None: nothing was measured."""
    return "-" if value is None else f"{value / 1000:.0f} us"


SUBSYSTEM = Column("subsystem", "subsystem", number=False)
CONTROLLER = Column("cntlid", "controller")
RATES = (
    Column("reads", "reads/s", in_thousands),
    Column("writes", "writes/s", in_thousands),
    Column("bytes_read", "read B/s", in_thousands),
    Column("bytes_written", "write B/s", in_thousands),
)

TABLES: dict[str, tuple[Column, ...]] = {
    "controllers": (
        SUBSYSTEM,
        CONTROLLER,
        Column("connected", "client", switch, number=False),
        Column("state", "state", number=False),
        *RATES,
        Column("interrupts", "irq/s", in_thousands),
        Column("waiting", "waiting"),
        Column("errors", "errors"),
    ),
    "queues": (
        SUBSYSTEM,
        CONTROLLER,
        Column("id", "queue"),
        Column("entries", "entries"),
        Column("commands", "commands/s", in_thousands),
        Column("bytes", "B/s", in_thousands),
        Column("interrupts", "irq/s", in_thousands),
        Column("depth", "depth"),
        Column("waiting", "waiting"),
        Column("unconsumed", "unconsumed"),
        Column("vector", "vector"),
        Column("compiled", "compiled", switch, number=False),
    ),
    "namespaces": (
        SUBSYSTEM,
        Column("nsid", "namespace"),
        Column("size", "size", format_size),
        *RATES,
        Column("latency", "latency", microseconds),
        Column("attached", "controllers", several, number=False),
    ),
}
"""The tables, in their order."""

COUNTED = tuple(column.key for column in RATES)


def tables_of(before: dict[str, Any], after: dict[str, Any]) -> dict[str, list[Row]]:
    """The rows of each table, from what the control socket said twice. What is new is shown from zero."""
    seconds = max(after["time"] - before["time"], 1e-3)
    known = {
        (subsystem["name"], each["cntlid"]): each
        for subsystem in before["subsystems"]
        for each in subsystem["controllers"]
    }
    spaces = {
        (subsystem["name"], each["nsid"]): each
        for subsystem in before["subsystems"]
        for each in subsystem["namespaces"]
    }
    tables: dict[str, list[Row]] = {name: [] for name in TABLES}
    for subsystem in after["subsystems"]:
        name = subsystem["name"]
        for each in subsystem["controllers"]:
            was = known.get((name, each["cntlid"]), {})
            tables["controllers"].append(_controller(name, was, each, seconds))
            tables["queues"] += _queues(name, was, each, seconds)
        for each in subsystem["namespaces"]:
            tables["namespaces"].append(_namespace(name, spaces.get((name, each["nsid"]), {}), each, seconds))
    return tables


def ordered(rows: list[Row], key: str) -> list[Row]:
    """The rows by a column, the largest numbers first; text as in a dictionary."""
    numbers = bool(rows) and isinstance(rows[0][key], int | float)
    return sorted(rows, key=lambda row: row[key], reverse=numbers)


def _grown(before: Row, after: Row, key: str) -> int:
    """How much a counter has grown; one that is smaller than it was has begun anew, so it is as it was."""
    return int(max(after.get(key, 0) - before.get(key, 0), 0))


def _rates(before: Row, after: Row, keys: Iterable[str], seconds: float) -> Row:
    return {key: _grown(before, after, key) / seconds for key in keys}


def _controller(name: str, before: Row, after: Row, seconds: float) -> Row:
    return {
        "subsystem": name,
        **{key: after[key] for key in ("cntlid", "connected", "state", "errors")},
        **_rates(before, after, COUNTED, seconds),
        **_rates(before.get("counters", {}), after["counters"], ["interrupts"], seconds),
        "waiting": sum(queue["waiting"] for queue in after["queues"]),
    }


def _queues(name: str, before: Row, controller: Row, seconds: float) -> Iterator[Row]:
    known = {queue["id"]: queue for queue in before.get("queues", ())}
    for queue in controller["queues"]:
        rates = _rates(known.get(queue["id"], {}), queue, ("commands", "bytes", "interrupts"), seconds)
        yield {"subsystem": name, "cntlid": controller["cntlid"], **queue, **rates}


def _namespace(name: str, before: Row, after: Row, seconds: float) -> Row:
    measured = _grown(before, after, "measured")
    return {
        "subsystem": name,
        **{key: after[key] for key in ("nsid", "size", "attached")},
        **_rates(before, after, COUNTED, seconds),
        "latency": _grown(before, after, "latency_ns") / measured if measured else None,
    }
