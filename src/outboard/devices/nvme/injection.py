"""The faults that are in force in a subsystem, how often each struck, and what becomes of a command.

All of a subsystem's faults are asked about each command that comes to Python, in the order in which they
were injected; several may strike one command. The same faults and the same commands, in the same order, give
the same: each fault has a chance of its own, from its seed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from outboard.devices.nvme.command import Command
from outboard.devices.nvme.faults import Fault
from outboard.devices.nvme.monitor import Monitor
from outboard.errors import DefinitionError


@dataclass(slots=True)
class Injection:
    """A fault in force: how many commands have met its conditions, and how many of them it struck."""

    id: int
    fault: Fault
    matched: int = 0
    struck: int = 0
    random: Random = field(default_factory=Random, repr=False)

    def __post_init__(self) -> None:
        self.random.seed(self.fault.seed)

    @property
    def spent(self) -> bool:
        """Whether it cannot strike any more."""
        most, nth = self.fault.most, self.fault.nth
        return (most is not None and self.struck >= most) or (nth is not None and self.matched >= nth)

    def strikes(self, cntlid: int, qid: int, command: Command) -> bool:
        """Whether it strikes this command; it is counted."""
        fault = self.fault
        if self.spent or not fault.matches(cntlid, qid, command):
            return False
        self.matched += 1
        if fault.nth is not None and self.matched != fault.nth:
            return False
        if fault.every is not None and self.matched % fault.every:
            return False
        if fault.probability < 1 and self.random.random() >= fault.probability:
            return False
        self.struck += 1
        return True

    def to_json(self) -> dict[str, Any]:
        """For a control socket."""
        return {
            "id": self.id,
            "fault": self.fault.to_json(),
            "matched": self.matched,
            "struck": self.struck,
        }


@dataclass(frozen=True, slots=True)
class Strike:
    """What happens to one command: the faults that struck it, and their chance for this command."""

    faults: tuple[Fault, ...]
    delay: float
    seed: int

    @property
    def field(self) -> int | None:
        """The 15-bit status field of the first fault that has one."""
        return next((fault.field for fault in self.faults if fault.field is not None), None)

    @property
    def hang(self) -> str | None:
        """Whether it never ends, and until when."""
        return next((fault.hang for fault in self.faults if fault.hang), None)


class Faults:
    """The faults of a subsystem; to be used from any thread. ``changed`` is called when others are concerned.

    >>> from outboard.storage import open_storage
    >>> from outboard.devices.nvme import Fault, Nvme
    >>> disk = Nvme(open_storage("ram:64M"))
    >>> bad_block = disk.faults.inject(Fault(opcode="read", lba=(8, 15), status=(2, 0x81)))
    >>> [(each.id, each.struck) for each in disk.faults.list()]
    [(1, 0)]
    >>> disk.faults.remove(bad_block)
    """

    def __init__(self, turn: Monitor, changed: Callable[[], None]) -> None:
        self._turn = turn
        self._changed = changed
        self._injected: dict[int, Injection] = {}
        self._last = 0
        self.armed = False
        """Whether any fault may still strike: while it is False, nothing has to be asked."""

    def inject(self, fault: Fault) -> int:
        """Put a fault into force, for commands that are begun from now on; its identifier."""
        with self._turn:
            self._last += 1
            self._injected[self._last] = Injection(self._last, fault)
            self._look_again()
            return self._last

    def remove(self, id: int) -> None:
        """Lift a fault; what it holds stays held. Raises `DefinitionError` if there is none."""
        with self._turn:
            if self._injected.pop(id, None) is None:
                raise DefinitionError(f"there is no fault {id}: it was removed, or never injected")
            self._look_again()

    def clear(self) -> None:
        """Lift all of them."""
        with self._turn:
            self._injected.clear()
            self._look_again()

    def __getitem__(self, id: int) -> Injection:
        return self._injected[id]

    def slow(self, cntlid: int, nsid: int) -> int:
        """The commands on a namespace that a data plane has to leave to Python, as bits by their opcodes."""
        opcodes = 0
        for injection in self._injected.values():
            if not injection.spent:
                opcodes |= injection.fault.slow(cntlid, nsid)
        return opcodes

    def strike(self, cntlid: int, qid: int, command: Command) -> Strike | None:
        """What happens to a command that is about to be executed; None: nothing out of the ordinary."""
        injected = self._injected.values()
        struck = [injection for injection in injected if injection.strikes(cntlid, qid, command)]
        if not struck:
            return None
        strike = Strike(
            tuple(injection.fault for injection in struck),
            sum(injection.fault.seconds(injection.random) for injection in struck),
            struck[0].random.getrandbits(64),
        )
        if any(injection.spent for injection in struck):
            self._look_again()
        return strike

    def list(self) -> Sequence[Injection]:
        """Those in force and those that are spent, in the order in which they were injected."""
        with self._turn:
            return [*self._injected.values()]

    def _look_again(self) -> None:
        self.armed = any(not injection.spent for injection in self._injected.values())
        self._changed()
