"""A poller starts, sleeps, wakes, pauses and stops, whatever it is doing at the time."""

import os
import select
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from outboard.native import jit
from outboard.native.jit import Entry, entry
from outboard.native.memory import load_acquire64, store_release64
from outboard.native.poller import Poller, arm, disarm, notify, sleep, stopping
from outboard.native.words import Block

LEFT, DONE, BUSY, TOLD = 0, 64, 128, 192
"""Work that was left for the loop, work that it did, whether it never sleeps, what it told Python of."""


@entry
def work(control: int, words: int) -> int:
    """Does what is left, tells of it, and sleeps when there is nothing; or spins."""
    while not stopping(control):
        left = load_acquire64(words + LEFT)
        if left != load_acquire64(words + DONE):
            store_release64(words + DONE, left)
            store_release64(words + TOLD, left)
            notify(control)
        elif load_acquire64(words + BUSY) == 0:
            arm(control)
            if load_acquire64(words + LEFT) == left and not stopping(control):
                sleep(control, -1, -1)
            else:
                disarm(control)
    return 0


@entry
def naps(control: int, words: int) -> int:
    """Sleeps for a thousandth of a second at a time."""
    while not stopping(control):
        if sleep(control, -1, 1_000_000) == 0:
            store_release64(words + DONE, load_acquire64(words + DONE) + 1)
    return 0


@entry
def watches(control: int, words: int) -> int:
    """Sleeps until a descriptor of its own is readable."""
    fd = load_acquire64(words + LEFT)
    while not stopping(control):
        if sleep(control, fd, -1) and not stopping(control):
            store_release64(words + DONE, 1)
            notify(control)
            sleep(control, -1, -1)
    return 0


@entry
def fails(control: int, words: int) -> int:
    raise RuntimeError("the loop is broken")


@pytest.fixture(params=["plain", "native"])
def native(request: pytest.FixtureRequest) -> bool:
    if request.param == "native" and not jit.available() and os.environ.get("CI") != "true":
        pytest.skip("there is no Numba here")
    return bool(request.param == "native")


@pytest.fixture
def block() -> Block:
    return Block(256)


@contextmanager
def polling(loop: Entry, block: Block, native: bool) -> Iterator[Poller]:
    before = sorted(os.listdir("/proc/self/fd"))
    threads = threading.active_count()
    with Poller(loop, block.address, native=native) as poller:
        yield poller
    assert not poller.running
    assert threading.active_count() == threads
    assert sorted(os.listdir("/proc/self/fd")) == before


def wait_for(condition: Callable[[], bool]) -> None:
    while not condition():
        os.sched_yield()


def told(poller: Poller) -> None:
    """Wait for a notice and take it."""
    assert select.select([poller.notices], [], [], 60)[0]
    poller.acknowledge()


def test_work_left_for_a_sleeping_poller_wakes_it(native: bool, block: Block) -> None:
    with polling(work, block, native) as poller:
        for number in range(1, 200):
            wait_for(lambda number=number: poller.statistics["sleeps"] >= number)  # type: ignore[misc]
            block[LEFT] = number
            poller.wake()
            told(poller)
            assert block[DONE] == number
        assert poller.statistics["notices"] == 199
        assert 0 < poller.statistics["wakes"] <= poller.statistics["sleeps"]


def test_no_wake_and_no_notice_is_ever_lost(native: bool, block: Block) -> None:
    rounds = 20_000 if native else 2000
    with polling(work, block, native) as poller:
        for number in range(1, rounds):
            block[LEFT] = number
            poller.wake()
            while block[TOLD] < number:
                told(poller)


def test_a_poller_ends_while_it_sleeps(native: bool, block: Block) -> None:
    with polling(work, block, native) as poller:
        wait_for(lambda: poller.statistics["sleeps"] == 1)


def test_a_poller_ends_while_it_spins(native: bool, block: Block) -> None:
    block[BUSY] = block[LEFT] = 1
    with polling(work, block, native):
        wait_for(lambda: block[DONE] == 1)


def test_a_poller_ends_at_once(native: bool, block: Block) -> None:
    for _ in range(50):
        with polling(work, block, native):
            pass


def test_a_poller_that_was_never_started_is_stopped_twice(native: bool, block: Block) -> None:
    before = os.listdir("/proc/self/fd")
    poller = Poller(work, block.address, native=native)
    poller.stop()
    poller.stop()
    poller.wake()
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("busy", [0, 1])
def test_a_paused_poller_does_nothing_until_the_last_pause_is_over(
    native: bool, block: Block, busy: int
) -> None:
    block[BUSY] = busy
    with polling(work, block, native) as poller:
        with poller.paused(), poller.paused():
            block[LEFT] = 1
            poller.wake()
            with poller.paused():
                pass
            assert block[DONE] == 0
        told(poller)
        assert block[DONE] == 1


def test_pauses_from_many_threads_leave_the_poller_running(native: bool, block: Block) -> None:
    inside = 0
    guard = threading.Lock()

    def pause() -> None:
        nonlocal inside
        for _ in range(100):
            with poller.paused():
                with guard:
                    inside += 1
                done = block[DONE]
                assert block[DONE] == done

    with polling(work, block, native) as poller:
        threads = [threading.Thread(target=pause) for _ in range(4)]
        for thread in threads:
            thread.start()
        for number in range(1, 500):
            block[LEFT] = number
            poller.wake()
        for thread in threads:
            thread.join()
        wait_for(lambda: block[DONE] == 499)
        assert inside == 400


def test_a_poller_is_stopped_while_it_is_paused(native: bool, block: Block) -> None:
    with polling(work, block, native) as poller, poller.paused():
        poller.stop()
        assert not poller.running


def test_a_sleep_ends_when_its_time_is_over(native: bool, block: Block) -> None:
    with polling(naps, block, native):
        wait_for(lambda: block[DONE] >= 3)


def test_a_sleep_ends_when_a_descriptor_of_the_loop_is_readable(native: bool, block: Block) -> None:
    reader, writer = os.pipe()
    block[LEFT] = reader
    with polling(watches, block, native) as poller:
        wait_for(lambda: poller.statistics["sleeps"] == 1)
        os.write(writer, b"x")
        told(poller)
        assert block[DONE] == 1
        assert poller.statistics["wakes"] == 0
    os.close(reader)
    os.close(writer)


def test_an_error_in_the_loop_is_kept_and_logged_and_holds_up_nobody(
    block: Block, caplog: pytest.LogCaptureFixture
) -> None:
    with polling(fails, block, native=False) as poller:
        wait_for(lambda: not poller.running)
        with poller.paused():
            pass
        poller.wake()
        assert isinstance(poller.failure, RuntimeError)
    assert "poller ended by an error" in caplog.text
    assert "the loop is broken" in caplog.text
