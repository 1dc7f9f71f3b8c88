"""QEMU's machine protocol, QMP: one JSON object a line, answers and events mixed (qmp-spec)."""

import itertools
import json
import socket
import time
from collections.abc import Callable
from typing import Any

from outboard.errors import GuestError

Message = dict[str, Any]


class LineReader:
    r"""Cuts a stream of bytes into the JSON objects it holds, one a line.

    >>> reader = LineReader()
    >>> reader.feed(b'{"return"')
    []
    >>> reader.feed(b': {}}\r\n{"event": "RESET"}\r\n')
    [{'return': {}}, {'event': 'RESET'}]
    """

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Message]:
        """The objects that ``data`` completes."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [json.loads(line) for line in lines if line.strip()]


class Qmp:
    """A QMP session over a connected socket; one thread at a time.

    Raises:
        GuestError: QEMU does not speak, or is gone.
    """

    def __init__(self, connection: socket.socket, *, timeout: float = 60) -> None:
        self._connection = connection
        self._reader = LineReader()
        self._waiting: list[Message] = []
        self._events: list[Message] = []
        self._requests = itertools.count(1)
        self._receive(lambda message: "QMP" in message, timeout, "its greeting")
        self.execute("qmp_capabilities")

    def execute(self, command: str, *, timeout: float = 60, **arguments: Any) -> Any:
        """Run ``command`` and return what QEMU returns.

        Raises:
            GuestError: QEMU refuses it, gives no answer within ``timeout`` seconds, or is gone.
        """
        request = {"execute": command, "arguments": arguments, "id": next(self._requests)}
        try:
            self._connection.sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise GuestError(f"QEMU is gone, and {command} cannot be sent to it ({error})") from None
        answer = self._receive(lambda message: message.get("id") == request["id"], timeout, command)
        if "error" in answer:
            raise GuestError(f"QEMU refuses {command} with {arguments}: {answer['error'].get('desc')}")
        return answer["return"]

    def wait_event(self, name: str, timeout: float = 60, **data: Any) -> Message:
        """The oldest event ``name`` not taken yet whose data holds all of ``data``, waited for if need be.

        Returns:
            the event's data.

        Raises:
            GuestError: it does not come within ``timeout`` seconds, or QEMU is gone.
        """

        def wanted(message: Message) -> bool:
            return message.get("event") == name and data.items() <= message.get("data", {}).items()

        for event in filter(wanted, self._events):
            self._events.remove(event)
            break
        else:
            event = self._receive(wanted, timeout, f"the event {name} {data or ''}".rstrip())
        found: Message = event.get("data", {})
        return found

    def _receive(self, wanted: Callable[[Message], bool], timeout: float, what: str) -> Message:
        deadline = time.monotonic() + timeout
        while True:
            while self._waiting:
                message = self._waiting.pop(0)
                if wanted(message):
                    return message
                if "event" in message:
                    self._events.append(message)
            self._connection.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                data = self._connection.recv(65536)
            except TimeoutError:
                raise GuestError(f"QEMU did not send {what} within {timeout:g} s") from None
            except OSError:
                data = b""
            if not data:
                raise GuestError(f"QEMU ended while we waited for {what}")
            self._waiting += self._reader.feed(data)

    def close(self) -> None:
        """Close the connection; QEMU goes on."""
        self._connection.close()
