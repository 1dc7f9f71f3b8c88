"""What each command of a client asks of a device: one method a command.

A method takes the request and returns the reply's body, or raises an error whose ``errno`` becomes the
error reply. Checks that need only the message are here; those that need the device (which vectors exist,
what overlaps) are the device's.
"""

import errno
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from outboard.device import DeviceContract, Region
from outboard.dma import MAX_MAPS, Mapping
from outboard.errors import OutboardError, RequestRefused
from outboard.pci.interrupts import IrqAction, IrqData
from outboard.protocol import Command, Message, Request
from outboard.protocol.messages import (
    Area,
    Bitmap,
    DeviceFlag,
    DeviceInfo,
    DeviceReset,
    DmaMap,
    DmaMapFlag,
    DmaUnmap,
    DmaUnmapFlag,
    Empty,
    IoFdsLayout,
    IrqFlag,
    IrqInfo,
    RegionFlag,
    RegionInfo,
    RegionIoFds,
    RegionRead,
    RegionReadReply,
    RegionWrite,
    RegionWriteMulti,
    RegionWriteMultiReply,
    RegionWriteReply,
    SetIrqs,
    SetIrqsFlag,
)
from outboard.server.features import Features
from outboard.server.io_fds import region_io_fds
from outboard.server.profiles import SPEC, Profile

log = logging.getLogger(__name__)

INFO_SIZE = 16
MAX_TRANSFER = 1 << 20
"""Bytes one REGION_READ or REGION_WRITE may move: what our VERSION reply says."""
INTX = 0

DATA_KINDS = SetIrqsFlag.DATA_NONE | SetIrqsFlag.DATA_BOOL | SetIrqsFlag.DATA_EVENTFD
ACTIONS = SetIrqsFlag.MASK | SetIrqsFlag.UNMASK | SetIrqsFlag.TRIGGER
# Plain integers: on Python 3.11 the complement of a flag has only the bits its class names.
SET_IRQS_FLAGS = int(DATA_KINDS | ACTIONS)
DMA_ACCESS_MODES = int(DmaMapFlag.MMAP | DmaMapFlag.FILE_IO)
DMA_MAP_FLAGS = int(DmaMapFlag.READ | DmaMapFlag.WRITE) | DMA_ACCESS_MODES
DMA_UNMAP_FLAGS = int(DmaUnmapFlag.ALL | DmaUnmapFlag.DIRTY_BITMAP)


class Requests:
    """The commands of vfio-user, asked of `device`.

    ``table`` maps a command to its method. ``reply_fds`` are the descriptors that go with the reply of the
    latest method called: the device's own. ``sizes`` are those of the regions, in bytes; ``read`` is how a
    region is read.
    """

    def __init__(self, device: DeviceContract) -> None:
        self.device = device
        self.read = device.region_read
        self.reply_fds: Sequence[int] = ()
        self._profile = SPEC
        self._most_fds = 1
        self.sizes = tuple(region.size for region in device.regions)
        self.features = Features(device)
        self._maps: set[tuple[int, int]] = set()
        self.table: dict[Command, Callable[[Request, Any], Message]] = {
            Command.DMA_MAP: self.dma_map,
            Command.DMA_UNMAP: self.dma_unmap,
            Command.DEVICE_GET_INFO: self.device_info,
            Command.DEVICE_GET_REGION_INFO: self.region_info,
            Command.DEVICE_GET_REGION_IO_FDS: self.region_io_fds,
            Command.DEVICE_GET_IRQ_INFO: self.irq_info,
            Command.DEVICE_SET_IRQS: self.set_irqs,
            Command.REGION_READ: self.region_read,
            Command.REGION_WRITE: self.region_write,
            Command.REGION_WRITE_MULTI: self.region_write_multi,
            Command.DEVICE_RESET: self.device_reset,
            Command.DEVICE_FEATURE: self.features.device_feature,
            Command.MIG_DATA_READ: self.features.read_data,
            Command.MIG_DATA_WRITE: self.features.write_data,
        }

    def meet(self, profile: Profile, announced_fds: int) -> None:
        """The client is known; ``announced_fds`` are the descriptors it said it takes in a message."""
        self._profile = profile
        self.features.pads_data = profile.full_migration_data
        self._most_fds = announced_fds if profile.most_fds is None else profile.most_fds
        self.read = self.device.region_read if profile.on_error == "error" else self._read_or_ones

    def region_read(self, request: Request, body: RegionRead) -> Message:
        """REGION_READ: `count` bytes of a region."""
        self._check_access(body.region, body.offset, body.count)
        data = self.read(body.region, body.offset, body.count) if body.count else b""
        if len(data) != body.count:
            raise OutboardError(
                f"the device answered a read of {body.count} bytes at {body.offset:#x} of region"
                f" {body.region} with {len(data)}"
            )
        return RegionReadReply(body.offset, body.region, body.count, data)

    def region_write(self, request: Request, body: RegionWrite) -> Message:
        """REGION_WRITE: bytes into a region."""
        self._write(body.region, body.offset, body.data)
        return RegionWriteReply(body.offset, body.region, body.count)

    def region_write_multi(self, request: Request, body: RegionWriteMulti) -> Message:
        """REGION_WRITE_MULTI: several short writes, in their order; all are checked before the first."""
        for write in body.writes:
            self._check_access(write.region, write.offset, len(write.data))
        for write in body.writes:
            self._write(write.region, write.offset, write.data)
        return RegionWriteMultiReply(len(body.writes))

    def device_info(self, request: Request, body: DeviceInfo) -> Message:
        """DEVICE_GET_INFO."""
        return DeviceInfo(
            argsz=INFO_SIZE,
            flags=DeviceFlag.RESET | DeviceFlag.PCI,
            num_regions=len(self.device.regions),
            num_irqs=len(self.device.interrupts),
        )

    def region_info(self, request: Request, body: RegionInfo) -> Message:
        """DEVICE_GET_REGION_INFO, cut to what the client has room for.

        QEMU asks with room for the fixed part only and again with the `argsz` it is told; descriptors
        travel only with the whole answer. Where a client wants one for each area, those are described that
        descriptors can be sent for.
        """
        index = body.index
        region = self._region(index)
        info = RegionInfo(
            argsz=0,
            flags=region.flags,
            index=index,
            cap_offset=0,
            size=region.size,
            offset=region.fd_offset,
        )
        if region.fd is None or not region.flags & RegionFlag.MMAP:
            return info.fitted(body.argsz)
        if not self._most_fds:
            info.flags &= ~RegionFlag.MMAP
            return info.fitted(body.argsz)
        areas = tuple(region.areas) or ((0, region.size),)
        if self._profile.fd_per_area:
            areas = areas[: self._most_fds]
        # No list of areas means that the whole region may be mapped.
        if self._profile.fd_per_area or areas != ((0, region.size),):
            info.areas = tuple(Area(offset, size) for offset, size in areas)
        if body.argsz >= info.needed:
            self.reply_fds = (region.fd,) * (len(areas) if self._profile.fd_per_area else 1)
        return info.fitted(body.argsz)

    def region_io_fds(self, request: Request, body: RegionIoFds) -> Message:
        """DEVICE_GET_REGION_IO_FDS: the device's doorbells, as far as the client takes descriptors."""
        if body.flags or body.count:
            raise RequestRefused(
                f"flags ({body.flags:#x}) and count ({body.count}) have to be 0 in this request"
            )
        if not self._region(body.index).size:
            raise RequestRefused(f"the device has no region {body.index}")
        layout = self._profile.io_fds
        offered = getattr(self.device, "io_event_fds", None) if self._most_fds else None
        parts = offered(body.index, layout is IoFdsLayout.LIBVFIO_USER) if offered else ()
        answer, self.reply_fds = region_io_fds(body, parts, layout, self._most_fds)
        return answer

    def irq_info(self, request: Request, body: IrqInfo) -> Message:
        """DEVICE_GET_IRQ_INFO."""
        index = body.index
        flags = IrqFlag.EVENTFD
        if index == INTX:
            flags |= IrqFlag.MASKABLE | IrqFlag.AUTOMASKED
        return IrqInfo(argsz=INFO_SIZE, flags=flags, index=index, count=self._vectors(index))

    def set_irqs(self, request: Request, body: SetIrqs) -> Message:
        """DEVICE_SET_IRQS: assigns eventfds, masks, unmasks, fires."""
        kind, action = body.flags & DATA_KINDS, body.flags & ACTIONS
        if body.flags & ~SET_IRQS_FLAGS or kind.bit_count() != 1 or action.bit_count() != 1:
            raise RequestRefused(
                f"flags {body.flags:#x}: exactly one of NONE, BOOL, EVENTFD"
                " and one of MASK, UNMASK, TRIGGER are needed"
            )
        self._vectors(body.index)
        wanted = body.count if kind == SetIrqsFlag.DATA_BOOL else 0
        if len(body.data) != wanted:
            raise RequestRefused(f"{len(body.data)} bytes of data, the flags ask for {wanted}")
        fds, request.fds = request.fds, ()
        self.device.set_irqs(
            body.index,
            IrqAction(int(action)),
            IrqData(int(kind)),
            body.start,
            body.count,
            fds=fds,
            bools=bytes(body.data),
        )
        return Empty()

    def dma_map(self, request: Request, body: DmaMap) -> Message:
        """DMA_MAP: a range of guest memory, with a descriptor or without.

        A client may say how its descriptor is to be used: mapped, which is what happens if nothing is said,
        or by file I/O.
        """
        if body.flags & ~DMA_MAP_FLAGS:
            raise RequestRefused(
                f"DMA_MAP flags {int(body.flags):#x}: only readable (1), writable (2), and the access modes"
                " mmap (4) and file I/O (8) are known"
            )
        mode = body.flags & DMA_ACCESS_MODES
        if mode and (mode == DMA_ACCESS_MODES or not request.fds):
            raise RequestRefused(
                f"DMA_MAP flags {int(body.flags):#x} with {len(request.fds)} descriptors: one access mode is"
                " possible, and needs a descriptor"
            )
        if len(request.fds) > 1:
            raise RequestRefused(f"DMA_MAP takes one descriptor, {len(request.fds)} came")
        if len(self._maps) >= MAX_MAPS and (body.address, body.size) not in self._maps:
            raise RequestRefused(f"{MAX_MAPS} ranges are mapped already: the most", errno=errno.ENOSPC)
        fds, request.fds = request.fds, ()
        self.device.dma_map(
            Mapping(
                address=body.address,
                size=body.size,
                readable=bool(body.flags & DmaMapFlag.READ),
                writable=bool(body.flags & DmaMapFlag.WRITE),
                fd=fds[0] if fds else None,
                offset=body.offset,
                file_io=bool(mode & DmaMapFlag.FILE_IO),
            )
        )
        self._maps.add((body.address, body.size))
        return Empty()

    def dma_unmap(self, request: Request, body: DmaUnmap) -> Message:
        """DMA_UNMAP: one range, all that lie in a wider one, or (flag ALL, address and size 0) every one.

        The wider one is VFIO's way, which QEMU relies on when it resets a virtual IOMMU: it names the whole
        address space in a few pieces. Older drafts ask for the dirty pages of what goes, too.
        """
        if body.flags & ~DMA_UNMAP_FLAGS:
            raise RequestRefused(
                f"DMA_UNMAP flags {int(body.flags):#x}: only DIRTY_BITMAP (1) and ALL (2) are known"
            )
        bitmap = None
        if body.flags & DmaUnmapFlag.ALL:
            if body.address or body.size or body.bitmap is not None:
                raise RequestRefused("DMA_UNMAP of ALL takes neither address nor size, and gives no bitmap")
            self._unmap_each(sorted(self._maps))
        else:
            maps = [(body.address, body.size)]
            if maps[0] not in self._maps:
                maps = self._maps_within(body.address, body.address + body.size)
            if body.bitmap is None:
                self._unmap_each(maps)
            else:
                bitmap = self._unmap_and_report(maps, body.address, body.size, body.bitmap)
        room = 0 if bitmap is None else Bitmap.LAYOUT.size + bitmap.size
        return DmaUnmap(24 + room, body.flags, body.address, body.size, bitmap)

    def device_reset(self, request: Request, body: DeviceReset) -> Message:
        """DEVICE_RESET."""
        self.device.reset()
        self.features.reset()
        return Empty()

    def releases(self) -> Iterator[Callable[[], None]]:
        """What takes back all that the client has given, piece by piece: each may fail by itself."""
        yield self.features.release
        for address, size in sorted(self._maps):
            yield partial(self._unmap, address, size)
        for index, vectors in enumerate(self.device.interrupts):
            if vectors:
                yield partial(self.device.set_irqs, index, IrqAction.TRIGGER, IrqData.NONE, 0, 0)

    def _maps_within(self, start: int, end: int) -> list[tuple[int, int]]:
        """The maps between `start` and `end`; refused if there is none, or one that is only cut."""
        touched = sorted((at, size) for at, size in self._maps if at < end and at + size > start)
        if not touched:
            raise RequestRefused(f"nothing is mapped at {start:#x} to {end:#x}", errno=errno.ENOENT)
        for at, size in touched:
            if at < start or at + size > end:
                raise RequestRefused(
                    f"cannot unmap {start:#x} to {end:#x}: it cuts the {size:#x} bytes mapped at {at:#x}",
                    errno=errno.ENOENT,
                )
        return touched

    def _unmap_each(self, maps: Iterable[tuple[int, int]]) -> None:
        for address, size in maps:
            self._unmap(address, size)

    def _unmap_and_report(
        self, maps: Iterable[tuple[int, int]], address: int, size: int, wanted: Bitmap
    ) -> Bitmap:
        """Unmaps, and says what was dirty; nothing is written in another thread in between."""
        with self.features.memory_unused():
            dirty = self.features.dirty_bitmap(address, size, wanted.pgsize, wanted.size)
            self._unmap_each(maps)
        return Bitmap(wanted.pgsize, len(dirty), dirty)

    def _unmap(self, address: int, size: int) -> None:
        self.device.dma_unmap(address, size)
        self._maps.discard((address, size))

    def _write(self, index: int, offset: int, data: bytes) -> None:
        self._check_access(index, offset, len(data))
        if data:
            self.device.region_write(index, offset, data)

    def _read_or_ones(self, region: int, offset: int, count: int) -> bytes:
        """What the device reads, or all ones where it fails."""
        try:
            return self.device.region_read(region, offset, count)
        except Exception as error:
            log.warning(
                "region %d, offset %#x: the read failed, answered with all ones: %s", region, offset, error
            )
            return b"\xff" * count

    def _check_access(self, index: int, offset: int, count: int) -> None:
        size = self.sizes[index] if index < len(self.sizes) else 0
        if count > MAX_TRANSFER or offset + count > size or index >= len(self.sizes):
            raise RequestRefused(
                f"{count} bytes at {offset:#x} of region {index}: the region has {size:#x} bytes,"
                f" and one access moves at most {MAX_TRANSFER:#x}"
            )

    def _region(self, index: int) -> Region:
        if index >= len(self.device.regions):
            raise RequestRefused(f"region {index}: there are {len(self.device.regions)} regions")
        return self.device.regions[index]

    def _vectors(self, index: int) -> int:
        if index >= len(self.device.interrupts):
            raise RequestRefused(f"interrupt index {index}: there are {len(self.device.interrupts)}")
        return self.device.interrupts[index]
