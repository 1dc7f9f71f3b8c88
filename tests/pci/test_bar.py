import mmap
import os
from typing import Any

import pytest

from outboard import Bar, Device

READ, WRITE, MMAP = 1, 2, 4


class Memory(Device):
    ram = Bar(0, size=0x1000)
    shared = Bar(1, size=0x2000, mmap=True)


class Handlers(Device):
    bar = Bar(0, size=0x100)
    known = bar.reg(0x10, reset=0xAAAA_AAAA)

    def __init__(self, **replacements: Any) -> None:
        super().__init__(**replacements)
        self.calls: list[Any] = []

    @bar.on_read
    def anything(self, offset: int, size: int) -> int:
        self.calls.append((offset, size))
        return -1 if offset == 0 else offset

    @bar.on_write
    def anything_written(self, offset: int, size: int, value: int) -> None:
        self.calls.append((offset, size, value))


class Doorbells(Device):
    bar = Bar(0, size=0x4000, mmap=[(0x1000, 0x1000)])
    control = bar.reg(0x14)
    tails = bar.array(0x1000, count=4, stride=8)
    packets = bar.ram(0x2000, size=0x100)

    def __init__(self) -> None:
        super().__init__()
        self.rung: list[tuple[int, int]] = []

    @tails.on_write
    def ring(self, index: int, value: int) -> None:
        self.rung.append((index, value))


def test_a_bar_without_registers_is_plain_memory() -> None:
    device = Memory()
    device.region_write(0, 0xFFD, b"abc")
    assert device.region_read(0, 0xFFC, 4) == b"\0abc"
    assert device.ram.memory[0xFFD:] == b"abc"
    assert device.unhandled == []


def test_plain_memory_survives_a_reset() -> None:
    device = Memory()
    device.region_write(0, 0, b"kept")
    device.reset()
    assert device.region_read(0, 0, 4) == b"kept"


@pytest.mark.point("P39", "P43", "P44")
def test_a_mapping_of_the_region_and_the_device_see_the_same_bytes() -> None:
    device = Memory()
    region = device.regions[1]
    assert (region.size, region.flags, region.areas) == (0x2000, READ | WRITE | MMAP, ())
    assert region.fd is not None
    with mmap.mmap(region.fd, 0x1000, offset=region.fd_offset + 0x1000) as guest:
        guest[:5] = b"guest"
        assert device.region_read(1, 0x1000, 5) == b"guest"
        device.region_write(1, 0x1000, b"write")
        assert guest[:5] == b"write"
        device.shared.memory[0x1000:0x1005] = b"owner"
        assert guest[:5] == b"owner"


@pytest.mark.point("P46")
def test_a_client_cannot_shrink_the_memory_behind_a_bar() -> None:
    device = Memory()
    fd = device.shared.fd
    assert fd is not None
    for size in (0, 0x1000, 0x4000):
        with pytest.raises(PermissionError):
            os.ftruncate(fd, size)


def test_the_descriptor_behind_a_bar_goes_with_the_device() -> None:
    device = Memory()
    fd = device.regions[1].fd
    assert fd is not None
    os.fstat(fd)
    del device
    import gc

    gc.collect()
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)


@pytest.mark.point("P43")
def test_only_the_listed_pages_are_mappable() -> None:
    region = Doorbells().regions[0]
    assert region.flags == READ | WRITE | MMAP
    assert region.areas == ((0x1000, 0x1000),)


def test_doorbells_ring_for_clients_that_do_not_map_them() -> None:
    device = Doorbells()
    device.region_write(0, 0x1008, b"\5\0\0\0")
    assert device.rung == [(1, 5)]
    assert device.tails[1] == 5


def test_unclaimed_bytes_of_a_mappable_page_are_memory_as_the_guest_sees_them() -> None:
    device = Doorbells()
    device.region_write(0, 0x1004, b"abcd")
    device.region_write(0, 0x1FFE, b"zz")
    assert device.region_read(0, 0x1004, 4) == b"abcd"
    assert device.region_read(0, 0x1FFE, 2) == b"zz"
    assert device.unhandled == []


def test_memory_between_registers_is_shared_with_the_device() -> None:
    device = Doorbells()
    device.region_write(0, 0x2004, b"data")
    assert bytes(device.packets[4:8]) == b"data"
    device.packets[:2] = b"xy"
    assert device.region_read(0, 0x2000, 8) == b"xy\0\0data"


@pytest.mark.point("P77")
def test_the_handlers_of_the_bar_get_what_no_register_claims_with_exact_offset_and_size() -> None:
    device = Handlers()
    assert device.region_read(0, 0, 3) == b"\xff\xff\xff"
    assert device.region_read(0, 0x0E, 8) == b"\x0e\0" + b"\xaa" * 4 + b"\x14\0"
    device.region_write(0, 0x20, b"\1\2")
    assert device.calls == [(0, 3), (0x0E, 2), (0x14, 2), (0x20, 2, 0x0201)]
    assert device.unhandled == []


def test_a_bar_of_another_size_keeps_registers_and_handlers() -> None:
    class Wider(Handlers):
        bar = Bar(0, size=0x200)

    for device in (Wider(), Handlers(bar=Bar(0, size=0x200))):
        assert device.region_read(0, 0x10, 4) == b"\xaa" * 4
        assert device.region_read(0, 0x1FF, 1) == b"\xff"
        assert device.calls == [(0x1FF, 1)]


def test_accesses_nobody_claims_are_remembered_once_and_boundedly() -> None:
    device = Doorbells()
    for _ in range(3):
        assert device.region_read(0, 0x10, 12) == bytes(12)
        device.region_write(0, 0x3000, b"gone")
    assert [tuple(access) for access in device.unhandled] == [
        (0, 0x10, 4, False),
        (0, 0x18, 4, False),
        (0, 0x3000, 4, True),
    ]
    for offset in range(0x3000, 0x4000):
        device.region_read(0, offset, 1)
    assert len(device.unhandled) == 256


def test_a_huge_bar_costs_only_the_memory_its_registers_need() -> None:
    class Huge(Device):
        bar = Bar(0, size=1 << 50, bits=64)
        first = bar.reg(0)

    device = Huge()
    assert device.regions[0].size == 1 << 50
    assert len(device.bar.memory) == 4
    assert device.region_read(0, (1 << 50) - 4, 4) == bytes(4)


@pytest.mark.point("P87")
def test_a_mebibyte_is_read_and_written_at_once() -> None:
    class Large(Device):
        bar = Bar(0, size=1 << 20)

    device, data = Large(), os.urandom(1 << 20)
    device.region_write(0, 0, data)
    assert device.region_read(0, 0, 1 << 20) == data
