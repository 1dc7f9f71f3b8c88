"""Namespaces that grow and shrink: their storage, and the metadata that lies behind their blocks.

All of this is done while nobody uses the namespace.
"""

from outboard.devices.nvme.management.pool import Pool
from outboard.devices.nvme.namespace import Namespace
from outboard.devices.nvme.zone_layout import MOST_ZONES
from outboard.devices.nvme.zone_storage import ZonedStorage
from outboard.errors import StorageError
from outboard.storage import Resizable, Storage

AT_ONCE = 1 << 20
"""Bytes moved at a time."""


def resize(space: Namespace, size: int, pool: Pool | None = None) -> None:
    """Give the storage of ``space`` another size in bytes; ``pool`` accounts for it, if it came from there.

    Raises `StorageError` if the storage has one size only, or there is no room, or not one block fits.
    """
    storage, zones = space.storage, space.zones
    if isinstance(storage, ZonedStorage):
        storage = storage.below
    if not isinstance(storage, Resizable):
        raise StorageError(f"a {type(storage).__name__} has one size only: it has no method resize")
    blocks = size // (space.block_size + space.metadata)
    if blocks < 1:
        raise StorageError(f"{size} bytes hold no block of namespace {space.nsid}")
    if zones is not None and not 1 <= blocks // zones.geometry.size <= MOST_ZONES:
        raise StorageError(f"{size} bytes hold no zone of namespace {space.nsid}, or too many")
    before = storage.size
    charged = pool if space.created else None
    if charged is not None:
        charged.resized(space.nsid, size)
    try:
        if size >= before:
            storage.resize(size)
            follow(space)
        else:
            follow(space, size)
            storage.resize(size)
    except StorageError:
        if charged is not None:
            charged.resized(space.nsid, storage.size)
        follow(space)
        raise


def follow(space: Namespace, size: int | None = None) -> None:
    """Use ``size`` bytes of the storage of ``space`` from now on, or all it has; metadata moves along."""
    storage, old = space.storage, space.metadata_offset
    kept = space.blocks
    zones = len(space.zones.zones) if space.zones is not None else 0
    space.measure(size)
    if isinstance(storage, ZonedStorage):
        storage.resized(zones)
    space.uncorrectable.remove(space.blocks, max(kept, space.blocks))
    if space.deallocated is not None:
        space.deallocated.add(kept, max(kept, space.blocks))
        space.deallocated.remove(space.blocks, max(kept, space.blocks))
    new = space.metadata_offset
    if not space.metadata or new == old:
        return
    length = min(kept, space.blocks) * space.metadata
    if new > old:
        _move_up(storage, old, new, length)
        storage.write_zeroes(old, min(kept * space.metadata, new - old))
    elif old + length <= storage.size:
        _move_down(storage, old, new, length)


def _move_up(storage: Storage, source: int, target: int, length: int) -> None:
    """Copy from the end on: the ranges may overlap."""
    done = length
    while done > 0:
        count = min(AT_ONCE, done)
        done -= count
        storage.write(target + done, storage.read(source + done, count))


def _move_down(storage: Storage, source: int, target: int, length: int) -> None:
    """Copy from the beginning on: the ranges may overlap."""
    for done in range(0, length, AT_ONCE):
        count = min(AT_ONCE, length - done)
        storage.write(target + done, storage.read(source + done, count))
