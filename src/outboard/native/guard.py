"""Memory that its owner may take away: a shrunk file costs zeros, not the process.

A client maps a file for DMA and shrinks it afterwards. Whoever touches the missing part gets SIGBUS, and
dies of it. So a signal handler looks the address up among the guarded ranges, puts a page of zeros there
and lets the access go on; what was written there is lost, and `Guarded.hits` counts. A SIGBUS of any other
kind or at any other address does what it would have done without us.

The handler is a data-plane function like others. Compiled, it is safe wherever the signal comes; it is
used where this process has loaded machine code at all. Uncompiled, it needs the GIL of the thread that
touched the memory, which such a thread either holds or may take: accesses to guest memory are copies that
Python makes, never the inside of an allocator or of a lock.

We do not seal a client's files against shrinking (F_SEAL_SHRINK) though many could be: a seal cannot be
taken back, and outlives us, while the client is free to shrink its file after DMA_UNMAP.
"""

import ctypes
import errno
import heapq
import signal
import sys
import threading
from mmap import PAGESIZE
from typing import Any

from outboard.native.jit import entry, primitive
from outboard.native.libc import (
    SYS_GETPID,
    SYS_GETTID,
    SYS_MMAP,
    SYS_RT_SIGACTION,
    SYS_TGKILL,
    system_call,
)
from outboard.native.machine_code import SYMBOLS
from outboard.native.memory import load32, load64, store64
from outboard.native.words import Block

COUNT, TOTAL, PREVIOUS, CURRENT, SLOTS = 0, 8, 64, 128, 192
"""The table: slots in use at most, accesses saved, what SIGBUS did before us and does now."""
START, SIZE, HITS, SLOT = 0, 8, 16, 24
CAPACITY = 65536
"""Linux lets a process map no more files than that."""
HOLES = 4096
"""Missing pages that get zeros one by one: each may be one more mapping of the process."""

SIGBUS = int(signal.SIGBUS)
SI_CODE, SI_ADDR = 8, 16
BUS_ADRERR, BUS_MCEERR_AR = 2, 4
READ_WRITE = 3
FIXED_PRIVATE_ANONYMOUS = 0x32
SIGNAL_SET = 8
SA_SIGINFO = 4

_table = Block(SLOTS + CAPACITY * SLOT)
SYMBOLS["outboard_guard_table"] = _table.address


@primitive
def guard_table() -> int:
    """The address of the table: a signal handler is given no argument of its own."""
    return _table.address


@entry
def on_fault(number: int, info: int, context: int) -> int:
    """Handle SIGBUS: put zeros where guarded memory is missing; otherwise have it do what it did before."""
    table = guard_table()
    code = load32(info + SI_CODE)
    if code == BUS_ADRERR:
        address = load64(info + SI_ADDR)
        at = table + SLOTS
        end = at + load64(table + COUNT) * SLOT
        while at < end:
            start = load64(at + START)
            size = load64(at + SIZE)
            if start <= address and address - start < size:
                page = address // PAGESIZE * PAGESIZE
                done = -1
                if load64(at + HITS) < HOLES:
                    done = system_call(SYS_MMAP, page, PAGESIZE, READ_WRITE, FIXED_PRIVATE_ANONYMOUS, -1, 0)
                if done < 0:  # huge pages, or too many holes: all of it then
                    done = system_call(SYS_MMAP, start, size, READ_WRITE, FIXED_PRIVATE_ANONYMOUS, -1, 0)
                if done >= 0:
                    store64(at + HITS, load64(at + HITS) + 1)
                    store64(table + TOTAL, load64(table + TOTAL) + 1)
                    return 0
            at += SLOT
    system_call(SYS_RT_SIGACTION, SIGBUS, table + PREVIOUS, 0, SIGNAL_SET, 0, 0)
    if code == 0 or code > BUS_MCEERR_AR:  # no access that would be made again: somebody sent it
        process = system_call(SYS_GETPID, 0, 0, 0, 0, 0, 0)
        system_call(SYS_TGKILL, process, system_call(SYS_GETTID, 0, 0, 0, 0, 0, 0), SIGBUS, 0, 0, 0)
    return 0


class _SignalAction(ctypes.Structure):
    """The C library's ``struct sigaction``."""

    _fields_ = [
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_byte * 128),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    ]


_plain: Any = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * 3)(on_fault.plain)
_lock = threading.RLock()
_free: list[int] = []
_guarded = 0
_handler = 0


class Guarded:
    """A range whose missing pages read as zeros, until `release`.

    Raises OSError (ENOMEM) if 65536 ranges are guarded already.
    """

    __slots__ = ("_at",)

    def __init__(self, address: int, size: int) -> None:
        global _guarded
        with _lock:
            if not _free and _table[COUNT] == CAPACITY:
                raise OSError(errno.ENOMEM, "too many ranges are guarded")
            if not _guarded:
                _install()
            _guarded += 1
            slot = heapq.heappop(_free) if _free else _table[COUNT]
            self._at = SLOTS + slot * SLOT
            _table[self._at + START], _table[self._at + HITS] = address, 0
            _table[self._at + SIZE] = size
            _table[COUNT] = max(_table[COUNT], slot + 1)

    @property
    def hits(self) -> int:
        """How many accesses found a page missing."""
        return _table[self._at + HITS] if self._at else 0

    def release(self) -> None:
        """Guard the range no longer; again is harmless. The last one leaves SIGBUS as it was before."""
        global _guarded
        with _lock:
            if not self._at:
                return
            _table[self._at + SIZE] = 0
            heapq.heappush(_free, (self._at - SLOTS) // SLOT)
            self._at = 0
            _guarded -= 1
            if not _guarded:
                _uninstall()


def total() -> int:
    """How many accesses of this process found a page missing so far: cheap, to see whether any did."""
    return _table[TOTAL]


def _install() -> None:
    global _handler
    function: Any = on_fault.best() if "llvmlite.binding" in sys.modules else on_fault.plain
    _handler = ctypes.cast(_plain if function is on_fault.plain else function, ctypes.c_void_p).value or 0
    system_call(SYS_RT_SIGACTION, SIGBUS, 0, _table.address + PREVIOUS, SIGNAL_SET, 0, 0)
    action = _SignalAction(handler=_handler, flags=SA_SIGINFO)
    ctypes.CDLL(None).sigaction(SIGBUS, ctypes.byref(action), None)


def _uninstall() -> None:
    # Somebody who came after us keeps what is theirs; our handler stays there to be returned to.
    system_call(SYS_RT_SIGACTION, SIGBUS, 0, _table.address + CURRENT, SIGNAL_SET, 0, 0)
    if _table[CURRENT] == _handler:
        system_call(SYS_RT_SIGACTION, SIGBUS, _table.address + PREVIOUS, 0, SIGNAL_SET, 0, 0)
