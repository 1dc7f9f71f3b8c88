"""All a device class declares, checked against each other and laid out: PCI header type 0 and its chains.

Made twice: when a class is created, so that nonsense is refused there, and for each instance, with what
that instance replaces. (PCI 3.0 6.1, 6.7; PCIe 7.5.1, 7.6.3.)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from outboard.pci.bar import PAGE, Bar, Ram, Rom
from outboard.pci.capabilities import Capability, Msi, MsiX, PciExpress
from outboard.pci.config_space import (
    BAR0,
    CACHE_LINE_SIZE,
    CAPABILITIES,
    COMMAND,
    CONVENTIONAL_SIZE,
    EXPRESS_SIZE,
    HEADER_SIZE,
    INTERRUPT_LINE,
    REVISION_ID,
    ROM_BAR,
    STATUS,
    SUBSYSTEM_VENDOR_ID,
    VENDOR_ID,
    Command,
    ConfigSpace,
    Status,
    bar_register,
    rom_register,
)
from outboard.pci.doorbells import Doorbell
from outboard.pci.fields import Field, check
from outboard.pci.interrupts import Intx
from outboard.pci.registers import BitField, RegisterField

Content = RegisterField[Any] | Ram | Doorbell
"""What a BAR can hold."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who the function says it is."""

    vendor_id: int
    device_id: int
    subsystem_vendor_id: int
    subsystem_id: int
    class_code: int
    revision_id: int

    def check(self, owner: str) -> None:
        """Raise `DefinitionError` unless every number fits in its register."""
        widths = {"class_code": 24, "revision_id": 8}
        for name in self.__slots__:
            value, bits = getattr(self, name), widths.get(name, 16)
            check(
                isinstance(value, int) and 0 <= value < 1 << bits,
                f"{owner}.{name} is {value!r}: it has {bits} bits",
            )


class Function:
    """The declarations of one device, placed. Raises `DefinitionError` for what cannot be.

    ``bars`` and the ``contents`` of each by index; ``capabilities`` as (offset, capability).
    """

    def __init__(self, owner: str, fields: Mapping[str, Field[Any]], express: bool | None = None) -> None:
        self.owner = owner
        for name, field in fields.items():
            field.name = field.name or name
        every = list(fields.values())
        capabilities = [field for field in every if isinstance(field, Capability)]
        has_express = any(isinstance(capability, PciExpress) for capability in capabilities)
        self.express = has_express if express is None else express
        self.bars = self._index_bars([field for field in every if isinstance(field, Bar)])
        self.rom = self._only(every, Rom)
        self.intx = self._only(every, Intx)
        self._only(every, Msi)
        self._only(every, PciExpress)
        msix = self._only(every, MsiX)
        self.msix = self._settle(msix) if msix is not None else None
        self.contents = self._group(every)
        for index, bar in self.bars.items():
            self._check_claims(bar, self.contents[index])
        self.capabilities = self._place([self.msix if c is msix and self.msix else c for c in capabilities])

    def config_space(self, identity: Identity) -> ConfigSpace:
        """A new configuration space with header, BARs, and capability chains."""
        config = ConfigSpace(EXPRESS_SIZE if self.express else CONVENTIONAL_SIZE)

        def number(offset: int, size: int, value: int, mask: int = 0, w1c: int = 0) -> None:
            images = [image.to_bytes(size, "little") for image in (value, mask, w1c)]
            config.define(offset, images[0], mask=images[1], w1c=images[2])

        number(VENDOR_ID, 4, identity.vendor_id | identity.device_id << 16)
        number(COMMAND, 2, 0, mask=sum(Command))
        number(STATUS, 2, 0, w1c=Status.ERRORS)
        number(REVISION_ID, 4, identity.revision_id | identity.class_code << 8)
        number(CACHE_LINE_SIZE, 1, 0, mask=0xFF)
        number(SUBSYSTEM_VENDOR_ID, 4, identity.subsystem_vendor_id | identity.subsystem_id << 16)
        number(INTERRUPT_LINE, 1, 0, mask=0xFF)
        for index, bar in self.bars.items():
            value, mask = bar_register(bar.size, io=bar.io, bits=bar.bits, prefetchable=bar.prefetchable)
            config.define(BAR0 + 4 * index, value, mask=mask)
        if self.rom is not None:
            value, mask = rom_register(self.rom.size)
            config.define(ROM_BAR, value, mask=mask)
        self._link(config)
        return config

    def _link(self, config: ConfigSpace) -> None:
        standard = [(offset, c) for offset, c in self.capabilities if not c.extended]
        extended = [(offset, c) for offset, c in self.capabilities if c.extended]
        if standard:
            config.define(CAPABILITIES, bytes([standard[0][0]]))
            config.define(STATUS, bytes([Status.CAPABILITIES]))
        for chain in (standard, extended):
            following = [*(offset for offset, _ in chain[1:]), 0]
            for (offset, capability), after in zip(chain, following, strict=False):
                if capability.extended:
                    header = (capability.id | capability.version << 16 | after << 20).to_bytes(4, "little")
                else:
                    header = bytes([capability.id, after])
                config.define(offset, header)
                config.define(offset + len(header), capability.data, mask=capability.mask, w1c=capability.w1c)

    def _only(self, fields: list[Field[Any]], kind: type[Any]) -> Any:
        found = [field for field in fields if isinstance(field, kind)]
        names = " and ".join(field.name for field in found)
        check(len(found) <= 1, f"{self.owner}: {names} are both {kind.__name__}; a function has one")
        return found[0] if found else None

    def _index_bars(self, bars: list[Bar]) -> dict[int, Bar]:
        taken: dict[int, Bar] = {}
        for bar in bars:
            for index in range(bar.index, bar.index + bar.bits // 32):
                other = taken.setdefault(index, bar)
                check(
                    other is bar,
                    f"{self.owner}: {bar.name} and {other.name} both take BAR{index}"
                    " (a 64-bit BAR takes two indexes)",
                )
        return {bar.index: bar for bar in sorted(bars, key=lambda bar: bar.index)}

    def _settle(self, msix: MsiX) -> MsiX:
        """MSI-X with its table and PBA in BARs that exist, adding one if the author named none."""
        if msix.own_bar:
            taken = {i for bar in self.bars.values() for i in range(bar.index, bar.index + bar.bits // 32)}
            free = [index for index in range(6) if index not in taken]
            check(
                bool(free),
                f"{self.owner}.{msix.name}: no BAR is free for its table;"
                " put table= and pba= into one of the declared BARs",
            )
            own = Bar(free[0], size=max(msix.own_bar_size, PAGE))
            own.name = f"{msix.name} BAR"
            self.bars = self._index_bars([*self.bars.values(), own])
            msix = msix.move(own.index)
        for what, index, offset, size in (
            ("table", msix.table_bar, msix.table_offset, msix.table_size),
            ("PBA", msix.pba_bar, msix.pba_offset, msix.pba_size),
        ):
            where = f"{self.owner}.{msix.name}: the {what} at {offset:#x} of BAR{index}"
            bar = self.bars.get(index)
            check(bar is not None, f"{where}: there is no BAR{index}")
            assert bar is not None
            end = offset + size
            check(not bar.io, f"{where}: that is an I/O BAR")
            check(end <= bar.size, f"{where} ends at {end:#x}, the BAR at {bar.size:#x}")
            first, last = offset // PAGE * PAGE, -(-end // PAGE) * PAGE
            for start, length in bar.mappable:
                check(
                    last <= start or start + length <= first,
                    f"{where} shares a page with the area at {start:#x} that the guest may map",
                )
        return msix

    def _group(self, fields: list[Field[Any]]) -> dict[int, list[Content]]:
        by_name = {bar.name: index for index, bar in self.bars.items()}
        groups: dict[int, list[Content]] = {index: [] for index in self.bars}
        contents = [field for field in fields if isinstance(field, RegisterField | Ram | Doorbell)]
        for content in contents:
            check(
                content.bar.name in by_name,
                f"{self.owner}.{content.name} is in BAR{content.bar.index}, which is no field of the class",
            )
            groups[by_name[content.bar.name]].append(content)
        names = {id(content) for content in contents}
        for field in fields:
            if isinstance(field, BitField):
                check(
                    id(field.register) in names,
                    f"{self.owner}.{field.name} is a bit field of the register at"
                    f" {field.register.offset:#x}, which has no name in the class",
                )
        return groups

    def _check_claims(self, bar: Bar, contents: list[Content]) -> None:
        claims = [
            (start, start + content.size, content.name) for content in contents for start in content.starts
        ]
        if self.msix is not None:
            table, pba = self.msix.table_offset, self.msix.pba_offset
            if self.msix.table_bar == bar.index:
                claims.append((table, table + self.msix.table_size, "the MSI-X table"))
            if self.msix.pba_bar == bar.index:
                claims.append((pba, pba + self.msix.pba_size, "the MSI-X PBA"))
        claims.sort()
        last, previous = 0, ""
        for start, end, name in claims:
            check(
                last <= start, f"{self.owner}: {previous} and {name} overlap at {start:#x} of BAR{bar.index}"
            )
            check(end <= bar.size, f"{self.owner}: {name} ends at {end:#x}, BAR{bar.index} at {bar.size:#x}")
            last, previous = end, name
        for content in contents:
            if isinstance(content, RegisterField):
                self._check_mappable(bar, content)
            elif isinstance(content, Doorbell):
                self._check_trapped(bar, content)

    def _check_mappable(self, bar: Bar, register: RegisterField[Any]) -> None:
        """Where the guest writes memory directly, no handler runs and no access kind holds."""
        first, end = register.offset, register.starts[-1] + register.size
        if not any(start < end and first < start + size for start, size in bar.mappable):
            return
        where = f"{self.owner}.{register.name} lies where the guest may map BAR{bar.index}"
        check(register.access in ("rw", "ro"), f"{where}: it cannot be {register.access!r}")
        check(not register.read_handler, f"{where}: {register.read_handler} would not run")
        # In areas listed one by one a handler hears the clients that do not map, as with doorbells.
        check(
            not (register.write_handler and bar.whole),
            f"{where}: {register.write_handler} would not run; list the areas with mmap=[(offset, size)]",
        )

    def _check_trapped(self, bar: Bar, doorbell: Doorbell) -> None:
        """Where the guest writes memory directly, nothing rings."""
        first, end = doorbell.starts[0], doorbell.starts[-1] + doorbell.size
        for start, size in bar.mappable:
            check(
                end <= start or start + size <= first,
                f"{self.owner}.{doorbell.name} at {first:#x} lies where the guest may map BAR{bar.index}:"
                f" a write there signals nothing; leave it out of the area at {start:#x}",
            )

    def _place(self, capabilities: list[Capability[Any]]) -> list[tuple[int, Capability[Any]]]:
        placed = []
        following = {False: HEADER_SIZE, True: CONVENTIONAL_SIZE}
        for capability in capabilities:
            offset = following[capability.extended]
            end = offset + capability.size
            limit = EXPRESS_SIZE if capability.extended else CONVENTIONAL_SIZE
            what = f"{self.owner}.{capability.name}"
            check(
                self.express or not capability.extended,
                f"{what} is an extended capability: declare PciExpress(), or express = True",
            )
            check(end <= limit, f"{what} does not fit: it would end at {end:#x}, the space at {limit:#x}")
            following[capability.extended] = -(-end // 4) * 4
            placed.append((offset, capability))
        return placed
