"""How a client rings: by shadow and eventfd, by eventfd, by message; and servers that lie about it."""

import errno
import os
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest

from outboard import Bar, Client, Device, Server
from outboard.errors import ConnectionLost, RemoteProtocolError
from outboard.protocol.messages import IoFdsLayout
from outboard.testing.client import TestClient
from tests import raw
from tests.client.conftest import Script, Stage, answer, greet
from tests.raw import Message, RawPeer, fired, open_descriptors

SPEC, SHADOW = struct.Struct("=QQIIIIQ"), struct.Struct("=QQIIIIQQ")
DATAMATCH = 1
SPURIOUS = 1 << 20


class Counter(Device):
    mmio = Bar(0, size=0x1000)
    plain = mmio.doorbell(0x00, count=2)
    shadowed = mmio.doorbell(0x10, size=8, count=2, shadow=True)
    queue = mmio.doorbell(0x40, size=2, matches=range(4))
    word = mmio.reg(0x80)

    def __init__(self) -> None:
        super().__init__()
        self.rings: list[tuple[str, int, int | None]] = []

    @plain.on_ring
    def plain_rung(self, index: int, value: int | None) -> None:
        self.rings.append(("plain", index, value))

    @shadowed.on_ring
    def shadowed_rung(self, index: int, value: int) -> None:
        self.rings.append(("shadowed", index, value))

    @queue.on_ring
    def queue_rung(self, index: int, value: int) -> None:
        self.rings.append(("queue", index, value))


def ring_all(client: Client) -> list[bool]:
    """Rings everything the counter has; whether each went by descriptor."""
    places = [(0x04, 4, 9), (0x18, 8, 1 << 50), (0x40, 2, 3), (0x80, 4, 7), (0x40, 2, 200)]
    ways = []
    for offset, size, value in places:
        bell = client.doorbells(0).at(offset, size)
        bell.ring(value)
        ways.append(bell.by_descriptor)
    return ways


@pytest.mark.point("P47")
def test_the_device_hears_the_same_whichever_way_it_is_rung() -> None:
    queue, shadowed = ("queue", 3, 3), ("shadowed", 1, 1 << 50)
    with TestClient(device := Counter(), profile="libvfio-user") as client:
        assert ring_all(client) == [True, True, True, False, True]
        assert device.rings == [("plain", 1, None), shadowed, queue]
        assert client.bar(0).read32(0x80) == 7
    with TestClient(device := Counter()) as client:
        assert ring_all(client) == [True, False, True, False, True]
        assert device.rings == [("plain", 1, None), shadowed, queue]


def test_over_a_socket_the_value_is_in_the_shadow_when_the_next_answer_comes(folder: Path) -> None:
    device = Counter()
    with (
        Server(device, folder / "s.sock", profile="libvfio-user").start() as server,
        Client(folder / "s.sock") as client,
    ):
        assert server.path is not None
        bell = client.doorbells(0).at(0x10, 8)
        for value in range(100):
            bell.ring(value)
        assert client.bar(0).read64(0x10) == 99


def test_doorbells_are_asked_for_once_and_anew_after_they_were_closed() -> None:
    with TestClient(Counter()) as client:
        bells = client.doorbells(0)
        assert client.doorbells(0) is bells
        bell = bells.at(0)
        with bells:
            pass
        with pytest.raises(ConnectionLost, match="ask the client for them anew"):
            bell.ring()
        assert client.doorbells(0) is not bells
        client.doorbells(0).at(0).ring()
        with pytest.raises(IndexError, match="no BAR 1"):
            client.doorbells(1)


def test_a_hundred_rings_make_one_call_when_nobody_listened_meanwhile() -> None:
    with TestClient(device := Counter()) as client:
        info, fds = client.region_io_fds(0)
        assert info.layout is IoFdsLayout.SPEC
        for _ in range(100):
            os.eventfd_write(fds[0], 1)
        client.step()
        assert device.rings == [("plain", 0, None)]
        for fd in fds:
            os.close(fd)


def offer(answers: Sequence[bytes | int], fds: Sequence[int] = ()) -> Script:
    """Answers each DEVICE_GET_REGION_IO_FDS with the next of `answers` (an errno: a refusal)."""

    def script(peer: RawPeer) -> None:
        greet(peer)
        left = list(answers)
        try:
            while True:
                command: Message = peer.receive()
                if command.command != raw.REGION_IO_FDS:
                    answer(peer, command, bytes(0x1000))
                elif isinstance(reply := left.pop(0), int):
                    peer.send(raw.error_reply(command, reply))
                else:
                    peer.send(raw.reply(command, reply), fds if not left else ())
        except (EOFError, ConnectionError):
            pass

    return script


def described(*subs: bytes, count: int | None = None, argsz: int | None = None) -> bytes:
    body = b"".join(subs)
    number = len(subs) if count is None else count
    return struct.pack("=IIII", 16 + len(body) if argsz is None else argsz, 0, 0, number) + body


def short(whole: bytes) -> bytes:
    return whole[:16]


@pytest.fixture
def eventfd() -> int:
    return os.eventfd(0, os.EFD_NONBLOCK)


@pytest.mark.point("P47")
@pytest.mark.parametrize("refusal", [errno.EINVAL, errno.ENOSYS, errno.ENOTSUP])
def test_a_server_that_does_not_know_the_message_is_written_to(play: Stage, refusal: int) -> None:
    with Client(play(offer([refusal]))) as client:
        bell = client.doorbells(0).at(0x10)
        assert not bell.by_descriptor
        bell.ring(5)


@pytest.mark.point("P47")
def test_a_shared_descriptor_rings_every_sub_region_that_names_it(play: Stage, eventfd: int) -> None:
    memory = raw.memory_file(4096)
    whole = described(
        SHADOW.pack(0, 4, 1, 2, 0, 0, 0x100, 0),
        SHADOW.pack(8, 0, 1, 2, 0, 0, 0xFF8, 0),
        SHADOW.pack(16, 2, 1, 0, DATAMATCH, 7, SPURIOUS, 4),
        SHADOW.pack(16, 2, 1, 0, DATAMATCH, 7, SPURIOUS, 5),
        SHADOW.pack(24, 4, 99, 1, 0, 99, 0, 0),
        SHADOW.pack(32, 0x16, 99, 2, 0, 99, 0, 0),
    )
    with Client(play(offer([short(whole), whole], [memory, eventfd]))) as client:
        bells = client.doorbells(0)
        assert len(bells.sub_regions) == 6
        bells.at(0).ring(0x1234)
        assert os.pread(memory, 4, 0x100) == b"\x34\x12\0\0"
        bells.at(8, 8).ring(1 << 63)
        bells.at(8, 1).ring(0xAB)
        assert os.pread(memory, 8, 0xFF8) == b"\xab" + bytes(6) + b"\x80"
        assert fired(eventfd) == 3
        bells.at(16, 2).ring(5)
        assert fired(eventfd) == 1
        for place in (bells.at(0, 8), bells.at(2, 2), bells.at(24), bells.at(32, 8)):
            assert not place.by_descriptor
            place.ring(1)
        bells.at(16, 2).ring(6)
        assert fired(eventfd) == 0
    os.close(memory)
    os.close(eventfd)


def test_a_full_eventfd_that_blocks_blocks_no_ring(play: Stage) -> None:
    full = os.eventfd(0)
    os.eventfd_write(full, (1 << 64) - 2)
    whole = described(SPEC.pack(0, 4, 0, 0, 0, 0, 0))
    with Client(play(offer([short(whole), whole], [full]))) as client:
        client.doorbells(0).at(0).ring()
    os.close(full)


EVENT = SPEC.pack(0, 4, 0, 0, 0, 0, 0)
LIES: dict[str, tuple[Sequence[bytes], str]] = {
    "no such descriptor": ([described(SPEC.pack(0, 4, 2, 0, 0, 0, 0))], "names descriptor 2, 2 came"),
    "descriptor -1": ([described(SPEC.pack(0, 4, 0xFFFF_FFFF, 0, 0, 0, 0))], "names descriptor 4294967295"),
    "no such shadow": ([described(SHADOW.pack(0, 4, 0, 2, 0, 2, 0, 0))], "names descriptor 2"),
    "memory as an eventfd": ([described(SPEC.pack(0, 4, 1, 0, 0, 0, 0))], "is not an eventfd"),
    "an eventfd as memory": ([described(SHADOW.pack(0, 4, 0, 2, 0, 0, 0, 0))], "its shadow cannot be mapped"),
    "a shadow past the end": (
        [described(SHADOW.pack(0, 4, 0, 2, 0, 1, 0xFFD, 0))],
        "its shadow at 0xffd of 0x1000",
    ),
    "a shadow far away": ([described(SHADOW.pack(0, 4, 0, 2, 0, 1, (1 << 64) - 1, 0))], "its shadow at"),
    "a shadow too near for 8 bytes": ([described(SHADOW.pack(0, 0, 0, 2, 0, 1, 0xFFC, 0))], "its shadow at"),
    "outside of the region": ([described(SPEC.pack(0xFFD, 4, 0, 0, 0, 0, 0))], "lies outside of the region"),
    "far outside": ([described(SPEC.pack((1 << 64) - 4, 4, 0, 0, 0, 0, 0))], "lies outside of the region"),
    "more each time": (
        [described(argsz=96, count=2), described(EVENT, EVENT, argsz=136, count=3)],
        "were to be described in 96 bytes, now it needs 136",
    ),
    "a count and no room": ([described(count=5)], "in 16 bytes, now it needs 16 for 5 sub-regions"),
    "too many": ([described(count=4097, argsz=16 + 4097 * 40)], "has 4097 sub-regions, 4096 at most"),
    "2**32 of them": ([described(count=0xFFFF_FFFF, argsz=0xFFFF_FFFF)], "has 4294967295 sub-regions"),
    "sizes that do not add up": ([described(EVENT + b"x" * 3)], "do not hold 1 sub-regions"),
    "fewer than it says": ([described(EVENT, argsz=96, count=2)], "needs 96 for 2 sub-regions"),
}


@pytest.mark.point("P47", "P138")
@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
def test_a_lie_about_descriptors_is_refused_and_those_that_came_are_closed(
    play: Stage, lie: tuple[Sequence[bytes], str], eventfd: int
) -> None:
    answers, sentence = lie
    memory = raw.memory_file(4096)
    if len(answers) == 1:
        answers = [short(answers[0]), *answers]
    with Client(play(offer(answers, [eventfd, memory]))) as client:
        before = open_descriptors()
        with pytest.raises(RemoteProtocolError, match=sentence):
            client.doorbells(0)
        assert open_descriptors() <= before
    os.close(memory)
    os.close(eventfd)
