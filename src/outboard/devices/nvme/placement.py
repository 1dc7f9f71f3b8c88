"""Flexible data placement: a host says which data belongs together (TP4146; NVMe Base 2.1, 8.1.10).

An endurance group has reclaim groups, and reclaim unit handles, each of which has a unit open in every group.
A namespace has some of the handles, which it numbers itself: placement handles. A write names one of those
and a group, in one number, the placement identifier. What the medium makes of that is in
`outboard.devices.nvme.reclaim`.
"""

import struct
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import partial
from typing import TYPE_CHECKING, Any

from outboard.devices.nvme.admission import WRITES, Access, Condition
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.reclaim import Group, Place
from outboard.devices.nvme.status import CommandFailed, Status
from outboard.devices.nvme.store import Store
from outboard.errors import DefinitionError

if TYPE_CHECKING:
    from outboard.devices.nvme.namespace import Namespace
    from outboard.devices.nvme.state import State

ENDURANCE_GROUP = 1
"""The only one there is."""

MOST_IDENTIFIERS = 128
MOST_EVENTS = 63
DATA_PLACEMENT = 2
"""The type of the directive."""

SECTION = "placement"

INITIALLY_ISOLATED = 1
UNUSED, OF_HOST, OF_CONTROLLER = 0, 1, 2
"""What a reclaim unit handle is used for: by a namespace that names it, by those that name none."""


class PlacementEvent(IntEnum):
    """What is noted for a host that wants to know; those above 80h are the controller's doing."""

    UNIT_NOT_FULLY_WRITTEN = 0x00
    TIME_LIMIT_EXCEEDED = 0x01
    RESET_MODIFIED_HANDLES = 0x02
    INVALID_IDENTIFIER = 0x03
    MEDIA_REALLOCATED = 0x80
    HANDLE_IMPLICITLY_MODIFIED = 0x81


_EVENT = struct.Struct("<BBHQI16sHB5x24x")
_MOVED = struct.Struct("<BxHQ4x")
_HAS_IDENTIFIER, _HAS_NAMESPACE, _HAS_LOCATION = 1 << 0, 1 << 1, 1 << 2


@dataclass(frozen=True, slots=True)
class PlacementLayout:
    """``handles`` reclaim unit handles, ``groups`` reclaim groups, units of ``unit`` bytes.

    Raises `DefinitionError`.
    """

    handles: int = 8
    groups: int = 1
    unit: int = 96 << 20

    def __post_init__(self) -> None:
        if not 1 <= self.handles <= MOST_IDENTIFIERS or not 1 <= self.groups <= 1 << 8:
            raise DefinitionError(
                f"{self.handles} handles and {self.groups} reclaim groups: there are 1 to {MOST_IDENTIFIERS}"
                " and 1 to 256"
            )
        if self.unit < 1 << 16 or self.unit % 4096:
            raise DefinitionError(f"a reclaim unit has 64K or more, a multiple of 4K: {self.unit} is none")

    @property
    def group_bits(self) -> int:
        """RGIF: how many bits of a placement identifier, the highest, name a reclaim group."""
        return (self.groups - 1).bit_length()


@dataclass(slots=True)
class Handle:
    """A reclaim unit handle: what uses it, what was written by it, which events are noted for it.

    ``users`` is how many namespaces have it; they all have blocks of ``block_size`` bytes.
    """

    use: int = UNUSED
    block_size: int = 0
    users: int = 0
    bytes_written: int = 0
    noted: set[int] = field(default_factory=set)


@dataclass(slots=True)
class Placed:
    """What a namespace has of it: its handles, by its own numbers, and where its data is, in each group."""

    handles: list[int]
    places: list[Place]


class Placement:
    """The endurance group of a subsystem, laid out as ``layout`` says.

    ``host_bytes`` are those that hosts have written; ``enabled`` says whether hosts may place.
    """

    def __init__(self, layout: PlacementLayout) -> None:
        self.layout = layout
        self.enabled = True
        self.host_bytes = 0
        self.handles = [Handle() for _ in range(layout.handles)]
        self.host_events: deque[bytes] = deque(maxlen=MOST_EVENTS)
        self.controller_events: deque[bytes] = deque(maxlen=MOST_EVENTS)
        self.groups = [
            Group(layout.unit, layout.handles, partial(self._moved, number))
            for number in range(layout.groups)
        ]
        self._places = 0

    @property
    def media_bytes(self) -> int:
        """What the medium has written, for hosts and by itself."""
        return sum(group.media_bytes for group in self.groups)

    @property
    def erased_bytes(self) -> int:
        """What the medium has erased."""
        return sum(group.erased_bytes for group in self.groups)

    def join(self, space: "Namespace") -> Placed:
        """Give a namespace the handles it names, or one that the controller has. Raises `DefinitionError`."""
        if space.zones is not None:
            raise DefinitionError("a zoned namespace has no part in data placement: zones place data")
        chosen = self.choose(space.placement_handles, space.block_size)
        use = OF_HOST if space.placement_handles else OF_CONTROLLER
        for number in chosen:
            handle = self.handles[number]
            handle.use, handle.block_size, handle.users = use, space.block_size, handle.users + 1
        self._places += 1
        places = [Place(self._places, space.blocks * space.block_size) for _ in self.groups]
        for group, place in zip(self.groups, places, strict=True):
            group.hold(place, self._share(place))
        return Placed(chosen, places)

    def leave(self, placed: Placed) -> None:
        """A namespace is gone, or its blocks are: nothing is left of where they were."""
        for number in placed.handles:
            handle = self.handles[number]
            handle.users -= 1
            if not handle.users:
                handle.use, handle.block_size = UNUSED, 0
        for group, place in zip(self.groups, placed.places, strict=True):
            group.drop(place, self._share(place))

    def choose(
        self, wanted: Sequence[int], block_size: int, leaving: "Sequence[Namespace]" = ()
    ) -> list[int]:
        """The handles a namespace of such blocks would have; ``leaving`` are those that then have none.

        Raises `DefinitionError` if there are none for it.
        """
        users = [handle.users for handle in self.handles]
        for space in leaving:
            for number in space.placed.handles if space.placed is not None else ():
                users[number] -= 1
        if len(wanted) * self.layout.groups > MOST_IDENTIFIERS or len(set(wanted)) < len(wanted):
            raise DefinitionError(
                f"placement handles {list(wanted)}: each at most once, and {MOST_IDENTIFIERS} identifiers at"
                " most"
            )
        for number in wanted:
            if not 0 <= number < len(self.handles):
                raise DefinitionError(f"reclaim unit handles are 0 to {len(self.handles) - 1}, not {number}")
            handle = self.handles[number]
            if users[number] and (handle.use, handle.block_size) != (OF_HOST, block_size):
                raise DefinitionError(
                    f"reclaim unit handle {number} is for blocks of {handle.block_size} bytes, of namespaces"
                    f" that {'name' if handle.use == OF_HOST else 'do not name'} their handles"
                )
        return list(wanted) or [self._controllers(users, block_size)]

    def _controllers(self, users: list[int], block_size: int) -> int:
        """The handle for namespaces that name none: the one they share, or the last one that is free."""
        numbers = range(len(self.handles) - 1, -1, -1)
        for number in numbers:
            handle = self.handles[number]
            if users[number] and (handle.use, handle.block_size) == (OF_CONTROLLER, block_size):
                return number
        for number in numbers:
            if not users[number]:
                return number
        raise DefinitionError(
            f"no reclaim unit handle is left for blocks of {block_size} bytes: every one is named by a"
            " namespace, or for others"
        )

    def _share(self, place: Place) -> int:
        return -(-place.size // self.layout.groups)

    def identifiers(self, placed: Placed) -> Iterator[tuple[int, int, int]]:
        """Each placement identifier of a namespace, with its handle and its group."""
        for number, handle in enumerate(placed.handles):
            for group in range(self.layout.groups):
                yield self._identifier(number, group), handle, group

    def _identifier(self, number: int, group: int) -> int:
        return group << 16 - self.layout.group_bits | number

    def parse(self, placed: Placed, identifier: int) -> tuple[int, int] | None:
        """The handle and the group that an identifier names, or None."""
        bits = 16 - self.layout.group_bits
        number, group = identifier & (1 << bits) - 1, identifier >> bits
        if number >= len(placed.handles) or group >= self.layout.groups:
            return None
        return placed.handles[number], group

    def write(
        self, space: "Namespace", placed: Placed, slba: int, count: int, identifier: int | None
    ) -> None:
        """Blocks were written, by the handle of an identifier, or the namespace's first."""
        found = self.parse(placed, identifier or 0)
        if found is None:
            assert identifier is not None
            self._note(placed.handles[0], PlacementEvent.INVALID_IDENTIFIER, space.nsid, identifier)
            found = placed.handles[0], 0
        handle, group = found
        size = count * space.block_size
        self.host_bytes += size
        self.handles[handle].bytes_written += size
        offset = slba * space.block_size
        for number, place in enumerate(placed.places):
            if number != group:
                self.groups[number].discard(place, offset, size)
        self.groups[group].write(handle, placed.places[group], offset, size)

    def discard(self, space: "Namespace", placed: Placed, slba: int, count: int) -> None:
        """Blocks were deallocated."""
        for group, place in zip(self.groups, placed.places, strict=True):
            group.discard(place, slba * space.block_size, count * space.block_size)

    def renew(self, space: "Namespace", placed: Placed, identifier: int) -> None:
        """Let the handle of an identifier have another unit."""
        found = self.parse(placed, identifier)
        assert found is not None
        handle, group = found
        if self.groups[group].room(handle) < self.layout.unit:
            self._note(
                handle,
                PlacementEvent.UNIT_NOT_FULLY_WRITTEN,
                space.nsid,
                identifier,
                location=(group, handle),
            )
        self.groups[group].renew(handle)

    def save(self) -> dict[str, Any]:
        """What it has counted, and what is noted, as JSON."""
        return {
            "enabled": self.enabled,
            "host_bytes": self.host_bytes,
            "media": [[group.media_bytes, group.erased_bytes] for group in self.groups],
            "handles": [[handle.bytes_written, sorted(handle.noted)] for handle in self.handles],
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Take back what `save` gave. Raises KeyError, ValueError, TypeError."""
        self.enabled = bool(saved["enabled"])
        self.host_bytes = int(saved["host_bytes"])
        for group, (media, erased) in zip(self.groups, saved["media"], strict=True):
            group.media_bytes, group.erased_bytes = int(media), int(erased)
        for handle, (count, noted) in zip(self.handles, saved["handles"], strict=True):
            handle.bytes_written, handle.noted = int(count), {int(event) for event in noted}

    def _moved(self, group: int, owner: int, size: int) -> None:
        if owner < len(self.handles):
            blocks = size // (self.handles[owner].block_size or 512)
            detail = _MOVED.pack(0, min(blocks, 0xFFFF), 0)
            self._note(owner, PlacementEvent.MEDIA_REALLOCATED, location=(group, owner), detail=detail)

    def _note(
        self,
        handle: int,
        event: PlacementEvent,
        nsid: int = 0,
        identifier: int | None = None,
        *,
        location: tuple[int, int] | None = None,
        detail: bytes = b"",
    ) -> None:
        if event not in self.handles[handle].noted:
            return
        flags = (
            (_HAS_IDENTIFIER if identifier is not None else 0)
            | (_HAS_NAMESPACE if nsid else 0)
            | (_HAS_LOCATION if location else 0)
        )
        group, owner = location or (0, 0)
        stamp = int(time.time() * 1000) & (1 << 48) - 1
        events = self.controller_events if event & 0x80 else self.host_events
        events.append(_EVENT.pack(event, flags, identifier or 0, stamp, nsid, detail, group, owner))


def directive(space: "Namespace", command: Command) -> int | None:
    """The placement identifier of a write, or None; raises `CommandFailed` for another directive."""
    if space.placed is None:
        return None
    kind = command.cdw12 >> 20 & 0xF
    if kind not in (0, DATA_PLACEMENT):
        raise CommandFailed(Status.INVALID_FIELD, f"directive type {kind} is not enabled", location=50)
    return command.cdw13 >> 16 if kind else None


def _check(state: "State", space: "Namespace", command: Command, access: Access) -> None:
    """Nothing is in the way: whoever writes looks at the directive itself."""


PLACED = Condition(_check, lambda state, space: WRITES if space.placed is not None else 0)
"""Data placement as what keeps the data plane from writing: it does not count."""


def kept(layout: PlacementLayout, store: Store) -> Placement:
    """Data placement that goes on counting; from the beginning if it is laid out in another way now."""
    found = Placement(layout)
    try:
        found.restore(store.section(SECTION))
    except (KeyError, TypeError, ValueError):
        return Placement(layout)
    return found
