"""The VMM's side of vfio-user: what QEMU's `vfio-user-pci` does, as an object.

Reads and writes configuration space and BARs by message or through mappings, shares memory with the device,
receives its interrupts, resets it.
"""

import os
from collections.abc import Sequence
from functools import cached_property
from types import TracebackType
from typing import Self, TypeVar

from outboard.client.accessors import MappedRegion, RegionAccess
from outboard.client.interrupts import Interrupt
from outboard.client.link import Link
from outboard.client.memory import AddressSpace, GuestRam
from outboard.client.migration import Migration
from outboard.client.transport import SocketTransport, Transport
from outboard.descriptors import close_all
from outboard.errors import RemoteProtocolError
from outboard.protocol import Capabilities, ClientConnection, Message
from outboard.protocol.messages import (
    DeviceInfo,
    DeviceReset,
    DmaMap,
    DmaMapFlag,
    DmaUnmap,
    DmaUnmapFlag,
    IrqIndex,
    IrqInfo,
    RegionFlag,
    RegionInfo,
    RegionRead,
    RegionReadReply,
    RegionWrite,
    SetIrqs,
    SetIrqsFlag,
)

CONFIG_REGION = 7
COMMAND, STATUS, CAPABILITY_POINTER = 0x04, 0x06, 0x34
BUS_MASTER = 1 << 2
CAPABILITY_LIST = 1 << 4
STANDARD_HEADER = 0x40
MSI_VECTORS = 0x70
MAX_REGIONS, MAX_IRQS, MAX_VECTORS = 100, 50, 2048
"""More a server is not believed: the first two as in QEMU, the third as in PCI."""

M = TypeVar("M", bound=Message)


class Client:
    """A connection to the vfio-user server at `path`. A context manager that closes.

    ``timeout`` is how long a command waits for its answer, in seconds (None: for ever). ``patience`` is how
    long to wait for the server to listen. Not for use by several threads at once.

    Raises ConnectionLost when nobody listens, RemoteProtocolError when the server does not speak vfio-user.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, timeout: float | None = 5.0, patience: float = 0.0
    ) -> None:
        self._open(SocketTransport.connect(path, patience), timeout)

    def _open(self, transport: Transport, timeout: float | None) -> None:
        self._memory = AddressSpace()
        self._link = Link(transport, self._memory, timeout=timeout, connection=self._new_connection())
        self._interrupts: dict[IrqIndex, list[Interrupt]] = {}
        self._mapped: dict[int, MappedRegion] = {}
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _new_connection(self) -> ClientConnection:
        """The protocol's state, with what this client offers in VERSION."""
        return ClientConnection()

    def _start(self) -> None:
        """The first messages: VERSION and DEVICE_GET_INFO."""
        self._link.negotiate()
        self.info = self._ask(DeviceInfo(argsz=16, flags=0, num_regions=0, num_irqs=0), DeviceInfo)
        if self.info.num_regions > MAX_REGIONS or self.info.num_irqs > MAX_IRQS:
            raise RemoteProtocolError(
                f"the server has {self.info.num_regions} regions and {self.info.num_irqs} interrupt indexes"
            )

    @property
    def capabilities(self) -> Capabilities:
        """What the server said in VERSION: its limits."""
        return self._link.peer

    @cached_property
    def regions(self) -> tuple[RegionInfo, ...]:
        """Every region: BAR 0 to 5, ROM (6), configuration space (7), VGA (8); size 0 where there is none."""
        infos = []
        for index in range(self.info.num_regions):
            info, fds = self.region_info(index)
            close_all(fds)
            infos.append(info)
        return tuple(infos)

    def region_info(self, index: int) -> tuple[RegionInfo, tuple[int, ...]]:
        """DEVICE_GET_REGION_INFO, asked again with more room where the server says so.

        The descriptors are the caller's to close.
        """
        argsz = 32
        while True:
            request = RegionInfo(argsz=argsz, flags=0, index=index, cap_offset=0, size=0, offset=0)
            body, fds = self._link.exchange(request)
            info = _expect(body, RegionInfo, fds)
            if info.argsz <= argsz:
                return info, fds
            close_all(fds)
            if argsz > RegionInfo.LAYOUT.size:
                raise RemoteProtocolError(
                    f"region {index} was to be described in {argsz} bytes, now it needs {info.argsz}"
                )
            argsz = info.argsz

    def region(self, index: int) -> RegionAccess:
        """A region by messages, whatever it is."""
        return RegionAccess(self._read, self._write, index, self.regions[index].size)

    @cached_property
    def config(self) -> RegionAccess:
        """Configuration space."""
        return self.region(CONFIG_REGION)

    def bar(self, index: int) -> RegionAccess:
        """BAR `index` (0 to 5) by messages. Raises IndexError if the device has no such BAR."""
        if not 0 <= index <= 5 or not self.regions[index].size:
            present = [number for number in range(6) if self.regions[number].size]
            raise IndexError(f"the device has no BAR {index}; it has {present}")
        return self.region(index)

    def map_bar(self, index: int) -> MappedRegion:
        """The parts of BAR `index` that the server lets us map. Raises IndexError if there are none."""
        if index in self._mapped and not self._mapped[index].closed:
            return self._mapped[index]
        info, fds = self.region_info(index)
        try:
            if not info.flags & RegionFlag.MMAP or not fds:
                raise IndexError(f"BAR {index} cannot be mapped: the device handles every access to it")
            areas = [(area.offset, area.size) for area in info.areas] or [(0, info.size)]
            mapped = MappedRegion(fds, info.offset, areas)
        except (OSError, ValueError, OverflowError) as error:
            raise RemoteProtocolError(
                f"what the server says of BAR {index} cannot be mapped: {error}"
            ) from error
        finally:
            close_all(fds)
        self._mapped[index] = mapped
        return mapped

    def irq_count(self, index: IrqIndex) -> int:
        """How many vectors the device has at `index`."""
        count = self._ask(IrqInfo(argsz=16, flags=0, index=index, count=0), IrqInfo).count
        if count > MAX_VECTORS:
            raise RemoteProtocolError(f"the server has {count} vectors of {IrqIndex(index).name}")
        return count

    def memory(
        self,
        size: int,
        address: int | None = None,
        *,
        shared: bool = True,
        readable: bool = True,
        writable: bool = True,
    ) -> GuestRam:
        """`size` bytes of new memory for the device to reach, at IOVA `address` (default: a free one).

        With ``shared=False`` the server gets no descriptor and asks for every byte by message.
        """
        if address is None:
            address = self._memory.free_address(size)
        start = address

        def unmap() -> None:
            self.dma_unmap(start, size)
            self._memory.blocks.pop(start, None)

        ram = GuestRam(start, size, shared=shared, readable=readable, writable=writable, unmap=unmap)
        try:
            self.dma_map(start, size, fd=ram.fd if shared else None, readable=readable, writable=writable)
        except BaseException:
            ram.close()
            raise
        if (replaced := self._memory.blocks.get(start)) is not None:
            replaced.close()  # the server has taken the new one for the old one's place
        self._memory.blocks[start] = ram
        return ram

    def dma_map(
        self,
        address: int,
        size: int,
        *,
        fd: int | None = None,
        offset: int = 0,
        readable: bool = True,
        writable: bool = True,
    ) -> None:
        """DMA_MAP: lets the device reach `size` bytes of `fd` (which stays the caller's) at `address`."""
        flags = (DmaMapFlag.READ if readable else 0) | (DmaMapFlag.WRITE if writable else 0)
        body = DmaMap(argsz=32, flags=int(flags), offset=offset, address=address, size=size)
        self._link.command(body, () if fd is None else (fd,))

    def dma_unmap(self, address: int, size: int) -> None:
        """DMA_UNMAP: takes a range back; afterwards the device does not touch it."""
        reply = self._link.command(DmaUnmap(argsz=24, flags=0, address=address, size=size))
        if isinstance(reply, DmaUnmap) and (reply.address, reply.size) != (address, size):
            raise RemoteProtocolError(
                f"the server unmapped {reply.size:#x} bytes at {reply.address:#x},"
                f" not {size:#x} at {address:#x}"
            )

    def dma_unmap_all(self) -> None:
        """DMA_UNMAP of everything."""
        self._link.command(DmaUnmap(argsz=24, flags=DmaUnmapFlag.ALL, address=0, size=0))

    def bus_master(self, enabled: bool = True) -> None:
        """Sets or clears the bus-master bit: whether the device may reach memory."""
        command = self.config.read16(COMMAND)
        self.config.write16(COMMAND, command | BUS_MASTER if enabled else command & ~BUS_MASTER)

    def find_capability(self, identifier: int) -> int | None:
        """Where in configuration space the PCI capability `identifier` is; None if the device lacks it."""
        if not self.config.read16(STATUS) & CAPABILITY_LIST:
            return None
        at, seen = self.config.read8(CAPABILITY_POINTER) & 0xFC, set()
        while at >= STANDARD_HEADER and at not in seen:
            seen.add(at)
            if self.config.read8(at) == identifier:
                return at
            at = self.config.read8(at + 1) & 0xFC
        return None

    def enable_intx(self) -> Interrupt:
        """Receives the interrupt line."""
        return self._enable(IrqIndex.INTX, 1)[0]

    def enable_msi(self, count: int = 1) -> list[Interrupt]:
        """Receives `count` MSI vectors, and sets the enable bit."""
        interrupts = self._enable(IrqIndex.MSI, count)
        if (at := self.find_capability(0x05)) is not None:
            control = self.config.read16(at + 2) & ~MSI_VECTORS
            self.config.write16(at + 2, control | 1 | (count - 1).bit_length() << 4)
        return interrupts

    def enable_msix(self, count: int | None = None) -> list[Interrupt]:
        """Receives `count` MSI-X vectors (default: all), and sets the enable bit."""
        wanted = self.irq_count(IrqIndex.MSIX) if count is None else count
        interrupts = self._enable(IrqIndex.MSIX, wanted)
        if (at := self.find_capability(0x11)) is not None:
            self.config.write16(at + 2, self.config.read16(at + 2) | 1 << 15)
        return interrupts

    def disable_interrupts(self, index: IrqIndex) -> None:
        """Takes back every vector of `index`."""
        self.set_irqs(index, SetIrqsFlag.DATA_NONE | SetIrqsFlag.TRIGGER, start=0, count=0)
        for interrupt in self._interrupts.pop(index, ()):
            interrupt.close()

    def set_irqs(
        self,
        index: IrqIndex,
        flags: SetIrqsFlag,
        *,
        start: int,
        count: int,
        fds: Sequence[int] = (),
        bools: bytes = b"",
    ) -> None:
        """DEVICE_SET_IRQS as it is; `fds` stay the caller's."""
        body = SetIrqs(
            argsz=20 + len(bools), flags=int(flags), index=index, start=start, count=count, data=bools
        )
        self._link.command(body, fds)

    def reset(self) -> None:
        """DEVICE_RESET: the device as after power-on; memory and interrupts stay assigned."""
        self._link.command(DeviceReset())

    @property
    def migration(self) -> Migration:
        """Migration states and data, and what the device has written."""
        return Migration(self._link)

    def serve_dma(self, timeout: float = 0.0) -> None:
        """Answers DMA messages of the server, waiting up to `timeout` seconds for one.

        Every command does so too while it waits; this is for memory mapped with ``shared=False``.
        """
        self._link.serve_pending(timeout)

    def close(self) -> None:
        """Ends the connection and frees everything made through it. Harmless to repeat."""
        self._link.close()
        for mapped in self._mapped.values():
            mapped.close()
        for interrupts in self._interrupts.values():
            for interrupt in interrupts:
                interrupt.close()
        for ram in self._memory.blocks.values():
            ram.close()
        self._mapped.clear()
        self._interrupts.clear()
        self._memory.blocks.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _enable(self, index: IrqIndex, count: int) -> list[Interrupt]:
        interrupts = self._new_interrupts(index, count)
        step = self.capabilities.max_msg_fds
        if not step:
            raise RemoteProtocolError("the server takes no descriptors: it has no way to signal interrupts")
        for start in range(0, count, step):
            fds = [interrupt.fd for interrupt in interrupts[start : start + step]]
            flags = SetIrqsFlag.DATA_EVENTFD | SetIrqsFlag.TRIGGER
            self.set_irqs(index, flags, start=start, count=len(fds), fds=fds)
        return interrupts

    def _new_interrupts(self, index: IrqIndex, count: int) -> list[Interrupt]:
        """An eventfd for each of `count` vectors, in place of those there were."""
        for old in self._interrupts.pop(index, ()):
            old.close()
        # Kept one by one: what was made before descriptors ran out is closed with the client.
        interrupts = self._interrupts[index] = []
        for vector in range(count):
            interrupts.append(Interrupt(f"{index.name} vector {vector}", self._link.wait))
        return interrupts

    def _read(self, region: int, offset: int, size: int) -> bytes:
        step = self._link.transfer_limit
        parts = []
        for at in range(offset, offset + size, step):
            count = min(step, offset + size - at)
            reply = self._ask(RegionRead(at, region, count), RegionReadReply)
            if reply.count != count:
                raise RemoteProtocolError(
                    f"{reply.count} bytes came of {count} asked for at {at:#x} of region {region}"
                )
            parts.append(reply.data)
        return b"".join(parts)

    def _write(self, region: int, offset: int, data: bytes) -> None:
        step = self._link.transfer_limit
        for at in range(0, len(data), step):
            piece = data[at : at + step]
            self._link.command(RegionWrite(offset + at, region, len(piece), piece))

    def _ask(self, body: Message, answer: type[M]) -> M:
        return _expect(self._link.command(body), answer, ())


def _expect(body: Message, kind: type[M], fds: Sequence[int]) -> M:
    if isinstance(body, kind):
        return body
    close_all(fds)
    raise RemoteProtocolError(f"the server answered with {type(body).__name__} where {kind.__name__} was due")
