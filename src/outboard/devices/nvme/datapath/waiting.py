"""Commands of limited namespaces that wait for their time in Python.

They are those of queues that no loop serves, and what a loop held when it had to give it back. They take
tickets as the loop's commands do (`limits`), and wait in lanes of their own.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from outboard.devices.nvme.command import Command
from outboard.devices.nvme.datapath.limits import NEITHER, direction, refund, ticket
from outboard.devices.nvme.namespace import Namespace
from outboard.devices.nvme.queues import SubmissionQueue
from outboard.devices.nvme.spec import SQE_SIZE
from outboard.native.words import Block

MOST = 4096
"""Commands that may wait here; more than that wait in their queues."""

FUSE = 0x3

Waiter = tuple[SubmissionQueue, bytes]


@dataclass(slots=True)
class _Lane:
    """``due``: when the first command is (0: it has no ticket), by the limits in their state ``changes``."""

    commands: deque[Waiter] = field(default_factory=deque)
    due: int = 0
    changes: int = 0


class Waiting:
    """The commands that wait, by the namespaces there are, and by what they do with blocks.

    ``noticed`` is called when some have come that did not come through Python.
    """

    def __init__(self, namespaces: Mapping[int, Namespace]) -> None:
        self.noticed: Callable[[], None] = lambda: None
        self._namespaces = namespaces
        self._lanes: dict[tuple[int, int], _Lane] = {}
        self._entry = Block(SQE_SIZE)

    def __len__(self) -> int:
        return sum(len(lane.commands) for lane in self._lanes.values())

    @property
    def full(self) -> bool:
        """Whether no more may come from queues."""
        return len(self) >= MOST

    def concerns(self, command: Command) -> bool:
        """Whether a command has to wait for its time. Fused ones do not: nothing may come in between."""
        space = self._namespaces.get(command.nsid)
        limited = space is not None and space.limits.active
        return limited and direction(command.opcode) != NEITHER and command.flags & FUSE == 0

    def charge(self, *commands: Command) -> None:
        """Have those pay that come later for commands that did not wait."""
        for command in commands:
            space = self._namespaces.get(command.nsid)
            if space is not None and space.limits.active:
                self._entry.bytes[:] = command.encode()
                ticket(space.limits.address, self._entry.address, _shift(space), time.monotonic_ns())

    def put(self, sq: SubmissionQueue, entry: bytes) -> None:
        """Have a command wait that was taken from its queue."""
        command = Command.decode(entry)
        lane = self._lanes.setdefault((command.nsid, direction(command.opcode)), _Lane())
        lane.commands.append((sq, entry))

    def pop(self, now: int) -> Waiter | None:
        """Take a command that is due by the monotonic clock, None if none is."""
        for key, lane in self._lanes.items():
            if self._due(key[0], lane, now) <= now:
                lane.due = 0
                waiter = lane.commands.popleft()
                if lane.commands:
                    # To the end, so that the others have their turns.
                    self._lanes[key] = self._lanes.pop(key)
                else:
                    del self._lanes[key]
                return waiter
        return None

    def due_in(self, now: int) -> int:
        """In how many nanoseconds a command is due, -1 if none waits."""
        times = [self._due(nsid, lane, now) for (nsid, _), lane in self._lanes.items()]
        return max(min(times) - now, 0) if times else -1

    def take(self, wanted: Callable[[SubmissionQueue, bytes], bool]) -> list[bytes]:
        """Take out the commands that are ``wanted``."""
        taken = []
        for (nsid, does), lane in list(self._lanes.items()):
            first = lane.commands[0]
            going = [waiter for waiter in lane.commands if wanted(*waiter)]
            if not going:
                continue
            if first is going[0]:
                self._void(nsid, lane)
            taken += [entry for _, entry in going]
            lane.commands = deque(waiter for waiter in lane.commands if not wanted(*waiter))
            if not lane.commands:
                del self._lanes[nsid, does]
        return taken

    def each(self) -> list[Waiter]:
        """All of them; they wait on."""
        return [waiter for lane in self._lanes.values() for waiter in lane.commands]

    def _due(self, nsid: int, lane: _Lane, now: int) -> int:
        """When the first command of a lane is due: at once, if nothing limits it any more."""
        space = self._namespaces.get(nsid)
        if space is None or not space.limits.active:
            return now
        if lane.due == 0 or lane.changes != space.limits.changes:
            lane.changes = space.limits.changes
            lane.due = ticket(space.limits.address, self._copied(lane), _shift(space), now)
        return lane.due

    def _void(self, nsid: int, lane: _Lane) -> None:
        """The first command of a lane will not use its ticket."""
        space = self._namespaces.get(nsid)
        if lane.due and space is not None and lane.changes == space.limits.changes:
            refund(space.limits.address, self._copied(lane), _shift(space))
        lane.due = 0

    def _copied(self, lane: _Lane) -> int:
        """The address of the first command of a lane."""
        self._entry.bytes[:] = lane.commands[0][1]
        return self._entry.address


def _shift(space: Namespace) -> int:
    return space.block_size.bit_length() - 1
