"""What a reset keeps, what a disconnect takes back, and how one client follows another."""

import errno
import gc
import os
import tracemalloc
from collections.abc import Callable

import pytest

from outboard import Server
from tests import raw
from tests.raw import CONFIG, EVENTFD, INTX, MSIX, NONE, TRIGGER, UNMASK, RawPeer, fired, memory_file
from tests.server.conftest import Connect, Serve
from tests.server.gadgets import Gadget, Handmade

EventFds = Callable[[int], list[int]]
RESET_SCRATCH = b"\x78\x56\x34\x12"


def fire(client: RawPeer, number: int) -> None:
    client.write(0, 0x18, number.to_bytes(4, "little"))


@pytest.mark.point("P109")
def test_a_reset_restores_registers_and_configuration_and_keeps_maps_and_eventfds(
    client: RawPeer, gadget: Gadget, eventfds: EventFds
) -> None:
    [vector] = eventfds(1)
    fd = memory_file(4096)
    client.ask(raw.dma_map(0, 4096), [fd])
    os.close(fd)
    client.ask(raw.set_irqs(MSIX, EVENTFD | TRIGGER, 3, 1), [vector])
    fresh = client.read(CONFIG, 0, 4096)
    client.write(CONFIG, 0x04, b"\x07\x05")
    client.write(CONFIG, 0x10, b"\xff" * 24)
    client.write(CONFIG, 0x3C, b"\x0b")
    client.write(0, 0, b"dirt")
    client.write(3, 0, b"kept")
    answer = client.ask(raw.reset())
    assert (answer.size, answer.fds) == (16, ())
    assert client.read(CONFIG, 0, 4096) == fresh
    assert client.read(0, 0, 4) == RESET_SCRATCH
    assert client.read(3, 0, 4) == b"kept"
    assert gadget.log[-1] == "reset"
    assert len(gadget.dma.maps) == 1
    fire(client, 3)
    assert fired(vector) == 1


@pytest.mark.point("P109")
def test_a_reset_lowers_the_interrupt_line(client: RawPeer, gadget: Gadget, eventfds: EventFds) -> None:
    [line] = eventfds(1)
    client.ask(raw.set_irqs(INTX, EVENTFD | TRIGGER), [line])
    client.write(0, 0x1C, b"\x01\0\0\0")
    assert fired(line) == 1
    client.ask(raw.reset())
    assert not gadget.intx.asserted
    client.ask(raw.set_irqs(INTX, NONE | UNMASK))
    assert fired(line) == 0


@pytest.mark.point("P108a", "P110")
def test_a_reset_may_come_first_and_in_a_storm(serve: Serve, connect: Connect) -> None:
    device = Handmade()
    for served in (serve(Gadget()), serve(device)):
        client = connect(served)
        client.send(raw.reset() * 1000)
        for _ in range(1000):
            assert client.receive().flags == raw.REPLY
        client.ask(raw.device_info())
    assert device.calls.count(("reset",)) == 1000


@pytest.mark.point("P117", "P118")
def test_a_disconnect_takes_everything_back_but_the_devices_state(
    gadget: Gadget, serve: Serve, connect: Connect, eventfds: EventFds
) -> None:
    server = serve(gadget)
    fd = memory_file(4 * 4096)
    fds = eventfds(66)
    before = raw.open_descriptors()
    with connect(server) as client:
        for number in range(4):
            client.ask(raw.dma_map(number << 30, 4096, offset=number * 4096), [fd])
        client.ask(raw.set_irqs(MSIX, EVENTFD | TRIGGER, 0, 64), fds[:64])
        client.ask(raw.set_irqs(INTX, EVENTFD | TRIGGER), [fds[64]])
        client.ask(raw.set_irqs(INTX, EVENTFD | UNMASK), [fds[65]])
        client.write(0, 0, b"kept")
        client.write(CONFIG, 0x3C, b"\x0b")
    following = connect(server)
    assert raw.open_descriptors() == before + 2  # the two ends of the new connection
    assert gadget.log == ["connected", ("disconnected", 4), "connected"]
    assert gadget.dma.maps == ()
    assert following.read(0, 0, 4) == b"kept"
    assert following.read(CONFIG, 0x3C, 1) == b"\x0b"
    for number in range(64):
        fire(following, number)
    following.write(0, 0x1C, b"\x01\0\0\0")
    assert [fired(event) for event in fds] == [0] * 66
    following.ask(raw.set_irqs(MSIX, EVENTFD | TRIGGER, 0, 1), fds[:1])
    fire(following, 0)
    assert fired(fds[0]) == 1
    os.close(fd)


@pytest.mark.point("P117")
def test_a_device_without_a_base_class_is_told_to_let_go_by_its_six_methods(
    serve: Serve, connect: Connect
) -> None:
    server = serve(device := Handmade())
    with connect(server) as client:
        client.ask(raw.dma_map(0x1000, 0x1000))
        client.ask(raw.dma_map(0x8000, 0x2000))
        client.ask(raw.dma_map(0x4000, 0x1000))
        client.ask(raw.dma_unmap(0x1000, 0x1000))
        device.calls.clear()
    connect(server)
    assert device.calls == [
        ("dma_unmap", 0x4000, 0x1000),
        ("dma_unmap", 0x8000, 0x2000),
        ("set_irqs", INTX, TRIGGER, NONE, 0, 0, 0, b""),
        ("set_irqs", MSIX, TRIGGER, NONE, 0, 0, 0, b""),
    ]


@pytest.mark.point("P117")
def test_a_device_that_fails_to_let_go_of_one_thing_lets_go_of_the_others(
    serve: Serve, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve(device := Handmade())
    device.breaks = "dma_unmap"
    with connect(server) as client:
        client.ask(raw.dma_map(0x1000, 0x1000))
        client.ask(raw.dma_map(0x4000, 0x1000))
        assert client.refused(raw.dma_unmap(0, 0, flags=2)) == errno.EINVAL
        device.calls.clear()
    connect(server).ask(raw.device_info())
    assert [call[0] for call in device.calls] == ["dma_unmap", "dma_unmap", "set_irqs", "set_irqs"]
    assert "letting go of the client failed" in caplog.text


@pytest.mark.point("P117")
def test_an_author_whose_on_disconnect_fails_loses_nothing(
    serve: Serve, connect: Connect, caplog: pytest.LogCaptureFixture, eventfds: EventFds
) -> None:
    class Clumsy(Gadget):
        def on_disconnect(self) -> None:
            raise RuntimeError("dropped it")

    [vector] = eventfds(1)
    server = serve(device := Clumsy())
    before = raw.open_descriptors()
    with connect(server) as client:
        client.ask(raw.dma_map(0, 4096))
        client.ask(raw.set_irqs(MSIX, EVENTFD | TRIGGER), [vector])
    following = connect(server)
    assert "dropped it" in caplog.text
    assert device.dma.maps == ()
    fire(following, 0)
    assert fired(vector) == 0
    assert raw.open_descriptors() == before + 2


def one_life(server: Server, fd: int, event: int) -> None:
    """A client that uses everything, then leaves in the middle of a message."""
    with RawPeer.connect(server.path) as client:
        client.negotiate()
        client.ask(raw.dma_map(0, 4096), [fd])
        client.ask(raw.dma_map(4096, 4096))
        client.ask(raw.set_irqs(MSIX, EVENTFD | TRIGGER, 0, 4), [event] * 4)
        client.ask(raw.set_irqs(INTX, EVENTFD | UNMASK), [event])
        os.close(client.ask(raw.region_info(3)).fds[0])
        client.read(CONFIG, 0, 256)
        client.send(raw.write(0, 0, bytes(64))[:40], [fd])


def lives_leak_nothing(server: Server, gadget: Gadget, clients: int) -> None:
    fd, event = memory_file(4096), os.eventfd(0)
    for _ in range(20):
        one_life(server, fd, event)
    with RawPeer.connect(server.path) as client:
        client.negotiate()
        descriptors = raw.open_descriptors()
        gadget.log.clear()
        tracemalloc.start()
        first, _ = tracemalloc.get_traced_memory()
    for _ in range(clients):
        one_life(server, fd, event)
    with RawPeer.connect(server.path) as client:
        client.negotiate()
        gadget.log.clear()
        gc.collect()
        last, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert raw.open_descriptors() == descriptors
    assert last - first < 64 << 10
    os.close(fd)
    os.close(event)


@pytest.mark.point("P118")
def test_fifty_clients_leak_neither_descriptors_nor_memory(gadget: Gadget, serve: Serve) -> None:
    lives_leak_nothing(serve(gadget), gadget, 50)


@pytest.mark.soak
@pytest.mark.point("P118")
def test_a_thousand_clients_leak_neither_descriptors_nor_memory(gadget: Gadget, serve: Serve) -> None:
    lives_leak_nothing(serve(gadget), gadget, 1000)
