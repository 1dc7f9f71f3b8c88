"""Submission and completion queue entries (NVMe Base 2.0, 3.3.3)."""

import struct
from dataclasses import dataclass
from typing import Self

_SQE = struct.Struct("<BBHIIIQQQ6I")
_CQE = struct.Struct("<QHHHH")


@dataclass(slots=True)
class Command:
    """A submission queue entry, field by field; 64 bytes in memory.

    ``flags`` is the second byte: FUSE in bits 1:0 and PSDT in bits 7:6.
    """

    opcode: int
    flags: int = 0
    cid: int = 0
    nsid: int = 0
    cdw2: int = 0
    cdw3: int = 0
    mptr: int = 0
    prp1: int = 0
    prp2: int = 0
    cdw10: int = 0
    cdw11: int = 0
    cdw12: int = 0
    cdw13: int = 0
    cdw14: int = 0
    cdw15: int = 0

    @classmethod
    def decode(cls, entry: bytes | memoryview) -> Self:
        """Read the entry that 64 bytes hold."""
        return cls(*_SQE.unpack(entry))

    def encode(self) -> bytes:
        """Return the 64 bytes of the entry."""
        return _SQE.pack(
            self.opcode,
            self.flags,
            self.cid,
            self.nsid,
            self.cdw2,
            self.cdw3,
            self.mptr,
            self.prp1,
            self.prp2,
            self.cdw10,
            self.cdw11,
            self.cdw12,
            self.cdw13,
            self.cdw14,
            self.cdw15,
        )

    @property
    def psdt(self) -> int:
        """PRP or SGL for Data Transfer: 0 for PRPs, 1 and 2 for SGLs (they differ in what metadata is in)."""
        return self.flags >> 6

    @property
    def slba(self) -> int:
        """Starting LBA, of the commands that have one: dwords 10 and 11."""
        return self.cdw10 | self.cdw11 << 32


@dataclass(slots=True)
class Completion:
    """A completion queue entry; 16 bytes in memory.

    ``result`` is dwords 0 and 1; few commands use the second. ``status`` is the 15-bit field above the phase
    tag: see `outboard.devices.nvme.status`.
    """

    result: int
    sq_head: int
    sq_id: int
    cid: int
    status: int
    phase: int

    @classmethod
    def decode(cls, entry: bytes | memoryview) -> Self:
        """Read the entry that 16 bytes hold."""
        result, sq_head, sq_id, cid, tagged = _CQE.unpack(entry)
        return cls(result, sq_head, sq_id, cid, tagged >> 1, tagged & 1)

    def encode(self) -> bytes:
        """Return the 16 bytes of the entry."""
        return _CQE.pack(self.result, self.sq_head, self.sq_id, self.cid, self.status << 1 | self.phase)
