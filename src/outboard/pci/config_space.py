"""Configuration space: 256 or 4096 bytes, and what a write may change of them (PCI 3.0 chapter 6, PCIe 7.5).

Every bit is read-only, read-write, or write-1-to-clear. A write of any size at any offset changes what
its bits allow, ignores the rest without an error (a VMM forwards everything its guest writes), and then
runs the hooks that watch the bytes it touched.
"""

from collections.abc import Callable
from enum import IntFlag

from outboard.errors import RequestRefused, StateError

VENDOR_ID = 0x00
COMMAND = 0x04
STATUS = 0x06
REVISION_ID = 0x08
CACHE_LINE_SIZE = 0x0C
BAR0 = 0x10
SUBSYSTEM_VENDOR_ID = 0x2C
ROM_BAR = 0x30
CAPABILITIES = 0x34
INTERRUPT_LINE = 0x3C
INTERRUPT_PIN = 0x3D
HEADER_SIZE = 0x40
CONVENTIONAL_SIZE = 0x100
EXPRESS_SIZE = 0x1000


class Command(IntFlag):
    """The bits of COMMAND a function without legacy bridges has."""

    IO = 0x001
    MEMORY = 0x002
    MASTER = 0x004
    PARITY = 0x040
    SERR = 0x100
    INTX_DISABLE = 0x400


class Status(IntFlag):
    """The bits of STATUS; the errors are cleared by writing ones."""

    INTERRUPT = 0x0008
    CAPABILITIES = 0x0010
    ERRORS = 0xF900


def check_range(what: str, size: int, offset: int, count: int) -> None:
    """Raise `RequestRefused` (EINVAL) unless ``[offset, offset + count)`` lies in ``size`` bytes."""
    if offset < 0 or count < 0 or offset + count > size:
        raise RequestRefused(f"{count} bytes at {offset:#x} do not lie in {what}, which has {size:#x} bytes")


class ConfigSpace:
    """The configuration space of one function.

    `read` and `write` are the guest's accesses; `load` and `store` are the device's own, which no mask
    holds back and no hook sees.
    """

    def __init__(self, size: int = CONVENTIONAL_SIZE) -> None:
        """An empty space of ``size`` bytes (256 or 4096), all zero and read-only."""
        self.size = size
        self._bytes = bytearray(size)
        self._initial = bytearray(size)
        self._writable = bytearray(size)
        self._clearable = bytearray(size)
        self._hooks: list[tuple[int, int, Callable[[], None]]] = []

    def define(self, offset: int, data: bytes, *, mask: bytes = b"", w1c: bytes = b"") -> None:
        """Give bytes their reset value, their writable bits and their write-1-to-clear bits.

        ``mask`` and ``w1c`` may be shorter than ``data``: the rest is read-only.
        """
        end = offset + len(data)
        self._bytes[offset:end] = self._initial[offset:end] = data
        self._writable[offset:end] = mask.ljust(len(data), b"\0")
        self._clearable[offset:end] = w1c.ljust(len(data), b"\0")

    def watch(self, offset: int, size: int, hook: Callable[[], None]) -> None:
        """Call ``hook`` after every guest write that touches the range, and after every reset."""
        self._hooks.append((offset, offset + size, hook))

    def read(self, offset: int, count: int) -> bytes:
        """The guest's view of ``count`` bytes; `RequestRefused` outside the space."""
        check_range("configuration space", self.size, offset, count)
        return bytes(self._bytes[offset : offset + count])

    def write(self, offset: int, data: bytes) -> None:
        """A guest's write; `RequestRefused` outside the space, bits it may not write are ignored."""
        end = offset + len(data)
        check_range("configuration space", self.size, offset, len(data))
        for position, new in enumerate(data, offset):
            writable = self._writable[position]
            kept = self._bytes[position] & ~writable & ~(new & self._clearable[position])
            self._bytes[position] = kept | new & writable
        for first, last, hook in self._hooks:
            if first < end and offset < last:
                hook()

    def load(self, offset: int, size: int) -> int:
        """The device's own read of a little-endian number."""
        return int.from_bytes(self._bytes[offset : offset + size], "little")

    def store(self, offset: int, size: int, value: int) -> None:
        """The device's own write of a little-endian number: live read-only bits such as STATUS."""
        self._bytes[offset : offset + size] = value.to_bytes(size, "little")

    def reset(self) -> None:
        """Everything back to its reset value; then every hook runs."""
        self._bytes[:] = self._initial
        for _, _, hook in self._hooks:
            hook()

    def save(self) -> bytes:
        """All bytes, as they are."""
        return bytes(self._bytes)

    def restore(self, image: bytes) -> None:
        """Back to what `save` gave; then every hook runs.

        Raises StateError if the size, the ids or the class are not this device's.
        """
        if len(image) != self.size:
            raise StateError(
                f"a configuration space of {len(image)} bytes was saved, here it has {self.size}"
            )
        for offset in (*range(VENDOR_ID, COMMAND), *range(REVISION_ID, CACHE_LINE_SIZE)):
            if image[offset] != self._initial[offset]:
                raise StateError(
                    f"byte {offset:#x} of the saved configuration space is {image[offset]:#x}, here it is"
                    f" {self._initial[offset]:#x}: it is another device's"
                )
        self._bytes[:] = image
        for _, _, hook in self._hooks:
            hook()

    def __len__(self) -> int:
        return self.size


def bar_register(size: int, *, io: bool, bits: int, prefetchable: bool) -> tuple[bytes, bytes]:
    """Reset value and write mask of a BAR register: the mask is what makes sizing work (PCI 3.0 6.2.5.1).

    >>> bar_register(0x1000, io=False, bits=32, prefetchable=False)[1].hex()
    '00f0ffff'
    """
    flags = 0x1 if io else (0x4 if bits == 64 else 0x0) | (0x8 if prefetchable else 0x0)
    return flags.to_bytes(bits // 8, "little"), (2**bits - size).to_bytes(bits // 8, "little")


def rom_register(size: int) -> tuple[bytes, bytes]:
    """Reset value and write mask of the expansion ROM's BAR: an enable bit and the address."""
    return bytes(4), (2**32 - size | 1).to_bytes(4, "little")
