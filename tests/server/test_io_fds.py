"""DEVICE_GET_REGION_IO_FDS on the wire: sizes, places of descriptors, limits; nothing leaks."""

import errno
import os
import select
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from outboard import Bar, Device, Server
from outboard.protocol.messages import IoFdsLayout
from outboard.server.profiles import SPEC
from tests import raw
from tests.raw import Message, RawPeer, open_descriptors

SUB, SHADOW_SUB = struct.Struct("=QQIIIIQ"), struct.Struct("=QQIIIIQQ")
DATAMATCH, PIO = 1, 2


class Bells(Device):
    """Doorbells of each kind, in three BARs; the fourth has none."""

    plain_bar = Bar(0, size=0x1000)
    shadow_bar = Bar(1, size=0x1000)
    ports = Bar(2, size=0x10, io=True)
    none = Bar(3, size=0x1000)
    plain = plain_bar.doorbell(0x100, count=20, stride=8)
    shadowed = shadow_bar.doorbell(0x10, count=2, shadow=True)
    crowd = shadow_bar.doorbell(0x100, size=8, count=40, shadow=True, shared=True)
    notify = ports.doorbell(4, size=2, matches=[3, 0xFFFF])

    def __init__(self) -> None:
        super().__init__()
        self.rings: list[tuple[str, int, int | None]] = []

    @plain.on_ring
    def plain_rung(self, index: int, value: int | None) -> None:
        self.rings.append(("plain", index, value))

    @shadowed.on_ring
    def shadowed_rung(self, index: int, value: int) -> None:
        self.rings.append(("shadowed", index, value))

    @crowd.on_ring
    def crowd_rung(self, index: int, value: int) -> None:
        self.rings.append(("crowd", index, value))

    @notify.on_ring
    def notified(self, index: int, value: int) -> None:
        self.rings.append(("notify", index, value))


Dial = Callable[..., RawPeer]


@pytest.fixture
def device() -> Bells:
    return Bells()


@pytest.fixture
def dial(device: Bells, folder: Path) -> Iterator[Dial]:
    """Serves the device in a layout; a client that takes some descriptors a message."""
    servers: list[Server] = []
    peers: list[RawPeer] = []

    def connect(layout: IoFdsLayout = IoFdsLayout.SPEC, fds: int = 16) -> RawPeer:
        path = folder / f"{len(servers)}.sock"
        servers.append(Server(device, path, profile=replace(SPEC, io_fds=layout)).start())
        peers.append(RawPeer.connect(path))
        peers[-1].negotiate(b'{"capabilities":{"max_msg_fds":%d}}\0' % fds)
        return peers[-1]

    yield connect
    for peer in peers:
        peer.close()
    for server in servers:
        server.close()


def head(answer: Message) -> tuple[int, ...]:
    return struct.unpack_from("=IIII", answer.payload)


def close(fds: tuple[int, ...]) -> None:
    for fd in fds:
        os.close(fd)


def wait_for_rings(device: Bells, count: int) -> list[tuple[str, int, int | None]]:
    deadline = time.monotonic() + raw.DEADLINE
    while len(device.rings) < count and time.monotonic() < deadline:
        select.select([], [], [], 0.001)
    return device.rings


@pytest.mark.point("P47")
def test_sub_regions_have_40_bytes_as_the_specification_says(dial: Dial) -> None:
    client = dial()
    short = client.ask(raw.region_io_fds(2))
    assert (short.size, head(short), short.fds) == (32, (96, 0, 2, 2), ())
    whole = client.ask(raw.region_io_fds(2, argsz=96))
    assert (whole.size, head(whole), len(whole.fds)) == (112, (96, 0, 2, 2), 2)
    assert list(SUB.iter_unpack(whole.payload[16:])) == [
        (4, 2, 0, 0, DATAMATCH | PIO, 0, 3),
        (4, 2, 1, 0, DATAMATCH | PIO, 0, 0xFFFF),
    ]
    close(whole.fds)


@pytest.mark.point("P47")
def test_sub_regions_have_48_bytes_for_libvfio_users_clients(dial: Dial) -> None:
    client = dial(IoFdsLayout.LIBVFIO_USER)
    needed = 16 + 42 * 48
    short = client.ask(raw.region_io_fds(1, argsz=needed - 1))
    assert (short.size, head(short), short.fds) == (32, (needed, 0, 1, 42), ())
    whole = client.ask(raw.region_io_fds(1, argsz=needed))
    assert (head(whole), len(whole.fds)) == ((needed, 0, 1, 42), 5)
    subs = list(SHADOW_SUB.iter_unpack(whole.payload[16:]))
    assert subs[:3] == [
        (0x10, 4, 0, 2, 0, 1, 0, 0),
        (0x14, 4, 2, 2, 0, 1, 8, 0),
        (0x100, 8, 3, 2, 0, 4, 0, 0),
    ]
    assert {(sub[2], sub[5]) for sub in subs[2:]} == {(3, 4)}
    assert [sub[6] for sub in subs[2:]] == [8 * index for index in range(40)]
    close(whole.fds)


@pytest.mark.point("P47")
def test_doorbells_whose_value_would_be_lost_are_not_offered(dial: Dial) -> None:
    answer = dial().ask(raw.region_io_fds(1, argsz=4096))
    assert (head(answer), answer.fds) == ((16, 0, 1, 0), ())


@pytest.mark.point("P47")
@pytest.mark.parametrize("layout", list(IoFdsLayout))
def test_a_region_without_doorbells_has_none_and_nonsense_is_refused(dial: Dial, layout: IoFdsLayout) -> None:
    client = dial(layout)
    for region in (3, 7):
        answer = client.ask(raw.region_io_fds(region, argsz=0xFFFF_FFFF))
        assert (answer.payload, answer.fds) == (struct.pack("=IIII", 16, 0, region, 0), ())
    for request in (
        raw.region_io_fds(0, argsz=15),
        raw.region_io_fds(0, argsz=0),
        raw.region_io_fds(0, flags=1),
        raw.region_io_fds(0, count=1),
        raw.region_io_fds(4),
        raw.region_io_fds(9),
        raw.region_io_fds(0xFFFF_FFFF),
        raw.message(raw.REGION_IO_FDS, bytes(15)),
    ):
        assert client.refused(request) == errno.EINVAL


@pytest.mark.point("P34", "P47")
@pytest.mark.parametrize(
    ("fds", "plain", "shadowed"),
    [
        (0, 0, (0, 0)),
        (1, 1, (0, 0)),
        (2, 2, (1, 2)),
        (4, 4, (2, 3)),
        (5, 5, (42, 5)),
        (16, 16, (42, 5)),
        (1024, 20, (42, 5)),
    ],
)
def test_a_client_is_sent_no_more_descriptors_than_it_takes(
    dial: Dial, fds: int, plain: int, shadowed: tuple[int, int]
) -> None:
    client = dial(IoFdsLayout.LIBVFIO_USER, fds)
    answer = client.ask(raw.region_io_fds(0, argsz=4096))
    assert (head(answer)[3], len(answer.fds)) == (plain, plain)
    close(answer.fds)
    answer = client.ask(raw.region_io_fds(1, argsz=4096))
    assert (head(answer)[3], len(answer.fds)) == shadowed
    close(answer.fds)


@pytest.mark.point("P47")
def test_a_ring_by_descriptor_and_one_by_message_are_heard_alike(dial: Dial, device: Bells) -> None:
    client = dial(IoFdsLayout.LIBVFIO_USER)
    answer = client.ask(raw.region_io_fds(1, argsz=4096))
    os.pwrite(answer.fds[1], b"\x05\0\0\0", 8)
    os.eventfd_write(answer.fds[2], 1)
    assert wait_for_rings(device, 1) == [("shadowed", 1, 5)]
    os.pwrite(answer.fds[4], b"\x06", 8 * 39)
    os.eventfd_write(answer.fds[3], 1 << 40)
    assert wait_for_rings(device, 2)[1:] == [("crowd", 39, 6)]
    client.write(1, 0x14, b"\x07\0\0\0")
    assert device.rings[2:] == [("shadowed", 1, 7)]
    assert os.pread(answer.fds[1], 8, 8) == b"\x07" + bytes(7)
    close(answer.fds)


def test_a_client_can_neither_shrink_the_shadow_nor_grow_it(dial: Dial, device: Bells) -> None:
    client = dial(IoFdsLayout.LIBVFIO_USER)
    fds = client.ask(raw.region_io_fds(1, argsz=4096)).fds
    for size in (0, 1 << 20):
        with pytest.raises(PermissionError):
            os.ftruncate(fds[1], size)
    client.write(1, 0x10, b"\x07\0\0\0")
    assert device.rings == [("shadowed", 0, 7)]
    close(fds)


def test_a_client_that_signals_without_end_is_still_answered(dial: Dial, device: Bells) -> None:
    client = dial()
    fds = client.ask(raw.region_io_fds(0, argsz=4096)).fds
    for _ in range(200):
        for fd in fds:
            os.eventfd_write(fd, 1)
        assert len(client.read(7, 0, 4)) == 4
    assert {index for _, index, _ in wait_for_rings(device, 16)} == set(range(16))
    close(fds)


@pytest.mark.point("P47")
def test_asking_ten_thousand_times_leaks_nothing_and_a_disconnect_closes_all(
    dial: Dial, device: Bells
) -> None:
    client = dial()
    before = open_descriptors()
    for _ in range(100):
        client.send(raw.region_io_fds(2, argsz=96) * 50 + raw.region_io_fds(2) * 50)
        for number in range(100):
            fds = client.receive().fds
            assert len(fds) == (2 if number < 50 else 0)
            close(fds)
    assert open_descriptors() == before + 2
    client.close()
    # A second client is served only when the first has been let go.
    deadline = time.monotonic() + raw.DEADLINE
    while open_descriptors() > before - 2 and time.monotonic() < deadline:
        select.select([], [], [], 0.001)
    assert open_descriptors() == before - 2


def test_the_next_client_gets_eventfds_of_its_own(device: Bells, folder: Path) -> None:
    with Server(device, folder / "s.sock").start() as server:
        with RawPeer.connect(server.path) as first:
            first.negotiate()
            old = first.ask(raw.region_io_fds(2, argsz=96)).fds
        with RawPeer.connect(server.path) as second:
            second.negotiate()
            new = second.ask(raw.region_io_fds(2, argsz=96)).fds
            os.eventfd_write(old[0], 1)
            os.eventfd_write(new[1], 1)
            assert wait_for_rings(device, 1) == [("notify", 1, 0xFFFF)]
            second.read(7, 0, 4)
            assert device.rings == [("notify", 1, 0xFFFF)]
            close(old + new)


def test_a_device_out_of_descriptors_answers_an_error_and_lives(
    dial: Dial, device: Bells, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = dial()

    def fail(*_: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "eventfd", fail)
    assert client.refused(raw.region_io_fds(0, argsz=4096)) == errno.EIO
    monkeypatch.undo()
    answer = client.ask(raw.region_io_fds(0, argsz=4096))
    assert len(answer.fds) == 16
    close(answer.fds)
