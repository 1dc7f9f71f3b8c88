"""Memory by address: atomic loads and stores, fences, copies. The vocabulary of every data plane.

Addresses and values are 64-bit signed integers: Numba makes a float of signed and unsigned together.
Loads of fewer than 64 bits come unsigned. Alignment is the caller's to see to.

``load`` and ``store`` are relaxed: each happens at once, in no order with others. What another processor
or a guest hands over is read with ``load_acquire`` and given with ``store_release``: everything stored
before the release is seen after the acquire. `fence` orders a store before a later load.

Each body here runs in plain Python, where the GIL and the processors CPython runs on give the order that
is needed; `outboard.native.lowering` has the body that is compiled.
"""

import ctypes
import mmap
import threading

from outboard.native.jit import primitive

CACHE_LINE = 64

_adding = threading.Lock()


@primitive
def load8(address: int) -> int:
    """The byte at ``address``."""
    return ctypes.c_uint8.from_address(address).value


@primitive
def load16(address: int) -> int:
    """The 2 bytes at ``address``."""
    return ctypes.c_uint16.from_address(address).value


@primitive
def load32(address: int) -> int:
    """The 4 bytes at ``address``."""
    return ctypes.c_uint32.from_address(address).value


@primitive
def load64(address: int) -> int:
    """The 8 bytes at ``address``, as a signed number."""
    return ctypes.c_int64.from_address(address).value


@primitive
def store16(address: int, value: int) -> int:
    """Put the low 2 bytes of ``value`` at ``address``."""
    ctypes.c_uint16.from_address(address).value = value
    return 0


@primitive
def store32(address: int, value: int) -> int:
    """Put the low 4 bytes of ``value`` at ``address``."""
    ctypes.c_uint32.from_address(address).value = value
    return 0


@primitive
def store64(address: int, value: int) -> int:
    """Put the 8 bytes of ``value`` at ``address``."""
    ctypes.c_int64.from_address(address).value = value
    return 0


@primitive
def load_acquire32(address: int) -> int:
    """The 4 bytes at ``address``; what was stored before their release is seen afterwards."""
    return ctypes.c_uint32.from_address(address).value


@primitive
def load_acquire64(address: int) -> int:
    """The 8 bytes at ``address``; what was stored before their release is seen afterwards."""
    return ctypes.c_int64.from_address(address).value


@primitive
def store_release32(address: int, value: int) -> int:
    """Put 4 bytes at ``address`` after everything that was stored before."""
    ctypes.c_uint32.from_address(address).value = value
    return 0


@primitive
def store_release64(address: int, value: int) -> int:
    """Put 8 bytes at ``address`` after everything that was stored before."""
    ctypes.c_int64.from_address(address).value = value
    return 0


@primitive
def add64(address: int, value: int) -> int:
    """Add to the 8 bytes at ``address``, as one step among all who do the same; what was there before."""
    with _adding:
        word = ctypes.c_int64.from_address(address)
        before = word.value
        word.value = before + value
    return before


@primitive
def fence() -> int:
    """Everything before happens before everything after, stores before loads included."""
    return 0


@primitive
def pause() -> int:
    """Tell the processor that this is a loop that waits."""
    return 0


@primitive
def copy(to: int, source: int, size: int) -> int:
    """Copy ``size`` bytes that do not overlap: the C library's memcpy."""
    ctypes.memmove(to, source, size)
    return 0


@primitive
def fill(to: int, value: int, size: int) -> int:
    """Set ``size`` bytes to ``value``: the C library's memset."""
    ctypes.memset(to, value, size)
    return 0


@primitive
def copy_ahead(to: int, source: int, size: int, ahead: int) -> int:
    """Copy, and meanwhile begin to fetch as many bytes from ``ahead``; ``size`` is a multiple of 64.

    What is fetched comes into the second-level cache; any address is allowed, but those that are nowhere
    cost time.
    """
    ctypes.memmove(to, source, size)
    return 0


@primitive
def copy_stream(to: int, source: int, size: int, ahead: int) -> int:
    """As `copy_ahead`, past the cache; ``to`` is a multiple of 64. `drain_stream` before telling anyone."""
    ctypes.memmove(to, source, size)
    return 0


@primitive
def drain_stream() -> int:
    """What `copy_stream` stored is seen before what is stored from now on."""
    return 0


@primitive
def prefetch(address: int) -> int:
    """Begin to fetch a cache line into the second-level cache; any address is allowed."""
    return 0


class _Buffer(ctypes.Structure):
    """The C API's ``Py_buffer``."""

    _fields_ = [
        ("address", ctypes.c_void_p),
        *[(name, ctypes.c_ssize_t) for name in ("owner", "size", "item_size")],
        *[(name, ctypes.c_int) for name in ("read_only", "dimensions")],
        *[(name, ctypes.c_void_p) for name in ("format", "shape", "strides", "suboffsets", "internal")],
    ]


def address_of(buffer: mmap.mmap | bytearray | memoryview) -> int:
    """The address of a contiguous buffer; the caller keeps the buffer alive and in place."""
    view = _Buffer()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(buffer), ctypes.byref(view), 0)
    ctypes.pythonapi.PyBuffer_Release(ctypes.byref(view))
    return view.address or 0
