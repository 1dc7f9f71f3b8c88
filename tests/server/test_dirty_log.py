"""DMA logging over the wire: reports are what the device wrote, for any range and page size."""

import errno
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from outboard import Client, Device
from outboard.dirty_pages import DirtyPages
from outboard.errors import DmaUnmapped, RemoteError
from tests import raw
from tests.raw import RawPeer
from tests.server.conftest import Connect, Serve
from tests.server.gadgets import Gadget

GET, SET = raw.FEATURE_GET, raw.FEATURE_SET
START, STOP, REPORT = raw.LOG_START, raw.LOG_STOP, raw.LOG_REPORT
PAGE = 4096


@pytest.fixture
def served(serve: Serve) -> Callable[[Device], Client]:
    def start(device: Device) -> Client:
        path = serve(device).path
        assert path is not None
        return Client(path)

    return start


@pytest.mark.point("P116")
def test_dirty_pages_are_what_the_device_wrote(served: Callable[[Device], Client]) -> None:
    device = Gadget()
    with served(device) as client:
        client.bus_master()
        low, high = client.memory(16 * PAGE, 0x10000), client.memory(4 * PAGE, 0x20000)
        with pytest.raises(RemoteError):
            client.migration.dirty_pages(0, 0x40000)
        client.migration.start_dirty_log([(low.address, low.size), (high.address, high.size)])
        device.dma.write(0x10FFF, b"ab")
        device.dma.write(0x1FFFF, b"across two maps")
        assert client.migration.dirty_pages(0, 0x40000) == [0x10000, 0x11000, 0x1F000, 0x20000]
        assert client.migration.dirty_pages(0, 0x40000) == []
        device.dma.write(0x15000, b"x")
        assert client.migration.dirty_pages(0, 0x40000, 0x10000) == [0x10000]
        device.dma.write(0x15000, b"x")
        assert client.migration.dirty_pages(0x14000, 0x3000) == [0x15000]
        device.dma.write(0x15000, b"x")
        assert client.migration.dirty_pages(0, 1 << 32, 1 << 30) == [0]
        view = device.dma.view(0x12000, 8, writable=True)
        assert client.migration.dirty_pages(0, 0x40000) == [0x12000]
        view[0] = 1
        assert client.migration.dirty_pages(0, 0x40000) == [0x12000]
        view[0] = 2
        view.release()
        assert client.migration.dirty_pages(0, 0x40000) == [0x12000]
        assert client.migration.dirty_pages(0, 0x40000) == []
        client.migration.stop_dirty_log()
        device.dma.write(0x15000, b"x")
        client.migration.start_dirty_log([])
        assert client.migration.dirty_pages(0, 0x40000) == []


@pytest.mark.point("P116")
@pytest.mark.parametrize(
    "message",
    [
        raw.feature(SET | START, struct.pack("=QII", 4095, 0, 0)),
        raw.feature(SET | START, struct.pack("=QII", 2048, 0, 0)),
        raw.feature(SET | START, struct.pack("=QII", 1 << 31, 0, 0)),
        raw.feature(SET | START, struct.pack("=QII", 4096, 1, 0)),
        raw.feature(SET | START, struct.pack("=QII", 4096, 0xFFFF_FFFF, 0)),
        raw.feature(SET | START, struct.pack("=QIIQQ", 4096, 1, 0, 0, 0)),
        raw.feature(SET | START, struct.pack("=QIIQQ", 4096, 1, 0, 2**64 - 1, 2)),
        raw.feature(SET | STOP),
        raw.feature(GET | REPORT, struct.pack("=QQQ", 0, 4096, 4096), argsz=40),
    ],
)
def test_dirty_logging_takes_no_nonsense(client: RawPeer, message: bytes) -> None:
    assert client.refused(message) == errno.EINVAL


@pytest.mark.point("P116")
@pytest.mark.parametrize(
    ("asked", "room"),
    [
        ((0, 0, 4096), 8),
        ((1, 4096, 4096), 8),
        ((0, 4096, 4097), 8),
        ((0, 2**63, 4096), 8),
        ((2**64 - 4096, 8192, 4096), 8),
        ((0, 4096, 4096), 7),
        ((0, 65 * 4096, 4096), 8),
        ((0, 2**63, 4096), 0x7FFF_FFFF),
    ],
)
def test_a_report_takes_no_nonsense(client: RawPeer, asked: tuple[int, int, int], room: int) -> None:
    client.ask(raw.feature(SET | START, struct.pack("=QII", 4096, 0, 0)))
    client.refused(raw.feature(SET | START, struct.pack("=QII", 4096, 0, 0)))
    data = struct.pack("=QQQ", *asked)
    assert client.refused(raw.feature(GET | REPORT, data, argsz=32 + room)) == errno.EINVAL


@pytest.mark.point("P98", "P116")
def test_older_clients_ask_for_dirty_pages_with_the_unmap(
    gadget: Gadget, client: RawPeer, eventfds: object
) -> None:
    fd = raw.memory_file(4 * PAGE)
    client.write(raw.CONFIG, 4, b"\4")
    client.ask(raw.dma_map(0x10000, 4 * PAGE), [fd])
    os.close(fd)
    unmap = struct.pack("=IIQQQQ", 24 + 16 + 8, 1, 0x10000, 4 * PAGE, PAGE, 8)
    assert client.refused(raw.message(raw.DMA_UNMAP, unmap)) == errno.EINVAL
    client.ask(raw.feature(SET | START, struct.pack("=QII", 4096, 0, 0)))
    gadget.dma.write(0x12000, b"x")
    answer = client.ask(raw.message(raw.DMA_UNMAP, unmap))
    assert struct.unpack("=IIQQQQQ", answer.payload) == (48, 1, 0x10000, 4 * PAGE, PAGE, 8, 0b0100)
    assert gadget.dma.maps == ()


def test_the_log_of_dirty_pages_ends_with_the_client(serve: Serve, connect: Connect, gadget: Gadget) -> None:
    server = serve(gadget)
    client = connect(server)
    client.ask(raw.feature(SET | START, struct.pack("=QII", 4096, 0, 0)))
    client.close()
    client = connect(server)
    client.ask(raw.feature(SET | START, struct.pack("=QII", 4096, 0, 0)))


def test_an_unmap_reports_what_a_thread_of_the_device_wrote_until_the_very_end(
    serve: Serve, connect: Connect
) -> None:
    device = Gadget()
    device.dma.enabled = True
    pauses: list[None] = []
    wrote = False

    @contextmanager
    def poller() -> Iterator[None]:
        nonlocal wrote
        pauses.append(None)
        yield
        pauses.pop()
        if not pauses:
            with suppress(DmaUnmapped):
                device.dma.write(0x12000, b"x")
                wrote = True

    client = connect(serve(device))
    fd = raw.memory_file(16 * PAGE)
    client.ask(raw.dma_map(0x10000, 16 * PAGE), [fd])
    os.close(fd)
    client.ask(raw.feature(SET | START, struct.pack("=QII", PAGE, 0, 0)))
    device.dma.users.append(poller)
    bitmap = client.ask(
        raw.message(raw.DMA_UNMAP, struct.pack("=IIQQQQ", 48, 1, 0x10000, 16 * PAGE, PAGE, 8))
    ).payload[40:]
    device.dma.users.remove(poller)
    assert bool(bitmap[0] & 0b100) == wrote


def test_a_report_of_memory_that_nobody_wrote_costs_none() -> None:
    pages = DirtyPages(0, 1 << 40)

    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")

    before = resident()
    for start in range(0, 1 << 40, 1 << 35):
        pages.mark(start, 1)
        assert pages.take(start, start + (1 << 35))[1].find(1) == 0
        assert pages.take(start, start + (1 << 35))[1].find(1) == -1
    assert resident() - before < 64 << 20
