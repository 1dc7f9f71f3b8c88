"""Clients that are silent, stop half way, never read, or vanish: what they hold up, and for how long."""

import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from outboard import Server
from tests import raw
from tests.raw import EVENTFD, MSIX, TRIGGER, RawPeer, memory_file, open_descriptors
from tests.server.conftest import Connect, Serve
from tests.server.gadgets import Gadget

EventFds = Callable[[int], list[int]]
HELLO = raw.version()
MESSAGES = {
    "VERSION": HELLO,
    "DMA_MAP": raw.dma_map(0, 4096),
    "DMA_UNMAP": raw.dma_unmap(0, 4096),
    "GET_INFO": raw.device_info(),
    "GET_REGION_INFO": raw.region_info(3),
    "GET_REGION_IO_FDS": raw.region_io_fds(0),
    "GET_IRQ_INFO": raw.irq_info(MSIX),
    "SET_IRQS": raw.set_irqs(MSIX, EVENTFD | TRIGGER, 0, 1),
    "REGION_READ": raw.read(0, 0, 4),
    "REGION_WRITE": raw.write(0, 0, bytes(64)),
    "REGION_WRITE_MULTI": raw.write_multi((0, 0, b"abcd"), (0, 4, b"abcd")),
    "RESET": raw.reset(),
    "FEATURE": raw.message(raw.FEATURE, bytes(64)),
    "DMA_READ": raw.message(raw.DMA_READ, bytes(32), flags=raw.REPLY),
}


@pytest.mark.parametrize("said", [b"", HELLO[:1], HELLO[:16], HELLO[:-1], raw.read(0, 0, 4)])
def test_a_client_that_does_not_introduce_itself_yields_to_the_next(
    gadget: Gadget, folder: Path, said: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.INFO, "outboard"),
        Server(gadget, folder / "s", introduction=0.05).start(),
        RawPeer.connect(folder / "s") as silent,
        RawPeer.connect(folder / "s") as following,
    ):
        silent.send(said)
        following.negotiate()
        following.ask(raw.device_info())
    assert "no VERSION within 0.05 s, and another waits" in caplog.text
    assert gadget.log.count("connected") == 1


def test_a_client_that_says_nothing_stays_while_nobody_else_waits(gadget: Gadget, folder: Path) -> None:
    with Server(gadget, folder / "s", introduction=0) as server, RawPeer.connect(folder / "s") as silent:
        assert server.run_once(1)
        assert server.run_once(1), "its time is over"
        assert server.connected
        server.start()
        silent.negotiate()


@pytest.mark.parametrize("introduction", [0, None])
def test_a_client_that_has_introduced_itself_may_be_silent_for_ever(
    gadget: Gadget, folder: Path, introduction: float | None
) -> None:
    with (
        Server(gadget, folder / "s", introduction=introduction) as server,
        RawPeer.connect(folder / "s") as idle,
        RawPeer.connect(folder / "s") as waiting,
    ):
        idle.send(HELLO)
        waiting.send(HELLO)
        while not gadget.log:
            assert server.run_once(1)
        assert idle.receive().command == raw.VERSION
        while server.run_once(0.05):
            pass
        idle.send(raw.device_info())
        assert server.run_once(1)
        assert idle.receive().command == raw.DEVICE_INFO
        waiting.expect_silence()


def test_a_client_that_sends_everything_at_once_gets_all_its_answers(gadget: Gadget, folder: Path) -> None:
    """VERSION and more answers than the socket takes come in one breath."""
    with Server(gadget, folder / "s") as server, RawPeer.connect(folder / "s") as client:
        client.send(HELLO + raw.read(3, 0, 1 << 20) * 4)
        server.start()
        assert client.receive().command == raw.VERSION
        assert [client.receive().size for _ in range(4)] == [32 + (1 << 20)] * 4
        client.ask(raw.device_info())


def test_half_a_message_stops_neither_the_device_nor_the_server(gadget: Gadget, folder: Path) -> None:
    ran = threading.Event()

    def wait_a_moment() -> None:
        gadget.after(0.01, ran.set)

    with Server(gadget, folder / "s").start() as server, RawPeer.connect(folder / "s") as client:
        client.negotiate()
        client.send(raw.write(3, 0, bytes(64))[:40])
        server.loop.call_soon(wait_a_moment)
        assert ran.wait(5)
        client.send(raw.write(3, 0, bytes(64))[40:])
        assert client.receive().flags == raw.REPLY
        client.send(raw.read(0, 0, 4)[:20])
        started = time.monotonic()
        server.close()
        assert time.monotonic() - started < 1


@pytest.mark.parametrize("name", MESSAGES)
def test_a_client_that_vanishes_in_the_middle_of_a_message_takes_its_descriptors_along(
    gadget: Gadget, serve: Serve, connect: Connect, eventfds: EventFds, name: str
) -> None:
    message = MESSAGES[name]
    server = serve(gadget)
    fds = [memory_file(4096), *eventfds(2)]
    with connect(server):
        pass
    with connect(server) as client:
        client.ask(raw.device_info())
        before = open_descriptors() - 2
    for length in (1, 15, 16, len(message) - 1):
        with RawPeer.connect(server.path) as leaving:
            if name != "VERSION":
                leaving.negotiate()
            leaving.send(message[:length], fds)
    with connect(server) as following:
        following.ask(raw.device_info())
        assert open_descriptors() == before + 2
    os.close(fds[0])


def test_a_client_that_vanishes_while_its_descriptors_wait_to_be_read_leaves_none(
    gadget: Gadget, folder: Path, eventfds: EventFds
) -> None:
    fds = eventfds(64)
    before = open_descriptors()
    with Server(gadget, folder / "s") as server:
        for _ in range(5):
            with RawPeer.connect(folder / "s") as client:
                client.send(HELLO)
                client.send(raw.set_irqs(MSIX, EVENTFD | TRIGGER, 0, 64), fds)
                client.send(raw.set_irqs(MSIX, EVENTFD | TRIGGER, 0, 64)[:20], fds)
            while server.run_once(0):
                pass
    assert open_descriptors() == before


def test_a_client_that_never_reads_while_the_device_waits_for_its_memory_is_dropped(
    gadget: Gadget, serve: Serve, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """Small answers are the dearest to keep: their number is limited as well as their bytes."""
    server = serve(gadget)
    with connect(server) as greedy:
        greedy.write(7, 4, b"\x04\x00")
        greedy.ask(raw.dma_map(0, 4096))
        greedy.write(0, 0x28, b"\x10")
        greedy.write(0, 0x30, b"\x01\0\0\0")
        with pytest.raises(OSError, match=r"Broken pipe|reset"):
            greedy.socket.sendall(raw.read(0, 0, 4) * 200_000)
    with connect(server) as following:
        following.ask(raw.device_info())
    assert "takes none of 131073 answers" in caplog.text
    assert "left during" in str(gadget.dma_error)
