"""What only one process may use at a time: the file with a subsystem's state, the folder of a pool.

A claim is a lock (flock of Linux), which ends with its process, however that ends. A process may claim a
thing again that it has: whoever starts two subsystems in one process knows of both.
"""

import fcntl
import logging
import os
from pathlib import Path
from weakref import WeakValueDictionary

from outboard.errors import SetupError

log = logging.getLogger(__name__)

_claims: "WeakValueDictionary[tuple[int, int], Claim]" = WeakValueDictionary()
"""Those of this process, by device and inode."""


class Claim:
    """The lock of ``fd``, which is owned from now on; it ends with the last reference to this."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __del__(self) -> None:
        os.close(self._fd)


def claim(path: Path) -> Claim:
    """Claim a folder, or what is in a file of the same name and ``.lock``, which is made if need be.

    The lock is not that of the file itself, which may be replaced. Raises `SetupError` if another process has
    it. A file system without locks is used without one.
    """
    lock = path if path.is_dir() else path.with_name(f"{path.name}.lock")
    try:
        if lock is path:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        else:
            fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise SetupError(f"cannot open {lock}, by which {path} is claimed: {error.strerror}") from error
    found = os.fstat(fd)
    mine = _claims.get((found.st_dev, found.st_ino))
    if mine is not None:
        os.close(fd)
        return mine
    taken = Claim(fd)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        kind = "folder" if lock is path else "file"
        raise SetupError(
            f"{path} is in use by another process: end that one, or give this subsystem a {kind} of its own"
        ) from error
    except OSError as error:
        log.warning("%s cannot be locked (%s): see that nobody else uses it", path, error.strerror)
    _claims[found.st_dev, found.st_ino] = taken
    return taken
