"""A work queue behind a doorbell: the guest rings by eventfd, its virtual CPU waits for nothing."""

import signal
import sys

from outboard import Bar, Device, Msi, Server

QUEUES, JOB, SIZE = 4, 16, 64  # each queue: a ring of 64 jobs of 16 bytes


class Summer(Device):
    """A job is an address (8 bytes), a length (4), and room for the sum of those bytes (4)."""

    device_id, class_code = 0x0003, 0x12_00_00

    mmio = Bar(0, size=0x1000)
    ring = mmio.array(0x00, count=QUEUES, size=8)
    tail = mmio.doorbell(0x800, count=QUEUES, shadow=True)  # the value reaches us in shared memory
    stop = mmio.doorbell(0x900, size=2, matches=[0xDEAD])  # this one needs no memory: it has one value
    msi = Msi(vectors=QUEUES)

    def on_connect(self) -> None:
        self.heads = [0] * QUEUES

    @tail.on_ring
    def work(self, queue: int, tail: int) -> None:
        while self.heads[queue] != tail % SIZE:  # several rings may be heard as one: look at the value
            self.sum_up(self.ring[queue] + self.heads[queue] * JOB)
            self.heads[queue] = (self.heads[queue] + 1) % SIZE
        self.msi[queue].trigger()

    def sum_up(self, job: int) -> None:
        at, length = (self.dma.read(job + offset, size) for offset, size in ((0, 8), (8, 4)))
        data = self.dma.read(int.from_bytes(at, "little"), min(int.from_bytes(length, "little"), 1 << 20))
        self.dma.write(job + 12, sum(data).to_bytes(4, "little"))

    @stop.on_ring
    def forget(self, _: int, value: int) -> None:
        self.reset()

    def on_reset(self) -> None:
        self.heads = [0] * QUEUES


if __name__ == "__main__":
    # libvfio-user's clients are the ones that are told where a shadow is.
    with Server(Summer(), sys.argv[1], profile="libvfio-user") as server:
        signal.signal(signal.SIGTERM, lambda *_: server.stop())
        server.serve_forever()
