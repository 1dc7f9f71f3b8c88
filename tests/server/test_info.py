"""What a server says of its device: regions and interrupts."""

import errno
import mmap
import os
import struct

import pytest

from outboard import Bar, Device, Region
from tests import raw
from tests.raw import Message, RawPeer, open_descriptors
from tests.server.conftest import Connect, Serve
from tests.server.gadgets import MMAP, READ, WRITE, Gadget, Handmade

REGIONS = [0x1000, 0x40, 0x4000, 0x10_0000, 0x4000, 0, 0x1000, 0x1000, 0]
CAPS = 8


def info(answer: Message) -> tuple[int, ...]:
    """argsz, flags, index, cap_offset, size, offset."""
    fields: tuple[int, ...] = struct.unpack_from("=IIIIQQ", answer.payload)
    return fields


@pytest.mark.point("P37", "P38")
@pytest.mark.parametrize("argsz", [16, 32, 4096, 0xFFFF_FFFF])
def test_a_device_is_pci_resettable_with_nine_regions_and_five_interrupts(
    client: RawPeer, argsz: int
) -> None:
    assert client.ask(raw.device_info(argsz)).payload == struct.pack("=IIII", 16, 3, 9, 5)


@pytest.mark.point("P38", "P42", "P47", "P48")
@pytest.mark.parametrize("argsz", [0, 15])
def test_an_argsz_without_room_for_the_fields_is_refused(client: RawPeer, argsz: int) -> None:
    for request in (
        raw.device_info(argsz),
        raw.region_info(0, argsz),
        raw.region_info(0, 31),
        raw.region_io_fds(0, argsz),
        raw.irq_info(0, argsz),
    ):
        assert client.refused(request) == errno.EINVAL


@pytest.mark.point("P39", "P40", "P108b")
def test_each_of_the_nine_regions_is_described(client: RawPeer) -> None:
    for index, size in enumerate(REGIONS):
        _, flags, echoed, _, described, _ = info(client.ask(raw.region_info(index)))
        assert (echoed, described) == (index, size)
        expected = {0: 3, 1: 3, 2: 7, 3: 7, 4: 3, 6: 1, 7: 3}.get(index, 0)
        assert flags == expected
    for index in (9, 100, 0xFFFF_FFFF):
        assert client.refused(raw.region_info(index)) == errno.EINVAL


@pytest.mark.point("P40")
def test_a_device_without_pci_express_has_256_bytes_of_configuration_space(
    serve: Serve, connect: Connect
) -> None:
    class Plain(Device):
        memory = Bar(0, size=0x1000)

    client = connect(serve(Plain()))
    answer = client.ask(raw.region_info(raw.CONFIG))
    assert info(answer) == (32, READ | WRITE, raw.CONFIG, 0, 256, 0)
    assert len(client.read(raw.CONFIG, 0, 256)) == 256


@pytest.mark.point("P41", "P42", "P43")
def test_areas_and_descriptor_come_when_there_is_room_for_all(client: RawPeer) -> None:
    needed = 32 + 16 + 2 * 16
    for argsz in (32, 33, needed - 1):
        answer = client.ask(raw.region_info(2, argsz))
        assert (answer.size, answer.fds) == (16 + 32, ())
        assert info(answer) == (needed, READ | WRITE | MMAP, 2, 0, 0x4000, 0)
    for argsz in (needed, 4096):
        answer = client.ask(raw.region_info(2, argsz))
        assert answer.size == 16 + needed
        assert info(answer) == (needed, READ | WRITE | MMAP | CAPS, 2, 32, 0x4000, 0)
        id, version, following, count = struct.unpack_from("=HHII", answer.payload, 32)
        assert (id, version, following, count) == (1, 1, 0, 2)
        assert struct.unpack_from("=4Q", answer.payload, 48) == (0x1000, 0x1000, 0x3000, 0x1000)
        [fd] = answer.fds
        os.close(fd)


@pytest.mark.point("P44", "P46")
def test_a_region_without_areas_is_shared_whole_and_both_ends_see_each_others_writes(
    client: RawPeer, gadget: Gadget
) -> None:
    answer = client.ask(raw.region_info(3, 32))
    assert info(answer) == (32, READ | WRITE | MMAP, 3, 0, 0x10_0000, 0)
    [fd] = answer.fds
    with mmap.mmap(fd, 0x10_0000, offset=info(answer)[5]) as shared:
        os.close(fd)
        shared[0x1234:0x1239] = b"guest"
        assert client.read(3, 0x1234, 5) == b"guest"
        client.write(3, 0xF_FFFB, b"wire!")
        assert shared[0xF_FFFB:] == b"wire!"
        gadget.whole.memory[0:6] = b"device"
        assert shared[:6] == b"device"


@pytest.mark.point("P46")
def test_asking_for_a_regions_descriptor_leaks_none(client: RawPeer) -> None:
    before = open_descriptors()
    for _ in range(50):
        client.send(raw.region_info(3) * 200)
        for _ in range(200):
            [fd] = client.receive().fds
            os.close(fd)
    assert open_descriptors() == before


@pytest.mark.point("P45")
def test_msix_table_and_pending_bits_lie_in_no_mappable_area(client: RawPeer) -> None:
    config = client.read(raw.CONFIG, 0, 256)
    at = config[0x34]
    while config[at] != 0x11:
        at = config[at + 1]
    for field in (4, 8):
        bar = int.from_bytes(config[at + field : at + field + 4], "little") & 7
        assert not info(client.ask(raw.region_info(bar)))[1] & MMAP


@pytest.mark.point("P47")
def test_regions_have_no_descriptors_for_single_registers(client: RawPeer) -> None:
    answer = client.ask(raw.region_io_fds(0))
    assert (answer.payload, answer.fds) == (struct.pack("=IIII", 16, 0, 0, 0), ())
    for request in (
        raw.region_io_fds(0, flags=1),
        raw.region_io_fds(0, count=1),
        raw.region_io_fds(5),
        raw.region_io_fds(9),
    ):
        assert client.refused(request) == errno.EINVAL


@pytest.mark.point("P48", "P108b")
def test_each_of_the_five_interrupt_kinds_is_described(client: RawPeer) -> None:
    counts = [1, 8, 64, 1, 1]
    flags = [7, 1, 1, 1, 1]
    for index in range(5):
        answer = client.ask(raw.irq_info(index, 32))
        assert answer.payload == struct.pack("=IIII", 16, flags[index], index, counts[index])
    for index in (5, 0xFFFF_FFFF):
        assert client.refused(raw.irq_info(index)) == errno.EINVAL


@pytest.mark.point("P46")
def test_a_region_that_cannot_be_described_hands_its_descriptor_to_no_later_answer(
    serve: Serve, connect: Connect
) -> None:
    device = Handmade()
    fd = raw.memory_file(4096)
    device.regions = [Region(1 << 70, READ | MMAP, (), fd), *device.regions[1:]]
    client = connect(serve(device))
    client.refused(raw.region_info(0))
    assert client.ask(raw.device_info()).fds == ()
    os.close(fd)
