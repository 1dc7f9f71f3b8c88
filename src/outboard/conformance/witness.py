"""A descriptor that tells when its last copy has been closed.

It is the writing end of a pipe: the reading end, kept here, sees the end of file once nobody can write any
more. So a peer's leak shows without looking into its process.
"""

import os
from types import TracebackType

from outboard.conformance.peer import ready
from outboard.conformance.points import Wrong


class Witness:
    """A descriptor to send. A context manager that closes what is left of it."""

    def __init__(self) -> None:
        self._reader, self.fd = os.pipe()

    def expect_closed(self, sent_with: str, seconds: float) -> None:
        """Give up our own copy; the other end has to close its, in time. Call once."""
        os.close(self.fd)
        self.fd = -1
        if not ready(self._reader, seconds):
            raise Wrong(
                f"the descriptor that came with {sent_with} to be closed", "that it is still held open"
            )

    def __enter__(self) -> "Witness":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._reader)
        if self.fd >= 0:
            os.close(self.fd)
