"""What the keys of a fault may have for values, and which of them go together."""

from collections.abc import Callable
from enum import IntEnum
from typing import Any, Literal

from outboard.devices.nvme.spec import AdminOpcode, IoOpcode
from outboard.devices.nvme.status import Status
from outboard.errors import DefinitionError

Parser = Callable[[Any], Any]
"""Gives a value in its normal form; raises ValueError with what would do."""

_OPCODES: dict[str, type[IntEnum]] = {"admin": AdminOpcode, "io": IoOpcode}

_DISTRIBUTIONS = {"exponential": 1, "normal": 2}
"""By name, how many numbers each has."""


_MOST = 1_000_000_000
"""Seconds that a command can be delayed: thirty years."""


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _integer(low: int, high: int) -> Parser:
    def parse(value: Any) -> int:
        if not _is_integer(value) or not low <= value <= high:
            raise ValueError(f"it is a number from {low} to {high}")
        return int(value)

    return parse


def _optional(parser: Parser) -> Parser:
    return lambda value: None if value is None else parser(value)


def _word(*words: str) -> Parser:
    def parse(value: Any) -> str:
        if value not in words:
            raise ValueError(f"it is one of {', '.join(words)}")
        return str(value)

    return parse


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("it is true or false")
    return value


def _number(value: Any) -> float:
    """A number that is no nonsense."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MOST:
        raise ValueError(f"numbers are from 0 to {_MOST}")
    return float(value)


def _probability(value: Any) -> float:
    if (number := _number(value)) > 1:
        raise ValueError("it is a number from 0 to 1")
    return number


def _lba(value: Any) -> tuple[int, int]:
    block = _integer(0, (1 << 64) - 1)
    first, last = value if isinstance(value, tuple) and len(value) == 2 else (value, value)
    try:
        first, last = block(first), block(last)
    except ValueError:
        raise ValueError("it is a block, or the first and the last one") from None
    if first > last:
        raise ValueError("the last block is before the first")
    return first, last


def _status(value: Any) -> tuple[int, int]:
    if isinstance(value, str):
        if (name := value.upper().replace("-", "_").replace(" ", "_")) not in Status.__members__:
            raise ValueError("no status has this name: give (SCT, SC)")
        value = int(Status[name])
    if _is_integer(value):
        value = value >> 8, value & 0xFF
    if not isinstance(value, tuple) or len(value) != 2 or not all(map(_is_integer, value)):
        raise ValueError("it is (SCT, SC)")
    kind, code = map(int, value)
    if not (0 <= kind <= 7 and 0 <= code <= 0xFF):
        raise ValueError("SCT is 0 to 7, SC is 0 to 255")
    return kind, code


def _delay(value: Any) -> Any:
    if not isinstance(value, tuple):
        return _number(value)
    name, numbers = (value[0], value[1:]) if value and isinstance(value[0], str) else ("", value)
    if len(numbers) != (_DISTRIBUTIONS.get(name, -1) if name else 2):
        raise ValueError("it is seconds, (low, high), ('exponential', mean) or ('normal', mean, deviation)")
    seconds = tuple(map(_number, numbers))
    if not name and seconds[0] > seconds[1]:
        raise ValueError("the low end is above the high one")
    return (name, *seconds) if name else seconds


_COUNT = _optional(_integer(1, 1 << 62))

PARSERS: dict[str, Parser] = {
    "queue": _optional(_word(*_OPCODES)),
    "nsid": _optional(_integer(1, 0xFFFF_FFFE)),
    "lba": _optional(_lba),
    "qid": _optional(_integer(0, 0xFFFF)),
    "controller": _optional(_integer(1, 0xFFEF)),
    "nth": _COUNT,
    "every": _COUNT,
    "count": _COUNT,
    "probability": _probability,
    "seed": _integer(-(1 << 63), (1 << 64) - 1),
    "status": _optional(_status),
    "dnr": _flag,
    "more": _flag,
    "crd": _integer(0, 3),
    "delay": _optional(_delay),
    "hang": _optional(_word("reset", "abort")),
    "torn": _optional(_integer(0, 1 << 16)),
    "torn_bytes": _optional(_integer(0, 1 << 32)),
    "flip": _integer(0, 4096),
    "guard": _word("stale", "valid"),
    "lie": _flag,
    "lost_interrupt": _flag,
    "lost_completion": _flag,
    "fatal": _flag,
    "removal": _flag,
    "power_cut": _flag,
}
"""By key; ``opcode`` depends on the queue, and is for `opcodes`."""

_ENDS = {"fatal", "removal", "power_cut"}
_LOSSES = {"lost_interrupt", "lost_completion"}
_ALTERATIONS = {"torn", "torn_bytes", "flip", "lie"}

EFFECTS = {"status", "delay", "hang"} | _ENDS | _LOSSES | _ALTERATIONS
"""Keys of which a fault has one."""

EXCLUDED: dict[str, set[str]] = {
    "hang": EFFECTS - {"hang", "delay"},
    "lost_completion": {"status", "lost_interrupt"} | _ENDS,
    "fatal": {"status", "lost_interrupt", "removal", "power_cut"},
    "removal": {"status", "lost_interrupt", "power_cut"},
    "power_cut": {"status", "lost_interrupt"},
    "torn": {"torn_bytes"},
    "nth": {"every", "count"},
}
"""Keys that are not given together."""

NEEDED = {"dnr": "status", "more": "status", "crd": "status", "guard": "flip"}
"""Keys that mean nothing without another one."""

OF_BLOCKS = {"lba", "guard"} | _ALTERATIONS
"""Keys that only mean something for I/O commands."""


def opcodes(queue: str | None, given: Any) -> tuple[Literal["admin", "io"] | None, tuple[int, ...]]:
    """The kind of queue, and the opcodes as numbers. Raises `DefinitionError`."""
    found: set[int] = set()
    for each in given if isinstance(given, tuple) else (given,):
        kind, number = _opcode(queue, each)
        if queue not in (None, kind):
            raise DefinitionError(f"a fault's opcode is {each!r}, which is no {queue} command")
        queue = kind
        found.add(number)
    return queue, tuple(sorted(found))  # type: ignore[return-value]


def _opcode(queue: str | None, given: Any) -> tuple[str, int]:
    for kind, opcode in _OPCODES.items():
        if isinstance(given, opcode):
            return kind, int(given)
    if isinstance(given, str):
        name = given.upper().replace("-", "_").replace(" ", "_")
        for kind, opcode in _OPCODES.items():
            if name in opcode.__members__:
                return kind, int(opcode[name])
        raise DefinitionError(f"a fault's opcode is {given!r}: no command has this name")
    if not _is_integer(given) or not 0 <= given <= 0xFF:
        raise DefinitionError(f"a fault's opcode is {given!r}: it is a name, or a number up to 255")
    if queue is None:
        raise DefinitionError(f"a fault's opcode is {given:#x}: say of which queue, 'admin' or 'io'")
    return queue, given


def name_of(queue: str | None, opcode: int) -> str | int:
    """The name of an opcode, or its number if it has none."""
    try:
        return _OPCODES[queue or ""](opcode).name.lower()
    except (KeyError, ValueError):
        return opcode
