"""One thread's agenda: descriptors to watch, timers, and calls for later.

A server drives one `Loop` for its device; `TestClient` steps one by hand. Everything a device does
outside the answer to a request (a timer, slow work put off with `call_soon`, a resample descriptor)
runs here, in the device's own thread, so device code needs no locks.
"""

import ctypes
import heapq
import logging
import os
import select
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

log = logging.getLogger(__name__)

READABLE = select.EPOLLIN
OWN_DESCRIPTORS = 1
"""What a loop watches for itself: its waker."""
AT_ONCE = 16
"""Descriptors asked for in one wait; by default, room for a thousand is made every time."""
LONGEST, FOREVER = 86400.0, 1e9
"""Seconds of one wait, where epoll takes 24 days, and until a timer is due, where timerfd takes 292 years."""
NOT_WRITABLE, NOT_READABLE = ~select.EPOLLOUT, ~select.EPOLLIN

Callback = Callable[[], None]
Report = Callable[[Exception, str], None]


def log_error(error: Exception, doing: str) -> None:
    """Writes an author's exception to the log, with its traceback."""
    log.error("%s failed in the device", doing, exc_info=error)


class Timer:
    """A call due at `due` (seconds of the monotonic clock); `cancel` takes it back."""

    __slots__ = ("callback", "due")

    def __init__(self, due: float, callback: Callback) -> None:
        self.due = due
        self.callback: Callback | None = callback

    def __lt__(self, other: "Timer") -> bool:
        return self.due < other.due

    def cancel(self) -> None:
        """Takes the call back; harmless when it has run already."""
        self.callback = None


class Loop:
    """Descriptors, timers and calls for later, run one at a time by whoever calls `run_once`.

    ``report(error, doing)`` is told the exceptions of device code; it logs them unless replaced.

    >>> loop = Loop()
    >>> loop.call_soon(lambda: print("later"))
    >>> loop.run_once(timeout=0)
    later
    True
    >>> loop.close()
    """

    def __init__(self) -> None:
        self.report: Report = log_error
        self.stopped = False
        self._running = False
        self._epoll = select.epoll()
        self._readers: dict[int, Callback] = {}
        self._writers: dict[int, Callback] = {}
        self._soon: deque[Callback] = deque()
        self._timers: list[Timer] = []
        self._thread = threading.get_ident()
        self._alarm: _Alarm | None = None
        self.waker = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.watch(self.waker, self.drain)

    def fileno(self) -> int:
        """A descriptor that is readable when `run_once` has something to do, timers and calls included.

        For use inside another event loop.
        """
        if self._alarm is None:
            self._alarm = _Alarm()
            self.watch(self._alarm.fd, self._alarm.drain)
            self._set_alarm()
        return self._epoll.fileno()

    def call_soon(self, callback: Callback) -> None:
        """Runs `callback` in the loop's thread after what runs now; may be called from any thread.

        From another thread it may be heard a tick later while a client's accesses come in a burst (see
        `waits_for_one`); a descriptor that is watched is heard at once.
        """
        self._soon.append(callback)
        if self._alarm is not None or not self.current:
            self.wake()

    def after(self, seconds: float, callback: Callback) -> Timer:
        """Runs `callback` once, `seconds` from now; only from the loop's own thread."""
        timer = Timer(time.monotonic() + min(seconds, FOREVER), callback)
        heapq.heappush(self._timers, timer)
        self._set_alarm()
        return timer

    def watch(self, fd: int, readable: Callback | None, writable: Callback | None = None) -> None:
        """Calls `readable` whenever `fd` is readable, `writable` whenever it takes bytes, either on hang-up.

        Watching a descriptor again replaces its callbacks. Raises OSError for a descriptor that cannot
        be waited for (closed, or a regular file).
        """
        events = (select.EPOLLIN if readable else 0) | (select.EPOLLOUT if writable else 0)
        if fd in self._readers or fd in self._writers:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        for callbacks, callback in ((self._readers, readable), (self._writers, writable)):
            if callback is not None:
                callbacks[fd] = callback
            else:
                callbacks.pop(fd, None)

    def unwatch(self, fd: int) -> None:
        """Forgets `fd`; harmless when it is not watched. To be called before the descriptor is closed."""
        writable = self._writers.pop(fd, None)
        if self._readers.pop(fd, writable) is not None:
            with suppress(OSError):
                self._epoll.unregister(fd)

    def wake(self) -> None:
        """Makes a waiting `run_once` return; may be called from any thread and from a signal handler."""
        with suppress(OSError, ValueError):  # full, or closed
            os.eventfd_write(self.waker, 1)

    def drain(self) -> None:
        """Takes back every `wake`; for whoever waits for `waker` outside of `run_once`."""
        with suppress(BlockingIOError):
            os.eventfd_read(self.waker)

    def run_once(self, timeout: float | None = None) -> bool:
        """Waits up to `timeout` seconds (None: for ever) and runs what is due; True if anything ran."""
        self._thread = threading.get_ident()
        ran = self._turn(timeout)
        self._set_alarm()
        return ran

    def run(self) -> None:
        """Runs what comes until `stop`."""
        self._thread = threading.get_ident()
        self._running = True
        try:
            if not self.stopped:
                self._turn(None, until_stopped=True)
        finally:
            self._running = False

    @property
    def current(self) -> bool:
        """Whether the calling thread is the one that runs the loop, or ran it last."""
        return self._thread == threading.get_ident()

    @property
    def waits_for_one(self) -> bool:
        """Whether `run` is at work with nothing due and one descriptor (besides its own) to wait for.

        Its owner may then wait for it in place for a moment; `wake` is not heard meanwhile.
        """
        return (
            self._running
            and len(self._readers) == OWN_DESCRIPTORS + 1
            and not (self._writers or self._soon or self._timers or self.stopped)
        )

    def stop(self) -> None:
        """Ends `run`; may be called from any thread and from a signal handler."""
        self.stopped = True
        self.wake()

    def _turn(self, timeout: float | None, *, until_stopped: bool = False) -> bool:
        """One wait and what it brings; ``until_stopped``: again and again, here where a turn is cheapest."""
        poll, readers, writers = self._epoll.poll, self._readers, self._writers
        soon, timers = self._soon, self._timers
        while True:
            ready = poll(self._patience(timeout) if soon or timers else timeout, AT_ONCE)
            for fd, events in ready:
                try:
                    if events & NOT_WRITABLE and (readable := readers.get(fd)):
                        readable()
                    if events != READABLE and events & NOT_READABLE and (writable := writers.get(fd)):
                        writable()
                except Exception as error:
                    self.report(error, f"what watches descriptor {fd}")
            ran = (bool(soon or timers) and self._run_due()) or bool(ready)
            if not until_stopped or self.stopped:
                return ran

    def run_pending(self) -> bool:
        """Runs calls and timers that are due, looking at no descriptor; True if anything ran."""
        self._thread = threading.get_ident()
        return self._run_due()

    def close(self) -> None:
        """Releases the loop's own descriptors; watched ones stay the watchers'."""
        self._readers.clear()
        self._writers.clear()
        self._soon.clear()
        self._timers.clear()
        self._epoll.close()
        if self._alarm is not None:
            os.close(self._alarm.fd)
            self._alarm = None
        # Forgotten before it is closed: another thread may `wake` in between.
        waker, self.waker = self.waker, -1
        if waker >= 0:
            os.close(waker)

    def _set_alarm(self) -> None:
        """Makes `fileno` readable when the next call or timer is due, if anybody waits for it."""
        if self._alarm is not None:
            self._alarm.set(0.0 if self._soon else self._timers[0].due if self._timers else None)

    def _patience(self, timeout: float | None) -> float | None:
        if self._soon:
            return 0
        while self._timers and self._timers[0].callback is None:
            heapq.heappop(self._timers)
        if not self._timers:
            return timeout
        until_due = min(max(0.0, self._timers[0].due - time.monotonic()), LONGEST)
        return until_due if timeout is None else min(timeout, until_due)

    def _run_due(self) -> bool:
        ran = False
        now = time.monotonic()
        while self._timers and self._timers[0].due <= now:
            if (callback := heapq.heappop(self._timers).callback) is not None:
                self._soon.append(callback)
        # Only what is queued now: a call that queues itself again must not starve the descriptors.
        for _ in range(len(self._soon)):
            if not self._soon:
                break
            ran = True
            callback = self._soon.popleft()
            try:
                callback()
            except Exception as error:
                self.report(error, f"{callback!r}, put off with call_soon or after,")
        return ran


class _Alarm:
    """A timerfd: readable from a moment on. The standard library has it from Python 3.13 on."""

    CLOCK_MONOTONIC, ABSOLUTE = 1, 1

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.fd = self._libc.timerfd_create(self.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "no timerfd could be made")

    def set(self, due: float | None) -> None:
        """Readable from `due` (seconds of the monotonic clock) on; never for None."""
        # A time of 0 would take the alarm back.
        seconds, nanoseconds = (0, 0) if due is None else divmod(max(1, int(due * 1e9)), 10**9)
        times = struct.pack("@4l", 0, 0, seconds, nanoseconds)
        self._libc.timerfd_settime(self.fd, self.ABSOLUTE, times, None)

    def drain(self) -> None:
        """Makes it unreadable."""
        with suppress(BlockingIOError):
            os.read(self.fd, 8)
