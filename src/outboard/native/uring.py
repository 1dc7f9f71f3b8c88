"""io_uring by raw system calls: file I/O that compiled code queues, and collects without a system call.

io_uring_setup(2), io_uring_enter(2), io_uring_register(2); the numbers are those of <linux/io_uring.h>.

A `Ring` is made and closed by Python. What compiled code knows of it is ``Ring.address``, a block of words;
with that `uring_prepare` fills in requests, `uring_submit` hands all of them over in one system call, and
`uring_reap` takes completions. Any thread may do so, one at a time. A ring takes no more requests than it
has entries, from `uring_prepare` to `uring_reap`: so there is always room, in the submission queue for what
was prepared and in the completion queue (twice the size) for what is under way, and nothing can overflow.

The thread that submits is the one whose time the kernel uses to finish requests: it has to live until its
requests have been reaped.
"""

import errno
import mmap
import os
import struct
from array import array
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from outboard.errors import SetupError
from outboard.native.jit import jitable
from outboard.native.libc import SYS_IO_URING_ENTER, SYS_IO_URING_REGISTER, SYS_IO_URING_SETUP, system_call
from outboard.native.memory import (
    address_of,
    load32,
    load64,
    load_acquire32,
    store64,
    store_release32,
)

OP_NOP, OP_READV, OP_WRITEV, OP_FSYNC, OP_ASYNC_CANCEL, OP_READ, OP_WRITE = 0, 1, 2, 3, 14, 22, 23
"""READ and WRITE take an address and a size; READV and WRITEV an array of iovec and how many there are."""

FIXED_FILE = 1
"""In ``sqe_flags``: ``fd`` is an index into the files registered."""

FSYNC_DATASYNC = 1
"""In ``rw_flags`` of FSYNC: fdatasync(2)."""

RWF_DSYNC = 2
"""In ``rw_flags`` of a write: it is durable when it completes (Force Unit Access)."""

CANCEL_ALL, CANCEL_ANY = 1, 4
"""In ``rw_flags`` of ASYNC_CANCEL: every request that matches; whichever it is."""

MOST_ENTRIES = 1 << 15

_COOP_TASKRUN, _TASKRUN_FLAG = 1 << 8, 1 << 9
_NEEDED_FEATURES = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 3
"""One mapping for both queues, no completion dropped, requests read at submission; READ and WRITE."""
_GETEVENTS = 1
_REGISTER_FILES, _UNREGISTER_FILES = 2, 3
_OFFSET_RINGS, _OFFSET_ENTRIES = 0, 0x1000_0000
_PARAMETERS = struct.Struct("=10I 10I 10I")
_SQ_OVERFLOW_OR_TASKRUN = 1 << 1 | 1 << 2
_DISABLED = Path("/proc/sys/kernel/io_uring_disabled")

SQE_SIZE, CQE_SIZE = 64, 16

# The words of a ring: descriptor, how many requests at a time, counts that only grow, then where things are.
FD, LIMIT, PREPARED, SUBMITTED, REAPED = 0, 8, 16, 24, 32
SQ_TAIL, SQ_FLAGS, SQ_MASK, SQ_ENTRIES = 40, 48, 56, 64
CQ_HEAD, CQ_TAIL, CQ_MASK, CQ_ENTRIES = 72, 80, 88, 96


@jitable
def uring_prepare(
    ring: int,
    opcode: int,
    fd: int,
    address: int,
    size: int,
    offset: int,
    rw_flags: int,
    sqe_flags: int,
    user_data: int,
) -> int:
    """Fill in a request for the next `uring_submit`; 1, or 0 if the ring has all it takes.

    ``size`` is bytes, or segments of a vector. The vector and the file of a request have to stay only until
    it is submitted, its buffers until it is reaped.
    """
    prepared = load64(ring + PREPARED)
    if prepared - load64(ring + REAPED) >= load64(ring + LIMIT):
        return 0
    entry = load64(ring + SQ_ENTRIES) + (prepared & load64(ring + SQ_MASK)) * SQE_SIZE
    store64(entry, opcode | sqe_flags << 8 | fd << 32)
    store64(entry + 8, offset)
    store64(entry + 16, address)
    store64(entry + 24, size | rw_flags << 32)
    store64(entry + 32, user_data)
    store64(ring + PREPARED, prepared + 1)
    return 1


@jitable
def uring_submit(ring: int) -> int:
    """Hand over what was prepared; how many requests that were, or minus the errno if none could be.

    Fewer than were prepared, or 0, if the kernel was short of memory or interrupted: the rest stays, for the
    next call.
    """
    submitted = load64(ring + SUBMITTED)
    prepared = load64(ring + PREPARED)
    first = submitted
    store_release32(load64(ring + SQ_TAIL), prepared & 0xFFFFFFFF)
    # More than once, because the kernel stops behind a request that it refuses.
    while submitted < prepared:
        result = system_call(SYS_IO_URING_ENTER, load64(ring + FD), prepared - submitted, 0, 0, 0, 0)
        if result <= 0:
            later = result == -errno.EAGAIN or result == -errno.EBUSY or result == -errno.EINTR
            return submitted - first if later or submitted > first else result
        submitted += result
        store64(ring + SUBMITTED, submitted)
    return submitted - first


@jitable
def uring_reap(ring: int, out: int) -> int:
    """Take a completion: ``user_data`` to ``out``, result or minus errno to ``out + 8``; 1, or 0 if none.

    No system call, unless the kernel says that it holds some back until there is one.
    """
    reaped = load64(ring + REAPED)
    if load_acquire32(load64(ring + CQ_TAIL)) == reaped & 0xFFFFFFFF:
        if load32(load64(ring + SQ_FLAGS)) & _SQ_OVERFLOW_OR_TASKRUN == 0:
            return 0
        system_call(SYS_IO_URING_ENTER, load64(ring + FD), 0, 0, _GETEVENTS, 0, 0)
        if load_acquire32(load64(ring + CQ_TAIL)) == reaped & 0xFFFFFFFF:
            return 0
    entry = load64(ring + CQ_ENTRIES) + (reaped & load64(ring + CQ_MASK)) * CQE_SIZE
    store64(out, load64(entry))
    store64(out + 8, (load32(entry + 8) ^ 0x80000000) - 0x80000000)
    store64(ring + REAPED, reaped + 1)
    store_release32(load64(ring + CQ_HEAD), (reaped + 1) & 0xFFFFFFFF)
    return 1


@jitable
def uring_unsubmitted(ring: int) -> int:
    """How many requests are prepared and not yet handed over: before sleeping, there should be none."""
    return load64(ring + PREPARED) - load64(ring + SUBMITTED)


@jitable
def uring_in_flight(ring: int) -> int:
    """How many requests are handed over and not yet reaped."""
    return load64(ring + SUBMITTED) - load64(ring + REAPED)


class Ring:
    """An io_uring that takes ``entries`` requests at a time (1 to 32768).

    ``fd`` polls readable when there are completions; ``address`` is what compiled code calls it by.
    Raises `SetupError` that says what is missing.
    """

    def __init__(self, entries: int) -> None:
        if not 1 <= entries <= MOST_ENTRIES:
            raise SetupError(f"a ring of {entries} entries cannot be: 1 to {MOST_ENTRIES} can")
        self.fd, parameters = _setup(entries)
        sq_size, cq_size = parameters[0:2]
        _, sq_tail, sq_mask, _, sq_flags, _, sq_array = parameters[10:17]
        cq_head, cq_tail, cq_mask, _, _, cqes = parameters[20:26]
        self._maps: list[mmap.mmap] = []
        try:
            rings = self._map(max(sq_array + 4 * sq_size, cqes + CQE_SIZE * cq_size), _OFFSET_RINGS)
            sqes = self._map(SQE_SIZE * sq_size, _OFFSET_ENTRIES)
            self.address = self._map(mmap.PAGESIZE)
        except BaseException:
            self._release()
            raise
        # The kernel can be told to take entries out of order. In order is what is wanted, for ever.
        self._maps[0][sq_array : sq_array + 4 * sq_size] = array("I", range(sq_size)).tobytes()
        for word, value in (
            (FD, self.fd),
            (LIMIT, entries),
            (SQ_TAIL, rings + sq_tail),
            (SQ_FLAGS, rings + sq_flags),
            (SQ_MASK, load32(rings + sq_mask)),
            (SQ_ENTRIES, sqes),
            (CQ_HEAD, rings + cq_head),
            (CQ_TAIL, rings + cq_tail),
            (CQ_MASK, load32(rings + cq_mask)),
            (CQ_ENTRIES, rings + cqes),
        ):
            store64(self.address + word, value)
        self._files_registered = False

    def register_files(self, fds: Sequence[int]) -> None:
        """Let requests name these files by their index here (`FIXED_FILE`), instead of those before.

        The kernel holds on to them until others are registered or the ring is closed, even if ``fds`` are
        closed meanwhile. -1 leaves an index free. Raises `OSError`.
        """
        if self._files_registered:
            self._register(_UNREGISTER_FILES, 0, 0)
            self._files_registered = False
        if fds:
            table = bytearray(array("i", fds).tobytes())
            self._register(_REGISTER_FILES, address_of(table), len(fds))
            self._files_registered = True

    def close(self) -> None:
        """Cancel what is under way, wait until it has ended, and let go of everything.

        Afterwards no buffer is touched any more. Completions that were not reaped are lost, requests that
        were not submitted have never been. Closing twice is harmless.
        """
        if self.fd >= 0:
            try:
                self._finish()
            finally:
                self._release()

    def __enter__(self) -> "Ring":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _finish(self) -> None:
        ring, completion = self.address, bytearray(16)
        out = address_of(completion)
        store64(ring + PREPARED, load64(ring + SUBMITTED))
        while uring_reap(ring, out):
            pass
        if uring_in_flight(ring) == 0:
            return
        store64(ring + LIMIT, load64(ring + LIMIT) + 1)
        # Kernels before 5.19 refuse to cancel just any request; what they have then ends by itself.
        uring_prepare(ring, OP_ASYNC_CANCEL, -1, 0, 0, 0, CANCEL_ALL | CANCEL_ANY, 0, 0)
        uring_submit(ring)
        while uring_in_flight(ring):
            if not uring_reap(ring, out):
                result = system_call(SYS_IO_URING_ENTER, self.fd, 0, 1, _GETEVENTS, 0, 0)
                if result < 0 and result not in (-errno.EINTR, -errno.EAGAIN):
                    raise OSError(-result, os.strerror(-result))

    def _map(self, size: int, offset: int | None = None) -> int:
        if offset is None:
            area = mmap.mmap(-1, size)
        else:
            area = mmap.mmap(self.fd, size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE, offset=offset)
        self._maps.append(area)
        return address_of(area)

    def _register(self, opcode: int, address: int, count: int) -> None:
        result = system_call(SYS_IO_URING_REGISTER, self.fd, opcode, address, count, 0, 0)
        if result < 0:
            raise OSError(-result, os.strerror(-result))

    def _release(self) -> None:
        for area in self._maps:
            area.close()
        os.close(self.fd)
        self.fd, self.address = -1, 0


def available() -> str:
    """Why there can be no ring here, as a sentence; empty if there can be one."""
    try:
        with Ring(1) as ring:
            uring_prepare(ring.address, OP_NOP, -1, 0, 0, 0, 0, 0, 0)
            result = uring_submit(ring.address)
            return "" if result == 1 else _why(-result)
    except SetupError as error:
        return error.sentence


def _setup(entries: int) -> tuple[int, tuple[int, ...]]:
    """The descriptor of a new ring, and the parameters as the kernel filled them in.

    A ring may be filled by one thread and emptied by another, and be paused in between: that rules out the
    modes which bind it to a single task. Cooperative completion (Linux 5.19) spares whoever fills it the
    interrupt; instead the kernel says in a flag that it waits for a system call, which `uring_reap` makes.
    """
    for flags in (_COOP_TASKRUN | _TASKRUN_FLAG, 0):
        parameters = bytearray(_PARAMETERS.pack(0, 0, flags, *[0] * 27))
        result = system_call(SYS_IO_URING_SETUP, entries, address_of(parameters), 0, 0, 0, 0)
        if result != -errno.EINVAL:
            break
    if result < 0:
        raise SetupError(_why(-result), errno=-result)
    filled = _PARAMETERS.unpack(parameters)
    if filled[5] & _NEEDED_FEATURES != _NEEDED_FEATURES:
        os.close(result)
        raise SetupError("the io_uring of this kernel is too old: Linux 5.6 or newer is needed")
    return result, filled


def _why(code: int) -> str:
    if code == errno.ENOSYS:
        return (
            "there is no io_uring here: it needs Linux 5.6 or newer with CONFIG_IO_URING, and a container "
            "whose seccomp profile does not hide it"
        )
    if code in (errno.EPERM, errno.EACCES):
        setting = ""
        with suppress(OSError):
            setting = _DISABLED.read_text().strip()
        if setting in ("1", "2"):
            return f"io_uring is switched off: sysctl kernel.io_uring_disabled=0 (it is {setting}) allows it"
        return (
            "io_uring is forbidden here, as by the seccomp profile of most containers: allow io_uring_setup, "
            "io_uring_enter and io_uring_register (docker run --security-opt seccomp=unconfined)"
        )
    if code == errno.ENOMEM:
        return "there is no memory for an io_uring: raise the limit of locked memory (ulimit -l)"
    return f"an io_uring cannot be made: {os.strerror(code)}"
