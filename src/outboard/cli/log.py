"""The log of a program in the foreground: readable lines, and no more of them than a disk can take.

A client, or the guest behind it, may err as often as it likes, and each mistake is worth a line.
"""

import logging
import time
from collections.abc import Callable

MOST, SECONDS = 200, 10.0
"""Records that are written, in how many seconds: a client that errs on purpose errs 50000 times a second."""


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


def log_to_stderr() -> None:
    """What the package logs, from INFO on, goes to standard error, throttled."""
    handler = logging.StreamHandler()
    handler.addFilter(Throttle())
    logging.basicConfig(level=logging.INFO, format="outboard: %(message)s", handlers=[handler])
