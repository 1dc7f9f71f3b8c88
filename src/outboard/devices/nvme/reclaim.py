"""A simple model of a medium that is written in units and erased in units, to count what placement is worth.

Blocks are never overwritten in place: what is written goes to the unit that a handle has open, and what was
there before becomes void where it is. When no unit is free, the one with the least that still counts is
emptied into another and erased. That is written once more, which is the write amplification that placement is
there to avoid: the data of one life in units of its own leaves nothing to move.
"""

from array import array
from collections.abc import Callable
from dataclasses import dataclass, field

SPARE_PERCENT = 7
"""What the medium has more than its namespaces."""

CHUNK, MOST_CHUNKS = 4096, 1 << 20
"""Bytes whose whereabouts are remembered together, for namespaces of no more than so many of them."""

_CHUNK_BITS = 40
"""A chunk of a place, as one number: the place above, the chunk below."""


@dataclass(slots=True, eq=False)
class Unit:
    """A reclaim unit: bytes that can be written yet, bytes that count still, the chunks that were written."""

    number: int
    owner: int
    room: int
    valid: int = 0
    chunks: "array[int]" = field(default_factory=lambda: array("Q"))


class Place:
    """Where the chunks of ``size`` bytes are: the numbers of units, 0 for those that were never written."""

    def __init__(self, number: int, size: int) -> None:
        self.number = number
        self.size = size
        self.chunk = max(CHUNK, -(-size // MOST_CHUNKS))
        self.homes = array("I", bytes(4 * -(-size // self.chunk)))


class Group:
    """A reclaim group: units of ``unit_size`` bytes, of which each of ``owners`` has one open.

    ``media_bytes`` and ``erased_bytes`` count what the medium does; ``moved`` is called with the owner of a
    unit, and how many bytes of it had to be moved.
    """

    def __init__(self, unit_size: int, owners: int, moved: Callable[[int, int], None]) -> None:
        self.unit_size = unit_size
        self.media_bytes = self.erased_bytes = 0
        self._moved = moved
        self._mover = owners
        # Each owner has a unit open, and so has who moves; one more is needed to begin to move.
        self._spare = owners + 2
        self._most = self._spare
        self._units: dict[int, Unit] = {}
        self._free: list[int] = []
        self._open: dict[int, Unit] = {}
        self._places: dict[int, Place] = {}
        self._capacity = 0

    def hold(self, place: Place, share: int) -> None:
        """Hold ``share`` bytes of a place more."""
        self._places[place.number] = place
        self._charge(share)

    def drop(self, place: Place, share: int) -> None:
        """Hold ``share`` bytes of a place no more, nor anything that was written there."""
        self.discard(place, 0, len(place.homes) * place.chunk)
        del self._places[place.number]
        self._charge(-share)

    def _charge(self, share: int) -> None:
        self._capacity += share
        with_spare = self._capacity * (100 + SPARE_PERCENT) // 100
        self._most = -(-with_spare // self.unit_size) + self._spare

    def room(self, owner: int) -> int:
        """How many bytes the open unit of an owner takes yet."""
        return self._opened(owner).room

    def renew(self, owner: int) -> None:
        """Open another unit for an owner, though its own is not full."""
        if self._opened(owner).room < self.unit_size:
            del self._open[owner]

    def write(self, owner: int, place: Place, offset: int, size: int) -> None:
        """Write bytes of a place to the unit of an owner."""
        end = offset + size
        while offset < end:
            chunk = offset // place.chunk
            step = min(end, (chunk + 1) * place.chunk) - offset
            offset += step
            self._void(place, chunk, step)
            while step:
                unit = self._opened(owner)
                part = min(step, unit.room)
                self._put(unit, place, chunk, part)
                step -= part

    def discard(self, place: Place, offset: int, size: int) -> None:
        """Bytes of a place count no longer; of a chunk that is not all discarded something stays."""
        first, last = -(-offset // place.chunk), (offset + size) // place.chunk
        for chunk in range(first, last):
            self._void(place, chunk, place.chunk)

    def _void(self, place: Place, chunk: int, size: int) -> None:
        home = self._units.get(place.homes[chunk])
        if home is not None:
            home.valid = max(0, home.valid - size)
        if size == place.chunk:
            place.homes[chunk] = 0

    def _put(self, unit: Unit, place: Place, chunk: int, size: int) -> None:
        if place.homes[chunk] != unit.number:
            place.homes[chunk] = unit.number
            unit.chunks.append(place.number << _CHUNK_BITS | chunk)
        unit.valid += size
        unit.room -= size
        self.media_bytes += size

    def _opened(self, owner: int) -> Unit:
        unit = self._open.get(owner)
        if unit is None or unit.room == 0:
            if owner != self._mover:
                self._reclaim()
            unit = self._open[owner] = self._fresh(owner)
        return unit

    def _fresh(self, owner: int) -> Unit:
        number = self._free.pop() if self._free else len(self._units) + 1
        unit = self._units[number] = Unit(number, owner, self.unit_size)
        return unit

    @property
    def _left(self) -> int:
        return len(self._free) + self._most - len(self._units)

    def _reclaim(self) -> None:
        """Empty units until there is one to open, and one to move to."""
        while self._left < 2:
            passed = {unit.number for unit in self._open.values()}.union(self._free)
            full = [unit for unit in self._units.values() if unit.number not in passed]
            victim = min(full, key=lambda unit: unit.valid, default=None)
            if victim is None or victim.valid >= self.unit_size:
                return
            self._empty(victim)

    def _empty(self, victim: Unit) -> None:
        left = moved = victim.valid
        for entry in victim.chunks:
            place, chunk = self._places.get(entry >> _CHUNK_BITS), entry & (1 << _CHUNK_BITS) - 1
            if place is not None and place.homes[chunk] == victim.number:
                size = min(left, place.chunk)
                left -= size
                unit = self._opened(self._mover)
                self._put(unit, place, chunk, min(size, unit.room))
        victim.chunks = array("Q")
        victim.valid = 0
        self._free.append(victim.number)
        self.erased_bytes += self.unit_size
        if moved:
            self._moved(victim.owner, moved)
