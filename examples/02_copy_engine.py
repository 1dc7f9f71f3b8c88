"""A DMA engine with a fast path of its own: jobs in a ring, carried out by a compiled loop beside it."""

import sys

from outboard import Bar, Device, Msi, serve
from outboard.native.jit import entry
from outboard.native.memory import address_of, copy, load32, load64, load_acquire32, store64, store_release32
from outboard.native.poller import arm, notify, sleep, stopping
from outboard.native.translation import READ, WRITE, translate
from outboard.native.words import Block, offsets

SOURCE, TARGET, LENGTH, STATUS, JOB = 0, 8, 16, 20, 32  # a job in the guest's ring, and its size
DONE, REFUSED, LARGEST, LOOKS, NAP = 1, 2, 1 << 20, 1000, 1_000_000
TABLE, BELL, RING, SIZE, HEAD = offsets(5)  # the words that device and loop share


@entry
def pump(control: int, engine: int) -> int:
    table, bell, looks = load64(engine + TABLE), load64(engine + BELL), 0
    while not stopping(control):
        head, size, tail = load64(engine + HEAD), load64(engine + SIZE), load_acquire32(bell)
        job = translate(table, load64(engine + RING) + head * JOB, JOB, WRITE)
        looks += 1
        if job != 0 and head != tail and tail < size:
            length = load32(job + LENGTH)  # each field once: the guest may change it meanwhile
            source = translate(table, load64(job + SOURCE), length, READ)
            target = translate(table, load64(job + TARGET), length, WRITE)
            possible = source != 0 and target != 0 and length <= LARGEST
            if possible:
                copy(target, source, length)
            store_release32(job + STATUS, DONE if possible else REFUSED)
            store64(engine + HEAD, head + 1 if head + 1 < size else 0)
            notify(control)
            looks = 0
        elif looks == LOOKS:
            arm(control)  # from here on a doorbell message wakes us: look once more, then sleep
        elif looks > LOOKS:
            sleep(control, -1, NAP)
            looks = LOOKS - 1
    return 0


class CopyEngine(Device):
    device_id, class_code = 0x0002, 0x08_01_80

    mmio = Bar(0, size=0x2000, mmap=[(0x1000, 0x1000)])
    ring = mmio.reg(0x00, size=8, mask=(1 << 63) - JOB)
    entries = mmio.reg(0x08, mask=0xFFF)
    tail = mmio.reg(0x1000)  # in a page that the guest may map: then nobody hears of a new value
    msi = Msi(vectors=1)

    def on_connect(self) -> None:
        self.words = Block(64)
        self.words[TABLE] = self.dma.translation.address
        self.words[BELL] = address_of(self.mmio.memory) + 0x1000
        self.poller = self.start_poller(pump, self.words.address, on_notice=self.msi[0].trigger)

    @entries.on_write
    def begin(self, entries: int) -> None:
        with self.poller.paused():  # the loop has returned, and sees all of it or nothing
            self.words[RING], self.words[SIZE], self.words[HEAD], self.tail = self.ring, entries, 0, 0

    @tail.on_write
    def wake(self, _: int) -> None:
        self.poller.wake()

    def on_reset(self) -> None:
        self.begin(0)


if __name__ == "__main__":
    pump.best()  # compiled before a client waits
    serve(CopyEngine(), sys.argv[1])
