"""What a replay lends a server in the place of a guest: empty memory, and eventfds that nobody hears.

vfio-user specification, "VFIO_USER_DMA_MAP" and "VFIO_USER_DEVICE_SET_IRQS". A capture holds no guest
memory: a device finds zeros there, and what it has written itself.
"""

import os
from contextlib import suppress

from outboard.descriptors import close_all
from outboard.errors import CaptureError, RemoteProtocolError
from outboard.protocol import Command
from outboard.protocol.messages import DmaMap, DmaUnmap, DmaUnmapFlag
from outboard.protocol.wire import HEADER, HEADER_SIZE


class StandIn:
    """Memory as the recorded client mapped it: a sparse file for what had a descriptor, one for the rest."""

    def __init__(self) -> None:
        self._shared = os.memfd_create("outboard-replay", os.MFD_CLOEXEC)
        self._private = os.memfd_create("outboard-replay-private", os.MFD_CLOEXEC)
        self._maps: dict[int, tuple[int, int, int]] = {}  # address: size, file, place in it

    def lend(self, command: bytes, count: int) -> list[int]:
        """Descriptors that go with a recorded `command`, which had `count`; the caller closes them.

        Raises CaptureError for memory of a size that cannot be.
        """
        number = HEADER.unpack_from(command)[1]
        if number == Command.DMA_MAP:
            self._map(command[HEADER_SIZE:], count > 0)
            return [os.dup(self._shared) for _ in range(count)]
        if number == Command.DMA_UNMAP:
            self._unmap(command[HEADER_SIZE:])
        return [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(count)]

    def read(self, address: int, count: int) -> bytes | None:
        """The bytes at a guest address; None where not all of them are mapped."""
        place = self._find(address, count)
        return None if place is None else os.pread(place[0], count, place[1]).ljust(count, b"\0")

    def write(self, address: int, data: bytes) -> bool:
        """Stores bytes at a guest address; False where not all of it is mapped."""
        place = self._find(address, len(data))
        if place is not None:
            os.pwrite(place[0], data, place[1])
        return place is not None

    def close(self) -> None:
        """Frees the memory."""
        close_all((self._shared, self._private))

    def _map(self, payload: bytes, shared: bool) -> None:
        with suppress(RemoteProtocolError):
            body = DmaMap.decode(payload)
            file = self._shared if shared else self._private
            end = os.fstat(file).st_size
            place = body.offset if shared else end
            try:
                if place + body.size > end:
                    os.truncate(file, place + body.size)
            except (OSError, OverflowError) as error:
                raise CaptureError(f"no memory of {body.size:#x} bytes can be lent: {error}") from error
            self._maps[body.address] = body.size, file, place

    def _unmap(self, payload: bytes) -> None:
        with suppress(RemoteProtocolError):
            body = DmaUnmap.decode(payload)
            everything = body.flags & DmaUnmapFlag.ALL
            for address, (size, _, _) in [*self._maps.items()]:
                inside = body.address <= address and address + size <= body.address + body.size
                if everything or inside:
                    del self._maps[address]

    def _find(self, address: int, count: int) -> tuple[int, int] | None:
        """The file and the place in it where `count` bytes of guest memory are."""
        for start, (size, file, place) in self._maps.items():
            if start <= address and address + count <= start + size:
                return file, place + address - start
        return None
