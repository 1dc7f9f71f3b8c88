"""A namespace: a storage cut into blocks, and the names by which hosts recognise it.

The names are derived from the subsystem's serial number and the namespace identifier, so that they
are the same after every restart: boot entries and /dev/disk/by-id depend on it.

With metadata the storage holds the blocks first, and then the metadata of all of them, in the same order: it
may not change its size. Protection information is kept inverted: where nothing was written, or it was
discarded, there are zeros below and ones to the host, which means "not to be checked".
"""

import hashlib
import threading
import uuid
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from outboard.devices.nvme.datapath.limits import Limits
from outboard.devices.nvme.datapath.stripes import Stripes
from outboard.devices.nvme.extents import Extents
from outboard.devices.nvme.qos import Qos
from outboard.devices.nvme.reservation import Reservation
from outboard.devices.nvme.spec import Csi, WriteProtection
from outboard.devices.nvme.status import Status
from outboard.devices.nvme.zone_layout import ZoneLayout
from outboard.devices.nvme.zone_storage import ZonedStorage, keeps_nothing
from outboard.devices.nvme.zones import Zones
from outboard.errors import DefinitionError
from outboard.storage import Storage
from outboard.storage.fast import Memory, Nothing, fast_of

if TYPE_CHECKING:
    from outboard.devices.nvme.placement import Placed
OUI = bytes.fromhex("626f02")
"""Who made the controller (IEEE), last byte first: a locally administered identifier, nobody's."""

_NAMES = uuid.UUID("5c1a7b0e-3f0d-5b6e-9d2a-6f7574626f61")


@dataclass(frozen=True, slots=True)
class BlockFormat:
    """An LBA format: bytes of a block, and bytes of metadata that go with it.

    ``guard`` is the width, in bits, of the guards that protection information has in this format.
    """

    block_size: int
    metadata: int = 0
    guard: int = 16


FORMATS = (
    BlockFormat(512),
    BlockFormat(4096),
    BlockFormat(512, 8),
    BlockFormat(4096, 8),
    BlockFormat(512, 16, 64),
    BlockFormat(4096, 16, 64),
    BlockFormat(4096, 64),
    BlockFormat(4096, 64, 64),
)
"""The LBA formats there are; a host names them by their place here."""


MOST_DEALLOCATED = 1 << 16
"""Runs of deallocated blocks that are known: a shorter one is taken for zeros that were written."""

ANA_GROUPS = 32
"""Groups of namespaces that controllers may have different access to (`outboard.devices.nvme.ana`)."""


@dataclass(frozen=True, slots=True)
class Protection:
    """End-to-end protection information of a ``type``, 1 to 3 (NVM Command Set 1.0, 5.2).

    It is the first of the metadata, or else the last. ``guard`` is the width of its checksum in bits, 16 or
    64, as the LBA format has it.

    Raises `DefinitionError` for another type or guard.

    >>> Protection(type=2, first=True).dps
    10
    """

    type: int = 1
    first: bool = False
    guard: int = 16

    def __post_init__(self) -> None:
        if self.type not in (1, 2, 3):
            raise DefinitionError(f"protection information has type 1, 2 or 3, not {self.type}")
        if self.guard not in (16, 64):
            raise DefinitionError(f"a guard of {self.guard} bits is not offered: use 16 or 64")

    @classmethod
    def of(cls, dps: int) -> "Protection | None":
        """What a DPS field asks for, None for no protection. Raises `DefinitionError`."""
        return cls(dps & 7, bool(dps & _FIRST)) if dps & 7 else None

    @property
    def dps(self) -> int:
        """The DPS field of Identify Namespace."""
        return self.type | self.first * _FIRST

    @property
    def size(self) -> int:
        """Bytes of it in each block's metadata."""
        return 8 if self.guard == 16 else 16

    @property
    def tag_mask(self) -> int:
        """The largest reference tag."""
        return (1 << 32) - 1 if self.guard == 16 else (1 << 48) - 1


_FIRST = 1 << 3


def derived_uuid(*words: object) -> uuid.UUID:
    """Return the UUID that belongs to these words: the same one for ever."""
    return uuid.uuid5(_NAMES, "/".join(map(str, words)))


@dataclass(slots=True, eq=False)
class Namespace:
    """``storage`` as blocks of ``block_size`` bytes (512 or 4096) with ``metadata`` bytes each.

    What is left over is not used. ``extended``: the host has a block's metadata right behind the block, in
    the same buffer, instead of in one of its own. ``shared``: several controllers may have it attached.
    ``tracked``: it is remembered which blocks are deallocated, so that a host may ask for an error when it
    reads one (DULBE); the data plane leaves writes to Python then. ``protection``: what of the metadata is
    protection information, if any is. ``ana_group`` (1 to 32): namespaces of one group are always reached
    alike by a controller. ``qos`` limits how much of its speed they have together; `Subsystem.set_qos`
    changes that. ``attached`` are the controllers that have it, by their identifiers; ``nsid`` is given by
    the subsystem. ``format`` is the number of the LBA format, as in `FORMATS`.

    ``barred`` is the status that every I/O command ends with for now: it is being formatted, of which
    ``unformatted`` percent remain, or the drive is sanitized. ``erased``: nothing was written since that.
    ``created`` numbers those that a host created; 0 are the others. Whoever changes these has the data planes
    look again.

    With ``zoned`` its blocks are in `zones`, and it is of the zoned command set. ``placement_handles`` are
    the reclaim unit handles by which a host may place data in it, of a subsystem that has such.

    Raises `DefinitionError` for another block size, or a storage smaller than one block, or one zone.

    >>> from outboard.storage import RamStorage
    >>> Namespace(RamStorage(1 << 20), zoned=ZoneLayout(size=256 << 10)).blocks
    2048
    """

    storage: Storage
    block_size: int = 512
    metadata: int = 0
    extended: bool = False
    shared: bool = True
    csi: Csi = Csi.NVM
    tracked: bool = False
    zoned: ZoneLayout | None = None
    placement_handles: Sequence[int] = ()
    ana_group: int = 1
    protection: Protection | None = None
    qos: Qos | None = None
    limits: Limits = field(default_factory=Limits, init=False)
    stripes: Stripes = field(default_factory=Stripes, init=False)
    nsid: int = field(default=0, init=False)
    attached: set[int] = field(default_factory=set, init=False)
    blocks: int = field(default=0, init=False)
    format: int = field(default=0, init=False)
    barred: Status | None = field(default=None, init=False)
    unformatted: int = field(default=0, init=False)
    erased: bool = field(default=False, init=False)
    created: int = field(default=0, init=False)
    write_protection: int = field(default=WriteProtection.NONE, init=False)
    uncorrectable: Extents = field(default_factory=Extents, init=False)
    deallocated: Extents | None = field(default=None, init=False)
    reservation: Reservation = field(default_factory=Reservation, init=False)
    serialized: bool = field(default=False, init=False)
    zones: Zones | None = field(default=None, init=False)
    placed: "Placed | None" = field(default=None, init=False)
    _alone: threading.Lock = field(default_factory=threading.Lock, init=False)

    def __post_init__(self) -> None:
        wanted = (self.block_size, self.metadata, self.protection.guard if self.protection else None)
        found = [
            number
            for number, each in enumerate(FORMATS)
            if wanted in ((each.block_size, each.metadata, guard) for guard in (each.guard, None))
        ]
        if not found:
            offered = ", ".join(
                f"{each.block_size}+{each.metadata}" + (f" (guard of {each.guard})" if each.metadata else "")
                for each in FORMATS
            )
            wish = f"{self.block_size} with {self.metadata} bytes of metadata"
            wish += f" and a guard of {self.protection.guard} bits" if self.protection else ""
            raise DefinitionError(f"a block size of {wish} is not offered: use one of {offered}")
        if not 1 <= self.ana_group <= ANA_GROUPS:
            raise DefinitionError(f"ANA groups are 1 to {ANA_GROUPS}: {self.ana_group} is not")
        if self.zoned is None and self.csi == Csi.ZONED:
            raise DefinitionError(
                "a zoned namespace has a layout of zones: give it one (zoned=ZoneLayout(...))"
            )
        self.limits.set(self.qos)
        self.reformat(found[0], extended=self.extended, protection=self.protection)
        if self.tracked:
            # What a storage in memory holds before anybody writes is nothing that was written.
            unwritten = isinstance(fast_of(self.storage), Memory | Nothing)
            self.deallocated = Extents([(0, self.blocks)] if unwritten else [], MOST_DEALLOCATED)

    def reformat(self, number: int, *, extended: bool = False, protection: Protection | None = None) -> None:
        """Take another LBA format, by its number; what the storage holds is the caller's to discard.

        The width of the guard follows from the format. The data planes have to look again afterwards
        (`Subsystem.reconfigure`). Raises `DefinitionError`, and changes nothing then: there is no such
        format, its metadata has no room for protection information, or the storage holds no block of it.
        """
        if not 0 <= number < len(FORMATS):
            raise DefinitionError(f"there is no LBA format {number}: there are {len(FORMATS)}, from 0 on")
        wanted = FORMATS[number]
        blocks = self.storage.size // (wanted.block_size + wanted.metadata)
        if protection is not None:
            protection = replace(protection, guard=wanted.guard)
            if wanted.metadata < protection.size:
                raise DefinitionError(
                    f"protection information has {protection.size} bytes, and blocks of "
                    f"{wanted.block_size}+{wanted.metadata} have {wanted.metadata} bytes of metadata"
                )
            if self.zoned is not None:
                raise DefinitionError("zones have no protection information here: leave one of them away")
        if blocks == 0:
            raise DefinitionError(
                f"a storage of {self.storage.size} bytes holds no block of {wanted.block_size}:"
                " make it larger"
            )
        if self.zones is not None and number != self.format:
            raise DefinitionError(f"a namespace with zones keeps its LBA format, {self.format}")
        if self.zoned is not None and self.zones is None:
            self._divide(Zones(self.zoned.in_blocks(wanted.block_size), blocks))
        self.format, self.block_size, self.metadata = number, wanted.block_size, wanted.metadata
        self.extended, self.protection = extended and wanted.metadata > 0, protection
        self.measure()

    def _divide(self, zones: Zones) -> None:
        self.csi, self.zones = Csi.ZONED, zones
        if not keeps_nothing(self.storage):
            storage = ZonedStorage(self.storage, zones, self.block_size)
            storage.look()
            self.storage = storage

    def writing(self, slba: int, count: int) -> AbstractContextManager[None]:
        """Write blocks while the ``with`` block runs: in a zone they have to be those that are next.

        Raises `CommandFailed` if they are not, or have become void meanwhile.
        """
        return self.zones.writing(slba, count) if self.zones is not None else nullcontext()

    def alone(self, change: Callable[[], None]) -> Callable[[], None]:
        """``change``, a call that changes the storage, made while no other one is, by whichever controller.

        Needed once the namespace is `serialized`: a fused compare and write has to be one step.
        """

        def changed() -> None:
            with self._alone:
                change()

        return changed if self.serialized else change

    def was_erased(self, *, deallocated: bool = True) -> None:
        """Nothing is left of any block, so nothing is remembered of one: zeros, or a pattern that is kept.

        Where there are zones it is zeros: they are empty, and nothing else is read from those.
        """
        self.uncorrectable.clear()
        if self.deallocated is not None:
            self.deallocated = Extents([(0, self.blocks)] if deallocated else [], MOST_DEALLOCATED)
        if self.zones is not None:
            for zone in self.zones.zones:
                self.zones.mark_stale(zone, False)
            self.zones.clear()

    @property
    def lasting_protection(self) -> int:
        """The write protection that is left after a power cycle."""
        until_power_cycle = self.write_protection == WriteProtection.UNTIL_POWER_CYCLE
        return WriteProtection.NONE if until_power_cycle else self.write_protection

    def measure(self, size: int | None = None) -> None:
        """See how many blocks the storage has, or how many its first ``size`` bytes have.

        Metadata, which lies behind the blocks, is the caller's to move.
        """
        self.blocks = (self.storage.size if size is None else size) // (self.block_size + self.metadata)
        if self.zones is not None:
            self.zones.measure(self.blocks)
            self.blocks = self.zones.blocks

    @property
    def metadata_offset(self) -> int:
        """Where in the storage, in bytes, the metadata of block 0 is."""
        return self.blocks * self.block_size

    @property
    def protection_span(self) -> tuple[int, int]:
        """Where in a block's metadata the protection information begins, and how many bytes it has."""
        if self.protection is None:
            return self.metadata, 0
        size = self.protection.size
        return (0 if self.protection.first else self.metadata - size), size

    @property
    def protection_mask(self) -> bytes:
        """A block's metadata with ones where it is protection information, and zeros elsewhere."""
        start, size = self.protection_span
        return (bytes(start) + b"\xff" * size).ljust(self.metadata, b"\0")

    def inverted(self, metadata: bytes | bytearray) -> bytes:
        """Metadata of blocks as it is stored, from what the host has; and the other way round.

        >>> from outboard.storage import RamStorage
        >>> Namespace(RamStorage(8192), 512, 8, protection=Protection()).inverted(bytes(8)).hex()
        'ffffffffffffffff'
        """
        if self.protection is None:
            return bytes(metadata)
        ones = int.from_bytes(self.protection_mask * (len(metadata) // self.metadata), "little")
        return (int.from_bytes(metadata, "little") ^ ones).to_bytes(len(metadata), "little")


@dataclass(frozen=True, slots=True)
class Names:
    """The identifiers of one namespace, in the byte order of Identify."""

    eui64: bytes
    nguid: bytes
    uuid: bytes

    @classmethod
    def derive(cls, serial: str, nsid: int, created: int = 0) -> "Names":
        """Return the names of namespace ``nsid`` of the subsystem with this serial number.

        ``created`` tells those apart that a host created, and deleted, under the same identifier.
        """
        words = (serial, nsid, created) if created else (serial, nsid)
        digest = hashlib.sha256("/".join(["outboard", *map(str, words)]).encode()).digest()
        # A locally administered, individual identifier: no manufacturer's range is used.
        local = bytes([digest[0] & 0xFC | 0x02])
        return cls(
            eui64=local + digest[1:8],
            nguid=digest[8:16] + local + digest[17:24],
            uuid=derived_uuid(*words).bytes,
        )
