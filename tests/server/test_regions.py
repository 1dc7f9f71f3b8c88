"""Region access by message: configuration space and BARs, plain, posted, batched, and out of bounds."""

import errno
import random
import struct
from pathlib import Path

import pytest

from outboard import Server
from outboard.server import session
from tests import raw
from tests.raw import CONFIG, RawPeer
from tests.server.conftest import Connect, Serve
from tests.server.gadgets import ROM_IMAGE, Gadget, Handmade

U64 = (1 << 64) - 1


def read32(client: RawPeer, offset: int) -> int:
    return int.from_bytes(client.read(CONFIG, offset, 4), "little")


def write32(client: RawPeer, offset: int, value: int) -> None:
    client.write(CONFIG, offset, value.to_bytes(4, "little"))


def capability(client: RawPeer, id: int) -> int:
    config = client.read(CONFIG, 0, 256)
    at = config[0x34]
    while at and config[at] != id:
        at = config[at + 1]
    assert at
    return at


@pytest.mark.point("P67")
def test_configuration_space_reads_the_same_whole_and_in_pieces(client: RawPeer) -> None:
    whole = client.read(CONFIG, 0, 4096)
    assert whole[:4] == b"\x34\x12\x78\x56"
    for size in (1, 2, 4, 8):
        step = 1 if size < 4 else 4
        for start in range(0, 256, 64):
            offsets = range(start, start + 64, step)
            client.send(b"".join(raw.read(CONFIG, at, size) for at in offsets))
            for at in offsets:
                assert client.receive().payload[16:] == whole[at : at + size]


@pytest.mark.point("P68", "P72")
def test_bars_are_sized_as_firmware_does(client: RawPeer) -> None:
    sizes = {0x10: 0xFFFF_F000, 0x14: 0xFFFF_FFC1, 0x18: 0xFFFF_C000, 0x1C: 0xFFF0_0000, 0x20: 0xFFFF_C004}
    for offset, mask in sizes.items():
        write32(client, offset, 0xFFFF_FFFF)
        assert read32(client, offset) == mask
    write32(client, 0x24, 0xFFFF_FFFF)
    assert read32(client, 0x24) == 0xFFFF_FFFF  # the upper half of BAR4
    for offset in range(0x10, 0x28, 4):
        write32(client, offset, 0)
        assert read32(client, offset) == sizes.get(offset, 0) & 0xF


@pytest.mark.point("P69", "P88")
def test_the_rom_is_sized_enabled_and_read_in_one_access(client: RawPeer) -> None:
    write32(client, 0x30, 0xFFFF_F800)
    assert read32(client, 0x30) == 0xFFFF_F000
    write32(client, 0x30, 0xFFFF_FFFF)
    assert read32(client, 0x30) == 0xFFFF_F001
    rom = client.read(6, 0, 4096)
    assert rom.startswith(ROM_IMAGE)
    client.write(6, 0, b"ignored")
    assert client.read(6, 0, 4096) == rom


@pytest.mark.point("P69")
def test_without_a_rom_its_bar_reads_zero(serve: Serve, connect: Connect) -> None:
    client = connect(serve(Gadget(rom=None)))
    write32(client, 0x30, 0xFFFF_F800)
    assert read32(client, 0x30) == 0
    assert client.refused(raw.read(6, 0, 4)) == errno.EINVAL


@pytest.mark.point("P70", "P71", "P76")
def test_the_header_takes_writes_where_pci_says_so_and_ignores_the_others(client: RawPeer) -> None:
    client.write(CONFIG, 0x04, b"\xff\xff\xff\xff")
    command, status = struct.unpack("<HH", client.read(CONFIG, 0x04, 4))
    assert command == 0x0547
    assert status == 0x0010
    before = client.read(CONFIG, 0, 64)
    for offset in (*range(0x04), *range(0x08, 0x0C), 0x0E, 0x28, *range(0x2C, 0x30), 0x34, 0x3D):
        client.write(CONFIG, offset, b"\xff")
    assert client.read(CONFIG, 0, 64) == before
    client.write(CONFIG, 0x3C, b"\x0b\xff")
    assert client.read(CONFIG, 0x3C, 2) == b"\x0b\x01"
    for offset in range(0x100, 0x1000, 0x101):
        client.write(CONFIG, offset, b"\xff")


@pytest.mark.point("P73")
def test_capabilities_take_partial_and_misaligned_writes(client: RawPeer, gadget: Gadget) -> None:
    msix = capability(client, 0x11)
    client.write(CONFIG, msix + 3, b"\x80")
    assert gadget.msix.enabled
    client.write(CONFIG, msix + 1, b"\xff\xff\x00\xff")
    assert not gadget.msix.enabled
    assert client.read(CONFIG, msix + 2, 2) == b"\x3f\x00"
    msi = capability(client, 0x05)
    client.write(CONFIG, msi + 2, b"\x31")
    assert gadget.msi.enabled
    vendor = capability(client, 0x09)
    client.write(CONFIG, vendor + 4, b"abc")
    assert (
        client.read(CONFIG, vendor, 11) == bytes([9, client.read(CONFIG, vendor + 1, 1)[0], 11]) + b"oabcoard"
    )


@pytest.mark.point("P74")
def test_a_function_level_reset_and_power_states_go_through_capabilities(
    client: RawPeer, gadget: Gadget
) -> None:
    power = capability(client, 0x01)
    client.write(CONFIG, power + 4, b"\x03\x00")
    assert client.read(CONFIG, power + 4, 2)[0] & 3 == 3
    client.write(CONFIG, power + 4, b"\x00")
    express = capability(client, 0x10)
    client.write(0, 0, b"\1\1\1\1")
    client.write(CONFIG, express + 8, b"\x00\x80")
    assert gadget.log[-1] == "reset"
    assert client.read(CONFIG, express + 9, 1)[0] & 0x80 == 0
    assert client.read(0, 0, 4) == b"\x78\x56\x34\x12"


@pytest.mark.point("P75")
def test_the_extended_chain_starts_at_0x100_and_ends(serve: Serve, connect: Connect) -> None:
    server = serve(Gadget())
    client = connect(server)
    assert read32(client, 0x100) == 0x0001_0003
    assert client.read(CONFIG, 0x104, 8) == bytes.fromhex("7766554433221100")
    bare = connect(serve(Gadget(serial=None)))
    assert read32(bare, 0x100) == 0


@pytest.mark.point("P77")
def test_an_access_reaches_the_device_with_its_offset_size_and_value(client: RawPeer, gadget: Gadget) -> None:
    gadget.log.clear()
    assert client.read(1, 4, 2) == b"\xa4\xa5"
    client.write(1, 8, b"\x01\x02\x03\x04")
    client.write(1, 63, b"\xff")
    assert gadget.log == [("in", 4, 2), ("out", 8, 4, 0x0403_0201), ("out", 63, 1, 0xFF)]
    client.write(0, 0, b"\xef\xbe\xad\xde")
    assert gadget.scratch == 0xDEAD_BEEF
    client.write(0, 1, b"\0\0")
    assert client.read(0, 0, 8)[:4] == b"\xef\0\0\xde"


@pytest.mark.point("P78", "R11")
@pytest.mark.parametrize(
    ("region", "offset", "count"),
    [
        (0, 0xFFD, 4),
        (0, 0x1000, 1),
        (0, U64, 1),
        (0, U64 - 3, 4),
        (5, 0, 1),
        (8, 0, 1),
        (9, 0, 1),
        (0xFFFF_FFFF, 0, 1),
        (CONFIG, 4096, 1),
        (CONFIG, 1, 4096),
    ],
)
def test_an_access_that_is_not_all_inside_its_region_is_refused(
    client: RawPeer, region: int, offset: int, count: int
) -> None:
    assert client.refused(raw.read(region, offset, count)) == errno.EINVAL
    assert client.refused(raw.write(region, offset, bytes(count))) == errno.EINVAL


@pytest.mark.point("P79", "P80")
def test_answers_have_their_exact_sizes_down_to_no_bytes_at_all(client: RawPeer) -> None:
    for count in (0, 1, 4, 4096):
        answer = client.ask(raw.read(3, 16, count))
        assert answer.payload == struct.pack("=QII", 16, 3, count) + bytes(count)
        answer = client.ask(raw.write(3, 16, bytes(count)))
        assert answer.payload == struct.pack("=QII", 16, 3, count)


@pytest.mark.point("P81")
@pytest.mark.parametrize("data", [b"", b"abc", b"abcde"])
def test_a_write_whose_data_and_count_disagree_is_refused(client: RawPeer, data: bytes) -> None:
    request = raw.message(raw.REGION_WRITE, struct.pack("=QII", 0, 0, 4) + data)
    assert client.refused(request) == errno.EINVAL
    assert client.read(0, 0, 4) == b"\x78\x56\x34\x12"


@pytest.mark.point("P82")
def test_a_device_that_raises_costs_an_error_reply_and_a_line_in_the_log(
    client: RawPeer, caplog: pytest.LogCaptureFixture
) -> None:
    assert client.refused(raw.read(0, 0x10, 4)) == errno.EIO
    assert client.refused(raw.write(0, 0x10, bytes(4))) == errno.EIO
    assert "the author's bug, reading" in caplog.text
    assert "Traceback" in caplog.text
    caplog.clear()
    client.send(raw.write(0, 0x10, bytes(4), flags=raw.NO_REPLY))
    client.ask(raw.device_info())
    client.expect_silence()
    assert "the author's bug, writing" in caplog.text


@pytest.mark.point("P82")
@pytest.mark.parametrize(("raised", "answered"), [(13, 13), (0, 5), (4096, 5), (0xFFFF_FFFF, 5)])
def test_an_errno_that_no_reply_can_carry_becomes_eio(client: RawPeer, raised: int, answered: int) -> None:
    assert client.refused(raw.write(0, 0x14, raised.to_bytes(4, "little"))) == answered


@pytest.mark.point("P82")
def test_a_device_that_answers_with_too_few_bytes_is_an_error_reply(serve: Serve, connect: Connect) -> None:
    device = Handmade()
    device.memory[0] = bytearray(2)
    client = connect(serve(device))
    assert client.refused(raw.read(0, 0, 4)) == errno.EIO
    client.ask(raw.device_info())


@pytest.mark.point("P108c")
def test_by_policy_a_failing_read_answers_all_ones(
    gadget: Gadget, connect: Connect, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Server(gadget, folder / "ones", on_error="ones").start() as server:
        client = connect(server)
        assert client.read(0, 0x10, 4) == b"\xff\xff\xff\xff"
        assert "answered with all ones" in caplog.text
        assert client.refused(raw.write(0, 0x10, bytes(4))) == errno.EIO
        assert client.refused(raw.read(0, 0x1000, 4)) == errno.EINVAL


@pytest.mark.point("P83", "PCI05")
def test_posted_writes_happen_in_order_with_what_follows(client: RawPeer, gadget: Gadget) -> None:
    client.send(
        b"".join(raw.write(0, 0, bytes([n] * 4), flags=raw.NO_REPLY) + raw.read(0, 0, 4) for n in range(200))
    )
    assert [client.receive().payload[16] for _ in range(200)] == list(range(200))


@pytest.mark.point("P84", "PCI05")
def test_a_batch_of_writes_is_done_in_order(client: RawPeer, gadget: Gadget) -> None:
    gadget.log.clear()
    answer = client.ask(
        raw.write_multi((1, 0, b"\x01"), (1, 8, b"\x02\x03"), (0, 0, b"\x04\0\0\0"), (3, 5, b"\x05" * 8))
    )
    assert answer.payload == struct.pack("=Q", 4)
    assert gadget.log == [("out", 0, 1, 1), ("out", 8, 2, 0x0302)]
    assert client.read(3, 4, 10) == b"\0" + b"\x05" * 8 + b"\0"
    client.send(raw.write_multi((0, 0, b"\x09\0\0\0"), flags=raw.NO_REPLY) + raw.read(0, 0, 4))
    assert client.receive().payload[16:] == b"\x09\0\0\0"


@pytest.mark.point("P84")
def test_a_batch_with_one_senseless_write_is_refused_whole(client: RawPeer) -> None:
    good = (0, 0, b"\x09\0\0\0")
    long = struct.pack("=Q", 1) + struct.pack("=QII8s", 0, 0, 9, b"")
    for request in (
        raw.write_multi(good, (9, 0, b"x")),
        raw.write_multi(good, (5, 0, b"x")),
        raw.write_multi(good, (0, 0xFFF, b"xy")),
        raw.message(raw.WRITE_MULTI, long),
        raw.message(raw.WRITE_MULTI, struct.pack("=Q", 2) + bytes(24)),
        raw.message(raw.WRITE_MULTI, struct.pack("=Q", 1 << 60) + bytes(24)),
    ):
        assert client.refused(request) == errno.EINVAL
    assert client.read(0, 0, 4) == b"\x78\x56\x34\x12"


@pytest.mark.point("P86")
def test_a_handler_that_outlasts_the_clients_patience_is_reported(
    client: RawPeer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client.write(0, 0x38, bytes(4))
    assert "call_soon" not in caplog.text
    monkeypatch.setattr(session, "PATIENCE", 0.0)
    client.write(0, 0x38, bytes(4))
    assert "put slow work off with self.call_soon" in caplog.text


@pytest.mark.point("P87")
def test_accesses_up_to_the_negotiated_size_work_and_one_byte_more_does_not(client: RawPeer) -> None:
    data = random.Random(7).randbytes(1 << 20)
    for size in (1 << 16, (1 << 20) - 1, 1 << 20):
        client.write(3, 0, data[:size])
        assert client.read(3, 0, size) == data[:size]
    assert client.refused(raw.write(3, 0, data + b"x")) == errno.EINVAL
    assert client.refused(raw.read(3, 0, (1 << 20) + 1)) == errno.EINVAL
    assert client.read(3, 0, 16) == data[:16]
