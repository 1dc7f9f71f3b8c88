"""The two commands of a fused pair find each other (NVMe Base 2.0, 3.4.2).

The first waits in `State.fused`, for the next command of its queue. What a pair does is
`outboard.devices.nvme.fused`'s.
"""

from functools import partial
from typing import TYPE_CHECKING

from outboard.devices.nvme.command import Command
from outboard.devices.nvme.fused import FIRST, FUSE, SECOND, Pair, check_first, compare_and_write
from outboard.devices.nvme.queues import SubmissionQueue
from outboard.devices.nvme.status import CommandFailed, Status

if TYPE_CHECKING:
    from outboard.devices.nvme.controller import Controller

PAIRING = 0.001
"""Seconds until it is looked again whether the second of a fused pair has come."""


class Pairing:
    """The fused commands of one controller's queues."""

    def __init__(self, controller: "Controller") -> None:
        self._controller = controller
        self._state = controller.state

    def concerns(self, sq: SubmissionQueue, command: Command) -> bool:
        """Whether a command is for `take`."""
        return command.flags & FUSE in (FIRST, SECOND) or sq.id in self._state.fused

    def take(self, sq: SubmissionQueue, command: Command) -> None:
        """Take a command that is one of a fused pair, or comes where the second of one should."""
        controller, fuse = self._controller, command.flags & FUSE
        first = self._state.fused.pop(sq.id, None)
        if first is not None and fuse == SECOND:
            self._state.plane.waiting.charge(first, command)
            pair = Pair(first, command)
            work = compare_and_write(self._state, pair)
            controller.begin(sq, (first, command), work, partial(self._ended, pair))
            return
        if first is not None:
            controller.fail(sq, first, _missing("its second did not follow"))
        if fuse == SECOND:
            controller.fail(sq, command, _missing("no first went before it"))
        elif fuse == FIRST:
            try:
                check_first(command)
                self._state.fused[sq.id] = command
            except CommandFailed as failure:
                controller.fail(sq, command, failure)
        else:
            controller.execute_alone(sq, command)

    def end_lonely(self) -> bool:
        """End first commands behind which nothing is in their queue; whether one waits on."""
        for qid, first in list(self._state.fused.items()):
            sq = self._state.submission[qid]
            if not sq.waiting and not self._state.plane.slow:
                del self._state.fused[qid]
                self._controller.fail(sq, first, _missing("its second did not follow"))
        return bool(self._state.fused)

    def _ended(
        self, pair: Pair, sq: SubmissionQueue, commands: tuple[Command, ...], outcome: int | Exception
    ) -> None:
        for number, command in enumerate(commands):
            failure = outcome if isinstance(outcome, Exception) else pair.failures.get(number)
            if failure is not None:
                self._controller.fail(sq, command, failure)
            else:
                self._controller.complete(sq, command.cid, 0, 0)


def _missing(why: str) -> CommandFailed:
    return CommandFailed(Status.ABORTED_MISSING_FUSED, why)
