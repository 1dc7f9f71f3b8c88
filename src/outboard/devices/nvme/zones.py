"""Zones: what state each is in, where it is written next, and what of that a command changes.

Zoned Namespace Command Set 1.1, 2.1.1 (state machine, resources); random write areas: TP4076. The commands
are in `outboard.devices.nvme.zone_commands`. A write moves the pointer before its data is stored, so that the
next one may come meanwhile; if it then fails, the pointer goes back, and whatever was under way behind it
fails as well.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from outboard.devices.nvme.status import CommandFailed, Status
from outboard.devices.nvme.zone import (
    ACTIVE,
    EXTENSION_VALID,
    OPEN,
    RESET_RECOMMENDED,
    WRITABLE,
    ZRWA_VALID,
    Zone,
    ZoneState,
)
from outboard.devices.nvme.zone_layout import MOST_ZONES, Geometry
from outboard.errors import DefinitionError


class Zones:
    """The zones of a namespace of ``blocks`` blocks; what is left over behind the last one is not used.

    ``keep`` is called for a zone that is not as it was, ``told`` for one that the host should hear of,
    ``reached`` when reads have to be looked at by Python from now on, or need not be any more.
    ``dirty`` are the zones that were written since the last flush, in the order of their numbers;
    it is looked at in other threads, with ``lock``.

    Raises `DefinitionError` if there is no zone, or there are too many.
    """

    def __init__(self, geometry: Geometry, blocks: int) -> None:
        self.geometry = geometry
        self.zones: list[Zone] = []
        self.turn: AbstractContextManager[object] = nullcontext()
        self.keep: Callable[[Zone], None] = lambda zone: None
        self.told: Callable[[Zone], None] = lambda zone: None
        self.reached: Callable[[], None] = lambda: None
        self.lock = threading.Lock()
        self.dirty: set[int] = set()
        self._opened: dict[Zone, None] = {}
        self._by_state = dict.fromkeys(ZoneState, 0)
        self._windows = self._stale = 0
        self.measure(blocks)
        if not self.zones:
            raise DefinitionError(f"{blocks} blocks are no zone of {geometry.size}: make the storage larger")

    def measure(self, blocks: int) -> None:
        """The namespace has so many blocks now: zones are added for those that are new, others are gone."""
        geometry, first = self.geometry, len(self.zones)
        count = blocks // geometry.size
        if count > MOST_ZONES:
            raise DefinitionError(f"{count} zones are more than {MOST_ZONES}: make them larger")
        for number in range(first, count):
            start = number * geometry.size
            self.zones.append(
                Zone(number, start, start + geometry.capacity, start, start, stored=start, told=start)
            )
        self._by_state[ZoneState.EMPTY] += max(0, count - first)
        for zone in self.zones[count:]:
            zone.generation += 1
            self._empty(zone)
            self.mark_stale(zone, False)
            self._by_state[ZoneState.EMPTY] -= 1
        del self.zones[count:]
        with self.lock:
            self.dirty.difference_update(range(count, first))

    @property
    def blocks(self) -> int:
        """How many blocks all zones have."""
        return len(self.zones) * self.geometry.size

    @property
    def active(self) -> int:
        """How many zones are active."""
        return sum(self._by_state[state] for state in ACTIVE)

    @property
    def open(self) -> int:
        """How many of those are open."""
        return sum(self._by_state[state] for state in OPEN)

    @property
    def readable_at_once(self) -> bool:
        """Whether every read is right that is made of the storage without a look at its zone."""
        return self.geometry.layout.cross_read and not self._stale and not self._by_state[ZoneState.OFFLINE]

    @property
    def windows(self) -> int:
        """How many random write areas there are, free or not."""
        layout = self.geometry.layout
        return layout.zrwa_resources or layout.most_active or layout.most_open or len(self.zones)

    def at(self, lba: int) -> Zone:
        """The zone of a block."""
        return self.zones[lba // self.geometry.size]

    def having(self, *states: ZoneState) -> list[Zone]:
        """The zones in one of these states."""
        if not any(self._by_state[state] for state in states):
            return []
        return [zone for zone in self.zones if zone.state in states]

    # Reads and writes.

    def check_read(self, slba: int, count: int) -> None:
        """Raise `CommandFailed` if blocks cannot be read: over a boundary, or of a zone that is offline."""
        first, last = self.at(slba), self.at(slba + count - 1)
        if first is not last and not self.geometry.layout.cross_read:
            raise CommandFailed(
                Status.ZONED_BOUNDARY_ERROR,
                f"blocks {slba:#x}..{slba + count:#x} are of two zones",
                location=40,
            )
        for zone in self.zones[first.number : last.number + 1]:
            zone.check_readable()

    @contextmanager
    def writing(self, slba: int, count: int) -> Iterator[None]:
        """Write blocks while the block runs: the pointer moves at once, and back if the block fails.

        Raises `CommandFailed` if they cannot be written, or have become void meanwhile.
        """
        zone = self._begin(slba, count)
        generation = zone.generation
        try:
            yield
        except BaseException:
            self._undo(zone, slba, generation)
            raise
        if zone.generation != generation:
            raise CommandFailed(
                Status.WRITE_FAULT, f"zone {zone.number} has lost what was written behind a failure"
            )
        zone.told = max(zone.told, slba + count)
        if zone.pointer == zone.end and zone.state in ACTIVE:
            self._become(zone, ZoneState.FULL)

    def check_write(self, slba: int, count: int) -> None:
        """Raise `CommandFailed` if blocks cannot be written now."""
        zone, window = self.at(slba), self.geometry.window
        self._check_writable(zone, slba, count)
        if zone.attributes & ZRWA_VALID:
            possible = zone.pointer <= slba and slba + count <= zone.pointer + 2 * window
        else:
            possible = slba == zone.pointer
        if not possible:
            raise CommandFailed(
                Status.ZONE_INVALID_WRITE,
                f"block {slba:#x} cannot be written: the pointer of zone {zone.number} is {zone.pointer:#x}",
                location=40,
            )

    def check_discard(self, slba: int, count: int) -> None:
        """Raise `CommandFailed` if blocks, one at least, cannot be deallocated."""
        for zone in self.zones[self.at(slba).number : self.at(slba + count - 1).number + 1]:
            zone.check_changeable()

    def append_at(self, slba: int, count: int) -> int:
        """Where blocks go that are appended to the zone that begins at ``slba``; raises `CommandFailed`."""
        zone = self.at(slba)
        zone.check_begins(slba)
        if zone.attributes & ZRWA_VALID:
            raise CommandFailed(Status.INVALID_ZONE_OPERATION, f"zone {zone.number} has a random write area")
        self._check_writable(zone, zone.pointer, count)
        return zone.pointer

    def _check_writable(self, zone: Zone, slba: int, count: int) -> None:
        if zone.state is ZoneState.FULL or (zone.state in ACTIVE and zone.pointer == zone.end):
            raise CommandFailed(Status.ZONE_IS_FULL, f"zone {zone.number} is full", location=40)
        zone.check_changeable()
        if slba + count > zone.end:
            raise CommandFailed(
                Status.ZONED_BOUNDARY_ERROR,
                f"blocks {slba:#x}..{slba + count:#x} go over the end of zone {zone.number}, {zone.end:#x}",
                location=40,
            )

    def _begin(self, slba: int, count: int) -> Zone:
        self.check_write(slba, count)
        zone, window = self.at(slba), self.geometry.window
        self._open(zone, ZoneState.IMPLICITLY_OPEN)
        end = slba + count
        if not zone.attributes & ZRWA_VALID:
            zone.pointer = end
        elif end > zone.pointer + window:
            zone.pointer += _up(end - zone.pointer - window, self.geometry.granularity)
        zone.written = max(zone.written, end)
        with self.lock:
            self.dirty.add(zone.number)
        self.keep(zone)
        return zone

    def _undo(self, zone: Zone, slba: int, generation: int) -> None:
        if zone.generation != generation or zone.state not in ACTIVE or zone.attributes & ZRWA_VALID:
            return
        if zone.told > slba:  # what comes behind is there to stay, and this is lost in front of it
            return
        zone.generation += 1
        zone.pointer = zone.written = zone.stored = slba
        self.mark_stale(zone, True)
        self.keep(zone)

    def mark_stale(self, zone: Zone, stale: bool) -> None:
        """Say whether the storage may hold something behind what was written in a zone."""
        if zone.stale != stale:
            zone.stale = stale
            self._stale += 1 if stale else -1
            if self._stale == stale:
                self.reached()

    # Transitions that a host asks for: each raises `CommandFailed` if it cannot be.

    def open_explicitly(self, zone: Zone, *, window: bool = False) -> None:
        """Open a zone; with ``window``, give it a random write area."""
        if window:
            if not self.geometry.window:
                raise CommandFailed(
                    Status.INVALID_ZONE_OPERATION, "there are no random write areas", location=53
                )
            if zone.state is not ZoneState.EMPTY:
                raise CommandFailed(
                    Status.INVALID_ZONE_OPERATION,
                    f"zone {zone.number} is {zone.words}: only one that is empty gets a random write area",
                    location=53,
                )
            if self._windows >= self.windows:
                raise CommandFailed(Status.ZRWA_RESOURCES_UNAVAILABLE, "every random write area is in use")
        if zone.state not in WRITABLE:
            raise zone.cannot_become(ZoneState.EXPLICITLY_OPEN)
        self._open(zone, ZoneState.EXPLICITLY_OPEN)
        if window:
            zone.attributes |= ZRWA_VALID
            self._windows += 1
        self.keep(zone)

    def close(self, zone: Zone) -> None:
        """Close a zone."""
        if zone.state in OPEN:
            self._become(zone, ZoneState.CLOSED)
        elif zone.state is not ZoneState.CLOSED:
            raise zone.cannot_become(ZoneState.CLOSED)

    def finish(self, zone: Zone) -> None:
        """Make a zone full, however much of it is written."""
        if zone.state in WRITABLE:
            zone.pointer = zone.end
            self._become(zone, ZoneState.FULL)
        elif zone.state is not ZoneState.FULL:
            raise zone.cannot_become(ZoneState.FULL)

    def check_reset(self, zone: Zone) -> None:
        """Raise `CommandFailed` if a zone cannot be made empty."""
        if zone.state not in WRITABLE | {ZoneState.FULL}:
            raise zone.cannot_become(ZoneState.EMPTY)

    def reset(self, zone: Zone) -> None:
        """Make a zone empty; what is under way becomes void."""
        self.check_reset(zone)
        zone.generation += 1
        self._empty(zone)

    def go_offline(self, zone: Zone) -> None:
        """Take a read-only zone offline."""
        if zone.state is ZoneState.READ_ONLY:
            self._become(zone, ZoneState.OFFLINE)
        elif zone.state is not ZoneState.OFFLINE:
            raise zone.cannot_become(ZoneState.OFFLINE)

    def extend(self, zone: Zone, extension: bytes) -> None:
        """Attach something to the descriptor of an empty zone, which is then closed."""
        if zone.state is not ZoneState.EMPTY:
            raise zone.cannot_become(ZoneState.CLOSED)
        self._check_active()
        zone.attributes |= EXTENSION_VALID
        zone.extension = extension
        self._become(zone, ZoneState.CLOSED)

    def commit(self, lba: int) -> None:
        """Move the pointer of a zone behind a block of its random write area."""
        zone = self.at(lba)
        count = lba + 1 - zone.pointer
        if not (
            zone.attributes & ZRWA_VALID
            and 0 < count <= self.geometry.window
            and (count % self.geometry.granularity == 0)
            and lba < zone.end
        ):
            raise CommandFailed(
                Status.INVALID_ZONE_OPERATION,
                f"no random write area can be committed up to block {lba:#x}",
                location=40,
            )
        self._open(zone, ZoneState.IMPLICITLY_OPEN)
        zone.pointer = lba + 1
        zone.written = max(zone.written, zone.pointer)
        with self.lock:
            self.dirty.add(zone.number)
        if zone.pointer == zone.end:
            self._become(zone, ZoneState.FULL)
        self.keep(zone)

    def check_open(self, zones: list[Zone]) -> None:
        """Raise `CommandFailed` if these zones, which are closed, cannot be open all at once."""
        most = self.geometry.layout.most_open
        if most and self._by_state[ZoneState.EXPLICITLY_OPEN] + len(zones) > most:
            raise CommandFailed(
                Status.TOO_MANY_OPEN_ZONES, f"{most} zones may be open, {len(zones)} are closed"
            )

    # What happens to zones without a host.

    def set_state(self, number: int, state: ZoneState) -> None:
        """Let zone ``number`` fail: it is `READ_ONLY` or `OFFLINE` now, and the host hears of it.

        From any thread. Raises `DefinitionError` for another state, or a zone that is not there.
        """
        if state not in (ZoneState.READ_ONLY, ZoneState.OFFLINE):
            raise DefinitionError(f"a zone fails to READ_ONLY or OFFLINE, not to {state.name}")
        if not 0 <= number < len(self.zones):
            raise DefinitionError(f"there are zones 0 to {len(self.zones) - 1}, not {number}")
        with self.turn:
            zone = self.zones[number]
            zone.generation += 1
            self._become(zone, state)
            self.told(zone)

    def recommend_reset(self, number: int) -> None:
        """Tell the host that a full zone should be reset soon. From any thread.

        Raises `DefinitionError` if the zone is not there, or not full.
        """
        with self.turn:
            if not 0 <= number < len(self.zones) or self.zones[number].state is not ZoneState.FULL:
                raise DefinitionError(f"zone {number} is not full: there is nothing to reset")
            zone = self.zones[number]
            zone.attributes |= RESET_RECOMMENDED
            self.keep(zone)
            self.told(zone)

    def lose_power(self) -> None:
        """The power is gone and back: no zone is open, and a random write area is committed as it is."""
        for zone in self.having(*ACTIVE):
            if zone.attributes & ZRWA_VALID:
                # Zones that were kept may have had such areas when there still were any.
                reached = zone.start + _up(zone.written - zone.start, self.geometry.granularity or 1)
                zone.pointer = max(zone.pointer, reached)
                self._release_window(zone)
            if zone.pointer == zone.end:
                self._become(zone, ZoneState.FULL)
            elif zone.pointer == zone.start and not zone.attributes & EXTENSION_VALID:
                self._become(zone, ZoneState.EMPTY)
            else:
                self._become(zone, ZoneState.CLOSED)

    def clear(self) -> None:
        """Make every zone empty that is not offline, as a format does that has zeroed the storage."""
        for zone in self.zones:
            if zone.state is not ZoneState.OFFLINE:
                zone.generation += 1
                self._empty(zone)

    def restore(
        self,
        zone: Zone,
        state: ZoneState,
        attributes: int,
        pointer: int,
        written: int,
        extension: bytes,
        stale: bool,
    ) -> None:
        """Bring a zone back that was kept; raises ValueError if there can be no such zone."""
        if not (zone.start <= pointer <= zone.end and zone.start <= written <= zone.end):
            raise ValueError(f"zone {zone.number} is kept with a pointer that lies outside")
        self._windows += bool(attributes & ZRWA_VALID) - bool(zone.attributes & ZRWA_VALID)
        zone.attributes, zone.pointer = attributes, pointer
        zone.written = zone.stored = zone.told = written
        zone.extension = extension if attributes & EXTENSION_VALID else b""
        self._enter(zone, state)
        self.mark_stale(zone, stale)

    # The machine itself.

    def _empty(self, zone: Zone) -> None:
        zone.pointer = zone.written = zone.stored = zone.told = zone.start
        zone.extension = b""
        self._become(zone, ZoneState.EMPTY)

    def _open(self, zone: Zone, state: ZoneState) -> None:
        """Open a zone that can be written, another one being closed for it if need be."""
        if zone.state in OPEN:
            if state is ZoneState.EXPLICITLY_OPEN and zone.state is not state:
                self._become(zone, state)
            return
        if zone.state is ZoneState.EMPTY:
            self._check_active()
        most = self.geometry.layout.most_open
        if most and self.open >= most:
            oldest = next(iter(self._opened), None)
            if oldest is None:
                raise CommandFailed(Status.TOO_MANY_OPEN_ZONES, f"{most} zones are open, as many as may be")
            self._become(oldest, ZoneState.CLOSED)
        self._become(zone, state)

    def _check_active(self) -> None:
        most = self.geometry.layout.most_active
        if most and self.active >= most:
            raise CommandFailed(Status.TOO_MANY_ACTIVE_ZONES, f"{most} zones are active, as many as may be")

    def _become(self, zone: Zone, state: ZoneState) -> None:
        """Let a zone be in a state, with the attributes that go with it."""
        if state not in ACTIVE:
            self._release_window(zone)
            kept = 0 if state is ZoneState.EMPTY else EXTENSION_VALID
            zone.attributes &= kept
        self._enter(zone, state)
        self.keep(zone)

    def _enter(self, zone: Zone, state: ZoneState) -> None:
        before, zone.state = zone.state, state
        self._by_state[before] -= 1
        self._by_state[state] += 1
        if state is ZoneState.IMPLICITLY_OPEN:
            self._opened.setdefault(zone)
        else:
            self._opened.pop(zone, None)
        if before is not state and ZoneState.OFFLINE in (before, state):
            self.reached()

    def _release_window(self, zone: Zone) -> None:
        if zone.attributes & ZRWA_VALID:
            zone.attributes &= ~ZRWA_VALID
            self._windows -= 1


def _up(count: int, step: int) -> int:
    return -(-count // step) * step
