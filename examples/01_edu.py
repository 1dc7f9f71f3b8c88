"""QEMU's `edu` teaching device: an inverter, a factorial unit (without its interrupt), a DMA engine."""

import math
import sys

from outboard import Bar, Device, Msi, serve


class Edu(Device):
    vendor_id, device_id, class_code, revision_id = 0x1234, 0x11E8, 0x00FF00, 0x10

    mmio = Bar(0, size=0x100000)
    buffer = mmio.ram(0x40000, size=0x1000)
    msi = Msi(vectors=1)
    ident = mmio.reg(0x00, reset=0x0100_00ED, access="ro")
    inverter = mmio.reg(0x04)
    factorial = mmio.reg(0x08)
    pending = mmio.reg(0x24, access="ro")
    trigger = mmio.reg(0x60, access="wo")
    acknowledge = mmio.reg(0x64, access="wo")
    source, target, length = mmio.reg(0x80, size=8), mmio.reg(0x88, size=8), mmio.reg(0x90, size=8)
    command = mmio.reg(0x98, size=8)
    running, to_guest, notify = command.bit(0), command.bit(1), command.bit(2)

    @inverter.on_write
    def invert(self, value: int) -> None:
        self.inverter = ~value

    @factorial.on_write
    def compute(self, n: int) -> None:
        self.factorial = math.factorial(min(n, 34))  # 34! and all above are 0 in 32 bits

    @command.on_write
    def start(self, _: int) -> None:
        self.call_soon(self.move)  # the guest goes on meanwhile

    def move(self) -> None:
        at = (self.source if self.to_guest else self.target) - 0x40000
        part = self.buffer[at : at + self.length]
        if self.to_guest:
            self.dma.write(self.target, part)
        else:
            part[:] = self.dma.read(self.source, len(part))
        self.running = False
        if self.notify:
            self.interrupt(0x100)

    @trigger.on_write
    def interrupt(self, bits: int) -> None:
        self.pending |= bits
        self.msi[0].trigger()

    @acknowledge.on_write
    def lower(self, bits: int) -> None:
        self.pending &= ~bits


if __name__ == "__main__":
    serve(Edu(), sys.argv[1])
