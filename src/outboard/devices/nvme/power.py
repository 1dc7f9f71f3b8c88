"""Power states, and the temperatures at which a host may have a controller throttle (NVMe Base 2.0, 8.15).

A virtual controller draws nothing and is as fast in each of them: they are there so that a host's power
management has something to manage. I/O brings a controller that idles back to the last state that allows it.
"""

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from outboard.devices.nvme.spec import FeatureId

if TYPE_CHECKING:
    from outboard.devices.nvme.state import State

_DESCRIPTOR = struct.Struct("<HBBIIBBBBHBxHB9x")
_NON_OPERATIONAL, _FINE_SCALE = 1 << 1, 1 << 0
_IDLE_SCALE = 0b01 << 6  # 0.1 mW
_ACTIVE = 0b10 << 6 | 0b010  # 10 mW, measured over a heavy load

COOLEST, HOTTEST = 273, 353
"""Kelvins between which a host may set the temperatures to throttle at (MNTMT, MXTMT)."""


@dataclass(frozen=True, slots=True)
class PowerState:
    """What a state draws at most (milliwatts), and microseconds to enter and leave it.

    ``operational``: I/O is executed in it. ``rank`` is its place among the operational states, from the best.
    """

    power: int
    entry: int = 0
    exit: int = 0
    operational: bool = True
    rank: int = 0

    @property
    def descriptor(self) -> bytes:
        """The 32 bytes of Identify Controller."""
        fine = not self.operational
        return _DESCRIPTOR.pack(
            self.power * 10 if fine else self.power // 10,
            0,
            (_NON_OPERATIONAL | _FINE_SCALE) if fine else 0,
            self.entry,
            self.exit,
            *(self.rank,) * 4,
            self.power * 10 if fine else 0,
            _IDLE_SCALE if fine else 0,
            0 if fine else self.power // 10,
            0 if fine else _ACTIVE,
        )


POWER_STATES = (
    PowerState(25_000),
    PowerState(12_000, rank=1),
    PowerState(50, entry=1_000, exit=2_000, operational=False, rank=1),
    PowerState(5, entry=2_000, exit=10_000, operational=False, rank=1),
)
"""The states there are; a host names them by their place here."""


def enter(state: "State", wanted: int) -> None:
    """The host chose power state ``wanted``: note where to go back to, if it is one without I/O."""
    wake(state)
    before = state.features.resting
    awake = before[1] if before else state.features.get(FeatureId.POWER_MANAGEMENT) & 0x1F
    resting = not POWER_STATES[wanted].operational
    state.features.resting = (_commands(state), awake) if resting else None


def began(state: "State") -> None:
    """The controller was enabled, perhaps in a saved state without I/O: I/O will bring it to the best one."""
    current = state.features.get(FeatureId.POWER_MANAGEMENT) & 0x1F
    if current < len(POWER_STATES) and not POWER_STATES[current].operational:
        state.features.resting = (_commands(state), 0)


def wake(state: "State") -> None:
    """Go back to the last state with I/O, if there was some since."""
    features = state.features
    if features.resting and features.resting[0] != _commands(state):
        workload = features.get(FeatureId.POWER_MANAGEMENT) & ~0x1F
        features.set(FeatureId.POWER_MANAGEMENT, workload | features.resting[1])
        features.resting = None


def _commands(state: "State") -> int:
    """How many reads and writes there have been."""
    return sum(state.health.totals[:2])
