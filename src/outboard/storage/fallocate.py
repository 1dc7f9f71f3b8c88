"""fallocate(2) with its flags: holes and zeros in a file without writing them.

The standard library has only posix_fallocate, which can do neither.
"""

import ctypes
import errno
import os

KEEP_SIZE = 0x01
PUNCH_HOLE = 0x02
ZERO_RANGE = 0x10

_NOT_SUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV, errno.EINVAL)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_libc.fallocate.restype = ctypes.c_int


def fallocate(fd: int, mode: int, offset: int, size: int) -> bool:
    """Apply ``mode`` to the range; False if the file system cannot do that.

    Raises `OSError` for a real failure (EIO, ENOSPC, EPERM, ...).
    """
    while _libc.fallocate(fd, mode | KEEP_SIZE, offset, size) != 0:
        code = ctypes.get_errno()
        if code in _NOT_SUPPORTED:
            return False
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))
    return True
