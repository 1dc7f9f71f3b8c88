"""A fault: what goes wrong with commands on purpose, and with which.

One flat record of conditions and effects, so that a test says it in a line and a control socket in a JSON
object. `outboard.devices.nvme.injection` keeps those that are in force; `outboard.devices.nvme.strikes` does
what they say.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from random import Random
from typing import Any, Literal, Self

from outboard.devices.nvme import fault_values as values
from outboard.devices.nvme.admission import EVERYTHING, FLUSHES
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.spec import BROADCAST, AdminOpcode, IoOpcode
from outboard.devices.nvme.status import DO_NOT_RETRY, MORE
from outboard.errors import DefinitionError

Queue = Literal["admin", "io"]
Opcode = int | str | AdminOpcode | IoOpcode
Delay = float | tuple[float, float] | tuple[str, float] | tuple[str, float, float]

_RETRY_DELAY_SHIFT = 11
"""Where CRD is in the 15-bit status field."""

_WITH_BLOCKS = frozenset(
    {
        IoOpcode.WRITE,
        IoOpcode.READ,
        IoOpcode.WRITE_UNCORRECTABLE,
        IoOpcode.COMPARE,
        IoOpcode.WRITE_ZEROES,
        IoOpcode.VERIFY,
        IoOpcode.ZONE_APPEND,
    }
)
_WITH_ONE_BLOCK = frozenset({IoOpcode.COPY, IoOpcode.ZONE_MANAGEMENT_SEND, IoOpcode.ZONE_MANAGEMENT_RECEIVE})
"""Commands that name one block; of Copy it is the first that is written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """With which commands, and what happens to them. Every condition that is given has to hold.

    ``queue``: ``"admin"`` or ``"io"``. ``opcode``: a name (``"read"``, ``"get_log_page"``), a number (then
    with ``queue``), or several. ``nsid``, ``qid`` (submission queue), ``controller`` (CNTLID). ``lba``: the
    command names one of these blocks, first and last, or a single one.

    ``nth``: only the so manyth of the commands that match (1 is the first); ``every``: each so manyth;
    ``count``: at most so many; ``probability``: by chance, the same for the same ``seed``.

    ``status``: how it ends, ``(SCT, SC)``, with Do Not Retry (``dnr``), More (``more``) and Command Retry
    Delay (``crd``, 0 to 3) exactly as given; unless it is torn, the command is not executed. ``delay``:
    seconds before it is executed, or ``(low, high)``, ``("exponential", mean)``, ``("normal", mean,
    deviation)``. ``hang``: it never ends, until the controller is ``"reset"`` or, if it is ``"abort"``, the
    host aborts it.

    ``torn``: of what it writes only the first so many blocks are stored; ``torn_bytes``: bytes. ``flip``: so
    many bits are wrong in what is read, or stored; ``guard`` says what protection information makes of that:
    ``"stale"`` lets it find out, ``"valid"`` does not. ``lie``: what it should flush is not flushed.

    ``lost_interrupt``: it completes, and no interrupt says so (an INTx line tells all the same).
    ``lost_completion``: it is executed, and never completes. ``fatal``: the controller fails (CSTS.CFS).
    ``removal``: the device is gone, every register reads as ones. ``power_cut``: the subsystem loses power.
    With these three the command itself is not executed, unless it is torn.

    Raises `DefinitionError`, which names the key.

    >>> Fault(opcode="read", lba=(8, 15), status=(2, 0x81), dnr=True).to_json()
    {'queue': 'io', 'opcode': ['read'], 'lba': [8, 15], 'status': [2, 129], 'dnr': True}
    """

    queue: Queue | None = None
    opcode: Opcode | tuple[Opcode, ...] = ()
    nsid: int | None = None
    lba: int | tuple[int, int] | None = None
    qid: int | None = None
    controller: int | None = None
    nth: int | None = None
    every: int | None = None
    count: int | None = None
    probability: float = 1.0
    seed: int = 0

    status: tuple[int, int] | int | str | None = None
    dnr: bool = False
    more: bool = False
    crd: int = 0
    delay: Delay | None = None
    hang: Literal["reset", "abort"] | None = None
    torn: int | None = None
    torn_bytes: int | None = None
    flip: int = 0
    guard: Literal["stale", "valid"] = "stale"
    lie: bool = False
    lost_interrupt: bool = False
    lost_completion: bool = False
    fatal: bool = False
    removal: bool = False
    power_cut: bool = False

    def __post_init__(self) -> None:
        for key, parse in values.PARSERS.items():
            self._set(key, parse, getattr(self, key))
        queue, opcodes = values.opcodes(self.queue, self.opcode)
        object.__setattr__(self, "opcode", opcodes)
        if queue is None and (self.lba is not None or self._changes_data):
            queue = "io"
        object.__setattr__(self, "queue", queue)
        self._check()

    @classmethod
    def from_json(cls, document: object) -> Self:
        """The fault that a JSON object names. Raises `DefinitionError`, which names the key."""
        if not isinstance(document, Mapping):
            raise DefinitionError(f"a fault is a JSON object, not {document!r}")
        known = [field.name for field in fields(cls)]
        for key in document:
            if key not in known:
                raise DefinitionError(f"a fault has no {key!r}: it has {', '.join(known)}")
        return cls(**{key: _tuples(value) for key, value in document.items() if value is not None})

    def to_json(self) -> dict[str, Any]:
        """What `from_json` takes; what is as usual is left out."""
        document = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if getattr(self, field.name) != field.default
        }
        if self.opcodes:
            document["opcode"] = [values.name_of(self.queue, opcode) for opcode in self.opcodes]
        return {key: list(value) if isinstance(value, tuple) else value for key, value in document.items()}

    @property
    def opcodes(self) -> tuple[int, ...]:
        """The opcodes it concerns, all of one kind of queue; none: every one."""
        assert isinstance(self.opcode, tuple)
        return self.opcode  # type: ignore[return-value]

    @property
    def field(self) -> int | None:
        """The 15-bit status field, if it has a status."""
        if self.status is None:
            return None
        assert isinstance(self.status, tuple)
        kind, code = self.status
        flags = (DO_NOT_RETRY if self.dnr else 0) | (MORE if self.more else 0)
        return kind << 8 | code | self.crd << _RETRY_DELAY_SHIFT | flags

    @property
    def most(self) -> int | None:
        """How often it can strike; None: without end."""
        return 1 if self.nth is not None else self.count

    @property
    def ends_controller(self) -> bool:
        """Whether the controller does not outlive it."""
        return self.fatal or self.removal or self.power_cut

    @property
    def alters(self) -> bool:
        """Whether the command is executed, and its storage is not as it should be."""
        return self.torn is not None or self.torn_bytes is not None or self.flip > 0 or self.lie

    def seconds(self, random: Random) -> float:
        """How long a command is delayed this time."""
        match self.delay:
            case None:
                return 0.0
            case ("exponential", float(mean)):
                return random.expovariate(1 / mean) if mean else 0.0
            case ("normal", float(mean), float(deviation)):
                return max(0.0, random.gauss(mean, deviation))
            case (float(low), float(high)):
                return random.uniform(low, high)
            case seconds:
                assert isinstance(seconds, float)
                return seconds

    def slow(self, cntlid: int, nsid: int) -> int:
        """The commands on a namespace that have to come to Python for it, as bits by their opcodes."""
        if self.queue == "admin" or self.controller not in (None, cntlid) or self.nsid not in (None, nsid):
            return 0
        concerned = EVERYTHING if not self.opcodes else EVERYTHING & sum(1 << each for each in self.opcodes)
        return concerned if self.lba is None else concerned & ~FLUSHES

    def matches(self, cntlid: int, qid: int, command: Command) -> bool:
        """Whether the conditions on commands hold; the schedule is not looked at."""
        if self.queue is not None and self.queue != ("io" if qid else "admin"):
            return False
        if self.opcodes and command.opcode not in self.opcodes:
            return False
        if self.qid not in (None, qid) or self.controller not in (None, cntlid):
            return False
        if self.nsid is not None and command.nsid not in (self.nsid, BROADCAST):
            return False
        return self.lba is None or self._overlaps(command)

    def _overlaps(self, command: Command) -> bool:
        assert isinstance(self.lba, tuple)
        blocks = blocks_of(command)
        return blocks > 0 and command.slba <= self.lba[1] and self.lba[0] < command.slba + blocks

    @property
    def _changes_data(self) -> bool:
        return self.alters

    def _set(self, key: str, parse: values.Parser, value: object) -> None:
        try:
            object.__setattr__(self, key, parse(value))
        except ValueError as error:
            raise DefinitionError(f"a fault's {key} is {value!r}: {error}") from None

    def _check(self) -> None:
        """Raise `DefinitionError` for what cannot be together, or does nothing."""
        given = {field.name for field in fields(self) if getattr(self, field.name) != field.default}
        if not given & values.EFFECTS:
            raise DefinitionError(
                f"a fault that does nothing: give it one of {', '.join(sorted(values.EFFECTS))}"
            )
        for key, others in values.EXCLUDED.items():
            if key in given and (clash := given & others):
                raise DefinitionError(f"a fault's {key} leaves no room for its {', '.join(sorted(clash))}")
        for key, other in values.NEEDED.items():
            if key in given and other not in given:
                raise DefinitionError(f"a fault's {key} is part of its {other}, which is not given")
        if self.queue == "admin" and (wrong := given & values.OF_BLOCKS):
            raise DefinitionError(f"a fault's {', '.join(sorted(wrong))} is for I/O commands, not admin ones")
        if self.qid is not None and self.queue is not None and (self.qid == 0) != (self.queue == "admin"):
            raise DefinitionError(f"a fault's qid is {self.qid}: 0 is the admin queue, and no other")


def blocks_of(command: Command) -> int:
    """How many blocks an I/O command names, from its starting LBA on; 0 for one that names none."""
    if command.opcode in _WITH_BLOCKS:
        return (command.cdw12 & 0xFFFF) + 1
    return int(command.opcode in _WITH_ONE_BLOCK)


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
