"""An NVMe controller on the bench: no socket, no client; the six methods of the contract, and a loop.

Guest memory is one memfd, mapped in two adjacent halves, so that transfers across mappings happen.
"""

import mmap
import os

from outboard import Mapping
from outboard.devices.nvme import Nvme
from outboard.loop import Loop
from tests.devices.nvme.driver import Driver, Ram

RAM_SIZE = 16 << 20
RAM_ADDRESS = 0x1_0000_0000 - RAM_SIZE // 2
"""The two halves meet at 4 GiB."""

COMMAND = 4
BUS_MASTER, MEMORY = 4, 2


class DeviceBar:
    """A BAR of a device, by the contract's own methods."""

    def __init__(self, device: Nvme, region: int) -> None:
        self.device, self.region = device, region

    def read(self, offset: int, size: int) -> int:
        return int.from_bytes(self.device.region_read(self.region, offset, size), "little")

    def write(self, offset: int, size: int, value: int) -> None:
        self.device.region_write(self.region, offset, value.to_bytes(size, "little"))

    def read32(self, offset: int) -> int:
        return self.read(offset, 4)

    def read64(self, offset: int) -> int:
        return self.read(offset, 8)

    def write32(self, offset: int, value: int) -> None:
        self.write(offset, 4, value)

    def write64(self, offset: int, value: int) -> None:
        self.write(offset, 8, value)


class Bench:
    """A device, its loop, guest memory, and a driver for it."""

    def __init__(self, device: Nvme, fd: int | None = None) -> None:
        """``fd``: guest memory that is there already."""
        self.device = device
        self.loop = Loop()
        device.attach(self.loop)
        device.connected(None)
        self.fd = os.memfd_create("guest") if fd is None else os.dup(fd)
        os.truncate(self.fd, RAM_SIZE)
        self.memory = mmap.mmap(self.fd, RAM_SIZE)
        self.map()
        self.bar = DeviceBar(device, 0)
        self.config = DeviceBar(device, 7)
        self.bus_master(True)
        self.driver = Driver(self.bar, Ram(memoryview(self.memory), RAM_ADDRESS), self.step)

    def step(self) -> None:
        """Let the device do what it has put off, or what it waits for."""
        self.loop.run_once(timeout=60 if self.device.state.outstanding else 0)

    def settle(self) -> None:
        """Let the device work until nothing is left."""
        while self.loop.run_pending():
            pass

    def bus_master(self, enabled: bool) -> None:
        self.config.write(COMMAND, 2, MEMORY | (BUS_MASTER if enabled else 0))

    def map(self) -> None:
        half = RAM_SIZE // 2
        for start in (0, half):
            self.device.dma_map(Mapping(RAM_ADDRESS + start, half, fd=os.dup(self.fd), offset=start))

    def unmap(self) -> None:
        half = RAM_SIZE // 2
        for start in (0, half):
            self.device.dma_unmap(RAM_ADDRESS + start, half)

    def close(self) -> None:
        spaces = list(self.device.subsystem.namespaces.values())
        self.leave()
        for space in spaces:
            space.storage.close()

    def leave(self) -> None:
        """Close all but the namespaces, which others may have."""
        assert self.device.dma.live_views == 0
        assert not self.device.unhandled
        self.device.disconnected()
        self.device.close()
        self.loop.close()
        os.close(self.fd)
