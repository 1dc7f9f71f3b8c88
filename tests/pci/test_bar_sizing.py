import pytest

from outboard import Bar, Device, Rom
from outboard.pci.config_space import ConfigSpace
from outboard.pci.function import Function, Identity

IDENTITY = Identity(0x1234, 0x5678, 0x1234, 0x5678, 0xFF0000, 0)


class Empty(Device):
    pass


def config_with(**fields: Bar | Rom) -> ConfigSpace:
    """The configuration space of a function with these BARs; no memory behind them."""
    return Function("Function", fields).config_space(IDENTITY)


def size_up(config: ConfigSpace, offset: int, size: int) -> int:
    """What a guest reads after writing all ones, as firmware does it: 32 bits at a time."""
    for part in range(offset, offset + size, 4):
        config.write(part, b"\xff" * 4)
    return int.from_bytes(config.read(offset, size), "little")


@pytest.mark.point("P68", "PCI01")
@pytest.mark.parametrize("shift", range(4, 32))
@pytest.mark.parametrize("prefetchable", [False, True])
def test_a_32_bit_bar_is_sized_and_placed(shift: int, prefetchable: bool) -> None:
    size, flags = 1 << shift, 8 if prefetchable else 0
    config = config_with(it=Bar(1, size=size, prefetchable=prefetchable))
    value = size_up(config, 0x14, 4)
    assert value & 0xF == flags
    assert 2**32 - (value & ~0xF) == size
    config.write(0x14, (size | 0xF).to_bytes(4, "little"))
    assert config.load(0x14, 4) == size | flags


@pytest.mark.point("P68", "PCI01")
@pytest.mark.parametrize("shift", range(4, 64))
def test_a_64_bit_bar_is_sized_and_placed_by_halves(shift: int) -> None:
    size = 1 << shift
    config = config_with(it=Bar(4, size=size, bits=64, prefetchable=True))
    value = size_up(config, 0x20, 8)
    assert value & 0xF == 0xC
    assert 2**64 - (value & ~0xF) == size
    config.write(0x20, bytes(4))
    config.write(0x24, bytes(4))
    assert config.load(0x20, 8) == 0xC


@pytest.mark.point("P68", "PCI01")
@pytest.mark.parametrize("shift", range(2, 16))
def test_an_io_bar_is_sized_and_placed(shift: int) -> None:
    size = 1 << shift
    config = config_with(it=Bar(0, size=size, io=True))
    value = size_up(config, 0x10, 4)
    assert value & 3 == 1
    assert 2**32 - (value & ~3) == size


@pytest.mark.point("P69", "PCI01")
def test_without_a_rom_its_bar_reads_zero_whatever_is_written() -> None:
    config = Empty().config
    config.write(0x30, (0xFFFFF800).to_bytes(4, "little"))
    assert config.load(0x30, 4) == 0


@pytest.mark.point("P69", "PCI01")
@pytest.mark.parametrize(("image", "size"), [(1, 2048), (2048, 2048), (2049, 4096), (3 << 20, 4 << 20)])
def test_a_rom_is_sized_and_has_an_enable_bit(image: int, size: int) -> None:
    config = config_with(rom=Rom(b"r" * image))
    assert size_up(config, 0x30, 4) == (2**32 - size) | 1
    config.write(0x30, (0xFFFFF800).to_bytes(4, "little"))
    assert config.load(0x30, 4) == 0xFFFFF800 & (2**32 - size)


@pytest.mark.point("P72")
def test_zero_may_be_written_to_every_bar() -> None:
    config = config_with(
        low=Bar(0, size=0x1000), wide=Bar(2, size=0x1000, bits=64), io=Bar(5, size=8, io=True)
    )
    for offset in range(0x10, 0x28, 4):
        config.write(offset, bytes(4))
    assert [config.load(offset, 4) for offset in range(0x10, 0x28, 4)] == [0, 0, 4, 0, 0, 1]


@pytest.mark.point("P88")
def test_a_rom_is_read_in_one_piece_and_never_written() -> None:
    class WithRom(Device):
        rom = Rom(b"\x55\xaa" + bytes(3 << 20))

    device = WithRom()
    assert device.regions[6].size == 4 << 20
    assert device.regions[6].flags == 1
    device.region_write(6, 0, b"\0\0")
    content = device.region_read(6, 0, 4 << 20)
    assert content[:2] == b"\x55\xaa"
    assert content[-1] == 0xFF
