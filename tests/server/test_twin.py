"""The twin socket, the server's side: agreed when asked for, and the way to memory also inside a handler."""

import errno
import gc
import json
import os
import socket
import struct
from collections.abc import Callable, Iterator

import pytest

from outboard import Mapping, Server
from outboard.errors import ConnectionLost, DmaError, DmaInHandler, PeerTimeout
from outboard.server import remote_dma
from tests import raw
from tests.raw import CONFIG, RawPeer, descriptors_now
from tests.server.conftest import Connect, Serve
from tests.server.gadgets import Gadget
from tests.server.test_dma import ADDRESS, BASE, COUNT, NOW, PAGE, READ, WRITE, serve_memory, settle, start

ASKS = b'{"capabilities":{"max_msg_fds":1,"twin_socket":{"supported":true}}}\0'
ASKS_FOR_BYTES = b'{"capabilities":{"max_data_xfer_size":16,"twin_socket":{"supported":true}}}\0'


def open_twin(client: RawPeer, text: bytes = ASKS) -> RawPeer:
    """Agrees on a version with a twin socket; the client's end of that."""
    answer = client.negotiate(text)
    twin = json.loads(answer.payload[4:-1])["capabilities"]["twin_socket"]
    assert twin == {"supported": True, "fd_index": 0}
    [fd] = answer.fds
    return RawPeer(socket.socket(fileno=fd))


@pytest.fixture
def server(gadget: Gadget, serve: Serve) -> Server:
    return serve(gadget)


@pytest.fixture
def client(server: Server) -> Iterator[RawPeer]:
    with RawPeer.connect(server.path) as peer:
        yield peer


@pytest.fixture
def twin(client: RawPeer) -> Iterator[RawPeer]:
    with open_twin(client) as peer:
        yield peer


def access_in_handler(client: RawPeer, count: int = 4) -> bytes:
    """Prepares the gadget to read memory while it handles a write; that write, to be sent."""
    client.write(CONFIG, 4, b"\x04\x00")
    client.write(0, ADDRESS, struct.pack("=Q", BASE))
    client.write(0, COUNT, struct.pack("=I", count))
    return raw.write(0, NOW, bytes(4), id=77)


@pytest.mark.point("P29", "P35")
@pytest.mark.parametrize(
    "text",
    [
        raw.QEMU_JSON,
        b'{"capabilities":{"twin_socket":{"supported":false}}}\0',
        b'{"capabilities":{"twin_socket":{}}}\0',
        b'{"capabilities":{"max_msg_fds":0,"twin_socket":{"supported":true}}}\0',  # no way to hand it over
    ],
)
def test_a_twin_socket_is_given_only_to_who_asks_and_can_take_it(client: RawPeer, text: bytes) -> None:
    answer = client.negotiate(text)
    assert b"twin_socket" not in answer.payload
    assert answer.fds == ()


@pytest.mark.point("P35", "P91")
def test_memory_is_asked_for_over_the_twin_socket_without_a_probe(
    client: RawPeer, twin: RawPeer, gadget: Gadget
) -> None:
    memory = bytearray(b"over the twin" + bytes(PAGE))
    client.ask(raw.dma_map(BASE, PAGE))
    start(client, READ, BASE, 13)
    served = serve_memory(twin, memory)
    assert next(served).command == raw.DMA_READ
    settle(client)
    assert (gadget.got, gadget.dma_error) == (b"over the twin", None)
    start(client, WRITE, BASE + 4, 5, fill=0x2B)
    assert next(served).command == raw.DMA_WRITE
    settle(client)
    assert memory.startswith(b"over+++++twin")
    client.expect_silence()


@pytest.mark.point("P35", "P104")
def test_with_a_twin_socket_a_handler_may_reach_memory_while_its_client_waits(
    client: RawPeer, twin: RawPeer, gadget: Gadget
) -> None:
    client.ask(raw.dma_map(BASE, PAGE))
    client.send(access_in_handler(client) + raw.read(0, 0, 4, id=78))
    next(serve_memory(twin, bytearray(b"inside" * 4)))
    assert client.receive().id == 77  # in the order of the wire, the handler's first
    assert client.receive().id == 78
    assert gadget.got == b"insi"


@pytest.mark.point("P35", "P101")
def test_transfers_over_the_twin_socket_are_cut_to_what_the_client_takes(
    client: RawPeer, gadget: Gadget
) -> None:
    memory = bytearray(range(100))
    with open_twin(client, ASKS_FOR_BYTES) as twin:
        client.ask(raw.dma_map(BASE, PAGE))
        client.send(access_in_handler(client, 40))
        served = serve_memory(twin, memory)
        assert [struct.unpack("=QQ", next(served).payload)[1] for _ in range(3)] == [16, 16, 8]
        client.receive()
        assert gadget.got == memory[:40]


@pytest.mark.point("P35")
def test_more_than_a_socket_holds_goes_over_the_twin_socket_both_ways(
    client: RawPeer, twin: RawPeer, gadget: Gadget
) -> None:
    size = 3 << 20
    memory = bytearray(os.urandom(size))
    client.ask(raw.dma_map(BASE, size))
    client.send(access_in_handler(client, size))
    left = size
    for command in serve_memory(twin, memory):
        left -= struct.unpack("=QQ", command.payload)[1]
        if not left:
            break
    client.receive()
    assert gadget.got == memory
    start(client, WRITE, BASE, size, fill=0x5A)
    left = size
    for command in serve_memory(twin, memory):
        left -= len(command.payload) - 16
        if not left:
            break
    settle(client)
    assert memory == b"\x5a" * size


@pytest.mark.point("P35", "P102")
def test_commands_are_served_while_memory_is_awaited_over_the_twin_socket(
    client: RawPeer, twin: RawPeer, gadget: Gadget
) -> None:
    memory = bytearray(b"abcdefgh" + bytes(PAGE))
    client.ask(raw.dma_map(BASE, PAGE))
    start(client, READ, BASE, 4)
    outer = twin.receive()
    assert client.read(0, 0, 4) == b"\x78\x56\x34\x12"
    # A handler's transfer begins while the first is under way; both get what is theirs, in any order.
    client.write(0, ADDRESS, struct.pack("=Q", BASE + 4))
    client.send(raw.write(0, NOW, bytes(4), id=77))
    inner = twin.receive()
    twin.send(raw.reply(outer, outer.payload + b"late"))
    twin.send(raw.reply(inner, inner.payload + bytes(memory[4:8])))
    assert client.receive().flags == raw.REPLY
    settle(client)
    assert (gadget.got, gadget.dma_error) == (b"late", None)


@pytest.mark.point("P35")
def test_until_the_version_is_answered_there_is_no_twin_socket_to_use(serve: Serve) -> None:
    errors: list[Exception] = []

    class Eager(Gadget):
        dma_requires_bus_master = False

        def on_connect(self) -> None:
            self.dma.map(Mapping(BASE, PAGE))
            try:
                self.dma.read(BASE, 4)
            except Exception as error:
                errors.append(error)
            self.dma.unmap(BASE, PAGE)

    with RawPeer.connect(serve(Eager()).path) as client, open_twin(client) as twin:
        client.ask(raw.device_info())
        twin.expect_silence()
    assert [type(error) for error in errors] == [DmaInHandler]


@pytest.mark.point("P35", "P105")
def test_a_twin_socket_closed_before_its_first_use_is_an_error_in_the_device_and_nothing_else(
    client: RawPeer, twin: RawPeer, gadget: Gadget
) -> None:
    client.ask(raw.dma_map(BASE, PAGE))
    request = access_in_handler(client)
    twin.close()
    client.send(request)
    assert client.receive().error == errno.EFAULT
    assert client.read(0, 0, 4) == b"\x78\x56\x34\x12"


@pytest.mark.point("P35", "P105")
def test_a_twin_socket_that_closes_while_memory_is_awaited_is_noticed_at_once(
    client: RawPeer, twin: RawPeer, gadget: Gadget, caplog: pytest.LogCaptureFixture
) -> None:
    client.ask(raw.dma_map(BASE, PAGE))
    start(client, READ, BASE, 4)
    next(serve_memory(twin, bytearray(PAGE)))
    settle(client)
    request = access_in_handler(client)
    client.send(request)
    twin.receive()
    twin.close()
    assert client.receive().error == errno.EFAULT
    assert "closed the twin socket" in caplog.text
    client.send(request)  # and ever after
    assert client.receive().error == errno.EFAULT
    assert client.read(0, 0, 4) == b"\x78\x56\x34\x12"


@pytest.mark.point("P35", "P105")
@pytest.mark.parametrize("inside", [True, False])
def test_a_client_that_goes_while_its_memory_is_awaited_makes_room_for_the_next(
    client: RawPeer, twin: RawPeer, server: Server, gadget: Gadget, connect: Connect, inside: bool
) -> None:
    client.ask(raw.dma_map(BASE, PAGE))
    if inside:
        client.send(access_in_handler(client))
    else:
        start(client, READ, BASE, 4)
    twin.receive()
    client.close()
    following = connect(server)
    following.ask(raw.device_info())
    assert gadget.dma.maps == ()
    if not inside:
        assert isinstance(gadget.dma_error, ConnectionLost)


@pytest.mark.point("P35", "P119")
def test_a_server_stops_while_a_handler_waits_for_the_twin_socket(
    client: RawPeer, twin: RawPeer, server: Server
) -> None:
    client.ask(raw.dma_map(BASE, PAGE))
    client.send(access_in_handler(client))
    twin.receive()
    server.close()
    twin.expect_closed()


@pytest.mark.point("P35", "P105")
def test_silence_on_the_twin_socket_raises_and_the_late_answer_is_passed_over(
    client: RawPeer, twin: RawPeer, gadget: Gadget, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.ask(raw.dma_map(BASE, PAGE))
    monkeypatch.setattr(remote_dma, "REPLY_DEADLINE", 0.02)
    start(client, READ, BASE, 4)
    late = twin.receive()
    while not gadget.dma_error:
        client.ask(raw.device_info())
    assert isinstance(gadget.dma_error, PeerTimeout)
    monkeypatch.undo()
    twin.send(raw.reply(late, late.payload + b"late"))
    start(client, READ, BASE, 4)
    next(serve_memory(twin, bytearray(b"next" * 4)))
    settle(client)
    assert gadget.got == b"next"


@pytest.mark.point("P15", "P35")
def test_commands_on_the_twin_socket_are_refused_and_replies_on_the_other_not_believed(
    client: RawPeer, twin: RawPeer, gadget: Gadget
) -> None:
    for request in (raw.device_info(), raw.read(0, 0, 4), raw.version(), raw.message(99)):
        assert twin.refused(request) == errno.EINVAL
    client.ask(raw.dma_map(BASE, PAGE))
    start(client, READ, BASE, 4)
    command = twin.receive()
    client.send(raw.reply(command, command.payload + b"lies"))
    client.ask(raw.device_info())
    twin.send(raw.reply(command, command.payload + b"true"))
    settle(client)
    assert gadget.got == b"true"


BREAKING: list[Callable[[RawPeer], None]] = [
    lambda twin: twin.send(raw.message(raw.DEVICE_INFO, size=3)),
    lambda twin: twin.send(raw.message(raw.DEVICE_INFO, size=0xFFFF_FFFF)),
    lambda twin: twin.send(raw.message(raw.DMA_READ, flags=7)),
]


@pytest.mark.point("P14", "P35", "P105")
@pytest.mark.parametrize("breaks", BREAKING)
def test_nonsense_on_the_twin_socket_ends_that_and_not_the_conversation(
    client: RawPeer, twin: RawPeer, gadget: Gadget, breaks: Callable[[RawPeer], None]
) -> None:
    client.ask(raw.dma_map(BASE, PAGE))
    breaks(twin)
    twin.expect_closed()
    start(client, READ, BASE, 4)
    settle(client)
    assert isinstance(gadget.dma_error, DmaError)
    assert "closed the twin socket" in str(gadget.dma_error)


@pytest.mark.point("P35")
def test_who_floods_the_twin_socket_and_takes_no_answer_loses_it(
    client: RawPeer, twin: RawPeer, gadget: Gadget
) -> None:
    try:
        for _ in range(10_000):
            twin.send(raw.device_info() * 10)
    except (BrokenPipeError, ConnectionResetError):
        pass
    else:
        pytest.fail("100,000 commands were taken")
    client.ask(raw.device_info())


@pytest.mark.point("P19", "P35", "P118")
def test_descriptors_on_the_twin_socket_are_closed_and_nothing_is_left_of_a_hundred_clients(
    server: Server, gadget: Gadget, connect: Connect
) -> None:
    connect(server).close()
    with connect(server) as client:
        client.ask(raw.device_info())  # its predecessor has gone for good
    gc.collect()
    counts = set()
    for _ in range(100):
        with RawPeer.connect(server.path) as client, open_twin(client) as twin:
            twin.send(raw.device_info(), [twin.socket.fileno()] * 3)
            twin.receive()
            client.ask(raw.device_info())
            counts.add(descriptors_now())
    assert len(counts) == 1
