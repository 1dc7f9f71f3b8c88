"""QEMU as a client, byte by byte: its start-up in its order, and what sets 10.1 apart."""

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from outboard import Server
from tests import raw
from tests.raw import CONFIG, ERR, EVENTFD, INTX, MASK, MSIX, NONE, TRIGGER, UNMASK, RawPeer, memory_file
from tests.server.conftest import Serve
from tests.server.gadgets import Gadget
from tests.server.test_dma import ADDRESS, COUNT, PAGE, READ, WRITE, answer_probe, settle

COMMAND, BAR0, ROM_BAR = 0x04, 0x10, 0x30
Eventfds = Callable[[int], list[int]]


class Qemu:
    """QEMU's proxy: one counter of message ids for the whole process, so they have gaps on one socket."""

    def __init__(self, server: Server) -> None:
        self.peer = RawPeer.connect(server.path)
        self.ids = iter(range(3, 1 << 16, 7))

    def ask(self, message: Callable[..., bytes], *arguments: object, fds: tuple[int, ...] = ()) -> bytes:
        return self.peer.ask(message(*arguments, id=next(self.ids)), fds).payload

    def region(self, index: int) -> tuple[int, int]:
        """(flags, size): asked with room for the fixed part, and again if more is needed."""
        answer = self.peer.ask(raw.region_info(index, 32, id=next(self.ids)))
        argsz, flags, _, _, size, _ = struct.unpack_from("=IIIIQQ", answer.payload)
        if argsz > 32:
            assert answer.fds == ()
            answer = self.peer.ask(raw.region_info(index, argsz, id=next(self.ids)))
            assert answer.size == 16 + argsz
        assert len(answer.fds) == (1 if flags & 4 else 0)
        for fd in answer.fds:
            os.close(fd)
        return flags, size

    def config(self, offset: int, size: int) -> int:
        return int.from_bytes(self.ask(raw.read, CONFIG, offset, size)[16:], "little")

    def set_config(self, offset: int, value: int, size: int) -> None:
        self.ask(raw.write, CONFIG, offset, value.to_bytes(size, "little"))


@pytest.fixture
def qemu(gadget: Gadget, serve: Serve) -> Iterator[Qemu]:
    client = Qemu(serve(gadget))
    yield client
    client.peer.close()


@pytest.mark.point("P29", "P41", "P89", "P110")
def test_qemus_start_up_is_answered_from_the_version_to_the_first_interrupt(
    qemu: Qemu, gadget: Gadget, eventfds: Eventfds
) -> None:
    # The reply has the room of the request, and no descriptors.
    question = raw.version(id=next(qemu.ids))
    answer = qemu.peer.ask(question)
    assert answer.size <= len(question) == 214
    assert (answer.fds, answer.payload[:4]) == ((), bytes(4))

    # Memory in one burst, before anything is asked of the device: QEMU waits for the last only.
    ram = memory_file(1 << 20)
    maps = [(0, 0xA0000, 3), (0xC0000, 0x20000, 1), (0xE0000, 0x20000, 1)]
    for address, size, flags in maps:
        message = raw.dma_map(address, size, offset=address, flags=flags, id=next(qemu.ids))
        qemu.peer.send(message, [ram])
    assert [qemu.peer.receive().size for _ in maps] == [16, 16, 16]
    os.close(ram)

    payload = qemu.ask(raw.device_info, 16)
    assert struct.unpack("=IIII", payload) == (16, 3, 9, 5)
    found = {index: qemu.region(index) for index in (0, 1, 2, 3, 4, 5, 7)}
    assert found[5] == (0, 0)
    assert found[7] == (3, 4096)
    assert struct.unpack("=IIII", qemu.ask(raw.irq_info, ERR))[3] in (0, 1)
    assert len(qemu.ask(raw.read, CONFIG, 0, 4096)) == 16 + 4096

    before = qemu.config(ROM_BAR, 4)
    qemu.set_config(ROM_BAR, 0xFFFF_F800, 4)
    assert qemu.config(ROM_BAR, 4) & 0xFFFF_F800
    qemu.set_config(ROM_BAR, before, 4)
    for number, (_, size) in found.items():
        if number < 6 and size:
            qemu.config(BAR0 + 4 * number, 4)
    assert struct.unpack("=IIII", qemu.ask(raw.irq_info, MSIX))[3] == 64
    assert qemu.config(0x3D, 1) in range(1, 5)

    # The line, as with KVM: masked while the client's own descriptor for unmasking is handed over.
    line, resample, error = eventfds(3)
    qemu.ask(raw.set_irqs, INTX, EVENTFD | TRIGGER, 0, 1, fds=(line,))
    qemu.ask(raw.set_irqs, INTX, NONE | MASK, 0, 1)
    qemu.ask(raw.set_irqs, INTX, EVENTFD | UNMASK, 0, 1, fds=(resample,))
    qemu.ask(raw.set_irqs, INTX, NONE | UNMASK, 0, 1)
    qemu.ask(raw.set_irqs, ERR, EVENTFD | TRIGGER, 0, 1, fds=(error,))

    # The machine's reset, once before the guest runs.
    qemu.ask(raw.set_irqs, INTX, NONE | TRIGGER, 0, 0)
    qemu.set_config(COMMAND, qemu.config(COMMAND, 2) & ~0x407, 2)
    assert qemu.ask(raw.message, raw.RESET) == b""
    qemu.ask(raw.set_irqs, INTX, EVENTFD | TRIGGER, 0, 1, fds=(line,))
    for number in range(6):
        qemu.set_config(BAR0 + 4 * number, 0, 4)
    assert gadget.log[-1] == "reset"

    # MSI-X: enabled with no vector, then a message for each; a register write follows, a message too.
    vectors = eventfds(2)
    qemu.ask(raw.set_irqs, INTX, NONE | TRIGGER, 0, 0)
    qemu.ask(raw.set_irqs, MSIX, EVENTFD | TRIGGER, 0, 1)
    for number, fd in enumerate(vectors):
        qemu.ask(raw.set_irqs, MSIX, EVENTFD | TRIGGER, number, 1, fds=(fd,))
    at = next(at for at in range(0x40, 0x100, 4) if qemu.config(at, 1) == 0x11)
    qemu.set_config(at + 3, 0x80, 1)
    qemu.ask(raw.write, 0, 0x18, struct.pack("=I", 1))
    assert [raw.fired(fd) for fd in vectors] == [0, 1]


def ask_for_dma(qemu: Qemu, register: int, address: int, count: int, fill: int = 0) -> None:
    qemu.set_config(COMMAND, 4, 2)
    qemu.ask(raw.write, 0, ADDRESS, struct.pack("=Q", address))
    qemu.ask(raw.write, 0, COUNT, struct.pack("=I", count))
    qemu.ask(raw.write, 0, register, struct.pack("=I", fill))


def old_layout_serves(peer: RawPeer, memory: bytearray) -> None:
    """One DMA message as QEMU 10.1 understands it: 32 bits of count, and data 12 bytes in."""
    command = peer.receive()
    address, count = struct.unpack_from("=QI", command.payload)
    if command.command == raw.DMA_READ:
        head = struct.pack("=QI", address, count)
        peer.send(raw.reply(command, head + bytes(memory[address : address + count]) + bytes(4)))
    else:
        assert len(command.payload) >= 16 + count  # what it demands
        memory[address : address + count] = command.payload[12 : 12 + count]
        peer.send(raw.reply(command))


@pytest.mark.point("P91", "P103")
def test_qemu_10_1_is_told_apart_by_a_write_of_nothing(
    qemu: Qemu, gadget: Gadget, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    memory = bytearray(b"0123456789abcdef" * 256)
    qemu.peer.negotiate()
    qemu.ask(raw.dma_map, 0, PAGE)
    ask_for_dma(qemu, READ, 0x10, 6)
    answer_probe(qemu.peer, "qemu10")
    old_layout_serves(qemu.peer, memory)
    settle(qemu.peer)
    assert (gadget.got, gadget.dma_error) == (b"012345", None)
    ask_for_dma(qemu, WRITE, 0x21, 3, fill=ord("z"))
    old_layout_serves(qemu.peer, memory)
    settle(qemu.peer)
    assert memory[0x20:0x26] == b"0zzz45"
    assert "profile qemu-10.1" in caplog.text


@pytest.mark.point("P103")
def test_qemu_10_1_by_name_is_spoken_to_in_its_layout_at_once(gadget: Gadget, folder: Path) -> None:
    memory = bytearray(b"0123456789abcdef" * 256)
    with Server(gadget, folder / "old", profile="qemu-10.1").start() as server:
        qemu = Qemu(server)
        qemu.peer.negotiate()
        qemu.ask(raw.dma_map, 0, PAGE)
        ask_for_dma(qemu, READ, 0x12, 4)
        old_layout_serves(qemu.peer, memory)
        settle(qemu.peer)
        assert (gadget.got, gadget.dma_error) == (b"2345", None)
        qemu.peer.close()


@pytest.mark.point("P83", "P84")
def test_posted_and_batched_writes_get_no_reply_even_when_they_fail(qemu: Qemu) -> None:
    qemu.peer.negotiate()
    qemu.peer.send(
        raw.write(0, 0, b"\1\2\3\4", flags=raw.NO_REPLY)
        + raw.write(0, 0x10, bytes(4), flags=raw.NO_REPLY)  # the device raises
        + raw.write_multi((0, 0, b"\5\0\0\0"), (3, 0, b"\7"), flags=raw.NO_REPLY)
    )
    assert qemu.config(0, 2) == 0x1234
    assert qemu.peer.read(0, 0, 4) == b"\5\0\0\0"
