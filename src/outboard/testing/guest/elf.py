"""What an ELF program asks of its loader: interpreter and shared libraries (System V gABI, chapter 5).

Only little-endian 64-bit files are read, as everything a guest here runs is x86-64.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

_MAGIC = b"\x7fELF\x02\x01"
_FILE_HEADER = struct.Struct("<16x2xHI Q Q Q I HHH 6x")
_PROGRAM_HEADER = struct.Struct("<II Q Q Q Q Q Q")
_DYNAMIC = struct.Struct("<qQ")
_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NULL, _DT_NEEDED, _DT_STRTAB = 0, 1, 5


@dataclass(frozen=True, slots=True)
class Needs:
    """What a program or library needs: sonames in order, and the loader it names (None for a library)."""

    libraries: tuple[str, ...] = ()
    interpreter: str | None = None


def needs(image: bytes) -> Needs | None:
    """What the ELF file ``image`` asks for, or None if it is no 64-bit little-endian ELF file.

    A file whose tables point outside itself counts as asking for nothing.
    """
    if not image.startswith(_MAGIC) or len(image) < _FILE_HEADER.size:
        return None
    try:
        return _read(image)
    except (struct.error, ValueError, OverflowError):
        return Needs()


def _read(image: bytes) -> Needs:
    _, _, _, table, _, _, _, entry_size, count = _FILE_HEADER.unpack_from(image)
    segments = [_PROGRAM_HEADER.unpack_from(image, table + entry_size * i) for i in range(count)]
    loads = [(vaddr, offset, size) for kind, _, offset, vaddr, _, size, *_ in segments if kind == _PT_LOAD]

    def file_offset(address: int) -> int:
        for vaddr, offset, size in loads:
            if vaddr <= address < vaddr + size:
                return int(address - vaddr + offset)
        raise ValueError(f"no segment holds {address:#x}")

    interpreter, names, strings = None, [], 0
    for kind, _, offset, _, _, size, *_ in segments:
        if kind == _PT_INTERP:
            interpreter = _string(image, offset)
        elif kind == _PT_DYNAMIC:
            for position in range(offset, offset + size, _DYNAMIC.size):
                tag, value = _DYNAMIC.unpack_from(image, position)
                if tag == _DT_NULL:
                    break
                if tag == _DT_NEEDED:
                    names.append(value)
                elif tag == _DT_STRTAB:
                    strings = file_offset(value)
    return Needs(tuple(_string(image, strings + name) for name in names), interpreter)


def _string(image: bytes, offset: int) -> str:
    return image[offset : image.index(b"\0", offset)].decode()


def closure(programs: Iterable[Path], available: Mapping[str, Path]) -> Iterator[Path]:
    """The shared libraries, and the loaders, that ``programs`` need, each once.

    ``available`` gives the file for each file name (``libc.so.6``); a name it lacks is passed over, as
    a program may be fine without it.
    """
    seen: set[str] = set()
    waiting = list(programs)
    while waiting:
        if (wanted := needs(waiting.pop().read_bytes())) is None:
            continue
        loader = (Path(wanted.interpreter).name,) if wanted.interpreter else ()
        for name in (*wanted.libraries, *loader):
            if name not in seen and name in available:
                seen.add(name)
                waiting.append(available[name])
                yield available[name]
