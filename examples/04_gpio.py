"""ACCES's PCI-IDIO-16, a card of 16 outputs and 16 inputs; a plug joins each output to an input."""

import sys

from outboard import Bar, Device, Intx, serve


class Idio16(Device):
    vendor_id, device_id = 0x494F, 0x0DC8

    ports = Bar(2, size=0x100, io=True)
    intx = Intx()
    outputs = ports.array(0x0, count=2, stride=4, size=1)
    inputs = ports.array(0x1, count=2, stride=4, size=1, mask=0)
    switch = ports.reg(0x2, size=1, mask=0)
    filters = ports.reg(0x3, size=1, mask=0)  # here inputs change at once, with and without
    status = ports.reg(0x6, size=1, access="ro")
    enabled, pending = status.bit(1), status.bit(2)

    @outputs.on_write
    def plug(self, port: int, lines: int) -> None:
        self.drive(port, lines)

    def drive(self, port: int, lines: int) -> None:
        """The world outside gives eight inputs, those of port 0 or 1, the values of these bits."""
        changed, self.inputs[port] = lines != self.inputs[port], lines
        if changed and self.enabled:
            self.pending = True
            self.intx.assert_()

    @inputs.on_write
    def acknowledge(self, port: int, _: int) -> None:
        if port == 0:
            self.pending = False
            self.intx.deassert()

    @switch.on_read
    def enable(self) -> int:
        self.enabled = True
        return 0

    @switch.on_write
    def disable(self, _: int) -> None:
        self.enabled = False


if __name__ == "__main__":
    serve(Idio16(), sys.argv[1])
