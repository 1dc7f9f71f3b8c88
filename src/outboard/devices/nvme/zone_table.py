"""The zones of a namespace in a file, so that they are what they were after a power cycle.

A record for each zone, in a file that is mapped. Every change of a zone goes there at once, which costs a few
stores and no system call, and outlives this process. It does not outlive the machine in an order that could
be relied on: so each record also has the pointers of the last flush, which are set when the data before them
is durable, and made so with it. A table that was written before the machine was started (its boot has another
identifier) is read with those. Thus a pointer never goes back behind what was flushed, and never stays
before data that was lost.
"""

import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from outboard.devices.nvme.zone import ACTIVE, Zone, ZoneState
from outboard.devices.nvme.zones import Zones
from outboard.errors import SetupError

_MAGIC = b"OBZONES\x01"
_HEADER = struct.Struct("<8sQQQQ16s")
_HEADER_SIZE, _BOOT_AT = 4096, 40
_RECORD, _FLUSHED = struct.Struct("<BBB5xQQ"), struct.Struct("<QQ")
_FLUSHED_AT, _RECORD_SIZE = 24, 64


class ZoneTable:
    """The table of ``zones``, blocks of ``block_size`` bytes, in a file at ``path``, made if it is not there.

    Raises `SetupError` if it cannot be used, or belongs to zones of another layout.
    """

    def __init__(self, path: Path, zones: Zones, block_size: int) -> None:
        self._path = path
        self._zones = zones
        geometry = zones.geometry
        self._stride = _RECORD_SIZE + geometry.layout.extension
        described = (block_size, geometry.size, geometry.capacity, geometry.layout.extension)
        try:
            self._map(described)
        except OSError as error:
            raise SetupError(f"cannot keep zones in {path}: {error.strerror}") from error
        magic, *found, boot = _HEADER.unpack_from(self._memory)
        if magic != _MAGIC or tuple(found) != described:
            raise SetupError(
                f"{path} is not the table of these zones ({geometry.size} blocks of {block_size} bytes each):"
                " move it away to begin with empty zones"
            )
        # What is there of zones that are gone would be wrong for others that come in their place.
        self.follow()
        self._load(rebooted=boot != _boot())
        self._memory[_BOOT_AT : _BOOT_AT + 16] = _boot()
        self.sync()

    def put(self, zone: Zone) -> None:
        """Keep a zone as it is now."""
        at = self._at(zone.number)
        _RECORD.pack_into(
            self._memory, at, zone.state, zone.attributes, zone.stale, zone.pointer, zone.written
        )
        extension = zone.extension.ljust(self._zones.geometry.layout.extension, b"\0")
        self._memory[at + _RECORD_SIZE : at + self._stride] = extension
        if zone.written == zone.start:
            self.put_flushed(zone, zone.pointer, zone.written)

    def put_flushed(self, zone: Zone, pointer: int, written: int) -> None:
        """What was written of a zone up to there is durable."""
        _FLUSHED.pack_into(self._memory, self._at(zone.number) + _FLUSHED_AT, pointer, written)

    def sync(self) -> None:
        """Return when the table is durable."""
        self._memory.flush()

    def follow(self) -> None:
        """There are more zones than there were, or fewer."""
        if len(self._memory) != self._size:
            self._memory.resize(self._size)

    def remove(self) -> None:
        """The zones are gone for good."""
        self._memory.close()
        self._path.unlink(missing_ok=True)

    @property
    def _size(self) -> int:
        return _HEADER_SIZE + len(self._zones.zones) * self._stride

    def _at(self, number: int) -> int:
        return _HEADER_SIZE + number * self._stride

    def _map(self, described: tuple[int, int, int, int]) -> None:
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            size = os.fstat(fd).st_size
            if size < self._size:
                os.truncate(fd, self._size)
            self._memory = mmap.mmap(fd, max(size, self._size))
        finally:
            os.close(fd)
        if size == 0:
            _HEADER.pack_into(self._memory, 0, _MAGIC, *described, _boot())

    def _load(self, *, rebooted: bool) -> None:
        for zone in self._zones.zones:
            at = self._at(zone.number)
            number, attributes, stale, pointer, written = _RECORD.unpack_from(self._memory, at)
            if number == 0:
                continue
            extension = self._memory[at + _RECORD_SIZE : at + self._stride]
            flushed_pointer, flushed = _FLUSHED.unpack_from(self._memory, at + _FLUSHED_AT)
            try:
                state = ZoneState(number)
                if rebooted and (flushed != written or (state in ACTIVE and flushed_pointer != pointer)):
                    # One that was full stays so: it could be one active zone too many.
                    pointer = max(flushed_pointer, zone.start) if state in ACTIVE else pointer
                    written, stale = max(flushed, zone.start), True
                self._zones.restore(zone, state, attributes, pointer, written, extension, bool(stale))
            except ValueError as error:
                raise SetupError(f"{self._path} is damaged: {error}") from error


def encode(zones: Zones) -> bytes:
    """All zones, to be moved to another process."""
    return b"".join(_encoded(zones))


def _encoded(zones: Zones) -> Iterator[bytes]:
    for zone in zones.zones:
        yield _RECORD.pack(zone.state, zone.attributes, zone.stale, zone.pointer, zone.written)
        yield zone.extension.ljust(zones.geometry.layout.extension, b"\0")


def decode(zones: Zones, data: bytes) -> None:
    """Take back what `encode` gave; raises ValueError if it is not that of such zones."""
    stride = _RECORD.size + zones.geometry.layout.extension
    if len(data) != stride * len(zones.zones):
        raise ValueError(f"{len(data)} bytes are not the state of {len(zones.zones)} zones")
    for zone in zones.zones:
        at = zone.number * stride
        number, attributes, stale, pointer, written = _RECORD.unpack_from(data, at)
        extension = data[at + _RECORD.size : at + stride]
        zones.restore(zone, ZoneState(number), attributes, pointer, written, extension, bool(stale))
        zones.keep(zone)


def _boot() -> bytes:
    """What this boot of the machine is called."""
    return bytes.fromhex(Path("/proc/sys/kernel/random/boot_id").read_text().replace("-", ""))
