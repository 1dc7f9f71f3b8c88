"""The connections a client is led through: a good server, and servers that are each odd in one way."""

import struct
import time
from typing import ClassVar

from outboard.conformance import wire
from outboard.conformance.client.device import EINVAL, Answer, Mapped, Script
from outboard.conformance.peer import Silence, ready
from outboard.conformance.wire import Body, Message
from outboard.conformance.witness import Witness

HOLD = 1.0
"""Seconds for which an answer is held back: QEMU gives up after five."""
UNANSWERED = 0x7777
PATTERN = bytes(range(0xA1, 0xB1))


class NoJson(Script):
    """VERSION is answered without JSON."""

    name = "no JSON"
    capabilities = None


class SmallLimits(Script):
    """One descriptor and 4096 bytes a message."""

    name = "small limits"
    capabilities: ClassVar = {"max_msg_fds": 1, "max_data_xfer_size": 4096}


class ForeignMajor(Script):
    """Version 1.0."""

    name = "foreign version"
    version = (1, 0)


class NewerMinor(Script):
    """A minor version that nobody asked for."""

    name = "newer version"
    version = (0, 0xFFFF)


class BrokenJson(Script):
    """JSON that is not."""

    name = "broken JSON"
    capabilities = b'{"capabilities":{"max_msg_fds":\0'


class AbsurdLimits(Script):
    """Limits of the wrong type."""

    name = "absurd limits"
    capabilities: ClassVar = {"max_msg_fds": "many", "max_data_xfer_size": -1}


class WrongId(Script):
    """DEVICE_GET_INFO is answered with an id nobody used."""

    name = "unknown id"

    def answer(self, message: Message, answer: Answer) -> None:
        """The id is another."""
        if message.command == wire.DEVICE_INFO:
            message = message._replace(id=message.id ^ 0x5555)
        super().answer(message, answer)


class OutOfOrder(Script):
    """Commands that wait together are answered the last first."""

    name = "out of order"

    def take(self, message: Message) -> None:
        """Wait a moment for the next one."""
        if message.command != wire.DMA_MAP or not ready(self.peer.socket.fileno(), 0.05):
            super().take(message)
            return
        second = self.peer.receive("the next command")
        self.heard.messages.append(second)
        self.heard.facts["pipelined"] = True
        first_answer, second_answer = self.carry_out(message), self.carry_out(second)
        if second.command != wire.DMA_MAP:
            wire.close_all(second.fds)
        for one, answer in ((second, second_answer), (message, first_answer)):
            if not one.flags & wire.NO_REPLY:
                self.answer(one, answer)


class Refuses(Script):
    """The first DEVICE_GET_REGION_INFO is refused."""

    name = "an error reply"
    flags: ClassVar[int] = wire.REPLY | wire.ERROR
    payload: ClassVar[bytes] = b""

    def answer(self, message: Message, answer: Answer) -> None:
        """The error in place of the answer."""
        if message.command == wire.REGION_INFO and "refused" not in self.heard.facts:
            self.heard.facts["refused"] = len(self.heard.messages)
            body = Body(message.command, self.payload)
            self.peer.send(body.message(message.id, self.flags, error=EINVAL))
        else:
            super().answer(message, answer)


class RefusesWithPayload(Refuses):
    """As libvfio-user does: with the payload of the success."""

    name = "an error reply with payload"
    payload = bytes(32)


class RefusesUntyped(Refuses):
    """As the Rust crate's server does: Error, and the type of a command."""

    name = "an error reply without type"
    flags = wire.ERROR


class InPieces(Script):
    """Every reply but VERSION's arrives in three pieces."""

    name = "replies in pieces"

    def answer(self, message: Message, answer: Answer) -> None:
        """Cut in the header and in the payload."""
        if message.command == wire.VERSION or isinstance(answer, int) or answer[1]:
            super().answer(message, answer)
            return
        data = Body(message.command, answer[0]).message(message.id, wire.REPLY)
        self.heard.facts["cut"] = len(self.heard.messages)
        self.peer.send_in_pieces([piece for piece in (data[:7], data[7:20], data[20:]) if piece])


class Silent(Script):
    """DEVICE_GET_INFO is never answered."""

    name = "silence"
    patience = 8.0

    def answer(self, message: Message, answer: Answer) -> None:
        """Nothing from there on."""
        if message.command == wire.DEVICE_INFO or "asked" in self.heard.facts:
            self.heard.facts.setdefault("asked", time.monotonic())
        else:
            super().answer(message, answer)


class LoopingChain(Script):
    """The capabilities of BAR 0 point to each other."""

    name = "a chain that loops"

    def chain(self) -> bytes:
        """Two capabilities in a circle, and a count of areas beyond the end."""
        first = struct.pack("=HHIIIQQ", 2, 1, 64, 0, 0, 0, 0)
        second = struct.pack("=HHIIIQQ", 1, 1, 32, 0x0FFF_FFFF, 0, wire.PAGE, wire.PAGE)
        return first + second

    def region_info(self, message: Message) -> Answer:
        """As before, and noted when the chain was told."""
        answer = super().region_info(message)
        if not isinstance(answer, int) and len(answer[0]) > 32:
            self.heard.facts.setdefault("told", len(self.heard.messages))
        return answer


class HugeCounts(Script):
    """Four billion regions and interrupt kinds."""

    name = "absurd counts"

    def device_info(self, message: Message) -> Answer:
        """The largest counts there are."""
        self.heard.facts["told"] = len(self.heard.messages)
        return struct.pack("=IIII", 16, 3, 0xFFFF_FFFF, 0xFFFF_FFFF), ()


class StrayDescriptor(Script):
    """DEVICE_GET_INFO's reply has a descriptor that nobody asked for."""

    name = "a stray descriptor"

    def answer(self, message: Message, answer: Answer) -> None:
        """With one end of a pipe."""
        if message.command != wire.DEVICE_INFO or isinstance(answer, int):
            super().answer(message, answer)
            return
        self.heard.facts["witness"] = witness = Witness()
        self.peer.reply(message, answer[0], fds=(witness.fd,))


class AsksForMemory(Script):
    """The device reads and writes guest memory by message, while the client waits and while it does not."""

    name = "DMA by message"

    def take(self, message: Message) -> None:
        """Before the first command after a map is answered, memory is asked for."""
        answer = self.carry_out(message)
        if message.command != wire.DMA_MAP:
            wire.close_all(message.fds)
        tried = self.heard.facts.get("interleaved")
        if tried is None and self.target() and message.command not in (wire.DMA_MAP, wire.DMA_UNMAP):
            self.heard.facts["interleaved"] = self.read_some(HOLD)
            if self.heard.facts["interleaved"]:
                self.try_all()
        if not message.flags & wire.NO_REPLY:
            self.answer(message, answer)

    def idle(self) -> bool:
        """Once more, for a client that does not serve while it waits itself."""
        if self.target() and "tried" not in self.heard.facts:
            self.heard.facts.setdefault("interleaved", False)
            self.try_all()
            return True
        return False

    def target(self) -> Mapped | None:
        """The largest map that may be read and written."""
        both = [one for one in self.maps.values() if one.flags & 3 == 3 and one.size >= wire.PAGE]
        return max(both, key=lambda one: one.size, default=None)

    def read_some(self, seconds: float) -> bool:
        """Whether a read of guest memory is answered in time."""
        place = self.target()
        assert place is not None
        return self.ask(wire.DMA_READ, struct.pack("=QQ", place.address, 16), seconds=seconds) is not None

    def try_all(self) -> None:
        """One attempt of each kind; the answers are kept by name."""
        place, facts = self.target(), self.heard.facts
        assert place is not None
        facts["tried"] = True
        end = place.address + place.size
        nowhere = max(one.address + one.size for one in self.maps.values())
        facts["read"] = before = self.ask(wire.DMA_READ, struct.pack("=QQ", end - 16, 16))
        facts["outside"] = self.ask(wire.DMA_READ, struct.pack("=QQ", nowhere, 16))
        facts["too much"] = self.ask(wire.DMA_READ, struct.pack("=QQ", place.address, (64 << 20) + 4096))
        facts["unknown"] = self.ask(999, bytes(16))
        # If this is answered, the answer stands before the next one.
        unanswered = Body(wire.DMA_READ, struct.pack("=QQ", nowhere, 16))
        self.peer.send(unanswered.message(UNANSWERED, wire.NO_REPLY))
        facts["after no reply"] = self.ask(wire.DMA_READ, struct.pack("=QQ", end - 16, 16))
        if before is None or before.is_error or len(before.payload) != 32:
            return
        facts["write"] = self.ask(wire.DMA_WRITE, struct.pack("=QQ", end - 16, 16) + PATTERN)
        facts["read back"] = self.ask(wire.DMA_READ, struct.pack("=QQ", end - 16, 16))
        self.ask(wire.DMA_WRITE, struct.pack("=QQ", end - 16, 16) + before.payload[16:])

    def ask(self, command: int, payload: bytes, seconds: float = HOLD) -> Message | None:
        """The next reply of the client; commands that come before it wait for their turn. None: none came."""
        number = self.peer.new_id() | 0x4000
        self.peer.send(Body(command, payload).message(number))
        patience, self.peer.timeout = self.peer.timeout, seconds
        waiting = []
        try:
            while True:
                message = self.peer.receive("an answer")
                if not message.is_reply and not message.is_error:
                    waiting.append(message)
                elif message.id == number:
                    return message
                elif message.id == UNANSWERED:
                    self.heard.fault("P126e", str(message))
        except Silence:
            return None
        finally:
            self.peer.timeout = patience
            self.peer.put_back(waiting)


SCENARIOS: tuple[type[Script], ...] = (
    Script,
    NoJson,
    SmallLimits,
    ForeignMajor,
    NewerMinor,
    BrokenJson,
    AbsurdLimits,
    WrongId,
    OutOfOrder,
    Refuses,
    RefusesWithPayload,
    RefusesUntyped,
    InPieces,
    Silent,
    LoopingChain,
    HugeCounts,
    StrayDescriptor,
    AsksForMemory,
)
