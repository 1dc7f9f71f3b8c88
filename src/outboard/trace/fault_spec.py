"""Faults written in one word, as on the command line: ``delay:command=REGION_READ,ms=50``."""

import errno
import math
from collections.abc import Callable, Mapping
from typing import Any

from outboard.errors import SetupError
from outboard.protocol import Command, Direction
from outboard.protocol.messages import IrqIndex
from outboard.trace.faults import Delay, Disconnect, DropInterrupt, Error, Fault, Flip, When
from outboard.trace.registers import REGIONS

REGION_NUMBERS = {name.lower(): index for index, name in REGIONS.items()}
DIRECTIONS = {"to-server": Direction.TO_SERVER, "to-client": Direction.TO_CLIENT}


def parse_fault(text: str) -> Fault:
    """The fault that ``KIND:KEY=VALUE,...`` names.

    ==================  ===================================================================
    ``delay``           ``ms``: how long
    ``error``           ``errno``: name or number (EIO)
    ``flip``            ``bits``: how many (1)
    ``disconnect``      ``at``: seconds from the start; without it, at a message
    ``drop-interrupt``  ``index`` (INTX, MSI, MSIX) and ``vector``: which ones (all)
    ==================  ===================================================================

    Conditions of all but the last: ``command``, ``direction`` (to-server, to-client), ``region`` (bar0 to
    bar5, rom, config, or a number), ``offset`` (AT or AT+SIZE). Of all: ``nth``, ``every``,
    ``probability``, ``after`` (seconds). Raises SetupError with what would do.

    >>> parse_fault("error:command=REGION_WRITE,region=bar0,offset=0x14+4,errno=ENODEV").when.offset
    range(20, 24)
    """
    kind, _, rest = text.partition(":")
    if kind not in KINDS:
        raise SetupError(f"there is no fault {kind!r}: the kinds are {', '.join(KINDS)}")
    make, own, conditions = KINDS[kind]
    known = {**own, **conditions}
    values: dict[str, Any] = {}
    for setting in filter(None, rest.split(",")):
        key, equals, value = setting.partition("=")
        if not equals or key not in known:
            raise SetupError(f"{setting!r} in {text!r} means nothing: {kind} takes {', '.join(known)}")
        if key in values:
            raise SetupError(f"{key} is twice in {text!r}: give it once")
        try:
            values[key] = known[key](value)
        except (ValueError, KeyError) as error:
            raise SetupError(f"{setting!r} in {text!r}: {_reason(key, error)}") from None
    if kind == "delay" and "ms" not in values:
        raise SetupError(f"{text!r} does not say how long: add ms=50")
    when = When(**{key: values.pop(key) for key in [*values] if key in conditions})
    return make(values, when)


def _reason(key: str, error: Exception) -> str:
    return str(error) if isinstance(error, ValueError) else f"no {key} has this name"


def _count(text: str) -> int:
    if (value := int(text, 0)) < 1:
        raise ValueError("a count begins with 1")
    return value


def _number(text: str) -> int:
    if (value := int(text, 0)) < 0:
        raise ValueError("it cannot be below 0")
    return value


def _seconds(text: str) -> float:
    if not 0 <= (value := float(text)) < math.inf:
        raise ValueError("a time is a number from 0 on")
    return value


def _probability(text: str) -> float:
    if not 0 <= (value := float(text)) <= 1:
        raise ValueError("a probability is from 0 to 1")
    return value


def _errno(text: str) -> int:
    value = getattr(errno, text) if text.startswith("E") and hasattr(errno, text) else int(text, 0)
    if not 0 < value < 4096:
        raise ValueError("an errno is from 1 to 4095")
    return int(value)


def parse_range(text: str) -> range:
    """The bytes that ``AT`` or ``AT+SIZE`` names. Raises ValueError.

    >>> parse_range("0x100+8"), parse_range("4")
    (range(256, 264), range(4, 5))
    """
    at, _, size = text.partition("+")
    start = _number(at)
    return range(start, start + (_count(size) if size else 1))


def parse_region(text: str) -> int:
    """The number of the region named so. Raises ValueError."""
    name = text.lower()
    return REGION_NUMBERS[name] if name in REGION_NUMBERS else _number(text)


Parser = Callable[[str], Any]
SCHEDULE: dict[str, Parser] = {
    "nth": _count,
    "every": _count,
    "probability": _probability,
    "after": _seconds,
}
MESSAGE: dict[str, Parser] = {
    "command": Command.__getitem__,
    "direction": DIRECTIONS.__getitem__,
    "region": parse_region,
    "offset": parse_range,
    **SCHEDULE,
}
INTERRUPT: dict[str, Parser] = {"index": IrqIndex.__getitem__, "vector": _number, **SCHEDULE}

KINDS: dict[str, tuple[Callable[[Mapping[str, Any], When], Fault], dict[str, Parser], dict[str, Parser]]] = {
    "delay": (lambda own, when: Delay(own["ms"] / 1000, when=when), {"ms": _seconds}, MESSAGE),
    "error": (lambda own, when: Error(**own, when=when), {"errno": _errno}, MESSAGE),
    "flip": (lambda own, when: Flip(**own, when=when), {"bits": _count}, MESSAGE),
    "disconnect": (lambda own, when: Disconnect(**own, when=when), {"at": _seconds}, MESSAGE),
    "drop-interrupt": (lambda own, when: DropInterrupt(**own, when=when), {}, INTERRUPT),
}
