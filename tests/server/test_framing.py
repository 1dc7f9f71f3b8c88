"""Messages as they lie on the wire: cut, glued, too large, too small, unasked for."""

import errno
import os
import random
import socket
import struct
from collections.abc import Callable

import pytest

from outboard import Server
from tests import raw
from tests.raw import RawPeer, message, open_descriptors
from tests.server.conftest import Connect, Serve
from tests.server.gadgets import Gadget, Handmade


@pytest.mark.point("P5", "P6")
def test_messages_may_be_cut_at_every_byte(client: RawPeer) -> None:
    request = raw.write(0, 0, b"\x11\x22\x33\x44")
    for cut in range(1, len(request)):
        client.send(request[:cut])
        client.send(request[cut:])
        assert client.receive().flags == raw.REPLY
    for byte in raw.read(0, 0, 4):
        client.send(bytes([byte]))
    assert client.receive().payload[16:] == b"\x11\x22\x33\x44"


@pytest.mark.point("P6")
def test_a_thousand_pipelined_commands_are_answered_in_order(client: RawPeer) -> None:
    client.send(b"".join(raw.read(0, 0, 4, id=number) for number in range(1000)))
    assert [client.receive().id for _ in range(1000)] == list(range(1000))


@pytest.mark.point("P7")
def test_each_answer_leaves_in_one_piece(gadget: Gadget) -> None:
    # This kind of socket keeps the bounds of what each sendmsg sent.
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with Server(gadget, fd=theirs.detach()) as server, ours:
        for request in (raw.version(), raw.device_info(), raw.read(7, 0, 4096), raw.region_info(3)):
            ours.send(request)
            server.run_once()
            answer, ancillary, _, _ = ours.recvmsg(1 << 20, 1024)
            assert raw.HEADER.unpack_from(answer)[2] == len(answer)
            for _, _, fd in ancillary:
                os.close(int.from_bytes(fd, "little"))
        assert ancillary


@pytest.mark.point("P7", "P87")
def test_answers_larger_than_the_socket_takes_arrive_whole_when_the_client_reads(client: RawPeer) -> None:
    size = 1 << 20
    client.write(3, 0, random.Random(1).randbytes(size))
    expected = client.read(3, 0, size)
    client.send(b"".join(raw.read(3, 0, size, id=number) for number in range(20)) + raw.region_info(3))
    for number in range(20):
        answer = client.receive()
        assert (answer.id, answer.fds) == (number, ())
        assert answer.payload[16:] == expected
    answer = client.receive()
    assert len(answer.fds) == 1
    os.close(answer.fds[0])


@pytest.mark.point("P13")
def test_a_client_that_asks_without_ever_reading_is_dropped_before_it_fills_our_memory(
    gadget: Gadget, serve: Serve, connect: Connect
) -> None:
    server = serve(gadget)
    greedy = connect(server)
    # A thousand answers of 1 MiB, asked for in one breath.
    greedy.socket.send(b"".join(raw.read(3, 0, 1 << 20) for _ in range(1000)))
    assert connect(server).read(0, 0, 4) == b"\x78\x56\x34\x12"
    assert gadget.log.count(("disconnected", 0)) == 1


@pytest.mark.point("P8", "P11")
def test_an_answer_repeats_id_and_command_and_ids_may_repeat(client: RawPeer) -> None:
    client.send(raw.read(0, 0, 4, id=0xFFFF) + raw.read(0, 0, 4, id=0xFFFF) + raw.reset(id=0))
    first, second, third = (client.receive() for _ in range(3))
    assert first == second
    assert first[:5] == (0xFFFF, raw.REGION_READ, 36, raw.REPLY, 0)
    assert third[:5] == (0, raw.RESET, 16, raw.REPLY, 0)


@pytest.mark.point("P10")
@pytest.mark.parametrize("command", [*range(20), 999, 0xFFFF])
def test_nothing_answers_a_command_that_wants_no_answer(client: RawPeer, command: int) -> None:
    for payload in (b"", bytes(32), b"\xff" * 64):
        client.send(message(command, payload, flags=raw.NO_REPLY))
    client.ask(raw.device_info())
    client.expect_silence()


@pytest.mark.point("P10", "P83")
def test_a_write_that_wants_no_answer_is_done(client: RawPeer) -> None:
    client.send(raw.write(0, 0, b"abcd", flags=raw.NO_REPLY) + raw.read(0, 0, 4))
    assert client.receive().payload[16:] == b"abcd"


@pytest.mark.point("P12", "P13")
@pytest.mark.parametrize("size", [0, 15, 16 + 4096 + (1 << 20) + 1, 0xFFFF_FFFF])
def test_a_size_no_message_can_have_is_refused_and_ends_the_connection(client: RawPeer, size: int) -> None:
    assert client.refused(message(raw.REGION_READ, size=size)) == errno.EINVAL
    client.expect_closed()


@pytest.mark.point("P14")
def test_a_message_of_an_unknown_type_ends_the_connection(client: RawPeer) -> None:
    client.send(message(raw.DEVICE_INFO, bytes(16), flags=0x07))
    assert client.receive().flags == raw.REPLY | raw.ERROR
    client.expect_closed()


@pytest.mark.point("P14")
@pytest.mark.parametrize("flags", [raw.ERROR, 0x40, 0x8000_0000, 0xFFFF_FFC0])
def test_flags_that_mean_nothing_in_a_command_do_no_harm(client: RawPeer, flags: int) -> None:
    client.send(message(raw.DEVICE_INFO, struct.pack("=IIII", 16, 0, 0, 0), flags=flags, error=5))
    client.receive()
    client.ask(raw.device_info())


@pytest.mark.point("P15")
def test_an_answer_to_nothing_is_passed_over(client: RawPeer) -> None:
    for command in (raw.DMA_READ, raw.DMA_WRITE, raw.DEVICE_INFO, 999):
        client.send(message(command, bytes(32), flags=raw.REPLY))
        client.send(message(command, flags=raw.REPLY | raw.ERROR, error=5))
    client.ask(raw.device_info())
    client.expect_silence()


@pytest.mark.point("P9", "P16")
@pytest.mark.parametrize("command", [0, 11, 12, 14, 19, 999, 0xFFFF])
def test_an_unknown_command_is_refused_and_the_next_one_served(client: RawPeer, command: int) -> None:
    assert client.refused(message(command, b"\xa5" * 100)) == errno.EINVAL
    client.ask(raw.device_info())


@pytest.mark.point("P17")
@pytest.mark.parametrize("command", [*range(1, 13), *range(14, 19)])
def test_a_command_without_its_payload_is_refused_and_the_next_one_served(
    client: RawPeer, command: int
) -> None:
    for payload in (b"", bytes(3)):
        assert client.refused(message(command, payload)) == errno.EINVAL
    client.ask(raw.device_info())


@pytest.mark.point("P18")
def test_a_payload_longer_than_needed_leaves_the_stream_in_step(client: RawPeer) -> None:
    for request in (raw.device_info(), raw.region_info(0), raw.irq_info(0), raw.dma_map(0, 4096)):
        head = raw.HEADER.unpack_from(request)
        longer = message(head[1], request[16:] + bytes(1000))
        client.ask(longer)
    for request in (raw.reset(), raw.read(0, 0, 4)):
        head = raw.HEADER.unpack_from(request)
        assert client.refused(message(head[1], request[16:] + bytes(1000))) == errno.EINVAL
    client.ask(raw.device_info())


@pytest.mark.point("P19", "P20")
def test_descriptors_a_command_does_not_take_are_closed(client: RawPeer) -> None:
    reader, writer = os.pipe()
    before = open_descriptors()
    for count in (1, 16, 253):
        for request in (raw.device_info(), raw.read(0, 0, 4), raw.reset(), raw.dma_unmap(0, 0, flags=2)):
            client.ask(request, [reader] * count)
        for request in (message(999), raw.read(0, 1 << 40, 4), raw.dma_map(0, 0)):
            client.refused(request, [reader] * count)
    assert open_descriptors() == before
    os.close(reader)
    os.close(writer)


@pytest.mark.point("P20")
def test_sixteen_descriptors_in_one_message_are_taken(
    client: RawPeer, gadget: Gadget, eventfds: Callable[[int], list[int]]
) -> None:
    fds = eventfds(64)
    client.ask(raw.set_irqs(raw.MSIX, raw.EVENTFD | raw.TRIGGER, 0, 64), fds)
    client.write(0, 0x18, (63).to_bytes(4, "little"))
    assert [raw.fired(fd) for fd in fds] == [0] * 63 + [1]


@pytest.mark.point("P21")
@pytest.mark.parametrize("length", [1, 15, 16, 17, 40])
def test_a_client_that_leaves_in_the_middle_of_a_message_is_followed_by_the_next(
    gadget: Gadget, serve: Serve, connect: Connect, length: int
) -> None:
    server = serve(gadget)
    reader, writer = os.pipe()
    before = open_descriptors()
    with connect(server) as leaving:
        leaving.send(raw.write(0, 0, bytes(64))[:length], [reader])
    connect(server).ask(raw.device_info())
    assert open_descriptors() == before + 2  # the second client and the server's end of it
    os.close(reader)
    os.close(writer)


@pytest.mark.point("P22")
def test_a_client_that_leaves_before_its_answers_is_followed_by_the_next(
    gadget: Gadget, serve: Serve, connect: Connect
) -> None:
    server = serve(gadget)
    for _ in range(20):
        with connect(server) as leaving:
            leaving.send(b"".join(raw.read(3, 0, 1 << 20) for _ in range(4)))
    connect(server).ask(raw.device_info())


@pytest.mark.point("P9", "P82")
def test_a_device_without_a_base_class_is_served_and_its_errors_are_answered(
    serve: Serve, connect: Connect
) -> None:
    client = connect(serve(device := Handmade()))
    client.write(0, 8, b"\x01\x02\x03\x04")
    assert client.read(0, 6, 8) == b"\0\0\x01\x02\x03\x04\0\0"
    assert client.ask(raw.irq_info(raw.MSIX)).payload[12:] == b"\x02\0\0\0"
    client.ask(raw.dma_map(0x1000, 0x1000))
    client.ask(raw.reset())
    for name in ("region_read", "region_write", "dma_map", "dma_unmap", "set_irqs", "reset"):
        device.breaks = name
        requests = {
            "region_read": raw.read(0, 0, 4),
            "region_write": raw.write(0, 0, b"x"),
            "dma_map": raw.dma_map(0x8000, 0x1000),
            "dma_unmap": raw.dma_unmap(0x1000, 0x1000),
            "set_irqs": raw.set_irqs(raw.MSIX, raw.NONE | raw.TRIGGER, 1),
            "reset": raw.reset(),
        }
        assert client.refused(requests[name]) == errno.EINVAL
        assert device.calls[-1][0] == name
