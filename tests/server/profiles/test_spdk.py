"""SPDK's NVMe driver as a client, byte by byte: one fixed buffer, no JSON, one descriptor an area."""

import os
import socket
import struct
from collections.abc import Iterator

import pytest

from outboard import Bar, Device, Server
from outboard.errors import DmaError
from tests import raw
from tests.raw import CONFIG, memory_file, open_descriptors
from tests.server.conftest import Connect, Serve
from tests.server.gadgets import Gadget
from tests.server.test_dma import ADDRESS, COUNT, PAGE, READ

BUFFER = 4080
"""Bytes of payload it has room for, whatever it asks."""


class Spdk:
    """Its transport: id 0 always, one request at a time, a reply in two calls, descriptors with the first."""

    def __init__(self, server: Server) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(raw.DEADLINE)
        self.socket.connect(os.fspath(server.path or ""))

    def ask(self, message: bytes, fds: tuple[int, ...] = ()) -> tuple[bytes, tuple[int, ...]]:
        message = bytes(2) + message[2:]
        socket.send_fds(self.socket, [message], fds)
        head, found, _, _ = socket.recv_fds(self.socket, 16, 8)
        id, command, size, flags, _ = raw.HEADER.unpack(head)
        assert (id, command, flags) == (0, raw.HEADER.unpack_from(message)[1], 1)
        assert size - 16 <= BUFFER + 16
        payload = self.socket.recv(size - 16) if size > 16 else b""
        assert len(payload) == size - 16
        return payload, tuple(found)

    def region(self, index: int) -> tuple[int, int, int, list[tuple[int, int]], tuple[int, ...]]:
        """(flags, size, offset, areas, descriptors), asked at once with all the room it has."""
        request = struct.pack("=IIIIQQ", BUFFER - 16, 0, index, 0, 0, 0) + bytes(BUFFER - 16 - 32)
        payload, fds = self.ask(raw.message(raw.REGION_INFO, request))
        _, flags, _, cap_offset, size, offset = struct.unpack_from("=IIIIQQ", payload)
        areas: list[tuple[int, int]] = []
        if flags & 8:
            id, version, following, count, _ = struct.unpack_from("=HHIII", payload, cap_offset)
            assert (id, version, following) == (1, 1, 0)
            areas = [struct.unpack_from("=QQ", payload, cap_offset + 16 + 16 * n) for n in range(count)]
        return flags, size, offset, areas, fds


@pytest.fixture
def spdk(gadget: Gadget, serve: Serve) -> Iterator[Spdk]:
    client = Spdk(serve(gadget))
    client.ask(raw.version(0, 1, b""))
    yield client
    client.socket.close()


@pytest.mark.point("P30")
def test_spdks_start_up_and_end_are_answered(gadget: Gadget, serve: Serve, connect: Connect) -> None:
    server = serve(gadget)
    connect(server).close()  # closes what serving opens only once
    spdk = Spdk(server)
    payload, _ = spdk.ask(raw.version(0, 1, b""))
    assert struct.unpack_from("=HH", payload) == (0, 1)
    payload, _ = spdk.ask(raw.device_info())
    assert len(payload) == 16  # more is an I/O error to it
    _, _, regions, _ = struct.unpack("=IIII", payload)
    assert regions <= 10  # the room of its table, which it does not check
    before = open_descriptors()
    for index in range(regions):
        flags, _, _, areas, fds = spdk.region(index)
        assert bool(flags & 4) == bool(fds)
        assert len(fds) == len(areas)  # it closes as many as there are areas, whether they came or not
        for fd in fds:
            os.close(fd)
    assert open_descriptors() == before

    ram = memory_file(4 * PAGE)
    base = 0x2000_0020_0000
    before = open_descriptors()
    spdk.ask(raw.dma_map(base, 4 * PAGE), (ram,))
    command = spdk.ask(raw.read(CONFIG, 4, 2))[0][16:]
    spdk.ask(raw.write(CONFIG, 4, bytes([command[0] | 4, command[1] | 4])))
    assert len(spdk.ask(raw.write(0, ADDRESS, struct.pack("=Q", base)))[0]) == 16
    assert spdk.ask(raw.read(0, ADDRESS, 8))[0][16:] == struct.pack("=Q", base)
    spdk.ask(raw.dma_unmap(base, 4 * PAGE), (ram,))  # with the descriptor once more
    assert open_descriptors() == before
    os.close(ram)

    # It goes without a reset and leaves all as it is: the next client finds a device after power on.
    gadget.log.clear()
    spdk.socket.close()
    with connect(server) as following:
        assert following.read(0, ADDRESS, 8) == bytes(8)
        assert following.read(CONFIG, 4, 2) == bytes(2)
    assert gadget.log[:2] == [("disconnected", 0), "reset"]


@pytest.mark.point("P34", "P43", "P44")
def test_each_area_comes_with_a_descriptor_of_its_own(spdk: Spdk, gadget: Gadget) -> None:
    flags, size, offset, areas, fds = spdk.region(2)
    assert (flags, size, offset) == (15, 0x4000, 0)
    assert areas == [(0x1000, 0x1000), (0x3000, 0x1000)]
    assert len(set(fds)) == 2
    for number, ((at, _), fd) in enumerate(zip(areas, fds, strict=True)):
        os.pwrite(fd, bytes([0xA0 + number]), offset + at)
        os.close(fd)
    assert gadget.region_read(2, 0x1000, 1) == b"\xa0"
    assert gadget.region_read(2, 0x3000, 1) == b"\xa1"
    # A BAR that may be mapped whole has one area, for this client needs the list.
    flags, _, _, areas, [fd] = spdk.region(3)
    assert (flags, areas) == (15, [(0, 0x10_0000)])
    os.close(fd)


@pytest.mark.point("P34", "P41")
def test_others_get_one_descriptor_for_all_areas_and_none_with_a_cut_reply(
    gadget: Gadget, serve: Serve, connect: Connect
) -> None:
    client = connect(serve(gadget))
    cut = client.ask(raw.region_info(2, 32))
    assert (cut.size, cut.fds, struct.unpack_from("=I", cut.payload)[0]) == (48, (), 80)
    whole = client.ask(raw.region_info(2, 80))
    assert (whole.size, len(whole.fds)) == (96, 1)
    os.close(whole.fds[0])


@pytest.mark.point("P34")
def test_as_many_areas_are_offered_as_it_takes_descriptors(serve: Serve) -> None:
    class Striped(Device):
        stripes = Bar(2, size=0x2_0000, mmap=[(at, 0x1000) for at in range(0, 0x2_0000, 0x2000)])

    spdk = Spdk(serve(Striped()))
    spdk.ask(raw.version(0, 1, b""))
    _, _, _, areas, fds = spdk.region(2)
    assert len(areas) == len(fds) == 7
    assert areas[-1] == (0xC000, 0x1000)
    for fd in fds:
        os.close(fd)
    spdk.socket.close()


@pytest.mark.point("P91")
def test_no_message_for_memory_is_ever_sent(spdk: Spdk, gadget: Gadget) -> None:
    spdk.ask(raw.dma_map(0, PAGE))
    spdk.ask(raw.write(CONFIG, 4, b"\x04\x00"))
    spdk.ask(raw.write(0, COUNT, struct.pack("=I", 4)))
    spdk.ask(raw.write(0, READ, bytes(4)))
    spdk.ask(raw.device_info())
    assert isinstance(gadget.dma_error, DmaError)
    assert "SPDK's NVMe driver serves no DMA by message" in str(gadget.dma_error)
