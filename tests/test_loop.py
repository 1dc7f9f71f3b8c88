"""The loop a device lives in."""

import os
import threading
from collections.abc import Iterator

import pytest

from outboard.loop import Loop


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


def test_calls_run_in_order_and_one_that_repeats_itself_does_not_starve_descriptors(loop: Loop) -> None:
    seen: list[str] = []
    reader, writer = os.pipe()

    def again() -> None:
        seen.append("again")
        loop.call_soon(again)

    loop.call_soon(lambda: seen.append("first"))
    loop.call_soon(again)
    loop.watch(reader, lambda: seen.append(os.read(reader, 10).decode()))
    loop.run_once(0)
    os.write(writer, b"input")
    loop.run_once(0)
    assert seen == ["first", "again", "input", "again"]
    loop.unwatch(reader)
    os.close(reader)
    os.close(writer)


def test_timers_run_by_their_time_and_not_when_cancelled(loop: Loop) -> None:
    seen: list[str] = []
    loop.after(0.02, lambda: seen.append("late"))
    loop.after(0.01, lambda: seen.append("cancelled")).cancel()
    loop.after(0, lambda: seen.append("early"))
    while len(seen) < 2:
        loop.run_once(1)
    assert seen == ["early", "late"]


@pytest.mark.parametrize("inside_another", [False, True])
def test_a_timer_may_be_due_in_a_future_that_no_clock_has(loop: Loop, inside_another: bool) -> None:
    if inside_another:
        loop.fileno()
    for seconds in (1e7, 1e308):
        loop.after(seconds, lambda: None)
    loop.wake()
    assert loop.run_once()


def test_a_call_from_another_thread_wakes_the_loop(loop: Loop) -> None:
    seen: list[int] = []
    loop.run_once(0)
    thread = threading.Thread(target=lambda: loop.call_soon(lambda: seen.append(threading.get_ident())))
    thread.start()
    while not seen:
        loop.run_once(10)
    thread.join()
    assert seen == [threading.get_ident()]


def test_an_exception_in_a_call_is_reported_and_the_next_call_runs(loop: Loop) -> None:
    seen: list[str] = []
    loop.report = lambda error, doing: seen.append(str(error))

    def fails() -> None:
        raise RuntimeError("broken")

    loop.call_soon(fails)
    loop.call_soon(lambda: seen.append("next"))
    loop.run_once(0)
    assert seen == ["broken", "next"]


def test_an_exception_of_what_watches_a_descriptor_is_reported_and_the_loop_goes_on(loop: Loop) -> None:
    seen: list[str] = []
    loop.report = lambda error, doing: seen.append(str(error))
    reader, writer = os.pipe()

    def fails() -> None:
        loop.unwatch(reader)
        loop.call_soon(loop.stop)
        raise RuntimeError("broken")

    loop.watch(reader, fails)
    os.write(writer, b"x")
    loop.run()
    assert seen == ["broken"]
    os.close(reader)
    os.close(writer)


def test_the_loop_can_be_waited_for_in_another_event_loop(loop: Loop) -> None:
    outer = Loop()
    seen: list[str] = []
    reader, writer = os.pipe()
    loop.watch(reader, lambda: seen.append(os.read(reader, 10).decode()))

    def run_inner() -> None:
        loop.run_once(0)

    outer.watch(loop.fileno(), run_inner)
    os.write(writer, b"nested")
    outer.run_once(1)
    assert seen == ["nested"]
    outer.close()
    loop.unwatch(reader)
    os.close(reader)
    os.close(writer)


def test_a_regular_file_cannot_be_watched(loop: Loop) -> None:
    fd = os.open(__file__, os.O_RDONLY)
    with pytest.raises(OSError, match="not permitted"):
        loop.watch(fd, lambda: None)
    os.close(fd)


def test_a_timer_may_be_due_in_years(loop: Loop) -> None:
    timer = loop.after(1e9, lambda: None)
    loop.wake()
    assert loop.run_once()
    timer.cancel()
