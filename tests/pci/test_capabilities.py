import struct
from collections.abc import Iterator

import pytest

from outboard import (
    Bar,
    Device,
    Msi,
    MsiX,
    PciExpress,
    PowerManagement,
    RawCapability,
    SerialNumber,
    VendorCapability,
    VendorExtended,
)

CONFIG = 7
D0, D3HOT = 0, 3


class Chained(Device):
    power = PowerManagement()
    odd = VendorCapability(b"vendor", mask=b"\0\xff")
    link = PciExpress()
    msi = Msi(vectors=8)
    msix = MsiX(vectors=33)
    raw = RawCapability(0x13, b"\x06\x03\0\0", mask=b"\0\0\x01\0")
    serial = SerialNumber(0x1122_3344_5566_7788)
    vsec = VendorExtended(0x4F42, 3, b"secret", mask=b"\xff")
    aer = RawCapability(0x0001, bytes(0x44), extended=True, version=2, w1c=b"\xff\xff\xff\xff")

    def __init__(self) -> None:
        super().__init__()
        self.resets = 0

    def on_reset(self) -> None:
        self.resets += 1


def read(device: Device, offset: int, size: int) -> int:
    return int.from_bytes(device.region_read(CONFIG, offset, size), "little")


def write(device: Device, offset: int, size: int, value: int) -> None:
    device.region_write(CONFIG, offset, value.to_bytes(size, "little"))


def chain(device: Device) -> Iterator[tuple[int, int]]:
    """(id, offset) of the standard capabilities, as a driver walks them."""
    offset = read(device, 0x34, 1)
    while offset:
        yield read(device, offset, 1), offset
        offset = read(device, offset + 1, 1)


def extended_chain(device: Device) -> Iterator[tuple[int, int, int]]:
    """(id, version, offset) of the extended capabilities."""
    offset = 0x100
    while offset:
        header = read(device, offset, 4)
        yield header & 0xFFFF, header >> 16 & 0xF, offset
        offset = header >> 20


def find(device: Device, wanted: int) -> int:
    return next(offset for id, offset in chain(device) if id == wanted)


@pytest.mark.point("P73", "PCI01")
def test_the_chain_holds_every_capability_in_the_order_of_the_class() -> None:
    found = list(chain(Chained()))
    assert [id for id, _ in found] == [0x01, 0x09, 0x10, 0x05, 0x11, 0x13]
    assert found[0][1] == 0x40
    assert all(offset % 4 == 0 for _, offset in found)


@pytest.mark.point("P75", "PCI01")
def test_the_extended_chain_starts_at_0x100() -> None:
    device = Chained()
    assert [(id, version) for id, version, _ in extended_chain(device)] == [(3, 1), (0x0B, 1), (1, 2)]
    assert read(device, 0x104, 8) == 0x1122_3344_5566_7788
    assert device.serial.offset == 0x100
    header = read(device, device.vsec.offset + 4, 4)
    assert (header & 0xFFFF, header >> 16 & 0xF, header >> 20) == (0x4F42, 3, 14)
    assert device.region_read(CONFIG, device.vsec.offset + 8, 6) == b"secret"


@pytest.mark.point("P75")
def test_without_extended_capabilities_the_dword_at_0x100_is_zero() -> None:
    class Express(Device):
        link = PciExpress()

    assert read(Express(), 0x100, 4) == 0


@pytest.mark.point("P40")
def test_the_size_of_configuration_space_follows_the_express_capability() -> None:
    class Forced(Device):
        express = True

    class Plain(Device):
        power = PowerManagement()

    assert (Chained().config.size, Forced().config.size, Plain().config.size) == (4096, 4096, 256)


@pytest.mark.point("P76")
def test_a_vendor_capability_is_writable_where_its_mask_says() -> None:
    device = Chained()
    offset = find(device, 0x09)
    assert read(device, offset + 2, 1) == 3 + 6
    device.region_write(CONFIG, offset, b"\xff" * 12)
    assert device.region_read(CONFIG, offset + 3, 6) == b"v\xffndor"
    assert device.odd.load(3, 2) == 0xFF76
    device.odd.store(5, 1, 0x21)
    assert read(device, offset + 5, 1) == 0x21


@pytest.mark.point("P74")
def test_power_states_d0_and_d3hot_are_taken_and_others_ignored() -> None:
    device = Chained()
    offset = find(device, 0x01)
    control = offset + 4
    assert read(device, control, 2) == 0x0008  # NSFRST: nothing is reset on the way to D0
    write(device, control, 2, D3HOT)
    assert read(device, control, 2) == 0x000B
    assert device.power.state == D3HOT
    for other in (1, 2):
        write(device, control, 1, other)
        assert read(device, control, 2) & 3 == D3HOT
    write(device, control, 1, D0)
    assert device.power.state == D0
    write(device, control, 2, D3HOT)
    device.reset()
    assert device.power.state == D0


@pytest.mark.point("P74")
def test_a_function_level_reset_resets_and_reads_back_as_zero() -> None:
    device = Chained()
    control = find(device, 0x10) + 8
    write(device, 0x04, 2, 0x0006)
    write(device, control, 2, 0x8000 | 0x2810)
    assert device.resets == 1
    assert read(device, control, 2) == 0x2810
    assert read(device, 0x04, 2) == 0


@pytest.mark.point("P74")
def test_a_function_level_reset_works_by_a_one_byte_write() -> None:
    device = Chained()
    write(device, find(device, 0x10) + 9, 1, 0x80)
    assert device.resets == 1


@pytest.mark.point("P74")
def test_device_and_link_control_are_writable_and_their_capabilities_are_not() -> None:
    device = Chained()
    offset = find(device, 0x10)
    fixed = device.region_read(CONFIG, offset, 8)
    device.region_write(CONFIG, offset, b"\xff" * 8 + b"\xff\x7f" + b"\xff" * 0x32)
    assert device.region_read(CONFIG, offset, 8) == fixed
    assert read(device, offset + 0x02, 2) == 0x0002
    assert read(device, offset + 0x04, 4) & 1 << 28  # FLR
    assert read(device, offset + 0x08, 2) == 0x7FFF
    assert read(device, offset + 0x10, 2) == 0x01CB
    assert read(device, offset + 0x28, 2) == 0x001F


@pytest.mark.point("P73")
def test_msi_offers_64_bit_addresses_and_masks_and_keeps_the_message() -> None:
    device = Chained()
    offset = find(device, 0x05)
    assert read(device, offset + 2, 2) == 0x0180 | 3 << 1
    write(device, offset + 4, 8, 0xFEE0_0000_FEE0_0FFF)
    write(device, offset + 0x0C, 2, 0x4041)
    assert read(device, offset + 4, 8) == 0xFEE0_0000_FEE0_0FFC
    assert read(device, offset + 0x0C, 2) == 0x4041
    write(device, offset + 0x10, 4, 0xFFFF_FFFF)
    assert read(device, offset + 0x10, 4) == 0xFF


@pytest.mark.point("P73")
def test_msi_enables_no_more_vectors_than_it_has() -> None:
    device = Chained()
    offset = find(device, 0x05)
    write(device, offset + 2, 2, 0x0001 | 5 << 4)
    assert read(device, offset + 2, 2) == 0x0181 | 3 << 4 | 3 << 1
    assert device.msi.enabled
    write(device, offset + 2, 1, 0)
    assert not device.msi.enabled


@pytest.mark.point("P73")
def test_msix_is_enabled_by_a_write_to_the_upper_byte_of_its_control_register() -> None:
    device = Chained()
    offset = find(device, 0x11)
    assert read(device, offset + 2, 2) == 32
    write(device, offset + 3, 1, 0xFF)
    assert read(device, offset + 2, 2) == 0xC000 | 32
    assert device.msix.enabled
    assert device.msix.function_masked
    device.reset()
    assert not device.msix.enabled


@pytest.mark.point("P45", "PCI01")
def test_msix_gets_a_bar_of_its_own_when_none_is_named() -> None:
    class Taken(Device):
        low = Bar(0, size=0x1000, bits=64)
        msix = MsiX(vectors=2048)

    device = Taken()
    control, table, pba = struct.unpack("<HII", device.region_read(CONFIG, 0x42, 10))
    assert control == 2047
    assert (table & 7, table & ~7) == (2, 0)
    assert (pba & 7, pba & ~7) == (2, 0x8000)
    assert device.regions[2].size == 0x10000
    assert device.interrupts[2] == 2048


@pytest.mark.point("PCI01")
def test_msix_lives_where_the_author_puts_it() -> None:
    class Placed(Device):
        low = Bar(0, size=0x4000)
        control = low.reg(0)
        msix = MsiX(vectors=4, table=(low, 0x2000), pba=(0, 0x3000))

    device = Placed()
    assert struct.unpack("<II", device.region_read(CONFIG, 0x44, 8)) == (0x2000, 0x3000)
    device.region_write(0, 0x2010, struct.pack("<QII", 0xFEE0_0003, 0x41, 0xFFFF_FFFE))
    assert device.region_read(0, 0x2010, 16) == struct.pack("<QII", 0xFEE0_0000, 0x41, 0)
    device.reset()
    assert device.region_read(0, 0x2000, 64) == bytes(64)


def test_a_raw_extended_capability_clears_by_ones() -> None:
    device = Chained()
    status = device.aer.offset + 4
    device.aer.store(4, 4, 0x0010_0020)
    write(device, status, 4, 0x0000_0020)
    assert read(device, status, 4) == 0x0010_0000
