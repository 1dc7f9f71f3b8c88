"""The log of a program in the foreground: readable lines, and no more of them than a disk can take.

A client, or the guest behind it, may err as often as it likes, and each mistake is worth a line. Whoever
started the program may have forgotten the pipe that it says this to: that is no reason to stop a disk.
"""

import logging
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from queue import Full, Queue
from threading import Thread

MOST, SECONDS = 200, 10.0
"""Records that are written, in how many seconds: a client that errs on purpose errs 50000 times a second."""

ROOM = 1000
"""Lines that may wait until they can be written."""

PATIENCE = 1.0
"""Seconds that a program which ends waits for them."""


class Throttle(logging.Filter):
    """Lets `most` records pass every `seconds`; the first one after that says how many were left out."""

    def __init__(
        self, most: int = MOST, seconds: float = SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__()
        self._most = most
        self._seconds = seconds
        self._clock = clock
        self._began = clock()
        self._passed = self._left_out = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether `record` is written."""
        now = self._clock()
        if now - self._began >= self._seconds:
            if self._left_out:
                record.msg = f"({self._left_out} lines were left out: too many) {record.getMessage()}"
                record.args = ()
            self._began, self._passed, self._left_out = now, 0, 0
        if self._passed == self._most:
            self._left_out += 1
            return False
        self._passed += 1
        return True


class Aside(logging.Handler):
    """Has a thread write the records to a descriptor: one that takes no more, a pipe nobody reads, holds up
    nothing but the log. `room` lines may wait; what comes beyond is left out.
    """

    def __init__(self, descriptor: int, room: int = ROOM) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._lines: Queue[bytes] = Queue(room)
        self._writer = Thread(target=self._write, name="outboard-log", daemon=True)
        self._writer.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Put the record's line behind those that wait."""
        try:
            self._lines.put_nowait(f"{self.format(record)}\n".encode(errors="backslashreplace"))
        except Full:
            pass
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        """Wait until all is written, but not long; `logging` does it when the program ends."""
        with suppress(Full):
            self._lines.put_nowait(b"")
        self._writer.join(PATIENCE)
        super().close()

    def _write(self) -> None:
        while line := self._lines.get():
            with suppress(OSError):
                # Not by sys.stderr, whose lock a program's end would wait for.
                while line:
                    line = line[os.write(self._descriptor, line) :]


def log_to_stderr() -> None:
    """What the package logs, from INFO on, goes to standard error, throttled."""
    handler = Aside(sys.stderr.fileno())
    handler.addFilter(Throttle())
    logging.basicConfig(level=logging.INFO, format="outboard: %(message)s", handlers=[handler])
