"""Storage on a file descriptor: a file, a block device, or memory that only looks like a file.

Durability is the kernel's: `flush` is fdatasync(2). Discarding punches holes with fallocate(2).
"""

import errno
import fcntl
import os
import stat
from pathlib import Path

from outboard.errors import StorageError
from outboard.storage.base import Data, check_range
from outboard.storage.fallocate import PUNCH_HOLE, ZERO_RANGE, fallocate
from outboard.storage.sizes import format_size

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

    def close(self) -> None:
        """Close the descriptor. What was not flushed is the kernel's to write, as always."""
        if not self._closed:
            self._closed = True
            os.close(self.fd)

    def _failed(self, verb: str, error: OSError) -> StorageError:
        return StorageError(f"cannot {verb} {self.name}: {error.strerror}", errno=error.errno)


class RamStorage(FileStorage):
    """``size`` bytes of memory, allocated as they are written and gone with the process."""

    def __init__(self, size: int) -> None:
        fd = os.memfd_create("outboard-ram", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, size)
        except OSError as error:
            os.close(fd)
            raise StorageError(f"cannot make a RAM disk of {size} bytes: {error.strerror}") from error
        super().__init__(fd, size, f"ram:{format_size(size)}")

    def flush(self) -> None:
        """Memory has nothing more durable below it."""


def open_file(path: str | Path, size: int | None = None) -> FileStorage:
    """Open a file or block device; with ``size`` (bytes), create it sparse if it does not exist.

    The file is locked (flock) while open: two writers of one disk would destroy its content.
    Raises `StorageError` with what to do.
    """
    path = Path(path)
    fd = _open(path, size)
    try:
        storage = _measure(fd, path, size)
    except BaseException:
        os.close(fd)
        raise
    return storage


def _open(path: Path, size: int | None) -> int:
    flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if size is not None else 0)
    try:
        return os.open(path, flags, 0o644)
    except FileNotFoundError as error:
        if size is None:
            raise StorageError(
                f"{path} does not exist: give a size to create it, as in {path},size=1G", errno=errno.ENOENT
            ) from error
        raise StorageError(f"the directory of {path} does not exist: create it first") from error
    except OSError as error:
        raise StorageError(
            f"cannot open {path} for reading and writing: {error.strerror}", errno=error.errno
        ) from error


def _measure(fd: int, path: Path, size: int | None) -> FileStorage:
    mode = os.fstat(fd).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        raise StorageError(f"{path} is neither a file nor a block device")
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise StorageError(
            f"{path} is in use by another disk: stop that one, or give this one its own file",
            errno=error.errno,
        ) from error
    present = os.lseek(fd, 0, os.SEEK_END)
    if present == 0 and size is not None and stat.S_ISREG(mode):
        try:
            os.ftruncate(fd, size)
        except OSError as error:
            raise StorageError(f"cannot make {path} {size} bytes long: {error.strerror}") from error
        present = size
    if present == 0:
        raise StorageError(f"{path} is empty: give a size, as in {path},size=1G")
    if size is not None and size != present:
        raise StorageError(
            f"{path} has {present} bytes, not {size}: leave the size away to use it as it is, "
            f"or resize it first with truncate -s {size}"
        )
    return FileStorage(fd, present, str(path))
