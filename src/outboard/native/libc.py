"""The operating system, from compiled code: system calls by number, and the clock.

A system call returns its result, or minus its errno. Numbers are Linux's; where a machine's differ from
x86_64's, both are here.
"""

import ctypes
import platform
import time

from outboard.native.jit import jitable, primitive
from outboard.native.memory import load64, store64

X86 = platform.machine() in ("x86_64", "AMD64")

SYS_READ = 0 if X86 else 63
SYS_WRITE = 1 if X86 else 64
SYS_MMAP = 9 if X86 else 222
SYS_RT_SIGACTION = 13 if X86 else 134
SYS_GETPID = 39 if X86 else 172
SYS_GETTID = 186 if X86 else 178
SYS_TGKILL = 234 if X86 else 131
SYS_SCHED_YIELD = 24 if X86 else 124
SYS_PRCTL = 157 if X86 else 167
SYS_PPOLL = 271 if X86 else 73
SYS_IO_URING_SETUP, SYS_IO_URING_ENTER, SYS_IO_URING_REGISTER = 425, 426, 427

POLLIN = 1
POLLFD_SIZE = 8
SECOND = 1_000_000_000

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.syscall.argtypes = [ctypes.c_long] * 7


@primitive
def system_call(number: int, a: int, b: int, c: int, d: int, e: int, f: int) -> int:
    """Make a system call; its result, or minus its errno."""
    result: int = _libc.syscall(number, a, b, c, d, e, f)
    return -ctypes.get_errno() if result == -1 else result


@primitive
def monotonic_ns() -> int:
    """Nanoseconds of the monotonic clock, the same as `time.monotonic_ns`."""
    return time.monotonic_ns()


@jitable
def write_eventfd(fd: int, scratch: int) -> int:
    """Add 1 to an eventfd; ``scratch`` is the address of 8 bytes of ours. Blocks if the counter is full."""
    store64(scratch, 1)
    return system_call(SYS_WRITE, fd, scratch, 8, 0, 0, 0)


@jitable
def drain_eventfd(fd: int, scratch: int) -> int:
    """Take what is in an eventfd that does not block; how much it was, 0 if nothing."""
    if system_call(SYS_READ, fd, scratch, 8, 0, 0, 0) != 8:
        return 0
    return load64(scratch)


@jitable
def sched_yield() -> int:
    """Let others run on this processor."""
    return system_call(SYS_SCHED_YIELD, 0, 0, 0, 0, 0, 0)


@jitable
def poll_in(first_fd: int, second_fd: int, timeout_ns: int, scratch: int) -> int:
    """Wait until one of two descriptors (-1: none) is readable; how many are.

    ``timeout_ns`` is -1 for ever. ``scratch`` is the address of 32 bytes of ours.
    """
    store64(scratch, (first_fd & 0xFFFFFFFF) | POLLIN << 32)
    store64(scratch + POLLFD_SIZE, (second_fd & 0xFFFFFFFF) | POLLIN << 32)
    times = 0
    if timeout_ns >= 0:
        times = scratch + 2 * POLLFD_SIZE
        store64(times, timeout_ns // SECOND)
        store64(times + 8, timeout_ns % SECOND)
    return system_call(SYS_PPOLL, scratch, 2, times, 0, 8, 0)
