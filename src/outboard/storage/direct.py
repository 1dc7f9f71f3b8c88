"""A file or block device past the page cache: O_DIRECT of open(2).

The kernel then wants memory, offsets and sizes aligned. Compiled code sees to that itself; the methods here
go through a buffer that is, and read what surrounds a write that is not.
"""

import ctypes
import mmap
import struct
import threading

from outboard.errors import StorageError
from outboard.storage.base import Data, check_range
from outboard.storage.fast import Descriptor
from outboard.storage.file import FileStorage

AT_ONCE = 256 << 10
"""Bytes of the aligned buffer."""

ASSUMED = 4096
"""The alignment every disk accepts, for kernels (before 6.1) and file systems that do not tell theirs."""

_AT_EMPTY_PATH = 0x1000
_STATX_DIOALIGN = 0x2000
_STATX_SIZE, _DIO_ALIGN_AT = 256, 152

_libc = ctypes.CDLL(None)
_libc.statx.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_char_p)


class DirectStorage(FileStorage):
    """``size`` bytes behind ``fd``, which was opened with O_DIRECT and is owned from now on."""

    def __init__(self, fd: int, size: int, name: str) -> None:
        super().__init__(fd, size, name)
        self.alignment = alignment_of(fd)
        if self.alignment == 0:
            raise no_direct_access(name)
        self._check_size(size)
        self._aligned = memoryview(mmap.mmap(-1, AT_ONCE))
        self._alone = threading.Lock()

    @property
    def fast(self) -> Descriptor | None:
        """The descriptor, for compiled code that aligns what it asks for; None once it is closed."""
        return None if self._closed else Descriptor(self.fd, direct=True, alignment=self.alignment)

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from ``offset``."""
        size = buffer.nbytes
        check_range(self, offset, size)
        done = 0
        while done < size:
            start, skipped, count, span = self._window(offset + done, size - done)
            with self._alone:
                super().readinto(start, self._aligned[:span])
                buffer[done : done + count] = self._aligned[skipped : skipped + count]
            done += count

    def write(self, offset: int, data: Data) -> None:
        """Write all of ``data`` at ``offset``."""
        size = len(data)
        check_range(self, offset, size)
        done = 0
        while done < size:
            start, skipped, count, span = self._window(offset + done, size - done)
            with self._alone:
                if count < span:
                    super().readinto(start, self._aligned[:span])
                self._aligned[skipped : skipped + count] = memoryview(data)[done : done + count]
                super().write(start, self._aligned[:span])
            done += count

    def resize(self, size: int) -> None:
        """As `FileStorage`'s; the size has to be aligned, too."""
        self._check_size(size)
        super().resize(size)

    def _check_size(self, size: int) -> None:
        if size % self.alignment:
            raise StorageError(
                f"direct=on needs a size that is a multiple of {self.alignment}, and {self.name} has {size} "
                f"bytes: truncate -s %{self.alignment} {self.name} makes it longer"
            )

    def _window(self, offset: int, size: int) -> tuple[int, int, int, int]:
        """The aligned window over ``offset``: its start, how far into it, how many bytes of it, its size."""
        skipped = offset % self.alignment
        count = min(size, AT_ONCE - skipped)
        return offset - skipped, skipped, count, -(-(skipped + count) // self.alignment) * self.alignment


def alignment_of(fd: int) -> int:
    """The alignment in bytes that O_DIRECT needs on ``fd``: statx(2); 0 if there is no direct access."""
    answer = ctypes.create_string_buffer(_STATX_SIZE)
    if _libc.statx(fd, b"", _AT_EMPTY_PATH, _STATX_DIOALIGN, answer) != 0:
        return ASSUMED
    if not struct.unpack_from("=I", answer)[0] & _STATX_DIOALIGN:
        return ASSUMED
    memory, offset = struct.unpack_from("=II", answer, _DIO_ALIGN_AT)
    return max(memory, offset) if offset else 0


def no_direct_access(name: str) -> StorageError:
    """What to tell about a file system that has no O_DIRECT."""
    return StorageError(
        f"the file system of {name} has no direct access (O_DIRECT): leave direct=on away, "
        "or put the file elsewhere"
    )
