"""The host's end of one of a guest's serial lines: what the guest prints is collected as it comes."""

import contextlib
import socket
import struct
import threading
from pathlib import Path

_SEND_TIMEOUT = struct.pack("@ll", 20, 0)


class SerialLine:
    """Collects what comes over a socket, in a thread of its own, and sends.

    The guest would stall if nobody read its console, so reading never waits for a caller.

    Attributes:
        changed: notified whenever something came, or the line closed; callers may share one between lines.
    """

    def __init__(self, line: socket.socket, changed: threading.Condition, *, log: Path | None = None) -> None:
        self.changed = changed
        self._line = line
        self._log = log
        self._data = bytearray()
        self._closed = False
        line.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _SEND_TIMEOUT)
        self._reader = threading.Thread(target=self._read, name="outboard-serial", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with self._log.open("ab", buffering=0) if self._log else open("/dev/null", "ab") as log:
            while chunk := self._receive():
                log.write(chunk)
                with self.changed:
                    self._data += chunk
                    self.changed.notify_all()
        with self.changed:
            self._closed = True
            self.changed.notify_all()

    def _receive(self) -> bytes:
        try:
            return self._line.recv(65536)
        except OSError:
            return b""

    @property
    def closed(self) -> bool:
        """True once the other end is gone, and nothing more will come."""
        return self._closed

    @property
    def position(self) -> int:
        """How many bytes came so far."""
        return len(self._data)

    def data(self, start: int = 0) -> bytes:
        """What came, from byte ``start`` on."""
        with self.changed:
            return bytes(self._data[start:])

    def text(self, start: int = 0) -> str:
        """What came from byte ``start`` on, as text with plain line ends, what is no UTF-8 replaced."""
        return self.data(start).decode(errors="replace").replace("\r\n", "\n")

    def find(self, wanted: bytes, start: int = 0) -> int:
        """Where ``wanted`` begins, at or after byte ``start``; -1 if it has not come."""
        with self.changed:
            return self._data.find(wanted, start)

    def last_lines(self, count: int = 25) -> str:
        """The last ``count`` lines that came, for error messages."""
        return "\n".join(self.text(max(0, self.position - 200 * count)).splitlines()[-count:])

    def send(self, data: bytes) -> None:
        """Send ``data``; raises `OSError` if the other end is gone, or took nothing for 20 s."""
        self._line.sendall(data)

    def close(self) -> None:
        """Close the line and wait for the reading thread to end."""
        with contextlib.suppress(OSError):
            self._line.shutdown(socket.SHUT_RDWR)
        self._reader.join()
        self._line.close()
