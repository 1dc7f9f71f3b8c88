"""How a client takes what a server answers: versions, limits, errors, silence, nonsense."""

import errno
import json
import os
import random
import struct
import time
from collections.abc import Callable

import pytest

from outboard import Client
from outboard.errors import ConnectionLost, OutboardError, PeerTimeout, RemoteError, RemoteProtocolError
from tests import raw
from tests.client.conftest import Stage, answer, greet, serve_plainly, wait_for_end
from tests.raw import Message, RawPeer


def limits(**values: int) -> bytes:
    return json.dumps({"capabilities": values}).encode() + b"\0"


@pytest.mark.point("P122")
def test_a_client_begins_with_its_version_and_capabilities(play: Stage) -> None:
    heard: list[Message] = []

    def script(peer: RawPeer) -> None:
        heard.append(greet(peer))
        wait_for_end(peer)

    with Client(play(script)) as client:
        assert client.info.num_regions == 9
        assert client.capabilities.max_msg_fds == 8
    play.end()
    [hello] = heard
    assert (hello.command, hello.flags, hello.fds) == (raw.VERSION, 0, ())
    assert struct.unpack_from("=H", hello.payload) == (0,)
    assert hello.payload.endswith(b"}\0")
    assert "max_msg_fds" in json.loads(hello.payload[4:-1])["capabilities"]


@pytest.mark.point("P122")
@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\0\0\0",
        struct.pack("=HH", 1, 0) + raw.SERVER_JSON,
        struct.pack("=HH", 0, 9) + raw.SERVER_JSON,
        struct.pack("=HH", 0, 0) + b"{}",
        struct.pack("=HH", 0, 0) + b"nonsense\0",
        struct.pack("=HH", 0, 0) + limits(max_msg_fds=1025),
        struct.pack("=HH", 0, 0) + limits(max_data_xfer_size=0),
        struct.pack("=HH", 0, 0) + limits(pgsizes=100),
    ],
)
def test_a_version_a_client_cannot_speak_is_refused_and_the_connection_closed(
    play: Stage, payload: bytes
) -> None:
    def script(peer: RawPeer) -> None:
        peer.send(raw.reply(peer.receive(), payload))
        wait_for_end(peer)

    before = raw.open_descriptors()
    with pytest.raises(RemoteProtocolError):
        Client(play(script))
    play.end()
    assert raw.open_descriptors() == before


@pytest.mark.point("P122")
def test_a_device_with_absurdly_many_regions_is_refused(play: Stage) -> None:
    def script(peer: RawPeer) -> None:
        greet(peer, regions=1 << 31)
        wait_for_end(peer)

    with pytest.raises(RemoteProtocolError, match="2147483648 regions"):
        Client(play(script))


@pytest.mark.point("P122", "P127")
def test_a_server_that_refuses_the_version_says_so(play: Stage) -> None:
    def script(peer: RawPeer) -> None:
        peer.send(raw.error_reply(peer.receive(), errno.EINVAL))
        wait_for_end(peer)

    with pytest.raises(RemoteError) as caught:
        Client(play(script))
    assert (caught.value.command, caught.value.errno) == ("VERSION", errno.EINVAL)


@pytest.mark.point("P123")
@pytest.mark.parametrize(
    ("text", "longest"),
    [
        (limits(max_data_xfer_size=4096), 4096),
        (limits(max_data_xfer_size=64 << 20), 1 << 20),
        (b"", 1 << 20),
        (b"{}\0", 1 << 20),
    ],
)
def test_transfers_are_cut_to_what_both_ends_take(play: Stage, text: bytes, longest: int) -> None:
    memory = random.Random(5).randbytes(2 << 20)
    commands: list[Message] = []

    def script(peer: RawPeer) -> None:
        greet(peer, text)
        commands.extend(serve_plainly(peer, memory))

    with Client(play(script)) as client:
        region = client.region(0)
        assert region.read(1, (1 << 20) + 5000) == memory[1 : (1 << 20) + 5001]
        region.write(7, memory[: (1 << 20) + 5000])
    play.end()
    moved = [struct.unpack_from("=I", c.payload, 12)[0] for c in commands if c.command == raw.REGION_READ]
    assert max(moved) == longest
    assert sum(moved) == (1 << 20) + 5000
    pieces = [c.payload[16:] for c in commands if c.command == raw.REGION_WRITE]
    assert b"".join(pieces) == memory[: (1 << 20) + 5000]
    assert max(map(len, pieces)) == longest


@pytest.mark.point("P123", "P132")
@pytest.mark.parametrize(("takes", "runs"), [(1, [1, 1, 1, 1]), (3, [3, 1]), (16, [4])])
def test_interrupts_are_assigned_in_runs_the_server_takes(play: Stage, takes: int, runs: list[int]) -> None:
    commands: list[Message] = []

    def script(peer: RawPeer) -> None:
        greet(peer, limits(max_msg_fds=takes))
        commands.extend(serve_plainly(peer, bytes(4096)))

    with Client(play(script)) as client:
        interrupts = client.enable_msix(4)
        assert len(interrupts) == 4
    play.end()
    sets = [c for c in commands if c.command == raw.SET_IRQS]
    assert [len(c.fds) for c in sets] == runs
    start = 0
    for command, run in zip(sets, runs, strict=True):
        fields = struct.unpack("=IIIII", command.payload)
        assert fields == (20, raw.EVENTFD | raw.TRIGGER, raw.MSIX, start, run)
        start += run


@pytest.mark.point("P123", "P132")
def test_a_server_that_takes_no_descriptors_cannot_give_interrupts(play: Stage) -> None:
    def script(peer: RawPeer) -> None:
        greet(peer, limits(max_msg_fds=0))
        serve_plainly(peer, bytes(4096))

    with Client(play(script)) as client, pytest.raises(RemoteProtocolError, match="no descriptors"):
        client.enable_msix(4)


@pytest.mark.point("P124")
@pytest.mark.parametrize("change", ["id", "command"])
def test_an_answer_to_something_else_is_an_error_and_ends_the_connection(play: Stage, change: str) -> None:
    def script(peer: RawPeer) -> None:
        greet(peer)
        asked = peer.receive()
        wrong = asked._replace(id=asked.id + 1) if change == "id" else asked._replace(command=raw.RESET)
        peer.send(raw.reply(wrong, struct.pack("=IIIIQQ", 32, 0, 7, 0, 0, 0)))
        wait_for_end(peer)

    with Client(play(script)) as client:
        with pytest.raises(RemoteProtocolError, match="not waited for"):
            client.region_info(7)
        with pytest.raises(ConnectionLost, match="closed"):
            client.reset()


@pytest.mark.point("P127", "P128")
@pytest.mark.parametrize("flags", [raw.REPLY | raw.ERROR, raw.ERROR])
@pytest.mark.parametrize("payload", [b"", bytes(16)])
def test_an_error_reply_raises_with_command_and_errno_and_the_next_command_works(
    play: Stage, flags: int, payload: bytes
) -> None:
    def script(peer: RawPeer) -> None:
        greet(peer)
        for number in (errno.EPERM, 0, 0xFFFF_FFFF):
            peer.send(raw.reply(peer.receive(), payload, flags=flags, error=number))
        answer(peer, peer.receive(), b"")
        wait_for_end(peer)

    with Client(play(script)) as client:
        with pytest.raises(RemoteError, match="Operation not permitted") as caught:
            client.reset()
        assert (caught.value.command, caught.value.errno) == ("DeviceReset", errno.EPERM)
        with pytest.raises(RemoteError, match="no reason given"):
            client.reset()
        with pytest.raises(RemoteError, match="errno 0xffffffff, which means nothing"):
            client.reset()
        client.reset()


@pytest.mark.point("P129")
@pytest.mark.parametrize(
    ("said", "error", "sentence"),
    [
        (b"", ConnectionLost, "has gone"),
        (raw.message(raw.RESET, id=2)[:7], RemoteProtocolError, "middle of a message"),
        (raw.message(raw.RESET, bytes(100), id=2)[:50], RemoteProtocolError, "middle of a message"),
        (raw.message(raw.RESET, size=15), RemoteProtocolError, "15 bytes"),
        (raw.message(raw.RESET, size=1 << 31), RemoteProtocolError, "2147483648 bytes"),
        (b"\xff" * 64, RemoteProtocolError, "bytes"),
    ],
)
def test_an_end_inside_and_between_messages_raises_differently(
    play: Stage, said: bytes, error: type[OutboardError], sentence: str
) -> None:
    reader, writer = os.pipe()

    def script(peer: RawPeer) -> None:
        greet(peer)
        peer.receive()
        if said:
            peer.send(said, [reader])

    before = raw.open_descriptors()
    with Client(play(script)) as client:
        with pytest.raises(error, match=sentence):
            client.reset()
        play.end()
        assert raw.open_descriptors() == before
        for command in (client.reset, lambda: client.dma_map(0, 4096), client.serve_dma):
            with pytest.raises(ConnectionLost, match="connect again"):
                command()
    os.close(reader)
    os.close(writer)


@pytest.mark.point("P129")
@pytest.mark.parametrize("said", [b"", b"\x02\0\x0d\0\x10"])
def test_silence_raises_after_the_clients_timeout(play: Stage, said: bytes) -> None:
    def script(peer: RawPeer) -> None:
        greet(peer)
        peer.receive()
        peer.send(said)
        wait_for_end(peer)

    with Client(play(script), timeout=0.05) as client:
        started = time.monotonic()
        with pytest.raises(PeerTimeout, match=r"0\.05 s"):
            client.reset()
        assert time.monotonic() - started < 1
        with pytest.raises(ConnectionLost):
            client.reset()


@pytest.mark.point("P129")
def test_a_server_that_does_not_read_is_a_timeout_too(play: Stage) -> None:
    gate = os.pipe()

    def script(peer: RawPeer) -> None:
        greet(peer)
        for _ in range(9):
            answer(peer, peer.receive(), b"")
        os.read(gate[0], 1)

    with Client(play(script), timeout=0.1) as client:
        region = client.region(0)
        with pytest.raises(PeerTimeout, match="has not taken"):
            region.write(0, bytes(1 << 20))
        with pytest.raises(ConnectionLost):
            client.reset()
        os.write(gate[1], b"x")
    play.end()
    for fd in gate:
        os.close(fd)


@pytest.mark.point("P129", "P130")
@pytest.mark.parametrize(
    "use",
    [
        lambda client: client.reset(),
        lambda client: client.dma_map(0, 4096),
        lambda client: client.dma_unmap(0, 4096),
        lambda client: client.region(0).read(0, 4),
        lambda client: client.region(0).write(0, b"abcd"),
        lambda client: client.irq_count(0),
        lambda client: client.regions,
    ],
)
def test_descriptors_nobody_asked_for_are_closed(play: Stage, use: Callable[[Client], object]) -> None:
    reader, writer = os.pipe()

    def script(peer: RawPeer) -> None:
        hello = peer.receive()
        peer.send(raw.reply(hello, struct.pack("=HH", 0, 0) + raw.SERVER_JSON), [reader])
        peer.send(raw.reply(peer.receive(), struct.pack("=IIII", 16, 3, 9, 5)), [reader])
        plain = peer.send

        def with_descriptors(data: bytes, fds: object = ()) -> None:
            plain(data, [reader, reader])

        peer.send = with_descriptors  # type: ignore[method-assign]
        serve_plainly(peer, bytes(4096))

    before = raw.open_descriptors()
    with Client(play(script)) as client:
        use(client)
    play.end()
    assert raw.open_descriptors() == before
    os.close(reader)
    os.close(writer)
