"""Replay: the recorded client speaks again, to a fresh server, whose replies are compared with the recorded.

Commands go out in the recorded order, each once the replies recorded before it have come; so do answers to
the server's own commands. What cannot be the same is met so: guest memory is empty (`stand_in`), nobody
hears interrupts, and a read that shows something else is repeated for a moment, for devices take their time.
"""

import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from outboard.client.transport import SocketTransport, Transport
from outboard.descriptors import close_all
from outboard.errors import CaptureError, ConnectionLost, PeerTimeout, RemoteProtocolError
from outboard.protocol import Command, Direction, TwinSocket
from outboard.protocol.codec import Frame, FrameReader
from outboard.protocol.messages import Version
from outboard.protocol.wire import HEADER, HEADER_SIZE, HeaderFlag
from outboard.trace.capture import Captured
from outboard.trace.describe import Describer
from outboard.trace.faults import ACCESS_END, MADE_UP, NOT_FORWARDED, Part, Passing, was_altered
from outboard.trace.recorded_dma import RecordedDma
from outboard.trace.relay import LARGEST_TRANSFER, UNCUT
from outboard.trace.stand_in import StandIn

PATIENCE = 1.0
"""Seconds a register has to show what it showed in the recording."""
REPLY_TIMEOUT = 5.0
"""Seconds a reply, or a command of the server, is waited for: what QEMU grants."""
BETWEEN_READS = 0.002
LONGEST_REGISTER = 8
MAIN, TWIN = 0, 1
ID_SIZE, FLAGS = 2, 8


@dataclass(frozen=True, slots=True)
class Volatile:
    """Bytes of a region whose value is not compared, as of a clock or a counter."""

    region: int
    offset: range


@dataclass(frozen=True, slots=True)
class Difference:
    """What was not as recorded: ``recorded`` and ``got`` are messages, or None where there was none.

    ``number`` is the place of the recorded message in the capture, from 1; ``command`` is what a reply
    answers. ``problem`` says what no message shows.
    """

    number: int
    command: Captured | None
    recorded: Captured | None
    got: Captured | None
    problem: str = ""

    def __str__(self) -> str:
        asked = "" if self.command is None else f"{_in_words(self.command)}: "
        told = [
            f"{name} {_in_words(message, self.command)}"
            for name, message in (("recorded", self.recorded), ("got", self.got))
            if message is not None
        ]
        return (
            f"message {self.number}: {asked}{', '.join(filter(None, (*told, self._place(), self.problem)))}"
        )

    def _place(self) -> str:
        """Where in a long piece of data the first difference is: words show only its start."""
        if (
            self.recorded is None
            or self.got is None
            or len(self.recorded.data) <= ACCESS_END + LONGEST_REGISTER
        ):
            return ""
        pairs = zip(self.recorded.data[ACCESS_END:], self.got.data[ACCESS_END:], strict=False)
        for at, (recorded, got) in enumerate(pairs):
            if recorded != got:
                return f"first at byte {at:#x}: {recorded:#04x}, {got:#04x}"
        return ""


def _in_words(message: Captured, command: Captured | None = None) -> str:
    describer = Describer()
    if command is not None:
        describer.describe(command)
    described = describer.describe(message)
    name = "" if command is not None else described.command
    return " ".join(filter(None, (name, described.text or described.kind.value, described.problem)))


class Player:
    """Plays one connection of a capture to the server behind ``transport``, which it closes.

    ``ignore`` names bytes that are not compared; with ``ignore_dma`` the server's own commands are answered,
    not compared, for devices that bundle them as time allows; ``patience`` is how long, in seconds, a read is
    repeated that shows something else than recorded. Raises CaptureError for a capture that cannot be
    replayed.
    """

    def __init__(
        self,
        messages: Iterable[tuple[int, Captured]],
        transport: Transport,
        *,
        ignore: Sequence[Volatile] = (),
        ignore_dma: bool = False,
        patience: float = PATIENCE,
    ) -> None:
        self.differences: list[Difference] = []
        self._script = [*_as_passed(messages)]
        self._transport = transport
        self._ignore = ignore
        self._patience = patience
        self._memory = StandIn()
        self._readers = [FrameReader(LARGEST_TRANSFER), FrameReader(LARGEST_TRANSFER)]
        self._twin: SocketTransport | None = None
        self._replies: dict[int, Frame] = {}
        self._at = 0
        self._given_up: set[bytes] = set()
        self._dma = RecordedDma(self._script, self._memory)
        self._ignore_dma = ignore_dma
        self._command_timeout = patience if ignore_dma else REPLY_TIMEOUT

    def play(self) -> list[Difference]:
        """Plays all of it; the differences, none when the server behaved as recorded."""
        try:
            self._play()
        except (ConnectionLost, RemoteProtocolError, PeerTimeout) as error:
            self.differences.append(
                Difference(self._at, None, None, None, f"the replay ends here: {error.sentence}")
            )
        finally:
            self.close()
        return self.differences

    def close(self) -> None:
        """Ends the connection."""
        self._memory.close()
        for reader in self._readers:
            close_all(reader.claim_all())
        for frame in self._replies.values():
            close_all(frame.fds)
        if self._twin is not None:
            self._twin.close()
        self._transport.close()

    def serve(self) -> None:
        """Answers what the server has asked; for a server that waits for memory inside of our own call."""
        try:
            self._receive(0)
        except PeerTimeout:
            return

    def _play(self) -> None:
        reads = _accepted_replies(self._script)
        commands: dict[int, Captured] = {}
        strays: set[int] = set()
        for number, captured in self._script:
            self._at = number
            passing = Passing(captured.data, captured.direction)
            message_id = passing.header[0]
            to_server = captured.direction is Direction.TO_SERVER
            if passing.part is Part.COMMAND and to_server:
                commands[message_id] = captured
                self._send(captured)
            elif passing.part is Part.COMMAND:
                self._await_command(captured)
            elif not to_server and message_id in commands:
                command = commands.pop(message_id)
                self._compare(command, captured, reads.get(number, ()))
            elif not to_server:
                strays.add(message_id)
        unanswered = {
            message_id
            for message_id, command in commands.items()
            if not command.data[FLAGS] & HeaderFlag.NO_REPLY
        }
        for frame in self._replies.values():
            if frame.message_id not in unanswered | strays:
                self._differ_unasked(frame)

    def _send(self, captured: Captured) -> None:
        fds = self._memory.lend(captured.data, captured.fds)
        try:
            self._transport.send(captured.data, fds, REPLY_TIMEOUT)
        finally:
            close_all(fds)

    def _await_command(self, captured: Captured) -> None:
        """Waits until the server has sent the command that it sent here in the recording."""
        deadline = time.monotonic() + self._command_timeout
        while self._dma.awaits(self._at):
            try:
                self._receive(deadline - time.monotonic())
            except PeerTimeout:
                self._dma.give_up(self._at)
                self._command_timeout = self._patience  # the next ones are likely to be missing too
                if self._ignore_dma:
                    return
                self.differences.append(
                    Difference(self._at, None, captured, None, "the server did not send it")
                )

    def _await_reply(self, message_id: int) -> Frame:
        deadline = time.monotonic() + REPLY_TIMEOUT
        while message_id not in self._replies:
            left = deadline - time.monotonic()
            if left <= 0:
                raise PeerTimeout(f"the server has not answered within {REPLY_TIMEOUT:g} s")
            self._receive(left)
        return self._replies.pop(message_id)

    def _receive(self, seconds: float) -> None:
        """Takes what arrives on either socket. Raises PeerTimeout if nothing does."""
        seconds = max(0.0, seconds)
        if self._twin is not None and not self._transport.wait(self._twin.fileno(), seconds):
            self._take(*self._twin.receive(0), TWIN)
        else:
            self._take(*self._transport.receive(seconds), MAIN)

    def _take(self, data: bytes, fds: Sequence[int], place: int) -> None:
        reader = self._readers[place]
        reader.receive(data, fds)
        while (frame := reader.next_frame()) is not None:
            if frame.flags & (HeaderFlag.TYPE_MASK | HeaderFlag.ERROR):
                if (stale := self._replies.pop(frame.message_id, None)) is not None:
                    close_all(stale.fds)
                self._replies[frame.message_id] = frame
            else:
                close_all(frame.fds)
                self._answer(frame, place)

    def _compare(self, command: Captured, recorded: Captured, accepted: Sequence[bytes]) -> None:
        frame = self._await_reply(Passing(recorded.data, recorded.direction).header[0])
        got = _captured(frame, recorded)
        try:
            self._join_twin(frame)
        finally:
            close_all(frame.fds)
        if was_altered(recorded.remark) or self._equal(got, recorded):
            return
        if accepted and command.data[HEADER_SIZE:] not in self._given_up:
            deadline = time.monotonic() + self._patience
            while not any(self._equal_data(got, data) for data in accepted):
                if time.monotonic() >= deadline:
                    # Its next reads are likely to differ too, and would cost as much.
                    self._given_up.add(command.data[HEADER_SIZE:])
                    break
                self._rest()
                self._send(command)
                frame = self._await_reply(frame.message_id)
                close_all(frame.fds)
                got = _captured(frame, recorded)
            else:
                return
        self.differences.append(Difference(self._at, command, recorded, got))

    def _rest(self) -> None:
        """Lets the device work for a moment."""
        try:
            self._receive(BETWEEN_READS)
        except PeerTimeout:
            return

    def _equal(self, got: Captured, recorded: Captured) -> bool:
        if got.fds != recorded.fds:
            return False
        return got.data == recorded.data or self._equal_data(got, recorded.data)

    def _equal_data(self, got: Captured, data: bytes) -> bool:
        """Whether two replies are the same but for their ids and what is ignored."""
        return self._masked(got.data) == self._masked(data)

    def _masked(self, data: bytes) -> bytes:
        message = Passing(data, Direction.TO_CLIENT)
        if message.header[1] != Command.REGION_READ or message.access is None:
            return data[ID_SIZE:]
        region, offset, count = message.access
        masked = bytearray(data)
        for volatile in self._ignore:
            if volatile.region != region:
                continue
            for at in range(max(offset, volatile.offset.start), min(offset + count, volatile.offset.stop)):
                masked[ACCESS_END + at - offset : ACCESS_END + at - offset + 1] = b"\0"
        return bytes(masked[ID_SIZE:])

    def _join_twin(self, frame: Frame) -> None:
        """Takes the twin socket's end out of a VERSION reply."""
        if frame.command != Command.VERSION or not frame.fds or frame.flags & HeaderFlag.ERROR:
            return
        said = Version.decode(frame.payload).capabilities
        twin = TwinSocket() if said is None else said.twin_socket
        if twin.supported and (twin.fd_index or 0) < len(frame.fds) and self._twin is None:
            fds = list(frame.fds)
            with suppress(OSError):  # no socket
                self._twin = SocketTransport(socket.socket(fileno=fds[twin.fd_index or 0]))
                del fds[twin.fd_index or 0]
                frame.fds = tuple(fds)

    def _answer(self, frame: Frame, place: int) -> None:
        """Answers a command of the server."""
        data, was_recorded = self._dma.answer(frame)
        if not was_recorded and not self._ignore_dma:
            self._differ_unasked(frame)
        if data is not None:
            self._reply(data, place)

    def _differ_unasked(self, frame: Frame) -> None:
        got = _captured(frame, None)
        self.differences.append(
            Difference(self._at, None, None, got, "which the recorded server did not send")
        )

    def _reply(self, data: bytes, place: int) -> None:
        transport = self._twin if place == TWIN and self._twin is not None else self._transport
        transport.send(data, (), REPLY_TIMEOUT)


def connections(capture: Iterable[Captured]) -> list[list[tuple[int, Captured]]]:
    """The messages of each connection of a capture, with their numbers in it, from 1."""
    found: dict[int, list[tuple[int, Captured]]] = {}
    for number, captured in enumerate(capture, 1):
        found.setdefault(captured.connection, []).append((number, captured))
    return [messages for _, messages in sorted(found.items())]


def _as_passed(messages: Iterable[tuple[int, Captured]]) -> Iterator[tuple[int, Captured]]:
    """What the server really got and sent: without what a proxy kept back, or made up.

    Ends where the stream could not be cut any more. Raises CaptureError for a message that is not whole.
    """
    for number, captured in messages:
        if captured.missing:
            raise CaptureError(
                f"message {number} lacks its last {captured.missing} bytes: a replay needs whole messages"
            )
        if UNCUT in captured.remark or len(captured.data) < HEADER_SIZE:
            return
        if captured.direction is Direction.TO_SERVER:
            if NOT_FORWARDED in captured.remark:
                continue
        elif MADE_UP in captured.remark and not was_altered(captured.remark):
            continue
        yield number, captured


def _accepted_replies(script: Iterable[tuple[int, Captured]]) -> dict[int, tuple[bytes, ...]]:
    """For each reply to a REGION_READ, by its number: the replies that will do, the recorded one among them.

    A read right after the very same read polls: how often it has to depends on time, so what one of the
    later ones showed will do.
    """
    runs: list[list[tuple[int, bytes]]] = []
    waiting: dict[int, list[tuple[int, bytes]]] = {}
    last = b""
    for number, captured in script:
        passing = Passing(captured.data, captured.direction)
        message_id, command, *_ = passing.header
        if captured.direction is Direction.TO_SERVER and passing.part is Part.COMMAND:
            payload = captured.data[HEADER_SIZE:]
            if command == Command.REGION_READ:
                if payload != last:
                    runs.append([])
                waiting[message_id] = runs[-1]
            last = payload if command == Command.REGION_READ else b""
        elif (
            captured.direction is Direction.TO_CLIENT and passing.part is Part.REPLY and message_id in waiting
        ):
            waiting.pop(message_id).append((number, captured.data))
    accepted: dict[int, tuple[bytes, ...]] = {}
    for run in runs:
        distinct: tuple[bytes, ...] = ()
        for number, data in reversed(run):
            if all(data[ID_SIZE:] != known[ID_SIZE:] for known in distinct):
                distinct = (data, *distinct)
            accepted[number] = distinct
    return accepted


def _captured(frame: Frame, recorded: Captured | None) -> Captured:
    """What a fresh server has sent, as a capture would hold it."""
    size = HEADER_SIZE + len(frame.payload)
    head = HEADER.pack(frame.message_id, frame.command, size, frame.flags, frame.error)
    time = 0 if recorded is None else recorded.time
    return Captured(time, Direction.TO_CLIENT, head + frame.payload, len(frame.fds))
