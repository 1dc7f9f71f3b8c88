"""How a namespace is divided into zones (Zoned Namespace Command Set 1.1, 2.1.1 and 4.1.5.1)."""

from dataclasses import dataclass

from outboard.errors import DefinitionError

EXTENSION_UNIT = 64
"""Bytes in which the descriptor extension of a zone is counted."""

MOST_ZONES = 1 << 18

_COUNTABLE = 0xFFFF
"""The most blocks that a random write area, or its granularity, can be said to have."""


@dataclass(frozen=True, slots=True)
class ZoneLayout:
    """Zones of ``size`` bytes, of which ``capacity`` can be written (0: all of them).

    ``most_active`` and ``most_open`` limit how many zones are active, and open, at once (0: no limit).
    ``extension`` is the size, in bytes, of what a host may attach to a zone's descriptor. ``cross_read``:
    a read may go over the boundary of two zones. ``zrwa`` is the size, in bytes, of the random write area
    that a host may have behind the write pointer of a zone it opens (0: there are none); it is committed in
    pieces of ``zrwa_granularity`` bytes (0: a block), and there are ``zrwa_resources`` of them at once (0:
    one for each zone that may be active).

    Linux takes only namespaces whose zones are a power of two of blocks.

    Raises `DefinitionError`.

    >>> layout = ZoneLayout(size=64 << 20, capacity=48 << 20, most_open=8)
    >>> layout.most_active, layout.most_open
    (0, 8)
    """

    size: int
    capacity: int = 0
    most_active: int = 0
    most_open: int = 0
    extension: int = 0
    cross_read: bool = True
    zrwa: int = 0
    zrwa_granularity: int = 0
    zrwa_resources: int = 0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if getattr(self, name) < 0:
                raise DefinitionError(f"zones: {name} is {getattr(self, name)}, which is less than nothing")
        _require(self.size > 0, "the size of a zone is 0: give it one")
        _require(
            self.capacity <= self.size, f"a zone of {self.size} bytes has no capacity of {self.capacity}"
        )
        if self.most_active:
            _require(
                self.most_open <= self.most_active,
                f"{self.most_open} zones cannot be open where {self.most_active} can be active",
            )
        _require(
            self.extension % EXTENSION_UNIT == 0 and self.extension <= 0xFF * EXTENSION_UNIT,
            f"an extension has a multiple of {EXTENSION_UNIT} bytes, {0xFF * EXTENSION_UNIT} at most:"
            f" {self.extension} is none",
        )
        _require(
            self.zrwa > 0 or not (self.zrwa_granularity or self.zrwa_resources),
            "a granularity, or a number, of random write areas needs their size: zrwa",
        )

    def in_blocks(self, block_size: int) -> "Geometry":
        """The same, counted in blocks; raises `DefinitionError` if something is no whole number of them."""
        for name in ("size", "capacity", "zrwa", "zrwa_granularity"):
            value = getattr(self, name)
            _require(value % block_size == 0, f"zones: {name} {value} is no multiple of {block_size} bytes")
        size = self.size // block_size
        capacity = self.capacity // block_size or size
        window = self.zrwa // block_size
        granularity = self.zrwa_granularity // block_size or min(window, 1)
        _require(
            window <= min(capacity, _COUNTABLE),
            f"a random write area has at most {min(capacity, _COUNTABLE)} blocks here, not {window}",
        )
        _require(
            window == 0 or (window % granularity == 0 and capacity % granularity == 0),
            f"a random write area of {window} blocks, in a zone of {capacity}, is committed in equal pieces:"
            f" {granularity} blocks do not divide them",
        )
        return Geometry(self, size, capacity, window, granularity)


@dataclass(frozen=True, slots=True)
class Geometry:
    """A `ZoneLayout` in blocks: a zone, what of it can be written, its random write area, its granularity."""

    layout: ZoneLayout
    size: int
    capacity: int
    window: int
    granularity: int


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise DefinitionError(sentence)
