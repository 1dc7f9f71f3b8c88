"""How long a controller waits for queues that are out of reach, and when it gives up.

A VMM takes memory away for a moment while it rearranges its map; a host that never gives it back has broken
its controller (CSTS.CFS).
"""

import logging
import time
from collections.abc import Callable

from outboard.loop import Timer

log = logging.getLogger(__name__)

PATIENCE = 1.0
"""Seconds a queue may be out of reach."""

RETRY = 0.05
"""Seconds until it is looked again."""


class Patience:
    """Calls ``retry`` by and by, and ``give_up`` at the end; ``after`` starts a timer."""

    def __init__(
        self,
        after: Callable[[float, Callable[[], None]], Timer],
        retry: Callable[[], None],
        give_up: Callable[[], None],
    ) -> None:
        self._after, self._retry, self._give_up = after, retry, give_up
        self._since: float | None = None
        self._timer: Timer | None = None

    def wear(self) -> None:
        """A queue is out of reach, now or still."""
        now = time.monotonic()
        if self._since is None:
            self._since = now
        if now - self._since >= PATIENCE:
            log.info("a queue was out of reach for %s s: the controller has failed", PATIENCE)
            self.restore()
            self._give_up()
        elif self._timer is None:
            self._timer = self._after(RETRY, self._try_again)

    def restore(self) -> None:
        """All are within reach, or nobody asks any more."""
        self._since = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _try_again(self) -> None:
        self._timer = None
        self._retry()
