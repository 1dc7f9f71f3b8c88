"""A disk named in one word, as on the command line: ``ram:256M``, ``null:1T``, ``disk.img,size=1G``."""

from outboard.errors import StorageError
from outboard.storage.base import Storage
from outboard.storage.file import RamStorage, open_file
from outboard.storage.null import NullStorage
from outboard.storage.sizes import parse_size


def open_storage(spec: str) -> Storage:
    r"""Open what ``spec`` names.

    ========================  =====================================================================
    ``ram:SIZE``              memory, allocated as it is written, gone with the process
    ``null:SIZE``             reads give zeros, writes vanish
    ``PATH``                  an existing file or block device
    ``PATH,size=SIZE``        the same, created (sparse) if it is not there
    ========================  =====================================================================

    A path that holds a colon or a comma is written ``file:PATH``, or ``./PATH``; its last ``,size=``
    counts. Raises `StorageError` with what to do.

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
    if colon and kind == "file":
        spec = rest
    elif colon and kind.isalnum() and "/" not in kind:
        raise StorageError(
            f"there is no storage of kind {kind!r}: use ram:SIZE, null:SIZE or a path "
            f"(file:{spec} if that is one)"
        )
    path, comma, size = spec.rpartition(",size=")
    if not comma:
        path = spec
    if not path:
        raise StorageError(f"{spec!r} names no file: write ram:256M, null:1T or a path such as disk.img")
    return open_file(path, parse_size(size) if comma else None)
