"""Faults: what a proxy does to messages on purpose, and when. A message in, its fate out; no I/O.

A fault says what happens (`Delay`, `Error`, `Flip`, `Disconnect`, `DropInterrupt`), its `When` to which
messages, `Faults` keeps count for one connection. The same seed and the same messages give the same faults.
"""

import errno
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from random import Random
from struct import Struct
from typing import ClassVar

from outboard.protocol import Command, Direction
from outboard.protocol.messages import IrqIndex
from outboard.protocol.wire import HEADER, HEADER_SIZE, HeaderFlag

NOT_FORWARDED = "not forwarded"
MADE_UP = "made by the proxy"
"""In a remark: the receiver never saw this message; its sender never sent it."""

REGION_ACCESS, MEMORY_ACCESS = Struct("=QII"), Struct("=QQ")
WITH_REGION = (Command.REGION_READ, Command.REGION_WRITE)
WITH_ADDRESS = (Command.DMA_READ, Command.DMA_WRITE)
ACCESS_END = HEADER_SIZE + REGION_ACCESS.size


def was_altered(remark: str) -> bool:
    """Whether a message with this remark is not what its sender sent."""
    return "flipped" in remark or "replaced" in remark


class Part(Enum):
    """Which half of an exchange a message is."""

    COMMAND = "command"
    REPLY = "reply"


@dataclass(frozen=True)
class Passing:
    """One whole message on its way in ``direction``."""

    data: bytes
    direction: Direction

    @cached_property
    def header(self) -> tuple[int, int, int, int, int]:
        """Message id, command, size, flags, error."""
        message_id, command, size, flags, error = HEADER.unpack_from(self.data)
        return message_id, command, size, flags, error

    @property
    def part(self) -> Part:
        """Command or reply."""
        return Part.REPLY if self.header[3] & HeaderFlag.TYPE_MASK else Part.COMMAND

    @cached_property
    def access(self) -> tuple[int | None, int, int] | None:
        """Region (None: guest memory), offset or address, and bytes; None if the message accesses nothing."""
        if len(self.data) < ACCESS_END:
            return None
        if self.header[1] in WITH_REGION:
            offset, region, count = REGION_ACCESS.unpack_from(self.data, HEADER_SIZE)
            return region, offset, count
        if self.header[1] in WITH_ADDRESS:
            address, count = MEMORY_ACCESS.unpack_from(self.data, HEADER_SIZE)
            return None, address, count & 0xFFFF_FFFF  # QEMU 10.1 counts in 32 bits
        return None

    def error_reply(self, number: int) -> bytes:
        """The error reply that belongs to this message, be it the command or its reply."""
        message_id, command, *_ = self.header
        return HEADER.pack(message_id, command, HEADER_SIZE, HeaderFlag.REPLY | HeaderFlag.ERROR, number)


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of a message.

    ``data`` goes on in its place (None: nothing does) ``delay`` seconds later, with its descriptors if it
    keeps ``fds``; ``answer`` goes back to its sender; ``disconnect`` cuts both ends off; ``remark`` says
    what was done.
    """

    data: bytes | None
    fds: bool = True
    delay: float = 0.0
    answer: bytes | None = None
    disconnect: bool = False
    remark: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class When:
    """Which messages a fault meets: those that fulfil every condition, by count, chance and time.

    ``offset`` is a range of bytes in the region, or of addresses for DMA; an access that touches it counts.
    Of the messages that match, only the ``nth`` (1 is the first), or ``every`` so manyth; of these each with
    a ``probability``; none before ``after`` seconds of the connection have passed. ``index`` and ``vector``
    are an interrupt's.
    """

    command: Command | None = None
    direction: Direction | None = None
    region: int | None = None
    offset: range | None = None
    index: IrqIndex | None = None
    vector: int | None = None
    nth: int | None = None
    every: int | None = None
    probability: float = 1.0
    after: float = 0.0

    def matches(self, message: Passing, part: Part) -> bool:
        """Whether `message` fulfils the conditions on messages; with no direction, it has to be a `part`."""
        if self.direction is not None:
            if message.direction is not self.direction:
                return False
        elif message.part is not part:
            return False
        if self.command is not None and message.header[1] != self.command:
            return False
        if self.region is None and self.offset is None:
            return True
        if message.access is None:
            return False
        region, offset, count = message.access
        if self.region is not None and region != self.region:
            return False
        return self.offset is None or (offset < self.offset.stop and offset + count > self.offset.start)

    def matches_interrupt(self, index: int, vector: int) -> bool:
        """Whether an interrupt fulfils the conditions on interrupts."""
        return self.index in (None, index) and self.vector in (None, vector)


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to messages; ``when`` says to which. Without a direction to those of its own ``part``."""

    part: ClassVar[Part] = Part.COMMAND

    when: When = field(default_factory=When, kw_only=True)

    def act(self, message: Passing, random: Random) -> Fate | None:
        """The fate of `message`, which has met the conditions; None where nothing can be done to it."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Delay(Fault):
    """Holds a message, and all behind it, back for ``seconds``."""

    seconds: float

    def act(self, message: Passing, random: Random) -> Fate:
        """The same message, later."""
        return Fate(message.data, delay=self.seconds, remark=f"delayed by {self.seconds * 1000:g} ms")


@dataclass(frozen=True, slots=True)
class Error(Fault):
    """Answers a command with ``errno`` in the receiver's place, or puts an error in the place of a reply."""

    errno: int = errno.EIO

    def act(self, message: Passing, random: Random) -> Fate:
        """An error reply back for a command, onward for a reply."""
        refusal = message.error_reply(self.errno)
        name = errno.errorcode.get(self.errno, str(self.errno))
        if message.part is Part.REPLY:
            return Fate(refusal, fds=False, remark=f"replaced by {name}, {MADE_UP}")
        answer = None if message.header[3] & HeaderFlag.NO_REPLY else refusal
        return Fate(None, answer=answer, remark=f"answered with {name}, {NOT_FORWARDED}")


@dataclass(frozen=True, slots=True)
class Flip(Fault):
    """Flips ``bits`` different bits, chosen by chance, in a message's data.

    The data is what was read or is to be written where the message has some, else all of its payload.
    """

    part: ClassVar[Part] = Part.REPLY

    bits: int = 1

    def act(self, message: Passing, random: Random) -> Fate | None:
        """The message with its bits flipped; a message without payload stays as it is."""
        data = bytearray(message.data)
        accesses = message.header[1] in WITH_REGION + WITH_ADDRESS and len(data) > ACCESS_END
        start = ACCESS_END if accesses else HEADER_SIZE
        room = 8 * (len(data) - start)
        if room <= 0:
            return None
        flipped = sorted(random.sample(range(room), min(self.bits, room)))
        for place in flipped:
            data[start + place // 8] ^= 1 << place % 8
        places = ", ".join(f"{place % 8} of byte {start + place // 8}" for place in flipped)
        return Fate(bytes(data), remark=f"flipped bit {places}")


@dataclass(frozen=True, slots=True)
class Disconnect(Fault):
    """Cuts both ends off in the place of a message; or, with ``at``, so many seconds after the start."""

    at: float | None = None

    def act(self, message: Passing, random: Random) -> Fate | None:
        """Both ends cut off, unless the time says when."""
        if self.at is not None:
            return None
        return Fate(None, disconnect=True, remark=f"both ends cut off, {NOT_FORWARDED}")


@dataclass(frozen=True, slots=True)
class DropInterrupt(Fault):
    """Swallows interrupts on their way to the client, by its conditions ``index`` and ``vector``."""

    def act(self, message: Passing, random: Random) -> None:
        """Messages are left alone."""


class _Counted:
    """One fault on one connection: how many matches it has seen, and its own chance."""

    def __init__(self, fault: Fault, random: Random) -> None:
        self.fault = fault
        self.random = random
        self._matches = 0

    def is_due(self, seconds: float) -> bool:
        """Whether the match that has just come is one to act on."""
        when = self.fault.when
        if seconds < when.after:
            return False
        self._matches += 1
        if when.nth is not None and self._matches != when.nth:
            return False
        if when.every is not None and self._matches % when.every:
            return False
        return when.probability >= 1.0 or self.random.random() < when.probability


class Faults:
    """The faults of one connection, in their order; ``seed`` is their chance.

    ``on_messages`` and ``on_interrupts`` are those that have to be asked at all.

    >>> faults = Faults([Error(errno.ENODEV, when=When(command=Command.DEVICE_RESET, nth=2))], seed="7")
    >>> reset = Passing(HEADER.pack(1, Command.DEVICE_RESET, 16, 0, 0), Direction.TO_SERVER)
    >>> faults.judge(reset, 0.0).remark, faults.judge(reset, 0.0).remark
    ('', 'answered with ENODEV, not forwarded')
    """

    def __init__(self, faults: Iterable[Fault], seed: str) -> None:
        counted = [_Counted(fault, Random(f"{seed} {number}")) for number, fault in enumerate(faults)]
        self.on_messages = [each for each in counted if not isinstance(each.fault, DropInterrupt)]
        self.on_interrupts = [each for each in counted if isinstance(each.fault, DropInterrupt)]

    def judge(self, message: Passing, seconds: float) -> Fate:
        """The fate of a message that came `seconds` after the connection's start."""
        fate = Fate(message.data)
        for each in self.on_messages:
            if not (each.fault.when.matches(message, each.fault.part) and each.is_due(seconds)):
                continue
            more = each.fault.act(message, each.random)
            if more is None:
                continue
            fate = replace(
                more,
                fds=fate.fds and more.fds,
                delay=fate.delay + more.delay,
                remark="; ".join(filter(None, (fate.remark, more.remark))),
            )
            if fate.data is None:
                break
            message = Passing(fate.data, message.direction)
        return fate

    def drops(self, index: int, vector: int, seconds: float) -> bool:
        """Whether this interrupt is swallowed."""
        # All of them count, whichever is first to drop it.
        due = [
            each.is_due(seconds)
            for each in self.on_interrupts
            if each.fault.when.matches_interrupt(index, vector)
        ]
        return any(due)
