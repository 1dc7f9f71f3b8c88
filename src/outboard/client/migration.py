"""Migration, seen from the VMM: features, states, the stream of data, dirty pages.

vfio-user specification, "VFIO_USER_DEVICE_FEATURE", "VFIO_USER_MIG_DATA_READ" and "..._WRITE".
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from outboard.client.link import Link
from outboard.errors import RemoteError, RemoteProtocolError
from outboard.protocol.messages import (
    DeviceFeature,
    Feature,
    FeatureFlag,
    MigDataRead,
    MigDataReadReply,
    MigDataWrite,
    MigrationFlag,
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

if TYPE_CHECKING:
    from outboard.client.client import Client

PAGE = 4096
CHUNK = 64 << 10
"""Bytes of the stream asked for in one message, where the server takes so many."""
MOST_REPORTED = 1 << 18
"""Pages asked about in one message."""


class Migration:
    """A device's migration, by way of the connection ``link``. `Client.migration` makes it.

    Every method raises RemoteError when the server refuses.
    """

    def __init__(self, link: Link) -> None:
        self._link = link

    @property
    def supported(self) -> MigrationFlag:
        """What the device can do; nothing (0) if it cannot be migrated."""
        try:
            data = self._get(Feature.MIGRATION, FLAGS.size)
        except RemoteError:
            return MigrationFlag(0)
        return MigrationFlag(FLAGS.unpack(data)[0] & sum(MigrationFlag))

    @property
    def state(self) -> MigrationState:
        """Where the device is."""
        number = DEVICE_STATE.unpack(self._get(Feature.MIG_DEVICE_STATE, DEVICE_STATE.size))[0]
        try:
            return MigrationState(number)
        except ValueError as error:
            raise RemoteProtocolError(f"the server names a migration state {number}") from error

    @state.setter
    def state(self, state: MigrationState) -> None:
        self._set(Feature.MIG_DEVICE_STATE, DEVICE_STATE.pack(state, -1))

    def probe(self, feature: int, flags: int = 0) -> bool:
        """Whether the device has a feature, and can ``flags`` (GET, SET) it."""
        body = DeviceFeature(PREFIX.size, int(flags) | FeatureFlag.PROBE | feature)
        try:
            self._link.command(body)
        except RemoteError:
            return False
        return True

    def read(self, chunk: int = CHUNK) -> Iterator[bytes]:
        """The stream in pieces of ``chunk`` bytes, as far as there is one: all of it in STOP_COPY."""
        size = min(chunk, self._link.transfer_limit)
        while True:
            reply = self._link.command(MigDataRead(PREFIX.size + size, size))
            if not isinstance(reply, MigDataReadReply) or reply.size > size:
                raise RemoteProtocolError(f"the server answered MIG_DATA_READ of {size} bytes with {reply}")
            if reply.data:
                yield reply.data
            if reply.size < size:
                return

    def write(self, data: bytes) -> None:
        """The next part of a stream, to a device in RESUMING."""
        step = self._link.transfer_limit
        for at in range(0, len(data), step):
            piece = data[at : at + step]
            self._link.command(MigDataWrite(PREFIX.size + len(piece), len(piece), piece))

    def start_dirty_log(self, ranges: Sequence[tuple[int, int]], page_size: int = PAGE) -> None:
        """Have the device remember what it writes in these ranges (IOVA, bytes)."""
        data = LOGGING_START.pack(page_size, len(ranges), 0)
        self._set(Feature.DMA_LOGGING_START, data + b"".join(LOGGED_RANGE.pack(*each) for each in ranges))

    def stop_dirty_log(self) -> None:
        """Have the device remember no longer."""
        self._set(Feature.DMA_LOGGING_STOP, b"")

    def dirty_pages(self, address: int, size: int, page_size: int = PAGE) -> list[int]:
        """The IOVAs of the pages that the device has written since the last time."""
        pages = []
        for start in range(address, address + size, MOST_REPORTED * page_size):
            count = -(-min(MOST_REPORTED * page_size, address + size - start) // page_size)
            asked = LOGGING_REPORT.pack(start, min(count * page_size, address + size - start), page_size)
            room = LOGGING_REPORT.size + -(-count // 64) * 8
            reply = self._get(Feature.DMA_LOGGING_REPORT, room, asked)
            bits = int.from_bytes(reply[LOGGING_REPORT.size :], "little")
            while bits:
                number = (bits & -bits).bit_length() - 1
                bits &= bits - 1
                pages.append(start + number * page_size)
        return pages

    def _get(self, feature: Feature, size: int, data: bytes = b"") -> bytes:
        body = DeviceFeature(PREFIX.size + size, int(FeatureFlag.GET) | feature, data)
        reply = self._link.command(body)
        if not isinstance(reply, DeviceFeature) or len(reply.data) != size:
            raise RemoteProtocolError(f"the server answered GET of {feature.name} with {reply}")
        return reply.data

    def _set(self, feature: Feature, data: bytes) -> None:
        self._link.command(DeviceFeature(PREFIX.size + len(data), int(FeatureFlag.SET) | feature, data))


def migrate(
    source: "Client",
    destination: "Client",
    stopped: Callable[[], None] = lambda: None,
    *,
    pre_copy: bool = True,
    chunk: int = CHUNK,
) -> None:
    """Move a device: what ``source`` is connected to stops, what ``destination`` is connected to goes on.

    ``stopped`` is called when the one does not run any more and the other not yet: the moment to copy the
    rest of the guest's memory. What is mapped at the destination has to be the same afterwards; interrupts
    are the destination's to assign. If anything fails before it runs, the source is set running again; if it
    does not say whether it runs (PeerTimeout, ConnectionLost), the source stays stopped: never do both run.

    ``pre_copy=False`` leaves that state out, for devices that give the same data in it and afterwards;
    ``chunk`` is the bytes asked for in one message, for devices that give their data in one piece or not at
    all. libvfio-user's samples are such devices.
    """
    there, here = destination.migration, source.migration
    there.state = MigrationState.RESUMING
    try:
        if pre_copy and here.supported & MigrationFlag.PRE_COPY:
            here.state = MigrationState.PRE_COPY
            _pass_on(here, there, chunk)
        here.state = MigrationState.STOP_COPY
        _pass_on(here, there, chunk)
        stopped()
        there.state = MigrationState.STOP
    except BaseException:
        here.state = MigrationState.RUNNING
        raise
    here.state = MigrationState.STOP
    try:
        there.state = MigrationState.RUNNING
    except RemoteError:
        here.state = MigrationState.RUNNING
        raise


def _pass_on(source: Migration, destination: Migration, chunk: int) -> None:
    for piece in source.read(chunk):
        destination.write(piece)
