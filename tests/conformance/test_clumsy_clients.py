"""The suite can fail a client: small clients of plain bytes, each with one bad habit."""

import os
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from outboard.conformance import Outcome, judge_client
from tests import raw
from tests.raw import RawPeer

Habit = Callable[[RawPeer], None]


def trusting(peer: RawPeer) -> None:
    """Believes whatever is answered, waits for ever, and reads whole regions."""
    peer.send(raw.version(text=b'{"capabilities":{"max_msg_fds":"8"}}\0'))
    peer.receive()
    peer.send(raw.device_info(id=2))
    peer.receive()
    peer.send(raw.read(0, 0, 0x4000, id=3))
    peer.receive()
    peer.send(raw.read(0, 0x3FFE, 4, id=4))
    peer.receive()
    peer.receive()


def hasty(peer: RawPeer) -> None:
    """Says nothing of its version, sends headers apart, maps what is not there."""
    peer.send(raw.device_info())
    peer.receive()
    body = raw.dma_map(0, 0)
    peer.send(body[:16])
    threading.Event().wait(0.05)
    peer.send(body[16:])
    peer.receive()
    peer.send(raw.dma_unmap(0x1000, 0x1000))
    peer.receive()
    peer.send(raw.set_irqs(raw.MSIX, raw.EVENTFD, 0, 9))
    peer.receive()
    peer.send(raw.region_info(0, 16))
    peer.receive()
    peer.send(raw.message(77))
    peer.receive()


def generous(peer: RawPeer) -> None:
    """Gives the device whatever it asks for, in the layout of QEMU 10.1; sends descriptors in heaps."""
    peer.negotiate()
    fds = [os.eventfd(0) for _ in range(4)]
    try:
        peer.send(raw.set_irqs(raw.MSIX, raw.EVENTFD | raw.TRIGGER, 0, 4), fds)
    finally:
        for fd in fds:
            os.close(fd)
    peer.receive()
    peer.send(raw.region_info(0))
    if peer.receive().flags & raw.ERROR:
        peer.receive()
    peer.ask(raw.dma_map(0, 0x10000))
    memory = bytearray(0x10000)
    peer.send(raw.device_info())
    while True:
        message = peer.receive()
        if message.flags & raw.REPLY:
            continue
        address, count = struct.unpack_from("=QQ", message.payload)
        at, size = address % 0x10000, min(count & 0xFFFF_FFFF, 0x10000)
        if message.command == raw.DMA_WRITE:
            memory[at : at + size] = message.payload[12 : 12 + size]
            peer.send(raw.reply(message))
        else:
            answer = message.payload[:8] + struct.pack("=I", size) + bytes(memory[at : at + size]) + bytes(4)
            peer.send(raw.reply(message, answer))


def failing(folder: Path, habit: Habit, *only: str) -> list[str]:
    def run(path: str) -> None:
        def live() -> None:
            try:
                with RawPeer.connect(path) as peer:
                    habit(peer)
            except (EOFError, OSError, AssertionError):
                pass

        threading.Thread(target=live, daemon=True).start()

    report = judge_client(folder / "vmm.sock", start=run, only=only, settle=0.3, patience=5)
    return [verdict.point.id for verdict in report if verdict.outcome is Outcome.FAIL]


@pytest.mark.parametrize(
    "points",
    ["P122a P130a P131", "P122b", "P122c", "P122d", "P122e", "P123c", "P124a"],
    ids=lambda points: points.split()[0],
)
def test_a_client_that_believes_everything_is_found_out(folder: Path, points: str) -> None:
    wanted = [point for point in points.split() if point != "P130a"]
    assert failing(folder, trusting, *wanted) == wanted


def test_a_client_that_breaks_every_rule_of_form_is_found_out(folder: Path) -> None:
    points = "P122a P130a P132a P133a P133b P134 P136".split()
    assert failing(folder, hasty, *points) == points


def test_a_client_that_gives_everything_away_is_found_out(folder: Path) -> None:
    points = "P123b P126a P126b P126c P126d P126e P126f P127 P132b".split()
    assert failing(folder, generous, *points) == [point for point in points if point != "P126a"]
