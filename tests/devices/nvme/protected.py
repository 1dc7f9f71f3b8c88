"""What a namespace with metadata has to do, command by command, written down once more in plain Python."""

from dataclasses import dataclass, field

from outboard.devices.nvme import Namespace
from outboard.devices.nvme.spec import IoOpcode
from outboard.devices.nvme.status import Status
from outboard.native.crc import NVME, T10_DIF

ACTION, GUARD, APPLICATION, REFERENCE = 8, 4, 2, 1
"""The bits of PRINFO."""

_NARROW, _WIDE = T10_DIF.table(), NVME.table()
_ONES = (1 << 64) - 1


def guard(data: bytes, bits: int) -> int:
    register = 0 if bits == 16 else _ONES
    for byte in data:
        if bits == 16:
            register = register << 8 & 0xFFFF ^ _NARROW[register >> 8 ^ byte]
        else:
            register = register >> 8 ^ _WIDE[register & 0xFF ^ byte]
    return register if bits == 16 else register ^ _ONES


@dataclass(frozen=True)
class Tuple:
    """Protection information of one block."""

    guard: int
    application: int
    reference: int

    @classmethod
    def decode(cls, raw: bytes) -> "Tuple":
        wide = len(raw) == 16
        first, second = (8, 10) if wide else (2, 4)
        return cls(*(int.from_bytes(part, "big") for part in (raw[:first], raw[first:second], raw[second:])))

    def encode(self, bits: int) -> bytes:
        widths = (8, 2, 6) if bits == 64 else (2, 2, 4)
        values = (self.guard, self.application, self.reference)
        return b"".join(value.to_bytes(width, "big") for value, width in zip(values, widths, strict=True))


@dataclass(frozen=True)
class Request:
    """A command on blocks, and what the host gives with it: a block and its metadata for each."""

    opcode: IoOpcode
    slba: int
    blocks: int
    info: int = 0
    application: int = 0
    mask: int = 0xFFFF
    reference: int = 0
    data: tuple[bytes, ...] = ()
    metadata: tuple[bytes, ...] = ()


@dataclass
class Model:
    """What blocks and metadata hold, as the host sees it."""

    space: Namespace
    data: dict[int, bytes] = field(default_factory=dict)
    metadata: dict[int, bytes] = field(default_factory=dict)

    @property
    def fresh(self) -> bytes:
        """The metadata of a block that was never written, or is deallocated."""
        start, end = self.span
        return bytes(start) + b"\xff" * (end - start) + bytes(self.space.metadata - end)

    @property
    def span(self) -> tuple[int, int]:
        protection = self.space.protection
        if protection is None:
            return self.space.metadata, self.space.metadata
        size = 8 if protection.guard == 16 else 16
        return (0, size) if protection.first else (self.space.metadata - size, self.space.metadata)

    def carried(self, info: int) -> bool:
        """Whether metadata goes between the host and the controller."""
        start, end = self.span
        whole = end - start == self.space.metadata
        return not (self.space.protection and info & ACTION and whole)

    def block(self, lba: int) -> tuple[bytes, bytes]:
        return (
            self.data.get(lba, bytes(self.space.block_size)),
            self.metadata.get(lba, self.fresh),
        )

    def execute(self, request: Request) -> tuple[Status, int | None]:
        """How a command ends, and which block is to blame."""
        if self._impossible(request):
            return Status.INVALID_PROTECTION_INFORMATION, None
        lbas = range(request.slba, request.slba + request.blocks)
        if request.opcode in (IoOpcode.READ, IoOpcode.VERIFY):
            return self._judge(request, [self.block(lba) for lba in lbas])
        if request.opcode == IoOpcode.COMPARE:
            stored = [self.block(lba) for lba in lbas]
            found = self._judge(request, stored)
            given = list(zip(request.data, request.metadata, strict=True))
            if found[0] == Status.SUCCESS and [*map(self._compared, stored)] != [*map(self._compared, given)]:
                return Status.COMPARE_FAILURE, None
            return found
        if request.opcode == IoOpcode.WRITE_ZEROES:
            size, more = self.space.block_size, self.space.metadata
            given = [(bytes(size), bytes(more))] * request.blocks
        else:
            given = list(zip(request.data, request.metadata, strict=True))
            if not request.info & ACTION:
                found = self._judge(request, given)
                if found[0] != Status.SUCCESS:
                    return found
        for number, (lba, (data, metadata)) in enumerate(zip(lbas, given, strict=True)):
            self.data[lba] = data
            made = self.space.protection and request.info & ACTION
            self.metadata[lba] = self.protected(request, number, data, metadata) if made else metadata
        return Status.SUCCESS, None

    def deallocate(self, lba: int) -> None:
        self.data.pop(lba, None)
        self.metadata.pop(lba, None)

    def protected(self, request: Request, number: int, data: bytes, metadata: bytes) -> bytes:
        """Metadata with the right protection information for block ``number`` of a command."""
        protection = self.space.protection
        assert protection is not None
        start, end = self.span
        reference = self._reference(request, number)
        made = Tuple(guard(data + metadata[:start], protection.guard), request.application, reference)
        return metadata[:start] + made.encode(protection.guard) + metadata[end:]

    def _reference(self, request: Request, number: int) -> int:
        protection = self.space.protection
        assert protection is not None
        step = 0 if protection.type == 3 else number
        return (request.reference + step) % (1 << (32 if protection.guard == 16 else 48))

    def _impossible(self, request: Request) -> bool:
        protection = self.space.protection
        if protection is None:
            return False
        if request.opcode in (IoOpcode.COMPARE, IoOpcode.VERIFY) and request.info & ACTION:
            return True
        wrong = request.reference != request.slba % (1 << (32 if protection.guard == 16 else 48))
        refused = protection.type == 3 or (protection.type == 1 and wrong)
        return bool(request.info & REFERENCE) and refused

    def _judge(self, request: Request, blocks: list[tuple[bytes, bytes]]) -> tuple[Status, int | None]:
        protection = self.space.protection
        if protection is None:
            return Status.SUCCESS, None
        start, end = self.span
        for number, (data, metadata) in enumerate(blocks):
            found = Tuple.decode(metadata[start:end])
            everything = found.reference == (1 << (32 if protection.guard == 16 else 48)) - 1
            if found.application == 0xFFFF and (protection.type != 3 or everything):
                continue
            lba = request.slba + number
            if request.info & GUARD and found.guard != guard(data + metadata[:start], protection.guard):
                return Status.GUARD_CHECK_ERROR, lba
            if request.info & APPLICATION and (found.application ^ request.application) & request.mask:
                return Status.APPLICATION_TAG_CHECK_ERROR, lba
            if request.info & REFERENCE and found.reference != self._reference(request, number):
                return Status.REFERENCE_TAG_CHECK_ERROR, lba
        return Status.SUCCESS, None

    def _compared(self, block: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
        data, metadata = block
        start, end = self.span
        return data, metadata[:start] + metadata[end:]
