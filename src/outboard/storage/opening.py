"""Open a file or block device as a disk: what may be one, whether somebody else uses it, how large it is."""

import errno
import fcntl
import os
import stat
from pathlib import Path

from outboard.errors import StorageError
from outboard.storage.direct import DirectStorage, no_direct_access
from outboard.storage.file import FileStorage


def open_file(
    path: str | Path, size: int | None = None, *, direct: bool = False, share: bool = False
) -> FileStorage:
    """Open a file or block device; with ``size`` (bytes), create it sparse if it does not exist.

    The file is locked (flock) while open: two writers of one disk would destroy its content. With ``share``
    others that say so too may open it: the two ends of a live migration, of which one writes at a time.
    With ``direct`` it is accessed past the page cache (`DirectStorage`).
    Raises `StorageError` with what to do.
    """
    path = Path(path)
    fd = _open(path, size, direct)
    try:
        present = _measure(fd, path, size, share)
        return (DirectStorage if direct else FileStorage)(fd, present, str(path))
    except BaseException:
        os.close(fd)
        raise


def _open(path: Path, size: int | None, direct: bool) -> int:
    flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if size is not None else 0)
    flags |= os.O_DIRECT if direct else 0
    try:
        return os.open(path, flags, 0o644)
    except FileNotFoundError as error:
        if size is None:
            raise StorageError(
                f"{path} does not exist: give a size to create it, as in {path},size=1G", errno=errno.ENOENT
            ) from error
        raise StorageError(f"the directory of {path} does not exist: create it first") from error
    except OSError as error:
        if direct and error.errno == errno.EINVAL:
            raise no_direct_access(str(path)) from error
        raise StorageError(
            f"cannot open {path} for reading and writing: {error.strerror}", errno=error.errno
        ) from error


def _measure(fd: int, path: Path, size: int | None, share: bool) -> int:
    """Lock the file and return its size, which it is given if it has none."""
    mode = os.fstat(fd).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        raise StorageError(f"{path} is neither a file nor a block device")
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if share else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        raise StorageError(
            f"{path} is in use by another disk: stop that one, or give this one its own file (for a live"
            f" migration both ends say {path},share=on)",
            errno=error.errno,
        ) from error
    try:
        present = os.lseek(fd, 0, os.SEEK_END)
    except OSError as error:
        raise StorageError(f"{path} has no size, so it is no disk: {error.strerror}") from error
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
    return present
