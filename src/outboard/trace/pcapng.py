"""pcapng: the blocks that a capture file is made of, written and read.

IETF draft "PCAP Next Generation (pcapng) Capture File Format", sections 3 and 4: section header,
interface description, enhanced packet. Other blocks and options are passed over. What is written is
little-endian with times in nanoseconds; either byte order and any resolution are read.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from struct import Struct, pack
from struct import error as StructError
from typing import BinaryIO

from outboard.errors import CaptureError

SECTION_HEADER, INTERFACE, ENHANCED_PACKET = 0x0A0D0D0A, 1, 6
BYTE_ORDER = 0x1A2B3C4D
COMMENT, APPLICATION, INTERFACE_NAME, RESOLUTION, TIME_OFFSET = 1, 4, 2, 9, 14
MOST_BLOCK = 16 << 20  # what Wireshark reads; a larger length is taken for damage, not allocated
BILLION = 10**9

_SMALLEST_BLOCK = 12


@dataclass(frozen=True, slots=True)
class Interface:
    """Where packets were captured; ``ticks`` of a packet's time make a second, ``offset`` is in seconds."""

    link_type: int
    name: str = ""
    ticks: int = 10**6
    offset: int = 0

    def nanoseconds(self, time: int) -> int:
        """The nanoseconds since the epoch that a packet's time stands for."""
        return time * BILLION // self.ticks + self.offset * BILLION


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet: ``time`` in nanoseconds since the epoch, ``length`` in bytes before ``data`` was cut.

    ``interface`` counts the interfaces of the whole file, from 0.
    """

    interface: int
    time: int
    data: bytes
    length: int
    comment: str = ""


def section(application: str) -> bytes:
    """The block that starts a file; ``application`` names who wrote it."""
    body = pack("<IHHq", BYTE_ORDER, 1, 0, -1)
    return _block(SECTION_HEADER, body, _option(APPLICATION, application.encode()))


def interface(link_type: int, name: str) -> bytes:
    """The block that describes an interface, whose packets have times in nanoseconds."""
    body = pack("<HHI", link_type, 0, 0)
    return _block(INTERFACE, body, _option(INTERFACE_NAME, name.encode()), _option(RESOLUTION, b"\x09"))


def packet(packet: Packet) -> bytes:
    """The block of one packet."""
    time = packet.time
    head = pack(
        "<IIIII",
        packet.interface,
        time >> 32 & 0xFFFF_FFFF,
        time & 0xFFFF_FFFF,
        len(packet.data),
        packet.length,
    )
    comment = [_option(COMMENT, packet.comment.encode())] if packet.comment else []
    return _block(ENHANCED_PACKET, head + _padded(packet.data), *comment)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _option(code: int, value: bytes) -> bytes:
    value = value[:0xFFFF]
    return pack("<HH", code, len(value)) + _padded(value)


def _block(kind: int, body: bytes, *options: bytes) -> bytes:
    end = bytes(4) if options else b""
    content = b"".join((body, *options, end))
    length = pack("<I", len(content) + _SMALLEST_BLOCK)
    return b"".join((pack("<I", kind), length, content, length))


class BlockReader(Iterator[Packet]):
    """The packets of a pcapng file, one at a time: also of a pipe that is still written to.

    ``interfaces`` are those described so far. ``cut_short``: the file ended inside a block, as it does
    when its writer was killed. Raises `CaptureError` where the file is no pcapng, or damaged.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.interfaces: list[Interface] = []
        self.cut_short = False
        self._file = file
        self._order = ""
        self._position = 0
        self._first = 0  # the section's first interface

    def __next__(self) -> Packet:
        while True:
            block = self._next_block()
            if block is None:
                raise StopIteration
            kind, body = block
            try:
                if kind == INTERFACE:
                    self.interfaces.append(self._interface(body))
                elif kind == ENHANCED_PACKET:
                    return self._packet(body)
            except StructError as error:
                raise self._damage(
                    f"a block of {len(body)} bytes is too short for its kind, {kind}"
                ) from error

    def _next_block(self) -> tuple[int, bytes] | None:
        head = self._read(8)
        if head is None:
            return None
        if head[:4] == pack("<I", SECTION_HEADER):  # the same in both byte orders
            return self._start_section(head)
        if not self._order:
            raise CaptureError("this is no pcapng file: it does not start with a section header")
        kind, length = Struct(self._order + "II").unpack(head)
        return self._body(kind, length, b"")

    def _start_section(self, head: bytes) -> tuple[int, bytes] | None:
        magic = self._read(4)
        if magic is None:
            return None
        orders = {pack(f"{order}I", BYTE_ORDER): order for order in "<>"}
        if magic not in orders:
            raise self._damage(f"a section has the byte-order magic {magic.hex()}")
        self._order = orders[magic]
        self._first = len(self.interfaces)
        (length,) = Struct(self._order + "I").unpack_from(head, 4)
        return self._body(SECTION_HEADER, length, magic)

    def _body(self, kind: int, length: int, start: bytes) -> tuple[int, bytes] | None:
        if not _SMALLEST_BLOCK + len(start) <= length <= MOST_BLOCK or length % 4:
            raise self._damage(f"a block claims {length} bytes")
        rest = self._read(length - 8 - len(start))
        if rest is None:
            return None
        if Struct(self._order + "I").unpack_from(rest, len(rest) - 4) != (length,):
            raise self._damage(f"a block of {length} bytes does not end with that number")
        return kind, start + rest[:-4]

    def _read(self, count: int) -> bytes | None:
        """``count`` bytes; None where the file ends."""
        data = self._file.read(count)
        while data and len(data) < count and (more := self._file.read(count - len(data))):
            data += more
        self._position += len(data)
        if len(data) == count:
            return data
        self.cut_short = self.cut_short or bool(data) or count != 8
        return None

    def _interface(self, body: bytes) -> Interface:
        link_type, _, _ = Struct(self._order + "HHI").unpack_from(body)
        options = self._options(body, 8)
        resolution = (options.get(RESOLUTION) or b"\x06")[0]
        base, exponent = (2, resolution & 0x7F) if resolution & 0x80 else (10, resolution)
        offset = options.get(TIME_OFFSET, b"")
        (seconds,) = Struct(self._order + "q").unpack(offset) if len(offset) == 8 else (0,)
        name = options.get(INTERFACE_NAME, b"").decode(errors="replace")
        return Interface(link_type, name, base**exponent, seconds)

    def _packet(self, body: bytes) -> Packet:
        layout = Struct(self._order + "IIIII")
        number, high, low, captured, length = layout.unpack_from(body)
        number += self._first
        if number >= len(self.interfaces):
            raise self._damage(f"a packet is of interface {number}, {len(self.interfaces)} are described")
        end = layout.size + captured
        if end > len(body):
            raise self._damage(f"a packet claims {captured} bytes in a block of {len(body)}")
        comment = self._options(body, end + -end % 4).get(COMMENT, b"").decode(errors="replace")
        time = self.interfaces[number].nanoseconds(high << 32 | low)
        return Packet(number, time, body[layout.size : end], length, comment)

    def _options(self, body: bytes, at: int) -> dict[int, bytes]:
        """The options from ``at`` on, the first of each code; what leaves the block is left out."""
        options: dict[int, bytes] = {}
        layout = Struct(self._order + "HH")
        while at + layout.size <= len(body):
            code, length = layout.unpack_from(body, at)
            at += layout.size
            if not code or at + length > len(body):
                break
            options.setdefault(code, body[at : at + length])
            at += length + -length % 4
        return options

    def _damage(self, sentence: str) -> CaptureError:
        return CaptureError(f"the capture is damaged before byte {self._position}: {sentence}")
