"""A storage with a volatile write cache, and what is left of it when the power fails.

Writes are held in memory until they are flushed, as a drive holds them (NVMe Base 2.0, 5.27.1.4, and AWUPF of
Identify). `VolatileStorage.cut` then keeps an arbitrary part of what was not flushed and loses the rest, so
that a file system, or a database, can be shown to survive that.
"""

import threading
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from outboard.errors import StorageError
from outboard.storage.base import Data, Storage, check_range

CACHE = 32 << 20
"""Bytes held back at most; the oldest writes go to the medium when there are more."""

_ENTRY = 128
"""Bytes that a write costs beside its data."""


class Loss(NamedTuple):
    """What became of the writes that were not flushed: their numbers."""

    kept: int
    torn: int
    lost: int


@dataclass(frozen=True, slots=True, eq=False)
class _Write:
    """A change of ``size`` bytes at ``offset``: ``data``, or zeros if there is none.

    ``durable``: it has reached the medium for good, and what is older must not come back.
    """

    offset: int
    size: int
    data: bytes | None
    discards: bool = False
    durable: bool = False

    @property
    def end(self) -> int:
        return self.offset + self.size

    def part(self, start: int, end: int) -> bytes:
        """Its bytes between two offsets in the storage."""
        if self.data is None:
            return bytes(end - start)
        return self.data[start - self.offset : end - self.offset]

    def apply(self, below: Storage, start: int, end: int) -> None:
        """Make the change between two offsets in the storage."""
        if self.data is not None:
            below.write(start, self.part(start, end))
        elif self.discards:
            below.discard(start, end - start)
        else:
            below.write_zeroes(start, end - start)


class VolatileStorage:
    """``below``, with a cache of ``cache`` bytes that only `flush` empties for certain.

    A power failure tears writes at multiples of ``unit`` bytes: AWUPF, a block in the strictest case. While
    ``lie`` is set, flushes say that they have, and do nothing.

    Reads see what was written. `close` writes the cache to the medium; a process that is killed loses it.

    Raises `StorageError` for a unit or a cache of no bytes.

    >>> from outboard.storage import RamStorage
    >>> disk = VolatileStorage(RamStorage(1 << 20))
    >>> disk.write(0, b"flushed")
    >>> disk.flush()
    >>> disk.write(512, b"not flushed")
    >>> disk.cut(seed=1)
    Loss(kept=0, torn=0, lost=1)
    >>> disk.read(0, 7), disk.read(512, 11) == bytes(11)
    (b'flushed', True)
    """

    def __init__(self, below: Storage, *, cache: int = CACHE, unit: int = 512) -> None:
        if cache < 1 or unit < 1:
            raise StorageError(f"a cache of {cache} bytes that tears at {unit}: both are 1 at least")
        self.below = below
        self.unit = unit
        self.lie = False
        self.name = f"volatile:{getattr(below, 'name', type(below).__name__)}"
        self._most = cache
        self._lock = threading.Lock()
        self._forget()

    @property
    def size(self) -> int:
        """As below."""
        return self.below.size

    @size.setter
    def size(self, size: int) -> None:
        self.below.size = size

    @property
    def discard_zeroes(self) -> bool:
        """As below."""
        return self.below.discard_zeroes

    @discard_zeroes.setter
    def discard_zeroes(self, certain: bool) -> None:
        self.below.discard_zeroes = certain

    @property
    def unflushed(self) -> int:
        """How many writes a power cut may lose."""
        with self._lock:
            return sum(not write.durable for write in self._log)

    def read(self, offset: int, size: int) -> bytes:
        """Return ``size`` bytes from ``offset``."""
        check_range(self, offset, size)
        buffer = bytearray(size)
        self.readinto(offset, memoryview(buffer))
        return bytes(buffer)

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from ``offset``."""
        check_range(self, offset, buffer.nbytes)
        with self._lock:
            self._look(offset, buffer)

    def write(self, offset: int, data: Data) -> None:
        """Hold ``data`` back."""
        check_range(self, offset, len(data))
        with self._lock:
            self._hold(_Write(offset, len(data), bytes(data)))

    def flush(self) -> None:
        """Write the cache to the medium, and make that durable; unless this is a lie."""
        with self._lock:
            if not self.lie:
                self._write_back()
                self.below.flush()

    def persist(self, offset: int, size: int) -> None:
        """Make this range durable as it is now, and nothing else: what Force Unit Access asks for."""
        check_range(self, offset, size)
        with self._lock:
            if self.lie or size == 0:
                return
            buffer = bytearray(size)
            self._look(offset, memoryview(buffer))
            write = _Write(offset, size, bytes(buffer), durable=True)
            write.apply(self.below, offset, write.end)
            self.below.flush()
            self._hold(write)

    def discard(self, offset: int, size: int) -> None:
        """Hold a discard back like a write of zeros, if it is one; else it goes to the medium at once."""
        check_range(self, offset, size)
        with self._lock:
            if self.discard_zeroes:
                self._hold(_Write(offset, size, None, discards=True))
            else:
                self.below.discard(offset, size)

    def write_zeroes(self, offset: int, size: int) -> None:
        """Hold zeros back."""
        check_range(self, offset, size)
        with self._lock:
            self._hold(_Write(offset, size, None))

    def write_back(self) -> None:
        """Write the cache to the medium, which has then to be flushed."""
        with self._lock:
            self._write_back()

    def cut(self, seed: int | str) -> Loss:
        """The power fails: an arbitrary part of what was not flushed reaches the medium, the rest is lost.

        Of each write all, nothing, or a run of whole units is kept, in the order in which they came: where
        several went to one place, it may have an older one's content. The same seed and the same writes give
        the same remains. The storage is then as after power on.
        """
        random = Random(seed)
        with self._lock:
            share = random.random()
            fates = {"kept": 0, "torn": 0, "lost": 0}
            for write in self._log:
                start, end = write.offset, write.end
                if not write.durable:
                    start, end = self._remains(write, random, share)
                    whole = (start, end) == (write.offset, write.end)
                    fates["kept" if whole else "torn" if start < end else "lost"] += 1
                if start < end:
                    write.apply(self.below, start, end)
            self.below.flush()
            self._forget()
        return Loss(**fates)

    def close(self) -> None:
        """Write the cache to the medium, and let go of what is below."""
        with self._lock:
            try:
                if self._log:
                    self._write_back()
            finally:
                self._forget()
                self.below.close()

    def _remains(self, write: _Write, random: Random, share: float) -> tuple[int, int]:
        """The offsets between which a write has reached the medium."""
        units = -(-write.end // self.unit) - write.offset // self.unit
        tears, kept = random.random() < 0.25, random.random() < share
        if not tears or units < 2:
            return (write.offset, write.end) if kept else (write.offset, write.offset)
        first, behind = sorted(random.sample(range(units + 1), 2))
        base = write.offset // self.unit * self.unit
        return max(write.offset, base + first * self.unit), min(write.end, base + behind * self.unit)

    def _forget(self) -> None:
        self._log: deque[_Write] = deque()
        self._held = 0
        # What is newest, by place: disjoint, in order.
        self._starts: list[int] = []
        self._extents: list[tuple[int, int, _Write]] = []

    def _hold(self, write: _Write) -> None:
        if write.size == 0:
            return
        low, high = self._span(write.offset, write.end)
        around = [
            (start, end, each)
            for first, last, each in self._extents[low:high]
            for start, end in ((first, write.offset), (write.end, last))
            if start < end
        ]
        self._replace(low, high, sorted([*around, (write.offset, write.end, write)], key=lambda e: e[0]))
        self._log.append(write)
        self._held += len(write.data or b"") + _ENTRY
        while self._held > self._most and len(self._log) > 1:
            self._evict()

    def _evict(self) -> None:
        """Let the oldest write reach the medium, where nothing newer has taken its place."""
        write = self._log[0]
        for start, end in self._newest(write):
            write.apply(self.below, start, end)
        low, high = self._span(write.offset, write.end)
        self._replace(low, high, [extent for extent in self._extents[low:high] if extent[2] is not write])
        self._log.popleft()
        self._held -= len(write.data or b"") + _ENTRY

    def _newest(self, write: _Write) -> Iterator[tuple[int, int]]:
        low, high = self._span(write.offset, write.end)
        return ((start, end) for start, end, each in self._extents[low:high] if each is write)

    def _write_back(self) -> None:
        for start, end, write in self._extents:
            write.apply(self.below, start, end)
        self._forget()

    def _look(self, offset: int, buffer: memoryview) -> None:
        behind = offset + buffer.nbytes
        low, high = self._span(offset, behind)
        found = self._extents[low:high]
        if not (len(found) == 1 and found[0][0] <= offset and behind <= found[0][1]):
            self.below.readinto(offset, buffer)
        for first, last, write in found:
            start, end = max(first, offset), min(last, behind)
            buffer[start - offset : end - offset] = write.part(start, end)

    def _span(self, start: int, end: int) -> tuple[int, int]:
        """Which extents overlap a range: the first, and the one behind the last."""
        low = bisect_right(self._starts, start)
        if low and self._extents[low - 1][1] > start:
            low -= 1
        return low, max(low, bisect_left(self._starts, end))

    def _replace(self, low: int, high: int, extents: list[tuple[int, int, _Write]]) -> None:
        self._extents[low:high] = extents
        self._starts[low:high] = [start for start, _, _ in extents]
