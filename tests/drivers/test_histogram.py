"""The histogram that the measuring loop fills."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outboard.drivers.nvme_measure.histogram import LIMIT, Histogram, record


@given(st.lists(st.integers(0, LIMIT), min_size=1), st.floats(0, 100))
def test_a_percentile_is_what_sorting_says(values: list[int], percent: float) -> None:
    """At least the wanted share of all values is not above a percentile, and it is 1.6 % off at most."""
    histogram = Histogram()
    for value in values:
        record(histogram.address, value)
    exact = sorted(values)[max(0, -int(-percent * len(values) // 100) - 1)]
    assert exact <= histogram.percentile(percent) <= exact * (1 + 1 / 64) + 1
    assert histogram.count == len(values)
    assert histogram.max == max(values)
    assert histogram.mean == pytest.approx(sum(values) / len(values))


@given(st.integers(0, 2 * LIMIT))
def test_every_value_lies_in_its_step_and_the_largest_in_the_last(value: int) -> None:
    """A value is between the ends of its step, which is no wider than a 64th of it."""
    histogram = Histogram()
    record(histogram.address, value)
    [(first, last, count)] = histogram
    assert count == 1
    assert first <= min(value, LIMIT) <= last
    assert (last - first) * 64 <= max(first, 64)
