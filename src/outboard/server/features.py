"""DEVICE_FEATURE and the messages of migration: what each asks of a device.

vfio-user specification, "VFIO_USER_DEVICE_FEATURE": MIGRATION, MIG_DEVICE_STATE and DMA logging. A method
takes the feature's data and gives the data of the reply.
"""

import errno
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from outboard.device import DeviceContract
from outboard.dirty_pages import PAGE
from outboard.dma import ADDRESS_SPACE, GuestMemory
from outboard.errors import RequestRefused
from outboard.protocol import Message, Request
from outboard.protocol.messages import (
    DeviceFeature,
    Empty,
    Feature,
    FeatureFlag,
    MigDataRead,
    MigDataReadReply,
    MigDataWrite,
    MigrationState,
)
from outboard.protocol.migration_messages import (
    DEVICE_STATE,
    FLAGS,
    LOGGED_RANGE,
    LOGGING_REPORT,
    LOGGING_START,
    PREFIX,
)
from outboard.server import migration
from outboard.server.migration import Migration, movable

GET, SET, PROBE = int(FeatureFlag.GET), int(FeatureFlag.SET), int(FeatureFlag.PROBE)
INDEX = int(FeatureFlag.FEATURE_MASK)
LARGEST_PAGE = 1 << 30
Method = Callable[[bytes, int], bytes]


class Features:
    """The features of ``device``, for one client that takes ``limit`` bytes of data in a message.

    ``pads_data``: it wants replies of migration data to be as long as it asked for.

    A device that cannot be migrated has none.
    """

    def __init__(self, device: DeviceContract) -> None:
        self.limit = 0
        self.pads_data = False
        moved = movable(device)
        self.migration = Migration(moved) if moved is not None else None
        self._memory: GuestMemory | None = getattr(device, "dma", None)
        self._table: dict[tuple[int, int], Method] = {}
        if self.migration is not None:
            self._table[Feature.MIGRATION, GET] = self._flags
            self._table[Feature.MIG_DEVICE_STATE, GET] = self._state
            self._table[Feature.MIG_DEVICE_STATE, SET] = self._set_state
            if self._memory is not None:
                self._table[Feature.DMA_LOGGING_START, SET] = self._start_log
                self._table[Feature.DMA_LOGGING_STOP, SET] = self._stop_log
                self._table[Feature.DMA_LOGGING_REPORT, GET] = self._report

    @staticmethod
    def changes_state(body: Message) -> bool:
        """Whether the request stops the device, or sets it running: it has to be quiet then."""
        return (
            isinstance(body, DeviceFeature)
            and body.flags & INDEX == Feature.MIG_DEVICE_STATE
            and body.flags & (SET | PROBE) == SET
        )

    def device_feature(self, request: Request, body: DeviceFeature) -> Message:
        """DEVICE_FEATURE: reads, sets or probes one feature."""
        index, asked = body.flags & INDEX, body.flags & (GET | SET)
        if body.flags & ~(INDEX | GET | SET | PROBE):
            raise RequestRefused(f"DEVICE_FEATURE flags {body.flags:#x}: some are not known")
        if body.flags & PROBE:
            wanted = [operation for operation in (GET, SET) if asked & operation]
            known = {operation for feature, operation in self._table if feature == index}
            if not known or not known.issuperset(wanted):
                raise self._unknown(index)
            return DeviceFeature(body.argsz, body.flags)
        if asked not in (GET, SET):
            raise RequestRefused(
                f"DEVICE_FEATURE flags {body.flags:#x}: exactly one of GET and SET is needed"
            )
        method = self._table.get((index, asked))
        if method is None:
            raise self._unknown(index)
        room = body.argsz - PREFIX.size
        data = method(body.data, room)
        if asked == SET:
            return DeviceFeature(body.argsz, body.flags, body.data)
        return DeviceFeature(PREFIX.size + len(data), body.flags, data)

    def read_data(self, request: Request, body: MigDataRead) -> Message:
        """MIG_DATA_READ: the next bytes of the migration stream."""
        data = self._migration().read(body.size)
        padding = body.size - len(data) if self.pads_data else 0
        return MigDataReadReply(PREFIX.size + len(data), len(data), data, padding)

    def write_data(self, request: Request, body: MigDataWrite) -> Message:
        """MIG_DATA_WRITE: the next bytes of another device's stream."""
        self._migration().write(body.data)
        return Empty()

    def reset(self) -> None:
        """The device was reset."""
        if self.migration is not None:
            self.migration.reset()

    def release(self) -> None:
        """The client has gone: its log of dirty pages goes with it."""
        if self._memory is not None and self._memory.logging:
            self._memory.stop_log()

    def memory_unused(self) -> AbstractContextManager[None]:
        """Until it is left no thread of the device uses guest memory."""
        return nullcontext() if self._memory is None else self._memory.unused()

    def dirty_bitmap(self, address: int, size: int, page_size: int, room: int) -> bytes:
        """What the device has written in a range, as a bitmap of at most ``room`` bytes; clean afterwards.

        Raises RequestRefused.
        """
        memory = self._memory
        if memory is None or not memory.logging:
            raise RequestRefused("dirty pages are not logged: DMA_LOGGING_START comes first")
        _check_page_size(page_size)
        if size <= 0 or address % PAGE or address + size > ADDRESS_SPACE:
            raise RequestRefused(
                f"dirty pages of {size:#x} bytes at {address:#x}: it begins with a page and does not wrap"
            )
        pages = -(-size // page_size)
        needed, most = -(-pages // 64) * 8, min(room, self.limit)
        if needed > most:
            raise RequestRefused(
                f"a bitmap of {needed} bytes does not fit: there is room for {most}; ask for less at a time"
            )
        return memory.take_dirty(address, size, page_size)

    def _flags(self, data: bytes, room: int) -> bytes:
        _need(FLAGS.size, room)
        return FLAGS.pack(migration.FLAGS)

    def _state(self, data: bytes, room: int) -> bytes:
        _need(DEVICE_STATE.size, room)
        return DEVICE_STATE.pack(self._migration().state, -1)

    def _set_state(self, data: bytes, room: int) -> bytes:
        _need(DEVICE_STATE.size, len(data))
        number = DEVICE_STATE.unpack_from(data)[0]
        if number not in set(MigrationState):
            raise RequestRefused(f"there is no migration state {number}")
        self._migration().go_to(MigrationState(number))
        return b""

    def _start_log(self, data: bytes, room: int) -> bytes:
        _need(LOGGING_START.size, len(data))
        page_size, count, _ = LOGGING_START.unpack_from(data)
        _check_page_size(page_size)
        if len(data) != LOGGING_START.size + count * LOGGED_RANGE.size:
            raise RequestRefused(f"DMA_LOGGING_START announces {count} ranges in {len(data)} bytes of data")
        for address, size in LOGGED_RANGE.iter_unpack(data[LOGGING_START.size :]):
            if not size or address + size > ADDRESS_SPACE:
                raise RequestRefused(f"{size:#x} bytes at {address:#x} cannot be logged: none, or past 2^64")
        assert self._memory is not None
        if self._memory.logging:
            raise RequestRefused("dirty pages are logged already: DMA_LOGGING_STOP comes first")
        # All memory is logged, whatever the ranges: to report more than was asked for costs nobody anything.
        self._memory.start_log()
        return b""

    def _stop_log(self, data: bytes, room: int) -> bytes:
        assert self._memory is not None
        if not self._memory.logging:
            raise RequestRefused("dirty pages are not logged")
        self._memory.stop_log()
        return b""

    def _report(self, data: bytes, room: int) -> bytes:
        _need(LOGGING_REPORT.size, len(data))
        address, size, page_size = LOGGING_REPORT.unpack_from(data)
        return data[: LOGGING_REPORT.size] + self.dirty_bitmap(
            address, size, page_size, room - LOGGING_REPORT.size
        )

    def _migration(self) -> Migration:
        if self.migration is None:
            raise RequestRefused("this device cannot be migrated", errno=errno.EOPNOTSUPP)
        return self.migration

    def _unknown(self, index: int) -> RequestRefused:
        name = Feature(index).name if index in set(Feature) else str(index)
        return RequestRefused(f"the device has no feature {name}, or not for that operation")


def _need(size: int, there: int) -> None:
    if there < size:
        raise RequestRefused(f"the feature's data has {size} bytes, there is room for {max(there, 0)}")


def _check_page_size(page_size: int) -> None:
    if not PAGE <= page_size <= LARGEST_PAGE or page_size & (page_size - 1):
        raise RequestRefused(
            f"a page size of {page_size:#x} bytes: it is a power of two from {PAGE:#x} to {LARGEST_PAGE:#x}"
        )
