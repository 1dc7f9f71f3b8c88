"""The interrupts of the little server."""

import errno
import os
import select
import struct
import threading
from collections.abc import Sequence
from contextlib import suppress

from outboard.conformance.peer import ready
from outboard.descriptors import close_all
from tests import raw


class Refused(Exception):
    """The errno of an error reply."""


VECTORS = (1, 0, 8, 1, 1)
Answer = tuple[bytes, Sequence[int]]


class Lines:
    """What SET_IRQS acts on."""

    faults: frozenset[str]

    def __init__(self) -> None:
        self.lines: dict[tuple[int, int], int] = {}
        self.unmask_fd = -1

    def all_lines(self) -> list[int]:
        return [fd for fd in self.lines.values() if fd >= 0]

    def drop_lines(self) -> None:
        close_all(self.all_lines())
        self.lines = {}

    def release(self, fd: int) -> int:
        if fd >= 0:
            os.close(fd)
        return -1

    def irq_info(self, body: bytes, fds: list[int]) -> Answer:
        argsz, _, index, _ = struct.unpack_from("=IIII", body)
        if argsz < 16 or index >= 5:
            self.refuse(index >= 5 and "any index" in self.faults)
            index = 0
        flags = 7 if index == 0 and "intx flags" not in self.faults else 1
        flags |= 8 if index == 2 and "noresize" in self.faults else 0
        flags &= ~1 if index == 2 and "no eventfd" in self.faults else 15
        return struct.pack("=IIII", 16, flags, index, VECTORS[index]), ()

    def refuse(self, wrong: bool) -> None:
        """EINVAL, unless the fault says otherwise."""
        if not wrong:
            raise Refused(errno.EINVAL)

    def set_irqs(self, body: bytes, fds: list[int]) -> Answer:
        argsz, flags, index, start, count = struct.unpack_from("=IIIII", body)
        data, action, wrong = flags & 7, flags & 0x38, self.faults
        vectors = VECTORS[index] if index < 5 else 0
        if argsz < 20:
            self.refuse("irq argsz" in wrong)
        if (data.bit_count() != 1 or action.bit_count() != 1) and "irq flags" not in wrong:
            self.refuse(False)
        if start >= vectors or start + count > vectors:
            if "irq range" in wrong:
                return b"", ()
            self.refuse(False)
        disables = data == raw.NONE and action == raw.TRIGGER and not count and not start
        if not count and not disables and "count of nothing" not in wrong:
            self.refuse(False)
        if index >= 3 and action != raw.TRIGGER and "err masks" not in wrong:
            self.refuse(False)
        if fds and data != raw.EVENTFD and "stray irq fds" not in wrong:
            self.refuse(False)
        if data == raw.EVENTFD and len(fds) not in (0, count) and "irq fd count" not in wrong:
            self.refuse(False)
        if data == raw.BOOL and len(body) - 20 != count and "bool bytes" not in wrong:
            self.refuse(False)
        self.act(index, data, action, range(start, start + count), body[20:], fds, disables)
        return b"", ()

    def act(
        self,
        index: int,
        data: int,
        action: int,
        vectors: range,
        bools: bytes,
        fds: list[int],
        disables: bool,
    ) -> None:
        kind = 0 if "one array" in self.faults and index < 3 else index
        if disables:
            if "stays enabled" not in self.faults:
                for place in [place for place in self.lines if place[0] == kind]:
                    self.release(self.lines.pop(place))
        elif data == raw.EVENTFD and action == raw.TRIGGER:
            self.assign(kind, vectors, fds)
        elif data == raw.EVENTFD:
            if fds and "drops unmask" not in self.faults:
                self.unmask_fd = fds.pop()
                threading.Thread(target=self.listen, args=(os.dup(self.unmask_fd),), daemon=True).start()
        elif action == raw.TRIGGER:
            every = data == raw.NONE or "bool fires all" in self.faults
            for nth, number in enumerate(vectors):
                if every or bools[nth : nth + 1] == b"\1":
                    self.fire(kind, number)
        elif index == 0 and "no masks" in self.faults:
            self.refuse(False)

    def assign(self, kind: int, vectors: range, fds: list[int]) -> None:
        if not fds and "cannot take away" in self.faults:
            return
        if not fds and vectors.start and "later stay" in self.faults:
            return
        if not fds and vectors == range(1) and "no empty vector" in self.faults:
            self.refuse(False)
        for number in vectors:
            old = self.lines.pop((kind, number), -1)
            if fds and old >= 0 and "first stays" in self.faults:
                self.lines[kind, number] = old
                continue
            self.release(old)
            if fds:
                self.lines[kind, number] = fds.pop(0)

    def fire(self, kind: int, number: int) -> None:
        if "neighbour" in self.faults:
            number ^= 1
        fd = self.lines.get((kind, number), -1)
        # A pipe or a full eventfd must not hold the server up.
        if fd >= 0 and ("blocks" in self.faults or ready(fd, 0, select.POLLOUT)):
            with suppress(OSError):
                os.write(fd, struct.pack("=Q", 1))

    def listen(self, fd: int) -> None:
        """What a client writes to the unmask descriptor is taken, as KVM would."""
        if ready(fd, 5.0):
            os.read(fd, 8)
        os.close(fd)
