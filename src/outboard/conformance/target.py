"""A server under judgement: how to reach it, how to start it anew, and what it says of itself."""

import os
import shlex
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from pathlib import Path

from outboard.conformance import facts as described
from outboard.conformance import wire
from outboard.conformance.facts import Facts
from outboard.conformance.peer import Closed, Peer, Silence
from outboard.conformance.points import NotApplicable, PeerLost, Wrong
from outboard.errors import SetupError

PATIENCE = 5.0
SHORTLY = 0.2
"""Seconds in which a server that ends with its client has ended."""
ENDING = 1.0
"""Seconds that such a server is given, where it does not notice that its client has gone."""
UNHURRIED = 0.5
"""Seconds in which a process that crashed has ended, its core written."""
CREDENTIALS = struct.Struct("=iII")


class Target:
    """The server behind ``path``; ``timeout`` seconds are what it has for each answer,
    ``patience`` what it may take until it listens or has let go of the client before.

    ``command`` starts it, ``{socket}`` replaced by the path, whenever nobody listens. ``writable`` is a
    (BAR, offset) where four bytes may be written and written back.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        command: str | None = None,
        writable: tuple[int, int] | None = None,
        timeout: float = 2.0,
        patience: float = PATIENCE,
    ) -> None:
        self.path = Path(path)
        self.command = command
        self.writable = writable
        self.timeout = timeout
        self.patience = patience
        self.process: subprocess.Popen[bytes] | None = None
        self.ends_with_client = False
        self._was_reached = False
        self._peers: list[Peer] = []
        self._restores: list[Callable[[Peer], None]] = []

    @property
    def was_reached(self) -> bool:
        """Whether the server has agreed on a version with the check under way."""
        return self._was_reached

    def connect(self) -> Peer:
        """A connection on which nothing was said. Raises PeerLost when nobody listens."""
        self._await_end()
        end, anew = time.monotonic() + self.patience, self.command is not None
        while True:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                connection.connect(os.fspath(self.path))
            except OSError as error:
                connection.close()
                if time.monotonic() > end:
                    if not anew:
                        raise PeerLost(f"nobody listens on {self.path}: {error.strerror}") from error
                    self.stop()  # it runs and does not listen
                    end, anew = time.monotonic() + self.patience, False
                self._start_if_gone()
                time.sleep(0.01)
            else:
                peer = Peer(connection, self.timeout)
                self._peers.append(peer)
                return peer

    def open(self, text: bytes = wire.QEMU_JSON) -> Peer:
        """A connection on which version 0.0 is agreed, said with the JSON ``text``."""
        for attempt in range(2):
            peer = self.connect()
            # It may still be busy with letting go of the client before.
            peer.timeout = max(self.timeout, self.patience)
            try:
                peer.ask(wire.version(text=text))
            except (Closed, Silence) as trouble:
                peer.close()
                if attempt:
                    raise PeerLost(f"the server does not agree on a version: {trouble.saw}") from trouble
                if isinstance(trouble, Silence):
                    self.stop()
                continue
            peer.timeout = self.timeout
            self._was_reached = True
            return peer
        raise AssertionError("two attempts end in one of the two ways above")

    @cached_property
    def facts(self) -> Facts:
        """What the server says of itself, asked for once. Raises NotApplicable if it does not say it."""
        peer = self.open()
        try:
            return described.gather(peer)
        except Wrong as error:
            raise NotApplicable(f"the server does not describe itself: {error}") from error
        finally:
            peer.close()
            if self.process is not None:
                with suppress(subprocess.TimeoutExpired):
                    self.process.wait(SHORTLY)
                    self.ends_with_client = True

    def descriptors(self, peer: Peer) -> int:
        """How many descriptors the server's process has. Raises NotApplicable where that cannot be seen."""
        data = peer.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
        pid = CREDENTIALS.unpack(data)[0]
        try:
            return len(os.listdir(f"/proc/{pid}/fd"))
        except OSError as error:
            raise NotApplicable(f"the descriptors of process {pid} cannot be counted from here") from error

    def restore_later(self, step: Callable[[Peer], None]) -> None:
        """Have ``step`` run on a new connection when the check has ended, well or badly."""
        self._restores.append(step)

    def end_check(self) -> None:
        """Close the check's connections, and put back what it changed."""
        self._close_peers()
        if self._restores:
            steps, self._restores = self._restores[::-1], []
            with suppress(PeerLost):
                peer = self.open()
                for step in steps:
                    with suppress(Wrong):
                        step(peer)
            self._close_peers()
        self._was_reached = False

    def _close_peers(self) -> None:
        for peer in self._peers:
            peer.close()
        self._peers.clear()

    def crash(self, suspected: bool) -> str:
        """The sentence that says how the server crashed, or nothing."""
        if self.process is None:
            return ""
        with suppress(subprocess.TimeoutExpired):
            # A crash ends the connection a moment before the process can be waited for.
            self.process.wait(UNHURRIED if suspected else 0)
        status = self.process.returncode
        if status is None or status >= 0:
            return ""
        self.process = None
        return f"the server's process was ended by {signal.Signals(-status).name}"

    def stop(self) -> None:
        """End the process that ``command`` started."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def close(self) -> None:
        """End everything."""
        self.end_check()
        self.stop()

    def _await_end(self) -> None:
        """Some servers end when their client goes: one that is about to must not be connected to."""
        if self.ends_with_client and self.process is not None and all(peer.closed for peer in self._peers):
            try:
                self.process.wait(min(self.patience, ENDING))
            except subprocess.TimeoutExpired:
                self.stop()

    def _start_if_gone(self) -> None:
        if self.command is None or (self.process is not None and self.process.poll() is None):
            return
        with suppress(FileNotFoundError):
            self.path.unlink()
        words = [word.replace("{socket}", str(self.path)) for word in shlex.split(self.command)]
        try:
            self.process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
        except OSError as error:
            raise SetupError(f"the server's command cannot be run: {words[0]}: {error.strerror}") from error
