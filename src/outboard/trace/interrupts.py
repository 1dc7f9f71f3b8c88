"""Between a server's eventfds and its client's: each signal goes on unless it is to be dropped.

vfio-user specification, "VFIO_USER_DEVICE_SET_IRQS". Interrupts are no messages: they pass by the socket,
through eventfds that the client has given the server. So the server gets one of ours in the place of each.
"""

import logging
import os
import select
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial

from outboard.descriptors import close_all
from outboard.errors import RemoteProtocolError
from outboard.loop import Loop
from outboard.protocol.messages import IrqIndex, SetIrqs, SetIrqsFlag
from outboard.protocol.wire import HEADER_SIZE

log = logging.getLogger(__name__)

MOST_VECTORS = 2048
"""What PCI's MSI-X has: eventfds for more are passed on as they are."""
MOST_SIGNALS = 1000
"""Signals of one eventfd that are told apart when they were counted together."""
ASSIGN = SetIrqsFlag.DATA_EVENTFD | SetIrqsFlag.TRIGGER
DISABLE = SetIrqsFlag.DATA_NONE | SetIrqsFlag.TRIGGER

Vector = tuple[int, int]
"""Interrupt index and vector."""


class Interrupts:
    """The interrupts of one connection. ``drops(index, vector)`` is asked about every signal."""

    def __init__(self, loop: Loop, drops: Callable[[int, int], bool]) -> None:
        self._loop = loop
        self._drops = drops
        self._between: dict[Vector, tuple[int, int]] = {}  # ours, which the server signals; the client's

    def stand_between(self, command: bytes, fds: Sequence[int]) -> Sequence[int]:
        """What goes to the server in place of a DEVICE_SET_IRQS command's descriptors, which become ours.

        The descriptors returned are the caller's to close.
        """
        try:
            body = SetIrqs.decode(command[HEADER_SIZE:])
        except RemoteProtocolError:
            return fds
        if body.flags == DISABLE and not body.count:
            self._release(vector for vector in [*self._between] if vector[0] == body.index)
            return fds
        if body.flags != ASSIGN:
            return fds
        end = body.start + body.count
        self._release(
            (index, vector)
            for index, vector in [*self._between]
            if index == body.index and body.start <= vector < end
        )
        return [self._assign((body.index, body.start + number), fd) for number, fd in enumerate(fds)]

    def close(self) -> None:
        """Lets go of every vector."""
        self._release([*self._between])

    def _assign(self, vector: Vector, theirs: int) -> int:
        if len(self._between) >= MOST_VECTORS or vector in self._between:
            return theirs
        try:
            ours = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        except OSError as error:
            log.warning("no interrupts of vector %d can be dropped: %s", vector[1], error.strerror)
            return theirs
        self._between[vector] = ours, theirs
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

    def _release(self, vectors: Iterable[Vector]) -> None:
        for vector in vectors:
            ours, theirs = self._between.pop(vector)
            self._loop.unwatch(ours)
            close_all((ours, theirs))
