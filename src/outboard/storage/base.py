"""What a disk is to a controller: a run of bytes that can be read, written, flushed and discarded."""

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

from outboard.errors import StorageError

Data = bytes | bytearray | memoryview
"""What may be written: any of these, read once and never kept."""


class Storage(Protocol):
    """What is behind a disk.

    Offsets and sizes are bytes. A range outside ``0..size`` raises `StorageError`; so does a failure of
    what is below, with its errno. A read that comes after a write sees it; only `flush` makes it durable.

    An attribute ``fast`` (`outboard.storage.fast`) may say what compiled code can do without these methods.
    """

    size: int
    """Capacity in bytes."""

    discard_zeroes: bool
    """Whether a discarded range is certain to read as zeros."""

    def read(self, offset: int, size: int) -> bytes:
        """Return ``size`` bytes from ``offset``."""

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` (contiguous bytes, writable) from ``offset``."""

    def write(self, offset: int, data: Data) -> None:
        """Write all of ``data`` at ``offset``."""

    def flush(self) -> None:
        """Return when everything written before is durable."""

    def discard(self, offset: int, size: int) -> None:
        """The content of the range is no longer needed: give its space back where that is possible."""

    def write_zeroes(self, offset: int, size: int) -> None:
        """Make the range read as zeros, without moving data where that is possible."""

    def close(self) -> None:
        """Let go of what is below. Closing twice is harmless."""


@runtime_checkable
class Resizable(Protocol):
    """What a `Storage` has whose size can be changed."""

    def resize(self, size: int) -> None:
        """Have ``size`` bytes from now on; what is new reads as zeros. Raises `StorageError`.

        Nobody else calls a method meanwhile, and compiled code has let go: ``fast`` may be another one.
        """


def check_range(storage: Storage, offset: int, size: int) -> None:
    """Raise `StorageError` unless ``offset..offset+size`` lies within ``storage``."""
    if offset < 0 or size < 0 or offset + size > storage.size:
        raise StorageError(
            f"bytes {offset:#x}..{offset + size:#x} are outside a storage of {storage.size:#x} bytes"
        )


def layers(storage: Storage) -> Iterator[Storage]:
    """``storage``, and what is below it where it is a filter: what its ``below`` says, down to the medium."""
    each: Storage | None = storage
    while each is not None:
        yield each
        each = getattr(each, "below", None)


def persist(storage: Storage, offset: int, size: int) -> None:
    """Make what was written to a range durable; with all the rest of ``storage``, where it knows no less.

    A storage that can do it alone has a method of this name.
    """
    only = getattr(storage, "persist", None)
    if only is not None:
        only(offset, size)
    else:
        storage.flush()
