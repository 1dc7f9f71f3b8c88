"""Threads that make the calls of storages that may block, one for each storage.

A storage is called by one thread at a time, in the order in which a controller's calls came. Results return
to the device's thread by way of its loop; all but the calls themselves happens there, and needs no lock.
"""

import os
import select
import threading
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from weakref import WeakValueDictionary

from outboard.devices.nvme.monitor import Monitor
from outboard.devices.nvme.work import Call, Work
from outboard.loop import Loop
from outboard.storage import Storage
from outboard.storage.fast import Memory, Nothing, fast_of

LINGER = 1.0
"""Seconds a thread waits for more to do. It then ends, so that nothing is left of a storage at rest."""

_called: WeakValueDictionary[int, threading.Lock] = WeakValueDictionary()
_finding = threading.Lock()
"""Who calls a storage has its lock: controllers that share it have a thread each."""

Ended = Callable[[int | Exception], None]
"""Gets what a `Work` returns, or the exception it raises."""


@dataclass(slots=True, eq=False)
class Task:
    """A command under way."""

    work: Work
    ended: Ended
    cancelled: bool = False

    def cancel(self) -> None:
        """Let nothing come of it: no call is begun any more, and ``ended`` is not called."""
        self.cancelled = True
        with suppress(ValueError):  # it is what runs now, and ends where it would wait next
            self.work.close()


@dataclass(slots=True, eq=False)
class _Job:
    """A call of a task, and what it raised."""

    task: Task
    call: Call
    error: BaseException | None = None


def wait_for_rest(storage: Storage) -> None:
    """Return when the call of ``storage`` that is under way for a controller has returned.

    In any thread, better not in turn: a storage may take for ever.
    """
    with _turn_with(storage):
        pass


def flush_between(storage: Storage) -> None:
    """Flush a storage while no controller calls it; as `wait_for_rest`, better not in turn."""
    with _turn_with(storage):
        storage.flush()


def _turn_with(storage: Storage) -> AbstractContextManager[object]:
    with _finding:
        return _called.get(id(storage)) or nullcontext()


def at_rest(storage: Storage) -> Work:
    """The end of a command that completes when `wait_for_rest` would have returned."""
    yield Call(storage, lambda: None, moves=False)
    return 0


class Workers:
    """Runs `Work`, its calls made in threads, within ``loop``; to be used by the loop's thread, in ``turn``.

    Calls of a storage in memory, or of one that keeps nothing, never block, and are made in place, where the
    storage is ``undisturbed``. How much is under way at once is up to the caller.
    """

    def __init__(
        self,
        loop: Loop,
        turn: Monitor,
        undisturbed: Callable[[Storage], AbstractContextManager[None]] = lambda storage: nullcontext(),
    ) -> None:
        self.outstanding = 0
        self._undisturbed = undisturbed
        self._loop = loop
        self._turn = turn
        self._lanes: dict[int, _Lane] = {}
        self._finished: deque[_Job] = deque()
        self._bell = -1

    def start(self, work: Work, ended: Ended) -> Task:
        """Run ``work`` as `begin` does; ``ended`` may have been called already when this returns."""
        task = Task(work, ended)
        self.begin(task)
        return task

    def begin(self, task: Task) -> None:
        """Run ``task`` as far as it goes without waiting, and the rest as its calls return."""
        self._go_on(task, None)

    def rest(self, storage: Storage) -> None:
        """Wait until ``storage`` is not at work for us; from any thread, in `turn`. No task goes on."""
        if (lane := self._lanes.get(id(storage))) is not None:
            lane.rest()

    def still(self) -> None:
        """Wait until no storage is at work for us; from any thread, in `turn`. No task goes on.

        In the loop's thread the others have their turns meanwhile: a storage may take for ever.
        """
        with self._others():
            for lane in list(self._lanes.values()):
                lane.rest()

    def drain(self) -> None:
        """Wait until no call is outstanding; tasks go on meanwhile, and end. Cancel first what shall not.

        In the loop's thread the others have their turns meanwhile.
        """
        poll = select.poll()
        if self._bell >= 0:
            poll.register(self._bell, select.POLLIN)
        while self.outstanding:
            with self._others():
                poll.poll()
            self._deliver()

    def let_go(self, storage: Storage) -> None:
        """Forget a storage for which no call is outstanding; its thread ends."""
        lane = self._lanes.pop(id(storage), None)
        if lane is not None:
            lane.close()

    def close(self) -> None:
        """Drain, and end the threads. Closing twice is harmless."""
        self.drain()
        for lane in self._lanes.values():
            lane.close()
        self._lanes.clear()
        if self._bell >= 0:
            os.close(self._bell)
            self._bell = -1

    def _others(self) -> AbstractContextManager[None]:
        """Let the others have their turns, if nothing else can happen to our controller meanwhile."""
        return self._turn.released() if self._loop.current else nullcontext()

    def _go_on(self, task: Task, error: BaseException | None) -> None:
        """Run ``task``, whose last call raised ``error`` or nothing, up to its next wait or its end."""
        while not task.cancelled:
            try:
                call = next(task.work) if error is None else task.work.throw(error)
            except StopIteration as end:
                if not task.cancelled:
                    task.ended(end.value)
                return
            except Exception as failure:
                if not task.cancelled:
                    task.ended(failure)
                return
            if task.cancelled:
                task.work.close()
            elif not _in_place(call.storage):
                self._submit(_Job(task, call))
                return
            else:
                with self._undisturbed(call.storage) if call.moves else nullcontext():
                    error = _made(call)

    def _submit(self, job: _Job) -> None:
        if self._bell < 0:
            self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC | os.EFD_SEMAPHORE)
        if self.outstanding == 0:
            self._loop.watch(self._bell, self._deliver)
        self.outstanding += 1
        storage = job.call.storage
        lane = self._lanes.get(id(storage))
        if lane is None:
            lane = self._lanes[id(storage)] = _Lane(storage, self._finish)
        lane.put(job)

    def _finish(self, job: _Job) -> None:
        """In the storage's thread: a call has returned."""
        self._finished.append(job)
        os.eventfd_write(self._bell, 1)

    def _deliver(self) -> None:
        """Go on with the task whose call returned first; the bell rings on for the others."""
        # The bell is read in turn: whoever drains in another thread's turn would wait for it for ever.
        with self._turn:
            try:
                os.eventfd_read(self._bell)
            except BlockingIOError:  # drained while the loop was about to call this
                return
            job = self._finished.popleft()
            self.outstanding -= 1
            try:
                self._go_on(job.task, job.error)
            finally:
                # A loop with nothing else to watch serves its client faster.
                if self.outstanding == 0:
                    self._loop.unwatch(self._bell)


class _Lane:
    """The thread of one storage, while there is something to do, and what waits for it."""

    def __init__(self, storage: Storage, finish: Callable[[_Job], None]) -> None:
        self.storage = storage
        self._finish = finish
        self._waiting: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._running = False
        self._calling = False
        self._closing = False
        with _finding:
            self._lock = _called.setdefault(id(storage), threading.Lock())

    def put(self, job: _Job) -> None:
        """Add a call to the end."""
        with self._changed:
            self._waiting.append(job)
            if self._running:
                self._changed.notify_all()
                return
            self._running = True
            self._thread = threading.Thread(target=self._run, name="outboard storage")
            self._thread.start()

    def rest(self) -> None:
        """Return when every call has returned."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting and not self._calling)

    def close(self) -> None:
        """Return when the thread has ended."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while (job := self._next()) is not None:
            with self._lock:
                if not job.task.cancelled:
                    job.error = _made(job.call)
            self._finish(job)

    def _next(self) -> _Job | None:
        """Take what waits first; None, and the thread ends, if nothing comes for a while."""
        with self._changed:
            self._calling = False
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._waiting or self._closing, LINGER)
            if self._waiting:
                self._calling = True
                return self._waiting.popleft()
            self._running = False
            return None


def _in_place(storage: Storage) -> bool:
    return isinstance(fast_of(storage), Memory | Nothing)


def _made(call: Call) -> BaseException | None:
    """Make ``call``; return what it raised."""
    try:
        call()
    except BaseException as error:
        return error
    return None
