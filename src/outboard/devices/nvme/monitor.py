"""Whose turn it is: the controllers of a subsystem share namespaces, and are served by threads of their own.

Whatever a controller does in Python it does in its turn, so code of one controller may look at and change
another without further ado. A controller with its subsystem to itself never waits here.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType


class Monitor:
    """A lock that its thread may take again, and let go of altogether for a while.

    >>> turn = Monitor()
    >>> with turn, turn:
    ...     with turn.released():
    ...         turn.held
    ...     turn.held
    False
    True
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner = 0
        self._depth = 0

    @property
    def held(self) -> bool:
        """Whether it is the calling thread's turn."""
        return self._owner == threading.get_ident()

    def __enter__(self) -> None:
        me = threading.get_ident()
        if self._owner != me:
            self._lock.acquire()
            self._owner = me
        self._depth += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._owner = 0
            self._lock.release()

    @contextmanager
    def released(self) -> Iterator[None]:
        """Let the others have their turns until the block is left; nothing happens without a turn."""
        if not self.held:
            yield
            return
        depth, self._depth, self._owner = self._depth, 0, 0
        self._lock.release()
        try:
            yield
        finally:
            self._lock.acquire()
            self._owner, self._depth = threading.get_ident(), depth
