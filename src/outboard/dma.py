"""Guest memory as the device sees it: I/O virtual addresses (IOVA) to bytes.

Follows DMA_MAP and DMA_UNMAP of vfio-user. A range mapped with a file descriptor is shared memory:
reading and writing it costs a copy. Each file is mapped into this process once, however many ranges
of it the client maps (QEMU maps the same file hundreds of times while firmware runs). A range mapped
without a descriptor is reached by messages to the client, through `GuestMemory.remote`, and one whose
client asks for file I/O by system calls. Compiled code reaches guest memory through
`GuestMemory.translation`, which has the mapped ranges alone.
"""

import bisect
import errno
import logging
import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import Protocol

from outboard.dirty_pages import PAGE, Report
from outboard.errors import DmaForbidden, DmaUnmapped, RequestRefused
from outboard.guest_files import GuestFile, GuestFiles, UnmappedFile
from outboard.guest_ranges import Mapping as Mapping
from outboard.guest_ranges import Range, View
from outboard.native import guard
from outboard.native.translation import READ, WRITE, Translation

log = logging.getLogger(__name__)

ADDRESS_SPACE = 1 << 64
MAX_MAPS = 65535
"""Ranges a client may map at once: what VERSION announces, and QEMU accepts no more."""
MAX_MESSAGE_TRANSFER = 64 << 20
"""Bytes one `read` or `write` moves where memory is not mapped: it claims any size, and reading allocates."""


class RemoteMemory(Protocol):
    """Reaches the client's memory by messages (DMA_READ, DMA_WRITE)."""

    def read(self, address: int, count: int) -> bytes:
        """The `count` bytes at IOVA `address`."""

    def write(self, address: int, data: bytes) -> None:
        """Stores `data` at IOVA `address`."""


class GuestMemory:
    """The ranges a client has mapped, and every access a device makes to them.

    ``enabled`` is the device's bus-master switch: while it is False each access raises `DmaForbidden`; so it
    does while ``stopped``, by migration.
    ``remote`` serves ranges that came without a descriptor. ``users`` are those who look addresses up
    in threads of their own: each gives a context in which it uses no guest memory (`Poller.paused`), and
    whatever is mapped, unmapped, allowed or forbidden changes inside of all of them. While the client
    logs dirty pages, they find the addresses they keep anew whenever such a context ends: one found to be
    written to counts as written.

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
        self.remote: RemoteMemory | None = None
        self.users: list[Callable[[], AbstractContextManager[None]]] = []
        self.logging = False
        self._enabled = True
        self._stopped = False
        self._ranges: list[Range] = []
        self._starts: list[int] = []
        self._files = GuestFiles()
        self._translation: Translation | None = None
        self._faults = guard.total()

    @property
    def enabled(self) -> bool:
        """Whether the device may reach guest memory at all."""
        return self._enabled

    @enabled.setter
    def enabled(self, enabled: bool) -> None:
        self._switch(enabled, self._stopped)

    @property
    def stopped(self) -> bool:
        """Whether the device is stopped, to be migrated: it reaches no memory, whatever the guest says."""
        return self._stopped

    @stopped.setter
    def stopped(self, stopped: bool) -> None:
        self._switch(self._enabled, stopped)

    def _switch(self, enabled: bool, stopped: bool) -> None:
        if (enabled, stopped) == (self._enabled, self._stopped):
            return
        with self.unused():
            self._enabled, self._stopped = enabled, stopped
            if self._translation is not None:
                self._translation.enabled = enabled and not stopped

    @property
    def translation(self) -> Translation:
        """IOVA to addresses of this process, for compiled code; up to date from its first use on.

        It has the ranges that are mapped here and end below 2^63, and finds nothing while `enabled`
        is False. Whoever uses it in a thread belongs into `users`.
        """
        if self._translation is None:
            self._translation = Translation()
            self._translation.enabled = self._enabled and not self._stopped
            for entry in self._ranges:
                self._translate(entry)
        return self._translation

    @property
    def maps(self) -> tuple[Mapping, ...]:
        """What is mapped now, by rising address; the descriptors are not kept, so `fd` is None."""
        return tuple(entry.mapping for entry in self._ranges)

    @property
    def live_views(self) -> int:
        """How many views handed out by `view` are still in use."""
        return sum(len(entry.live_views()) for entry in self._ranges)

    @property
    def torn(self) -> tuple[Mapping, ...]:
        """The ranges whose file the client has shrunk, as an access found: what is missing reads as zeros."""
        return tuple(entry.mapping for entry in self._ranges if entry.file and entry.file.guarded.hits)

    def map(self, mapping: Mapping) -> None:
        """Adds a range. Takes `mapping.fd` over: it is closed here, whatever happens.

        Mapping the same range of the same file again changes nothing. Raises RequestRefused: EINVAL for
        a size of 0, a range past 2^64, a descriptor that cannot be used or is shorter than the range;
        EEXIST for an overlap; ENOSPC for too many ranges.
        """
        try:
            backing = self._open(mapping)
        finally:
            if mapping.fd is not None:
                with suppress(OSError):
                    os.close(mapping.fd)
        entry = Range(replace(mapping, fd=None), backing)
        at = bisect.bisect_right(self._starts, mapping.address)
        for other in self._ranges[max(at - 1, 0) : at + 1]:
            if other.start < entry.end and entry.start < other.end:
                self._files.release(backing)
                if other.mapping == entry.mapping and other.backing is backing:
                    return
                raise RequestRefused(
                    f"cannot map {mapping}: it overlaps {other.mapping}; unmap that first",
                    errno=errno.EEXIST,
                )
        if len(self._ranges) >= MAX_MAPS:
            self._files.release(backing)
            raise RequestRefused(
                f"cannot map {mapping}: {MAX_MAPS} ranges are mapped already", errno=errno.ENOSPC
            )
        if backing:
            backing.ranges += 1
        with self.unused():
            self._starts.insert(at, entry.start)
            self._ranges.insert(at, entry)
            self._translate(entry)
            if self.logging:
                try:
                    self._log(entry)
                except RequestRefused:
                    self._remove(at)
                    raise

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
        with self.unused():
            return self._remove(at)

    def unmap_all(self) -> None:
        """Removes every range."""
        with self.unused():
            while self._ranges:
                self._remove(len(self._ranges) - 1)

    def view(self, address: int, size: int, *, writable: bool = False) -> memoryview:
        """The guest's own bytes, without a copy; dies (ValueError on touch) when the range is unmapped.

        The view has to lie inside one range that is mapped here. Take no slice of it that
        outlives it: only the view itself is taken back. The guest may change the bytes at any time:
        copy before checking. Raises DmaUnmapped and DmaForbidden.
        """
        entry = self._find(address, size, writable, "viewing")
        if entry.file is None or address + size > entry.end:
            means = "file I/O" if entry.in_place else "messages"
            reason = "spans two ranges" if entry.file else f"is reached by {means} only"
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
            entry.views = entry.live_views()
        entry.views.append(View(weakref.ref(view), address, size if writable else 0))
        if writable and entry.dirty is not None:
            entry.dirty.mark(address, size)
        return view

    def read(self, address: int, size: int) -> bytes:
        """A copy of `size` bytes at IOVA `address`; may cross adjacent ranges.

        Raises DmaUnmapped if any byte is not mapped, DmaForbidden if the device may not read it, DmaError
        if file I/O fails, and what `remote` raises for ranges reached by messages.
        """
        entry = self._find(address, size, False, "reading")
        if address + size <= entry.end and entry.file is not None:
            start = address + entry.base
            return entry.file.bytes[start : start + size]
        parts = [
            part.file.bytes[at + part.base : at + part.base + count]
            if part.file
            else self._reach(part, at, count).read(at, count)
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
            if entry.dirty is not None:
                entry.dirty.mark(address, size)
            return
        source = memoryview(data)
        done = 0
        for part, at, count in list(self._split(address, size, True, "writing")):
            piece = source[done : done + count]
            try:
                if part.file:
                    part.file.bytes[at + part.base : at + part.base + count] = piece
                else:
                    self._reach(part, at, count).write(at, bytes(piece))
            finally:  # what fails may have stored a part
                if part.dirty is not None:
                    part.dirty.mark(at, count)
            done += count

    def start_log(self) -> None:
        """From now on each page that the device writes is remembered, until `take_dirty` has reported it.

        What goes by message is left out: there the client itself writes. Raises RequestRefused (ENOMEM) if
        there is no memory to remember it in.
        """
        with self.unused():
            try:
                for entry in self._ranges:
                    self._log(entry)
            except RequestRefused:
                self._forget_log()
                raise
            self.logging = True

    def stop_log(self) -> None:
        """Pages are remembered no longer, and those that were are forgotten."""
        with self.unused():
            self.logging = False
            self._forget_log()

    def take_dirty(self, address: int, size: int, page_size: int = PAGE) -> bytes:
        """What the device has written since the last time, of ``size`` bytes at IOVA ``address``.

        A bitmap in whole 64-bit words, one bit for each ``page_size`` bytes (4096 or more), the first page in
        bit 0. It may name too many pages, never too few.
        """
        report = Report(address, size, page_size)
        taken = []
        with self.unused():
            for entry in self._ranges:
                if entry.dirty is not None and entry.start < address + size and address < entry.end:
                    taken.append(entry.dirty.take(address, address + size))
                    entry.mark_views()
        for start, pages in taken:
            report.add(start, pages)
        return report.bitmap

    def _forget_log(self) -> None:
        for entry in self._ranges:
            entry.dirty = None
            if self._translation is not None:
                self._translation.log(entry.start, 0)

    def _log(self, entry: Range) -> None:
        entry.remember()
        if entry.dirty is not None and self._translation is not None and entry.file:
            self._translation.log(entry.start, entry.dirty.address)

    @contextmanager
    def unused(self) -> Iterator[None]:
        """Until the block is left nobody uses guest memory in another thread; may be nested."""
        with ExitStack() as users:
            for user in self.users:
                users.enter_context(user())
            if guard.total() != self._faults:
                self._report_torn()
            yield

    def _report_torn(self) -> None:
        """Say once of each file that the client has shrunk it."""
        self._faults = guard.total()
        for entry in self._ranges:
            if entry.file and entry.file.guarded.hits and not entry.file.is_reported:
                entry.file.is_reported = True
                log.error(
                    "the client shrank the file it had mapped (%s and more): what is missing reads as zeros"
                    " and what is written there is lost; a client must not do that before DMA_UNMAP",
                    entry.mapping,
                )

    def _translate(self, entry: Range) -> None:
        if self._translation is not None and entry.file is not None:
            self._translation.add(
                entry.start,
                entry.mapping.size,
                host=entry.file.address + entry.mapping.offset,
                rights=READ * entry.mapping.readable | WRITE * entry.mapping.writable,
                dirty=entry.dirty.address if entry.dirty else 0,
            )

    def _remove(self, at: int) -> Mapping:
        del self._starts[at]
        entry = self._ranges.pop(at)
        if self._translation is not None:
            self._translation.remove(entry.start)
        entry.kill_views()
        if entry.backing:
            entry.backing.ranges -= 1
            self._files.release(entry.backing)
        return entry.mapping

    def _find(self, address: int, size: int, write: bool, doing: str) -> Range:
        """The range in which `address` lies, with the device's right to it checked."""
        if guard.total() != self._faults:
            self._report_torn()
        at = bisect.bisect_right(self._starts, address) - 1
        if at < 0 or address >= self._ranges[at].end:
            raise DmaUnmapped(
                f"nothing is mapped at {address:#x} ({doing} {size:#x} bytes at {address:#x})",
                address=address,
                size=size,
            )
        entry = self._ranges[at]
        if self._stopped:
            raise _forbidden(doing, address, size, ": the client has stopped the device, to migrate it")
        if not self.enabled:
            reason = ": the guest has not enabled bus mastering (bit 2 of the PCI command register)"
            raise _forbidden(doing, address, size, reason)
        if not (entry.mapping.writable if write else entry.mapping.readable):
            raise _forbidden(doing, address, size, f" is not allowed: mapped are {entry.mapping}")
        return entry

    def _split(self, address: int, size: int, write: bool, doing: str) -> Iterator[tuple[Range, int, int]]:
        """The pieces (range, address, count) of an access, all of them checked before the first is given."""
        pieces: list[tuple[Range, int, int]] = []
        at, left = address, size
        while left or not pieces:
            entry = self._find(at, left, write, doing)
            count = min(left, entry.end - at)
            if entry.file is None and size > MAX_MESSAGE_TRANSFER:
                most = f"more than {MAX_MESSAGE_TRANSFER:#x} bytes do not go by message or file I/O at once"
                raise _forbidden(doing, address, size, f": {most}; split the access")
            pieces.append((entry, at, count))
            at += count
            left -= count
        return iter(pieces)

    def _reach(self, part: Range, address: int, size: int) -> RemoteMemory:
        """What reads and writes a range that is not mapped."""
        if part.in_place is not None:
            return part.in_place
        if self.remote is None:
            raise DmaUnmapped(
                f"{size:#x} bytes at {address:#x} were mapped without a descriptor and no client serves"
                " DMA by message; give the VMM shared memory (QEMU: a memory-backend-memfd with share=on)",
                address=address,
                size=size,
            )
        return self.remote

    def _open(self, mapping: Mapping) -> GuestFile | UnmappedFile | None:
        """The file behind a mapping; refuses what cannot be."""
        if mapping.size <= 0 or mapping.address < 0 or mapping.address + mapping.size > ADDRESS_SPACE:
            raise RequestRefused(f"cannot map {mapping}: the size is 0 or the range ends past 2^64")
        if mapping.fd is None:
            return None
        where = (mapping.fd, mapping.offset, mapping.size)
        try:
            if mapping.file_io:
                return self._files.open_unmapped(*where, readable=mapping.readable, writable=mapping.writable)
            return self._files.open(*where, writable=mapping.writable)
        except RequestRefused as error:
            raise RequestRefused(f"cannot map {mapping}: {error}", errno=error.errno) from error


def _forbidden(doing: str, address: int, size: int, reason: str) -> DmaForbidden:
    return DmaForbidden(f"{doing} {size:#x} bytes at {address:#x}{reason}", address=address, size=size)
