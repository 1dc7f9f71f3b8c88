"""Storage in the memory of this process: compiled code copies from and to it.

Huge pages are worth a fifth of the speed of random accesses. They are asked for by madvise(2): transparent
ones measure as fast as reserved ones (hugetlbfs). Reserved ones are not taken, even where some are free:
somebody has set them aside for something else, and a page that a discard returned to their pool may be gone
when it is written again, which kills the process.
"""

import errno
import mmap
from contextlib import suppress

from outboard.errors import StorageError
from outboard.native.memory import address_of, fill
from outboard.storage.base import Data, check_range
from outboard.storage.fast import Memory
from outboard.storage.sizes import format_size

HUGE_PAGE = 2 << 20


class RamStorage:
    """``size`` bytes of memory, allocated as they are written and gone with the process.

    Raises `StorageError` if the system would never have so much. What it promises beyond what is free now
    is its policy (vm.overcommit_memory).
    """

    def __init__(self, size: int) -> None:
        try:
            self._memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, OverflowError) as error:
            reason = error.strerror if isinstance(error, OSError) else "no address space holds it"
            raise StorageError(
                f"cannot make a RAM disk of {size} bytes: {reason}; the memory of this machine is the most "
                "it can have",
                errno=errno.ENOMEM,
            ) from error
        # A kernel without transparent huge pages refuses; small pages hold the same bytes.
        with suppress(OSError):
            self._memory.madvise(mmap.MADV_HUGEPAGE)
        self.size = size
        self.name = f"ram:{format_size(size)}"
        self.discard_zeroes = True
        self._fast = Memory(address_of(self._memory), size)

    @property
    def fast(self) -> Memory | None:
        """The memory, for compiled code; None once it is closed."""
        return None if self._memory.closed else self._fast

    @property
    def memory(self) -> memoryview:
        """All of it; to be released before the storage is closed."""
        return memoryview(self._memory)

    def read(self, offset: int, size: int) -> bytes:
        """Return ``size`` bytes from ``offset``."""
        self._address(offset, size)
        return self._memory[offset : offset + size]

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from ``offset``."""
        self._address(offset, buffer.nbytes)
        with memoryview(self._memory) as memory, memory[offset : offset + buffer.nbytes] as part:
            buffer[:] = part

    def write(self, offset: int, data: Data) -> None:
        """Write all of ``data`` at ``offset``."""
        self._address(offset, len(data))
        self._memory[offset : offset + len(data)] = data

    def flush(self) -> None:
        """Memory has nothing more durable below it."""

    def discard(self, offset: int, size: int) -> None:
        """Give the memory of the range back; it reads as zeros."""
        self._zero(offset, size, mmap.PAGESIZE)

    def write_zeroes(self, offset: int, size: int) -> None:
        """Zero the range; its memory is given back where that does not break a huge page."""
        self._zero(offset, size, HUGE_PAGE)

    def resize(self, size: int) -> None:
        """Have ``size`` bytes of memory, perhaps elsewhere. Raises `StorageError`."""
        if size < self.size:
            # The rest of the last page stays, and would be seen again.
            page_end = min(self.size, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE)
            fill(self._fast.address + size, 0, page_end - size)
        try:
            self._memory.resize(size)
        except (OSError, OverflowError, ValueError, BufferError) as error:
            raise StorageError(
                f"cannot give {self.name} {size} bytes: {error}", errno=errno.ENOMEM
            ) from error
        with suppress(OSError):
            self._memory.madvise(mmap.MADV_HUGEPAGE)
        self.size = size
        self.name = f"ram:{format_size(size)}"
        self._fast = Memory(address_of(self._memory), size)

    def close(self) -> None:
        """Give all memory back. Compiled code must have let go of it."""
        self._memory.close()

    def _zero(self, offset: int, size: int, page: int) -> None:
        """Drop the pages of ``page`` bytes that lie within the range, and zero what is around them."""
        address = self._address(offset, size)
        first = -(-offset // page) * page
        length = (offset + size) // page * page - first
        if length > 0:
            # Memory that is locked stays (EINVAL), and is zeroed as it is.
            with suppress(OSError):
                self._memory.madvise(mmap.MADV_DONTNEED, first, length)
                fill(address, 0, first - offset)
                fill(address + first - offset + length, 0, offset + size - first - length)
                return
        fill(address, 0, size)

    def _address(self, offset: int, size: int) -> int:
        """Where the range is in memory; raises `StorageError` unless it is all there."""
        check_range(self, offset, size)
        if self._memory.closed:
            raise StorageError(f"{self.name} is closed", errno=errno.EBADF)
        if offset + size > self._fast.size:
            raise StorageError(f"{self.name} cannot grow: its memory has {self._fast.size} bytes")
        return self._fast.address + offset
