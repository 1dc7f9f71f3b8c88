"""What a host does to manage a drive, in a word each; and a storage that can be held up."""

import struct
import threading
import time
from collections.abc import Callable

from outboard.devices.nvme.command import Command, Completion
from outboard.devices.nvme.layouts import (
    IDENTIFY_CONTROLLER,
    IDENTIFY_NAMESPACE,
    NAMESPACE_MANAGEMENT,
    SANITIZE_LOG,
    SELF_TEST_LOG,
    SELF_TEST_RESULT,
)
from outboard.devices.nvme.spec import AdminOpcode, Cns, EventType, FeatureId, IoOpcode, LogId, NoticeEvent
from outboard.devices.nvme.status import Status
from outboard.errors import StorageError
from outboard.storage import Data, RamStorage
from tests.devices.nvme.bench import Bench
from tests.devices.nvme.driver import PAGE, Driver, QueuePair, ended

CREATE, DELETE, ATTACH, DETACH = 0, 1, 0, 1
NAMESPACE_CHANGED = EventType.NOTICE | NoticeEvent.NAMESPACE_ATTRIBUTE_CHANGED << 8 | 4 << 16
FIRMWARE_STARTING = EventType.NOTICE | NoticeEvent.FIRMWARE_ACTIVATION_STARTING << 8 | 3 << 16
SANITIZE_COMPLETED = EventType.IO_SPECIFIC | 1 << 8 | 0x81 << 16
MIB = 1 << 20


class Held(RamStorage):
    """Memory whose `what` methods wait while `gate` is shut, and fail if there is a `failure`.

    It is for Python alone, so that every read and write is seen.
    """

    fast = None

    def __init__(self, size: int, *what: str) -> None:
        super().__init__(size)
        self.what = what
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.failure: StorageError | None = None
        self.broken_at = -1
        """Reads that touch this byte fail."""

    def _pass(self, what: str) -> None:
        if what in self.what:
            self.entered.set()
            assert self.gate.wait(60)
            if self.failure:
                raise self.failure

    def read(self, offset: int, size: int) -> bytes:
        self._pass("read")
        if offset <= self.broken_at < offset + size:
            raise StorageError("the medium is broken")
        return super().read(offset, size)

    def write(self, offset: int, data: Data) -> None:
        self._pass("write")
        super().write(offset, data)

    def discard(self, offset: int, size: int) -> None:
        self._pass("discard")
        super().discard(offset, size)

    def write_zeroes(self, offset: int, size: int) -> None:
        self._pass("write_zeroes")
        super().write_zeroes(offset, size)


class Host:
    """The host of one bench: its driver is enabled, and has a queue pair."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.start()

    def start(self) -> None:
        """Enable the controller, perhaps again."""
        self.bench.driver.ram.rewind(PAGE)
        self.driver: Driver = self.bench.driver.enable()
        self.pair: QueuePair = self.driver.create_queue_pair()

    def restart(self) -> None:
        self.driver.disable()
        self.start()

    @property
    def cntlid(self) -> int:
        return self.bench.device.state.identity.cntlid

    def admin(self, opcode: AdminOpcode, nsid: int = 0, **dwords: int) -> Completion:
        return self.driver.admin.execute(Command(opcode, nsid=nsid, prp1=self.driver.data, **dwords))

    def submit(self, opcode: AdminOpcode, nsid: int = 0, **dwords: int) -> int:
        """Begin an admin command; its identifier."""
        cid = self.driver.admin.submit(Command(opcode, nsid=nsid, prp1=self.driver.data, **dwords))
        self.driver.admin.ring()
        self.bench.settle()
        return cid

    def create(self, blocks: int, capacity: int | None = None, *, csi: int = 0, **fields: int) -> Completion:
        """Namespace Management: create."""
        ncap = blocks if capacity is None else capacity
        data = NAMESPACE_MANAGEMENT.encode(nsze=blocks, ncap=ncap, **fields)
        self.driver.ram.write(self.driver.data, data)
        return self.admin(AdminOpcode.NAMESPACE_MANAGEMENT, cdw10=CREATE, cdw11=csi << 24)

    def delete(self, nsid: int) -> Status:
        return ended(self.admin(AdminOpcode.NAMESPACE_MANAGEMENT, nsid, cdw10=DELETE))

    def attachment(self, select: int, nsid: int, *cntlids: int, count: int | None = None) -> Status:
        """Namespace Attachment with this list."""
        number = len(cntlids) if count is None else count
        data = struct.pack(f"<{1 + len(cntlids)}H", number, *cntlids)
        self.driver.ram.write(self.driver.data, data.ljust(PAGE, b"\0"))
        return ended(self.admin(AdminOpcode.NAMESPACE_ATTACHMENT, nsid, cdw10=select))

    def attach(self, nsid: int, *cntlids: int) -> Status:
        return self.attachment(ATTACH, nsid, *(cntlids or (self.cntlid,)))

    def detach(self, nsid: int, *cntlids: int) -> Status:
        return self.attachment(DETACH, nsid, *(cntlids or (self.cntlid,)))

    def identify(self, cns: Cns, nsid: int = 0, *, cdw10: int = 0, cdw11: int = 0) -> bytes:
        self.driver.ram.write(self.driver.data, b"\xee" * PAGE)
        assert ended(self.admin(AdminOpcode.IDENTIFY, nsid, cdw10=cns | cdw10, cdw11=cdw11)) == Status.SUCCESS
        return self.driver.ram.read(self.driver.data, PAGE)

    def namespace(self, nsid: int) -> dict[str, int | bytes]:
        return IDENTIFY_NAMESPACE.decode(self.identify(Cns.NAMESPACE, nsid))

    def controller(self) -> dict[str, int | bytes]:
        return IDENTIFY_CONTROLLER.decode(self.identify(Cns.CONTROLLER))

    def listed(self, cns: Cns, **more: int) -> list[int]:
        """The identifiers of a list of namespaces."""
        return [nsid for (nsid,) in struct.iter_unpack("<I", self.identify(cns, **more)) if nsid]

    def log(self, lid: LogId, size: int = 512, *, retain: bool = False) -> bytes:
        self.driver.ram.write(self.driver.data, b"\xee" * PAGE)
        assert ended(self.driver.get_log(lid, size, retain=retain)) == Status.SUCCESS
        return self.driver.ram.read(self.driver.data, size)

    def changed(self) -> list[int]:
        """The Changed Namespace List, which is empty then."""
        return [
            nsid for (nsid,) in struct.iter_unpack("<I", self.log(LogId.CHANGED_NAMESPACES, PAGE)) if nsid
        ]

    def sanitize_log(self) -> dict[str, int | bytes]:
        return SANITIZE_LOG.decode(self.log(LogId.SANITIZE_STATUS, retain=True))

    def self_test_log(self) -> tuple[int, int, list[dict[str, int | bytes]]]:
        """What is under way, how many percent of it are done, and the results there are, newest first."""
        log = SELF_TEST_LOG.decode(self.log(LogId.SELF_TEST, 564))
        data = log["results"]
        assert isinstance(data, bytes)
        results = [SELF_TEST_RESULT.decode(data[at : at + 28]) for at in range(0, 560, 28)]
        return (
            int(log["operation"]),
            int(log["completion"]),
            [result for result in results if int(result["status"]) & 0xF != 0xF],
        )

    def read(self, nsid: int = 1, slba: int = 0, size: int = 512) -> bytes:
        """What one block holds; the read goes well."""
        assert self.try_read(nsid, slba, size) == Status.SUCCESS
        return self.driver.ram.read(self.driver.data, size)

    def try_read(self, nsid: int = 1, slba: int = 0, size: int = 512) -> Status:
        command = self.driver.rw(IoOpcode.READ, slba, 1, self.driver.data, size, nsid=nsid)
        return ended(self.pair.execute(command))

    def write(self, data: bytes, nsid: int = 1, slba: int = 0) -> Status:
        """Write one block."""
        self.driver.ram.write(self.driver.data, data)
        command = self.driver.rw(IoOpcode.WRITE, slba, 1, self.driver.data, len(data), nsid=nsid)
        return ended(self.pair.execute(command))

    def listen(self, mask: int = 0x300) -> None:
        """Ask to be told of namespaces and firmware, with two requests for events."""
        self.driver.set_feature(FeatureId.ASYNC_EVENT_CONFIGURATION, mask)
        for cid in (100, 101):
            self.driver.admin.submit(Command(AdminOpcode.ASYNC_EVENT_REQUEST), cid=cid)
        self.driver.admin.ring()
        self.bench.settle()

    def heard(self) -> list[int]:
        """The events that were told."""
        self.bench.settle()
        self.driver.admin.poll()
        done = self.driver.admin.done
        return [done.pop(cid).result for cid in (100, 101) if cid in done]

    def until(self, condition: Callable[[], object]) -> None:
        """Let the device work until the condition holds."""
        end = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < end
            self.bench.step()
            time.sleep(0)
