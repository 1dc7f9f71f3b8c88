"""A namespace: a storage cut into blocks, and the names by which hosts recognise it.

The names are derived from the subsystem's serial number and the namespace identifier, so that they
are the same after every restart: boot entries and /dev/disk/by-id depend on it.

With metadata the storage holds the blocks first, and then the metadata of all of them, in the same order.
Metadata is kept inverted: what was never written, or was discarded, is zeros below and ones to the host,
which protection information takes for "not to be checked".
"""

import hashlib
import threading
import uuid
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from outboard.devices.nvme.extents import Extents
from outboard.devices.nvme.reservation import Reservation
from outboard.devices.nvme.spec import Csi
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
    """An LBA format: bytes of a block, and bytes of metadata that go with it."""

    block_size: int
    metadata: int = 0


FORMATS = (
    BlockFormat(512),
    BlockFormat(4096),
    BlockFormat(512, 8),
    BlockFormat(4096, 8),
    BlockFormat(512, 16),
    BlockFormat(4096, 16),
    BlockFormat(4096, 64),
)
"""The LBA formats there are; a host names them by their place here."""


ANA_GROUPS = 32
"""Groups of namespaces that controllers may have different access to (`outboard.devices.nvme.ana`)."""


def derived_uuid(*words: object) -> uuid.UUID:
    """Return the UUID that belongs to these words: the same one for ever."""
    return uuid.uuid5(_NAMES, "/".join(map(str, words)))


@dataclass(slots=True, eq=False)
class Namespace:
    """``storage`` as blocks of ``block_size`` bytes (512 or 4096) with ``metadata`` bytes each.

    What is left over is not used. ``extended``: the host has a block's metadata right behind the block, in
    the same buffer, instead of in one of its own. ``shared``: several controllers may have it attached.
    ``tracked``: it is remembered which blocks are deallocated, so that a host may ask for an error when it
    reads one (DULBE); the data plane leaves writes to Python then. ``ana_group`` (1 to 32): namespaces of one
    group are always reached alike by a controller. ``attached`` are the controllers that have it, by their
    identifiers; ``nsid`` is given by the subsystem.

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
    nsid: int = field(default=0, init=False)
    attached: set[int] = field(default_factory=set, init=False)
    blocks: int = field(default=0, init=False)
    uncorrectable: Extents = field(default_factory=Extents, init=False)
    deallocated: Extents | None = field(default=None, init=False)
    reservation: Reservation = field(default_factory=Reservation, init=False)
    serialized: bool = field(default=False, init=False)
    zones: Zones | None = field(default=None, init=False)
    placed: "Placed | None" = field(default=None, init=False)
    _alone: threading.Lock = field(default_factory=threading.Lock, init=False)

    def __post_init__(self) -> None:
        if BlockFormat(self.block_size, self.metadata) not in FORMATS:
            offered = ", ".join(f"{each.block_size}+{each.metadata}" for each in FORMATS)
            raise DefinitionError(
                f"a block size of {self.block_size} with {self.metadata} bytes of metadata is not offered: "
                f"use one of {offered}"
            )
        if not 1 <= self.ana_group <= ANA_GROUPS:
            raise DefinitionError(f"ANA groups are 1 to {ANA_GROUPS}: {self.ana_group} is not")
        if self.zoned is not None:
            self._divide(self.zoned)
        elif self.csi == Csi.ZONED:
            raise DefinitionError(
                "a zoned namespace has a layout of zones: give it one (zoned=ZoneLayout(...))"
            )
        self.measure()
        if self.blocks == 0:
            raise DefinitionError(
                f"a storage of {self.storage.size} bytes holds no block of {self.block_size}: make it larger"
            )

        if self.tracked:
            # What a storage in memory holds before anybody writes is nothing that was written.
            unwritten = isinstance(fast_of(self.storage), Memory | Nothing)
            self.deallocated = Extents([(0, self.blocks)] if unwritten else [])

    def _divide(self, layout: ZoneLayout) -> None:
        self.csi = Csi.ZONED
        blocks = self.storage.size // (self.block_size + self.metadata)
        self.zones = Zones(layout.in_blocks(self.block_size), blocks)
        if not keeps_nothing(self.storage):
            storage = ZonedStorage(self.storage, self.zones, self.block_size)
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

    @property
    def format(self) -> int:
        """The number of the LBA format, as in `FORMATS`."""
        return FORMATS.index(BlockFormat(self.block_size, self.metadata))

    def measure(self) -> None:
        """See how many blocks the storage has."""
        self.blocks = self.storage.size // (self.block_size + self.metadata)
        if self.zones is not None:
            self.zones.measure(self.blocks)
            self.blocks = self.zones.blocks

    @property
    def metadata_offset(self) -> int:
        """Where in the storage, in bytes, the metadata of block 0 is."""
        return self.blocks * self.block_size


@dataclass(frozen=True, slots=True)
class Names:
    """The identifiers of one namespace, in the byte order of Identify."""

    eui64: bytes
    nguid: bytes
    uuid: bytes

    @classmethod
    def derive(cls, serial: str, nsid: int) -> "Names":
        """Return the names of namespace ``nsid`` of the subsystem with this serial number."""
        digest = hashlib.sha256(f"outboard/{serial}/{nsid}".encode()).digest()
        # A locally administered, individual identifier: no manufacturer's range is used.
        local = bytes([digest[0] & 0xFC | 0x02])
        return cls(
            eui64=local + digest[1:8],
            nguid=digest[8:16] + local + digest[17:24],
            uuid=derived_uuid(serial, nsid).bytes,
        )
