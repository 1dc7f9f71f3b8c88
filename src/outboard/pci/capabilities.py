"""Capabilities: PM, MSI, vendor, PCIe, MSI-X; extended: serial number, vendor-specific; and raw bytes.

(PCI PM 1.2 chapter 3; PCI 3.0 6.8 and appendix H; PCIe 7.8, 7.9.3, 7.9.5.) Declared as fields of a device
class in any order; `function` places them and links the chain. Each gives the bytes after its header and
what a guest may write of them, and binds itself to one device.
"""

from collections.abc import Callable
from typing import Any

from outboard.pci.bar import Bar
from outboard.pci.config_space import ConfigSpace
from outboard.pci.fields import Field, T_co, check
from outboard.pci.interrupts import Vectors

D0, D3HOT = 0, 3


class Capability(Field[T_co]):
    """A capability: id, the bytes after its header with their reset values, and their write masks.

    The header is two bytes (id, next) for a standard capability and four for an extended one.
    """

    def __init__(
        self,
        id: int,
        data: bytes,
        *,
        mask: bytes = b"",
        w1c: bytes = b"",
        extended: bool = False,
        version: int = 1,
    ) -> None:
        limit = 0xFFFF if extended else 0xFF
        check(0 <= id <= limit, f"capability id {id:#x} is not in 0..{limit:#x}")
        check(0 <= version <= 0xF, f"capability version {version} is not in 0..15")
        check(len(mask) <= len(data), f"capability {id:#x}: a mask of {len(mask)} bytes for {len(data)}")
        self.id, self.data, self.mask, self.w1c = id, bytes(data), mask, w1c
        self.extended, self.version = extended, version
        self.header_size = 4 if extended else 2

    @property
    def size(self) -> int:
        """Bytes it takes, header included."""
        return self.header_size + len(self.data)

    def bind(self, config: ConfigSpace, offset: int, reset: Callable[[], None]) -> T_co:
        """What the field is on one device whose configuration space holds it at ``offset``."""
        raise NotImplementedError


class Placed:
    """A capability of one device: where it is, and its bytes. ``offset`` is that of its header."""

    def __init__(self, config: ConfigSpace, offset: int) -> None:
        self.offset = offset
        self._config = config

    def load(self, offset: int, size: int) -> int:
        """The little-endian number at ``offset`` from the header."""
        return self._config.load(self.offset + offset, size)

    def store(self, offset: int, size: int, value: int) -> None:
        """Set the number at ``offset`` from the header; the guest's write masks do not apply."""
        self._config.store(self.offset + offset, size, value)


class PlainCapability(Capability[Placed]):
    """A capability that is only bytes."""

    def bind(self, config: ConfigSpace, offset: int, reset: Callable[[], None]) -> Placed:
        """Its place and bytes."""
        return Placed(config, offset)


class RawCapability(PlainCapability):
    """Any capability from the bytes after its header and the mask of what a guest may write.

    ``data`` follows the two bytes of a standard header, or the four of an ``extended`` one.
    """

    def __init__(
        self,
        id: int,
        data: bytes,
        mask: bytes | None = None,
        *,
        w1c: bytes = b"",
        extended: bool = False,
        version: int = 1,
    ) -> None:
        super().__init__(id, data, mask=mask or b"", w1c=w1c, extended=extended, version=version)


class VendorCapability(PlainCapability):
    """Vendor-specific (0x09): ``data`` follows the length byte."""

    def __init__(self, data: bytes, mask: bytes | None = None) -> None:
        check(len(data) <= 252, f"VendorCapability: {len(data)} bytes, the length byte allows 252")
        super().__init__(0x09, bytes([3 + len(data)]) + data, mask=b"\0" + mask if mask else b"")


class SerialNumber(PlainCapability):
    """Device serial number (extended, 0x0003): 64 bits."""

    def __init__(self, value: int) -> None:
        check(0 <= value < 1 << 64, f"SerialNumber: {value:#x} does not fit in 64 bits")
        super().__init__(0x0003, value.to_bytes(8, "little"), extended=True)


class VendorExtended(PlainCapability):
    """Vendor-specific, extended (VSEC, 0x000b): the vendor's id and revision, then ``data``."""

    def __init__(self, id: int, revision: int, data: bytes, mask: bytes | None = None) -> None:
        check(0 <= id <= 0xFFFF, f"VendorExtended: id {id:#x} does not fit in 16 bits")
        check(0 <= revision <= 0xF, f"VendorExtended: revision {revision} does not fit in 4 bits")
        check(len(data) <= 0xFFF - 8, f"VendorExtended: {len(data)} bytes do not fit in 12 bits")
        header = id | revision << 16 | 8 + len(data) << 20
        mask = bytes(4) + mask if mask else b""
        super().__init__(0x000B, header.to_bytes(4, "little") + data, mask=mask, extended=True)


class PowerState(Placed):
    """Power management of one device; ``state`` is 0 (D0) or 3 (D3hot)."""

    def __init__(self, config: ConfigSpace, offset: int) -> None:
        super().__init__(config, offset)
        self.state = D0
        config.watch(offset + 4, 2, self._changed)

    def _changed(self) -> None:
        control = self.load(4, 2)
        if control & 3 in (D0, D3HOT):
            self.state = control & 3
        else:
            # D1 and D2 are not offered: such a write completes and changes nothing (PCI PM 1.2, 3.2.4).
            self.store(4, 2, control & ~3 | self.state)


class PowerManagement(Capability[PowerState]):
    """PCI power management (0x01): D0 and D3hot; no reset on the way back to D0 (NSFRST)."""

    def __init__(self) -> None:
        super().__init__(0x01, bytes([0x03, 0, 0x08, 0, 0, 0]), mask=bytes([0, 0, 0x03, 0, 0, 0]))

    def bind(self, config: ConfigSpace, offset: int, reset: Callable[[], None]) -> PowerState:
        """The power state of one device."""
        return PowerState(config, offset)


class PciExpress(PlainCapability):
    """PCI Express (0x10, version 2) of an endpoint: 8 GT/s by 4, function-level reset, no link behind it."""

    _FIELDS = (
        # (offset, size, reset value, write mask, write-1-to-clear)
        (0x02, 2, 0x0002, 0, 0),  # version 2, endpoint
        (0x04, 4, 0x1000_8000, 0, 0),  # FLR, role-based errors, 128-byte payloads
        (0x08, 2, 0x2810, 0xFFFF, 0),  # device control
        (0x0A, 2, 0, 0, 0x000F),  # device status
        (0x0C, 4, 0x0000_0043, 0, 0),  # link capabilities
        (0x10, 2, 0, 0x01CB, 0),  # link control
        (0x12, 2, 0x0043, 0, 0),  # link status
        (0x24, 4, 0x0000_0010, 0, 0),  # device capabilities 2: completion timeout can be disabled
        (0x28, 2, 0, 0x001F, 0),  # device control 2
        (0x2C, 4, 0x0000_000E, 0, 0),  # link capabilities 2: 2.5, 5 and 8 GT/s
        (0x30, 2, 0x0003, 0x000F, 0),  # link control 2: target speed
    )
    _SIZE = 0x3C
    _CONTROL = 0x08
    _RESET = 0x8000

    def __init__(self) -> None:
        data, mask, w1c = bytearray(self._SIZE), bytearray(self._SIZE), bytearray(self._SIZE)
        for offset, size, *values in self._FIELDS:
            for image, value in zip((data, mask, w1c), values, strict=True):
                image[offset : offset + size] = value.to_bytes(size, "little")
        super().__init__(0x10, bytes(data[2:]), mask=bytes(mask[2:]), w1c=bytes(w1c[2:]))

    def bind(self, config: ConfigSpace, offset: int, reset: Callable[[], None]) -> Placed:
        """Its place and bytes; writing the FLR bit resets the device, and the bit reads 0."""
        placed = super().bind(config, offset, reset)

        def control_written() -> None:
            control = placed.load(self._CONTROL, 2)
            if control & self._RESET:
                placed.store(self._CONTROL, 2, control & ~self._RESET)
                reset()

        config.watch(offset + self._CONTROL, 2, control_written)
        return placed


class Msi(Capability[Vectors]):
    """MSI (0x05), 64-bit with a mask bit a vector; ``vectors`` is 1, 2, 4, 8, 16 or 32."""

    def __init__(self, vectors: int = 1) -> None:
        check(vectors in (1, 2, 4, 8, 16, 32), f"Msi(vectors={vectors}): a power of two up to 32")
        self.vectors = vectors
        log2 = vectors.bit_length() - 1
        control = 0x0180 | log2 << 1
        self._most = log2
        data = control.to_bytes(2, "little") + bytes(0x18 - 4)
        mask = (0x0071, 0xFFFF_FFFC, 0xFFFF_FFFF, 0xFFFF, 0, (1 << vectors) - 1)
        sizes = (2, 4, 4, 2, 2, 4)
        writable = b"".join(m.to_bytes(size, "little") for m, size in zip(mask, sizes, strict=True))
        super().__init__(0x05, data, mask=writable)

    def bind(self, config: ConfigSpace, offset: int, reset: Callable[[], None]) -> Vectors:
        """The vectors of one device; its mask and pending registers work."""
        vectors = Vectors(self.vectors)

        def control_written() -> None:
            control = config.load(offset + 2, 2)
            vectors.enabled = bool(control & 1)
            if control >> 4 & 7 > self._most:
                config.store(offset + 2, 2, control & ~0x70 | self._most << 4)

        def mask_written() -> None:
            vectors.guest_mask = config.load(offset + 0x10, 4)

        vectors.on_pending = lambda pending: config.store(offset + 0x14, 4, pending)
        config.watch(offset + 2, 2, control_written)
        config.watch(offset + 0x10, 4, mask_written)
        return vectors


class MsixVectors(Vectors):
    """The MSI-X vectors of one device, with the two windows of its BARs: the table and the PBA."""

    def __init__(self, msix: "MsiX") -> None:
        super().__init__(msix.vectors)
        self.function_masked = False
        self.table = MsixTable(self, msix.table_offset)
        self.pba = MsixPending(self, msix.pba_offset)

    def update_mask(self) -> None:
        """The guest changed the function mask or a mask bit of the table."""
        self.guest_mask = -1 if self.function_masked else self.table.masks

    def reset(self) -> None:
        """Nothing pending, the table as after power on."""
        super().reset()
        self.table.reset()

    def save(self) -> dict[str, Any]:
        """The pending bits, and the table in hexadecimal digits."""
        return {**super().save(), "table": self.table.load(self.table.start, 16 * len(self)).hex()}

    def restore(self, state: dict[str, Any]) -> None:
        """Back to what `save` gave. Raises ValueError, KeyError."""
        table = bytes.fromhex(state["table"])
        if len(table) != 16 * len(self):
            raise ValueError(f"an MSI-X table of {len(table)} bytes for {len(self)} vectors")
        self.table.store(self.table.start, table)
        super().restore(state)


class MsixTable:
    """The MSI-X table: 16 bytes a vector: address, data, and a mask bit.

    PCI starts the mask bits set; here they start clear, because QEMU keeps the table to itself: a server
    never sees its guest clear them. A client that writes the table is obeyed.
    """

    _ENTRY_MASK = (0xFFFF_FFFF_FFFF_FFFC | 0xFFFF_FFFF << 64 | 1 << 96).to_bytes(16, "little")

    def __init__(self, owner: MsixVectors, start: int) -> None:
        self.start = start
        self.end = start + 16 * len(owner)
        self.masks = 0
        self._owner = owner
        self._bytes = bytearray(16 * len(owner))

    def load(self, offset: int, size: int) -> bytes:
        """A guest's read."""
        return bytes(self._bytes[offset - self.start : offset - self.start + size])

    def store(self, offset: int, data: bytes) -> None:
        """A guest's write; clearing a mask bit fires the vector if it is pending."""
        first = offset - self.start
        for position, byte in enumerate(data, first):
            self._bytes[position] = byte & self._ENTRY_MASK[position % 16]
        for number in range(first // 16, (first + len(data) + 15) // 16):
            masked = self._bytes[16 * number + 12]
            self.masks = self.masks & ~(1 << number) | masked << number
        self._owner.update_mask()

    def reset(self) -> None:
        """All zero."""
        self._bytes[:] = bytes(len(self._bytes))
        self.masks = 0
        self._owner.update_mask()


class MsixPending:
    """The pending bit array (PBA): one bit a vector, read-only."""

    def __init__(self, owner: Vectors, start: int) -> None:
        self.start = start
        self.end = start + (len(owner) + 63) // 64 * 8
        self._owner = owner

    def load(self, offset: int, size: int) -> bytes:
        """A guest's read."""
        image = self._owner.pending.to_bytes(self.end - self.start, "little")
        return image[offset - self.start : offset - self.start + size]

    def store(self, offset: int, data: bytes) -> None:
        """A guest's write, which changes nothing."""


class MsiX(Capability[MsixVectors]):
    """MSI-X (0x11) with up to 2048 vectors.

    ``table`` and ``pba`` say where the table (16 bytes a vector) and the pending bits live: (BAR, offset).
    Without them the device gets one more BAR, the first that is free, with both.
    """

    def __init__(
        self,
        vectors: int = 1,
        *,
        table: tuple[Bar | int, int] | None = None,
        pba: tuple[Bar | int, int] | None = None,
    ) -> None:
        check(1 <= vectors <= 2048, f"MsiX(vectors={vectors}): MSI-X has 1 to 2048 vectors")
        check((table is None) == (pba is None), "MsiX: give both table= and pba=, or neither")
        self.vectors = vectors
        self.table_size = 16 * vectors
        self.pba_size = (vectors + 63) // 64 * 8
        self.own_bar = table is None
        self.table_bar, self.table_offset = self._place("table", table or (0, 0))
        self.pba_bar, self.pba_offset = self._place("pba", pba or (0, -(-self.table_size // 4096) * 4096))
        super().__init__(0x11, self._body(self.table_bar, self.pba_bar), mask=bytes([0, 0xC0]))

    @staticmethod
    def _place(what: str, place: tuple[Any, int]) -> tuple[int, int]:
        bar, offset = place
        index = bar.index if isinstance(bar, Bar) else bar
        check(isinstance(index, int) and 0 <= index <= 5, f"MsiX {what}: {bar!r} is no BAR")
        check(offset >= 0 and offset % 8 == 0, f"MsiX {what}: offset {offset:#x} is not a multiple of 8")
        return index, offset

    def _body(self, table_bar: int, pba_bar: int) -> bytes:
        words = (self.table_offset | table_bar, self.pba_offset | pba_bar)
        return (self.vectors - 1).to_bytes(2, "little") + b"".join(w.to_bytes(4, "little") for w in words)

    @property
    def own_bar_size(self) -> int:
        """The size of the BAR made for it when the author names none."""
        return 1 << (self.pba_offset + self.pba_size - 1).bit_length()

    def move(self, bar: int) -> "MsiX":
        """The same capability with table and PBA in BAR ``bar``."""
        moved = MsiX(self.vectors, table=(bar, self.table_offset), pba=(bar, self.pba_offset))
        moved.name = self.name
        return moved

    def bind(self, config: ConfigSpace, offset: int, reset: Callable[[], None]) -> MsixVectors:
        """The vectors of one device; enable, function mask, table masks and PBA work."""
        vectors = MsixVectors(self)

        def control_written() -> None:
            control = config.load(offset + 2, 2)
            vectors.enabled = bool(control & 0x8000)
            vectors.function_masked = bool(control & 0x4000)
            vectors.update_mask()

        config.watch(offset + 2, 2, control_written)
        return vectors
