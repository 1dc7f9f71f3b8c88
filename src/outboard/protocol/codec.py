"""Bytes and descriptors in, frames out: headers, partial input, limits.

vfio-user specification, "Transport" and "Header". A frame is one whole message, its payload not yet
looked into.

Descriptors ride on the first byte of a message, and Linux ends a recvmsg after the segment that
carried some. So those that arrive with a chunk belong to the last message that starts before the
chunk's end: the last one that starts inside it or, if none does, the one in progress.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from outboard.errors import RemoteProtocolError
from outboard.protocol.wire import HEADER, HEADER_SIZE, Buffer, pack

SLACK = 4096  # what a message may have beside its data: SPDK asks for region info in 4096 bytes
MAX_FDS = 253  # the kernel carries no more in one message (SCM_MAX_FD)


@dataclass(slots=True)
class Header:
    """The 16 bytes every message starts with. ``size`` counts them too."""

    message_id: int
    command: int
    size: int
    flags: int
    error: int = 0

    def encode(self) -> bytes:
        """The 16 bytes. Raises LocalProtocolError if a field does not fit."""
        return pack(HEADER, self.message_id, self.command, self.size, self.flags, self.error)

    @classmethod
    def decode(cls, data: Buffer) -> Self:
        """The header at the start of ``data``, which has at least 16 bytes."""
        return cls(*HEADER.unpack_from(data))


@dataclass(slots=True)
class Frame:
    """One message as it came. A large payload is a view, to spare a copy."""

    message_id: int
    command: int
    flags: int
    error: int
    payload: Buffer
    fds: tuple[int, ...]


class BadHeader(RemoteProtocolError):
    """A header after which the stream cannot be followed; ``header`` is what it says."""

    def __init__(self, sentence: str, header: Header) -> None:
        super().__init__(sentence)
        self.header = header


class FrameReader:
    """Cuts a stream into frames: `receive` takes a chunk, `next_frame` gives what is complete.

    Holds what arrived of one message and never more: a header that announces more than
    ``max_data_xfer_size`` bytes of data (and some slack) is an error before its body is waited for.
    """

    def __init__(self, max_data_xfer_size: int) -> None:
        self.limit = HEADER_SIZE + SLACK + max_data_xfer_size
        self._data: bytes | bytearray = b""
        self._at = 0
        self._received = 0  # bytes of the stream so far: the end of the last chunk
        self._fds: deque[tuple[int, tuple[int, ...]]] = deque()  # each with the end of its chunk

    @property
    def in_message(self) -> bool:
        """Whether part of a message is held."""
        return len(self._data) > self._at

    @property
    def is_empty(self) -> bool:
        """Whether nothing is held: no part of a message, no descriptor."""
        return not self._data and not self._fds

    @property
    def held(self) -> bytes:
        """The bytes that came and are in no frame yet."""
        return bytes(memoryview(self._data)[self._at :])

    @property
    def pending_fds(self) -> tuple[int, ...]:
        """The descriptors that came and are in no frame yet."""
        return tuple(fd for _, fds in self._fds for fd in fds)

    def receive(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Takes what one recvmsg gave."""
        self._received += len(data)
        if fds:
            self._fds.append((self._received, tuple(fds)))
        if self._data:
            self._data += data
        else:
            self._data = data

    def next_frame(self) -> Frame | None:
        """The next whole message, or None until more has come. Raises BadHeader."""
        data, at = self._data, self._at
        held = len(data) - at
        if held >= HEADER_SIZE:
            message_id, command, size, flags, error = HEADER.unpack_from(data, at)
            if not HEADER_SIZE <= size <= self.limit:
                raise self._bad_size(Header(message_id, command, size, flags, error))
            if size == held:
                payload = data[at + HEADER_SIZE :] if size < 4096 else memoryview(data)[at + HEADER_SIZE :]
                self._data, self._at = b"", 0
                return Frame(message_id, command, flags, error, payload, self._claim() if self._fds else ())
            if size < held:
                self._at = at + size
                payload = data[at + HEADER_SIZE : at + size]
                return Frame(message_id, command, flags, error, payload, self._claim() if self._fds else ())
        if held:
            self._keep()
        return None

    def claim_all(self) -> tuple[int, ...]:
        """Every descriptor not yet in a frame; the reader forgets them, and all bytes it holds."""
        fds = self.pending_fds
        self._fds.clear()
        self._data, self._at = b"", 0
        return fds

    def _claim(self) -> tuple[int, ...]:
        """The descriptors of the frame just cut: those whose chunk ended no later than the frame."""
        end = self._received - (len(self._data) - self._at)
        claimed: list[int] = []
        while self._fds and self._fds[0][0] <= end:
            claimed += self._fds.popleft()[1]
        return tuple(claimed)

    def _keep(self) -> None:
        """Keeps only the message in progress, in a buffer that can grow."""
        if not isinstance(self._data, bytearray):
            self._data = bytearray(memoryview(self._data)[self._at :])
        else:
            del self._data[: self._at]
        self._at = 0
        if sum(len(fds) for _, fds in self._fds) > MAX_FDS:
            header = Header.decode(self._data.ljust(HEADER_SIZE, b"\0"))
            raise BadHeader(f"a message comes with more than {MAX_FDS} descriptors", header)

    def _bad_size(self, header: Header) -> BadHeader:
        return BadHeader(
            f"a header announces {header.size} bytes, a message has {HEADER_SIZE} to {self.limit} of them",
            header,
        )
