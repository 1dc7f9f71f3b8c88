"""Blocks of 64-bit words that Python and compiled code share.

A `Block` is zeroed memory that does not move. Python reads and writes its words by number, compiled code
by address: word ``n`` is at ``address + 8 * n``. A layout is a row of names, each a number of bytes from
the start of its record, so that a module may say ``store64(record + TAIL, tail)``.
"""

import mmap

from outboard.native.memory import address_of

WORD = 8


class Block:
    """``size`` bytes of zeroed memory, aligned to a page.

    >>> block = Block(64)
    >>> block[8] = -1
    >>> block[8], block[16]
    (-1, 0)
    """

    __slots__ = ("_memory", "_words", "address", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self._memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._words = memoryview(self._memory).cast("q")
        self.address = address_of(self._memory)

    def __getitem__(self, offset: int) -> int:
        return self._words[offset // WORD]

    def __setitem__(self, offset: int, value: int) -> None:
        self._words[offset // WORD] = value

    @property
    def words(self) -> memoryview:
        """All words, by number: for moving many at once."""
        return self._words

    @property
    def bytes(self) -> memoryview:
        """All bytes."""
        return memoryview(self._memory)


class Record:
    """The words from ``start`` bytes on of a block, as if they were a block of their own.

    >>> record = Record(Block(64), 32)
    >>> record[8] = 5
    >>> record[8]
    5
    """

    __slots__ = ("_first", "_words", "address")

    def __init__(self, block: Block, start: int) -> None:
        self._words = block.words
        self._first = start // WORD
        self.address = block.address + start

    def __getitem__(self, offset: int) -> int:
        return self._words[self._first + offset // WORD]

    def __setitem__(self, offset: int, value: int) -> None:
        self._words[self._first + offset // WORD] = value


def offsets(count: int, *, start: int = 0) -> tuple[int, ...]:
    """Offsets in bytes of ``count`` fields, a word each.

    >>> HEAD, TAIL = offsets(2, start=64)
    >>> HEAD, TAIL
    (64, 72)
    """
    return tuple(range(start, start + WORD * count, WORD))
