"""Hosts with a controller each, and what they do to agree on a namespace."""

import struct
from dataclasses import dataclass, field

from outboard.devices.nvme.command import Command, Completion
from outboard.devices.nvme.spec import AdminOpcode, FeatureId, IoOpcode, LogId
from outboard.devices.nvme.status import Status
from tests.devices.nvme.bench import Bench
from tests.devices.nvme.driver import PAGE, QueuePair, ended

REGISTER, UNREGISTER, REPLACE = 0, 1, 2
ACQUIRE, PREEMPT, PREEMPT_AND_ABORT = 0, 1, 2
RELEASE, CLEAR = 0, 1
WE, EA, WE_RO, EA_RO, WE_AR, EA_AR = range(1, 7)
IGNORE_EXISTING_KEY = 1 << 3
PTPL_OFF, PTPL_ON = 2 << 30, 3 << 30
EXTENDED = 1

A, B, C = (name * 16 for name in (b"A", b"B", b"C"))
"""Host identifiers."""

EVENT = 6 | 0 << 8 | LogId.RESERVATION_NOTIFICATION << 16


@dataclass
class Report:
    """A Reservation Report: for each controller its identifier, host, key, and whether it holds."""

    generation: int
    type: int
    persistent: int
    controllers: list[tuple[int, bytes, int, int]] = field(default_factory=list)


class Host:
    """A host at a bench; ``identifier`` of 8 or 16 bytes, or none."""

    def __init__(self, bench: Bench, identifier: bytes = b"", nsid: int = 1) -> None:
        self.bench, self.nsid = bench, nsid
        self.driver = bench.driver.enable()
        self.pair: QueuePair = self.driver.create_queue_pair(1, entries=64)
        if identifier:
            assert self.identify(identifier) == Status.SUCCESS

    def identify(self, identifier: bytes) -> Status:
        """Set Host Identifier."""
        self.driver.ram.write(self.driver.data, identifier)
        extended = int(len(identifier) == 16)
        return ended(self.driver.set_feature(FeatureId.HOST_IDENTIFIER, extended))

    def run(self, opcode: IoOpcode, *keys: int, **fields: int) -> Status:
        """A command whose data are these keys."""
        return ended(self.pair.execute(self.command(opcode, *keys, **fields)))

    def command(self, opcode: IoOpcode, *keys: int, **fields: int) -> Command:
        self.driver.ram.write(self.driver.data, struct.pack(f"<{len(keys)}Q", *keys))
        return Command(opcode, nsid=self.nsid, prp1=self.driver.data, **fields)

    def register(self, key: int, *, old: int = 0, action: int = REGISTER, options: int = 0) -> Status:
        return self.run(IoOpcode.RESERVATION_REGISTER, old, key, cdw10=action | options)

    def acquire(self, key: int, type: int, *, victim: int = 0, action: int = ACQUIRE) -> Status:
        return self.run(IoOpcode.RESERVATION_ACQUIRE, key, victim, cdw10=action | type << 8)

    def release(self, key: int, type: int = 0, *, action: int = RELEASE) -> Status:
        return self.run(IoOpcode.RESERVATION_RELEASE, key, cdw10=action | type << 8)

    def report(self, *, extended: bool = False) -> Report:
        command = Command(
            IoOpcode.RESERVATION_REPORT,
            nsid=self.nsid,
            prp1=self.driver.data,
            cdw10=1023,
            cdw11=EXTENDED * extended,
        )
        assert ended(self.pair.execute(command)) == Status.SUCCESS
        data = self.driver.ram.read(self.driver.data, PAGE)
        generation, type, count, persistent = struct.unpack_from("<IBHxxB", data)
        found = Report(generation, type, persistent)
        for number in range(count):
            if extended:
                cntlid, status, key, host = struct.unpack_from("<HB5xQ16s", data, 64 + 64 * number)
            else:
                cntlid, status, host, key = struct.unpack_from("<HB5x8sQ", data, 24 + 24 * number)
            found.controllers.append((cntlid, host, key, status))
        return found

    def write(self) -> Status:
        return ended(self.pair.execute(self.io(IoOpcode.WRITE)))

    def read(self) -> Status:
        return ended(self.pair.execute(self.io(IoOpcode.READ)))

    def io(self, opcode: IoOpcode) -> Command:
        return self.driver.rw(opcode, 0, 1, self.driver.data, 512, nsid=self.nsid)

    def listen(self) -> int:
        """An Asynchronous Event Request's identifier."""
        cid = self.driver.admin.submit(Command(AdminOpcode.ASYNC_EVENT_REQUEST))
        self.driver.admin.ring()
        self.bench.settle()
        return cid

    def heard(self, cid: int) -> Completion | None:
        """How that request ended, if it has."""
        self.bench.settle()
        self.driver.admin.poll()
        return self.driver.admin.done.pop(cid, None)

    def notification(self) -> tuple[int, int, int, int]:
        """Count, type, pages that are left, namespace of the notification that is read now."""
        assert ended(self.driver.get_log(LogId.RESERVATION_NOTIFICATION, 64)) == Status.SUCCESS
        count, type, left, nsid = struct.unpack_from("<QBBxxI", self.driver.ram.read(self.driver.data, 16))
        return count, type, left, nsid
