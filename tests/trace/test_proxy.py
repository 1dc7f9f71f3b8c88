"""The proxy passes on everything as it came: bytes, descriptors, ends; and keeps nothing."""

import array
import io
import json
import os
import select
import socket
import struct
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outboard import Bar, Client, Device, Msi, Server
from outboard.client.qemu import QemuClient
from outboard.errors import ConnectionLost, SetupError
from outboard.protocol import Direction
from outboard.trace.capture import Captured, CaptureReader, CaptureWriter
from outboard.trace.proxy import Proxy
from outboard.trace.relay import RECEIVE_BYTES, UNCUT
from tests import raw
from tests.raw import RawPeer, descriptors_now, message, open_descriptors
from tests.trace.conftest import Ends


class Lab(Device):
    """A BAR that is handled, one that is mapped, DMA, and two vectors."""

    vendor_id, device_id, class_code = 0x1234, 0x5678, 0xFF0000
    mmio = Bar(0, size=0x1000)
    window = Bar(2, size=0x1000, mmap=True)
    msi = Msi(vectors=2)
    memory = window.ram(0, size=0x1000)
    address = mmio.reg(0x00, size=8)
    copy = mmio.reg(0x08)
    ring = mmio.reg(0x0C)

    @copy.on_write
    def start(self, count: int) -> None:
        self.call_soon(lambda: self.move(count))

    def move(self, count: int) -> None:
        self.dma.write(self.address + count, self.dma.read(self.address, count)[::-1])
        self.msi[0].trigger()

    @ring.on_write
    def signal(self, vector: int) -> None:
        self.msi[vector].trigger()


def wait_for_descriptors(before: int) -> None:
    """The proxy's thread closes its own a moment after a peer has what it waits for."""
    deadline = time.monotonic() + 5
    while (now := descriptors_now()) > before:
        assert time.monotonic() < deadline, (now, before)


def exact(peer: RawPeer, size: int) -> tuple[bytes, tuple[int, ...]]:
    """So many bytes that arrive at `peer`, and the descriptors that come with them."""
    return peer._read(size)


@pytest.mark.parametrize("cls", [Client, QemuClient])
def test_a_whole_conversation_passes(folder: Path, cls: type[Client]) -> None:
    capture = io.BytesIO()
    with (
        Server(Lab(), folder / "server.sock").start(),
        Proxy(
            folder / "client.sock", folder / "server.sock", capture=CaptureWriter(capture)
        ).start() as proxy,
    ):
        with cls(proxy.path) as client:
            client.bus_master()
            interrupts = client.enable_msi(2)
            ram = client.memory(0x1000, 0x8000_0000)
            ram.write(0, b"abc")
            mmio = client.bar(0)
            mmio.write64(0x00, ram.address)
            mmio.write32(0x08, 3)
            assert interrupts[0].wait() == 1
            assert ram.read(3, 3) == b"cba"
            mmio.write32(0x0C, 1)
            assert interrupts[1].wait() == 1
            with client.map_bar(2) as window:
                window.write(0x10, b"shared")
            assert client.bar(2).read(0x10, 6) == b"shared"
        with cls(proxy.path) as client:
            assert client.bar(2).read(0x10, 6) == b"shared"
    messages = [*CaptureReader(io.BytesIO(capture.getvalue()))]
    assert {message.connection for message in messages} == {0, 1}
    assert {message.direction for message in messages} == {*Direction}


def test_dma_by_message_passes(folder: Path) -> None:
    with (
        Server(Lab(), folder / "server.sock").start(),
        Proxy(folder / "client.sock", folder / "server.sock").start() as proxy,
        Client(proxy.path) as client,
    ):
        client.bus_master()
        interrupt = client.enable_msi()[0]
        ram = client.memory(0x40_0000, shared=False)
        ram.write(0, bytes(range(256)) * 0x2000)
        mmio = client.bar(0)
        mmio.write64(0x00, ram.address)
        mmio.write32(0x08, 0x20_0000)
        assert interrupt.wait() == 1
        assert ram.read(0x20_0000, 0x20_0000) == (bytes(range(256)) * 0x2000)[::-1]


pieces = st.lists(st.integers(1, 400), max_size=8)
payloads = st.binary(max_size=300)
wire = st.lists(st.tuples(payloads, st.integers(0, 3), st.integers(0, 0xFFFF)), max_size=12)


def arrive(messages: list[tuple[bytes, int, int]], cuts: list[int], backwards: bool) -> None:
    """Any messages, in any pieces: the same bytes arrive, descriptors with their message's first byte."""
    with Between() as between:
        source, target = between.ends[::-1] if backwards else between.ends
        sent = [message(command, payload) for payload, _, command in messages]
        before = descriptors_now()
        for data, (_, count, _) in zip(sent, messages, strict=True):
            send_in_pieces(source, data, cuts, count)
        for data, (_, count, _) in zip(sent, messages, strict=True):
            head, fds = exact(target, 16)
            rest, late = exact(target, len(data) - 16)
            assert head + rest == data
            assert (len(fds), late) == (count, ())
            for fd in fds:
                assert os.read(fd, 1) == b"x"
                os.close(fd)
        wait_for_descriptors(before)


@settings(max_examples=25)
@given(messages=wire, cuts=pieces, backwards=st.booleans())
def test_messages_arrive_as_they_were_sent_however_they_are_cut(
    messages: list[tuple[bytes, int, int]], cuts: list[int], backwards: bool
) -> None:
    arrive(messages, cuts, backwards)


@pytest.mark.soak
@settings(max_examples=2000)
@given(messages=wire, cuts=pieces, backwards=st.booleans())
def test_very_many_messages_arrive_as_they_were_sent_however_they_are_cut(
    messages: list[tuple[bytes, int, int]], cuts: list[int], backwards: bool
) -> None:
    arrive(messages, cuts, backwards)


@settings(max_examples=25)
@given(chunks=st.lists(st.binary(min_size=1, max_size=200), max_size=10))
def test_bytes_that_are_no_messages_pass_too(chunks: list[bytes]) -> None:
    """Whatever is sent before a client closes arrives, to the last byte."""
    with Between() as between:
        client, server = between.ends
        for chunk in chunks:
            client.send(chunk)
        client.socket.shutdown(socket.SHUT_WR)
        wanted = b"".join(chunks)
        assert exact(server, len(wanted))[0] == wanted
        server.expect_closed()


class Between:
    """A proxy between two connected ends, for tests that hypothesis runs many times."""

    def __enter__(self) -> "Between":
        self.folder = tempfile.TemporaryDirectory(prefix="ob", dir="/tmp")
        folder = Path(self.folder.name)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(folder / "s"))
            listener.listen()
            self.proxy = Proxy(folder / "c", folder / "s").start()
            client = RawPeer.connect(self.proxy.path)
            self.ends = client, RawPeer(listener.accept()[0])
        return self

    def __exit__(self, *_: object) -> None:
        for end in self.ends:
            end.close()
        self.proxy.close()
        self.folder.cleanup()


def send_in_pieces(peer: RawPeer, data: bytes, cuts: list[int], count: int) -> None:
    """`count` descriptors go with the first piece."""
    pipes = []
    for _ in range(count):
        reading, writing = os.pipe()
        os.write(writing, b"x")
        os.close(writing)
        pipes.append(reading)
    at = 0
    for cut in [*cuts, len(data)]:
        if data[at : at + cut]:
            peer.send(data[at : at + cut], pipes if at == 0 else ())
            at += cut
    for fd in pipes:
        os.close(fd)


def test_a_large_message_goes_on_whole(ends: Ends) -> None:
    client, server = ends()
    data = message(raw.REGION_WRITE, os.urandom(1 << 20))
    sender = threading.Thread(target=client.send, args=(data,))
    sender.start()
    assert exact(server, len(data))[0] == data
    sender.join()


def test_a_header_that_announces_more_than_the_server_takes_goes_on_without_its_body(ends: Ends) -> None:
    client, server = ends()
    client.send(raw.version())
    server.send(raw.reply(server.receive(), struct.pack("=HH", 0, 0) + raw.SERVER_JSON))
    client.receive()
    data = message(raw.REGION_WRITE, b"abc", size=3 << 20)
    client.send(data)
    assert exact(server, len(data))[0] == data
    server.send(message(raw.REGION_WRITE, flags=raw.REPLY | raw.ERROR, error=22))
    assert client.receive().error == 22


def test_what_cannot_be_cut_is_captured_as_such(ends: Ends) -> None:
    seen: list[Captured] = []
    client, server = ends(observer=seen.append)
    nonsense = message(raw.RESET, size=3) + b"and more"
    client.send(nonsense)
    assert exact(server, len(nonsense))[0] == nonsense
    assert [(each.data, each.remark) for each in seen] == [(nonsense, UNCUT)]


def test_a_server_that_goes_ends_the_clients_connection(ends: Ends) -> None:
    client, server = ends()
    server.close()
    client.expect_closed()


def test_a_client_that_goes_ends_the_servers_connection(ends: Ends) -> None:
    client, server = ends()
    data = raw.reset() + raw.reset()[:9]
    client.send(data)
    client.close()
    assert exact(server, len(data))[0] == data
    server.expect_closed()


def test_a_half_closed_client_still_gets_its_answers(ends: Ends) -> None:
    client, server = ends()
    client.send(raw.reset())
    client.socket.shutdown(socket.SHUT_WR)
    asked = server.receive()
    server.expect_closed()
    server.send(raw.reply(asked))
    assert client.receive().command == raw.RESET
    server.close()
    client.expect_closed()


def test_a_half_closed_client_that_goes_altogether_is_noticed(ends: Ends) -> None:
    client, server = ends()
    client.socket.shutdown(socket.SHUT_WR)
    server.expect_closed()
    client.close()
    poll = select.poll()
    poll.register(server.socket, 0)
    assert poll.poll(10_000)[0][1] & select.POLLHUP


def test_a_server_that_stalls_makes_its_client_wait_and_nothing_grows(ends: Ends) -> None:
    client, server = ends()
    client.socket.setblocking(False)
    data, sent = raw.write(0, 0, bytes(4096)), 0
    deadline = time.monotonic() + 10
    while select.select([], [client.socket], [], 0.5)[1]:
        assert time.monotonic() < deadline
        sent += client.socket.send((data * 20)[sent % len(data) :])
    # Two sockets' buffers, a chunk, and the message in progress.
    assert sent < 4 * 212_992 + 2 * RECEIVE_BYTES
    client.close()
    rest, _ = exact(server, sent)
    assert rest == (data * (sent // len(data) + 1))[:sent]
    server.expect_closed()


def test_a_client_that_does_not_read_makes_the_server_wait(ends: Ends) -> None:
    client, server = ends()
    server.socket.setblocking(False)
    answer, sent = message(raw.REGION_READ, bytes(4096), flags=raw.REPLY), 0
    while select.select([], [server.socket], [], 0.5)[1]:
        sent += server.socket.send((answer * 20)[sent % len(answer) :])
    server.socket.settimeout(10)
    client.send(raw.reset())
    assert server.receive().command == raw.RESET
    server.close()
    assert exact(client, sent)[0] == (answer * (sent // len(answer) + 1))[:sent]
    client.expect_closed()


def test_descriptors_of_what_nobody_reads_are_let_go(folder: Path) -> None:
    before = open_descriptors()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "s"))
        listener.listen()
        with Proxy(folder / "c", folder / "s").start() as proxy, RawPeer.connect(proxy.path) as client:
            server, _ = listener.accept()
            reading, writing = os.pipe()
            client.socket.setblocking(False)
            while select.select([], [client.socket], [], 0.3)[1]:
                client.socket.sendmsg(
                    [raw.write(0, 0, bytes(2048))],
                    [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [writing]))],
                )
            os.close(writing)
            client.socket.settimeout(10)
            server.close()
            client.expect_closed()
        # All copies of the pipe's end are closed.
        assert os.read(reading, 1) == b""
        os.close(reading)
    assert open_descriptors() == before


def test_clients_are_taken_one_after_the_other(folder: Path) -> None:
    with (
        Server(Lab(), folder / "s").start(),
        Proxy(folder / "c", folder / "s").start() as proxy,
    ):
        first = RawPeer.connect(proxy.path)
        with RawPeer.connect(proxy.path) as second, first:
            first.negotiate()
            second.send(raw.version())
            first.ask(raw.device_info())
            second.expect_silence()
            first.close()
            assert second.receive().command == raw.VERSION


def test_without_a_server_the_client_is_let_go_and_the_next_one_finds_it(folder: Path) -> None:
    with Proxy(folder / "c", folder / "s").start() as proxy:
        with pytest.raises(ConnectionLost):
            Client(proxy.path)
        with Server(Lab(), folder / "s").start(), Client(proxy.path) as client:
            assert client.config.read16(0) == 0x1234


def test_a_live_servers_path_is_refused(folder: Path) -> None:
    with Server(Lab(), folder / "s"), pytest.raises(SetupError, match="another server"):
        Proxy(folder / "s", folder / "t")


def test_many_clients_leave_nothing_behind(folder: Path) -> None:
    with Server(Lab(), folder / "s").start(), Proxy(folder / "c", folder / "s").start() as proxy:
        with Client(proxy.path) as client:
            client.enable_msi(2)
        before = open_descriptors()
        for _ in range(100):
            with Client(proxy.path) as client:
                client.enable_msi(2)
                client.memory(0x1000)
        with Client(proxy.path) as client:  # the last one has been let go when this one is served
            client.config.read32(0)
        wait_for_descriptors(before)


TWIN_JSON = {"capabilities": {"max_msg_fds": 8, "twin_socket": {"supported": True, "fd_index": 0}}}


def test_the_twin_socket_passes_through_the_proxy_too(ends: Ends) -> None:
    seen: list[Captured] = []
    client, server = ends(observer=seen.append)
    client.send(raw.version())
    ours, theirs = socket.socketpair()
    text = json.dumps(TWIN_JSON).encode() + b"\0"
    with theirs:
        server.send(raw.reply(server.receive(), struct.pack("=HH", 0, 0) + text), [theirs.fileno()])
    [fd] = client.receive().fds
    with RawPeer(socket.socket(fileno=fd)) as client_twin, RawPeer(ours) as server_twin:
        read = message(raw.DMA_READ, struct.pack("=QQ", 0x1000, 4))
        server_twin.send(read)
        asked = client_twin.receive()
        client_twin.send(raw.reply(asked, struct.pack("=QQ", 0x1000, 4) + b"data"))
        assert server_twin.receive().payload[16:] == b"data"
        client.close()
        server.expect_closed()
        client_twin.expect_closed()
        server_twin.expect_closed()
        assert [(each.socket, each.direction) for each in seen] == [
            (0, Direction.TO_SERVER),
            (0, Direction.TO_CLIENT),
            (1, Direction.TO_CLIENT),
            (1, Direction.TO_SERVER),
        ]


def test_a_descriptor_that_is_no_socket_is_no_twin(ends: Ends) -> None:
    client, server = ends()
    client.send(raw.version())
    fd = raw.memory_file(4096, b"memory")
    before = raw.open_descriptors()
    text = json.dumps(TWIN_JSON).encode() + b"\0"
    server.send(raw.reply(server.receive(), struct.pack("=HH", 0, 0) + text), [fd])
    os.close(fd)
    [fd] = client.receive().fds
    assert os.pread(fd, 6, 0) == b"memory"
    wait_for_descriptors(before)
    os.close(fd)


def test_a_capture_that_cannot_be_written_does_not_stop_the_client(ends: Ends) -> None:
    class Full(io.BytesIO):
        def write(self, data: Any) -> int:
            if self.tell() > 100:
                raise OSError(28, "No space left on device")
            return super().write(data)

    client, server = ends(capture=CaptureWriter(Full()))
    for number in range(3):
        client.send(raw.reset(id=number))
        assert server.receive().id == number
