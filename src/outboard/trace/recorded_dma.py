"""The server's own commands in a replay: recognised, and answered as the recorded client answered them.

vfio-user specification, "VFIO_USER_DMA_READ" and "VFIO_USER_DMA_WRITE". How a device bundles what it reads
and writes may depend on time: so a command that is none of the recorded ones still finds the memory that
they showed, and stands for those whose bytes it moves.
"""

import errno
from collections.abc import Iterable
from dataclasses import dataclass
from struct import Struct

from outboard.protocol import Command, Direction
from outboard.protocol.codec import Frame
from outboard.protocol.wire import HEADER, HEADER_SIZE, HeaderFlag
from outboard.trace.capture import Captured
from outboard.trace.faults import Part, Passing
from outboard.trace.stand_in import StandIn

FIELDS = Struct("=QQ")
DMA = (Command.DMA_READ, Command.DMA_WRITE)
ID_SIZE = 2
MOST_BYTES = 64 << 20
"""What one command may move: more is refused, not allocated."""


@dataclass(slots=True)
class Expected:
    """A command of the recorded server that has not come yet, and what the client answered."""

    number: int
    captured: Captured
    command: int
    address: int = 0
    count: int = 0
    missing: int = 0  # bytes that no other command has moved
    answer: bytes | None = None


class RecordedDma:
    """What the server is expected to ask in ``script``, and the ``memory`` it finds."""

    def __init__(self, script: Iterable[tuple[int, Captured]], memory: StandIn) -> None:
        self._memory = memory
        self._expected: list[Expected] = []
        waiting: dict[tuple[int, int], Expected] = {}
        for number, captured in script:
            passing = Passing(captured.data, captured.direction)
            message_id, command, *_ = passing.header
            key = captured.socket, message_id
            if passing.part is Part.COMMAND and captured.direction is Direction.TO_CLIENT:
                waiting[key] = expected = Expected(number, captured, command)
                if command in DMA and passing.access is not None:
                    _, expected.address, expected.count = passing.access
                    expected.missing = expected.count
                self._expected.append(expected)
            elif passing.part is Part.REPLY and captured.direction is Direction.TO_SERVER and key in waiting:
                waiting.pop(key).answer = captured.data

    def awaits(self, number: int) -> bool:
        """Whether the recorded command `number` has not come yet."""
        return any(each.number == number for each in self._expected)

    def give_up(self, number: int) -> None:
        """Waits no more for the recorded command `number`."""
        self._expected = [each for each in self._expected if each.number != number]

    def answer(self, frame: Frame) -> tuple[bytes | None, bool]:
        """The reply to a command of the server (None: the client gave none), and whether it was recorded."""
        data = bytes(frame.payload)
        for expected in self._expected:
            if expected.command == frame.command and expected.captured.data[HEADER_SIZE:] == data:
                self._expected.remove(expected)
                if expected.command == Command.DMA_WRITE:
                    self._memory.write(expected.address, data[FIELDS.size :])
                if expected.answer is None:
                    return None, True
                if expected.command == Command.DMA_READ:
                    self._memory.write(expected.address, expected.answer[HEADER_SIZE + FIELDS.size :])
                return frame.message_id.to_bytes(ID_SIZE, "little") + expected.answer[ID_SIZE:], True
        return self._own_answer(frame, data), False

    def _own_answer(self, frame: Frame, data: bytes) -> bytes:
        refusal = HEADER.pack(
            frame.message_id,
            frame.command,
            HEADER_SIZE,
            HeaderFlag.REPLY | HeaderFlag.ERROR,
            errno.EINVAL,
        )
        if frame.command not in DMA or len(data) < FIELDS.size:
            return refusal
        address, count = FIELDS.unpack_from(data)
        payload = data[: FIELDS.size]
        if frame.command == Command.DMA_WRITE:
            self._take_place(frame.command, address, count)
            self._memory.write(address, data[FIELDS.size :])
        else:
            found = self._memory.read(address, count) if count <= MOST_BYTES else None
            if found is None:
                return refusal
            content = bytearray(found)
            for expected, start, end in self._take_place(frame.command, address, count):
                if expected.answer is not None:
                    shown = expected.answer[HEADER_SIZE + FIELDS.size :]
                    piece = shown[start - expected.address : end - expected.address]
                    content[start - address : start - address + len(piece)] = piece
            payload += content
        size = HEADER_SIZE + len(payload)
        return HEADER.pack(frame.message_id, frame.command, size, HeaderFlag.REPLY, 0) + payload

    def _take_place(self, command: int, address: int, count: int) -> list[tuple[Expected, int, int]]:
        """The next recorded commands that move these bytes, and which; those moved whole have come."""
        left = [(address, address + count)]
        met = []
        for expected in self._expected:
            if not left:
                break
            if expected.command != command:
                continue
            rest = []
            for start, end in left:
                low, high = max(start, expected.address), min(end, expected.address + expected.count)
                if low >= high:
                    rest.append((start, end))
                    continue
                met.append((expected, low, high))
                expected.missing -= high - low
                rest += [piece for piece in ((start, low), (high, end)) if piece[0] < piece[1]]
            left = rest
        self._expected = [each for each in self._expected if each.missing > 0 or not each.count]
        return met
