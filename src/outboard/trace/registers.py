"""What is at an offset of a region: registers by name, bits by name.

PCI Local Bus 3.0 chapter 6 and PCI Express 7 for configuration space, whose capabilities have names as
soon as the capture has read them; for BARs what a device class declares (`outboard.pci.registers`), and
MSI-X's tables where the capability says they are.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, IntFlag
from typing import Any

from outboard.pci.config_space import Command, Status
from outboard.pci.fields import declared
from outboard.pci.registers import BitField, RegisterArray, RegisterField

CONFIG, ROM, VGA = 7, 6, 8
REGIONS = {**{index: f"BAR{index}" for index in range(6)}, ROM: "ROM", CONFIG: "config", VGA: "VGA"}
MOST_NAMES = 4
"""A longer access is of memory, not of registers: it is not told register by register."""

MOST_OF_ARRAY = 4096
FAR = 0x80
"""Bytes so far behind a capability's start are taken for no part of it."""

CONFIG_SIZE, EXTENDED = 4096, 0x100
CLASS_CODE, CAPABILITY_POINTER, FIRST_CAPABILITY = 0x09, 0x34, 0x40


def region_name(index: int) -> str:
    """What a region is called: ``BAR0``, ``ROM``, ``config``.

    >>> region_name(0), region_name(7), region_name(12)
    ('BAR0', 'config', 'region 12')
    """
    return REGIONS.get(index, f"region {index}")


@dataclass(frozen=True, slots=True)
class Bits:
    """Some bits of a register: the lowest, how many, and the enum that names their values, or int."""

    name: str
    low: int
    width: int
    kind: Callable[[int], Any] = int

    def of(self, value: int) -> str:
        """Name and value, where the register is ``value``."""
        number = value >> self.low & (1 << self.width) - 1
        try:
            word = self.kind(number)
        except ValueError:
            word = number
        text = word.name if isinstance(word, Enum) else f"{number:#x}" if number > 9 else f"{number}"
        return f"{self.name}={text}"


@dataclass(frozen=True, slots=True)
class Named:
    """A register; ``bits`` are fields of it, ``flags`` names single bits that may be set."""

    offset: int
    size: int
    name: str
    bits: tuple[Bits, ...] = ()
    flags: type[IntFlag] | None = None

    def words(self, value: int) -> str:
        """What the bits of ``value`` say; nothing where they have no names."""
        if self.flags is not None:
            return flag_names(self.flags, value)
        return " ".join(bits.of(value) for bits in self.bits)


def flag_names(kind: type[IntFlag], value: int) -> str:
    """The names of the bits that are set, joined; bits without a name as a number.

    >>> flag_names(Command, 0x806)
    'MEMORY|MASTER|0x800'
    """
    names = [flag.name or "" for flag in kind if flag.value & value and flag.value.bit_count() == 1]
    rest = value & ~sum(flag.value for flag in kind if flag.value.bit_count() == 1)
    return "|".join(names + [f"{rest:#x}"] * bool(rest)) or "none"


class RegisterMap:
    """The registers of one region, found by offset."""

    def __init__(self, registers: list[Named]) -> None:
        self._registers = sorted(registers, key=lambda named: named.offset)
        self._starts = [named.offset for named in self._registers]

    def touched(self, offset: int, count: int) -> list[Named]:
        """The registers an access touches; of more than `MOST_NAMES` one more than that."""
        first = max(bisect_right(self._starts, offset) - 1, 0)
        near = self._registers[first : first + MOST_NAMES + 2]
        return [
            named for named in near if named.offset < offset + count and offset < named.offset + named.size
        ][: MOST_NAMES + 1]


class Registers:
    """The registers of one device as a capture shows them: what `read` learns, `name` and `value` use.

    ``device`` is a class that declares registers. ``known`` gives one for a class code read from
    configuration space, where ``device`` is None.
    """

    def __init__(
        self, device: type | None = None, known: Mapping[int, Callable[[], type]] | None = None
    ) -> None:
        self._known = {} if known is None or device is not None else known
        self._declared = {} if device is None else declared_registers(device)
        self._maps: dict[int, RegisterMap] = {}
        self._config = bytearray(CONFIG_SIZE)
        self._read = bytearray(CONFIG_SIZE)  # 1 where the byte was read

    def read(self, region: int, offset: int, data: bytes) -> None:
        """Learn from what was read: configuration space tells of capabilities and of the class."""
        if region != CONFIG or offset >= CONFIG_SIZE:
            return
        data = data[: CONFIG_SIZE - offset]
        place = slice(offset, offset + len(data))
        news = not all(self._read[place])
        self._config[place], self._read[place] = data, b"\1" * len(data)
        if news:
            self._maps.clear()
            if all(self._read[CLASS_CODE : CLASS_CODE + 3]):
                code = int.from_bytes(self._config[CLASS_CODE : CLASS_CODE + 3], "little")
                if find := self._known.get(code):
                    self._declared, self._known = declared_registers(find()), {}

    def name(self, region: int, offset: int, count: int) -> str:
        """The registers at an offset, as ``csts`` or ``COMMAND, STATUS`` or ``cap+0x4``; or nothing."""
        touched = self._map(region).touched(offset, count)
        if not touched and region == CONFIG:
            touched = self._behind(offset)
        if len(touched) > MOST_NAMES:
            return ""
        return ", ".join(
            named.name if named.offset >= offset else f"{named.name}+{offset - named.offset:#x}"
            for named in touched
        )

    def _behind(self, offset: int) -> list[Named]:
        """The capability that ``offset`` is behind the start of, where it is known no better."""
        near = [(at, name) for at, name, *_ in self._capabilities() if 0 < offset - at < FAR]
        starts = [each for each in near if (each[0] < EXTENDED) == (offset < EXTENDED)]
        return [Named(at, 0, name) for at, name in sorted(starts)[-1:]]

    def bits(self, region: int, offset: int, data: bytes) -> str:
        """What the named bits say in the registers that ``data`` covers whole."""
        touched = self._map(region).touched(offset, len(data))
        words = {}
        for named in touched:
            start = named.offset - offset
            if start >= 0 and start + named.size <= len(data):
                value = int.from_bytes(data[start : start + named.size], "little")
                words[named.name] = named.words(value)
        if len(touched) > MOST_NAMES:
            return ""
        if len(touched) == 1:
            return next(iter(words.values()), "")
        return "; ".join(f"{name} {said}" for name, said in words.items() if said)

    def _map(self, region: int) -> RegisterMap:
        if region not in REGIONS:
            return RegisterMap([])
        found = self._maps.get(region)
        if found is None:
            named = list(self._declared.get(region, ()))
            if region == CONFIG:
                named += HEADER
                for at, name, header, registers in self._capabilities():
                    named += placed(name, at, header, registers)
            else:
                named += self._msix_tables(region)
            found = self._maps[region] = RegisterMap(named)
        return found

    def _capabilities(self) -> Iterator[tuple[int, str, int, tuple[Named, ...]]]:
        """The capabilities read so far: offset, name, the header's size, registers."""
        at, seen = self._config[CAPABILITY_POINTER] & 0xFC, set[int]()
        while at >= FIRST_CAPABILITY and at not in seen and all(self._read[at : at + 2]):
            seen.add(at)
            id = self._config[at]
            name, registers = STANDARD.get(id, (f"CAP_{id:02X}", ()))
            if id == MSI and self._config[at + 2] & 0x80:
                registers = MSI_64
            yield at, name, 2, registers
            at = self._config[at + 1] & 0xFC
        at = EXTENDED
        while at >= EXTENDED and at not in seen and all(self._read[at : at + 4]):
            seen.add(at)
            header = self._number(at, 4)
            if not header:
                break
            yield at, EXTENDED_NAMES.get(header & 0xFFFF, f"EXTCAP_{header & 0xFFFF:04X}"), 4, ()
            at = header >> 20 & 0xFFC

    def _number(self, at: int, size: int) -> int:
        return int.from_bytes(self._config[at : at + size], "little")

    def _msix_tables(self, region: int) -> Iterator[Named]:
        """MSI-X's table and its pending bits, if they are in this region."""
        for at, name, _, _ in self._capabilities():
            if name != "MSIX" or not all(self._read[at : at + 12]):
                continue
            count = (self._number(at + 2, 2) & 0x7FF) + 1
            table, pending = self._number(at + 4, 4), self._number(at + 8, 4)
            if table & 7 == region:
                for part, offset, size in (("ADDRESS", 0, 8), ("DATA", 8, 4), ("CONTROL", 12, 4)):
                    yield from repeated(Named((table & ~7) + offset, size, f"MSIX_{part}"), count, 16)
            if pending & 7 == region:
                yield from repeated(Named(pending & ~7, 8, "MSIX_PBA"), -(-count // 64), 8)
            return


def placed(title: str, at: int, header: int, registers: tuple[Named, ...]) -> Iterator[Named]:
    """The registers of a capability at ``at``, its header first."""
    yield Named(at, header, title)
    for named in registers:
        yield Named(at + named.offset, named.size, f"{title}.{named.name}", named.bits)


def repeated(named: Named, count: int, stride: int) -> Iterator[Named]:
    """An array of registers like ``named``: the first `MOST_OF_ARRAY` of them."""
    for index in range(min(count, MOST_OF_ARRAY)):
        yield Named(named.offset + index * stride, named.size, f"{named.name}[{index}]", named.bits)


def declared_registers(device: type) -> dict[int, list[Named]]:
    """The registers a device class declares, by the index of their BAR."""
    fields = declared(device)
    bits: dict[str, list[Bits]] = {}
    for name, field in fields.items():
        if isinstance(field, BitField):
            width = field.high - field.low + 1
            bits.setdefault(field.register.name, []).append(Bits(name, field.low, width, field.kind))
    registers: dict[int, list[Named]] = {}
    for name, field in fields.items():
        if isinstance(field, RegisterField):
            named = Named(field.offset, field.size, name, tuple(bits.get(name, ())))
            array = isinstance(field, RegisterArray)
            all_of_it = repeated(named, field.count, field.stride) if array else [named]
            registers.setdefault(field.bar.index, []).extend(all_of_it)
    return registers


HEADER = [
    Named(0x00, 2, "VENDOR_ID"),
    Named(0x02, 2, "DEVICE_ID"),
    Named(0x04, 2, "COMMAND", flags=Command),
    Named(0x06, 2, "STATUS", flags=Status),
    Named(0x08, 1, "REVISION_ID"),
    Named(0x09, 3, "CLASS_CODE"),
    Named(0x0C, 1, "CACHE_LINE_SIZE"),
    Named(0x0D, 1, "LATENCY_TIMER"),
    Named(0x0E, 1, "HEADER_TYPE"),
    Named(0x0F, 1, "BIST"),
    *(Named(0x10 + 4 * index, 4, f"BAR{index}") for index in range(6)),
    Named(0x28, 4, "CARDBUS_CIS"),
    Named(0x2C, 2, "SUBSYSTEM_VENDOR_ID"),
    Named(0x2E, 2, "SUBSYSTEM_ID"),
    Named(0x30, 4, "ROM_BAR"),
    Named(0x34, 1, "CAPABILITIES"),
    Named(0x3C, 1, "INTERRUPT_LINE"),
    Named(0x3D, 1, "INTERRUPT_PIN"),
    Named(0x3E, 1, "MIN_GNT"),
    Named(0x3F, 1, "MAX_LAT"),
]

MSI, MSIX = 0x05, 0x11
_MSI_CONTROL = Named(2, 2, "CONTROL", (Bits("enable", 0, 1), Bits("log2_vectors", 4, 3)))
_MSIX_CONTROL = Named(2, 2, "CONTROL", (Bits("enable", 15, 1), Bits("masked", 14, 1), Bits("last", 0, 11)))
MSI_64 = (
    _MSI_CONTROL,
    Named(4, 8, "ADDRESS"),
    Named(12, 2, "DATA"),
    Named(16, 4, "MASK"),
    Named(20, 4, "PENDING"),
)
STANDARD: dict[int, tuple[str, tuple[Named, ...]]] = {
    0x01: ("PM", (Named(2, 2, "PMC"), Named(4, 2, "PMCSR", (Bits("D", 0, 2), Bits("pme_enable", 8, 1))))),
    0x03: ("VPD", ()),
    MSI: (
        "MSI",
        (
            _MSI_CONTROL,
            Named(4, 4, "ADDRESS"),
            Named(8, 2, "DATA"),
            Named(12, 4, "MASK"),
            Named(16, 4, "PENDING"),
        ),
    ),
    0x09: ("VENDOR", (Named(2, 1, "LENGTH"),)),
    0x0D: ("SSVID", ()),
    0x10: (
        "PCIE",
        (
            Named(0x02, 2, "FLAGS"),
            Named(0x04, 4, "DEVCAP"),
            Named(0x08, 2, "DEVCTL", (Bits("flr", 15, 1), Bits("mps", 5, 3), Bits("mrrs", 12, 3))),
            Named(0x0A, 2, "DEVSTA"),
            Named(0x0C, 4, "LNKCAP"),
            Named(0x10, 2, "LNKCTL"),
            Named(0x12, 2, "LNKSTA"),
            Named(0x24, 4, "DEVCAP2"),
            Named(0x28, 2, "DEVCTL2"),
            Named(0x2A, 2, "DEVSTA2"),
            Named(0x2C, 4, "LNKCAP2"),
            Named(0x30, 2, "LNKCTL2"),
            Named(0x32, 2, "LNKSTA2"),
        ),
    ),
    MSIX: ("MSIX", (_MSIX_CONTROL, Named(4, 4, "TABLE"), Named(8, 4, "PBA"))),
    0x13: ("AF", ()),
}
"""Standard capabilities: name, and registers at offsets from the header."""

EXTENDED_NAMES = {
    0x0001: "AER",
    0x0003: "SERIAL_NUMBER",
    0x000B: "VENDOR_EXTENDED",
    0x000D: "ACS",
    0x000E: "ARI",
    0x000F: "ATS",
    0x0010: "SRIOV",
    0x0015: "REBAR",
    0x0018: "LTR",
    0x0019: "SECONDARY_PCIE",
    0x001B: "PASID",
    0x001E: "L1SS",
}
