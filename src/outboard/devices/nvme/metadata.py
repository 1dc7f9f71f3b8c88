"""Blocks with their metadata: in storage, and in the host's memory (NVM Command Set 1.0, 2.1.4).

In storage the metadata lies behind all blocks. The host has it in a buffer of its own, at the Metadata
Pointer, or behind each block in the same buffer, as the namespace is formatted.
"""

import struct
from dataclasses import dataclass, field
from itertools import cycle

from outboard.devices.nvme import sgl
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.namespace import Namespace
from outboard.devices.nvme.runs import Run
from outboard.devices.nvme.status import CommandFailed, Status
from outboard.devices.nvme.transfer import Bus, gather, runs, scatter
from outboard.errors import DmaError
from outboard.storage import persist

BYTE_ALIGNED_BUFFER, SGL_FOR_METADATA = 1 << 17, 1 << 19
"""What of SGLS in Identify Controller is true here of metadata."""

_POINTER_LOCATION = 16
_DESCRIPTOR = struct.Struct("<QQ")


@dataclass(slots=True)
class Extent:
    """``blocks`` blocks of a namespace from ``slba`` on, and room for what they hold, as the host sees it."""

    space: Namespace
    slba: int
    blocks: int
    data: bytearray = field(init=False)
    metadata: bytearray = field(init=False)

    def __post_init__(self) -> None:
        self.data = bytearray(self.blocks * self.space.block_size)
        self.metadata = bytearray(self.blocks * self.space.metadata)

    @property
    def fits(self) -> bool:
        """Whether there is room for what the blocks hold, still: while memory is awaited they may change."""
        room = len(self.data), len(self.metadata)
        return room == (self.blocks * self.space.block_size, self.blocks * self.space.metadata)

    def holds(self, other: "Extent") -> bool:
        """Whether the same blocks hold the same elsewhere, apart from protection information."""
        return self.data == other.data and self._unprotected() == other._unprotected()

    def _unprotected(self) -> bytes:
        hidden = cycle(self.space.protection_mask)
        return bytes(byte & ~mask for byte, mask in zip(self.metadata, hidden, strict=False))

    def load(self) -> None:
        """Read it from the storage; in one call, so that no write comes between. Raises `StorageError`."""
        storage, space = self.space.storage, self.space
        storage.readinto(self.slba * space.block_size, memoryview(self.data))
        if space.metadata:
            storage.readinto(metadata_at(space, self.slba), memoryview(self.metadata))
            self.metadata[:] = space.inverted(self.metadata)

    def persist(self) -> None:
        """Have the storage make it durable. Raises `StorageError`."""
        make_durable(self.space, self.slba, self.blocks)

    def store(self) -> None:
        """Write it to the storage; in one call, so that no read comes between. Raises `StorageError`."""
        storage, space = self.space.storage, self.space
        storage.write(self.slba * space.block_size, self.data)
        if space.metadata:
            storage.write(metadata_at(space, self.slba), space.inverted(self.metadata))


def make_durable(space: Namespace, slba: int, blocks: int) -> None:
    """Have the storage make blocks durable, and what belongs to them. Raises `StorageError`."""
    persist(space.storage, slba * space.block_size, blocks * space.block_size)
    if space.metadata:
        persist(space.storage, metadata_at(space, slba), blocks * space.metadata)


def metadata_at(space: Namespace, slba: int) -> int:
    """Where in the storage, in bytes, the metadata of a block is."""
    return space.metadata_offset + slba * space.metadata


def zero(space: Namespace, slba: int, blocks: int, metadata: bytes) -> None:
    """Make blocks zeros; ``metadata`` is theirs, as the host sees it. Raises `StorageError`."""
    space.storage.write_zeroes(slba * space.block_size, blocks * space.block_size)
    if space.metadata:
        space.storage.write(metadata_at(space, slba), space.inverted(metadata))


def discard(space: Namespace, slba: int, blocks: int) -> None:
    """Deallocate blocks: nothing of their metadata is left to be checked. Raises `StorageError`."""
    storage = space.storage
    storage.discard(slba * space.block_size, blocks * space.block_size)
    if space.metadata:
        forget = storage.discard if storage.discard_zeroes else storage.write_zeroes
        forget(metadata_at(space, slba), blocks * space.metadata)


@dataclass(frozen=True, slots=True)
class Place:
    """Where in guest memory the blocks of a command are: its runs, and those of metadata apart from them.

    ``behind`` is how many bytes of metadata are behind each block.
    """

    data: list[Run]
    metadata: list[Run]
    behind: int

    def fetch(self, bus: Bus, extent: Extent) -> None:
        """Fill an extent with what the host gives. Raises `CommandFailed`."""
        given = gather(bus, self.data)
        if self.metadata:
            extent.metadata[:] = gather(bus, self.metadata)
        if not self.behind:
            extent.data[:] = given
            return
        size = extent.space.block_size
        step = size + self.behind
        for number in range(extent.blocks):
            block = given[number * step : (number + 1) * step]
            extent.data[number * size : (number + 1) * size] = block[:size]
            extent.metadata[number * self.behind : (number + 1) * self.behind] = block[size:]

    def deliver(self, bus: Bus, extent: Extent) -> None:
        """Give the host what an extent holds. Raises `CommandFailed`."""
        data = extent.data
        if self.behind:
            size = extent.space.block_size
            parts = (
                part
                for number in range(extent.blocks)
                for part in (
                    extent.data[number * size : (number + 1) * size],
                    extent.metadata[number * self.behind : (number + 1) * self.behind],
                )
            )
            data = bytearray().join(parts)
        scatter(bus, self.data, data)
        if self.metadata:
            scatter(bus, self.metadata, extent.metadata)


def find(bus: Bus, command: Command, space: Namespace, blocks: int, carried: int, *, reading: bool) -> Place:
    """Find where the host has blocks, with ``carried`` bytes of metadata each; raises `CommandFailed`.

    ``reading`` says that the command fills guest memory.
    """
    behind = carried if space.extended else 0
    data = runs(bus, command, blocks * (space.block_size + behind), reading=reading)
    apart = blocks * (carried - behind)
    return Place(data, _metadata_runs(bus, command, apart, reading=reading) if apart else [], behind)


def _metadata_runs(bus: Bus, command: Command, size: int, *, reading: bool) -> list[Run]:
    """What the Metadata Pointer points to: a buffer, or (PSDT 2) a descriptor of an SGL."""
    pointer = command.mptr
    if command.psdt != 2:
        if command.psdt == 0 and pointer & 3:
            raise CommandFailed(
                Status.INVALID_FIELD,
                f"metadata begins on a dword, not at {pointer:#x}",
                location=_POINTER_LOCATION,
            )
        return [(pointer, size)]
    if pointer & 7:
        raise CommandFailed(
            Status.INVALID_SGL_SEGMENT_DESCRIPTOR,
            f"a segment for metadata begins on a quadword, not at {pointer:#x}",
            location=_POINTER_LOCATION,
        )
    try:
        low, high = _DESCRIPTOR.unpack(bus.read(pointer, _DESCRIPTOR.size))
    except DmaError as error:
        raise CommandFailed(
            Status.DATA_TRANSFER_ERROR,
            f"the descriptor of metadata cannot be read: {error}",
            location=_POINTER_LOCATION,
        ) from error
    try:
        return sgl.runs(bus, low, high, size, reading=reading)
    except CommandFailed as failure:
        short = failure.status == Status.DATA_SGL_LENGTH_INVALID
        raise CommandFailed(
            Status.METADATA_SGL_LENGTH_INVALID if short else failure.status,
            f"metadata: {failure}",
            location=_POINTER_LOCATION,
        ) from failure
