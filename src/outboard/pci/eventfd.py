"""A client's eventfd: what a device signals an interrupt by, or is told something by (VFIO SET_IRQS)."""

import os
import select
import stat
from contextlib import suppress
from fcntl import F_GETFL, fcntl

from outboard.errors import RequestRefused


class EventFd:
    """A client's eventfd, ours to close. Writing to it never blocks and never raises."""

    __slots__ = ("_poll", "fd")

    def __init__(self, fd: int) -> None:
        """Take over ``fd``; `RequestRefused` (and ``fd`` stays the caller's) if it cannot be an eventfd."""
        try:
            kind = stat.S_IFMT(os.fstat(fd).st_mode)
            blocking = not fcntl(fd, F_GETFL) & os.O_NONBLOCK
        except OSError as error:
            raise RequestRefused(f"descriptor {fd} cannot be used: {error.strerror}") from error
        # An eventfd has no file type. Writing to anything that has one (a pipe, a FUSE file) could block.
        if kind:
            raise RequestRefused(f"descriptor {fd} is not an eventfd (file type {kind:#o})")
        self.fd = fd
        self._poll: select.poll | None = None
        if blocking:
            # O_NONBLOCK would change the client's own descriptor: some clients wait in a blocking read.
            self._poll = select.poll()
            self._poll.register(fd, select.POLLOUT)

    @property
    def blocks(self) -> bool:
        """Whether a plain write to it may block: the client made it so."""
        return self._poll is not None

    def signal(self) -> None:
        """Add 1, unless the counter is full: then the client has enough to read already."""
        with suppress(OSError):
            if self._poll is None or self._poll.poll(0):
                os.eventfd_write(self.fd, 1)

    def drain(self) -> None:
        """Take what the client has written, if anything is there."""
        with suppress(OSError):
            os.preadv(self.fd, [bytearray(8)], -1, os.RWF_NOWAIT)

    def close(self) -> None:
        """Close the descriptor; again is harmless."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            with suppress(OSError):
                os.close(fd)

    def __del__(self) -> None:
        if getattr(self, "fd", -1) >= 0:
            self.close()
