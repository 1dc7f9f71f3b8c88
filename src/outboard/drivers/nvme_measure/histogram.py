"""A histogram of times that costs a few instructions to add to: 64 steps for each power of two.

So every value is kept with an error below 1.6 %, from nanoseconds to minutes, in 19 KiB.
"""

from collections.abc import Iterator

from outboard.native.jit import jitable
from outboard.native.memory import load64, store64
from outboard.native.words import WORD, Block, offsets

SUM, MAX = offsets(2)
BUCKETS = 64
"""Where they begin, in bytes: a cache line of their own."""

STEPS_BITS = 6
STEPS = 1 << STEPS_BITS
POWERS = 36
SIZE = BUCKETS + WORD * STEPS * POWERS
LIMIT = (1 << STEPS_BITS + POWERS - 1) - 1
"""The largest value that is told from larger ones: 20 minutes in nanoseconds."""


@jitable
def record(histogram: int, value: int) -> int:
    """Add a value, 0 or more, to the histogram at this address."""
    store64(histogram + SUM, load64(histogram + SUM) + value)
    if value > load64(histogram + MAX):
        store64(histogram + MAX, value)
    kept = min(value, LIMIT)
    shift = 0
    rest = kept >> STEPS_BITS + 1
    while rest:
        rest >>= 1
        shift += 1
    bucket = histogram + BUCKETS + WORD * ((shift << STEPS_BITS) + (kept >> shift))
    store64(bucket, load64(bucket) + 1)
    return 0


class Histogram:
    """A histogram; ``address`` is for `record`.

    >>> histogram = Histogram()
    >>> for value in (1, 2, 3, 1000):
    ...     _ = record(histogram.address, value)
    >>> histogram.count, histogram.mean, histogram.max
    (4, 251.5, 1000)
    >>> histogram.percentile(50), histogram.percentile(75)
    (2, 3)
    """

    def __init__(self) -> None:
        self._block = Block(SIZE)
        self.address = self._block.address

    @property
    def count(self) -> int:
        """How many values there are."""
        return sum(self._block.words[BUCKETS // WORD :])

    @property
    def mean(self) -> float:
        """The exact mean; 0 of nothing."""
        return self._block[SUM] / (self.count or 1)

    @property
    def max(self) -> int:
        """The exact largest value."""
        return self._block[MAX]

    def percentile(self, percent: float) -> int:
        """The value that so many percent of all values do not exceed, 1.6 % too high at most."""
        needed = self.count * percent / 100
        seen = 0
        for _, last, count in self:
            seen += count
            if seen >= needed:
                return min(last, self.max)
        return self.max

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        """The steps that are not empty, ascending: first and last value, how many there are."""
        for index, count in enumerate(self._block.words[BUCKETS // WORD :]):
            if count:
                shift = max(0, (index >> STEPS_BITS) - 1)
                first = (index - (shift << STEPS_BITS)) << shift
                yield first, first + (1 << shift) - 1, count
