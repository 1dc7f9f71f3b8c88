"""Guest addresses to ours: the one way, bounds-checked, from an IOVA to memory of this process.

A `Translation` holds the ranges of guest memory that are mapped here, sorted by IOVA, in memory that
compiled code searches. It changes only while no compiled code runs that uses it (`Poller.paused`).

Each reader has a header of its own, in which it keeps the range it hit last: pollers that shared one
would take its cache line from each other at every command.

While the client logs what its device writes (DMA logging), a range has a map of one byte a page: whoever
looks an address up to write there marks its pages. A byte, so that pollers need no atomic instruction.
"""

from bisect import bisect_left

from outboard.native.jit import jitable
from outboard.native.memory import fill, load64, store64
from outboard.native.words import WORD, Block

READ, WRITE = 1, 2
"""What a device may do with a range."""

COUNT, TABLE, LAST = 0, 8, 16
"""The header: how many ranges, where they are, and the range that was hit last."""

NOTHING = 64
"""Behind the header: an entry that no address is in."""

HEADER = 128
BASE, SIZE, HOST, RIGHTS, DIRTY, ENTRY = 0, 8, 16, 24, 32, 40
"""A range: its IOVA, its bytes, its address here, `READ` and `WRITE`, the map of its dirty pages (or 0)."""

PAGE_SHIFT = 12
"""What a byte of a map of dirty pages stands for: 4096 bytes."""

LARGEST = (1 << 63) - 1
"""Addresses are signed in compiled code: ranges beyond are not for it."""


@jitable
def translate(table: int, iova: int, size: int, rights: int) -> int:
    """The address of ``size`` bytes at ``iova``, or 0 if they are not all in one range with ``rights``.

    ``table`` is `Translation.address`, or what `Translation.reader` gave. ``size`` is not negative. With
    `WRITE` the pages count as written from now on.
    """
    at = load64(table + LAST)
    base = load64(at + BASE)
    if iova < base or iova - base > load64(at + SIZE) - size:
        low = 0
        high = load64(table + COUNT)
        entries = load64(table + TABLE)
        while low < high:
            middle = (low + high) // 2
            if load64(entries + middle * ENTRY + BASE) <= iova:
                low = middle + 1
            else:
                high = middle
        if low == 0:
            return 0
        at = entries + (low - 1) * ENTRY
        base = load64(at + BASE)
        if iova - base > load64(at + SIZE) - size:
            return 0
        store64(table + LAST, at)
    if load64(at + RIGHTS) & rights != rights:
        return 0
    if rights & WRITE != 0:
        dirty = load64(at + DIRTY)
        if dirty != 0:
            first = iova >> PAGE_SHIFT
            fill(dirty + first - (base >> PAGE_SHIFT), 1, ((iova + size - 1) >> PAGE_SHIFT) - first + 1)
    return load64(at + HOST) + iova - base


class Translation:
    """Ranges of guest memory by IOVA, for `translate`.

    One who changes it has to see to it that nobody looks anything up meanwhile. While ``enabled`` is
    False every address is in no range.

    >>> table = Translation()
    >>> table.add(0x10000, 0x1000, host=0x7000_0000, rights=READ)
    >>> hex(translate(table.address, 0x10010, 16, READ))
    '0x70000010'
    >>> translate(table.address, 0x10010, 0x1000, READ), translate(table.address, 0x10010, 16, WRITE)
    (0, 0)
    """

    def __init__(self) -> None:
        self._headers = [Block(HEADER)]
        self._starts: list[int] = []
        self._block = Block(64 * ENTRY)
        self._enabled = True
        self._switch()

    @property
    def address(self) -> int:
        """What `translate` takes, for the only reader or for Python; the same for ever."""
        return self._headers[0].address

    def reader(self) -> int:
        """What `translate` takes, for one more thread that looks things up; the same for ever."""
        self._headers.append(Block(HEADER))
        self._switch()
        return self._headers[-1].address

    @property
    def enabled(self) -> bool:
        """Whether anything is found at all."""
        return self._enabled

    @enabled.setter
    def enabled(self, enabled: bool) -> None:
        self._enabled = enabled
        self._switch()

    def __len__(self) -> int:
        return len(self._starts)

    def add(self, iova: int, size: int, *, host: int, rights: int, dirty: int = 0) -> None:
        """Add a range that overlaps no other. Ranges that end beyond `LARGEST` are left out.

        ``dirty`` is the address of the map of its dirty pages, 0 for none.
        """
        if iova + size > LARGEST:
            return
        if (len(self._starts) + 1) * ENTRY > self._block.size:
            larger = Block(2 * self._block.size)
            larger.bytes[: self._block.size] = self._block.bytes
            self._block = larger
        at = bisect_left(self._starts, iova)
        words, first = self._block.words, at * ENTRY // WORD
        end = len(self._starts) * ENTRY // WORD
        step = ENTRY // WORD
        words[first + step : end + step] = words[first:end]
        for number, value in enumerate((iova, size, host, rights, dirty)):
            words[first + number] = value
        self._starts.insert(at, iova)
        self._switch()

    def remove(self, iova: int) -> None:
        """Remove the range that begins at ``iova``, if it is there."""
        at = bisect_left(self._starts, iova)
        if at == len(self._starts) or self._starts[at] != iova:
            return
        words, step = self._block.words, ENTRY // WORD
        end = len(self._starts) * step
        words[at * step : end - step] = words[(at + 1) * step : end]
        del self._starts[at]
        self._switch()

    def log(self, iova: int, dirty: int) -> None:
        """Mark what is written in the range that begins at ``iova`` in another map, or (0) in none."""
        at = bisect_left(self._starts, iova)
        if at < len(self._starts) and self._starts[at] == iova:
            self._block.words[(at * ENTRY + DIRTY) // WORD] = dirty

    def clear(self) -> None:
        """Remove every range."""
        self._starts.clear()
        self._switch()

    def _switch(self) -> None:
        """Show every reader the table as it is now."""
        count = len(self._starts) if self._enabled else 0
        for header in self._headers:
            header[COUNT], header[TABLE] = count, self._block.address
            header[LAST] = header.address + NOTHING
