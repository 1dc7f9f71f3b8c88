"""Messages of vfio-user in a capture file: pcapng, link type USER0, one interface a connection.

Each packet is a pseudo-header of 8 bytes and the whole message as it passed, header and payload::

    0  u8   version, 1
    1  u8   direction: 0 client to server, 1 server to client
    2  u8   socket: 0 the main one, 1 the twin
    3  u8   1: the packet continues the message of the packet before it, else 0
    4  u16  descriptors that came with the message
    6  u16  the connection: the number of the interface, which dissectors are not told

Only a message longer than `PIECE` has more than one packet: Wireshark reads no larger ones. An
interface is named after the server's socket; a packet's comment says what a filter did to the message.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from os import PathLike
from struct import Struct
from types import TracebackType
from typing import BinaryIO, Self

from outboard.errors import CaptureError
from outboard.protocol.states import Direction
from outboard.trace import pcapng

LINK_TYPE = 147  # LINKTYPE_USER0
PSEUDO_HEADER = Struct("<BBBBHH")
VERSION = 1
CONTINUES = 1
PIECE = 0x4_0000 - PSEUDO_HEADER.size  # Wireshark's largest packet is 256 KiB
MOST_MESSAGE = 80 << 20  # the largest transfer a peer of ours takes is 64 MiB

DIRECTIONS = (Direction.TO_SERVER, Direction.TO_CLIENT)


@dataclass(frozen=True, slots=True)
class Captured:
    """One message as it passed.

    ``time`` is in nanoseconds since the epoch; ``direction`` is where it went; ``data`` is the whole
    message, header and payload, less ``missing`` bytes at its end where the capture was told to keep
    less. ``fds`` descriptors came with it, through the main ``socket`` (0) or the twin (1). ``remark``
    says what a filter did to it. ``connection`` is the place in the file's list of connections.
    """

    time: int
    direction: Direction
    data: bytes
    fds: int = 0
    socket: int = 0
    remark: str = ""
    connection: int = 0
    missing: int = 0


class CaptureWriter:
    """Writes a capture into ``file``: every message at once, so that a reader may follow a pipe.

    ``snaplen``: keep at most so many bytes of each message, for a capture that is only looked at.

    >>> from io import BytesIO
    >>> file = BytesIO()
    >>> writer = CaptureWriter(file)
    >>> reset = bytes.fromhex("01000d00100000000000000000000000")
    >>> writer.write(Captured(0, Direction.TO_SERVER, reset, connection=writer.connection("/tmp/disk.sock")))
    >>> reader = CaptureReader(BytesIO(file.getvalue()))
    >>> [captured.data == reset for captured in reader], reader.connections
    ([True], ['/tmp/disk.sock'])
    """

    def __init__(self, file: BinaryIO, *, snaplen: int | None = None) -> None:
        self._file = file
        self._snaplen = MOST_MESSAGE if snaplen is None else snaplen
        self._connections = 0
        self._put(pcapng.section("outboard"))

    def connection(self, name: str) -> int:
        """Adds a connection to the server whose socket is ``name``: the number for `Captured.connection`."""
        self._put(pcapng.interface(LINK_TYPE, name))
        self._connections += 1
        return self._connections - 1

    def write(self, captured: Captured) -> None:
        """Adds one message. Raises ValueError if `connection` did not give its connection."""
        if not 0 <= captured.connection < self._connections:
            raise ValueError(f"connection {captured.connection} is not among the {self._connections} added")
        kept = captured.data[: self._snaplen]
        missing = captured.missing + len(captured.data) - len(kept)
        pieces = [kept[at : at + PIECE] for at in range(0, len(kept), PIECE)] or [b""]
        direction = DIRECTIONS.index(captured.direction)
        blocks = []
        for index, piece in enumerate(pieces):
            head = (VERSION, direction, captured.socket, CONTINUES if index else 0)
            data = PSEUDO_HEADER.pack(*head, captured.fds, captured.connection & 0xFFFF) + piece
            length = len(data) + (missing if index == len(pieces) - 1 else 0)
            remark = "" if index else captured.remark
            packet = pcapng.Packet(captured.connection, captured.time, data, length, remark)
            blocks.append(pcapng.packet(packet))
        self._put(b"".join(blocks))

    def _put(self, data: bytes) -> None:
        self._file.write(data)
        self._file.flush()


class CaptureReader(Iterator[Captured]):
    """The messages of a capture, in its order; closes ``file`` at the end, or as a context manager.

    ``connections`` are the names of those met so far: the list grows. ``cut_short``: the file ended inside
    a packet, as it does when its writer was killed; what came before is whole. Packets of other link types
    are passed over. Raises `CaptureError` where the file is no capture of ours, or damaged.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._blocks = pcapng.BlockReader(file)
        self.connections: list[str] = []
        self._messages = self._joined()

    @property
    def cut_short(self) -> bool:
        """Whether the file ended inside a packet."""
        return self._blocks.cut_short

    def __next__(self) -> Captured:
        try:
            return next(self._messages)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _joined(self) -> Iterator[Captured]:
        """Whole messages, those of several packets put together.

        A message is given when it is certain to be whole: at once unless its last piece is a full one.
        """
        pieces: list[Captured] = []
        for continues, captured in self._pieces():
            if continues and not pieces:
                raise CaptureError("a packet continues a message that the capture does not hold")
            if pieces and not continues:
                yield _join(pieces)
                pieces = []
            pieces.append(captured)
            if sum(len(piece.data) for piece in pieces) > MOST_MESSAGE:
                raise CaptureError(f"a message has more than {MOST_MESSAGE} bytes: the capture is damaged")
            if len(captured.data) < PIECE:
                yield _join(pieces)
                pieces = []
        if pieces:
            yield _join(pieces)

    def _pieces(self) -> Iterator[tuple[bool, Captured]]:
        """Each packet: whether it continues another, and what it holds."""
        for packet in self._blocks:
            self._meet()
            if self._blocks.interfaces[packet.interface].link_type != LINK_TYPE:
                continue
            data, size = packet.data, PSEUDO_HEADER.size
            if len(data) < size:
                raise CaptureError(f"a packet has {len(data)} bytes, its pseudo-header alone has {size}")
            version, direction, socket, continues, fds, _ = PSEUDO_HEADER.unpack_from(data)
            if version != VERSION or direction >= len(DIRECTIONS):
                raise CaptureError(
                    f"a packet has version {version} and direction {direction}, "
                    f"a capture of vfio-user has version {VERSION} and direction 0 or 1"
                )
            missing = max(packet.length - len(data), 0)
            yield (
                continues == CONTINUES,
                Captured(
                    packet.time,
                    DIRECTIONS[direction],
                    data[size:],
                    fds,
                    socket,
                    packet.comment,
                    packet.interface,
                    missing,
                ),
            )
        self._meet()

    def _meet(self) -> None:
        """Note the names of new connections."""
        new = self._blocks.interfaces[len(self.connections) :]
        self.connections += [interface.name for interface in new]


def _join(pieces: list[Captured]) -> Captured:
    if len(pieces) == 1:
        return pieces[0]
    data = b"".join(piece.data for piece in pieces)
    return replace(pieces[0], data=data, missing=pieces[-1].missing)


def read_capture(path: str | PathLike[str]) -> CaptureReader:
    """The messages in the capture file at ``path``, and the names of its connections.

    Raises OSError if it cannot be opened, `CaptureError` on the way if it is none.
    """
    return CaptureReader(open(path, "rb"))
