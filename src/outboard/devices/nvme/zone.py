"""One zone: its state, where it is written next, and what is said of it when that cannot be.

Zoned Namespace Command Set 1.1, 2.1.1.2 (states) and 3.4.2.2.3 (descriptors).
"""

from dataclasses import dataclass
from enum import IntEnum

from outboard.devices.nvme.status import CommandFailed, Status


class ZoneState(IntEnum):
    """The states of a zone, as descriptors have them."""

    EMPTY = 0x1
    IMPLICITLY_OPEN = 0x2
    EXPLICITLY_OPEN = 0x3
    CLOSED = 0x4
    READ_ONLY = 0xD
    FULL = 0xE
    OFFLINE = 0xF


OPEN = frozenset({ZoneState.IMPLICITLY_OPEN, ZoneState.EXPLICITLY_OPEN})
ACTIVE = OPEN | {ZoneState.CLOSED}
WRITABLE = ACTIVE | {ZoneState.EMPTY}

RESET_RECOMMENDED, ZRWA_VALID, EXTENSION_VALID = 1 << 2, 1 << 3, 1 << 7
"""Bits of the attributes of a zone."""


@dataclass(slots=True, eq=False)
class Zone:
    """One zone; everything that counts blocks counts them from the beginning of the namespace.

    ``pointer`` is where it is written next (its end, if it is full). Up to ``written`` there is data: that is
    more in a random write area, and less in a zone that was finished early. ``stored`` is how far of that the
    storage has it, ``told`` how far the host was told that it is written. ``generation`` grows when the
    writes that are under way have become void. ``stale``: the storage may hold something behind ``written``.
    """

    number: int
    start: int
    end: int
    pointer: int
    written: int
    state: ZoneState = ZoneState.EMPTY
    attributes: int = 0
    extension: bytes = b""
    stale: bool = False
    generation: int = 0
    stored: int = 0
    told: int = 0

    @property
    def words(self) -> str:
        """Its state, as it is said."""
        return said(self.state)

    def check_readable(self) -> None:
        """Raise `CommandFailed` if it cannot be read."""
        if self.state is ZoneState.OFFLINE:
            raise CommandFailed(Status.ZONE_IS_OFFLINE, f"zone {self.number} is offline", location=40)

    def check_changeable(self) -> None:
        """Raise `CommandFailed` if what it holds cannot be changed."""
        self.check_readable()
        if self.state is ZoneState.READ_ONLY:
            raise CommandFailed(Status.ZONE_IS_READ_ONLY, f"zone {self.number} is read only", location=40)

    def check_begins(self, lba: int) -> None:
        """Raise `CommandFailed` if it does not begin with this block."""
        if lba != self.start:
            raise CommandFailed(Status.INVALID_FIELD, f"no zone begins with block {lba:#x}", location=40)

    def cannot_become(self, state: ZoneState) -> CommandFailed:
        """What ends a command that would have it in a state to which none leads from its own."""
        return CommandFailed(
            Status.INVALID_ZONE_STATE_TRANSITION,
            f"zone {self.number} is {self.words}, and cannot become {said(state)}",
            location=52,
        )


def said(state: ZoneState) -> str:
    """A state in words."""
    return state.name.lower().replace("_", " ")
