"""Whoever runs a drive, who does what can be done to it while hosts are at it."""

import random
from contextlib import suppress

from outboard.devices.nvme import AnaState, Namespace, Subsystem, ZoneState
from outboard.devices.nvme.qos import Qos
from outboard.errors import DefinitionError, StorageError


class Operator:
    """Does something to a subsystem, as ``chance`` decides: `did` says what.

    `changed` are the namespaces that may hold something else afterwards.
    """

    def __init__(self, chance: random.Random, subsystem: Subsystem, *, limits: bool) -> None:
        """``limits``: also what makes commands wait for their time."""
        self.chance, self.subsystem, self.limits = chance, subsystem, limits
        self.did = ""
        self.changed: set[int] = set()

    def act(self) -> None:
        """Do one thing; what cannot be is refused, as it should."""
        actions = [self.reach, self.wear, self.resize, self.fail_zone, self.replace]
        if self.limits:
            actions.append(self.limit)
        with suppress(DefinitionError, StorageError):
            self.chance.choice(actions)()

    def _space(self) -> Namespace:
        return self.chance.choice(list(self.subsystem.namespaces.values()))

    def reach(self) -> None:
        """Let a controller have other access to a group of namespaces."""
        cntlid = self.chance.choice(list(self.subsystem.controllers))
        group = self.chance.choice((1, 2, 32))
        state = self.chance.choice((AnaState.OPTIMIZED, *AnaState))
        self.did = f"ANA group {group} of controller {cntlid} is {state.name}"
        self.subsystem.set_ana(cntlid, group, state)

    def wear(self) -> None:
        """Let the drive be hot or cold, worn, unreliable, or read only."""
        values = self.chance.choice(
            (
                {"temperature": self.chance.choice((250, 310, 350, 400))},
                {"spare": self.chance.choice((0, 100))},
                {"unreliable": self.chance.random() < 0.5},
                {"read_only": self.chance.random() < 0.3},
            )
        )
        self.did = f"vitals {values}"
        self.subsystem.set_vitals(**values)

    def resize(self) -> None:
        """Let a namespace grow or shrink."""
        space = self._space()
        size = self.chance.choice((space.storage.size * 2, space.storage.size // 2, 256 << 10, 4608, 1))
        self.did = f"namespace {space.nsid} has {size} bytes"
        self.changed.add(space.nsid)
        self.subsystem.resize(space.nsid, min(size, 1 << 20))

    def fail_zone(self) -> None:
        """Let a zone fail."""
        space = self._space()
        if space.zones is not None:
            number = self.chance.randrange(10)
            state = self.chance.choice((ZoneState.READ_ONLY, ZoneState.READ_ONLY, ZoneState.OFFLINE))
            self.did = f"zone {number} of namespace {space.nsid} is {state.name}"
            self.changed.add(space.nsid)
            space.zones.set_state(number, state)

    def limit(self) -> None:
        """Limit a namespace, or do not any more."""
        space, rates = self._space(), (0, 0, 500, 5000, 10_000_000)
        qos = Qos(
            self.chance.choice(rates), self.chance.choice((0, 50 << 20)), *self.chance.choices(rates, k=2)
        )
        self.did = f"namespace {space.nsid} is limited: {qos}"
        self.subsystem.set_qos(space.nsid, qos or None)

    def replace(self) -> None:
        """Take a namespace out, and put it in again."""
        space = self._space()
        nsid = space.nsid
        if not space.created:
            self.did = f"namespace {nsid} is removed, and there again"
            self.subsystem.add(self.subsystem.remove(nsid), nsid)
