"""The VMM's side of vfio-user: what QEMU's `vfio-user-pci` does, as an object.

Reads and writes configuration space and BARs by message or through mappings, shares memory with the device,
receives its interrupts, resets it.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from types import TracebackType
from typing import Literal, Self, TypeVar

from outboard.client.accessors import MappedRegion, RegionAccess
from outboard.client.doorbells import MAX_SUB_REGIONS, Doorbells
from outboard.client.interrupts import Interrupt
from outboard.client.link import Link
from outboard.client.memory import AddressSpace, GuestRam
from outboard.client.migration import Migration
from outboard.client.transport import SocketTransport, Transport
from outboard.client.writes import Write, batched, single
from outboard.descriptors import close_all
from outboard.errors import RemoteError, RemoteProtocolError
from outboard.protocol import CLIENT_DEFAULTS, Capabilities, ClientConnection, Message, TwinSocket
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
    RegionIoFds,
    RegionRead,
    RegionReadReply,
    RegionWriteMulti,
    RegionWriteMultiReply,
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

Access = Literal["mmap", "file"]
ACCESS_MODES = {"mmap": DmaMapFlag.MMAP, "file": DmaMapFlag.FILE_IO}

M = TypeVar("M", bound=Message)


class Client:
    """A connection to the vfio-user server at `path`. A context manager that closes.

    ``timeout`` is how long a command waits for its answer, in seconds (None: for ever). ``patience`` is how
    long to wait for the server to listen. ``twin_socket`` asks for a second socket for the server's own
    commands: a device may then reach memory without a descriptor also from inside a handler
    (`capabilities` says whether the server agreed). Not for use by several threads at once.

    Raises ConnectionLost when nobody listens, RemoteProtocolError when the server does not speak vfio-user.
    """

    _twin_socket = False

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        timeout: float | None = 5.0,
        patience: float = 0.0,
        twin_socket: bool = False,
    ) -> None:
        self._twin_socket = twin_socket
        self._open(SocketTransport.connect(path, patience), timeout)

    def _open(self, transport: Transport, timeout: float | None) -> None:
        self._memory = AddressSpace()
        self._link = Link(transport, self._memory, timeout=timeout, connection=self._new_connection())
        self._interrupts: dict[IrqIndex, list[Interrupt]] = {}
        self._mapped: dict[int, MappedRegion] = {}
        self._doorbells: dict[int, Doorbells] = {}
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _new_connection(self) -> ClientConnection:
        """The protocol's state, with what this client offers in VERSION."""
        return ClientConnection(replace(CLIENT_DEFAULTS, twin_socket=TwinSocket(self._twin_socket)))

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
        """A region by messages, whatever it is. Raises IndexError if the device does not number so many."""
        if not 0 <= index < len(self.regions):
            raise IndexError(f"the device has no region {index}; it has {len(self.regions)}, from 0 on")
        return RegionAccess(self._read, self._write, index, self.regions[index].size)

    @cached_property
    def config(self) -> RegionAccess:
        """Configuration space. Raises RemoteProtocolError if the server has none: every PCI device has."""
        if len(self.regions) <= CONFIG_REGION:
            raise RemoteProtocolError(
                f"the server has {len(self.regions)} regions, and configuration space is number"
                f" {CONFIG_REGION}"
            )
        return self.region(CONFIG_REGION)

    def bar(self, index: int) -> RegionAccess:
        """BAR `index` (0 to 5) by messages. Raises IndexError if the device has no such BAR."""
        present = [number for number, region in enumerate(self.regions[:6]) if region.size]
        if index not in present:
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

    def region_io_fds(self, index: int) -> tuple[RegionIoFds, tuple[int, ...]]:
        """DEVICE_GET_REGION_IO_FDS, asked again with more room where the server says so.

        The descriptors are the caller's to close; what the server says of them is not checked.
        """
        argsz = RegionIoFds.LAYOUT.size
        while True:
            body, fds = self._link.exchange(RegionIoFds(argsz, flags=0, index=index, count=0))
            info = _expect(body, RegionIoFds, fds)
            if info.argsz <= argsz and info.count == len(info.sub_regions):
                return info, fds
            close_all(fds)
            if info.count > MAX_SUB_REGIONS:
                raise RemoteProtocolError(
                    f"region {index} has {info.count} sub-regions, {MAX_SUB_REGIONS} at most are believed"
                )
            if argsz > RegionIoFds.LAYOUT.size or info.argsz <= argsz:
                raise RemoteProtocolError(
                    f"the sub-regions of region {index} were to be described in {argsz} bytes,"
                    f" now it needs {info.argsz} for {info.count} sub-regions"
                )
            argsz = info.argsz

    def doorbells(self, index: int) -> Doorbells:
        """What of BAR `index` can be rung by descriptor; anything else in it is rung by a write.

        A server that does not know the message, or has none to offer, makes no difference but in speed.
        """
        if index in self._doorbells and not self._doorbells[index].closed:
            return self._doorbells[index]
        bar = self.bar(index)
        try:
            info, fds = self.region_io_fds(index)
        except RemoteError:
            info, fds = RegionIoFds(RegionIoFds.LAYOUT.size, 0, index, 0), ()
        bells = self._doorbells[index] = Doorbells(info, fds, bar.size, bar.write, self._rung)
        return bells

    def write_many(self, writes: Iterable[Write], *, posted: bool = False) -> None:
        """Writes (region, offset, data), in their order and without waiting for each.

        Those of up to 8 bytes go together in REGION_WRITE_MULTI where the server has agreed to it. With
        ``posted`` nothing is waited for at all. Raises RemoteError for the first message that is refused:
        writes after it, and some of the same message, may have been done.
        """
        limit = self._link.transfer_limit
        messages: Iterable[Message]
        if self.capabilities.write_multiple:
            messages = batched(writes, limit)
        else:
            messages = (message for write in writes for message in single(*write, limit))
        if posted:
            for message in messages:
                self._link.post(message)
            return
        sent = list(messages)
        for message, reply in zip(sent, self._link.pipeline([(body, ()) for body in sent]), strict=True):
            wanted = len(message.writes) if isinstance(message, RegionWriteMulti) else 0
            if isinstance(reply, RegionWriteMultiReply) and reply.count != wanted:
                raise RemoteProtocolError(f"{reply.count} of {wanted} writes were done")

    def post(self, region: int, offset: int, data: bytes) -> None:
        """A write that nothing answers (No_reply), in order with all others: its errors are lost."""
        for message in single(region, offset, data, self._link.transfer_limit):
            self._link.post(message)

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
        access: Access | None = None,
        readable: bool = True,
        writable: bool = True,
    ) -> GuestRam:
        """`size` bytes of new memory for the device to reach, at IOVA `address` (default: a free one).

        With ``shared=False`` the server gets no descriptor and asks for every byte by message. ``access``
        tells it what to do with the descriptor, of which it decides otherwise: map it, or read and write it
        (``"file"``). Servers that know no access modes refuse that with a RemoteError.
        """
        if address is None:
            address = self._memory.free_address(size)
        start = address

        def unmap() -> None:
            self.dma_unmap(start, size)
            self._memory.blocks.pop(start, None)

        ram = GuestRam(start, size, shared=shared, readable=readable, writable=writable, unmap=unmap)
        try:
            fd = ram.fd if shared else None
            self.dma_map(start, size, fd=fd, access=access, readable=readable, writable=writable)
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
        access: Access | None = None,
        readable: bool = True,
        writable: bool = True,
    ) -> None:
        """DMA_MAP: lets the device reach `size` bytes of `fd` (which stays the caller's) at `address`."""
        flags = (DmaMapFlag.READ if readable else 0) | (DmaMapFlag.WRITE if writable else 0)
        flags |= ACCESS_MODES[access] if access else 0
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
        for bells in self._doorbells.values():
            bells.close()
        for interrupts in self._interrupts.values():
            for interrupt in interrupts:
                interrupt.close()
        for ram in self._memory.blocks.values():
            ram.close()
        self._mapped.clear()
        self._doorbells.clear()
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
        for message in single(region, offset, data, self._link.transfer_limit):
            self._link.command(message)

    def _rung(self) -> None:
        """Called after a ring by descriptor."""

    def _ask(self, body: Message, answer: type[M]) -> M:
        return _expect(self._link.command(body), answer, ())


def _expect(body: Message, kind: type[M], fds: Sequence[int]) -> M:
    if isinstance(body, kind):
        return body
    close_all(fds)
    raise RemoteProtocolError(f"the server answered with {type(body).__name__} where {kind.__name__} was due")
