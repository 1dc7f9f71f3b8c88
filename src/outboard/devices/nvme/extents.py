"""A set of numbers that come in runs, such as the blocks of a namespace that cannot be read."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator


class Extents:
    """Runs of numbers ``start..end`` (``end`` is not in it), ascending, never touching one another.

    >>> bad = Extents()
    >>> bad.add(8, 16)
    >>> bad.add(16, 20)
    >>> bad.remove(10, 12)
    >>> list(bad)
    [(8, 10), (12, 20)]
    >>> bad.first(9, 100), bad.first(10, 12)
    (9, None)
    """

    def __init__(self, runs: Iterable[tuple[int, int]] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        for start, end in runs:
            self.add(start, end)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._starts, self._ends, strict=True)

    def __bool__(self) -> bool:
        return bool(self._starts)

    def __len__(self) -> int:
        """How many runs there are."""
        return len(self._starts)

    @property
    def total(self) -> int:
        """How many numbers are in it."""
        return sum(self._ends) - sum(self._starts)

    def add(self, start: int, end: int) -> None:
        """Put ``start..end`` in."""
        if start >= end:
            return
        first, last = bisect_left(self._ends, start), bisect_right(self._starts, end)
        if first < last:
            start, end = min(start, self._starts[first]), max(end, self._ends[last - 1])
        self._starts[first:last], self._ends[first:last] = [start], [end]

    def remove(self, start: int, end: int) -> None:
        """Take ``start..end`` out, as far as it is in."""
        if start >= end:
            return
        first, last = bisect_right(self._ends, start), bisect_left(self._starts, end)
        if first >= last:
            return
        left, right = self._starts[first], self._ends[last - 1]
        kept = [(a, b) for a, b in ((left, start), (end, right)) if a < b]
        self._starts[first:last] = [a for a, _ in kept]
        self._ends[first:last] = [b for _, b in kept]

    def first(self, start: int, end: int) -> int | None:
        """The smallest number of ``start..end`` that is in it, or None."""
        at = bisect_right(self._ends, start)
        found = max(start, self._starts[at]) if at < len(self._starts) else end
        return found if found < end else None

    def within(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Runs of what of ``start..end`` is in it.

        >>> list(Extents([(0, 4), (8, 12)]).within(2, 9))
        [(2, 4), (8, 9)]
        """
        for at in range(bisect_right(self._ends, start), bisect_left(self._starts, end)):
            yield max(start, self._starts[at]), min(end, self._ends[at])

    def clear(self) -> None:
        """Take everything out."""
        self._starts.clear()
        self._ends.clear()
