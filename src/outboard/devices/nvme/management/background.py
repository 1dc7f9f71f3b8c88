"""Operations that take long and belong to no controller: format, sanitize, self-test, firmware activation.

An operation is a generator of steps. The generator runs in the subsystem's turn, each step outside of it, in
a thread of the operation's own, so that no controller waits for it; one may be reset meanwhile. While the
subsystem has no controller at work (none is there, or one is about to be moved) operations stand still.
"""

import logging
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass, field

from outboard.devices.nvme.monitor import Monitor

log = logging.getLogger(__name__)

Step = Callable[[], object]
"""Something that may take a while, as long as one call of a storage does."""

Steps = Generator[Step, None, None]
"""An operation, step by step; what a step raises is raised where it was yielded."""


class Interrupted(Exception):
    """Raised in an operation where it waits: what it works on is to be let go of."""


@dataclass(slots=True, eq=False)
class Operation:
    """What ``make`` gives for it, under way; ``target`` is what that works on now."""

    name: str
    make: "Callable[[Operation], Steps]"
    steps: Steps = field(init=False)
    target: object = None
    step: Step | None = None
    error: BaseException | None = None
    cancelled: bool = False
    running: bool = False
    busy: threading.Lock = field(default_factory=threading.Lock)
    """Held while a step is made."""
    starting: threading.Lock = field(default_factory=threading.Lock)
    """Held for a look at `running`."""

    def __post_init__(self) -> None:
        self.steps = self.make(self)


class Background:
    """The operations of one subsystem, in its ``turn``; ``may_work`` says whether there may be steps now.

    All methods are called in turn. When one returns, no step is made that it forbids.
    """

    def __init__(self, turn: Monitor, may_work: Callable[[], bool]) -> None:
        self.operations: list[Operation] = []
        self._abandoned: list[Operation] = []
        """Those whose last step may be under way."""
        self._turn = turn
        self._may_work = may_work

    def start(self, operation: Operation) -> None:
        """Begin; nothing of it runs before the caller's turn is over."""
        self.operations.append(operation)
        self.look()

    def look(self) -> None:
        """See anew whether operations go on or stand still."""
        if not self._may_work():
            for operation in (*self.operations, *self._abandoned):
                with operation.busy:
                    pass
            return
        for operation in self.operations:
            with operation.starting:
                if operation.running:
                    continue
                operation.running = True
            # A server that ends does not wait for it: what counts is begun anew the next time.
            threading.Thread(
                target=self._run, args=(operation,), name=f"outboard {operation.name}", daemon=True
            ).start()

    def cancel(self, operation: Operation) -> None:
        """Nothing comes of it any more; its present step ends first. Not to be called by itself."""
        with operation.busy:
            operation.cancelled = True
        if operation in self.operations:
            self.operations.remove(operation)
        operation.steps.close()

    def abandon(self, operation: Operation) -> None:
        """As `cancel`, but its present step may go on for as long as it likes: one that changes nothing."""
        operation.cancelled = True
        if operation in self.operations:
            self.operations.remove(operation)
        self._abandoned = [each for each in self._abandoned if each.running] + [operation]
        operation.steps.close()

    def interrupt(self, target: object) -> None:
        """Raise `Interrupted` in the operations that work on ``target``; their present step ends first.

        So does that of an abandoned one.
        """
        for operation in (*self.operations, *self._abandoned):
            if operation.target is target:
                with operation.busy:
                    operation.step, operation.error = None, Interrupted()

    def _halted(self, operation: Operation) -> bool:
        with operation.starting:
            if operation.cancelled or not self._may_work():
                operation.running = False
                return True
        return False

    def _run(self, operation: Operation) -> None:
        while True:
            with operation.busy:
                if self._halted(operation):
                    return
                if operation.step is not None:
                    operation.error, operation.step = _made(operation.step), None
            with self._turn:
                if self._halted(operation) or not self._advance(operation):
                    return

    def _advance(self, operation: Operation) -> bool:
        """Go on to the next step; False if there is none."""
        error, operation.error = operation.error, None
        try:
            operation.step = next(operation.steps) if error is None else operation.steps.throw(error)
            return True
        except StopIteration:
            pass
        except Exception as failure:
            log.error("%s failed", operation.name, exc_info=failure)
        self.operations.remove(operation)
        return False


def _made(step: Step) -> BaseException | None:
    """Make ``step``; return what it raised."""
    try:
        step()
    except BaseException as error:
        return error
    return None
