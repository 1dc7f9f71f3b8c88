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


def test_the_shorter_runs_are_forgotten_when_there_are_too_many() -> None:
    extents = Extents([(0, 1), (10, 15), (20, 22), (30, 34)], most=4)
    extents.add(40, 43)
    assert list(extents) == [(10, 15), (30, 34)]
    assert extents.total == 9


@given(st.lists(st.tuples(st.booleans(), numbers, numbers)), st.integers(1, 5))
def test_what_it_knows_is_true_and_never_more_than_it_may(
    steps: list[tuple[bool, int, int]], most: int
) -> None:
    extents, everything = Extents(most=most), Extents()
    for adding, low, high in steps:
        for each in (extents, everything):
            (each.add if adding else each.remove)(low, high)
        assert len(extents) <= most
    assert all(list(everything.within(*run)) == [run] for run in extents)
    assert extents.total == sum(end - start for start, end in extents)
