"""Sets of runs, against a set of numbers."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from outboard.devices.nvme.extents import Extents

numbers = st.integers(0, 40)


@given(st.lists(st.tuples(st.booleans(), numbers, numbers)), numbers, numbers)
def test_it_holds_what_a_set_of_numbers_holds(
    steps: list[tuple[bool, int, int]], start: int, end: int
) -> None:
    extents, model = Extents(), set[int]()
    for adding, low, high in steps:
        if adding:
            extents.add(low, high)
            model |= set(range(low, high))
        else:
            extents.remove(low, high)
            model -= set(range(low, high))
    runs = list(extents)
    assert {number for low, high in runs for number in range(low, high)} == model
    assert all(before[1] < after[0] for before, after in pairwise(runs))
    assert extents.total == len(model)
    assert extents.first(start, end) == min(model & set(range(start, end)), default=None)
    assert list(Extents(runs)) == runs
    assert bool(extents) == bool(model)
