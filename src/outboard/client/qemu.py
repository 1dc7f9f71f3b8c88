"""A client that behaves like QEMU's `vfio-user-pci`, so that servers are tested without a virtual machine.

It starts up in QEMU's order (memory is mapped before the device is asked anything; a reset comes before the
guest runs), asks for region information in two steps, posts writes to memory BARs, enables MSI-X with no
vector first, and holds the server to the buffers QEMU has: a reply QEMU would choke on raises
RemoteProtocolError with the reason. Facts as of QEMU 10.1 to 11.1.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress

from outboard.client.client import COMMAND, CONFIG_REGION, MAX_IRQS, MAX_REGIONS, Client
from outboard.client.interrupts import Interrupt
from outboard.client.memory import GuestRam
from outboard.client.transport import SocketTransport, Transport
from outboard.errors import RemoteError, RemoteProtocolError
from outboard.protocol import Capabilities, ClientConnection, Command, DmaLayout, Migration
from outboard.protocol.messages import (
    DeviceFlag,
    DeviceInfo,
    DmaMap,
    DmaMapFlag,
    IrqIndex,
    RegionFlag,
    RegionWrite,
    SetIrqsFlag,
)
from outboard.protocol.wire import HEADER, HEADER_SIZE, HeaderFlag

OFFER = Capabilities(
    max_msg_fds=16,
    max_data_xfer_size=1 << 20,
    max_dma_maps=65535,
    pgsizes=4096,
    write_multiple=True,
    migration=Migration(pgsize=4096, max_bitmap_size=256 << 20),
)
NEEDED_REGIONS, NEEDED_IRQS = 8, 3
VERSION_ROOM = 214
"""Bytes of QEMU's own VERSION message, whose JSON has more blanks than ours: all it has for the reply."""
BAR0, ROM_BAR, INTERRUPT_PIN = 0x10, 0x30, 0x3D
EVENTFD_TRIGGER = SetIrqsFlag.DATA_EVENTFD | SetIrqsFlag.TRIGGER
NONE_TRIGGER = SetIrqsFlag.DATA_NONE | SetIrqsFlag.TRIGGER
LOW_RAM, HOLE_END = 0xA_0000, 0x10_0000
"""A PC's memory: RAM up to 640 KiB, then legacy areas, RAM again from 1 MiB on."""


class StrictTransport:
    """Holds a server's replies to the buffers QEMU has for them; wraps another transport."""

    def __init__(self, inner: Transport) -> None:
        self._inner = inner
        self._room: dict[int, tuple[int, int]] = {}
        self._left = 0

    def send(self, data: bytes, fds: Sequence[int] = (), timeout: float | None = None) -> None:
        """Sends, and notes how much the reply to a command may have."""
        message_id, command, size, flags, _ = HEADER.unpack_from(data)
        room, descriptors = size, 0
        if command == Command.VERSION:
            room = VERSION_ROOM
        elif command == Command.DEVICE_GET_REGION_INFO:
            room, descriptors = HEADER_SIZE + int.from_bytes(data[16:20], "little"), 1
        elif command == Command.REGION_READ:
            room = size + int.from_bytes(data[28:32], "little")
        if flags == HeaderFlag.COMMAND:
            self._room[message_id] = (room, descriptors)
        self._inner.send(data, fds, timeout)

    def receive(self, timeout: float | None) -> tuple[bytes, Sequence[int]]:
        """Receives, and checks every message that begins in what came."""
        data, fds = self._inner.receive(timeout)
        try:
            self._check(data, len(fds))
        except RemoteProtocolError:
            for fd in fds:
                os.close(fd)
            raise
        return data, fds

    def wait(self, fd: int, timeout: float) -> bool:
        """Waits for `fd` or for the server."""
        return self._inner.wait(fd, timeout)

    def serve_beside(self, fd: int, serve: Callable[[], None]) -> None:
        """Calls `serve` whenever `fd` is readable while we wait."""
        self._inner.serve_beside(fd, serve)

    def close(self) -> None:
        """Ends the connection."""
        self._inner.close()

    def _check(self, data: bytes, descriptors: int) -> None:
        at = self._left
        while at < len(data):
            if len(data) - at < HEADER_SIZE:
                raise RemoteProtocolError(
                    f"a message began with {len(data) - at} bytes only: QEMU reads its header in one piece"
                )
            message_id, command, size, flags, _ = HEADER.unpack_from(data, at)
            if size < HEADER_SIZE:
                raise RemoteProtocolError(f"a header announces {size} bytes: QEMU breaks off the connection")
            is_last = at + size >= len(data)
            if flags & 0xF:
                room, allowed = self._room.pop(message_id, (0, 0))
                if size > room:
                    raise RemoteProtocolError(
                        f"the reply to command {command} has {size} bytes, QEMU's buffer for it {room}"
                    )
                if is_last and descriptors > allowed:
                    raise RemoteProtocolError(
                        f"the reply to command {command} has {descriptors} descriptors, QEMU takes {allowed}"
                    )
            at += size
        self._left = at - len(data)


class QemuClient(Client):
    """Connects to the server at `path` as QEMU would, with `ram` bytes of shared memory at address 0.

    ``ram`` is that memory. ``shared=False`` is QEMU without a shared memory backend: no descriptor is sent,
    all DMA goes by message; ``layout`` is how such messages lie on the wire (`DmaLayout.QEMU10` for 10.1).
    Raises RemoteProtocolError, with the reason, for anything QEMU would refuse.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        ram: int = 16 << 20,
        shared: bool = True,
        layout: DmaLayout = DmaLayout.SPEC,
        timeout: float | None = 5.0,
    ) -> None:
        self._ram_size = ram
        self._shared = shared
        self._layout = layout
        self._posted = False
        self._open(StrictTransport(SocketTransport.connect(path)), timeout)

    def _new_connection(self) -> ClientConnection:
        connection = ClientConnection(OFFER, minor=0)
        connection.dma_layout = self._layout
        return connection

    def _start(self) -> None:
        self._negotiate()
        self._map_memory()
        self._look_at_device()
        self._look_at_config()
        self._look_at_interrupts()
        self.machine_reset()

    def machine_reset(self) -> None:
        """What a reset of the machine, and its start, does to the device."""
        if self._has_intx:
            self._disable_intx()
        self.config.write16(COMMAND, self.config.read16(COMMAND) & ~0x407)
        if self.info.flags & DeviceFlag.RESET:
            self.reset()
        if self._has_intx:
            self._assign_intx()
        for number in range(6):
            self.config.write32(BAR0 + 4 * number, 0)

    def enable_intx(self) -> Interrupt:
        """The interrupt line, assigned since the start."""
        return self._interrupts[IrqIndex.INTX][0]

    def unmask_intx(self) -> None:
        """The end of an interrupt, as QEMU without KVM tells it: with the next access to a BAR."""
        self.set_irqs(IrqIndex.INTX, SetIrqsFlag.DATA_NONE | SetIrqsFlag.UNMASK, start=0, count=1)

    def enable_msix(self, count: int | None = None) -> list[Interrupt]:
        """MSI-X as QEMU enables it: the line goes, a vector without descriptor, then one message a vector."""
        wanted = self.irq_count(IrqIndex.MSIX) if count is None else count
        if self._has_intx:
            self._disable_intx()
        self.set_irqs(IrqIndex.MSIX, EVENTFD_TRIGGER, start=0, count=1)
        if (at := self.find_capability(0x11)) is not None:
            self.config.write16(at + 2, self.config.read16(at + 2) | 1 << 15)
        interrupts = self._new_interrupts(IrqIndex.MSIX, wanted)
        for vector, interrupt in enumerate(interrupts):
            self.set_irqs(IrqIndex.MSIX, EVENTFD_TRIGGER, start=vector, count=1, fds=(interrupt.fd,))
        return interrupts

    def _negotiate(self) -> None:
        version = self._link.negotiate()
        if (version.major, version.minor) != (0, 0):
            raise RemoteProtocolError(
                f"QEMU takes version 0.0 only, the server chose {version.major}.{version.minor}"
            )
        said = version.capabilities
        if said is None:
            raise RemoteProtocolError("the server sent no JSON: QEMU 10.1 then reads its own request back")
        if not (
            said.max_msg_fds <= 16 and said.max_data_xfer_size <= 64 << 20 and said.max_dma_maps <= 65535
        ):
            raise RemoteProtocolError(f"QEMU calls these capabilities malformed: {said}")
        if said.pgsizes == 0 or said.pgsizes % 4096:
            raise RemoteProtocolError(f"QEMU aborts over pgsizes {said.pgsizes}")

    def _map_memory(self) -> None:
        """Memory first, in one burst: the pieces a PC's firmware sees, all of one descriptor."""
        self.ram = GuestRam(
            0, self._ram_size, shared=self._shared, readable=True, writable=True, unmap=self.dma_unmap_all
        )
        self._memory.blocks[0] = self.ram
        both = int(DmaMapFlag.READ | DmaMapFlag.WRITE)
        fds = (self.ram.fd,) if self._shared else ()
        pieces = [
            (0, LOW_RAM, both),
            (LOW_RAM, HOLE_END - LOW_RAM, int(DmaMapFlag.READ)),
            (HOLE_END, self._ram_size - HOLE_END, both),
        ]
        self._link.pipeline([(DmaMap(32, flags, start, start, size), fds) for start, size, flags in pieces])
        # Firmware then makes the legacy area writable: unmapped and mapped again.
        self.dma_unmap(LOW_RAM, HOLE_END - LOW_RAM)
        self._link.pipeline([(DmaMap(32, both, LOW_RAM, LOW_RAM, HOLE_END - LOW_RAM), fds)])

    def _look_at_device(self) -> None:
        self.info = self._ask(DeviceInfo(16, 0, 0, 0), DeviceInfo)
        if not self.info.flags & DeviceFlag.PCI:
            raise RemoteProtocolError("the server's device is no PCI device")
        if not (
            NEEDED_REGIONS <= self.info.num_regions <= MAX_REGIONS
            and NEEDED_IRQS <= self.info.num_irqs <= MAX_IRQS
        ):
            raise RemoteProtocolError(
                f"QEMU refuses {self.info.num_regions} regions and {self.info.num_irqs} interrupt indexes"
            )
        mappable = any(region.flags & RegionFlag.MMAP for region in self.regions)
        self._posted = not mappable

    def _look_at_config(self) -> None:
        config = self.regions[CONFIG_REGION]
        self.first_config = self.config.read(0, min(config.size, 4096))
        original = self.config.read32(ROM_BAR)
        self.config.write32(ROM_BAR, 0xFFFF_F800)
        self.rom_size_mask = self.config.read32(ROM_BAR)
        self.config.write32(ROM_BAR, original)
        if not self.regions[6].size and self.rom_size_mask & 0xFFFF_F800:
            raise RemoteProtocolError("a device without ROM shows a ROM BAR: QEMU would add one")
        self.bar_types = [self.config.read32(BAR0 + 4 * number) & 0xF for number in range(6)]

    def _look_at_interrupts(self) -> None:
        self.irq_counts = {
            index: self.irq_count(index) for index in (IrqIndex.ERR, IrqIndex.MSIX, IrqIndex.INTX)
        }
        self._has_intx = self.config.read8(INTERRUPT_PIN) != 0
        if self._has_intx:
            self._assign_intx()
        if self.irq_counts[IrqIndex.ERR] == 1:
            [error] = self._new_interrupts(IrqIndex.ERR, 1)
            self.set_irqs(IrqIndex.ERR, EVENTFD_TRIGGER, start=0, count=1, fds=(error.fd,))

    def _assign_intx(self) -> None:
        [line] = self._new_interrupts(IrqIndex.INTX, 1)
        self.set_irqs(IrqIndex.INTX, EVENTFD_TRIGGER, start=0, count=1, fds=(line.fd,))

    def _disable_intx(self) -> None:
        self.set_irqs(IrqIndex.INTX, NONE_TRIGGER, start=0, count=0)

    def _write(self, region: int, offset: int, data: bytes) -> None:
        """Writes to memory BARs are posted, unless a region can be mapped: then QEMU waits for each."""
        if self._posted and region < 6 and not self.bar_types[region] & 1:
            self._link.post(RegionWrite(offset, region, len(data), data))
        else:
            super()._write(region, offset, data)

    def close(self) -> None:
        """Goes as a killed QEMU does: without a word."""
        with suppress(RemoteError):
            super().close()
