"""A device's state as bytes: named sections, each raw bytes or JSON.

What the migration stream of a device is made of (`outboard.device_state`). The layout, little-endian:

=======  ====================================================================
8 bytes  ``outboard``
u32      the format's version, 1
u32      how many sections follow
=======  ====================================================================

and for each section u16 length of its name, u16 kind (0: raw bytes, 1: JSON), u32 0, u64 length of its
content, the name in UTF-8, the content. A stream is one or more of these blocks, one after the other; of two
sections with the same name the later one counts.
"""

import json
from collections.abc import Mapping
from struct import Struct
from typing import Any

from outboard.errors import StateError

Value = Any
"""What a section holds: bytes, or anything JSON can say (None, bool, int, float, str, list, dict)."""

MAGIC = b"outboard"
FORMAT = 1
HEAD = Struct("<8sII")
SECTION = Struct("<HHIQ")
RAW, JSON = 0, 1


def encode(sections: Mapping[str, Value]) -> bytes:
    r"""One block of sections.

    >>> block = encode({"registers": {"status": 3}, "memory": bytes(2)})
    >>> decode(block)
    {'registers': {'status': 3}, 'memory': b'\x00\x00'}

    Raises StateError for a value that is neither bytes nor JSON.
    """
    parts = [HEAD.pack(MAGIC, FORMAT, len(sections))]
    for name, value in sections.items():
        if isinstance(value, bytes | bytearray | memoryview):
            kind, content = RAW, bytes(value)
        else:
            try:
                kind, content = JSON, json.dumps(value, allow_nan=False, separators=(",", ":")).encode()
            except (TypeError, ValueError) as error:
                raise StateError(f"section {name!r} of a state is neither bytes nor JSON: {error}") from error
        label = name.encode()
        parts += [SECTION.pack(len(label), kind, 0, len(content)), label, content]
    return b"".join(parts)


def decode(stream: bytes | bytearray) -> dict[str, Value]:
    """The sections of all the blocks in ``stream``. Raises StateError if it is anything else."""
    sections: dict[str, Value] = {}
    at = 0
    while at < len(stream) or not at:
        if len(stream) - at < HEAD.size:
            raise _cut(at, stream)
        magic, version, count = HEAD.unpack_from(stream, at)
        if magic != MAGIC or version != FORMAT:
            raise StateError(f"at byte {at} of a state there is {magic!r}, format {version}: not ours")
        at += HEAD.size
        for _ in range(count):
            name, value, at = _section(stream, at)
            sections[name] = value
    return sections


def _section(stream: bytes | bytearray, at: int) -> tuple[str, Value, int]:
    if len(stream) - at < SECTION.size:
        raise _cut(at, stream)
    label_size, kind, _, size = SECTION.unpack_from(stream, at)
    start = at + SECTION.size + label_size
    end = start + size
    if end > len(stream):
        raise _cut(at, stream)
    content = bytes(stream[start:end])
    try:
        name = bytes(stream[at + SECTION.size : start]).decode()
        if kind not in (RAW, JSON):
            raise ValueError(f"its kind is {kind}")
        return name, content if kind == RAW else json.loads(content), end
    except (ValueError, RecursionError) as error:
        raise StateError(f"the section at byte {at} of a state cannot be read: {error}") from error


def _cut(at: int, stream: bytes | bytearray) -> StateError:
    return StateError(f"a state of {len(stream)} bytes breaks off in what begins at byte {at}")
