"""Between a server's eventfds and its client's: each signal goes on unless it is to be dropped.

vfio-user specification, "VFIO_USER_DEVICE_SET_IRQS". Interrupts are no messages: they pass by the socket,
through eventfds that the client has given the server. So the server gets one of ours in the place of each.
"""

import logging
import os
import select
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from outboard.descriptors import close_all
from outboard.errors import RemoteProtocolError
from outboard.loop import Loop
from outboard.protocol.messages import IrqIndex, SetIrqs, SetIrqsFlag
from outboard.protocol.wire import HEADER, HEADER_SIZE, HeaderFlag

log = logging.getLogger(__name__)

MOST_PAIRS = 2 * 2048
"""What PCI's MSI-X has, assigned anew all at once: eventfds beyond that are passed on as they are."""
MOST_ASKED = 256
"""Commands that wait for their replies; of more, the oldest is taken for done."""
MOST_SIGNALS = 1000
"""Signals of one eventfd that are told apart when they were counted together."""
ASSIGN = SetIrqsFlag.DATA_EVENTFD | SetIrqsFlag.TRIGGER
DISABLE = SetIrqsFlag.DATA_NONE | SetIrqsFlag.TRIGGER

Vector = tuple[int, int]
"""Interrupt index and vector."""
Pair = tuple[int, int]
"""Our eventfd, which the server signals, and the client's."""


@dataclass(frozen=True, slots=True)
class Change:
    """What a command asks for: in the place of what an index's ``vectors`` have, ``assigned``."""

    index: int
    vectors: range
    assigned: dict[Vector, Pair]


class Interrupts:
    """The interrupts of one connection. ``drops(index, vector)`` is asked about every signal."""

    def __init__(self, loop: Loop, drops: Callable[[int, int], bool]) -> None:
        self._loop = loop
        self._drops = drops
        self._between: dict[Vector, Pair] = {}
        self._asked: dict[int, Change] = {}  # by message id

    def stand_between(self, command: bytes, fds: Sequence[int]) -> Sequence[int]:
        """What goes to the server in place of a DEVICE_SET_IRQS command's descriptors, which become ours.

        The descriptors returned are the caller's to close. What the vectors had before stays served until
        `answered`: a server that refuses the command still signals that.
        """
        try:
            body = SetIrqs.decode(command[HEADER_SIZE:])
        except RemoteProtocolError:
            return fds
        if body.flags == DISABLE and not body.count:
            change = Change(body.index, range(1 << 32), {})
        elif body.flags == ASSIGN:
            change = Change(body.index, range(body.start, body.start + body.count), {})
            fds = [self._assign(change, body.start + number, fd) for number, fd in enumerate(fds)]
        else:
            return fds
        message_id, _, _, flags, _ = HEADER.unpack_from(command)
        self._settle(message_id, refused=False)
        self._asked[message_id] = change
        if flags & HeaderFlag.NO_REPLY:
            self._settle(message_id, refused=False)
        elif len(self._asked) > MOST_ASKED:
            self._settle(next(iter(self._asked)), refused=False)
        return fds

    def answered(self, reply: bytes) -> None:
        """Takes note of the server's reply to a DEVICE_SET_IRQS command."""
        message_id, _, _, flags, _ = HEADER.unpack_from(reply)
        self._settle(message_id, refused=bool(flags & HeaderFlag.ERROR))

    def close(self) -> None:
        """Lets go of every vector."""
        for message_id in [*self._asked]:
            self._settle(message_id, refused=True)
        self._release(self._between.values())
        self._between.clear()

    def _settle(self, message_id: int, *, refused: bool) -> None:
        change = self._asked.pop(message_id, None)
        if change is None:
            return
        if refused:
            self._release(change.assigned.values())
            return
        gone = [each for each in self._between if each[0] == change.index and each[1] in change.vectors]
        self._release([self._between.pop(each) for each in gone])
        self._between |= change.assigned

    def _assign(self, change: "Change", number: int, theirs: int) -> int:
        vector = change.index, number
        held = len(self._between) + sum(len(each.assigned) for each in (*self._asked.values(), change))
        if held >= MOST_PAIRS or number not in change.vectors:
            return theirs
        try:
            ours = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        except OSError as error:
            log.warning("no interrupts of vector %d can be dropped: %s", vector[1], error.strerror)
            return theirs
        change.assigned[vector] = ours, theirs
        self._loop.watch(ours, partial(self._pass_on, vector, ours, theirs))
        return os.dup(ours)

    def _pass_on(self, vector: Vector, ours: int, theirs: int) -> None:
        try:
            count = min(os.eventfd_read(ours), MOST_SIGNALS)
        except BlockingIOError:
            return
        dropped = sum(self._drops(*vector) for _ in range(count))
        if dropped:
            index = vector[0]
            name = IrqIndex(index).name if index in IrqIndex.__members__.values() else str(index)
            log.info("dropped %d of %d interrupts of %s vector %d", dropped, count, name, vector[1])
        poll = select.poll()
        poll.register(theirs, select.POLLOUT)
        # A full counter would block us, and tells the client as much.
        if count > dropped and any(events & select.POLLOUT for _, events in poll.poll(0)):
            with suppress(OSError):
                os.eventfd_write(theirs, count - dropped)

    def _release(self, pairs: Iterable[Pair]) -> None:
        for ours, theirs in pairs:
            self._loop.unwatch(ours)
            close_all((ours, theirs))
