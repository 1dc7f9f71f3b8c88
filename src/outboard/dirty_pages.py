"""Which pages of guest memory a device has written: what DMA logging reports to a client that migrates.

vfio-user specification, "VFIO_USER_DEVICE_FEATURE", DMA logging. One byte stands for each page of 4096
bytes, so that compiled code marks a page with a plain store; a report is made of bits.
"""

from outboard.native.memory import fill
from outboard.native.translation import PAGE_SHIFT
from outboard.native.words import Block

PAGE = 1 << PAGE_SHIFT
_DIGITS = bytes([ord("0")]) + bytes([ord("1")]) * 255


class DirtyPages:
    """The pages of the ``size`` bytes at IOVA ``start``; ``address`` is their map, for compiled code.

    The map is memory that costs nothing until it is written: a byte a page, however large the range.
    """

    def __init__(self, start: int, size: int) -> None:
        self._first = start >> PAGE_SHIFT
        self._count = (start + size - 1 >> PAGE_SHIFT) - self._first + 1
        # A Block's size is a whole number of words.
        self._map = Block(-(-self._count // 8) * 8)
        self.address = self._map.address

    def mark(self, address: int, size: int) -> None:
        """The ``size`` bytes at ``address``, all of them in the range, are written."""
        if size:
            first = address >> PAGE_SHIFT
            count = (address + size - 1 >> PAGE_SHIFT) - first + 1
            fill(self.address + first - self._first, 1, count)

    def take(self, start: int, end: int) -> tuple[int, bytes]:
        """The pages of the range that touch IOVA ``start`` to ``end``, clean from now on.

        Returns the IOVA where they begin, and a byte for each page: not 0 if it was written.
        """
        first = max(start >> PAGE_SHIFT, self._first)
        last = min(end + PAGE - 1 >> PAGE_SHIFT, self._first + self._count)
        low, high = first - self._first, max(last, first) - self._first
        taken = bytes(self._map.bytes[low:high])
        # Page by page of the map, and only what is dirty: clearing what nobody wrote would cost memory.
        at = taken.find(1)
        while at >= 0:
            end = min(at + PAGE, len(taken))
            self._map.bytes[low + at : low + end] = bytes(end - at)
            at = taken.find(1, end)
        return first << PAGE_SHIFT, taken


class Report:
    """A bitmap of ``size`` bytes of guest memory at IOVA ``start``, one bit for ``page_size`` bytes.

    >>> report = Report(0x10000, 0x8000, 0x1000)
    >>> report.add(0x11000, bytes([1, 0, 1]))
    >>> report.bitmap.hex()
    '0a00000000000000'
    """

    def __init__(self, start: int, size: int, page_size: int) -> None:
        self._start, self._page_size = start, page_size
        self._pages = bytearray(-(-size // page_size))

    def add(self, address: int, dirty: bytes) -> None:
        """A byte for each page of 4096 bytes from ``address`` on; pages outside the report are left out."""
        if self._page_size == PAGE and (address - self._start) % PAGE == 0 and address >= self._start:
            at = (address - self._start) // PAGE
            dirty = dirty[: len(self._pages) - at]
            both = int.from_bytes(self._pages[at : at + len(dirty)], "little") | int.from_bytes(
                dirty, "little"
            )
            self._pages[at : at + len(dirty)] = both.to_bytes(len(dirty), "little")
            return
        at = dirty.find(1)
        while at >= 0:
            begin = address + at * PAGE - self._start
            for page in range(max(begin, 0) // self._page_size, (begin + PAGE - 1) // self._page_size + 1):
                if page < len(self._pages):
                    self._pages[page] = 1
            at = dirty.find(1, at + 1)

    @property
    def bitmap(self) -> bytes:
        """The bits, the first page in bit 0; whole 64-bit words."""
        size = -(-len(self._pages) // 64) * 8
        # Python reads binary digits in time that grows with their number only.
        digits = self._pages[::-1].translate(_DIGITS)
        return int(digits, 2).to_bytes(size, "little")
