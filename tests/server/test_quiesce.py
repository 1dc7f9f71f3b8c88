"""A device that has to become quiet before memory, a reset or its migration state change."""

import os
from contextlib import suppress

import pytest

from outboard import Bar, Device, Server
from outboard.protocol.messages import MigrationState
from tests import raw
from tests.raw import RawPeer
from tests.server.conftest import Connect, Serve
from tests.server.gadgets import Gadget

PAGE = 4096


class Slow(Device):
    """Becomes quiet only when the test says so."""

    regs = Bar(0, size=0x1000)
    value = regs.reg(0x00)
    finish = regs.reg(0x08, access="wo")

    def __init__(self) -> None:
        super().__init__()
        self.busy = True
        self.log: list[str] = []

    def on_quiesce(self) -> bool:
        self.log.append("quiesce")
        if self.busy:
            self.after(0.01, self.end)
        return not self.busy

    def end(self) -> None:
        self.log.append("quiet")
        self.quiesced()

    def on_resume(self) -> None:
        self.log.append("resume")

    def on_reset(self) -> None:
        self.log.append("reset")


@pytest.fixture
def slow(serve: Serve, connect: Connect) -> tuple[Slow, RawPeer, Server]:
    device = Slow()
    server = serve(device)
    return device, connect(server), server


def test_requests_wait_in_their_order_until_the_device_is_quiet(
    slow: tuple[Slow, RawPeer, Server],
) -> None:
    device, client, _ = slow
    messages = (raw.dma_map(0, PAGE, id=1), raw.write(0, 0, b"\1\0\0\0", id=2), raw.read(0, 0, 4, id=3))
    client.send(b"".join(messages))
    client.send(raw.dma_unmap(0, PAGE, id=4))
    client.send(raw.reset(id=5))
    client.send(raw.read(0, 0, 4, id=6))
    answers = [client.receive() for _ in range(6)]
    assert [answer.id for answer in answers] == [1, 2, 3, 4, 5, 6]
    assert all(answer.flags == raw.REPLY for answer in answers)
    assert (answers[2].payload[16:], answers[5].payload[16:]) == (b"\1\0\0\0", bytes(4))
    once = ["quiesce", "quiet", "resume"]
    assert device.log == [*once, *once, "quiesce", "quiet", "reset", "resume"]


def test_a_stop_waits_for_a_device_that_is_slow_to_become_quiet(slow: tuple[Slow, RawPeer, Server]) -> None:
    device, client, _ = slow
    client.ask(raw.set_state(MigrationState.STOP))
    assert device.log == ["quiesce", "quiet"]
    client.ask(raw.dma_map(0, PAGE))
    assert device.log == ["quiesce", "quiet"]
    client.ask(raw.set_state(MigrationState.RUNNING))
    assert device.log == ["quiesce", "quiet", "resume"]


def test_a_client_may_vanish_while_it_waits(slow: tuple[Slow, RawPeer, Server], connect: Connect) -> None:
    device, client, server = slow
    before = raw.open_descriptors()
    fd = raw.memory_file(PAGE)
    client.send(raw.dma_map(0, PAGE), [fd])
    client.send(raw.dma_map(PAGE, PAGE), [fd])
    os.close(fd)
    client.close()
    other = connect(server)
    device.busy = False
    other.ask(raw.dma_map(0, PAGE))
    assert device.log[-1] == "resume"
    other.close()
    assert raw.open_descriptors() <= before


def test_what_a_client_can_add_while_it_waits_is_bounded(
    serve: Serve, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    class Never(Device):
        regs = Bar(0, size=0x100000)

        def on_quiesce(self) -> bool:
            return False

    client = connect(serve(Never()))
    client.send(raw.reset())
    write = raw.write(0, 0, bytes(0x100000))
    with suppress(BrokenPipeError, ConnectionResetError):
        for _ in range(64):
            client.send(write)
    client.expect_closed()
    assert "waits for the device" in caplog.text


def test_a_client_that_breaks_the_protocol_while_it_waits_is_let_go_at_once(
    slow: tuple[Slow, RawPeer, Server],
) -> None:
    _, client, _ = slow
    client.send(raw.reset(id=1) + bytes(16))
    assert [client.receive().id for _ in range(2)] == [1, 0]
    client.expect_closed()


@pytest.mark.parametrize("name", ["on_quiesce", "on_resume"])
@pytest.mark.parametrize("request_", [raw.reset(), raw.set_state(MigrationState.STOP)], ids=["reset", "stop"])
def test_a_device_that_fails_to_become_quiet_or_to_go_on_leaves_no_client_without_an_answer(
    serve: Serve, connect: Connect, caplog: pytest.LogCaptureFixture, name: str, request_: bytes
) -> None:
    def fail(self: Device) -> None:
        raise ZeroDivisionError(name)

    client = connect(serve(type("Failing", (Gadget,), {name: fail})()))
    client.ask(request_)
    client.ask(raw.set_state(MigrationState.RUNNING))
    client.ask(raw.dma_map(0, PAGE))
    assert f"ZeroDivisionError: {name}" in caplog.text
