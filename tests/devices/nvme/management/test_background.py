"""Operations in the background: where they run, when they stand still, how they end."""

import threading

import pytest

from outboard.devices.nvme.management.background import Background, Interrupted, Operation, Steps
from outboard.devices.nvme.monitor import Monitor


class Stand:
    """A background that may work or not, and an operation that notes what it does."""

    def __init__(self) -> None:
        self.turn = Monitor()
        self.works = True
        self.background = Background(self.turn, lambda: self.works)
        self.seen: list[object] = []
        self.ended = threading.Event()
        self.gate, self.entered = threading.Event(), threading.Event()

    def step(self) -> None:
        self.seen.append(threading.current_thread().name)
        assert not self.turn.held
        self.entered.set()
        assert self.gate.wait(60)
        self.seen.append("end")

    def fail(self) -> None:
        raise ValueError("a step that fails")

    def steps(self, operation: Operation) -> Steps:
        operation.target = self
        try:
            for _ in range(3):
                assert self.turn.held
                yield self.step
            yield self.fail
        except (ValueError, Interrupted) as error:
            self.seen.append(repr(error))
        self.ended.set()

    def start(self) -> Operation:
        operation = Operation("test", self.steps)
        with self.turn:
            self.background.start(operation)
        return operation


@pytest.fixture
def stand() -> Stand:
    return Stand()


def test_steps_are_made_in_a_thread_and_outside_of_the_turn(stand: Stand) -> None:
    stand.gate.set()
    stand.start()
    assert stand.ended.wait(60)
    with stand.turn:
        assert stand.background.operations == []
    assert stand.seen == ["outboard test", "end"] * 3 + ["ValueError('a step that fails')"]


def test_an_operation_stands_still_and_goes_on(stand: Stand) -> None:
    stand.works = False
    stand.start()
    assert stand.seen == []
    stand.works = True
    with stand.turn:
        stand.background.look()
    assert stand.entered.wait(60)
    with stand.turn:
        stand.works = False
        stand.gate.set()
        stand.background.look()
        assert len(stand.seen) == 2, "the step that had begun has ended"
        stand.entered.clear()
        stand.works = True
        stand.background.look()
        stand.background.look()
    assert stand.ended.wait(60)
    assert len(stand.seen) == 7


def test_an_interrupted_operation_hears_of_it_where_it_waits(stand: Stand) -> None:
    operation = stand.start()
    assert stand.entered.wait(60)
    with stand.turn:
        stand.gate.set()
        stand.background.interrupt(object())
        stand.background.interrupt(operation.target)
    assert stand.ended.wait(60)
    assert stand.seen == ["outboard test", "end", "Interrupted()"]


def test_nothing_comes_of_what_is_cancelled(stand: Stand) -> None:
    operation = stand.start()
    assert stand.entered.wait(60)
    with stand.turn:
        stand.gate.set()
        for _ in range(2):
            stand.background.cancel(operation)
    assert stand.seen == ["outboard test", "end"]
    assert not stand.ended.is_set()


@pytest.mark.parametrize("what", ["its target is let go of", "nothing may work any more"])
def test_an_abandoned_step_is_waited_for_only_when_it_has_to_have_ended(stand: Stand, what: str) -> None:
    operation = stand.start()
    assert stand.entered.wait(60)
    with stand.turn:
        stand.background.abandon(operation)
        assert stand.background.operations == []
        assert stand.seen == ["outboard test"], "it has not ended"
        stand.gate.set()
        if what == "its target is let go of":
            stand.background.interrupt(operation.target)
        else:
            stand.works = False
            stand.background.look()
        assert stand.seen == ["outboard test", "end"]
    assert not stand.ended.is_set()


def test_a_mistake_ends_one_operation_and_is_logged(stand: Stand, caplog: pytest.LogCaptureFixture) -> None:
    def mistaken(operation: Operation) -> Steps:
        yield stand.step
        raise RuntimeError("a mistake of ours")

    stand.gate.set()
    with stand.turn:
        stand.background.start(Operation("mistaken", mistaken))
    stand.start()
    assert stand.ended.wait(60)
    with stand.turn:
        pass
    while stand.background.operations:
        pass
    assert "a mistake of ours" in caplog.text
