"""No command stays unseen and no completion unannounced, however host and loop interleave (A05, Q17)."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.devices.nvme.datapath.interleaving import Machine, Setting, need_event

shapes = st.builds(
    Setting,
    doorbells=st.sampled_from(["shadow", "shadow", "trapped", "mmap"]),
    entries=st.sampled_from([2, 3, 4, 8, 32]),
    cq_entries=st.sampled_from([2, 3, 4, 8, 32]),
    threshold=st.sampled_from([0, 1, 2, 4, 200]),
    delay=st.sampled_from([0, 10_000, 100_000, 25_500_000]),
    grace=st.sampled_from([0, 1_000, 500_000]),
    spin=st.sampled_from([0, 0, 6_000]),
    doze=st.sampled_from([0, 300_000]),
)
inline = st.builds(
    Setting,
    doorbells=st.sampled_from(["shadow", "trapped"]),
    entries=st.sampled_from([2, 3, 8]),
    cq_entries=st.sampled_from([2, 3, 8]),
    threshold=st.sampled_from([0, 4]),
    delay=st.sampled_from([0, 100_000]),
    grace=st.just(0),
    inline=st.just(True),
)
batches = st.lists(st.integers(1, 12), min_size=1, max_size=6)
schedules = st.lists(st.integers(0, 4), min_size=1, max_size=60)


@contextmanager
def played(setting: Setting, batches: list[int], schedule: list[int], delay: int = 0) -> Iterator[Machine]:
    machine = Machine(setting, batches, schedule, delay)
    try:
        with pytest.MonkeyPatch.context() as patch:
            machine.run(patch)
        yield machine
    finally:
        machine.close()


@pytest.mark.point("A05", "Q12", "Q17")
@settings(max_examples=80)
@given(shapes, batches, schedules, st.integers(0, 100))
@example(Setting(), [1], [0, 1, 1, 1], 0)
@example(Setting(cq_entries=2), [12, 12], [1, 2], 0)
@example(
    Setting(entries=4, cq_entries=3, threshold=4, delay=25_500_000, grace=0, doze=300_000), [3], [4, 0, 2], 91
)
def test_a_poller_loses_no_command_and_no_interrupt(
    setting: Setting, batches: list[int], schedule: list[int], delay: int
) -> None:
    """When neither side can go on by itself, every command was completed, and every completion consumed."""
    with played(setting, batches, schedule, delay) as machine:
        assert machine.consumed == machine.sent


@pytest.mark.point("A05")
@pytest.mark.parametrize("inline", [False, True], ids=["poller", "device's thread"])
@pytest.mark.parametrize("schedule", [[1], [3], [1, 0, 0, 2], [2, 1, 1]], ids=str)
def test_a_command_may_come_at_any_moment_of_going_to_sleep(inline: bool, schedule: list[int]) -> None:
    for delay in range(12 if inline else 40):
        setting = Setting(inline=inline, grace=0 if inline else 500_000)
        with played(setting, [1], schedule, delay) as machine:
            assert machine.consumed == 1, f"it came after {delay} turns"


@pytest.mark.point("Q12")
@pytest.mark.parametrize("doorbells", ["shadow", "trapped"])
@pytest.mark.parametrize("schedule", [[2], [0, 2], [0, 0, 0, 0, 2]], ids=str)
def test_room_may_come_at_any_moment_of_going_to_sleep(doorbells: str, schedule: list[int]) -> None:
    setting = Setting(doorbells=doorbells, entries=8, cq_entries=2)
    for delay in range(12):
        with played(setting, [3], [1] * 8 + [0] * delay + schedule * 8) as machine:
            assert machine.consumed == 3, f"it came after {delay} turns"


@pytest.mark.point("A05", "Q12", "Q17")
@settings(max_examples=40)
@given(inline, batches, schedules)
@example(Setting(inline=True, grace=0), [1, 1], [0, 0, 0, 1])
def test_the_loop_in_the_devices_thread_loses_nothing_either(
    setting: Setting, batches: list[int], schedule: list[int]
) -> None:
    """As for a poller; what wakes it are doorbell messages and its own timer alone."""
    with played(setting, batches, schedule) as machine:
        assert machine.consumed == machine.sent


def test_the_host_rings_when_it_passes_the_event_index() -> None:
    assert need_event(3, 4, 3)
    assert not need_event(2, 4, 3)
    assert need_event(15, 0, 15)
    assert not need_event(14, 0, 15)


@pytest.mark.point("A05")
def test_a_host_that_is_served_by_an_awake_loop_never_rings() -> None:
    with played(Setting(entries=32, cq_entries=32), [1] * 64, [3]) as machine:
        assert machine.rings - machine.sleeps <= 1, "only to end a sleep"
        assert machine.consumed == 64


@pytest.mark.point("Q17")
def test_a_busy_host_is_interrupted_less_often_than_it_gets_completions() -> None:
    with played(Setting(entries=32, cq_entries=32), [8] * 8, [1, 1, 1, 1, 2]) as machine:
        assert machine.interrupts <= 16


@pytest.mark.point("Q17")
def test_completions_are_gathered_until_there_are_enough_or_time_is_up() -> None:
    gathering = Setting(entries=32, cq_entries=32, threshold=8, delay=25_500_000)
    with played(gathering, [16], [1] * 20) as machine:
        assert machine.interrupts <= 2
        assert machine.consumed == 16
    with played(gathering, [7], [1] * 20) as machine:
        assert machine.interrupts == 1, "when the time was up"
        assert machine.now > 25_500_000
