"""Guest memory as the device sees it: I/O virtual addresses (IOVA) to bytes.

Follows DMA_MAP and DMA_UNMAP of vfio-user. A range mapped with a file descriptor is shared memory:
reading and writing it costs a copy. Each file is mapped into this process once, however many ranges
of it the client maps (QEMU maps the same file hundreds of times while firmware runs). A range mapped
without a descriptor is reached by messages to the client, through `GuestMemory.remote`.
"""

import bisect
import errno
import fcntl
import logging
import mmap
import os
import weakref
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Protocol

from outboard.errors import DmaForbidden, DmaUnmapped, RequestRefused

log = logging.getLogger(__name__)

ADDRESS_SPACE = 1 << 64
MAX_MAPS = 65535
"""Ranges a client may map at once: what VERSION announces, and QEMU accepts no more."""
MAX_MESSAGE_TRANSFER = 64 << 20
"""Bytes one `read` or `write` moves by message: such ranges may claim any size, and reading allocates."""


@dataclass(frozen=True, slots=True)
class Mapping:
    """A range of guest memory: `size` bytes at IOVA `address`.

    `readable` and `writable` are the device's rights. With `fd`, the range is the file's bytes from
    `offset` on; without, it is reached by messages.
    """

    address: int
    size: int
    readable: bool = True
    writable: bool = True
    fd: int | None = None
    offset: int = 0

    def __str__(self) -> str:
        rights = ("r" if self.readable else "-") + ("w" if self.writable else "-")
        return f"{self.size:#x} bytes at {self.address:#x} ({rights})"


class RemoteMemory(Protocol):
    """Reaches the client's memory by messages (DMA_READ, DMA_WRITE)."""

    def read(self, address: int, count: int) -> bytes:
        """The `count` bytes at IOVA `address`."""

    def write(self, address: int, data: bytes) -> None:
        """Stores `data` at IOVA `address`."""


class _File:
    """One file, mapped whole and once; lives while a range of it is mapped."""

    __slots__ = ("bytes", "key", "length", "ranges")

    def __init__(self, key: tuple[int, int, bool], fd: int, length: int) -> None:
        self.key = key
        self.length = length
        self.ranges = 0
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if key[2] else 0)
        self.bytes = mmap.mmap(fd, length, mmap.MAP_SHARED, protection)


class _Range:
    """A mapped range, its file and the views handed out over it."""

    __slots__ = ("base", "end", "file", "mapping", "start", "views")

    def __init__(self, mapping: Mapping, file: _File | None) -> None:
        self.mapping = mapping
        self.start = mapping.address
        self.end = mapping.address + mapping.size
        self.file = file
        self.base = mapping.offset - mapping.address
        self.views: list[weakref.ref[memoryview]] = []


class GuestMemory:
    """The ranges a client has mapped, and every access a device makes to them.

    ``enabled`` is the device's bus-master switch: while it is False each access raises `DmaForbidden`.
    ``remote`` serves ranges that came without a descriptor.

    >>> memory = GuestMemory()
    >>> fd = os.memfd_create("guest")
    >>> os.truncate(fd, 8192)
    >>> memory.map(Mapping(address=0x10000, size=8192, fd=fd))
    >>> memory.write(0x10010, b"hello")
    >>> memory.read(0x10010, 5)
    b'hello'
    >>> memory.read(0x13000, 1)
    Traceback (most recent call last):
    ...
    outboard.errors.DmaUnmapped: nothing is mapped at 0x13000 (reading 0x1 bytes at 0x13000)
    >>> memory.unmap_all()
    """

    def __init__(self) -> None:
        self.enabled = True
        self.remote: RemoteMemory | None = None
        self._ranges: list[_Range] = []
        self._starts: list[int] = []
        self._files: dict[tuple[int, int, bool], _File] = {}

    @property
    def maps(self) -> tuple[Mapping, ...]:
        """What is mapped now, by rising address; the descriptors are not kept, so `fd` is None."""
        return tuple(entry.mapping for entry in self._ranges)

    @property
    def live_views(self) -> int:
        """How many views handed out by `view` are still in use."""
        return sum(_usable(ref()) for entry in self._ranges for ref in entry.views)

    def map(self, mapping: Mapping) -> None:
        """Adds a range. Takes `mapping.fd` over: it is closed here, whatever happens.

        Mapping the same range of the same file again changes nothing. Raises RequestRefused: EINVAL for
        a size of 0, a range past 2^64, a descriptor that cannot be mapped or is shorter than the range;
        EEXIST for an overlap; ENOSPC for too many ranges.
        """
        try:
            file = self._check(mapping)
        finally:
            if mapping.fd is not None:
                with suppress(OSError):
                    os.close(mapping.fd)
        entry = _Range(replace(mapping, fd=None), file)
        at = bisect.bisect_right(self._starts, mapping.address)
        for other in self._ranges[max(at - 1, 0) : at + 1]:
            if other.start < entry.end and entry.start < other.end:
                self._release(file)
                if other.mapping == entry.mapping and other.file is file:
                    return
                raise RequestRefused(
                    f"cannot map {mapping}: it overlaps {other.mapping}; unmap that first",
                    errno=errno.EEXIST,
                )
        if len(self._ranges) >= MAX_MAPS:
            self._release(file)
            raise RequestRefused(
                f"cannot map {mapping}: {MAX_MAPS} ranges are mapped already", errno=errno.ENOSPC
            )
        if file:
            file.ranges += 1
        self._starts.insert(at, entry.start)
        self._ranges.insert(at, entry)

    def unmap(self, address: int, size: int) -> Mapping:
        """Removes the range that is exactly `size` bytes at `address`, and kills the views over it.

        Raises RequestRefused (ENOENT) if no such range is mapped.
        """
        at = bisect.bisect_left(self._starts, address)
        if at == len(self._ranges) or self._starts[at] != address or self._ranges[at].mapping.size != size:
            raise RequestRefused(
                f"cannot unmap {size:#x} bytes at {address:#x}: no range was mapped like that",
                errno=errno.ENOENT,
            )
        del self._starts[at]
        entry = self._ranges.pop(at)
        _kill_views(entry)
        if entry.file:
            entry.file.ranges -= 1
            self._release(entry.file)
        return entry.mapping

    def unmap_all(self) -> None:
        """Removes every range."""
        for mapping in self.maps:
            self.unmap(mapping.address, mapping.size)

    def view(self, address: int, size: int, *, writable: bool = False) -> memoryview:
        """The guest's own bytes, without a copy; dies (ValueError on touch) when the range is unmapped.

        The view has to lie inside one range that came with a descriptor. Take no slice of it that
        outlives it: only the view itself is taken back. The guest may change the bytes at any time:
        copy before checking. Raises DmaUnmapped and DmaForbidden.
        """
        entry = self._find(address, size, writable, "viewing")
        if entry.file is None or address + size > entry.end:
            reason = "spans two ranges" if entry.file else "is reached by messages only"
            raise DmaUnmapped(
                f"{size:#x} bytes at {address:#x} cannot be viewed: it {reason}; read() or write() it",
                address=address,
                size=size,
            )
        start = address + entry.base
        view = memoryview(entry.file.bytes)[start : start + size]
        if not writable:
            view = view.toreadonly()
        if len(entry.views) > 64:
            entry.views = [ref for ref in entry.views if _usable(ref())]
        entry.views.append(weakref.ref(view))
        return view

    def read(self, address: int, size: int) -> bytes:
        """A copy of `size` bytes at IOVA `address`; may cross adjacent ranges.

        Raises DmaUnmapped if any byte is not mapped, DmaForbidden if the device may not read it, and
        what `remote` raises for ranges reached by messages.
        """
        entry = self._find(address, size, False, "reading")
        if address + size <= entry.end and entry.file is not None:
            start = address + entry.base
            return entry.file.bytes[start : start + size]
        parts = [
            part.file.bytes[at + part.base : at + part.base + count]
            if part.file
            else self._require_remote(at, count).read(at, count)
            for part, at, count in self._split(address, size, False, "reading")
        ]
        return b"".join(parts)

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Stores `data` at IOVA `address`; may cross adjacent ranges. Raises as `read` does.

        Nothing is stored unless all of it is mapped and writable.
        """
        size = len(data)
        entry = self._find(address, size, True, "writing")
        if address + size <= entry.end and entry.file is not None:
            start = address + entry.base
            entry.file.bytes[start : start + size] = data
            return
        source = memoryview(data)
        done = 0
        for part, at, count in list(self._split(address, size, True, "writing")):
            piece = source[done : done + count]
            if part.file:
                part.file.bytes[at + part.base : at + part.base + count] = piece
            else:
                self._require_remote(at, count).write(at, bytes(piece))
            done += count

    def _find(self, address: int, size: int, write: bool, doing: str) -> _Range:
        """The range in which `address` lies, with the device's right to it checked."""
        at = bisect.bisect_right(self._starts, address) - 1
        if at < 0 or address >= self._ranges[at].end:
            raise DmaUnmapped(
                f"nothing is mapped at {address:#x} ({doing} {size:#x} bytes at {address:#x})",
                address=address,
                size=size,
            )
        entry = self._ranges[at]
        if not self.enabled:
            raise DmaForbidden(
                f"{doing} {size:#x} bytes at {address:#x}: the guest has not enabled bus mastering"
                " (bit 2 of the PCI command register)",
                address=address,
                size=size,
            )
        if not (entry.mapping.writable if write else entry.mapping.readable):
            raise DmaForbidden(
                f"{doing} {size:#x} bytes at {address:#x} is not allowed: mapped are {entry.mapping}",
                address=address,
                size=size,
            )
        return entry

    def _split(self, address: int, size: int, write: bool, doing: str) -> Iterator[tuple[_Range, int, int]]:
        """The pieces (range, address, count) of an access, all of them checked before the first is given."""
        pieces: list[tuple[_Range, int, int]] = []
        at, left = address, size
        while left or not pieces:
            entry = self._find(at, left, write, doing)
            count = min(left, entry.end - at)
            if entry.file is None and size > MAX_MESSAGE_TRANSFER:
                raise DmaForbidden(
                    f"{doing} {size:#x} bytes at {address:#x}: more than {MAX_MESSAGE_TRANSFER:#x} bytes"
                    " do not go by message at once; split the access",
                    address=address,
                    size=size,
                )
            pieces.append((entry, at, count))
            at += count
            left -= count
        return iter(pieces)

    def _require_remote(self, address: int, size: int) -> RemoteMemory:
        if self.remote is None:
            raise DmaUnmapped(
                f"{size:#x} bytes at {address:#x} were mapped without a descriptor and no client serves"
                " DMA by message; give the VMM shared memory (QEMU: a memory-backend-memfd with share=on)",
                address=address,
                size=size,
            )
        return self.remote

    def _check(self, mapping: Mapping) -> _File | None:
        """The file behind a mapping, mapped; refuses what cannot be."""
        if mapping.size <= 0 or mapping.address < 0 or mapping.address + mapping.size > ADDRESS_SPACE:
            raise RequestRefused(f"cannot map {mapping}: the size is 0 or the range ends past 2^64")
        if mapping.fd is None:
            return None
        try:
            status = os.fstat(mapping.fd)
            access = fcntl.fcntl(mapping.fd, fcntl.F_GETFL) & os.O_ACCMODE
        except OSError as error:
            raise RequestRefused(f"cannot map {mapping}: bad descriptor ({error.strerror})") from error
        # A descriptor shorter than its range would kill us (SIGBUS) at the first touch of the missing part.
        if mapping.offset < 0 or mapping.offset + mapping.size > status.st_size:
            raise RequestRefused(
                f"cannot map {mapping}: its descriptor has {status.st_size:#x} bytes,"
                f" the range ends at {mapping.offset + mapping.size:#x} of it"
            )
        if mapping.writable and access != os.O_RDWR:
            raise RequestRefused(
                f"cannot map {mapping}: its descriptor is not open for writing", errno=errno.EACCES
            )
        key = (status.st_dev, status.st_ino, access == os.O_RDWR)
        file = self._files.get(key)
        if file is None or file.length < mapping.offset + mapping.size:
            try:
                file = _File(key, mapping.fd, status.st_size)
            except (OSError, ValueError, OverflowError) as error:
                raise RequestRefused(
                    f"cannot map {mapping}: its descriptor cannot be mapped ({error})"
                ) from error
            self._files[key] = file
        return file

    def _release(self, file: _File | None) -> None:
        """Unmaps a file from which no range is left."""
        if file is None or file.ranges:
            return
        if self._files.get(file.key) is file:
            del self._files[file.key]
        try:
            file.bytes.close()
        except BufferError:
            log.error("a slice of a DMA view outlives its range: the memory stays mapped until it is dropped")


def _usable(view: memoryview | None) -> bool:
    """Whether a view is still held by someone and not released."""
    if view is None:
        return False
    try:
        return view.nbytes >= 0
    except ValueError:
        return False


def _kill_views(entry: _Range) -> None:
    for ref in entry.views:
        if (view := ref()) is not None:
            try:
                view.release()
            except BufferError:
                log.error(
                    "something (an array?) still uses a DMA view of %s, which the client has unmapped",
                    entry.mapping,
                )
