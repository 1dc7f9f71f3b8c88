"""The devices the server's tests serve: one declared, one of six methods and no base class."""

import os
import time
from collections.abc import Sequence

from outboard import (
    Bar,
    Device,
    Intx,
    IrqAction,
    IrqData,
    Mapping,
    Msi,
    MsiX,
    PciExpress,
    PowerManagement,
    Region,
    Rom,
    SerialNumber,
    VendorCapability,
)
from outboard.errors import OutboardError, RequestRefused

ROM_IMAGE = b"\x55\xaa" + bytes(range(256)) * 15
READ, WRITE, MMAP = 1, 2, 4
MOST_WRITTEN = 128 << 20
"""Bytes a guest may have the gadget make up."""


class Gadget(Device):
    """A bit of everything; its registers make what a test needs happen."""

    vendor_id, device_id, class_code = 0x1234, 0x5678, 0x05_8000

    regs = Bar(0, size=0x1000)
    ports = Bar(1, size=0x40, io=True)
    shared = Bar(2, size=0x4000, mmap=[(0x1000, 0x1000), (0x3000, 0x1000)])
    whole = Bar(3, size=0x10_0000, mmap=True)
    tables = Bar(4, size=0x4000, bits=64)

    msix = MsiX(vectors=64, table=(tables, 0x1000), pba=(tables, 0x2000))
    msi = Msi(vectors=8)
    intx = Intx()
    power = PowerManagement()
    express_capability = PciExpress()
    vendor = VendorCapability(b"outboard", b"\xff" * 8)
    serial = SerialNumber(0x0011_2233_4455_6677)
    rom = Rom(ROM_IMAGE)

    scratch = regs.reg(0x00, reset=0x1234_5678)
    fail = regs.reg(0x10)
    refuse = regs.reg(0x14)
    fire = regs.reg(0x18, access="wo")
    level = regs.reg(0x1C)
    dma_address = regs.reg(0x20, size=8)
    dma_count = regs.reg(0x28)
    dma_now = regs.reg(0x2C, access="wo")
    dma_read = regs.reg(0x30, access="wo")
    dma_write = regs.reg(0x34, access="wo")
    dawdle = regs.reg(0x38, access="wo")

    def __init__(self, **replacements: object) -> None:
        super().__init__(**replacements)
        self.log: list[object] = []
        self.got = b""
        self.dma_error: Exception | None = None

    @fail.on_read
    def fail_to_read(self) -> int:
        raise RuntimeError("the author's bug, reading")

    @fail.on_write
    def fail_to_write(self, value: int) -> None:
        raise RuntimeError("the author's bug, writing")

    @refuse.on_write
    def refuse_with(self, errno: int) -> None:
        raise OutboardError("refused as the test asked", errno=errno)

    @fire.on_write
    def fire_vector(self, number: int) -> None:
        vectors = self.msi if number & 0x100 else self.msix
        vectors[number % len(vectors)].trigger()

    @level.on_write
    def set_level(self, level: int) -> None:
        if level:
            self.intx.assert_()  # noqa: PT009
        else:
            self.intx.deassert()

    @dma_now.on_write
    def transfer_now(self, _: int) -> None:
        self.got = self.dma.read(self.dma_address, self.dma_count)

    @dma_read.on_write
    def read_soon(self, _: int) -> None:
        self.call_soon(lambda: self.transfer(None))

    @dma_write.on_write
    def write_soon(self, fill: int) -> None:
        count = min(self.dma_count, MOST_WRITTEN)
        self.call_soon(lambda: self.transfer(bytes([fill & 0xFF]) * count))

    @dawdle.on_write
    def take_long(self, _: int) -> None:
        begun = time.monotonic()
        while time.monotonic() == begun:
            pass

    def transfer(self, data: bytes | None) -> None:
        self.got, self.dma_error = b"", None
        try:
            if data is None:
                self.got = self.dma.read(self.dma_address, self.dma_count)
            else:
                self.dma.write(self.dma_address, data)
        except Exception as error:
            self.dma_error = error
        self.log.append("transferred")

    @ports.on_read
    def port_in(self, offset: int, size: int) -> int:
        self.log.append(("in", offset, size))
        return int.from_bytes(bytes(range(0xA0 + offset, 0xA0 + offset + size)), "little")

    @ports.on_write
    def port_out(self, offset: int, size: int, value: int) -> None:
        self.log.append(("out", offset, size, value))

    def on_reset(self) -> None:
        self.log.append("reset")

    def on_connect(self) -> None:
        self.log.append("connected")

    def on_disconnect(self) -> None:
        self.log.append(("disconnected", len(self.dma.maps)))


class Handmade:
    """The contract and nothing else: 64 bytes of BAR0 and 256 of configuration space."""

    def __init__(self) -> None:
        self.regions: Sequence[Region] = (
            Region(64, READ | WRITE),
            *[Region()] * 6,
            Region(256, READ | WRITE),
            Region(),
        )
        self.interrupts: Sequence[int] = (1, 0, 2, 0, 0)
        self.memory = {0: bytearray(64), 7: bytearray(256)}
        self.calls: list[tuple[object, ...]] = []
        self.breaks: str = ""

    def region_read(self, region: int, offset: int, count: int) -> bytes:
        self._called("region_read", region, offset, count)
        return bytes(self.memory[region][offset : offset + count])

    def region_write(self, region: int, offset: int, data: bytes) -> None:
        self._called("region_write", region, offset, bytes(data))
        self.memory[region][offset : offset + len(data)] = data

    def dma_map(self, mapping: Mapping) -> None:
        if mapping.fd is not None:
            os.close(mapping.fd)
        self._called("dma_map", mapping.address, mapping.size)

    def dma_unmap(self, address: int, size: int) -> None:
        self._called("dma_unmap", address, size)

    def set_irqs(
        self,
        index: int,
        action: IrqAction,
        data: IrqData,
        start: int,
        count: int,
        *,
        fds: Sequence[int] = (),
        bools: bytes = b"",
    ) -> None:
        for fd in fds:
            os.close(fd)
        self._called("set_irqs", index, int(action), int(data), start, count, len(fds), bools)

    def reset(self) -> None:
        self._called("reset")

    def _called(self, name: str, *arguments: object) -> None:
        self.calls.append((name, *arguments))
        if name == self.breaks:
            raise RequestRefused(f"{name} refuses, as the test asked")
