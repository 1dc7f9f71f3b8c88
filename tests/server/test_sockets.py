"""Where a server listens, whom it lets in, how it ends."""

import logging
import os
import resource
import select
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from outboard import Server
from outboard.errors import SetupError
from tests import raw
from tests.raw import RawPeer, open_descriptors
from tests.server.conftest import Connect, Serve
from tests.server.gadgets import Gadget, Handmade


def test_a_server_without_a_free_descriptor_waits_and_then_takes_the_client(
    gadget: Gadget, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Server(gadget, folder / "s") as server, RawPeer.connect(folder / "s") as client:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            server.run_once(1)
            assert not server.run_once(0), "it asks again at once"
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert "Too many open files" in caplog.text
        server.start()
        client.negotiate()


def test_a_call_from_another_thread_is_heard_amid_a_burst_of_accesses(
    gadget: Gadget, serve: Serve, connect: Connect
) -> None:
    server = serve(gadget)
    client = connect(server)
    for _ in range(20):
        client.send(raw.read(0, 0, 4))
        client.receive()
        heard = threading.Event()
        server.loop.call_soon(heard.set)
        assert heard.wait(1)


@pytest.mark.point("P1")
def test_a_client_may_connect_before_the_server_runs(gadget: Gadget, folder: Path) -> None:
    with Server(gadget, folder / "s") as server, RawPeer.connect(folder / "s") as client:
        client.send(raw.version() + raw.read(0, 0, 4))
        server.start()
        assert client.receive().command == raw.VERSION
        assert client.receive().payload[16:] == b"\x78\x56\x34\x12"


@pytest.mark.point("P2")
def test_an_inherited_listening_socket_is_served_and_its_file_is_left_alone(
    gadget: Gadget, folder: Path, connect: Connect
) -> None:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(os.fspath(folder / "s"))
    listener.listen()
    before = open_descriptors()
    with Server(gadget, fd=listener.detach()).start(), RawPeer.connect(folder / "s") as client:
        client.negotiate()
    assert (folder / "s").exists()
    assert open_descriptors() == before - 1


@pytest.mark.point("P2")
def test_an_inherited_connection_is_served_until_its_client_leaves(gadget: Gadget) -> None:
    ours, theirs = socket.socketpair()
    with Server(gadget, fd=theirs.detach()) as server:
        with RawPeer(ours) as client:
            client.send(raw.version())
            server.run_once()
            assert client.receive().command == raw.VERSION
            assert server.connected
        server.serve_forever()
        assert not server.connected


@pytest.mark.point("P3")
def test_the_socket_of_a_dead_server_is_replaced_and_ours_removed_at_the_end(
    gadget: Gadget, folder: Path
) -> None:
    path = folder / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(os.fspath(path))
    assert path.exists()
    with Server(gadget, path).start(), RawPeer.connect(path) as client:
        client.negotiate()
    assert not path.exists()


@pytest.mark.point("P3")
def test_the_socket_of_a_live_server_is_refused_and_its_client_not_disturbed(
    gadget: Gadget, serve: Serve, connect: Connect
) -> None:
    server = serve(gadget)
    client = connect(server)
    before = open_descriptors()
    with pytest.raises(SetupError, match="another server listens"):
        Server(Handmade(), server.path)
    assert open_descriptors() == before
    client.ask(raw.device_info())
    client.close()
    connect(server).ask(raw.device_info())


@pytest.mark.point("P3")
def test_a_server_that_was_only_looked_at_tells_its_device_nothing(gadget: Gadget, serve: Serve) -> None:
    server = serve(gadget)
    with pytest.raises(SetupError):
        Server(Handmade(), server.path)
    with RawPeer.connect(server.path) as client:
        client.negotiate()
    with RawPeer.connect(server.path) as client:
        client.negotiate()
        assert gadget.log == ["connected", ("disconnected", 0), "connected"]


@pytest.mark.point("P3")
@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda path: path.write_text("precious"), "is not a socket"),
        (lambda path: path.mkdir(), "is not a socket"),
        (lambda path: path.symlink_to(path.parent / "nowhere"), "No such file"),
    ],
)
def test_a_path_that_is_something_else_is_refused_and_kept(
    gadget: Gadget, folder: Path, make: object, sentence: str
) -> None:
    path = folder / "s"
    make(path)  # type: ignore[operator]
    before = open_descriptors()
    with pytest.raises(SetupError, match=sentence):
        Server(gadget, path)
    assert path.exists() or path.is_symlink()
    assert open_descriptors() == before


def test_a_path_that_cannot_be_listened_on_is_refused_with_a_sentence(gadget: Gadget, folder: Path) -> None:
    before = open_descriptors()
    with pytest.raises(SetupError, match="too long"):
        Server(gadget, folder / ("x" * 200))
    with pytest.raises(SetupError, match="No such file"):
        Server(gadget, folder / "missing" / "s")
    with pytest.raises(SetupError, match="give one of the two"):
        Server(gadget)
    with pytest.raises(SetupError, match="give one of the two"):
        Server(gadget, folder / "s", fd=0)
    with pytest.raises(SetupError, match="Bad file descriptor"):
        Server(gadget, fd=9999)
    assert open_descriptors() == before


@pytest.mark.point("P4")
def test_a_second_client_waits_its_turn(gadget: Gadget, serve: Serve, connect: Connect) -> None:
    server = serve(gadget)
    first = connect(server)
    with RawPeer.connect(server.path) as second:
        second.send(raw.version() + raw.read(0, 0, 4))
        for number in range(100):
            first.write(0, 0, number.to_bytes(4, "little"))
        second.expect_silence()
        first.close()
        assert second.receive().command == raw.VERSION
        assert second.receive().payload[16:] == b"\x63\0\0\0"


@pytest.mark.point("P23", "P120")
def test_a_silent_client_holds_up_no_other_device_of_the_process(serve: Serve, connect: Connect) -> None:
    servers = [serve(Gadget()) for _ in range(3)]
    with RawPeer.connect(servers[0].path) as silent:
        silent.send(raw.version()[:20])
        clients = [connect(server) for server in servers[1:]]
        for number, client in enumerate(clients):
            client.write(0, 0, bytes([number] * 4))
        assert [client.read(0, 0, 4) for client in clients] == [b"\0\0\0\0", b"\x01\x01\x01\x01"]


@pytest.mark.point("P119")
def test_stop_from_another_thread_ends_the_server_at_once(gadget: Gadget, folder: Path) -> None:
    server = Server(gadget, folder / "s")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    with RawPeer.connect(folder / "s") as client:
        client.negotiate()
        server.stop()
        thread.join(1)
        assert not thread.is_alive()
        server.close()
        client.expect_closed()
    assert not (folder / "s").exists()
    server.close()


@pytest.mark.point("P119")
def test_stop_does_not_wait_for_a_client_that_owes_us_memory(gadget: Gadget, folder: Path) -> None:
    server = Server(gadget, folder / "s").start()
    with RawPeer.connect(folder / "s") as client:
        client.negotiate()
        client.write(7, 4, b"\x04\x00")
        client.ask(raw.dma_map(0, 4096))
        client.write(0, 0x28, b"\x10")
        client.write(0, 0x30, b"\x01\0\0\0")
        assert client.receive().command == raw.DMA_WRITE  # never answered
        started = time.monotonic()
        server.close()
        assert time.monotonic() - started < 1
    assert "server ends" in str(gadget.dma_error) or "left" in str(gadget.dma_error)


PROGRAM = """
    from outboard import Bar, Device, serve
    class Scratch(Device):
        memory = Bar(0, size=4096)
    serve(Scratch(), {path!r}, mode=0o600)
"""


@pytest.mark.point("P119")
@pytest.mark.parametrize(("number", "busy"), [(signal.SIGTERM, True), (signal.SIGINT, False)])
def test_a_signal_ends_serve_within_a_second_and_removes_its_socket(
    folder: Path, number: signal.Signals, busy: bool
) -> None:
    path = folder / "s"
    program = textwrap.dedent(PROGRAM).format(path=os.fspath(path))
    with subprocess.Popen([sys.executable, "-c", program]) as process:
        client = None
        while client is None:
            assert process.poll() is None
            try:
                client = RawPeer.connect(path)
            except OSError:
                select.select([], [], [], 0.01)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with client:
            client.negotiate()
            if not busy:
                client.close()
            started = time.monotonic()
            process.send_signal(number)
            assert process.wait(5) == 0
            assert time.monotonic() - started < 1
            if busy:
                client.expect_closed()
    assert not path.exists()


@pytest.mark.point("P121")
def test_a_server_fits_into_another_event_loop_by_its_descriptor(gadget: Gadget, folder: Path) -> None:
    with Server(gadget, folder / "s") as server, RawPeer.connect(folder / "s") as client:
        assert server.run_once() or server.run_once(1)
        for request in (raw.version(), raw.read(0, 0, 4), raw.reset()):
            client.send(request)
            assert select.select([server], [], [], 5)[0] == [server]
            while not select.select([client.socket], [], [], 0)[0]:
                assert server.run_once()
            client.receive()
        assert not server.run_once()
        assert not select.select([server], [], [], 0)[0]


@pytest.mark.point("P121")
def test_what_a_device_has_put_off_makes_the_descriptor_readable_too(gadget: Gadget, folder: Path) -> None:
    seen: list[str] = []
    with Server(gadget, folder / "s") as server, RawPeer.connect(folder / "s") as client:
        client.send(raw.version())
        while "connected" not in gadget.log:
            assert select.select([server], [], [], 5)[0]
            server.run_once()
        gadget.after(0.01, lambda: seen.append("timer"))
        gadget.call_soon(lambda: gadget.call_soon(lambda: seen.append("call")))
        while len(seen) < 2:
            assert select.select([server], [], [], 5)[0], seen
            server.run_once()
        for _ in range(3):
            server.run_once()
        assert seen == ["call", "timer"]
        assert not select.select([server], [], [], 0)[0]


def test_a_clients_coming_and_going_is_logged(
    gadget: Gadget, serve: Serve, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "outboard"):
        server = serve(gadget)
        connect(server).close()
        connect(server)
    assert "a client has connected" in caplog.text
    assert "the client has gone" in caplog.text
