"""`TestClient`: a client and a device in one thread, the same bytes and codec, no socket."""

import os
import select
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType

from outboard.client import Client
from outboard.device import DeviceContract
from outboard.errors import ConnectionLost, PeerTimeout
from outboard.loop import Loop
from outboard.server import Session
from outboard.server.profiles import Profile, ProfileName, chosen

TURNS = 1000
"""How often a device may put work off anew before its client goes on: one that polls never ends by itself."""


class InMemoryTransport:
    """A `Transport` whose server is a function call: what is sent has been handled when `send` returns."""

    def __init__(self, device: DeviceContract, profile: Profile | None = None) -> None:
        self.loop = Loop()
        self.loop.report = self._remember
        self._error: Exception | None = None
        self.serve_client: Callable[[], None] = lambda: None
        self._inbox: deque[tuple[bytes, Sequence[int]]] = deque()
        self._stepping = False
        self._beside: tuple[int, Callable[[], None]] | None = None
        self._session = Session(device, self.loop, self._transmit, self._pump, profile=profile)

    def send(self, data: bytes, fds: Sequence[int] = (), timeout: float | None = None) -> None:
        """Hands `data` to the device's session, then runs what the device has put off."""
        if self._session.closed:
            raise ConnectionLost("the device's side has closed the connection")
        self._session.feed(data, [os.dup(fd) for fd in fds])
        self._step(0)
        self.raise_device_error()

    def receive(self, timeout: float | None) -> tuple[bytes, Sequence[int]]:
        """The next message of the device; runs its timers while there is none."""
        if not self._inbox:
            self._step(timeout)
            self.raise_device_error()
        if self._inbox:
            return self._inbox.popleft()
        if self._serve_beside():
            return b"", ()
        if self._session.closed:
            raise ConnectionLost("the device's side has closed the connection")
        raise PeerTimeout(f"the device sent nothing for {timeout or 0:g} s")

    def wait(self, fd: int, timeout: float) -> bool:
        """Runs the device for up to `timeout` seconds; True if it has sent something."""
        if not self._inbox:
            self._step(timeout)
            self.raise_device_error()
        return bool(self._inbox)

    def serve_beside(self, fd: int, serve: Callable[[], None]) -> None:
        """Calls `serve` whenever `fd` is readable while we wait; see `Transport.serve_beside`."""
        self._beside = (fd, serve) if fd >= 0 else None

    def close(self) -> None:
        """Ends the session; the device keeps its state."""
        self._session.close()
        while self._inbox:
            for fd in self._inbox.popleft()[1]:
                os.close(fd)
        self.loop.close()

    def raise_device_error(self) -> None:
        """Raises, here in the test, what the device's own code has raised; its error reply is dropped."""
        if self._error is not None and not self._stepping:
            error, self._error = self._error, None
            while self._inbox:
                for fd in self._inbox.popleft()[1]:
                    os.close(fd)
            raise error

    def _transmit(self, data: bytes, fds: Sequence[int]) -> bool:
        self._inbox.append((data, [os.dup(fd) for fd in fds]))
        return True

    def _pump(self, seconds: float) -> None:
        """Lets the client answer while the device, perhaps inside a handler, waits for its memory."""
        outer, self._stepping = self._stepping, True
        try:
            self.serve_client()
        finally:
            self._stepping = outer
        if self._session.twin is not None:
            self._session.twin.work()

    def _serve_beside(self) -> bool:
        """Serves what is beside, if there is anything to serve."""
        if self._beside is None or not select.select([self._beside[0]], [], [], 0)[0]:
            return False
        self._beside[1]()
        return True

    def _step(self, timeout: float | None) -> None:
        """Runs what is due in the device, unless the device is what called us."""
        if self._stepping:
            return
        self._stepping = True
        try:
            for _ in range(TURNS):
                if not self.loop.run_once(timeout):
                    break
                timeout = 0
        finally:
            self._stepping = False

    def _remember(self, error: Exception, doing: str) -> None:
        error.add_note(f"(raised by the device: {doing})")
        self._error = self._error or error


class TestClient(Client):
    """A `Client` of `device` with the socket taken out. A context manager.

    What the device has put off with ``call_soon``, and timers that are due, run before each call returns. An
    exception of the device's own code is raised here, in the test. Leaving the block without an exception
    fails (AssertionError) when descriptors were leaked, when a DMA view is still in use, or when an access
    reached a place of a BAR that nobody handles; ``strict=False`` leaves these out. ``twin_socket`` is
    `Client`'s, ``profile`` is `Server`'s.

    >>> from outboard import Bar, Device
    >>> class Scratch(Device):
    ...     vendor_id, device_id, class_code = 0x1234, 0x0001, 0xFF0000
    ...     memory = Bar(0, size=0x1000)
    >>> with TestClient(Scratch()) as client:
    ...     client.bar(0).write32(0x10, 0xCAFE)
    ...     hex(client.bar(0).read32(0x10))
    '0xcafe'
    """

    __test__ = False  # its name begins like a test's

    def __init__(
        self,
        device: DeviceContract,
        *,
        strict: bool = True,
        timeout: float | None = 5.0,
        twin_socket: bool = False,
        profile: ProfileName | Profile = "auto",
    ) -> None:
        self.device = device
        self._twin_socket = twin_socket
        self._strict = strict
        self._open_before = _open_descriptors()
        self._in_memory = InMemoryTransport(device, chosen(profile))
        self._open(self._in_memory, timeout)

    def _start(self) -> None:
        self._in_memory.serve_client = self._link.serve_pending
        super()._start()

    def step(self, timeout: float = 0.0) -> None:
        """Runs what is due in the device, waiting up to `timeout` seconds for the first (a timer)."""
        self._link.serve_pending(timeout)

    def _rung(self) -> None:
        self.step()

    def close(self) -> None:
        """Ends the session and raises what the device's code has raised since."""
        super().close()
        self._in_memory.raise_device_error()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None or not self._strict:
            with suppress(Exception):
                self.close()
            return
        views = getattr(getattr(self.device, "dma", None), "live_views", 0)
        self.close()
        assert not views, (
            f"{views} views of guest memory are still in use: drop them before the guest unmaps it"
        )
        unhandled = getattr(self.device, "unhandled", ())
        assert not unhandled, f"accesses that nothing in the device handles: {list(unhandled)}"
        leaked = _open_descriptors() - self._open_before
        assert not leaked, f"descriptors were opened in the block and not closed: {_describe(leaked)}"


def _open_descriptors() -> set[int]:
    return {int(name) for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")}


def _describe(fds: set[int]) -> str:
    return ", ".join(f"{fd} ({os.readlink(f'/proc/self/fd/{fd}')})" for fd in sorted(fds))
