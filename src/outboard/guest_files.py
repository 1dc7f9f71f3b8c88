"""The files behind guest memory: each is mapped into this process whole and once.

However many ranges of it the client maps (QEMU maps the same file hundreds of times while firmware
runs), a file costs one mapping, which lives while a range of it is mapped, and no descriptor. A client
that shrinks a file all the same gets zeros for what is missing, and is told of (`outboard.native.guard`).
"""

import errno
import fcntl
import logging
import mmap
import os
import resource
import weakref

from outboard.errors import RequestRefused
from outboard.native.guard import Guarded
from outboard.native.memory import address_of

log = logging.getLogger(__name__)

MAX_FILES = 8192
"""Files a client may have mapped at once: an eighth of what Linux lets a process map (vm.max_map_count).
SPDK's memory is a file for every 2 MiB. Python keeps a descriptor of each, so it is never more than half of
what `ulimit -n` allows."""
MAX_FILE_BYTES = 1 << 43
"""Bytes these files may have together: a sixteenth of the addresses a process has; files may be sparse."""


class GuestFile:
    """One file: its ``bytes``, their ``address`` in this process, and the guard over them."""

    __slots__ = ("address", "bytes", "guarded", "is_reported", "key", "length", "ranges")

    def __init__(self, key: tuple[int, int, bool], fd: int, length: int) -> None:
        self.key = key
        self.length = length
        self.ranges = 0
        self.is_reported = False
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if key[2] else 0)
        self.bytes = mmap.mmap(fd, length, mmap.MAP_SHARED, protection)
        self.address = address_of(self.bytes)
        self.guarded = Guarded(self.address, length)

    def close(self) -> None:
        """Unmap it, or as soon as the last slice of it is gone."""
        try:
            self.bytes.close()
        except BufferError:
            weakref.finalize(self.bytes, self.guarded.release)
            log.error("a slice of a DMA view outlives its range: the memory stays mapped until it is dropped")
        else:
            self.guarded.release()


class GuestFiles:
    """The files that are mapped now; whoever maps a range counts it in ``GuestFile.ranges``."""

    def __init__(self) -> None:
        self._files: dict[tuple[int, int, bool], GuestFile] = {}
        self._count = self._bytes = 0
        self._most = min(MAX_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)

    def open(self, fd: int, offset: int, size: int, *, writable: bool) -> GuestFile:
        """The file of ``fd``, mapped at least as far as a range of ``size`` bytes at ``offset`` goes.

        Raises RequestRefused: EINVAL for a descriptor that cannot be mapped or is shorter than the range,
        EACCES if it has to be ``writable`` and is not. The descriptor stays the caller's.
        """
        try:
            status = os.fstat(fd)
            access = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
        except OSError as error:
            raise RequestRefused(f"bad descriptor ({error.strerror})") from error
        # A descriptor shorter than its range would kill us (SIGBUS) at the first touch of the missing part.
        if offset < 0 or offset + size > status.st_size:
            raise RequestRefused(
                f"its descriptor has {status.st_size:#x} bytes, the range ends at {offset + size:#x} of it"
            )
        if writable and access != os.O_RDWR:
            raise RequestRefused("its descriptor is not open for writing", errno=errno.EACCES)
        key = (status.st_dev, status.st_ino, access == os.O_RDWR)
        file = self._files.get(key)
        if file is None or file.length < offset + size:
            if self._count >= self._most or self._bytes + status.st_size > MAX_FILE_BYTES:
                raise RequestRefused(
                    f"{self._count} files of {self._bytes:#x} bytes are mapped already, and this one has"
                    f" {status.st_size:#x}: at most {self._most} files of"
                    f" {MAX_FILE_BYTES:#x} bytes can be (half of `ulimit -n`, and no more than {MAX_FILES})",
                    errno=errno.ENOSPC,
                )
            try:
                file = GuestFile(key, fd, status.st_size)
            except (OSError, ValueError, OverflowError) as error:
                raise RequestRefused(f"its descriptor cannot be mapped ({error})") from error
            self._files[key] = file
            self._count += 1
            self._bytes += file.length
        return file

    def release(self, file: GuestFile | None) -> None:
        """Unmaps a file from which no range is left."""
        if file is None or file.ranges:
            return
        if self._files.get(file.key) is file:
            del self._files[file.key]
        self._count -= 1
        self._bytes -= file.length
        file.close()
