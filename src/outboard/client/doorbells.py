"""Ringing a device's doorbells by descriptor, as KVM does for a guest: the server's socket is not used.

vfio-user specification, "VFIO_USER_DEVICE_GET_REGION_IO_FDS", and libvfio-user's shadow ioeventfds. A ring
stores the value in shared memory, if there is some for it, and signals an eventfd. Where the server offers
none it is a write of the region.
"""

import mmap
from collections.abc import Callable, Sequence

from outboard.descriptors import close_all
from outboard.errors import ConnectionLost, RemoteProtocolError, RequestRefused
from outboard.native.guard import Guarded
from outboard.native.memory import address_of
from outboard.pci.eventfd import EventFd
from outboard.protocol.messages import IoFdFlag, IoFdType, IoSubRegion, RegionIoFds

MAX_SUB_REGIONS = 4096
"""More a server is not believed: twice what a device with 1024 queues has doorbells."""
IOEVENTFD_SIZES = (0, 1, 2, 4, 8)
"""What KVM takes; 0 stands for a write of any size."""


class Doorbell:
    """One place of a region, written with ``size`` bytes at a time; made by `Doorbells.at`.

    ``by_descriptor`` tells whether some value, at least, is rung without asking the server.
    """

    def __init__(
        self,
        offset: int,
        size: int,
        ways: Sequence["_Way"],
        write: Callable[[bytes], None],
        rung: Callable[[], None],
    ) -> None:
        self.offset = offset
        self.size = size
        self._ways = ways
        self._write = write
        self._rung = rung

    @property
    def by_descriptor(self) -> bool:
        """Whether some value can be rung by descriptor."""
        return bool(self._ways)

    def ring(self, value: int = 0) -> None:
        """Rings: returns at once where it goes by descriptor, else when the server has answered the write."""
        data = value.to_bytes(self.size, "little")
        for way in self._ways:
            if way.match is None or way.match == value:
                way.ring(data)
                self._rung()
                return
        self._write(data)


class Doorbells:
    """The parts of a region that can be rung by descriptor; made by `Client.doorbells`.

    ``sub_regions`` are what the server said of them. A context manager that closes the descriptors.
    """

    def __init__(
        self,
        info: RegionIoFds,
        fds: Sequence[int],
        region_size: int,
        write: Callable[[int, bytes], None],
        rung: Callable[[], None],
    ) -> None:
        """``fds``, those of the reply, belong to the object from now on, also when it cannot be made.

        Raises RemoteProtocolError for sub-regions that cannot be.
        """
        self.sub_regions = info.sub_regions
        self.closed = False
        self._write = write
        self._rung = rung
        self._fds = _Descriptors(fds)
        try:
            self._ways = [self._way(sub, region_size) for sub in info.sub_regions]
        except BaseException:
            self.close()
            raise

    def at(self, offset: int, size: int = 4) -> Doorbell:
        """The doorbell at `offset` of the region, for writes of `size` bytes, whether offered or not."""
        ways = [way for way in self._ways if way is not None and way.hears(offset, size)]
        return Doorbell(offset, size, ways, lambda data: self._write(offset, data), self._rung)

    def close(self) -> None:
        """Closes the descriptors and unmaps the shadow. Harmless to repeat."""
        self.closed = True
        self._fds.close()

    def __enter__(self) -> "Doorbells":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _way(self, sub: IoSubRegion, region_size: int) -> "_Way | None":
        """How a sub-region is rung; None for a kind that only a hypervisor can serve."""
        where = f"the sub-region of {sub.size:#x} bytes at {sub.offset:#x}"
        if sub.offset + sub.size > region_size:
            raise RemoteProtocolError(f"{where} lies outside of the region, which has {region_size:#x}")
        if sub.type not in (IoFdType.IOEVENTFD, IoFdType.SHADOW_IOEVENTFD) or sub.size not in IOEVENTFD_SIZES:
            return None
        event = self._fds.event(sub.fd_index, where)
        shadow = None
        if sub.type == IoFdType.SHADOW_IOEVENTFD:
            memory = self._fds.memory(sub.shadow_fd_index, where)
            if sub.shadow_offset + (sub.size or max(IOEVENTFD_SIZES)) > len(memory):
                raise RemoteProtocolError(
                    f"{where} has its shadow at {sub.shadow_offset:#x} of {len(memory):#x} bytes"
                )
            shadow = memory
        return _Way(sub, event, shadow)


class _Way:
    """How one sub-region is rung."""

    def __init__(self, sub: IoSubRegion, event: EventFd, shadow: mmap.mmap | None) -> None:
        self._sub, self._event, self._shadow = sub, event, shadow
        self.match = sub.datamatch if sub.flags & IoFdFlag.DATAMATCH else None

    def hears(self, offset: int, size: int) -> bool:
        """Whether KVM would take a write of `size` bytes at `offset` for this one."""
        return self._sub.offset == offset and self._sub.size in (0, size)

    def ring(self, data: bytes) -> None:
        """Stores the value where the device looks for it, then signals."""
        if self._event.fd < 0:
            raise ConnectionLost("the doorbells are closed: ask the client for them anew")
        if self._shadow is not None:
            at = self._sub.shadow_offset
            self._shadow[at : at + len(data)] = data
        self._event.signal()


class _Descriptors:
    """The descriptors of a reply, each made once into what the sub-regions say it is."""

    def __init__(self, fds: Sequence[int]) -> None:
        self._fds = tuple(fds)
        self._events: dict[int, EventFd] = {}
        self._memories: dict[int, mmap.mmap] = {}
        self._guards: list[Guarded] = []

    def event(self, index: int, where: str) -> EventFd:
        """Descriptor `index` as an eventfd."""
        if index not in self._events:
            try:
                self._events[index] = EventFd(self._find(index, where))
            except RequestRefused as error:
                raise RemoteProtocolError(f"{where}: {error}") from error
        return self._events[index]

    def memory(self, index: int, where: str) -> mmap.mmap:
        """Descriptor `index` as shared memory, the whole of it."""
        if index not in self._memories:
            try:
                memory = self._memories[index] = mmap.mmap(self._find(index, where), 0)
                self._guards.append(Guarded(address_of(memory), len(memory)))
            except (OSError, ValueError) as error:
                raise RemoteProtocolError(f"{where}: its shadow cannot be mapped: {error}") from error
        return self._memories[index]

    def close(self) -> None:
        """Closes and unmaps everything."""
        for memory in self._memories.values():
            memory.close()
        for guard in self._guards:
            guard.release()
        for event in self._events.values():
            event.close()
        close_all(fd for index, fd in enumerate(self._fds) if index not in self._events)
        self._fds, self._events, self._memories, self._guards = (), {}, {}, []

    def _find(self, index: int, where: str) -> int:
        if index >= len(self._fds):
            raise RemoteProtocolError(f"{where} names descriptor {index}, {len(self._fds)} came")
        return self._fds[index]
