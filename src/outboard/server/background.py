"""Who runs a loop: the caller, or a thread of its own; what a server and a proxy have in common."""

import threading
from types import TracebackType
from typing import Self

from outboard.loop import Loop


class Background:
    """Runs ``loop`` until it is stopped. A context manager that closes; ``name`` is the thread's."""

    def __init__(self, name: str) -> None:
        self.loop = Loop()
        self._name = name
        self._thread: threading.Thread | None = None

    def serve_forever(self) -> None:
        """Serves until `stop`."""
        self.loop.run()

    def start(self) -> Self:
        """Serves in a thread of its own."""
        self._thread = threading.Thread(target=self.serve_forever, name=self._name)
        self._thread.start()
        return self

    def stop(self) -> None:
        """Ends `serve_forever`; may be called from any thread and from a signal handler."""
        self.loop.stop()

    def close(self) -> None:
        """Stops, and returns when the thread has ended. Extend it to let go of everything else."""
        self.stop()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
