"""The device of libvfio-user's sample client: an alarm that reaches memory both ways, and moves on."""

import sys
import time

from outboard import Bar, Device, Intx, serve

CHUNKS = b"".join(bytes([letter]) * 1024 for letter in b"ABCD")
SHARED = 0x3000  # bytes of BAR1 that the client uses, and expects in the stream


class Alarm(Device):
    vendor_id, device_id = 0xDEAD, 0xBEEF
    subsystem_vendor_id, subsystem_id = 0xCAFE, 0xBABE
    dma_requires_bus_master = False  # the client never sets the bit

    clock = Bar(0, size=16)
    shared = Bar(1, size=0x4000, mmap=[(0x0000, 0x1000), (0x2000, 0x1000)])
    memory = shared.ram(0, size=0x4000)
    intx = Intx()
    due = clock.reg(0x00, size=8)  # when to ring, in seconds since 1970; reads as the seconds since then

    @due.on_write
    def arm(self, due: int) -> None:
        self.after(max(0.0, due - time.time()), lambda: self.ring(due))

    @due.on_read
    def since(self) -> int:
        return int(time.time()) - self.due

    def ring(self, due: int) -> None:
        if due != self.due:
            return  # set anew meanwhile
        self.intx.assert_()
        self.intx.deassert()
        by_message, in_place = (mapping.address for mapping in self.dma.maps[:2])
        self.dma.write(in_place, CHUNKS)
        assert self.dma.remote is not None
        self.dma.remote.write(by_message, CHUNKS)
        assert self.dma.remote.read(by_message, len(CHUNKS)) == CHUNKS

    def on_run(self) -> None:
        if self.due:
            self.arm(self.due)

    def save_memory(self, sent: object) -> bytes:
        """The client copies the memory, over and over, while we run."""
        return bytes(self.memory[:SHARED])

    def save_state(self, sent: object = None) -> bytes:
        """It knows how many bytes there are, so they are no sections as other devices have them."""
        return bytes(self.memory[:SHARED]) + self.due.to_bytes(8, "little")

    def restore_state(self, stream: bytes | bytearray) -> None:
        self.memory[:SHARED], self.due = stream[:SHARED], int.from_bytes(stream[SHARED:], "little")


if __name__ == "__main__":
    serve(Alarm(), sys.argv[-1])
