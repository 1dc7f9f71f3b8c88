"""What may be given, declared once: from a dataclass or a function come the check, the JSON schema, the help.

The configuration file, the control socket, the command line and their documentation read the same
declarations: names, annotations, defaults, and meanings. Those are in a dataclass's docstring under
"Parameters" (numpydoc's form), and in the annotations of a function: ``Annotated[int, "How many."]``.

An annotation is ``str``, ``int``, ``float``, ``bool``, a ``Literal``, ``Any``, a list, a tuple or a table of
such, a dataclass, any of these or None; `Between` narrows a number, `Size` takes ``"4K"`` for 4096.
"""

import inspect
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from outboard.errors import StorageError
from outboard.storage import parse_size

UNDERLINE = "----"
SHOWN = 60
"""Characters of a wrong value or name that are shown: whoever sent it knows the rest."""
SWITCHES = {"on": True, "true": True, "yes": True, "off": False, "false": False, "no": False}


def is_size(kind: Any) -> bool:
    """Whether an annotation is a `Size`, perhaps with more notes."""
    return any(isinstance(note, _Bytes) for note in get_args(kind)[1:])


REQUIRED: Any = MISSING
"""The default of what has none."""


class Misfit(Exception):
    """A value that is not what was declared: the place, the value, and what there may be."""


@dataclass(frozen=True, slots=True)
class Between:
    """Numbers from ``low`` to ``high``, both included."""

    low: int
    high: int


@dataclass(frozen=True, slots=True)
class _Bytes:
    """A number of bytes, also as text: ``"8G"``."""


Size = Annotated[int, _Bytes()]
"""A number of bytes, which people may write as ``"8G"``."""


@dataclass(frozen=True, slots=True)
class Field:
    """One thing that may be given: its annotation, its default (`REQUIRED`: none), what it means."""

    name: str
    kind: Any
    default: Any
    meaning: str

    @property
    def required(self) -> bool:
        """Whether it has to be given."""
        return self.default is REQUIRED


def fields_of(declaration: Any) -> tuple[Field, ...]:
    """What a dataclass, or a function, takes; a function's first parameter is its own affair.

    A parameter of a function that is a dataclass stands for the fields of that.

    >>> @dataclass
    ... class Disk:
    ...     '''A disk.
    ...
    ...     Parameters
    ...     ----------
    ...     blocks
    ...         How many there are.
    ...     '''
    ...     blocks: int = 8
    >>> fields_of(Disk)
    (Field(name='blocks', kind=<class 'int'>, default=8, meaning='How many there are.'),)
    """
    hints = get_type_hints(declaration, include_extras=True)
    found: list[Field] = []
    if is_dataclass(declaration):
        meanings = _meanings(cast(type, declaration))
        for each in fields(declaration):
            default = each.default if each.default_factory is MISSING else each.default_factory()
            found.append(Field(each.name, hints[each.name], default, meanings.get(each.name, "")))
        return tuple(found)
    for name, parameter in list(inspect.signature(declaration).parameters.items())[1:]:
        if is_dataclass(hints[name]):
            found += fields_of(hints[name])
            continue
        default = REQUIRED if parameter.default is parameter.empty else parameter.default
        found.append(Field(name, hints[name], default, _noted(hints[name])))
    return tuple(found)


def _noted(kind: Any) -> str:
    """The text that an annotation holds."""
    return next((note for note in get_args(kind)[1:] if isinstance(note, str)), "")


def _meanings(declared: type) -> dict[str, str]:
    """What the docstrings of a class and its bases say of each parameter."""
    meanings: dict[str, str] = {}
    for source in reversed(declared.__mro__[:-1]):
        _, _, section = (inspect.cleandoc(source.__doc__ or "")).partition("Parameters\n" + UNDERLINE)
        name = ""
        for line in section.splitlines()[1:]:
            if line.startswith(" "):
                meanings[name] = f"{meanings.get(name, '')} {line.strip()}".strip()
            else:
                name = line.strip()
                meanings.pop(name, None)
    return meanings


def summary_of(declaration: Any) -> str:
    """What the docstring says before the parameters, its paragraphs unwrapped."""
    text = inspect.cleandoc(declaration.__doc__ or "").partition("Parameters\n" + UNDERLINE)[0]
    return "\n\n".join(" ".join(part.split()) for part in text.strip().split("\n\n"))


def take(declared: Iterable[Field], given: Mapping[str, Any], at: str = "") -> dict[str, Any]:
    """What was ``given``, checked, by name; what was not is left out. Raises `Misfit`."""
    known = {each.name: each for each in declared}
    for name in given:
        if name not in known:
            raise Misfit(f"{_below(at, name)} means nothing: {_instead(str(name), known)}")
    for each in known.values():
        if each.required and each.name not in given:
            raise Misfit(f"{_below(at, each.name)} is missing: {each.meaning or 'it has no default'}")
    return {name: check(known[name].kind, value, _below(at, name)) for name, value in given.items()}


def build(declaration: Any, given: Mapping[str, Any], at: str = "") -> Any:
    """The dataclass that ``given`` describes. Raises `Misfit`."""
    return declaration(**take(fields_of(declaration), given, at))


def check(kind: Any, value: Any, at: str) -> Any:
    """``value`` as what ``kind`` says it is. Raises `Misfit`."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _check_narrowed(inner[0], inner[1:], value, at)
    if origin in (Union, UnionType):
        (other,) = (each for each in inner if each is not NoneType)
        return None if value is None else check(other, value, at)
    if origin is Literal:
        if value not in inner or isinstance(value, bool):
            raise _misfit(at, value, f"one of {', '.join(map(str, inner))}")
        return value
    if origin in (list, tuple):
        if not isinstance(value, list | tuple):
            raise _misfit(at, value, "a list")
        found = [check(inner[0], each, f"{at}[{number}]") for number, each in enumerate(value)]
        return found if origin is list else tuple(found)
    if origin is dict or is_dataclass(kind):
        if is_dataclass(kind) and isinstance(value, str):
            value = from_text(kind, value)
        if not isinstance(value, Mapping):
            raise _misfit(at, value, "a table")
        if origin is dict:
            return {str(name): check(inner[1], each, _below(at, name)) for name, each in value.items()}
        return build(kind, value, at)
    return _check_plain(kind, value, at)


def _check_narrowed(kind: Any, notes: tuple[Any, ...], value: Any, at: str) -> Any:
    allowed = ""
    for note in notes:
        if isinstance(note, _Bytes) and isinstance(value, str):
            try:
                value = parse_size(value[:SHOWN]) if value.strip() != "0" else 0
            except StorageError as error:
                raise Misfit(f"{at}: {error}") from error
        elif isinstance(note, Between):
            allowed = f"{note.low} to {note.high}"
    found = check(kind, value, at)
    for note in notes:
        if isinstance(note, Between) and found is not None and not note.low <= found <= note.high:
            raise _misfit(at, value, allowed)
    return found


PLAIN = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text, of characters that names can have",
}
"""The plain kinds, and what is said of each."""


def _check_plain(kind: Any, value: Any, at: str) -> Any:
    if kind is Any:
        return value
    if kind is float and type(value) is int:
        value = float(value) if abs(value) < 1 << 53 else value
    # A bool is an int to Python, and to nobody else.
    if type(value) is not kind or (kind is str and not _is_name(value)):
        raise _misfit(at, value, PLAIN[kind])
    return value


def _is_name(text: str) -> bool:
    """Whether the system takes ``text`` for a name of something: all that is given as text is passed on."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def from_text(kind: Any, text: str) -> Any:
    """The value that ``text`` is to ``kind``, as `check` wants it; what it is not stays text, for `check`.

    >>> from_text(int, "0x10"), from_text(bool, "on"), from_text(list[int], "1,2"), from_text(Size, "4K")
    (16, True, [1, 2], '4K')
    """
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return text if is_size(kind) else from_text(inner[0], text)
    if origin in (Union, UnionType):
        return from_text(next(each for each in inner if each is not NoneType), text)
    if origin is Literal:
        return next((each for each in inner if str(each) == text), text)
    if origin in (list, tuple):
        return [from_text(inner[0], part) for part in text.split(",")]
    if is_dataclass(kind):
        return _table(kind, text)
    try:
        if kind in (int, float):
            return int(text, 0) if kind is int else float(text)
        return (
            json.loads(text)
            if kind is Any or origin is dict
            else SWITCHES.get(text, text)
            if kind is bool
            else text
        )
    except ValueError:
        return text


def _table(kind: Any, text: str) -> Any:
    """A dataclass in one line: ``name=value,name=value``."""
    kinds = {each.name: each.kind for each in fields_of(kind)}
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(equals for _, equals, _ in pairs):
        return text
    return {name: from_text(kinds.get(name, str), value) for name, _, value in pairs}


def schema(kind: Any) -> dict[str, Any]:
    """The JSON schema of ``kind``."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        found = schema(inner[0])
        for note in inner[1:]:
            if isinstance(note, Between):
                found |= {"minimum": note.low, "maximum": note.high}
            elif isinstance(note, _Bytes):
                found = {"type": ["integer", "string"], "pattern": "^[0-9.]+ *[KMGTP]?(i?B)?$"}
        return found
    if origin in (Union, UnionType):
        (other,) = (each for each in inner if each is not NoneType)
        return {"anyOf": [schema(other), {"type": "null"}]}
    if origin is Literal:
        return {"enum": list(inner)}
    if origin in (list, tuple):
        return {"type": "array", "items": schema(inner[0])}
    if origin is dict:
        return {"type": "object", "additionalProperties": schema(inner[1])}
    if is_dataclass(kind):
        return schema_of(fields_of(kind))
    names = {bool: "boolean", int: "integer", float: "number", str: "string"}
    return {"type": names[kind]} if kind in names else {}


def schema_of(declared: Iterable[Field]) -> dict[str, Any]:
    """The JSON schema of an object with these members."""
    declared = tuple(declared)
    members = {}
    for each in declared:
        member = schema(each.kind) | ({"description": each.meaning} if each.meaning else {})
        if not each.required and isinstance(each.default, bool | int | float | str):
            member["default"] = each.default
        members[each.name] = member
    required = [each.name for each in declared if each.required]
    return {"type": "object", "properties": members, "required": required, "additionalProperties": False}


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that ``name`` may have been meant to be."""
    return next(iter(get_close_matches(name, list(known), 1, 0.6)), None)


def _instead(name: str, known: Iterable[str]) -> str:
    near = nearest(name[:SHOWN], known)
    return f"did you mean {near}?" if near else f"there are {', '.join(known)}"


def _below(at: str, name: Any) -> str:
    text = _shortened(str(name))
    return f"{at}.{text}" if at else text


def _misfit(at: str, value: Any, allowed: str) -> Misfit:
    return Misfit(f"{at} is {_shortened(repr(value))}: it is {allowed}")


def _shortened(text: str) -> str:
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."
