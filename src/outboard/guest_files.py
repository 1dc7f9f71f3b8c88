"""The files behind guest memory: each is mapped into this process whole and once, or kept to be read.

However many ranges of it the client maps (QEMU maps the same file hundreds of times while firmware
runs), a file costs one mapping, which lives while a range of it is mapped, and no descriptor. A client
that shrinks a file all the same gets zeros for what is missing, and is told of (`outboard.native.guard`).

A client may ask for file I/O instead (vfio-user specification, "VFIO_USER_DMA_MAP", access modes): such
a file costs one descriptor and is read and written in place, so that it need not be one that can be mapped.
"""

import errno
import fcntl
import logging
import mmap
import os
import resource
import stat
import weakref

from outboard.errors import DmaError, RequestRefused
from outboard.native.guard import Guarded
from outboard.native.memory import address_of

log = logging.getLogger(__name__)

MAX_FILES = 8192
"""Files a client may have in use at once: an eighth of what Linux lets a process map (vm.max_map_count).
SPDK's memory is a file for every 2 MiB. Python keeps a descriptor of each, so it is never more than half of
what `ulimit -n` allows."""
MAX_FILE_BYTES = 1 << 43
"""Bytes these files may have together: a sixteenth of the addresses a process has; files may be sparse."""
MAX_OFFSET = (1 << 63) - 1


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


class UnmappedFile:
    """A file that is read and written by system calls, through a descriptor of its own."""

    __slots__ = ("fd", "key", "ranges")
    length = 0
    """Bytes it has mapped."""

    def __init__(self, key: tuple[int, int, int] | None, fd: int) -> None:
        self.key = key
        self.fd = os.dup(fd)
        self.ranges = 0

    def read(self, offset: int, size: int) -> bytes:
        """The ``size`` bytes at ``offset``. Raises OSError, also if the file ends before."""
        data = os.pread(self.fd, size, offset)
        while len(data) < size:
            more = os.pread(self.fd, size - len(data), offset + len(data))
            if not more:
                raise OSError(errno.EIO, f"the file ends at {offset + len(data):#x}")
            data += more
        return data

    def write(self, offset: int, data: bytes) -> None:
        """Stores ``data`` at ``offset``. Raises OSError."""
        done = 0
        while done < len(data):
            if not (count := os.pwrite(self.fd, data[done:], offset + done)):
                raise OSError(errno.EIO, f"the file takes no more at {offset + done:#x}")
            done += count

    def close(self) -> None:
        """Let the descriptor go."""
        os.close(self.fd)


class InPlace:
    """A range of guest memory in an `UnmappedFile`: IOVA plus ``base`` is the offset.

    As `outboard.dma.RemoteMemory`; raises DmaError where a system call fails.
    """

    __slots__ = ("_base", "_file")

    def __init__(self, file: UnmappedFile, base: int) -> None:
        self._file, self._base = file, base

    def read(self, address: int, count: int) -> bytes:
        """The `count` bytes at IOVA `address`."""
        try:
            return self._file.read(address + self._base, count)
        except OSError as error:
            raise self._failed("reading", address, count, error) from error

    def write(self, address: int, data: bytes) -> None:
        """Stores `data` at IOVA `address`."""
        try:
            self._file.write(address + self._base, data)
        except OSError as error:
            raise self._failed("writing", address, len(data), error) from error

    @staticmethod
    def _failed(doing: str, address: int, size: int, error: OSError) -> DmaError:
        sentence = f"{doing} {size:#x} bytes at {address:#x} by file I/O: {error.strerror}"
        return DmaError(sentence, address=address, size=size)


class GuestFiles:
    """The files in use now; whoever maps a range of one counts it in its ``ranges``."""

    def __init__(self) -> None:
        self._files: dict[tuple[int, int, bool], GuestFile] = {}
        self._count = self._bytes = 0
        self._unmapped: dict[tuple[int, int, int], UnmappedFile] = {}

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
            self._check_room(status.st_size)
            try:
                file = GuestFile(key, fd, status.st_size)
            except (OSError, ValueError, OverflowError) as error:
                raise RequestRefused(f"its descriptor cannot be mapped ({error})") from error
            self._files[key] = file
            self._count += 1
            self._bytes += file.length
        return file

    def open_unmapped(
        self, fd: int, offset: int, size: int, *, readable: bool, writable: bool
    ) -> UnmappedFile:
        """The file of ``fd``, for a range of ``size`` bytes at ``offset`` that is reached by file I/O.

        Raises RequestRefused: EINVAL for a descriptor that has no places to read at or is shorter than the
        range, EACCES if it is not open for what it has to be. The descriptor stays the caller's.
        """
        try:
            status, flags = os.fstat(fd), fcntl.fcntl(fd, fcntl.F_GETFL)
        except OSError as error:
            raise RequestRefused(f"bad descriptor ({error.strerror})") from error
        # Others, an eventfd for one, take a place to read at for granted and wait for what never comes.
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISBLK(status.st_mode) or stat.S_ISCHR(status.st_mode)):
            raise RequestRefused("its descriptor is neither a file nor a device, so file I/O cannot reach it")
        # Files of the kernel's, in /proc for one, are of size 0 whatever they hold.
        if offset + size > MAX_OFFSET or 0 < status.st_size < offset + size:
            raise RequestRefused(
                f"its descriptor has {status.st_size:#x} bytes, the range ends at {offset + size:#x} of it"
            )
        access = flags & os.O_ACCMODE
        if (readable and access == os.O_WRONLY) or (writable and access == os.O_RDONLY):
            raise RequestRefused("its descriptor is not open for that", errno=errno.EACCES)
        if writable and flags & os.O_APPEND:
            raise RequestRefused("its descriptor is open for appending: it writes at the end, wherever told")
        key = (status.st_dev, status.st_ino, flags) if stat.S_ISREG(status.st_mode) else None
        file = self._unmapped.get(key) if key else None
        if file is None:
            self._check_room(0)
            try:
                os.pwrite(fd, b"", offset) if access == os.O_WRONLY else os.pread(fd, 0, offset)
                file = UnmappedFile(key, fd)
            except OSError as error:
                raise RequestRefused(
                    f"its descriptor cannot be read at a place ({error.strerror})"
                ) from error
            self._count += 1
            if key:
                self._unmapped[key] = file
        return file

    def release(self, file: GuestFile | UnmappedFile | None) -> None:
        """Lets a file go from which no range is left."""
        if file is None or file.ranges:
            return
        if isinstance(file, UnmappedFile):
            if file.key:
                del self._unmapped[file.key]
        elif self._files.get(file.key) is file:
            del self._files[file.key]
        self._count -= 1
        self._bytes -= file.length
        file.close()

    def _check_room(self, length: int) -> None:
        """Raises RequestRefused (ENOSPC) if a file, of ``length`` bytes to be mapped, is one too many."""
        # Asked for each time: a program may raise its limit after it has made its devices.
        most = min(MAX_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
        if self._count >= most or self._bytes + length > MAX_FILE_BYTES:
            raise RequestRefused(
                f"{self._count} files of {self._bytes:#x} bytes are in use already, this one has {length:#x}:"
                f" at most {most} files of {MAX_FILE_BYTES:#x} bytes can be (half of `ulimit -n`, and"
                f" no more than {MAX_FILES})",
                errno=errno.ENOSPC,
            )
