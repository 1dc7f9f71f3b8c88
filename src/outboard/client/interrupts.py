"""Interrupts as a client receives them: one eventfd a vector."""

import os
import time
from collections.abc import Callable
from contextlib import suppress

from outboard.errors import PeerTimeout


class Interrupt:
    """Receives one vector. ``fd`` is the eventfd the server signals.

    ``until_readable(fd, seconds)`` is how to wait for it; memory the server asks for is served meanwhile.
    """

    def __init__(self, name: str, until_readable: Callable[[int, float], None]) -> None:
        self.name = name
        self._until_readable = until_readable
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def wait(self, timeout: float = 5.0) -> int:
        """Waits for the interrupt; how often it has fired since it was last waited for.

        Raises PeerTimeout after `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while not (count := self.take()):
            left = deadline - time.monotonic()
            if left <= 0:
                raise PeerTimeout(f"{self.name} has not fired within {timeout:g} s")
            self._until_readable(self.fd, left)
        return count

    def take(self) -> int:
        """How often the interrupt has fired since it was last asked; 0 if it has not. Never waits."""
        with suppress(BlockingIOError):
            return os.eventfd_read(self.fd)
        return 0

    def close(self) -> None:
        """Closes the eventfd."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
