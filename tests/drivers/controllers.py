"""A small NVMe controller that offers each kind of doorbells, and can be told to misbehave.

It is no model of a good one: it knows what the drivers of this package send, and checks nothing.
"""

import struct
from dataclasses import dataclass, field
from typing import Any

from outboard import Bar, Device
from outboard.drivers.nvme_measure import Doorbells

PAGE = 4096
BLOCK = 512
ENTRY = struct.Struct("<BBHI16xQQQI12x")
COMPLETION = struct.Struct("<IIHHHH")
POLL = 0.0002


@dataclass
class Queue:
    """A pair of queues; addresses are the client's."""

    submissions: int = 0
    completions: int = 0
    entries: int = 0
    head: int = 0
    tail: int = 0
    consumed: int = 0
    phase: int = 1


@dataclass
class Faults:
    """What goes wrong; ``fail`` has first blocks, ``silent_from`` counts commands."""

    fail: set[int] = field(default_factory=set)
    lose_writes: bool = False
    complete_unknown: bool = False
    silent_from: int | None = None


class SmallNvme(Device):
    """One namespace of ``blocks`` blocks of 512 bytes, in memory."""

    vendor_id, device_id, class_code = 0x4F42, 0x00FF, 0x01_08_02

    bar = Bar(0, size=0x4000)
    cap = bar.reg(0x00, size=8, reset=255 | 1 << 16 | 4 << 24 | 1 << 37, access="ro")
    cc = bar.reg(0x14)
    csts = bar.reg(0x1C, access="ro")
    aqa = bar.reg(0x24)
    asq = bar.reg(0x28, size=8)
    acq = bar.reg(0x30, size=8)
    doorbells = bar.array(0x1000, count=256, stride=4)

    def __init__(self, blocks: int, kind: Doorbells, mdts: int = 5, **replacements: Any) -> None:
        if kind is Doorbells.MAPPED:
            replacements["bar"] = Bar(0, size=0x4000, mmap=[(0x1000, PAGE)])
        super().__init__(**replacements)
        self.kind = kind
        self.mdts = mdts
        self.disk = bytearray(blocks * BLOCK)
        self.faults = Faults()
        self.rung = 0
        self.done = 0
        self.queues: dict[int, Queue] = {}
        self.shadow: tuple[int, int] | None = None

    @cc.on_write
    def configure(self, value: int) -> None:
        self.queues.clear()
        self.shadow = None
        self.csts = value & 1
        if value & 1:
            for index in range(256):
                self.doorbells[index] = 0
            self.queues[0] = Queue(self.asq, self.acq, (self.aqa & 0xFFF) + 1)
            if self.kind is Doorbells.MAPPED:
                self.after(POLL, self.poll)

    @doorbells.on_write
    def ring(self, index: int, value: int) -> None:
        self.rung += 1
        self.call_soon(self.serve)

    def poll(self) -> None:
        if self.queues:
            self.serve()
            self.after(POLL, self.poll)

    def serve(self) -> None:
        """Take what the doorbells, or their shadows, announce; arm the event indices; look again."""
        more = bool(self.queues)
        while more:
            more = False
            for number, queue in list(self.queues.items()):
                tail, queue.consumed = self.doorbell(number, 0), self.doorbell(number, 1)
                while queue.head != tail and self.room(queue):
                    self.execute(number, queue)
                    more = True

    def room(self, queue: Queue) -> bool:
        return (queue.tail + 1) % queue.entries != queue.consumed

    def doorbell(self, number: int, which: int) -> int:
        index = 2 * number + which
        if number == 0 or self.shadow is None:
            return self.doorbells[index]
        shadow, events = self.shadow
        value = self.dma.read(shadow + 4 * index, 4)
        self.dma.write(events + 4 * index, value)
        return int.from_bytes(value, "little")

    def execute(self, number: int, queue: Queue) -> None:
        entry = self.dma.read(queue.submissions + 64 * queue.head, 64)
        queue.head = (queue.head + 1) % queue.entries
        opcode, _, cid, _, prp1, prp2, lba, cdw12 = ENTRY.unpack(entry)
        result, status = 0, 0
        if number == 0:
            result = self.admin(opcode, prp1, prp2, *struct.unpack_from("<II", entry, 40))
        else:
            self.done += 1
            if self.faults.silent_from is not None and self.done > self.faults.silent_from:
                return
            if lba in self.faults.fail:
                status = 0x281
            else:
                self.transfer(opcode, prp1, prp2, lba * BLOCK, ((cdw12 & 0xFFFF) + 1) * BLOCK)
            cid += 4096 * self.faults.complete_unknown
        word = status << 1 | queue.phase
        self.dma.write(
            queue.completions + 16 * queue.tail, COMPLETION.pack(result, 0, queue.head, number, cid, word)
        )
        queue.tail = (queue.tail + 1) % queue.entries
        queue.phase ^= queue.tail == 0

    def admin(self, opcode: int, prp1: int, prp2: int, cdw10: int, cdw11: int) -> int:
        if opcode == 0x06:
            data = bytearray(PAGE)
            if cdw10 == 1:
                data[77] = self.mdts
                data[257] = 1 if self.kind is Doorbells.SHADOW else 0
            else:
                data[0:8] = (len(self.disk) // BLOCK).to_bytes(8, "little")
                data[130] = 9
            self.dma.write(prp1, bytes(data))
        elif opcode == 0x05:
            self.queues[cdw10 & 0xFFFF] = Queue(completions=prp1, entries=(cdw10 >> 16) + 1)
        elif opcode == 0x01:
            self.queues[cdw10 & 0xFFFF].submissions = prp1
        elif opcode == 0x7C:
            self.shadow = prp1, prp2
        return 3 | 3 << 16 if opcode == 0x09 else 0

    def transfer(self, opcode: int, prp1: int, prp2: int, offset: int, size: int) -> None:
        pages = [prp1, prp2]
        if size > 2 * PAGE:
            count = size // PAGE - 1
            pages = [prp1, *struct.unpack(f"<{count}Q", self.dma.read(prp2, 8 * count))]
        for at, page in zip(range(0, size, PAGE), pages, strict=False):
            length = min(PAGE, size - at)
            if opcode == 2:
                self.dma.write(page, bytes(self.disk[offset + at : offset + at + length]))
            elif not self.faults.lose_writes:
                self.disk[offset + at : offset + at + length] = self.dma.read(page, length)
