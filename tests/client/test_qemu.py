"""`QemuClient`: QEMU's order and habits, and its checks, without a virtual machine."""

import os
import resource
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from outboard import Bar, Client, Device, Intx, MsiX, Server
from outboard.client.qemu import QemuClient
from outboard.errors import OutboardError, RemoteProtocolError
from outboard.protocol import DmaLayout
from tests import raw
from tests.client.conftest import Stage, answer, wait_for_end
from tests.raw import Message, RawPeer
from tests.server.gadgets import Gadget

Change = Callable[[Message], bytes | None]


def config_space(pin: int = 1) -> bytes:
    config = bytearray(4096)
    config[0:4] = b"\x34\x12\x78\x56"
    config[0x3D] = pin
    return bytes(config)


def play_device(
    commands: list[Message], change: Change = lambda command: None, fds: tuple[int, int] = (0, 0)
) -> Callable[[RawPeer], None]:
    """A script of a device that QEMU likes, except for what `change` answers in its place.

    ``fds`` is a command, to whose answer goes a descriptor.
    """

    def script(peer: RawPeer) -> None:
        try:
            while True:
                command = peer.receive()
                commands.append(command)
                other = change(command)
                if other is not None:
                    peer.send(other, [fds[1]] if fds[0] == command.command else ())
                elif command.flags & raw.NO_REPLY:
                    pass
                elif command.command == raw.VERSION:
                    peer.send(raw.reply(command, struct.pack("=HH", 0, 0) + raw.SERVER_JSON))
                elif command.command == raw.DEVICE_INFO:
                    peer.send(raw.reply(command, struct.pack("=IIII", 16, 3, 9, 5)))
                elif command.command == raw.REGION_WRITE:
                    peer.send(raw.reply(command, command.payload[:16]))
                else:
                    answer(peer, command, config_space())
        except (EOFError, ConnectionError):
            pass

    return script


def names(commands: list[Message]) -> list[int]:
    """The commands, repeated ones once."""
    return [
        c.command
        for c, before in zip(commands, [None, *commands], strict=False)
        if before is None or c.command != before.command
    ]


@pytest.mark.point("P139")
def test_the_start_up_order_is_qemus(play: Stage) -> None:
    commands: list[Message] = []
    with QemuClient(play(play_device(commands)), ram=4 << 20):
        pass
    play.end()
    hello = commands[0]
    assert hello.payload[:4] == bytes(4)
    order = names(commands)
    assert order[:3] == [raw.VERSION, raw.DMA_MAP, raw.DMA_UNMAP]
    assert order[3:6] == [raw.DMA_MAP, raw.DEVICE_INFO, raw.REGION_INFO]
    region_info = [c for c in commands if c.command == raw.REGION_INFO]
    assert {c.size for c in region_info} == {48}
    reads = [struct.unpack("=QII", c.payload) for c in commands if c.command == raw.REGION_READ]
    assert reads[0] == (0, raw.CONFIG, 4096)
    writes = [(c.payload[:16], c.payload[16:]) for c in commands if c.command == raw.REGION_WRITE]
    assert writes[0] == (struct.pack("=QII", 0x30, raw.CONFIG, 4), b"\x00\xf8\xff\xff")
    assert [w[0] for w in writes[-6:]] == [struct.pack("=QII", 0x10 + 4 * n, raw.CONFIG, 4) for n in range(6)]
    assert order.index(raw.RESET) > order.index(raw.SET_IRQS)
    maps = [c for c in commands if c.command == raw.DMA_MAP]
    assert [len(c.fds) for c in maps] == [1] * 4
    sets = [struct.unpack("=IIIII", c.payload)[1:] for c in commands if c.command == raw.SET_IRQS]
    assigned, disabled = raw.EVENTFD | raw.TRIGGER, raw.NONE | raw.TRIGGER
    assert sets == [(assigned, raw.INTX, 0, 1), (disabled, raw.INTX, 0, 0), (assigned, raw.INTX, 0, 1)]


@pytest.mark.point("P139")
def test_a_server_of_ours_starts_up_as_qemu_wants_it(folder: Path) -> None:
    gadget = Gadget()
    with (
        Server(gadget, folder / "s").start(),
        QemuClient(folder / "s", ram=4 << 20) as qemu,
    ):
        assert gadget.log[-1] == "reset"
        assert qemu.first_config[:4] == b"\x34\x12\x78\x56"
        assert qemu.rom_size_mask == 0xFFFF_F000
        line = qemu.enable_intx()
        qemu.bar(0).write32(0x1C, 1)
        assert line.wait() == 1
        qemu.unmask_intx()
        assert line.wait() == 1
        vectors = qemu.enable_msix(4)
        gadget.msix[3].trigger()
        assert vectors[3].wait() == 1
        assert not gadget.intx.heard
        qemu.ram.write(0x20_0000, b"in the guest's memory")
        qemu.bus_master()
        assert gadget.dma.read(0x20_0000, 8) == b"in the g"
        gadget.dma.write(0xA_0000, b"legacy")
        assert qemu.ram.read(0xA_0000, 6) == b"legacy"
        qemu.machine_reset()
        assert gadget.log[-1] == "reset"
        assert gadget.intx.heard


@pytest.mark.point("P139")
@pytest.mark.parametrize("layout", [DmaLayout.SPEC, DmaLayout.QEMU10])
def test_without_shared_memory_dma_goes_by_message_in_either_layout(folder: Path, layout: DmaLayout) -> None:
    gadget = Gadget()
    with (
        Server(gadget, folder / "s").start(),
        QemuClient(folder / "s", ram=4 << 20, shared=False, layout=layout) as qemu,
    ):
        qemu.bus_master()
        data = os.urandom(200_001)
        qemu.ram.write(0x10_0003, data)
        regs = qemu.bar(0)
        regs.write64(0x20, 0x10_0003)
        regs.write32(0x28, len(data))
        regs.write32(0x30, 1)
        while "transferred" not in gadget.log:
            qemu.serve_dma(0.01)
        assert gadget.dma_error is None
        assert gadget.got == data
        gadget.log.clear()
        regs.write32(0x34, 0x5A)
        while "transferred" not in gadget.log:
            qemu.serve_dma(0.01)
        assert gadget.dma_error is None
        assert qemu.ram.read(0x10_0002, len(data) + 2) == b"\0" + b"\x5a" * len(data) + b"\0"


@pytest.mark.point("P139")
def test_writes_to_memory_bars_are_posted_unless_a_region_can_be_mapped(folder: Path) -> None:
    class Unmapped(Device):
        registers = Bar(0, size=0x1000)
        ports = Bar(1, size=0x40, io=True)
        scratch = registers.reg(0)
        broken = registers.reg(4)
        port = ports.reg(0)

        @broken.on_write
        def fail(self, value: int) -> None:
            raise RuntimeError("nobody hears of this")

        @port.on_write
        def fail_aloud(self, value: int) -> None:
            raise RuntimeError("the client hears of this")

    with Server(Unmapped(), folder / "s").start(), QemuClient(folder / "s", ram=2 << 20) as qemu:
        qemu.bar(0).write32(4, 1)
        qemu.bar(0).write32(0, 77)
        assert qemu.bar(0).read32(0) == 77
        with pytest.raises(OutboardError, match="refuses RegionWrite"):
            qemu.bar(1).write32(0, 1)
    with (
        Server(Gadget(), folder / "t").start(),
        QemuClient(folder / "t", ram=2 << 20) as qemu,
        pytest.raises(OutboardError, match="refuses RegionWrite"),
    ):
        qemu.bar(0).write32(0x10, 1)


@pytest.mark.point("P139")
@pytest.mark.parametrize("fields", [{}, {"intx": Intx()}, {"msix": MsiX(vectors=2)}])
def test_devices_with_few_interrupts_start_up_too(folder: Path, fields: dict[str, object]) -> None:
    device = type("Few", (Device,), {"memory": Bar(0, size=0x1000), **fields})()
    with Server(device, folder / "s").start(), QemuClient(folder / "s", ram=2 << 20) as qemu:
        qemu.machine_reset()


def version(text: bytes, minor: int = 0) -> Change:
    def change(command: Message) -> bytes | None:
        if command.command != raw.VERSION:
            return None
        return raw.reply(command, struct.pack("=HH", 0, minor) + text)

    return change


def instead(which: int, payload: Callable[[Message], bytes]) -> Change:
    def change(command: Message) -> bytes | None:
        return raw.reply(command, payload(command)) if command.command == which else None

    return change


def phantom_rom(command: Message) -> bytes | None:
    """No ROM region, and a ROM BAR that keeps what is written."""
    if command.command == raw.REGION_INFO and command.payload[8] == 6:
        return raw.reply(command, struct.pack("=IIIIQQ", 32, 0, 6, 0, 0, 0))
    if command.command == raw.REGION_READ and command.payload[0] == 0x30:
        return raw.reply(command, command.payload + b"\x00\xf8\xff\xff")
    return None


@pytest.mark.point("P140")
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (version(b'{"capabilities":{"max_msg_fds":17}}\0'), "malformed"),
        (version(b'{"capabilities":{"max_data_xfer_size":67108865}}\0'), "malformed"),
        (version(b'{"capabilities":{"max_dma_maps":65536}}\0'), "malformed"),
        (version(b""), "no JSON"),
        (version(raw.QEMU_JSON[:-1] + b" \0"), "215 bytes, QEMU's buffer for it 214"),
        (version(raw.SERVER_JSON, minor=1), "0.1"),
        (instead(raw.DEVICE_INFO, lambda c: struct.pack("=IIII", 16, 1, 9, 5)), "no PCI device"),
        (instead(raw.DEVICE_INFO, lambda c: struct.pack("=IIII", 16, 3, 7, 5)), "7 regions"),
        (instead(raw.DEVICE_INFO, lambda c: struct.pack("=IIII", 16, 3, 9, 51)), "51 interrupt"),
        (
            instead(raw.REGION_INFO, lambda c: struct.pack("=IIIIQQ", 32, 3, 0, 0, 64, 0) + bytes(4)),
            "QEMU's buffer for it 48",
        ),
        (instead(raw.REGION_READ, lambda c: c.payload + bytes(4097)), "QEMU's buffer"),
        (phantom_rom, "without ROM"),
    ],
)
def test_what_qemu_would_choke_on_is_refused_with_the_reason(
    play: Stage, change: Change, sentence: str
) -> None:
    path = play(play_device([], change))
    with pytest.raises(RemoteProtocolError, match=sentence):
        QemuClient(path, ram=2 << 20)


@pytest.mark.point("P140")
@pytest.mark.parametrize("command", [raw.VERSION, raw.DEVICE_INFO])
def test_descriptors_where_qemu_takes_none_are_refused(play: Stage, command: int) -> None:
    reader, writer = os.pipe()

    def change(asked: Message) -> bytes | None:
        if asked.command != command:
            return None
        if command == raw.VERSION:
            return raw.reply(asked, struct.pack("=HH", 0, 0) + raw.SERVER_JSON)
        return raw.reply(asked, struct.pack("=IIII", 16, 3, 9, 5))

    before = raw.open_descriptors()
    with pytest.raises(RemoteProtocolError, match="1 descriptors"):
        QemuClient(play(play_device([], change, (command, reader))), ram=2 << 20)
    play.end()
    assert raw.open_descriptors() == before
    os.close(reader)
    os.close(writer)


@pytest.mark.point("P140")
def test_a_header_in_two_pieces_is_refused(play: Stage) -> None:
    def script(peer: RawPeer) -> None:
        hello = peer.receive()
        peer.send(raw.reply(hello)[:7])
        wait_for_end(peer)

    with pytest.raises(RemoteProtocolError, match="header in one piece"):
        QemuClient(play(script), ram=2 << 20)


@pytest.mark.point("P138", "P140")
def test_a_size_no_message_can_have_is_refused(play: Stage) -> None:
    def script(peer: RawPeer) -> None:
        peer.send(raw.message(raw.VERSION, id=peer.receive().id, flags=raw.REPLY, size=0))
        wait_for_end(peer)

    with pytest.raises(RemoteProtocolError, match="0 bytes"):
        QemuClient(play(script), ram=2 << 20)


@pytest.mark.point("P125", "P140")
def test_ids_of_the_servers_commands_are_not_taken_for_ours(play: Stage) -> None:
    def change(command: Message) -> bytes | None:
        if command.command != raw.RESET:
            return None
        ask = raw.message(raw.DMA_READ, struct.pack("=QQ", 0, 2000), id=command.id)
        peers[0].ask(ask)
        return raw.reply(command)

    peers: list[RawPeer] = []

    def script(peer: RawPeer) -> None:
        peers.append(peer)
        play_device([], change)(peer)

    with QemuClient(play(script), ram=2 << 20, shared=False) as qemu:
        qemu.machine_reset()


def test_msix_enabled_again_gives_the_first_eventfds_back(folder: Path) -> None:
    with Server(Gadget(), folder / "s").start(), QemuClient(folder / "s", ram=4 << 20) as qemu:
        qemu.enable_msix(4)
        before = raw.open_descriptors()
        qemu.enable_msix(4)
        assert raw.open_descriptors() == before


def test_eventfds_made_before_descriptors_ran_out_are_closed_with_the_client(folder: Path) -> None:
    with Server(Gadget(), folder / "s").start():
        before = raw.open_descriptors()
        with Client(folder / "s") as client:
            limits = resource.getrlimit(resource.RLIMIT_NOFILE)
            os.close(lowest := os.dup(0))
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 8, limits[1]))
            try:
                with pytest.raises(OSError, match="Too many open files"):
                    client.enable_msix(64)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            assert client.info
        assert raw.open_descriptors() <= before + 1  # the server's end of the connection
