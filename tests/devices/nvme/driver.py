"""A small NVMe driver for tests: queues, doorbells, phase tags, PRPs.

It needs a BAR to read and write, guest memory to put things in, and a way to let the device work.
"""

import struct
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from outboard.devices.nvme.command import Command, Completion
from outboard.devices.nvme.spec import AdminOpcode, Cns, IoOpcode
from outboard.devices.nvme.status import DO_NOT_RETRY, Status

PAGE = 4096
CAP, VS, INTMS, INTMC, CC, CSTS, NSSR, AQA, ASQ, ACQ = 0, 8, 0xC, 0x10, 0x14, 0x1C, 0x20, 0x24, 0x28, 0x30
CC_ENABLE = 0x0046_0001
READY, FATAL = 1, 2
PATIENCE = 60.0


class Registers(Protocol):
    """A BAR, by message or mapped."""

    def read32(self, offset: int) -> int: ...
    def read64(self, offset: int) -> int: ...
    def write32(self, offset: int, value: int) -> None: ...
    def write64(self, offset: int, value: int) -> None: ...


class Ram:
    """Guest memory with an allocator that never frees: ``view`` is what the device sees at ``address``."""

    def __init__(self, view: memoryview, address: int) -> None:
        self.view = view
        self.address = address
        self._next = 0

    def allocate(self, size: int, align: int = PAGE, offset: int = 0) -> int:
        """The address of ``size`` zeroed bytes, ``offset`` bytes behind a multiple of ``align``."""
        start = -(-self._next // align) * align + offset
        self._next = start + size
        assert self._next <= len(self.view), "the test's guest memory is too small"
        self.view[start : start + size] = bytes(size)
        return self.address + start

    def rewind(self, start: int) -> None:
        """Allocate from ``start`` on again: what was there belongs to nobody now."""
        self._next = start

    def read(self, address: int, size: int) -> bytes:
        start = address - self.address
        return bytes(self.view[start : start + size])

    def write(self, address: int, data: bytes) -> None:
        start = address - self.address
        self.view[start : start + len(data)] = data


class QueuePair:
    """A submission and a completion queue of ``entries`` each (or ``cq_entries``)."""

    def __init__(self, driver: "Driver", qid: int, entries: int, cq_entries: int = 0, cqid: int = -1) -> None:
        self.driver = driver
        self.qid, self.entries = qid, entries
        self.cqid = qid if cqid < 0 else cqid
        self.cq_entries = cq_entries or entries
        self.sq = driver.ram.allocate(entries * 64)
        self.cq = driver.ram.allocate(self.cq_entries * 16)
        self.restart()

    def restart(self) -> None:
        """Everything as after creation."""
        self.tail = self.head = 0
        self.phase = 1
        self.cid = 0
        self.done: dict[int, Completion] = {}
        self.driver.ram.write(self.cq, bytes(self.cq_entries * 16))

    def submit(self, command: Command, cid: int | None = None) -> int:
        """Put a command into the queue, without ringing; its identifier."""
        if cid is None:
            cid, self.cid = self.cid, (self.cid + 1) % 0xFFFF
        self.driver.ram.write(self.sq + self.tail * 64, replace(command, cid=cid).encode())
        self.tail = (self.tail + 1) % self.entries
        return cid

    def ring(self) -> None:
        """Tell the device of the new tail."""
        self.driver.bar.write32(0x1000 + 8 * self.qid, self.tail)

    def poll(self, acknowledge: bool = True) -> list[Completion]:
        """Consume what has completed."""
        found = []
        while True:
            completion = Completion.decode(self.driver.ram.read(self.cq + self.head * 16, 16))
            if completion.phase != self.phase:
                break
            found.append(completion)
            self.done[completion.cid] = completion
            self.head += 1
            if self.head == self.cq_entries:
                self.head, self.phase = 0, self.phase ^ 1
        if found and acknowledge:
            self.acknowledge()
        return found

    def acknowledge(self) -> None:
        """Tell the device of the new head."""
        self.driver.bar.write32(0x1004 + 8 * self.cqid, self.head)

    def wait(self, cid: int) -> Completion:
        """Let the device work until the command completes."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            self.poll()
            if cid in self.done:
                return self.done.pop(cid)
            self.driver.step()
        raise AssertionError(f"command {cid} of queue {self.qid} never completed")

    def execute(self, command: Command) -> Completion:
        """Submit, ring, wait."""
        cid = self.submit(command)
        self.ring()
        return self.wait(cid)


class Driver:
    """Drives the controller behind ``bar``; ``step`` lets it work."""

    def __init__(self, bar: Registers, ram: Ram, step: Callable[[], None]) -> None:
        self.bar, self.ram, self.step = bar, ram, step
        self.admin: QueuePair
        self.data = ram.allocate(PAGE)

    def enable(self, sq_entries: int = 32, cq_entries: int = 32, cc: int = CC_ENABLE) -> "Driver":
        """Program the admin queues and start the controller."""
        self.admin = QueuePair(self, 0, sq_entries, cq_entries)
        self.bar.write32(AQA, sq_entries - 1 | (cq_entries - 1) << 16)
        self.bar.write64(ASQ, self.admin.sq)
        self.bar.write64(ACQ, self.admin.cq)
        self.bar.write32(CC, cc & ~1)
        self.bar.write32(CC, cc)
        return self

    def disable(self) -> None:
        self.bar.write32(CC, self.bar.read32(CC) & ~1)

    @property
    def status(self) -> int:
        return self.bar.read32(CSTS)

    def create_queue_pair(
        self,
        qid: int = 1,
        entries: int = 16,
        cq_entries: int = 0,
        vector: int | None = None,
        priority: int = 0,
    ) -> QueuePair:
        """Create both queues; with ``vector``, the completion queue interrupts by it."""
        pair = QueuePair(self, qid, entries, cq_entries)
        assert ended(self.admin.execute(self.create_cq(pair, vector))) == Status.SUCCESS
        assert ended(self.admin.execute(self.create_sq(pair, priority))) == Status.SUCCESS
        return pair

    def create_cq(self, pair: QueuePair, vector: int | None = None) -> Command:
        interrupts = 0 if vector is None else 2 | vector << 16
        size = pair.cq_entries - 1
        return Command(
            AdminOpcode.CREATE_IO_CQ, prp1=pair.cq, cdw10=pair.cqid | size << 16, cdw11=1 | interrupts
        )

    def create_sq(self, pair: QueuePair, priority: int = 0) -> Command:
        size = pair.entries - 1
        return Command(
            AdminOpcode.CREATE_IO_SQ,
            prp1=pair.sq,
            cdw10=pair.qid | size << 16,
            cdw11=1 | priority << 1 | pair.cqid << 16,
        )

    def identify(self, cns: Cns | int, nsid: int = 0, cdw11: int = 0) -> Completion:
        """Identify into ``data``."""
        return self.admin.execute(
            Command(AdminOpcode.IDENTIFY, nsid=nsid, prp1=self.data, cdw10=cns, cdw11=cdw11)
        )

    def get_feature(self, fid: int, select: int = 0, cdw11: int = 0, nsid: int = 0) -> Completion:
        return self.admin.execute(
            Command(AdminOpcode.GET_FEATURES, nsid=nsid, prp1=self.data, cdw10=fid | select << 8, cdw11=cdw11)
        )

    def set_feature(self, fid: int, cdw11: int = 0, nsid: int = 0, save: bool = False) -> Completion:
        return self.admin.execute(
            Command(AdminOpcode.SET_FEATURES, nsid=nsid, prp1=self.data, cdw10=fid | save << 31, cdw11=cdw11)
        )

    def get_log(
        self, lid: int, size: int = PAGE, offset: int = 0, nsid: int = 0xFFFF_FFFF, retain: bool = False
    ) -> Completion:
        dwords = size // 4 - 1
        return self.admin.execute(
            Command(
                AdminOpcode.GET_LOG_PAGE,
                nsid=nsid,
                prp1=self.data,
                cdw10=lid | retain << 15 | (dwords & 0xFFFF) << 16,
                cdw11=dwords >> 16,
                cdw12=offset & 0xFFFF_FFFF,
                cdw13=offset >> 32,
            )
        )

    def prps(self, address: int, length: int) -> tuple[int, int]:
        """PRP1 and PRP2 of contiguous memory; a list is built where one is needed."""
        first = address - address % PAGE + PAGE
        pages = list(range(first, address + length, PAGE))
        if not pages:
            return address, 0
        if len(pages) == 1:
            return address, pages[0]
        return address, self.prp_list(pages)

    def prp_list(self, pages: list[int], offset: int = 0) -> int:
        """The address of a list of these pages, chained over several pages if need be."""
        start = at = self.ram.allocate(PAGE - offset, offset=offset)
        room = (PAGE - offset) // 8
        while len(pages) > room:
            after = self.ram.allocate(PAGE)
            self.ram.write(at, struct.pack(f"<{room}Q", *pages[: room - 1], after))
            pages, at, room = pages[room - 1 :], after, PAGE // 8
        self.ram.write(at, struct.pack(f"<{len(pages)}Q", *pages))
        return start

    def rw(self, opcode: IoOpcode, slba: int, blocks: int, address: int, size: int, **more: int) -> Command:
        """A data command over ``size`` bytes at ``address``."""
        prp1, prp2 = self.prps(address, size)
        cdw12 = blocks - 1 | more.pop("cdw12", 0)
        more.setdefault("nsid", 1)
        return Command(
            opcode, prp1=prp1, prp2=prp2, cdw10=slba & 0xFFFF_FFFF, cdw11=slba >> 32, cdw12=cdw12, **more
        )


def ended(completion: Completion) -> Status:
    """How a command ended."""
    return Status(completion.status & 0x7FF)


def do_not_retry(completion: Completion) -> bool:
    """Whether the host is told that trying again is of no use."""
    return bool(completion.status & DO_NOT_RETRY)
