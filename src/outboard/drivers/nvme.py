"""An NVMe controller driven from user space: its registers, the admin queue, one pair of I/O queues.

Follows NVMe Base 2.0, sections 3.5.1 (initialisation), 3.1.3 (registers), 4.1 and 4.2 (queue entries), 4.1.1
(PRP). One command at a time, completions are polled: it identifies and proves a controller;
`outboard.drivers.nvme_measure` measures one.
"""

import struct
import time
from types import TracebackType
from typing import Self

from outboard.client import Client
from outboard.client.accessors import Accessor
from outboard.client.memory import GuestRam
from outboard.errors import PeerTimeout, RemoteError

CLASS_CODE = 0x010802
"""Mass storage, non-volatile memory, NVM Express."""

COMMAND_REGISTER = 0x04
"""In configuration space: where bus mastering is switched."""

CAP, CC, CSTS, AQA, ASQ, ACQ, DOORBELLS = 0x00, 0x14, 0x1C, 0x24, 0x28, 0x30, 0x1000
CC_ENABLE = 1 | 6 << 16 | 4 << 20
"""EN, with submission entries of 2**6 and completion entries of 2**4 bytes."""

ALL_SETS_OFFERED, ALL_SETS = 1 << 43, 6 << 4
"""In CAP, and in CC: every I/O command set there is, without which zoned namespaces are not to be seen."""

CSTS_READY, CSTS_FATAL = 1 << 0, 1 << 1
GONE = 0xFFFF_FFFF
TIMEOUT_UNIT = 0.5
"""CAP.TO counts half seconds."""

CREATE_SUBMISSION_QUEUE, CREATE_COMPLETION_QUEUE, IDENTIFY, SET_FEATURES = 0x01, 0x05, 0x06, 0x09
FLUSH, WRITE, READ = 0x00, 0x01, 0x02
CNS_NAMESPACE, CNS_CONTROLLER, CNS_ACTIVE_NAMESPACES = 0x00, 0x01, 0x02
CONTIGUOUS = 1 << 0
NUMBER_OF_QUEUES = 0x07
"""A feature's identifier."""
NAMESPACES_A_LIST = 1024

COMMAND = struct.Struct("<BBHI16xQQ6I")
"""Opcode, flags, identifier, namespace, PRP 1 and 2, double words 10 to 15."""
COMPLETION = struct.Struct("<I10xH")
"""Result, phase and status; who completed what is known with one command in flight."""
PHASE_BYTE = 14

PAGE = 4096
QUEUE_ENTRIES = 16
LARGEST_TRANSFER = 128 << 10
"""What SPDK's controller takes, the smallest limit of those in use."""

ADMIN_QUEUES, IO_QUEUES, ANSWER, PRP_LIST, DATA = 0 * PAGE, 2 * PAGE, 4 * PAGE, 5 * PAGE, 6 * PAGE
"""What is where in the driver's memory."""


class NvmeDriver:
    """Takes the controller behind ``client`` into use; a context manager that disables it again.

    A controller that another client left enabled is disabled first. ``doorbells`` is where doorbells are
    written when not by message: BAR 0, mapped.

    Raises:
        PeerTimeout: the controller does not become ready in the time it promises.
        RemoteError: it reports a fatal failure.
    """

    def __init__(self, client: Client, *, doorbells: Accessor | None = None) -> None:
        self._registers = client.bar(0)
        self._doorbells = doorbells or self._registers
        capabilities = self._registers.read64(CAP)
        self._timeout = max(1, capabilities >> 24 & 0xFF) * TIMEOUT_UNIT
        self.queue_entries = (capabilities & 0xFFFF) + 1
        self.smallest_page = 4096 << (capabilities >> 48 & 0xF)
        self.doorbell_stride = 4 << (capabilities >> 32 & 0xF)
        self._ram = client.memory(DATA + LARGEST_TRANSFER)
        self._admin = self._queue_pair(0, ADMIN_QUEUES)
        self._io: _QueuePair | None = None
        self._block_sizes: dict[int, int] = {}
        self._client = client
        self._command = client.config.read16(COMMAND_REGISTER)
        client.bus_master(True)
        self._enable()

    def check(self) -> None:
        """Ask whether the controller lives; `RemoteError` if it has failed."""
        status(self._registers)

    def ring(self, doorbell: int, value: int) -> None:
        """Write ``value`` to the doorbell at this offset of BAR 0."""
        self._doorbells.write32(doorbell, value)

    def doorbell(self, queue: int) -> int:
        """Where in BAR 0 a queue's tail doorbell is; its head's is `doorbell_stride` behind."""
        return DOORBELLS + 2 * queue * self.doorbell_stride

    def admin(self, name: str, opcode: int, **fields: int) -> int:
        """Run an admin command; its result. RemoteError, with its ``name``, if it fails.

        Its ``fields``, 0 if they are not said, are ``nsid``, ``prp1``, ``prp2``, ``cdw10`` and ``cdw11``.
        """
        return self._admin.run(name, opcode, **fields)

    def request_queues(self, count: int) -> int:
        """Ask for so many pairs of I/O queues (Set Features 07h); how many there can be."""
        wanted = (count - 1) << 16 | (count - 1)
        granted = self.admin("Set Features 07h", SET_FEATURES, cdw10=NUMBER_OF_QUEUES, cdw11=wanted)
        return min(granted & 0xFFFF, granted >> 16) + 1

    def create_queues(self, number: int, submissions: int, completions: int, entries: int) -> None:
        """Create a pair of I/O queues of so many entries at these IOVAs; without interrupts."""
        size = (entries - 1) << 16 | number
        self.admin(
            "Create I/O Completion Queue",
            CREATE_COMPLETION_QUEUE,
            prp1=completions,
            cdw10=size,
            cdw11=CONTIGUOUS,
        )
        self.admin(
            "Create I/O Submission Queue",
            CREATE_SUBMISSION_QUEUE,
            prp1=submissions,
            cdw10=size,
            cdw11=CONTIGUOUS | number << 16,
        )

    def identify(self, cns: int, nsid: int = 0) -> bytes:
        """The 4096 bytes that Identify answers for structure ``cns``; RemoteError if it is refused."""
        answer = self._ram.address + ANSWER
        self._admin.run(f"Identify {cns:02x}h", IDENTIFY, nsid=nsid, prp1=answer, cdw10=cns)
        return self._ram.read(ANSWER, PAGE)

    def namespaces(self) -> list[int]:
        """The identifiers of all active namespaces, ascending."""
        found: list[int] = []
        while True:
            answer = self.identify(CNS_ACTIVE_NAMESPACES, found[-1] if found else 0)
            listing = struct.unpack(f"<{NAMESPACES_A_LIST}I", answer)
            # Only ascending ones: a controller that repeats itself must not keep us for ever.
            new = [nsid for nsid in listing if nsid > (found[-1] if found else 0)]
            found += sorted(new)
            if len(new) < NAMESPACES_A_LIST:
                return found

    def block_size(self, nsid: int) -> int:
        """The bytes of a logical block of a namespace."""
        if nsid not in self._block_sizes:
            data = self.identify(CNS_NAMESPACE, nsid)
            self._block_sizes[nsid] = 1 << data[128 + 4 * (data[26] & 0xF) + 2]
        return self._block_sizes[nsid]

    def read(self, nsid: int, offset: int, size: int) -> bytes:
        """``size`` bytes from byte ``offset`` on, whole blocks, at most `LARGEST_TRANSFER`."""
        self._transfer("Read", READ, nsid, offset, size)
        return self._ram.read(DATA, size)

    def write(self, nsid: int, offset: int, data: bytes) -> None:
        """Store ``data`` at byte ``offset``: whole blocks, at most `LARGEST_TRANSFER`."""
        self._ram.write(DATA, data)
        self._transfer("Write", WRITE, nsid, offset, len(data))

    def flush(self, nsid: int) -> None:
        """Make what was written outlive a power cut."""
        self._io_queues().run("Flush", FLUSH, nsid=nsid)

    def close(self) -> None:
        """Disable the controller, restore what was changed and take the memory back."""
        self._registers.write32(CC, 0)
        self._wait_ready(False)
        self._client.config.write16(COMMAND_REGISTER, self._command)
        self._ram.unmap()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()

    def _enable(self) -> None:
        self._registers.write32(CC, 0)
        self._wait_ready(False)
        self._registers.write32(AQA, (QUEUE_ENTRIES - 1) << 16 | (QUEUE_ENTRIES - 1))
        # Halves, low one first, as SeaBIOS and Linux do it: not every server takes eight bytes at once.
        for register, address in ((ASQ, self._admin.submissions), (ACQ, self._admin.completions)):
            self._registers.write32(register, address & 0xFFFF_FFFF)
            self._registers.write32(register + 4, address >> 32)
        offered = self._registers.read64(CAP) & ALL_SETS_OFFERED
        self._registers.write32(CC, CC_ENABLE | (ALL_SETS if offered else 0))
        self._wait_ready(True)

    def _wait_ready(self, wanted: bool) -> None:
        deadline = time.monotonic() + self._timeout
        while bool(status(self._registers) & CSTS_READY) is not wanted:
            if time.monotonic() > deadline:
                state = "ready" if wanted else "idle"
                raise PeerTimeout(
                    f"the NVMe controller promised to be {state} in {self._timeout:g} s and is not"
                )

    def _queue_pair(self, number: int, offset: int) -> "_QueuePair":
        return _QueuePair(self, self._registers, self._ram, offset, number, self._timeout)

    def _io_queues(self) -> "_QueuePair":
        """The I/O queues, created when first needed."""
        if self._io is None:
            pair = self._queue_pair(1, IO_QUEUES)
            self.create_queues(1, pair.submissions, pair.completions, QUEUE_ENTRIES)
            self._io = pair
        return self._io

    def _transfer(self, name: str, opcode: int, nsid: int, offset: int, size: int) -> None:
        """Move the data pages; ``offset`` and ``size`` are bytes of the namespace."""
        block = self.block_size(nsid)
        if offset % block or size % block or not 0 < size <= LARGEST_TRANSFER:
            raise ValueError(
                f"{size} bytes at {offset} are not 1 to {LARGEST_TRANSFER} bytes of whole blocks of {block}"
            )
        pages = range(self._ram.address + DATA, self._ram.address + DATA + size, PAGE)
        rest = pages[1:]
        self._ram.write(PRP_LIST, struct.pack(f"<{len(rest)}Q", *rest))
        second = rest[0] if len(rest) == 1 else self._ram.address + PRP_LIST if rest else 0
        start = offset // block
        self._io_queues().run(
            name, opcode, nsid=nsid, prp1=pages[0], prp2=second,
            cdw10=start & 0xFFFF_FFFF, cdw11=start >> 32, cdw12=size // block - 1,
        )  # fmt: skip


class _QueuePair:
    """A submission queue and its completion queue, a page each, with at most one command in flight."""

    def __init__(
        self,
        driver: NvmeDriver,
        registers: Accessor,
        ram: GuestRam,
        offset: int,
        number: int,
        timeout: float,
    ) -> None:
        self.submissions, self.completions = ram.address + offset, ram.address + offset + PAGE
        self._driver, self._registers, self._timeout = driver, registers, timeout
        self._ram, self._offset = ram, offset
        self._doorbell = driver.doorbell(number)
        self._index = 0
        self._phase = 1

    def run(
        self,
        name: str,
        opcode: int,
        *,
        nsid: int = 0,
        prp1: int = 0,
        prp2: int = 0,
        cdw10: int = 0,
        cdw11: int = 0,
        cdw12: int = 0,
    ) -> int:
        """Run one command; its result. RemoteError, with its ``name``, if it completes with an error."""
        # With one command in flight both queues stand at the same entry, which also serves as identifier.
        entry = COMMAND.pack(opcode, 0, self._index, nsid, prp1, prp2, cdw10, cdw11, cdw12, 0, 0, 0)
        self._ram.write(self._offset + self._index * COMMAND.size, entry)
        following = (self._index + 1) % QUEUE_ENTRIES
        self._driver.ring(self._doorbell, following)
        result, code = self._wait(name)
        self._phase ^= following == 0
        self._index = following
        self._driver.ring(self._doorbell + self._driver.doorbell_stride, following)
        if code:
            kind, value = code >> 8 & 7, code & 0xFF
            raise RemoteError(
                f"{name} failed with status type {kind}, code {value:#04x}", command=name, errno=0
            )
        return result

    def _wait(self, name: str) -> tuple[int, int]:
        """Wait for the completion; return its result and its status, 0 for success."""
        at = self._offset + PAGE + self._index * (COMPLETION.size)
        deadline = time.monotonic() + self._timeout
        while True:
            # The phase first: whoever writes the entry writes it last.
            if self._ram.view[at + PHASE_BYTE] & 1 == self._phase:
                result, word = COMPLETION.unpack(self._ram.read(at, COMPLETION.size))
                return result, word >> 1
            # Asking lets a device in our own thread go on, and tells us of one that has failed.
            status(self._registers)
            if time.monotonic() > deadline:
                raise PeerTimeout(f"{name} was not completed in {self._timeout:g} s")


def status(registers: Accessor) -> int:
    """CSTS; RemoteError if it tells of a fatal failure, or reads all ones as nothing does."""
    value = registers.read32(CSTS)
    if value == GONE or value & CSTS_FATAL:
        raise RemoteError(f"the NVMe controller has failed: CSTS reads {value:#x}", command="CSTS", errno=0)
    return value
