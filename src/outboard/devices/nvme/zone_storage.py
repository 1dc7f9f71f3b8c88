"""The storage of a zoned namespace, where it holds more than what was written to the zones.

A file may hold anything behind a write pointer: what was there before it had zones, what was in a zone before
its reset was cut off. A host reads zeros there (Zoned Namespace Command Set 1.1, 3.3.5). Memory that is made
with its zones needs none of this.
"""

import errno
import os

from outboard.devices.nvme.zone import ZRWA_VALID, Zone
from outboard.devices.nvme.zone_table import ZoneTable
from outboard.devices.nvme.zones import Zones
from outboard.storage import Storage
from outboard.storage.base import Data
from outboard.storage.fast import Fast, Memory, Nothing, fast_of


class ZonedStorage:
    """``below`` as ``zones`` of blocks of ``block_size`` bytes; a flush keeps their ``table``, if any."""

    def __init__(self, below: Storage, zones: Zones, block_size: int) -> None:
        self.below = below
        self.discard_zeroes = below.discard_zeroes
        self.table: ZoneTable | None = None
        self._zones = zones
        self._block_size = block_size

    @property
    def size(self) -> int:
        """As that of what is below."""
        return self.below.size

    @size.setter
    def size(self, size: int) -> None:
        self.below.size = size

    @property
    def fast(self) -> Fast | None:
        """What is below, for reads while they need no look at the zones."""
        return fast_of(self.below)

    def read(self, offset: int, size: int) -> bytes:
        """Return ``size`` bytes from ``offset``."""
        buffer = bytearray(size)
        self.readinto(offset, memoryview(buffer))
        return bytes(buffer)

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from ``offset``; zeros where nothing was written."""
        self.below.readinto(offset, buffer)
        end = offset + buffer.nbytes
        at = offset
        while at < end and at // self._block_size < self._zones.blocks:
            zone = self._zones.at(at // self._block_size)
            until = min(end, (zone.start + self._zones.geometry.size) * self._block_size)
            blank = max(at, zone.written * self._block_size)
            if zone.stale and blank < until:
                buffer[blank - offset : until - offset] = bytes(until - blank)
            at = until

    def write(self, offset: int, data: Data) -> None:
        """Write all of ``data`` at ``offset``."""
        self.below.write(offset, data)
        self._stored(offset, len(data))

    def flush(self) -> None:
        """Return when everything written before is durable, and the write pointers are."""
        with self._zones.lock:
            zones = [self._zones.zones[number] for number in sorted(self._zones.dirty)]
            self._zones.dirty.clear()
        reached = [
            (
                zone,
                zone.generation,
                zone.pointer if zone.attributes & ZRWA_VALID else zone.stored,
                zone.stored,
            )
            for zone in zones
        ]
        try:
            self.below.flush()
        except BaseException:
            with self._zones.lock:
                self._zones.dirty.update(zone.number for zone in zones)
            raise
        if self.table is not None:
            for zone, generation, pointer, written in reached:
                if zone.generation == generation:
                    self.table.put_flushed(zone, pointer, written)
            self.table.sync()

    def discard(self, offset: int, size: int) -> None:
        """As what is below does."""
        self.below.discard(offset, size)
        self._stored(offset, size)

    def write_zeroes(self, offset: int, size: int) -> None:
        """As what is below does."""
        self.below.write_zeroes(offset, size)
        self._stored(offset, size)

    def close(self) -> None:
        """Close what is below."""
        self.below.close()

    def _stored(self, offset: int, size: int) -> None:
        """Something was written, of one zone, or made zeros, of several that are empty then."""
        lba = offset // self._block_size
        if lba < self._zones.blocks:
            zone = self._zones.at(lba)
            zone.stored = max(zone.stored, min(zone.written, lba + size // self._block_size))

    def resized(self, first: int) -> None:
        """There are other zones from number ``first`` on."""
        if self.table is not None:
            self.table.follow()
        self.look(first)

    def look(self, first: int = 0) -> None:
        """Find out of which zones, from ``first`` on, the storage may hold more than was written."""
        for zone in self._zones.zones[first:]:
            if zone.written == zone.start:
                self._zones.mark_stale(zone, not self._blank(zone))

    def _blank(self, zone: Zone) -> bool:
        """Whether there is certainly nothing: a hole of a file."""
        fd = getattr(self.below, "fd", None)
        if not isinstance(fd, int):
            return False
        start, size = zone.start * self._block_size, self._zones.geometry.size * self._block_size
        try:
            return os.lseek(fd, start, os.SEEK_DATA) >= start + size
        except OSError as error:
            return error.errno == errno.ENXIO


def keeps_nothing(storage: Storage) -> bool:
    """Whether what a storage holds was written since it was made, and goes with it."""
    return isinstance(fast_of(storage), Memory | Nothing)
