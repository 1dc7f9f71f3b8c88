"""The features of the little server: migration of a few bytes, and a log of pages that nobody writes."""

import errno
import os
import struct
from collections.abc import Sequence

from outboard.conformance.server.migration import (
    PRE_COPY,
    RESUMING,
    RUNNING,
    STOP,
    STOP_COPY,
)
from tests.conformance.little_lines import Refused

STATE = b"a little state, of more than one line\n" * 40
KEPT = 0x1000
"""Where the four bytes of the BAR are that move with the device."""
GET, SET, PROBE = 1 << 16, 1 << 17, 1 << 18
KNOWN = {1: GET, 2: GET | SET, 6: SET, 7: SET, 8: GET}
Answer = tuple[bytes, Sequence[int]]


class Migrating:
    """DEVICE_FEATURE and MIG_DATA."""

    faults: frozenset[str]
    config: bytearray
    memory: int

    def __init__(self) -> None:
        self.state, self.data_at = RUNNING, 0
        self.log: tuple[int, int] | None = None

    def deny(self) -> None:
        raise Refused(errno.EINVAL)

    def feature(self, body: bytes, fds: list[int]) -> Answer:
        argsz, flags = struct.unpack_from("=II", body)
        index, operation = flags & 0xFFFF, flags & (GET | SET)
        known = KNOWN.get(index, 0)
        if not known and "any feature" not in self.faults:
            self.deny()
        if argsz < 8 and "feature argsz" not in self.faults:
            self.deny()
        if operation == GET | SET and not flags & PROBE and "get and set" not in self.faults:
            self.deny()
        if flags & PROBE:
            if operation & ~known:
                self.deny()
            return body[:8], ()
        if not operation or (operation & ~known and operation != GET | SET):
            self.deny()
        if index == 1:
            migration = 0 if "no stop copy" in self.faults else 5
            return struct.pack("=IIQ", 16, flags, migration), ()
        if index == 2:
            return self.migration_state(body, flags)
        return self.logging(index, body)

    def migration_state(self, body: bytes, flags: int) -> Answer:
        if flags & SET:
            wanted = struct.unpack_from("=II", body, 8)[0]
            legal = wanted in (STOP, RUNNING, STOP_COPY, RESUMING, PRE_COPY)
            if not legal and "any state" not in self.faults:
                self.deny()
            if (self.state, wanted) == (STOP_COPY, PRE_COPY) and "back to pre-copy" not in self.faults:
                self.deny()
            self.state, self.data_at = wanted, 0
            return body, ()
        return struct.pack("=IIII", 16, flags, self.state, 0), ()

    def data_read(self, body: bytes, fds: list[int]) -> Answer:
        _, size = struct.unpack_from("=II", body)
        if self.state not in (PRE_COPY, STOP_COPY) and "data in any state" not in self.faults:
            self.deny()
        if size > 1 << 20 and "any data size" not in self.faults:
            self.deny()
        part = (STATE + os.pread(self.memory, 4, KEPT))[self.data_at : self.data_at + size]
        self.data_at += len(part)
        padding = bytes(size - len(part)) if "padded data" in self.faults and size < 1 << 20 else b""
        return struct.pack("=II", 8 + len(part), len(part)) + part + padding, ()

    def data_write(self, body: bytes, fds: list[int]) -> Answer:
        _, size = struct.unpack_from("=II", body)
        if self.state != RESUMING or len(body) != 8 + size:
            self.deny()
        if "loads badly" in self.faults:
            self.config[0xF0] ^= 1
        if "loads nothing" not in self.faults:
            os.pwrite(self.memory, body[-4:], KEPT)
        return b"", ()

    def logging(self, index: int, body: bytes) -> Answer:
        if index == 6:
            _, _, _, address, length = struct.unpack_from("=QIIQQ", body, 8)
            self.log = (address, length)
        elif index == 7:
            self.log = None
        else:
            address, length, page = struct.unpack_from("=QQQ", body, 8)
            if page.bit_count() != 1 or page < 4096:
                self.deny()
            if self.log is None and "reports unasked" not in self.faults:
                self.deny()
            if "exact region" in self.faults and (address, length) != self.log:
                self.deny()
            return body[:32] + bytes((length // page + 63) // 64 * 8), ()
        return body, ()
