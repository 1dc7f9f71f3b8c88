"""Makes the captures in tests/trace/captures that no virtual machine is needed for.

    python -m tests.trace.make_captures

They are committed: the program is here so that what is in them can be read, and changed. Their clock goes
10 microseconds a message, from the first second of 2026.
"""

import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path

from outboard import Client, Device, Server
from outboard.client.qemu import QemuClient
from outboard.client.transport import Transport
from outboard.devices.nvme import Nvme
from outboard.drivers.nvme import NvmeDriver
from outboard.errors import RemoteError
from outboard.protocol import CLIENT_DEFAULTS, SERVER_DEFAULTS, Command, Direction, Header
from outboard.protocol.codec import FrameReader
from outboard.protocol.messages import (
    Bitmap,
    DeviceFeature,
    DeviceInfo,
    DeviceReset,
    DirtyPages,
    DmaLayout,
    DmaMap,
    DmaRead,
    DmaReadReply,
    DmaUnmap,
    DmaWrite,
    DmaWriteReply,
    Empty,
    IoSubRegion,
    IrqInfo,
    Message,
    MigDataRead,
    MigDataReadReply,
    MigDataWrite,
    MultiWrite,
    RegionInfo,
    RegionIoFds,
    RegionRead,
    RegionReadReply,
    RegionWrite,
    RegionWriteMulti,
    RegionWriteMultiReply,
    RegionWriteReply,
    SetIrqs,
    Version,
)
from outboard.protocol.region_messages import Area
from outboard.protocol.wire import HeaderFlag
from outboard.storage import open_storage
from outboard.trace import Captured, CaptureWriter

CAPTURES = Path(__file__).parent / "captures"
START, TICK = 1_767_225_600 * 10**9, 10_000
TO_SERVER, TO_CLIENT = Direction.TO_SERVER, Direction.TO_CLIENT


class Recorder:
    """A `Transport` around another that writes down all that passes."""

    def __init__(self, inner: Transport, writer: CaptureWriter, connection: int) -> None:
        self._inner, self._writer, self._connection = inner, writer, connection
        self._readers = {direction: FrameReader(1 << 20) for direction in Direction}
        self._clock = count(START, TICK)

    def send(self, data: bytes, fds: Sequence[int] = (), timeout: float | None = None) -> None:
        self._note(TO_SERVER, data, fds)
        self._inner.send(data, fds, timeout)

    def receive(self, timeout: float | None) -> tuple[bytes, Sequence[int]]:
        data, fds = self._inner.receive(timeout)
        self._note(TO_CLIENT, data, fds)
        return data, fds

    def wait(self, fd: int, timeout: float) -> bool:
        return self._inner.wait(fd, timeout)

    def close(self) -> None:
        self._inner.close()

    def _note(self, direction: Direction, data: bytes, fds: Sequence[int]) -> None:
        reader = self._readers[direction]
        reader.receive(data, fds)
        while (frame := reader.next_frame()) is not None:
            size = 16 + len(frame.payload)
            header = Header(frame.message_id, frame.command, size, frame.flags, frame.error)
            message = header.encode() + bytes(frame.payload)
            captured = Captured(
                next(self._clock), direction, message, len(frame.fds), connection=self._connection
            )
            self._writer.write(captured)


def recorded(kind: type[Client], path: Path, device: Device, use: Callable[[Client], None]) -> None:
    """What passes when ``use`` drives ``device`` through a client of this kind."""

    class Recording(kind):  # type: ignore[valid-type, misc]
        def _open(self, transport: Transport, timeout: float | None) -> None:
            super()._open(Recorder(transport, writer, connection), timeout)

    with path.open("wb") as file, tempfile.TemporaryDirectory() as folder:
        writer = CaptureWriter(file)
        connection = writer.connection(f"/run/{path.stem}.sock")
        socket = Path(folder, "socket")
        with Server(device, socket).start(), Recording(socket) as client:
            use(client)


def edu(client: Client) -> None:
    """A driver of QEMU's teaching device, and one mistake of it."""
    assert isinstance(client, QemuClient)
    client.bus_master(True)
    bar = client.bar(0)
    bar.read32(0x00)
    bar.write32(0x04, 0x0F0F_0F0F)
    bar.read32(0x04)
    bar.write32(0x08, 5)
    bar.read32(0x08)
    for offset, value in ((0x80, 0x1000), (0x88, 0x4_0000), (0x90, 16), (0x98, 1)):
        bar.write64(offset, value)
    with suppress(RemoteError):
        client.region_info(99)


def nvme(client: Client) -> None:
    """A controller, enabled, identified and disabled."""
    client.config.read(0, 256)
    with NvmeDriver(client) as driver:
        driver.identify(1)
        driver.identify(0, 1)


def every_command() -> Iterator[Captured]:
    """All commands and replies, errors, what older drafts had, and what is none of it."""
    clock, ids = count(START, TICK), count(1)

    def sent(
        direction: Direction, command: int, id: int, flags: int, payload: bytes, **rest: object
    ) -> Captured:
        error = rest.pop("error", 0)
        assert isinstance(error, int)
        header = Header(id, command, 16 + len(payload), flags, error).encode()
        return Captured(next(clock), direction, header + payload, **rest)  # type: ignore[arg-type]

    def exchange(
        command: Command,
        request: Message,
        reply: Message | None = None,
        *,
        fds: int = 0,
        reply_fds: int = 0,
        error: int = 0,
        socket: int = 0,
        remark: str = "",
        layout: DmaLayout | None = None,
    ) -> Iterator[Captured]:
        from_server = command in (Command.DMA_READ, Command.DMA_WRITE)
        there, back = (TO_CLIENT, TO_SERVER) if from_server else (TO_SERVER, TO_CLIENT)
        id = next(ids)
        bodies = [
            b"" if body is None else body.encode(layout) if layout else body.encode()  # type: ignore[call-arg]
            for body in (request, reply)
        ]
        posted = HeaderFlag.NO_REPLY if reply is None and not error else 0
        yield sent(there, command, id, posted, bodies[0], fds=fds, socket=socket, remark=remark)
        if error:
            flags = HeaderFlag.REPLY | HeaderFlag.ERROR
            yield sent(back, command, id, flags, b"", error=error, socket=socket)
        elif reply is not None:
            yield sent(back, command, id, HeaderFlag.REPLY, bodies[1], fds=reply_fds, socket=socket)

    offer = Version(0, 1, SERVER_DEFAULTS)
    yield from exchange(Command.VERSION, Version(0, 1, CLIENT_DEFAULTS), offer, reply_fds=1)
    ram = DmaMap(32, 3, 0, 0, 0xA_0000)
    yield from exchange(Command.DMA_MAP, ram, Empty(), fds=1)
    yield from exchange(Command.DMA_MAP, DmaMap(32, 1 | 4, 0x1000, 0xC_0000, 0x1000), error=17)
    yield from exchange(Command.DMA_UNMAP, DmaUnmap(24, 0, 0, 0xA_0000), DmaUnmap(24, 0, 0, 0xA_0000))
    bitmap = DmaUnmap(48, 1, 0, 0x4000, Bitmap(4096, 8, bytes([0b1010]) + bytes(7)))
    yield from exchange(Command.DMA_UNMAP, bitmap, bitmap)
    yield from exchange(Command.DMA_UNMAP, DmaUnmap(24, 2, 0, 0), DmaUnmap(24, 2, 0, 0))
    yield from exchange(Command.DEVICE_GET_INFO, DeviceInfo(16, 0, 0, 0), DeviceInfo(16, 3, 9, 5))
    region = RegionInfo(0, 7, 0, 0, 0x4000, 0x10000, (Area(0x1000, 0x1000), Area(0x3000, 0x1000)))
    asked = RegionInfo(32, 0, 0, 0, 0, 0)
    yield from exchange(Command.DEVICE_GET_REGION_INFO, asked, region.fitted(32))
    asked = RegionInfo(80, 0, 0, 0, 0, 0)
    yield from exchange(Command.DEVICE_GET_REGION_INFO, asked, region.fitted(80), reply_fds=1)
    subs = (IoSubRegion(0x1000, 4, 0, 0, 0, 0), IoSubRegion(0x1008, 4, 0, 0, 1, 7))
    fds = RegionIoFds(96, 0, 0, 2, subs)
    yield from exchange(Command.DEVICE_GET_REGION_IO_FDS, RegionIoFds(96, 0, 0, 0), fds, reply_fds=1)
    shadow = RegionIoFdsOf48(64, 0, 0, 1)
    yield from exchange(Command.DEVICE_GET_REGION_IO_FDS, RegionIoFds(64, 0, 0, 0), shadow, reply_fds=2)
    for index, vectors in enumerate((1, 8, 33, 1, 1)):
        info = IrqInfo(16, 9 if index else 7, index, vectors)
        yield from exchange(Command.DEVICE_GET_IRQ_INFO, IrqInfo(16, 0, index, 0), info)
    for flags, index, start, length, data, carried in (
        (0x24, 2, 0, 4, b"", 4),
        (0x24, 2, 1, 1, b"", 0),
        (0x21, 2, 0, 0, b"", 0),
        (0x22, 1, 0, 3, b"\1\0\1", 0),
        (0x09, 0, 0, 1, b"", 0),
        (0x14, 0, 0, 1, b"", 1),
        (0x3F, 7, 0, 1, b"", 0),
    ):
        irqs = SetIrqs(20 + len(data), flags, index, start, length, data)
        last = index == 7
        yield from exchange(
            Command.DEVICE_SET_IRQS, irqs, None if last else Empty(), fds=carried, error=22 if last else 0
        )
    head = bytes.fromhex("36 1b 01 00 06 00 10 00 01 02 08 01 00 00 00 00")
    yield from exchange(Command.REGION_READ, RegionRead(0, 7, 16), RegionReadReply(0, 7, 16, head))
    yield from exchange(Command.REGION_READ, RegionRead(0x1C, 0, 4), RegionReadReply(0x1C, 0, 4, b"\1\0\0\0"))
    write = RegionWrite(4, 7, 2, b"\6\4")
    yield from exchange(Command.REGION_WRITE, write, RegionWriteReply(4, 7, 2), remark="held for 3 ms")
    yield from exchange(Command.REGION_WRITE, RegionWrite(0x1000, 0, 4, b"\5\0\0\0"))
    yield from exchange(Command.REGION_READ, RegionRead(1 << 40, 0, 4), error=22)
    page = bytes(range(32))  # longer data is cut by some versions of tshark, by others not
    yield from exchange(Command.DMA_READ, DmaRead(0x1000, 32), DmaReadReply(0x1000, 32, page), socket=1)
    yield from exchange(Command.DMA_WRITE, DmaWrite(0x2000, 32, page), DmaWriteReply(0x2000, 32))
    old = DmaLayout.QEMU10
    yield from exchange(Command.DMA_READ, DmaRead(0x1000, 8), DmaReadReply(0x1000, 8, page[:8]), layout=old)
    yield from exchange(Command.DMA_WRITE, DmaWrite(0x2000, 8, page[:8]), DmaWriteReply(0, 0), layout=old)
    yield from exchange(Command.DEVICE_RESET, DeviceReset(), Empty())
    yield from exchange(Command.DIRTY_PAGES, DirtyPages(8, 1), DirtyPages(8, 1))
    writes = RegionWriteMulti((MultiWrite(0x1000, 0, b"\1\0\0\0"), MultiWrite(4, 7, b"\6\0")))
    yield from exchange(Command.REGION_WRITE_MULTI, writes, RegionWriteMultiReply(2))
    for flags, data, answer in (
        (1 << 16 | 1, b"", (7).to_bytes(8, "little")),
        (1 << 17 | 2, (3).to_bytes(4, "little") + bytes(4), b""),
        (1 << 16 | 2, b"", (2).to_bytes(4, "little") + bytes(4)),
        (1 << 18 | 1 << 17 | 6, b"", b""),
        (1 << 17 | 6, b"".join(n.to_bytes(8, "little") for n in (4096, 1, 0x1000, 0x4000)), b""),
        (1 << 16 | 8, b"".join(n.to_bytes(8, "little") for n in (0x1000, 0x4000, 4096)), b""),
        (1 << 17 | 7, b"", b""),
        (1 << 17 | 3, b"", b""),
    ):
        report = data + (5).to_bytes(8, "little") if flags & 0xFFFF == 8 else data or answer
        feature = DeviceFeature(8 + len(report), flags, report)
        request = DeviceFeature(8 + len(report), flags, data)
        yield from exchange(Command.DEVICE_FEATURE, request, feature)
    yield from exchange(Command.DEVICE_FEATURE, DeviceFeature(8, 1 << 16 | 9), error=25)
    yield from exchange(Command.MIG_DATA_READ, MigDataRead(40, 32), MigDataReadReply(40, 32, page))
    yield from exchange(Command.MIG_DATA_READ, MigDataRead(40, 32), MigDataReadReply(40, 0, b""))
    yield from exchange(Command.MIG_DATA_WRITE, MigDataWrite(40, 32, page), Empty())
    # A command of the future, an error reply as the Rust crate sends it, and what cannot be decoded.
    yield sent(TO_SERVER, 19, 200, 0, b"\x08\0\0\0\0\0\0\0")
    yield sent(TO_CLIENT, 19, 200, HeaderFlag.ERROR, b"", error=38)
    yield sent(TO_CLIENT, Command.DEVICE_RESET, 201, HeaderFlag.REPLY, b"")
    yield sent(TO_SERVER, Command.REGION_READ, 202, 0, b"\0" * 9)
    yield sent(TO_SERVER, Command.REGION_WRITE, 203, 0, b"\0" * 12 + b"\x08\0\0\0" + b"\0" * 4)
    yield sent(TO_CLIENT, Command.REGION_READ, 204, 0, b"\0" * 8 + b"\7\0\0\0\4\0\0\0")
    yield sent(TO_SERVER, Command.VERSION, 205, 2, b"")
    yield sent(TO_SERVER, Command.VERSION, 206, 0, b"\0\0\1\0" + b'{"capabilities": 7\0')
    yield Captured(next(clock), TO_SERVER, Header(207, Command.DEVICE_RESET, 64, 0).encode())
    yield Captured(next(clock), TO_SERVER, b"\x01\0\x02")


class RegionIoFdsOf48(RegionIoFds):
    """The reply with libvfio-user's sub-region, which has 48 bytes and a shadow."""

    def encode(self) -> bytes:
        words = (0x1000, 4, 0, 2, 0, 1, 0x40, 0)
        widths = (8, 8, 4, 4, 4, 4, 8, 8)
        sub = b"".join(word.to_bytes(width, "little") for word, width in zip(words, widths, strict=True))
        return super().encode() + sub


def main() -> None:
    """Makes them all."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
    device = __import__("01_edu").Edu()
    recorded(QemuClient, CAPTURES / "edu-start.pcapng", device, edu)
    disk = Nvme(open_storage("ram:1M"), serial="CAPTURE-1", doorbells="trapped")
    recorded(Client, CAPTURES / "nvme-identify.pcapng", disk, nvme)
    with (CAPTURES / "every-command.pcapng").open("wb") as file:
        writer = CaptureWriter(file)
        writer.connection("/run/every-command.sock")
        for captured in every_command():
            writer.write(captured)


if __name__ == "__main__":
    main()
