"""Guest memory over the wire: maps, unmaps, and DMA by message in both layouts."""

import errno
import os
import random
import struct
import tracemalloc
from collections.abc import Iterator

import pytest

from outboard import dma
from outboard.errors import ConnectionLost, DmaError, DmaForbidden, DmaInHandler, DmaUnmapped, PeerTimeout
from outboard.server import remote_dma
from tests import raw
from tests.raw import CONFIG, Message, RawPeer, memory_file, open_descriptors
from tests.server.conftest import Connect, Serve
from tests.server.gadgets import Gadget

ADDRESS, COUNT, NOW, READ, WRITE = 0x20, 0x28, 0x2C, 0x30, 0x34
BASE = 0x4_0000_0000
PAGE = 4096


def limits(max_data_xfer_size: int) -> bytes:
    return b'{"capabilities":{"max_data_xfer_size":%d}}\0' % max_data_xfer_size


def start(client: RawPeer, register: int, address: int, count: int, fill: int = 0) -> None:
    """Lets the gadget transfer `count` bytes at `address`, once it has answered."""
    client.write(CONFIG, 4, b"\x04\x00")
    client.write(0, ADDRESS, struct.pack("=Q", address))
    client.write(0, COUNT, struct.pack("=I", count))
    client.write(0, register, struct.pack("=I", fill))


def answer_probe(client: RawPeer, layout: str = "spec") -> None:
    """Answers the write of nothing, by which a server finds the layout out, as such a client would."""
    probe = client.receive()
    assert (probe.command, probe.flags, probe.size, probe.fds) == (raw.DMA_WRITE, 0, 32, ())
    assert probe.payload[8:] == bytes(8)
    client.send(raw.reply(probe, probe.payload if layout == "spec" else b""))


def settle(client: RawPeer) -> None:
    """Until the gadget is through: the first question may be answered while it still waits for us."""
    client.ask(raw.device_info())
    client.ask(raw.device_info())


def serve_memory(client: RawPeer, memory: bytearray, layout: str = "spec") -> Iterator[Message]:
    """Answers DMA messages out of `memory`, which begins at BASE, for as long as it is iterated."""
    while True:
        command = client.receive()
        at, count = struct.unpack_from("=QQ" if layout == "spec" else "=QI", command.payload)
        start, data = at - BASE, 16 if layout == "spec" else 12
        if command.command == raw.DMA_READ:
            found = bytes(memory[start : start + count])
            head = command.payload[:data]
            client.send(raw.reply(command, head + found + bytes(16 - data)))
        else:
            memory[start : start + count] = command.payload[data : data + count]
            client.send(raw.reply(command, command.payload[:16] if layout == "spec" else b""))
        yield command


@pytest.mark.point("P89", "P98")
def test_hundreds_of_maps_are_taken_right_after_the_version(client: RawPeer, gadget: Gadget) -> None:
    fd = memory_file(500 * PAGE)
    for number in range(500):
        client.send(raw.dma_map(number * 2 * PAGE, PAGE, offset=number * PAGE, id=number), [fd])
    os.close(fd)
    for number in range(500):
        answer = client.receive()
        assert (answer.id, answer.size, answer.flags) == (number, 16, raw.REPLY)
    assert len(gadget.dma.maps) == 500
    answer = client.ask(raw.dma_unmap(0, 0, flags=2))
    assert answer.payload == struct.pack("=IIQQ", 24, 2, 0, 0)
    assert gadget.dma.maps == ()


@pytest.mark.point("P90", "P95")
def test_shared_memory_is_read_and_written_at_the_descriptors_offset(client: RawPeer, gadget: Gadget) -> None:
    fd = memory_file(4 * PAGE)
    os.pwrite(fd, b"from the guest", 2 * PAGE + 0x155)
    client.ask(raw.dma_map(BASE + 0x55, PAGE, offset=2 * PAGE + 0x55), [fd])
    start(client, READ, BASE + 0x155, 14)
    settle(client)
    assert gadget.got == b"from the guest"
    start(client, WRITE, BASE + 0x200, 4, fill=0x77)
    settle(client)
    assert os.pread(fd, 6, 2 * PAGE + 0x200 - 1) == b"\0wwww\0"
    os.close(fd)


@pytest.mark.point("P90")
@pytest.mark.parametrize(("flags", "register"), [(1, WRITE), (2, READ), (0, READ), (0, WRITE)])
def test_a_direction_the_client_did_not_grant_is_forbidden(
    client: RawPeer, gadget: Gadget, flags: int, register: int
) -> None:
    fd = memory_file(PAGE)
    client.ask(raw.dma_map(BASE, PAGE, flags=flags), [fd])
    os.close(fd)
    start(client, register, BASE, 4)
    settle(client)
    assert isinstance(gadget.dma_error, DmaForbidden)


@pytest.mark.point("P92", "P93")
def test_senseless_maps_are_refused_and_their_descriptors_closed(client: RawPeer, gadget: Gadget) -> None:
    fd = memory_file(PAGE)
    read_only = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    before = open_descriptors()
    for request, fds in (
        (raw.dma_map(BASE, PAGE, argsz=31), [fd]),
        (raw.dma_map(BASE, 0), [fd]),
        (raw.dma_map((1 << 64) - PAGE, 2 * PAGE), [fd]),
        (raw.dma_map(BASE, PAGE, flags=0x10 | 3), [fd]),
        (raw.dma_map(BASE, PAGE, flags=0x8000_0000), [fd]),
        (raw.dma_map(BASE, PAGE), [fd, fd]),
        (raw.dma_map(BASE, PAGE), [fd] * 16),
        (raw.dma_map(BASE, PAGE, offset=1), [fd]),
        (raw.dma_map(BASE, PAGE, offset=(1 << 64) - 1), [fd]),
        (raw.dma_map(BASE, 2 * PAGE), [fd]),
    ):
        assert client.refused(request, fds) == errno.EINVAL
    assert client.refused(raw.dma_map(BASE, PAGE), [read_only]) == errno.EACCES
    assert open_descriptors() == before
    assert gadget.dma.maps == ()
    os.close(fd)
    os.close(read_only)


@pytest.mark.point("P94")
def test_the_same_map_twice_is_one_and_an_overlap_is_refused(client: RawPeer, gadget: Gadget) -> None:
    fd = memory_file(4 * PAGE)
    before = open_descriptors()
    client.ask(raw.dma_map(BASE, 2 * PAGE), [fd])
    client.ask(raw.dma_map(BASE, 2 * PAGE), [fd])
    for address, size in ((BASE, PAGE), (BASE + PAGE, 2 * PAGE), (BASE - PAGE, 4 * PAGE)):
        assert client.refused(raw.dma_map(address, size), [fd]) == errno.EEXIST
    assert len(gadget.dma.maps) == 1
    client.ask(raw.dma_unmap(BASE, 2 * PAGE))
    assert client.refused(raw.dma_unmap(BASE, 2 * PAGE)) == errno.ENOENT
    assert open_descriptors() == before
    os.close(fd)


@pytest.mark.point("P98", "P149")
def test_an_unmap_takes_all_the_maps_in_its_range_as_a_virtual_iommus_reset_does(
    client: RawPeer, gadget: Gadget
) -> None:
    fd = memory_file(4 * PAGE)
    for page in (0, 1, 3):
        client.ask(raw.dma_map(BASE + page * PAGE, PAGE), [fd])
    assert client.refused(raw.dma_unmap(0, BASE)) == errno.ENOENT
    client.ask(raw.dma_unmap(BASE - PAGE, 3 * PAGE))
    assert [mapping.address for mapping in gadget.dma.maps] == [BASE + 3 * PAGE]
    client.ask(raw.dma_unmap(BASE, (1 << 64) - BASE))
    assert gadget.dma.maps == ()
    os.close(fd)


@pytest.mark.point("P97", "P98")
def test_an_unmap_echoes_its_range_and_then_nothing_is_reached(client: RawPeer, gadget: Gadget) -> None:
    fd = memory_file(2 * PAGE)
    client.ask(raw.dma_map(BASE, 2 * PAGE), [fd])
    for address, size in ((BASE, PAGE), (BASE + PAGE, PAGE), (BASE + PAGE, 4 * PAGE), (0, 0), (0, PAGE)):
        assert client.refused(raw.dma_unmap(address, size)) == errno.ENOENT
    for flags, address in ((2, BASE), (1, BASE), (3, 0), (4, BASE), (0x8000_0000, BASE)):
        assert client.refused(raw.dma_unmap(address, 2 * PAGE, flags=flags)) == errno.EINVAL
    assert client.refused(raw.dma_unmap(BASE, 2 * PAGE, argsz=23)) == errno.EINVAL
    answer = client.ask(raw.dma_unmap(BASE, 2 * PAGE))
    assert answer.payload == struct.pack("=IIQQ", 24, 0, BASE, 2 * PAGE)
    start(client, WRITE, BASE, 4, fill=0xFF)
    settle(client)
    assert isinstance(gadget.dma_error, DmaUnmapped)
    assert os.pread(fd, 4, 0) == bytes(4)
    os.close(fd)


@pytest.mark.point("P107")
def test_more_maps_than_announced_are_refused_and_huge_ones_are_not(
    client: RawPeer, gadget: Gadget, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dma, "MAX_MAPS", 3)
    client.ask(raw.dma_map(1 << 63, 1 << 63))
    client.ask(raw.dma_map(0, 1 << 62))
    client.ask(raw.dma_map(1 << 62, PAGE))
    assert client.refused(raw.dma_map((1 << 62) + PAGE, PAGE)) == errno.ENOSPC
    assert len(gadget.dma.maps) == 3


@pytest.mark.point("P106")
def test_without_bus_mastering_no_message_goes_out(client: RawPeer, gadget: Gadget) -> None:
    client.ask(raw.dma_map(BASE, PAGE))
    start(client, READ, BASE, 4)
    answer_probe(client)
    next(serve_memory(client, bytearray(PAGE)))
    settle(client)
    assert gadget.got == bytes(4)
    client.write(CONFIG, 4, b"\0\0")
    client.write(0, READ, bytes(4))
    settle(client)
    client.expect_silence()
    assert isinstance(gadget.dma_error, DmaForbidden)


@pytest.mark.point("P91", "P103")
@pytest.mark.parametrize("layout", ["spec", "qemu10"])
def test_memory_without_a_descriptor_is_reached_by_messages_in_the_layout_of_the_client(
    client: RawPeer, gadget: Gadget, layout: str
) -> None:
    memory = bytearray(random.Random(3).randbytes(PAGE))
    client.ask(raw.dma_map(BASE, PAGE))
    start(client, READ, BASE + 0x100, 77)
    answer_probe(client, layout)
    served = serve_memory(client, memory, layout)
    assert next(served).payload == struct.pack("=QQ", BASE + 0x100, 77)
    settle(client)
    assert gadget.dma_error is None
    assert gadget.got == memory[0x100 : 0x100 + 77]
    start(client, WRITE, BASE + 0x200, 33, fill=0xA7)  # no second probe
    command = next(served)
    assert command.size == 32 + 33
    settle(client)
    assert gadget.dma_error is None
    assert memory[0x1FF:0x222] == memory[0x1FF:0x200] + b"\xa7" * 33 + memory[0x221:0x222]


@pytest.mark.point("P34", "P101")
@pytest.mark.parametrize(
    ("takes", "count", "longest"), [(PAGE, 10_001, PAGE), (1, 5, 1), (1 << 40, 3 << 20, 1 << 20)]
)
def test_transfers_are_cut_to_what_both_ends_take(
    gadget: Gadget, serve: Serve, connect: Connect, takes: int, count: int, longest: int
) -> None:
    memory = bytearray(random.Random(4).randbytes(4 << 20))
    server = serve(gadget)
    assert server.path is not None
    with RawPeer.connect(server.path) as client:
        client.negotiate(limits(takes))
        client.ask(raw.dma_map(BASE, 4 << 20))
        start(client, READ, BASE + 1, count)
        answer_probe(client)
        asked = 0
        for command in serve_memory(client, memory):
            at, size = struct.unpack("=QQ", command.payload)
            assert at == BASE + 1 + asked
            assert 0 < size <= longest
            asked += size
            if asked == count:
                break
        settle(client)
        assert gadget.dma_error is None
        assert gadget.got == memory[1 : 1 + count]
        start(client, WRITE, BASE, count, fill=0x11)
        written = 0
        for command in serve_memory(client, memory):
            assert command.size <= 32 + longest
            written += command.size - 32
            if written == count:
                break
        settle(client)
        assert memory.startswith(b"\x11" * count)


@pytest.mark.point("P102", "PCI05")
def test_commands_that_arrive_while_memory_is_awaited_are_served(client: RawPeer, gadget: Gadget) -> None:
    client.ask(raw.dma_map(BASE, PAGE))
    start(client, READ, BASE, 16)
    probe = client.receive()
    client.ask(raw.write(0, 0, b"\1\2\3\4", id=probe.id))
    assert client.read(0, 0, 4) == b"\1\2\3\4"
    client.send(raw.read(0, 0, 4, id=7) + raw.reply(probe, probe.payload) + raw.read(0, 0, 2, id=8))
    assert (client.receive().id, client.receive().id) == (7, 8)
    command = client.receive()
    assert command.command == raw.DMA_READ
    for number in range(300):
        client.send(raw.write(0, 0, bytes([number & 0xFF] * 4), flags=raw.NO_REPLY))
        assert client.read(0, 0, 1) == bytes([number & 0xFF])
    fd = memory_file(PAGE)
    client.ask(raw.dma_map(BASE + PAGE, PAGE), [fd])
    client.ask(raw.dma_unmap(BASE + PAGE, PAGE))
    os.close(fd)
    client.send(raw.reply(command, command.payload + b"sixteen bytes of"))
    settle(client)
    assert gadget.got == b"sixteen bytes of"


@pytest.mark.point("P102", "P104")
def test_a_second_transfer_while_one_waits_is_refused_with_the_way_out(
    client: RawPeer, gadget: Gadget
) -> None:
    client.ask(raw.dma_map(BASE, PAGE))
    start(client, READ, BASE, 4)
    probe = client.receive()
    assert client.refused(raw.write(0, NOW, bytes(4))) == errno.EDEADLK
    client.send(raw.reply(probe, probe.payload))
    next(serve_memory(client, bytearray(b"next" * 4)))
    settle(client)
    assert gadget.got == b"next"


@pytest.mark.point("P104")
def test_dma_by_message_inside_a_handler_is_refused_with_the_way_out(
    client: RawPeer, caplog: pytest.LogCaptureFixture
) -> None:
    client.ask(raw.dma_map(BASE, PAGE))
    client.write(CONFIG, 4, b"\x04\x00")
    client.write(0, ADDRESS, struct.pack("=Q", BASE))
    client.write(0, COUNT, struct.pack("=I", 4))
    assert client.refused(raw.write(0, NOW, bytes(4))) == errno.EDEADLK
    assert "self.call_soon" in caplog.text
    assert DmaInHandler.fault in caplog.text
    client.expect_silence()


@pytest.mark.point("P105")
@pytest.mark.parametrize("register", [READ, WRITE])
def test_a_refusal_by_the_client_raises_in_the_device(client: RawPeer, gadget: Gadget, register: int) -> None:
    client.ask(raw.dma_map(BASE, PAGE))
    start(client, register, BASE, 4)
    answer_probe(client)
    client.send(raw.error_reply(client.receive(), errno.EFAULT))
    settle(client)
    assert isinstance(gadget.dma_error, DmaError)
    assert "refuses" in str(gadget.dma_error)
    start(client, register, BASE, 4)
    next(serve_memory(client, bytearray(PAGE)))
    settle(client)
    assert gadget.dma_error is None


def test_a_client_that_takes_single_bytes_costs_no_memory_by_the_byte(gadget: Gadget, serve: Serve) -> None:
    server = serve(gadget)
    assert server.path is not None
    with RawPeer.connect(server.path) as client:
        client.negotiate(limits(1))
        client.ask(raw.dma_map(BASE, 1 << 20))
        tracemalloc.start()
        try:
            start(client, READ, BASE, 1 << 20)
            answer_probe(client)
            client.send(raw.error_reply(client.receive(), errno.EFAULT))
            settle(client)
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert isinstance(gadget.dma_error, DmaError)
    assert most < 1 << 20


@pytest.mark.point("P103", "P105")
def test_a_client_that_refuses_the_write_of_nothing_speaks_as_specified(
    client: RawPeer, gadget: Gadget
) -> None:
    client.ask(raw.dma_map(BASE, PAGE, flags=1))
    start(client, READ, BASE, 4)
    client.send(raw.error_reply(client.receive(), errno.EACCES))
    next(serve_memory(client, bytearray(b"read only memory")))
    settle(client)
    assert (gadget.got, gadget.dma_error) == (b"read", None)


@pytest.mark.point("P105")
def test_a_transfer_done_in_part_raises_in_the_device(client: RawPeer, gadget: Gadget) -> None:
    client.ask(raw.dma_map(BASE, PAGE))
    start(client, READ, BASE, 8)
    answer_probe(client)
    command = client.receive()
    client.send(raw.reply(command, struct.pack("=QQ", BASE, 4) + b"half"))
    settle(client)
    assert isinstance(gadget.dma_error, DmaError)
    start(client, WRITE, BASE, 8)
    client.send(raw.reply(client.receive(), struct.pack("=QQ", BASE, 4)))
    settle(client)
    assert isinstance(gadget.dma_error, DmaError)
    assert "0x4 of 0x8 bytes" in str(gadget.dma_error)


@pytest.mark.point("P105")
@pytest.mark.parametrize("payload", [b"", bytes(15), struct.pack("=QQ", BASE, 8) + b"short"])
def test_an_answer_that_cannot_be_one_ends_the_connection_and_raises_in_the_device(
    gadget: Gadget, serve: Serve, connect: Connect, payload: bytes
) -> None:
    client = connect(server := serve(gadget))
    client.ask(raw.dma_map(BASE, PAGE))
    start(client, READ, BASE, 8)
    answer_probe(client)
    client.send(raw.reply(client.receive(), payload))
    client.expect_closed()
    connect(server).ask(raw.device_info())
    assert isinstance(gadget.dma_error, ConnectionLost)


@pytest.mark.point("P105")
def test_silence_raises_in_the_device_and_the_late_answer_is_passed_over(
    client: RawPeer, gadget: Gadget, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.ask(raw.dma_map(BASE, PAGE))
    start(client, READ, BASE, 4)
    answer_probe(client)
    next(serve_memory(client, bytearray(PAGE)))
    settle(client)
    monkeypatch.setattr(remote_dma, "REPLY_DEADLINE", 0.02)
    start(client, READ, BASE, 4)
    late = client.receive()
    while gadget.log[-1] != "transferred" or not gadget.dma_error:
        client.ask(raw.device_info())
    assert isinstance(gadget.dma_error, PeerTimeout)
    assert "shared memory" in str(gadget.dma_error)
    monkeypatch.undo()
    client.send(raw.reply(late, late.payload + b"late"))
    start(client, READ, BASE, 4)
    following = client.receive()
    assert following.id != late.id
    client.send(raw.reply(following, following.payload + b"next"))
    settle(client)
    assert gadget.got == b"next"


@pytest.mark.point("P105", "P117")
@pytest.mark.parametrize("when", ["probe", "transfer"])
def test_a_client_that_leaves_during_a_transfer_raises_in_the_device_and_the_next_is_served(
    gadget: Gadget, serve: Serve, connect: Connect, when: str
) -> None:
    server = serve(gadget)
    client = connect(server)
    client.ask(raw.dma_map(BASE, PAGE))
    start(client, READ, BASE, 4)
    if when == "transfer":
        answer_probe(client)
    client.receive()
    client.close()
    following = connect(server)
    following.ask(raw.device_info())
    assert isinstance(gadget.dma_error, ConnectionLost)
    assert gadget.dma.maps == ()
    following.ask(raw.dma_map(BASE, PAGE))
    start(following, READ, BASE, 4)
    answer_probe(following, "qemu10")  # asked anew: the next client may be another one
    next(serve_memory(following, bytearray(b"news" * 4), "qemu10"))
    settle(following)
    assert gadget.got == b"news"


@pytest.mark.point("P105")
def test_a_device_that_wants_memory_of_a_client_that_has_gone_gets_an_error(
    serve: Serve, connect: Connect
) -> None:
    errors: list[Exception] = []

    class Clinging(Gadget):
        def on_disconnect(self) -> None:
            for access in (lambda: self.dma.read(BASE, 4), lambda: self.dma.write(BASE, b"last")):
                try:
                    access()
                except Exception as error:
                    errors.append(error)

    server = serve(Clinging())
    with connect(server) as client:
        client.ask(raw.dma_map(BASE, PAGE))
        client.write(CONFIG, 4, b"\x04\x00")
    connect(server).ask(raw.device_info())
    assert [type(error) for error in errors] == [ConnectionLost, ConnectionLost]


@pytest.mark.point("P91")
def test_a_write_to_two_kinds_of_memory_reaches_both(client: RawPeer, gadget: Gadget) -> None:
    fd = memory_file(PAGE)
    client.ask(raw.dma_map(BASE, PAGE))
    client.ask(raw.dma_map(BASE + PAGE, PAGE), [fd])
    start(client, WRITE, BASE + PAGE - 2, 5, fill=0x42)
    answer_probe(client)
    memory = bytearray(PAGE)
    next(serve_memory(client, memory))
    settle(client)
    assert memory[-3:] + os.pread(fd, 4, 0) == b"\0BBBBB\0"
    os.close(fd)
