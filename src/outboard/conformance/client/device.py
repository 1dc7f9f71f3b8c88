"""The device that clients are judged with: one connection of a small PCI function, and what was heard on it.

A memory BAR of four pages, the second of which may be mapped; INTx, four MSI-X vectors, ERR and REQ;
256 bytes of configuration space. vfio-user specification, all messages from
client to server. A `Script` that does something else overrides one of the methods.
"""

import json
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from outboard.conformance import wire
from outboard.conformance.peer import Closed, Peer, Silence
from outboard.conformance.points import Wrong
from outboard.conformance.wire import Message

REGIONS, VECTORS = 9, (1, 0, 4, 1, 1)
IRQ_FLAGS = (7, 1, 1, 1, 1)
BAR_SIZE, AREA = 4 * wire.PAGE, (wire.PAGE, wire.PAGE)
SIZES = {0: BAR_SIZE, wire.CONFIG: 256}
EINVAL, ENOSPC = 22, 28
KEPT = 1024
"""Bytes of each message that are remembered: more than any point looks at."""
MOST_MAPS = 512
"""Maps, each with a descriptor, that a client can have us hold."""
Answer = tuple[bytes, Sequence[int]] | int
"""Payload and descriptors of a reply, or the errno of a refusal."""


def configuration() -> bytearray:
    """Vendor 0x1234, device 0x11e9, BAR 0, pin A, MSI-X with its table in page 2 and its PBA in page 3."""
    space = bytearray(256)
    struct.pack_into("<HHHH", space, 0, 0x1234, 0x11E9, 0, 0x0010)
    space[0x09:0x0C] = b"\0\0\xff"
    space[0x34], space[0x3D] = 0x40, 1
    struct.pack_into("<BBHII", space, 0x40, 0x11, 0, 3, 2 * wire.PAGE, 3 * wire.PAGE)
    return space


@dataclass(slots=True)
class Mapped:
    """A DMA_MAP as it came; ``fd`` is ours."""

    address: int
    size: int
    offset: int
    flags: int
    fd: int | None


@dataclass(slots=True)
class Heard:
    """What one connection told of the client. ``left``: the client closed it."""

    messages: list[Message] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)
    faults: dict[str, list[str]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    left: bool = False

    def fault(self, id: str, sentence: str) -> None:
        """Note that a point does not hold."""
        self.faults.setdefault(id, []).append(sentence)

    def of(self, command: int) -> list[Message]:
        """The messages of one command."""
        return [message for message in self.messages if message.command == command]

    @property
    def commands(self) -> list[int]:
        """The commands in their order."""
        return [message.command for message in self.messages]


class Script:
    """One connection. ``settle`` is how long a client may be silent until it is taken to have come to"
    " rest.
    """

    name: ClassVar[str] = "plain"
    version: ClassVar[tuple[int, int]] = (0, 0)
    capabilities: ClassVar[dict[str, Any] | bytes | None] = {
        "max_msg_fds": 8,
        "max_data_xfer_size": 1 << 20,
        "pgsizes": 4096,
    }
    patience: ClassVar[float] = 0.0
    """Seconds of silence, beyond ``settle``, that this script is about."""

    def __init__(self, peer: Peer, settle: float) -> None:
        self.peer = peer
        self.heard = Heard()
        self.maps: dict[int, Mapped] = {}
        self.config, self.bar = configuration(), bytearray(BAR_SIZE)
        self.memory = os.memfd_create("conformance")
        os.truncate(self.memory, BAR_SIZE)
        peer.timeout = settle + self.patience
        peer.largest = wire.HEADER_SIZE + wire.PAGE + wire.DEFAULT_TRANSFER

    def run(self) -> Heard:
        """Serve until the client leaves or comes to rest."""
        try:
            while True:
                try:
                    message = self.peer.receive("a command")
                except Silence:
                    if not self.idle():
                        break
                    continue
                self.heard.messages.append(message._replace(payload=message.payload[:KEPT]))
                self.take(message)
        except Closed:
            self.heard.left = True
        except Wrong as error:
            self.heard.fault("stream", error.saw)
        finally:
            self.heard.cut = self.peer.cut
            self.close()
        return self.heard

    def idle(self) -> bool:
        """The client is silent; whether there is something left to try."""
        return False

    def take(self, message: Message) -> None:
        """One command: judged for its form, carried out, answered."""
        answer = self.carry_out(message)
        if message.command not in (wire.DMA_MAP,):
            wire.close_all(message.fds)
        if not message.flags & wire.NO_REPLY:
            self.answer(message, answer)

    def answer(self, message: Message, answer: Answer) -> None:
        """Send the reply, in one piece."""
        if isinstance(answer, int):
            self.peer.refuse(message._replace(fds=()), answer)
        else:
            self.peer.reply(message, answer[0], fds=answer[1])

    def carry_out(self, message: Message) -> Answer:
        """What a well-behaved server answers."""
        method = {
            wire.VERSION: self.agree,
            wire.DMA_MAP: self.dma_map,
            wire.DMA_UNMAP: self.dma_unmap,
            wire.DEVICE_INFO: self.device_info,
            wire.REGION_INFO: self.region_info,
            wire.IRQ_INFO: self.irq_info,
            wire.SET_IRQS: self.set_irqs,
            wire.REGION_READ: self.read,
            wire.REGION_WRITE: self.write,
            wire.RESET: self.reset,
        }.get(message.command)
        try:
            return EINVAL if method is None else method(message)
        except struct.error:
            self.heard.fault("P134", f"{message}: too short")
            return EINVAL

    def agree(self, message: Message) -> Answer:
        """VERSION."""
        said = self.capabilities
        if isinstance(said, dict):
            said = json.dumps({"capabilities": said}, separators=(",", ":")).encode() + b"\0"
        return struct.pack("=HH", *self.version) + (said or b""), ()

    def reset(self, message: Message) -> Answer:
        """DEVICE_RESET."""
        return b"", ()

    def device_info(self, message: Message) -> Answer:
        """DEVICE_GET_INFO."""
        if struct.unpack_from("=IIII", message.payload)[0] < 16:
            self.heard.fault("P134", "DEVICE_GET_INFO with an argsz below 16")
        return struct.pack("=IIII", 16, 3, REGIONS, len(VECTORS)), ()

    def region_info(self, message: Message) -> Answer:
        """DEVICE_GET_REGION_INFO: BAR 0 has more to say than fits the fixed part."""
        argsz, _, index, _, _, _ = struct.unpack_from("=IIIIQQ", message.payload)
        if argsz < 32:
            self.heard.fault("P130a", f"region info with an argsz of {argsz}, below 32")
        if index >= REGIONS:
            return EINVAL
        if index:
            flags = 3 if SIZES.get(index) else 0
            return struct.pack("=IIIIQQ", 32, flags, index, 0, SIZES.get(index, 0), 0), ()
        chain = self.chain()
        needed = 32 + len(chain)
        if argsz < needed:
            return struct.pack("=IIIIQQ", needed, 7, 0, 0, BAR_SIZE, 0), ()
        return struct.pack("=IIIIQQ", needed, 15, 0, 32, BAR_SIZE, 0) + chain, (self.memory,)

    def chain(self) -> bytes:
        """The capabilities in the description of BAR 0."""
        return struct.pack("=HHIIIQQ", 1, 1, 0, 1, 0, *AREA)

    def irq_info(self, message: Message) -> Answer:
        """DEVICE_GET_IRQ_INFO."""
        _, _, index, _ = struct.unpack_from("=IIII", message.payload)
        if index >= len(VECTORS):
            return EINVAL
        return struct.pack("=IIII", 16, IRQ_FLAGS[index], index, VECTORS[index]), ()

    def set_irqs(self, message: Message) -> Answer:
        """DEVICE_SET_IRQS: what the client asks for has to make sense."""
        argsz, flags, index, start, count = struct.unpack_from("=IIIII", message.payload)
        data = len(message.payload) - 20
        one_each = (flags & 7).bit_count() == 1 and (flags >> 3).bit_count() == 1
        inside = index < len(VECTORS) and start + count <= VECTORS[index]
        fds_fit = len(message.fds) in ((0, count) if flags & wire.DATA_EVENTFD else (0,))
        if argsz < 20 or not one_each or not inside or not fds_fit or data < count * (flags >> 1 & 1):
            self.heard.fault(
                "P132a",
                f"argsz {argsz}, flags {flags:#x}, index {index}, vectors {start} to {start + count},"
                f" {len(message.fds)} descriptors, {data} bytes of data",
            )
            return EINVAL
        return b"", ()

    def read(self, message: Message) -> Answer:
        """REGION_READ."""
        place = self.place(message)
        if place is None:
            return EINVAL
        memory, offset, count = place
        return message.payload[:16] + bytes(memory[offset : offset + count]), ()

    def write(self, message: Message) -> Answer:
        """REGION_WRITE: BARs size, the identity stays."""
        place = self.place(message)
        if place is None:
            return EINVAL
        memory, offset, count = place
        data = message.payload[16 : 16 + count]
        if len(data) != count:
            self.heard.fault("P134", f"REGION_WRITE of {count} bytes with {len(data)} of data")
            return EINVAL
        if memory is self.config:
            self.write_config(offset, data)
        else:
            memory[offset : offset + count] = data
        return message.payload[:16], ()

    def write_config(self, offset: int, data: bytes) -> None:
        """Command, BAR 0, interrupt line and MSI-X control can be written."""
        for at, value in enumerate(data, offset):
            if at in (4, 5, 0x3C, 0x43):
                self.config[at] = value
            elif 0x10 <= at < 0x14:
                self.config[at] = value & (~(BAR_SIZE - 1) >> 8 * (at - 0x10)) & 0xFF

    def place(self, message: Message) -> tuple[bytearray, int, int] | None:
        """The memory, offset and count of an access; None if it is outside."""
        offset, region, count = struct.unpack_from("=QII", message.payload)
        most = self.capabilities.get("max_data_xfer_size", 0) if isinstance(self.capabilities, dict) else 0
        if count > (most or wire.DEFAULT_TRANSFER):
            self.heard.fault("P123c", f"{count} bytes in one message, where the server takes {most}")
        if offset + count > SIZES.get(region, 0):
            self.heard.fault("P131", f"{count} bytes at {offset:#x} of region {region}")
            return None
        return (self.config if region == wire.CONFIG else self.bar), offset, count

    def dma_map(self, message: Message) -> Answer:
        """DMA_MAP: kept with its descriptor."""
        argsz, flags, offset, address, size = struct.unpack_from("=IIQQQ", message.payload)
        fault = self._map_fault(argsz, flags, offset, address, size, message.fds)
        if fault:
            self.heard.fault("P133a", f"{fault}: {size:#x} bytes at {address:#x}, flags {flags:#x}")
            wire.close_all(message.fds)
            return EINVAL
        if len(self.maps) >= MOST_MAPS:
            wire.close_all(message.fds)
            return ENOSPC
        fd = message.fds[0] if message.fds else None
        self.maps[address] = Mapped(address, size, offset, flags, fd)
        return b"", ()

    def _map_fault(
        self, argsz: int, flags: int, offset: int, address: int, size: int, fds: Sequence[int]
    ) -> str:
        if argsz != 32 or not flags & 3 or not size or address + size > 2**64:
            return f"argsz {argsz}, no direction, no size, or beyond the last address"
        if len(fds) > 1:
            return f"{len(fds)} descriptors"
        if fds and os.fstat(fds[0]).st_size < offset + size:
            return f"its file ends at {os.fstat(fds[0]).st_size:#x}, the map at {offset + size:#x}"
        if any(
            one.address < address + size and address < one.address + one.size for one in self.maps.values()
        ):
            return "it overlaps another map"
        return ""

    def dma_unmap(self, message: Message) -> Answer:
        """DMA_UNMAP: of a map, of all in a range, or of everything."""
        _, flags, address, size = struct.unpack_from("=IIQQ", message.payload)
        if flags & 2:
            gone = list(self.maps)
        else:
            gone = [at for at, one in self.maps.items() if address <= at and at + one.size <= address + size]
            if not gone:
                self.heard.fault("P133b", f"{size:#x} bytes at {address:#x}, where no map is")
                return 2
        for at in gone:
            if (fd := self.maps.pop(at).fd) is not None:
                os.close(fd)
        return message.payload[:24], ()

    def close(self) -> None:
        """Close what the client gave."""
        for one in self.maps.values():
            if one.fd is not None:
                os.close(one.fd)
        self.maps.clear()
        os.close(self.memory)
