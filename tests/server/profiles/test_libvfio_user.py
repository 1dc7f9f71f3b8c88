"""libvfio-user's sample client, byte by byte: its start-up, overlaps, and DMA served on the one socket."""

import errno
import os
import struct
from collections.abc import Iterator

import pytest

from tests import raw
from tests.raw import CONFIG, EVENTFD, INTX, TRIGGER, RawPeer, memory_file
from tests.server.conftest import Serve
from tests.server.gadgets import Gadget
from tests.server.profiles.test_detection import SAMPLE_JSON
from tests.server.test_dma import BASE, PAGE, READ, WRITE, serve_memory, settle, start

ITS_ID = 0xDA55
"""What 0xbada55 leaves in the 16 bits of a message id."""


@pytest.fixture
def sample(gadget: Gadget, serve: Serve) -> Iterator[RawPeer]:
    with RawPeer.connect(serve(gadget).path) as client:
        client.ask(raw.version(0, 2, SAMPLE_JSON, id=ITS_ID))
        yield client


@pytest.mark.point("P26", "P41")
def test_the_sample_clients_start_up_is_answered(gadget: Gadget, serve: Serve) -> None:
    with RawPeer.connect(serve(gadget).path) as client:
        answer = client.ask(raw.version(0, 2, SAMPLE_JSON, id=ITS_ID))
        major, minor = struct.unpack_from("=HH", answer.payload)
        assert (major, minor <= 2, answer.payload[-1:]) == (0, True, b"\0")
        assert struct.unpack("=IIII", client.ask(raw.device_info(16, id=0xB0B0)).payload)[2:] == (9, 5)
        for index in range(9):
            answer = client.ask(raw.region_info(index, 32, id=0xABCD))
            argsz = struct.unpack_from("=I", answer.payload)[0]
            if argsz > 32:
                answer = client.ask(raw.region_info(index, argsz, id=0xABCD))
            assert len(answer.fds) == {2: 1, 3: 1}.get(index, 0)
            for fd in answer.fds:
                os.close(fd)
        assert len(client.read(CONFIG, 0, 64)) == 64
        line = os.eventfd(0, os.EFD_NONBLOCK)
        client.ask(raw.set_irqs(INTX, EVENTFD | TRIGGER, 0, 1), [line])
        client.write(0, 0x1C, struct.pack("=I", 1))
        assert raw.fired(line) == 1
        os.close(line)


@pytest.mark.point("P94")
def test_an_overlap_is_einval_as_its_library_has_it(sample: RawPeer, gadget: Gadget) -> None:
    fd = memory_file(4 * PAGE)
    sample.ask(raw.dma_map(BASE, 2 * PAGE), [fd])
    sample.ask(raw.dma_map(BASE, 2 * PAGE), [fd])
    assert sample.refused(raw.dma_map(BASE + PAGE, 2 * PAGE), [fd]) == errno.EINVAL
    assert len(gadget.dma.maps) == 1
    os.close(fd)


@pytest.mark.point("P91", "P103")
def test_memory_it_shares_no_descriptor_of_is_asked_for_as_specified_without_a_probe(
    sample: RawPeer, gadget: Gadget
) -> None:
    memory = bytearray(b"checksum this" + bytes(PAGE))
    sample.ask(raw.dma_map(BASE, PAGE))
    start(sample, READ, BASE, 13)
    assert next(serve_memory(sample, memory)).command == raw.DMA_READ
    settle(sample)
    assert gadget.got == b"checksum this"
    start(sample, WRITE, BASE + 1, 2, fill=0x21)
    next(serve_memory(sample, memory))
    settle(sample)
    assert memory.startswith(b"c!!cksum")
