"""The other end of the control socket: what `outboard ctl` and `outboard top` speak with."""

import json
import os
import socket
import struct
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from outboard.errors import ConnectionLost, Fault, PeerTimeout, RemoteError
from outboard.operation.control.rpc import INTERNAL_ERROR

TIMEOUT = 30.0
RECEIVE_BYTES = 64 << 10
MOST_ANSWER = 64 << 20


class ControlClient:
    """A connection with the control socket at ``path``. A context manager that closes.

    ``timeout`` is how many seconds an answer may take: a namespace that is removed waits for its storage.
    Raises `ConnectionLost` if nobody answers there.
    """

    def __init__(self, path: str | os.PathLike[str], *, timeout: float = TIMEOUT) -> None:
        self.path = Path(path)
        self._timeout = timeout
        self._inbox = bytearray()
        self._last_id = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # A connect() with Python's timeout would not wait where many do already.
        patience = struct.pack("@ll", int(timeout), int(timeout % 1 * 1e6))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, patience)
        try:
            self._socket.connect(os.fspath(path))
            self._socket.settimeout(timeout)
        except OSError as error:
            self._socket.close()
            raise ConnectionLost(
                f"nobody can be asked at {path}: {error.strerror or error}; "
                f"outboard nvme --control {path} listens there"
            ) from error

    def call(self, method: str, /, **params: Any) -> Any:
        """The result of a method.

        Raises:
            RemoteError: the server refused, with its sentence.
            ConnectionLost: it went away.
            PeerTimeout: it did not answer.
        """
        self._last_id += 1
        request = {"jsonrpc": "2.0", "method": method, "params": params, "id": self._last_id}
        try:
            # A server that has let go, of one client too many, has said why before.
            with suppress(BrokenPipeError, ConnectionResetError):
                self._socket.sendall(json.dumps(request).encode() + b"\n")
            answer = json.loads(self._line())
        except TimeoutError as error:
            raise PeerTimeout(f"{self.path} did not answer {method} within {self._timeout:g} s") from error
        except OSError as error:
            raise ConnectionLost(f"the connection with {self.path} broke: {error.strerror}") from error
        except ValueError as error:
            raise RemoteError(
                f"what {self.path} answers is no JSON: is it a control socket?", command=method, errno=0
            ) from error
        if not isinstance(answer, dict) or not {"result", "error"} & set(answer):
            raise RemoteError(
                f"{self.path} speaks no JSON-RPC: is it a control socket?", command=method, errno=0
            )
        if "error" in answer:
            raise _refusal(method, answer["error"])
        return answer["result"]

    def close(self) -> None:
        """Let go. Harmless to repeat."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _line(self) -> bytes:
        while (end := self._inbox.find(b"\n")) < 0:
            data = self._socket.recv(RECEIVE_BYTES)
            if not data:
                raise ConnectionLost(f"{self.path} has closed the connection")
            self._inbox += data
            if len(self._inbox) > MOST_ANSWER:
                raise ValueError("an answer without an end")
        line = bytes(self._inbox[:end])
        del self._inbox[: end + 1]
        return line


def _refusal(method: str, error: Any) -> RemoteError:
    """What the server says, and whose fault it says that is, seen from here."""
    told = error if isinstance(error, dict) else {}
    found = RemoteError(str(told.get("message")), command=method, errno=0)
    data = told.get("data")
    fault = data.get("fault") if isinstance(data, dict) else None
    if fault in (Fault.MACHINE.name.lower(), Fault.AUTHOR.name.lower()):
        found.fault = Fault[fault.upper()]
    elif told.get("code") != INTERNAL_ERROR and fault != Fault.OURS.name.lower():
        found.fault = Fault.CALLER
    return found
