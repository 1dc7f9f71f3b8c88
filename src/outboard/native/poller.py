"""A thread that runs a compiled loop without the GIL, and how it sleeps, wakes, pauses and stops.

The loop is an `Entry` whose first argument is the poller's control block. It returns when `stopping`
says so, and is called again when a pause is over. What it needs of the rest of the world:

* When there is nothing to do it arms what wakes it, and sleeps: ``arm``, look again, ``sleep``.
* Whoever has work for it leaves the work where the loop looks, and calls `Poller.wake`.
* What it has for Python it leaves in a `outboard.native.ring`, and calls `notify`; a loop of Python's
  watches `Poller.notices`.

A pause is how memory that the loop uses is taken away: inside ``with poller.paused()`` the loop has
returned and holds nothing that it took from its tables.
"""

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Self

from outboard.native.jit import Entry, available, jitable
from outboard.native.libc import drain_eventfd, poll_in, write_eventfd
from outboard.native.memory import fence, load64, load_acquire64, store64
from outboard.native.words import Block

log = logging.getLogger(__name__)

STOP, ASLEEP, WAKE_FD, NOTICE_FD = 0, 64, 128, 136
NOTICED = 192
SLEEPS, WAKES, NOTICES, PAUSES = 256, 264, 272, 280
SCRATCH = 320
CONTROL = 384
"""The control block. What others write and what the loop writes lie in different cache lines."""


@jitable
def stopping(control: int) -> int:
    """Whether the loop has to return soon: a pause, or the end."""
    return load_acquire64(control + STOP)


@jitable
def arm(control: int) -> int:
    """Announce that the loop is about to sleep: from now on whoever has work wakes it. Look again now."""
    store64(control + ASLEEP, 1)
    return fence()


@jitable
def disarm(control: int) -> int:
    """There was work after all."""
    return store64(control + ASLEEP, 0)


@jitable
def sleep(control: int, fd: int, timeout_ns: int) -> int:
    """Sleep until woken, until ``fd`` (-1: none) is readable, or for ``timeout_ns`` (-1: for ever).

    The loop is not armed afterwards. 0 if the time was over.
    """
    store64(control + SLEEPS, load64(control + SLEEPS) + 1)
    ready = poll_in(load64(control + WAKE_FD), fd, timeout_ns, control + SCRATCH)
    store64(control + ASLEEP, 0)
    if ready > 0 and drain_eventfd(load64(control + WAKE_FD), control + SCRATCH) > 0:
        store64(control + WAKES, load64(control + WAKES) + 1)
    return 1 if ready > 0 else 0


@jitable
def notify(control: int) -> int:
    """Have Python look at what was left for it; costs a system call only if it has not been told yet."""
    fence()
    if load64(control + NOTICED) == 0:
        store64(control + NOTICED, 1)
        store64(control + NOTICES, load64(control + NOTICES) + 1)
        write_eventfd(load64(control + NOTICE_FD), control + SCRATCH)
    return 0


class Poller:
    """A thread for ``loop(control, *arguments)``; ``native`` says whether compiled (default: if possible).

    ``notices`` is a descriptor that is readable when the loop called `notify`. Use it as a context
    manager, or call `start` and `stop`; the thread is no daemon, so it has to be stopped.

    >>> from outboard.native.jit import entry
    >>> @entry
    ... def count(control: int, words: int) -> int:
    ...     while not stopping(control):
    ...         store64(words, load64(words) + 1)
    ...     return 0
    >>> block = Block(8)
    >>> with Poller(count, block.address, native=False) as poller:
    ...     while block[0] < 3:
    ...         pass
    ...     with poller.paused():
    ...         before = block[0]
    ...         assert block[0] == before
    """

    def __init__(
        self, loop: Entry, *arguments: int, name: str = "poller", native: bool | None = None
    ) -> None:
        self._call = loop.native if (available() if native is None else native) else loop.plain
        self._arguments = arguments
        self._control = Block(CONTROL)
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.notices = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._control[WAKE_FD], self._control[NOTICE_FD] = self._wake_fd, self.notices
        self._turn = threading.Condition()
        self._fence = threading.Lock()
        self._holders = 0
        self._inside = False
        self._ending = False
        self._thread: threading.Thread | None = None
        self._name = name
        self.failure: BaseException | None = None

    @property
    def running(self) -> bool:
        """Whether the thread is there."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def statistics(self) -> dict[str, int]:
        """How often the loop slept, was woken, told Python something, and was paused."""
        names = {"sleeps": SLEEPS, "wakes": WAKES, "notices": NOTICES, "pauses": PAUSES}
        return {name: self._control[offset] for name, offset in names.items()}

    def start(self) -> Self:
        """Start the thread."""
        self._ending = False
        self._thread = threading.Thread(target=self._run, name=self._name)
        self._thread.start()
        return self

    def wake(self) -> None:
        """There is work: to be called after it was left where the loop looks. Cheap while it is awake."""
        # What the caller stored has to be out before we look whether the loop is going to sleep, and a
        # lock is Python's only fence.
        with self._fence:
            asleep = self._control[ASLEEP]
        if asleep:
            self._kick()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Have the loop return, and keep it from being called, until the block is left. May be nested."""
        with self._turn:
            self._holders += 1
            self._control[STOP] = 1
            if self._inside:
                self._control[PAUSES] += 1
                self._kick()
                while self._inside:
                    self._turn.wait()
        try:
            yield
        finally:
            with self._turn:
                self._holders -= 1
                if not self._holders:
                    self._control[STOP] = 0
                    self._turn.notify_all()

    def acknowledge(self) -> None:
        """Take a notice: to be called before looking at what the loop left."""
        with suppress(BlockingIOError):
            os.eventfd_read(self.notices)
        self._control[NOTICED] = 0
        with self._fence:
            pass

    def stop(self) -> None:
        """End the thread and release the descriptors. Again is harmless."""
        with self._turn:
            self._ending = True
            self._control[STOP] = 1
            self._kick()
            self._turn.notify_all()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        with self._turn:
            for fd in (self._wake_fd, self.notices):
                if fd >= 0:
                    os.close(fd)
            self._wake_fd = self.notices = -1

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _kick(self) -> None:
        with self._turn, suppress(BlockingIOError):
            if self._wake_fd >= 0:
                os.eventfd_write(self._wake_fd, 1)

    def _run(self) -> None:
        while self._enter():
            try:
                self._call(self._control.address, *self._arguments)
            except BaseException as error:
                log.exception("%s ended by an error", self._name)
                self.failure = error
                self._ending = True
            finally:
                with self._turn:
                    self._inside = False
                    self._turn.notify_all()

    def _enter(self) -> bool:
        with self._turn:
            while self._holders and not self._ending:
                self._turn.wait()
            self._inside = not self._ending
            return self._inside
