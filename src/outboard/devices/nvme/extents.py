"""A set of numbers that come in runs, such as the blocks of a namespace that cannot be read."""

import sys
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

    With ``most`` there are never more runs than that: too many, and the shorter half of them is forgotten.
    """

    def __init__(self, runs: Iterable[tuple[int, int]] = (), most: int = sys.maxsize) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._most = most
        self.total = 0
        """How many numbers are in it."""
        for start, end in runs:
            self.add(start, end)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._starts, self._ends, strict=True)

    def __bool__(self) -> bool:
        return bool(self._starts)

    def __len__(self) -> int:
        """How many runs there are."""
        return len(self._starts)

    def add(self, start: int, end: int) -> None:
        """Put ``start..end`` in."""
        if start >= end:
            return
        first, last = bisect_left(self._ends, start), bisect_right(self._starts, end)
        if first < last:
            start, end = min(start, self._starts[first]), max(end, self._ends[last - 1])
        self._replace(first, last, [(start, end)])

    def remove(self, start: int, end: int) -> None:
        """Take ``start..end`` out, as far as it is in."""
        if start >= end:
            return
        first, last = bisect_right(self._ends, start), bisect_left(self._starts, end)
        if first >= last:
            return
        left, right = self._starts[first], self._ends[last - 1]
        self._replace(first, last, [(a, b) for a, b in ((left, start), (end, right)) if a < b])

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
        self._replace(0, len(self), [])

    def _replace(self, first: int, last: int, runs: list[tuple[int, int]]) -> None:
        self.total += (
            sum(self._starts[first:last]) - sum(self._ends[first:last]) + sum(b - a for a, b in runs)
        )
        self._starts[first:last] = [a for a, _ in runs]
        self._ends[first:last] = [b for _, b in runs]
        if len(self) > self._most:
            longest = sorted(self, key=lambda run: run[0] - run[1])[: (self._most + 1) // 2]
            self._replace(0, len(self), sorted(longest))
