"""Captured messages, described: what each is, what it says, and which command a reply answers.

vfio-user specification, "Header" and "Message IDs". Nothing is printed here and no message is too
broken: what cannot be decoded is described as that.
"""

import errno
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from outboard.errors import RemoteProtocolError
from outboard.protocol.codec import Header
from outboard.protocol.messages import DmaLayout, DmaTransfer, Empty, Message, RegionReadReply
from outboard.protocol.states import RULES, Direction
from outboard.protocol.wire import HEADER_SIZE, HeaderFlag
from outboard.trace.capture import Captured
from outboard.trace.registers import Registers
from outboard.trace.words import Fields, command_name, words

MOST_OPEN = 256
"""How many commands of one id may wait for their replies; of more, the oldest are forgotten."""

MOST_IDS = 4096
"""How many ids may have commands that wait; of more, the oldest are forgotten."""

MOST_PADDING = 1 << 20
"""A message that was cut when it was captured is decoded with so many zeros at its end at most."""


class Kind(StrEnum):
    """What a message is."""

    COMMAND = "command"
    POSTED = "posted command"  # no reply is wanted
    REPLY = "reply"
    ERROR = "error reply"
    MALFORMED = "malformed"


@dataclass(slots=True)
class Described:
    """One message in words.

    ``number`` counts the capture's messages from 1. ``text`` says what the payload says, ``fields`` says
    it for programs; ``problem`` says what is wrong with the message, or nothing. Of a reply, ``answers``
    is the number of its command and ``latency`` the nanoseconds since then. ``region`` is the index of
    the region it is about.
    """

    number: int
    captured: Captured
    kind: Kind
    command: str = ""
    id: int | None = None
    text: str = ""
    fields: Fields = field(default_factory=dict)
    problem: str = ""
    answers: int | None = None
    latency: int | None = None

    @property
    def region(self) -> int | None:
        """The index of the region the message is about, where it is about one."""
        region = self.fields.get("region")
        return region if isinstance(region, int) else None

    @property
    def regions(self) -> set[int]:
        """The indexes of all regions it is about: a REGION_WRITE_MULTI may be about several."""
        several = {write["region"] for write in self.fields.get("writes", ())}
        return several if self.region is None else several | {self.region}


@dataclass(slots=True)
class _Open:
    """A command that waits for its reply."""

    number: int
    command: int
    time: int


Sender = tuple[int, int, Direction]
"""Connection, socket, and where commands go."""


class Describer:
    """Describes the messages of a capture, one after the other.

    ``device`` is a class that declares registers, for their names; ``known`` gives one for the class code
    that a capture reads from configuration space.
    """

    def __init__(
        self, device: type | None = None, known: Mapping[int, Callable[[], type]] | None = None
    ) -> None:
        self._device, self._known = device, known
        self._registers: dict[int, Registers] = {}
        self._open: dict[tuple[Sender, int], deque[_Open]] = {}
        self._number = 0

    def describe(self, captured: Captured) -> Described:
        """The next message, described."""
        self._number += 1
        described = Described(self._number, captured, Kind.MALFORMED)
        if len(captured.data) < HEADER_SIZE:
            described.problem = f"a header has {HEADER_SIZE} bytes, here are {len(captured.data)}"
            described.text = captured.data.hex(" ")
            return described
        header = Header.decode(captured.data)
        described.command, described.id = command_name(header.command), header.message_id
        if header.flags & HeaderFlag.TYPE_MASK > HeaderFlag.REPLY:
            described.problem = f"the flags {header.flags:#x} are neither a command's nor a reply's"
        elif header.size != len(captured.data) + captured.missing:
            described.problem = (
                f"the header announces {header.size} bytes, "
                f"the message has {len(captured.data) + captured.missing}"
            )
        # The Rust crate's error replies have the type bits of a command.
        elif header.flags & (HeaderFlag.REPLY | HeaderFlag.ERROR):
            self._reply(described, header)
        else:
            self._command(described, header)
        if described.kind is Kind.MALFORMED:
            described.text = _bytes_of(captured.data[HEADER_SIZE:])
        return described

    def _command(self, described: Described, header: Header) -> None:
        captured = described.captured
        posted = bool(header.flags & HeaderFlag.NO_REPLY)
        described.kind = Kind.POSTED if posted else Kind.COMMAND
        if not posted:
            key = (captured.connection, captured.socket, captured.direction), header.message_id
            waiting = self._open.setdefault(key, deque(maxlen=MOST_OPEN))
            waiting.append(_Open(described.number, header.command, captured.time))
            if len(self._open) > MOST_IDS:
                del self._open[next(iter(self._open))]
        rule = RULES.get(header.command)
        if rule is None:
            described.problem = f"there is no {described.command}"
            described.text = _bytes_of(captured.data[HEADER_SIZE:])
        elif rule.direction is not captured.direction:
            described.problem = f"{described.command} goes from {rule.direction.value} only"
            self._payload(described, rule.request, reply=False)
        else:
            self._payload(described, rule.request, reply=False)

    def _reply(self, described: Described, header: Header) -> None:
        captured = described.captured
        described.kind = Kind.ERROR if header.flags & HeaderFlag.ERROR else Kind.REPLY
        command = self._answered(described, header)
        if command is None:
            described.problem = "no command with this id is waiting"
        if described.kind is Kind.ERROR:
            described.text, described.fields = error_words(header.error), {"errno": header.error}
            return
        rule = RULES.get(header.command)
        if rule is None:
            described.text = _bytes_of(captured.data[HEADER_SIZE:])
        elif rule.bare_reply and header.size == HEADER_SIZE:
            self._payload(described, Empty, reply=True)
        else:
            self._payload(described, rule.reply, reply=True)

    def _answered(self, described: Described, header: Header) -> _Open | None:
        """Take the oldest waiting command that the reply answers."""
        captured = described.captured
        away = Direction.TO_CLIENT if captured.direction is Direction.TO_SERVER else Direction.TO_SERVER
        key = (captured.connection, captured.socket, away), header.message_id
        for command in self._open.get(key, ()):
            if command.command == header.command:
                self._open[key].remove(command)
                if not self._open[key]:
                    del self._open[key]
                described.answers = command.number
                described.latency = captured.time - command.time
                return command
        return None

    def _payload(self, described: Described, kind: type[Message], *, reply: bool) -> None:
        captured = described.captured
        payload = captured.data[HEADER_SIZE:]
        if captured.missing:
            payload += bytes(min(captured.missing, MOST_PADDING))
        registers = self._registers.get(captured.connection)
        if registers is None:
            registers = self._registers[captured.connection] = Registers(self._device, self._known)
        try:
            message = _decode(kind, payload)
        except RemoteProtocolError as error:
            described.problem = described.problem or error.sentence
            described.text = _bytes_of(captured.data[HEADER_SIZE:])
            return
        if isinstance(message, RegionReadReply) and not captured.missing:
            registers.read(message.region, message.offset, message.data)
        described.text, described.fields = words(message, payload, captured.fds, registers, reply=reply)
        if captured.missing:
            described.text += f" ({captured.missing} bytes at the end were not captured)"


def describe(
    capture: Iterable[Captured],
    device: type | None = None,
    known: Mapping[int, Callable[[], type]] | None = None,
) -> Iterator[Described]:
    """The messages of a capture, described; see `Describer`."""
    describer = Describer(device, known)
    for captured in capture:
        yield describer.describe(captured)


def error_words(number: int) -> str:
    """What the error number of a reply means.

    >>> error_words(22)
    'EINVAL: Invalid argument'
    """
    if not number:
        return "an error without a number"
    name = errno.errorcode.get(number)
    return f"{name}: {os.strerror(number)}" if name else f"errno {number}"


def as_json(described: Described) -> dict[str, Any]:
    """A described message as names and values for JSON; what does not apply is left out."""
    captured = described.captured
    whole: dict[str, Any] = {
        "number": described.number,
        "time": captured.time,
        "connection": captured.connection,
        "socket": "twin" if captured.socket else "main",
        "direction": captured.direction.value,
        "kind": described.kind.value,
        "command": described.command,
        "id": described.id,
        "size": len(captured.data) + captured.missing,
        "fds": captured.fds,
        "answers": described.answers,
        "latency": described.latency,
        "fields": described.fields,
        "text": described.text,
        "problem": described.problem,
        "remark": captured.remark,
    }
    return {name: value for name, value in whole.items() if value not in (None, "", {})}


def _decode(kind: type[Message], payload: bytes) -> Message:
    """The message; DMA by message is also looked at as QEMU 10.1 lays it out."""
    try:
        return kind.decode(payload)
    except RemoteProtocolError:
        if issubclass(kind, DmaTransfer):
            return kind.decode(payload, DmaLayout.QEMU10)
        raise


def _bytes_of(data: bytes) -> str:
    return data[:64].hex(" ") + " ..." * (len(data) > 64)
