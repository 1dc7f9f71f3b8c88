"""Storage on a file descriptor: a file or a block device.

Durability is the kernel's: `flush` is fdatasync(2). Discarding punches holes with fallocate(2).
"""

import os
import stat

from outboard.errors import StorageError
from outboard.storage.base import Data, check_range
from outboard.storage.fallocate import PUNCH_HOLE, ZERO_RANGE, fallocate
from outboard.storage.fast import Descriptor

ZEROES_AT_ONCE = 1 << 20
"""Bytes written at a time where the file system knows no better way to make zeros."""


class FileStorage:
    """``size`` bytes behind the descriptor ``fd``, which it owns from now on; ``name`` is for messages."""

    def __init__(self, fd: int, size: int, name: str) -> None:
        self.fd = fd
        self.size = size
        self.name = name
        self._closed = False
        self._zeroing = [ZERO_RANGE, PUNCH_HOLE]
        self._punches = True
        # A hole behind the end of a regular file changes nothing, and tells whether there can be holes.
        regular = stat.S_ISREG(os.fstat(fd).st_mode)
        self.discard_zeroes = regular and fallocate(fd, PUNCH_HOLE, size, 4096)

    @property
    def fast(self) -> Descriptor | None:
        """The descriptor, for compiled code; None once it is closed."""
        return None if self._closed else Descriptor(self.fd)

    def read(self, offset: int, size: int) -> bytes:
        """Return ``size`` bytes from ``offset``."""
        check_range(self, offset, size)
        buffer = bytearray(size)
        self.readinto(offset, memoryview(buffer))
        return bytes(buffer)

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from ``offset``."""
        check_range(self, offset, buffer.nbytes)
        done = 0
        while done < buffer.nbytes:
            try:
                count = os.preadv(self.fd, [buffer[done:] if done else buffer], offset + done)
            except OSError as error:
                raise self._failed("read", error) from error
            if count == 0:
                raise StorageError(
                    f"{self.name} ends at byte {offset + done}, before its {self.size} bytes: "
                    "it was truncated while in use"
                )
            done += count

    def write(self, offset: int, data: Data) -> None:
        """Write all of ``data`` at ``offset``."""
        size = len(data)
        check_range(self, offset, size)
        done = 0
        while done < size:
            try:
                done += os.pwrite(self.fd, memoryview(data)[done:] if done else data, offset + done)
            except OSError as error:
                raise self._failed("write", error) from error

    def flush(self) -> None:
        """Return when everything written is on the medium: fdatasync(2)."""
        try:
            os.fdatasync(self.fd)
        except OSError as error:
            raise self._failed("flush", error) from error

    def discard(self, offset: int, size: int) -> None:
        """Punch a hole, where the file system can; otherwise nothing happens."""
        check_range(self, offset, size)
        if self._punches and size:
            try:
                self._punches = fallocate(self.fd, PUNCH_HOLE, offset, size)
            except OSError as error:
                raise self._failed("discard in", error) from error

    def write_zeroes(self, offset: int, size: int) -> None:
        """Zero the range: by extent, by hole, or by writing zeros, whichever works first."""
        check_range(self, offset, size)
        if size == 0:
            return
        while self._zeroing:
            try:
                if fallocate(self.fd, self._zeroing[0], offset, size):
                    return
            except OSError as error:
                raise self._failed("write zeros to", error) from error
            del self._zeroing[0]
        zeros = bytes(min(size, ZEROES_AT_ONCE))
        for start in range(offset, offset + size, ZEROES_AT_ONCE):
            self.write(start, memoryview(zeros)[: offset + size - start])

    def resize(self, size: int) -> None:
        """Make the file longer or shorter; of a block device, use so much. Raises `StorageError`."""
        try:
            if stat.S_ISREG(os.fstat(self.fd).st_mode):
                os.ftruncate(self.fd, size)
            elif os.lseek(self.fd, 0, os.SEEK_END) < size:
                raise StorageError(f"{self.name} has less than {size} bytes: make the device larger first")
        except (OSError, OverflowError) as error:
            raise StorageError(f"cannot give {self.name} {size} bytes: {error}") from error
        self.size = size

    def close(self) -> None:
        """Close the descriptor. What was not flushed is the kernel's to write, as always."""
        if not self._closed:
            self._closed = True
            # Whoever still calls gets an error, and not another file that has this number now.
            fd, self.fd = self.fd, -1
            os.close(fd)

    def _failed(self, verb: str, error: OSError) -> StorageError:
        return StorageError(f"cannot {verb} {self.name}: {error.strerror}", errno=error.errno)
