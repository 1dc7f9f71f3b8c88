"""A disk named in one word, as on the command line: ``ram:256M``, ``null:1T``, ``disk.img,size=1G``."""

import re

from outboard.errors import StorageError
from outboard.storage.base import Storage
from outboard.storage.null import NullStorage
from outboard.storage.opening import open_file
from outboard.storage.ram import RamStorage
from outboard.storage.sizes import parse_size
from outboard.storage.volatile import VolatileStorage

_OPTION = re.compile(r"(.*),(size|direct|share)=(.*)", re.DOTALL)


def open_storage(spec: str) -> Storage:
    r"""Open what ``spec`` names.

    ========================  =====================================================================
    ``ram:SIZE``              memory, allocated as it is written, gone with the process
    ``null:SIZE``             reads give zeros, writes vanish
    ``PATH``                  an existing file or block device
    ``PATH,size=SIZE``        the same, created (sparse) if it is not there
    ``PATH,direct=on``        the same, past the page cache (O_DIRECT)
    ``PATH,share=on``         the same, and another process may have it too: for live migration
    ``volatile:SPEC``         any of these, with a write cache that a power cut loses
    ========================  =====================================================================

    A path that holds a colon or a comma is written ``file:PATH``, or ``./PATH``; its last ``,size=``,
    ``,direct=`` and ``,share=`` count, and may be together. Raises `StorageError` with what to do.

    >>> disk = open_storage("ram:1M")
    >>> disk.write(4096, b"hello")
    >>> disk.read(4094, 9)
    b'\x00\x00hello\x00\x00'
    >>> disk.close()
    """
    kind, colon, rest = spec.partition(":")
    if colon and kind == "ram":
        return RamStorage(parse_size(rest))
    if colon and kind == "null":
        return NullStorage(parse_size(rest))
    if colon and kind == "volatile":
        if rest.startswith("volatile:"):
            raise StorageError(f"{spec[:60]!r} is a write cache in front of another: one is enough")
        return VolatileStorage(open_storage(rest))
    if colon and kind == "file":
        spec = rest
    elif colon and kind.isalnum() and "/" not in kind:
        raise StorageError(
            f"there is no storage of kind {kind!r}: use ram:SIZE, null:SIZE, volatile:SPEC or a path "
            f"(file:{spec} if that is one)"
        )
    path, options = _options(spec)
    if not path:
        raise StorageError(f"{spec!r} names no file: write ram:256M, null:1T or a path such as disk.img")
    size = parse_size(options["size"]) if "size" in options else None
    return open_file(path, size, direct=_switch(options, "direct"), share=_switch(options, "share"))


def _switch(options: dict[str, str], name: str) -> bool:
    value = options.get(name, "off")
    if value not in ("on", "off"):
        raise StorageError(f"{name}={value} means nothing: write {name}=on or {name}=off")
    return value == "on"


def _options(spec: str) -> tuple[str, dict[str, str]]:
    """The path, and what stands behind it; an option that is there twice is part of the path."""
    options: dict[str, str] = {}
    while (found := _OPTION.fullmatch(spec)) and found[2] not in options:
        spec, options[found[2]] = found[1], found[3]
    return spec, options
