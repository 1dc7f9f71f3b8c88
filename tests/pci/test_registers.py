from enum import Enum, IntEnum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outboard import Bar, Device
from outboard.errors import RequestRefused
from outboard.pci.registers import Access

KINDS: tuple[Access, ...] = ("rw", "ro", "wo", "w1c", "w1s", "rc")


class Mode(IntEnum):
    IDLE = 0
    BUSY = 1


class Colour(Enum):
    RED = 0
    BLUE = 1


class Registers(Device):
    bar = Bar(0, size=0x100)
    rw = bar.reg(0x00, reset=0x1122_3344)
    ro = bar.reg(0x04, reset=0x55, access="ro")
    wo = bar.reg(0x08, access="wo", reset=0x77)
    w1c = bar.reg(0x0C, access="w1c", reset=0xFFFF_FFFF, mask=0x0FFF_FFFF)
    w1s = bar.reg(0x10, access="w1s", mask=0xFF)
    rc = bar.reg(0x14, access="rc", reset=0xDEAD_BEEF)
    masked = bar.reg(0x18, reset=0x8000_0000, mask=0xFF00)
    narrow = bar.reg(0x1C, size=1)
    half = bar.reg(0x1E, size=2)
    wide = bar.reg(0x20, size=8, reset=0x0123_4567_89AB_CDEF)
    tails = bar.array(0x40, count=4, stride=8)
    heads = bar.array(0x44, count=4, stride=8, reset=7)

    enable = rw.bit(0)
    mode = rw.bits(6, 4, Mode)
    colour = rw.bits(9, 8, Colour)
    level = rw.bits(31, 16)


class Recorder(Registers):
    """The same registers with handlers that note what they are given."""

    bar = Bar(0, size=0x100)
    rw = bar.reg(0x00)
    wo = bar.reg(0x08, access="wo")
    w1c = bar.reg(0x0C, access="w1c", reset=0xFF)
    ro = bar.reg(0x04, access="ro")
    tails = bar.array(0x40, count=4, stride=8)
    enable = rw.bit(0)
    mode = rw.bits(6, 4, Mode)
    colour = rw.bits(9, 8, Colour)
    level = rw.bits(31, 16)

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, ...]] = []

    @rw.on_write
    def rw_written(self, value: int) -> None:
        self.calls.append(("rw", value, self.rw))

    @wo.on_write
    def wo_written(self, value: int) -> None:
        self.calls.append(("wo", value))

    @w1c.on_write
    def w1c_written(self, bits: int) -> None:
        self.calls.append(("w1c", bits, self.w1c))

    @ro.on_read
    def ro_read(self) -> int:
        self.calls.append(("ro",))
        return -2

    @tails.on_write
    def tail_written(self, index: int, value: int) -> None:
        self.calls.append(("tail", index, value))

    @tails.on_read
    def tail_read(self, index: int) -> int:
        return 0x100 + index


def read(device: Device, offset: int, size: int = 4) -> int:
    return int.from_bytes(device.region_read(0, offset, size), "little")


def write(device: Device, offset: int, value: int, size: int = 4) -> None:
    device.region_write(0, offset, value.to_bytes(size, "little"))


def test_a_read_write_register_keeps_what_is_written() -> None:
    device = Registers()
    assert read(device, 0) == 0x1122_3344
    write(device, 0, 0xCAFE_F00D)
    assert read(device, 0) == device.rw == 0xCAFE_F00D


def test_a_read_only_register_ignores_writes() -> None:
    device = Registers()
    write(device, 4, 0xFFFF_FFFF)
    assert read(device, 4) == 0x55


def test_a_write_only_register_reads_as_zero_and_the_device_sees_the_value() -> None:
    device = Registers()
    write(device, 8, 0xABCD)
    assert read(device, 8) == 0
    assert device.wo == 0xABCD


def test_ones_clear_the_bits_the_mask_allows() -> None:
    device = Registers()
    write(device, 0x0C, 0xF000_000F)
    assert read(device, 0x0C) == 0xFFFF_FFF0


def test_a_partial_write_of_a_clearable_register_clears_only_the_written_bytes() -> None:
    device = Registers()
    write(device, 0x0D, 0xFF, size=1)
    assert read(device, 0x0C) == 0xFFFF_00FF


def test_ones_set_the_bits_the_mask_allows() -> None:
    device = Registers()
    write(device, 0x10, 0x101)
    write(device, 0x10, 0x102)
    assert read(device, 0x10) == 0x3


def test_reading_clears_exactly_the_bytes_that_were_read() -> None:
    device = Registers()
    write(device, 0x14, 0xFFFF_FFFF)
    assert read(device, 0x15, size=1) == 0xBE
    assert read(device, 0x14) == 0xDEAD_00EF
    assert read(device, 0x14) == 0


def test_a_mask_keeps_the_other_bits() -> None:
    device = Registers()
    write(device, 0x18, 0xFFFF_FFFF)
    assert read(device, 0x18) == 0x8000_FF00


def test_setting_an_attribute_stores_the_low_bits_with_no_mask_and_no_handler() -> None:
    device = Recorder()
    device.rw = -1
    device.ro = 0x1_0000_0003
    assert device.rw == 0xFFFF_FFFF
    assert device.ro == 3
    assert device.calls == []


@pytest.mark.point("P77")
def test_a_handler_gets_the_whole_value_after_it_was_stored() -> None:
    device = Recorder()
    write(device, 0, 0x1111_1111)
    write(device, 2, 0x22, size=1)
    assert device.calls == [("rw", 0x1111_1111, 0x1111_1111), ("rw", 0x1122_1111, 0x1122_1111)]


def test_the_handler_of_a_clearable_register_gets_the_bits_written() -> None:
    device = Recorder()
    write(device, 0x0C, 0x81)
    assert device.calls == [("w1c", 0x81, 0x7E)]


def test_a_write_only_register_collects_its_halves() -> None:
    device = Recorder()
    write(device, 8, 0x1111, size=2)
    write(device, 10, 0x2222, size=2)
    assert device.calls == [("wo", 0x1111), ("wo", 0x2222_1111)]


def test_a_read_handler_answers_every_part_of_the_register() -> None:
    device = Recorder()
    assert read(device, 4) == 0xFFFF_FFFE
    assert read(device, 4, size=1) == 0xFE
    assert read(device, 6, size=2) == 0xFFFF
    assert device.calls == [("ro",)] * 3


def test_arrays_are_indexed_and_their_handlers_get_the_index() -> None:
    device = Recorder()
    write(device, 0x50, 9)
    write(device, 0x5A, 1, size=1)
    assert device.calls == [("tail", 2, 9), ("tail", 3, 0x10000)]
    assert list(device.tails) == [0, 0, 9, 0x10000]
    assert read(device, 0x48) == 0x101
    device.tails[1] = -1
    assert device.tails[1] == 0xFFFF_FFFF
    assert device.tails[2:] == [9, 0x10000]
    with pytest.raises(IndexError, match="4 registers"):
        device.tails[4] = 0


def test_two_arrays_may_interleave() -> None:
    device = Registers()
    assert device.region_read(0, 0x40, 16) == (bytes(4) + b"\7\0\0\0") * 2
    device.region_write(0, 0x40, bytes(range(8)))
    assert (device.tails[0], device.heads[0]) == (0x03020100, 0x07060504)


def test_one_access_may_span_registers_of_all_kinds() -> None:
    device = Registers()
    device.region_write(0, 0, b"\xff" * 0x18)
    assert device.region_read(0, 0, 0x18) == (
        b"\xff\xff\xff\xff" + b"\x55\0\0\0" + bytes(4) + b"\0\0\0\xf0" + b"\xff\0\0\0" + b"\xef\xbe\xad\xde"
    )


def test_bit_fields_have_names_and_types() -> None:
    device = Registers()
    write(device, 0, 0xBEEF_0111)
    assert device.enable is True
    assert device.mode is Mode.BUSY
    assert device.colour is Colour.BLUE
    assert device.level == 0xBEEF
    device.enable, device.mode, device.colour, device.level = False, Mode.IDLE, Colour.RED, 1
    assert device.rw == 0x0001_0000
    with pytest.raises(ValueError, match=r"level = 0x10000 does not fit in bits 31\.\.16"):
        device.level = 0x10000


def test_a_value_the_enum_does_not_name_reads_as_the_number() -> None:
    device = Registers()
    write(device, 0, 0x70)
    assert device.mode == 7


def test_an_overriding_method_is_the_handler() -> None:
    class Louder(Recorder):
        def rw_written(self, value: int) -> None:
            super().rw_written(value)
            self.calls.append(("louder", value))

    device = Louder()
    write(device, 0, 5)
    assert device.calls == [("rw", 5, 5), ("louder", 5)]


@pytest.mark.point("P82")
def test_what_a_handler_raises_reaches_the_caller() -> None:
    class Broken(Recorder):
        def rw_written(self, value: int) -> None:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write(Broken(), 0, 5)


@pytest.mark.point("P109")
def test_reset_restores_every_register() -> None:
    device = Registers()
    fresh = device.region_read(0, 0, 0x14) + device.region_read(0, 0x18, 4)
    device.region_write(0, 0, b"\x5a" * 0x60)
    device.reset()
    assert device.region_read(0, 0, 0x14) + device.region_read(0, 0x18, 4) == fresh
    assert device.wo == 0x77
    assert device.wide == 0x0123_4567_89AB_CDEF
    assert list(device.heads) == [7] * 4


@st.composite
def register_maps(draw: st.DrawFn) -> list[tuple[int, int, Access, int, int]]:
    """Registers (offset, size, access, reset, mask) one after another with gaps, in 64 bytes."""
    registers: list[tuple[int, int, Access, int, int]] = []
    offset = 0
    while True:
        offset += draw(st.integers(0, 3))
        size = draw(st.sampled_from([1, 2, 4, 8]))
        if offset + size > 64:
            return registers
        ones = st.integers(0, (1 << 8 * size) - 1)
        registers.append((offset, size, draw(st.sampled_from(KINDS)), draw(ones), draw(ones)))
        offset += size


accesses = st.lists(
    st.tuples(st.integers(0, 63), st.one_of(st.integers(0, 16), st.binary(max_size=16))), max_size=20
)


@given(registers=register_maps(), steps=accesses)
def test_accesses_agree_with_a_model_of_single_bytes(
    registers: list[tuple[int, int, Access, int, int]], steps: list[tuple[int, int | bytes]]
) -> None:
    """Reads and writes of any size and place do what the access kinds say of each byte on its own."""
    bar = Bar(0, size=64)
    body = {f"r{offset}": bar.reg(offset, size=n, access=kind, reset=reset, mask=mask)
            for offset, n, kind, reset, mask in registers}  # fmt: skip
    device = type("Drawn", (Device,), {"bar": bar, **body})()
    value, kinds, masks = bytearray(64), ["ro"] * 64, bytearray(64)
    if not registers:
        return
    for offset, size, kind, reset, mask in registers:
        value[offset : offset + size] = reset.to_bytes(size, "little")
        masks[offset : offset + size] = mask.to_bytes(size, "little")
        kinds[offset : offset + size] = [kind] * size
    for offset, step in steps:
        if isinstance(step, int):
            count = min(step, 64 - offset)
            expected = bytearray()
            for i in range(offset, offset + count):
                expected.append(0 if kinds[i] == "wo" else value[i])
                if kinds[i] == "rc":
                    value[i] = 0
            assert device.region_read(0, offset, count) == expected
        else:
            data = step[: 64 - offset]
            for i, byte in enumerate(data, offset):
                if kinds[i] in ("rw", "wo"):
                    value[i] = value[i] & ~masks[i] | byte & masks[i]
                elif kinds[i] == "w1c":
                    value[i] &= ~(byte & masks[i])
                elif kinds[i] == "w1s":
                    value[i] |= byte & masks[i]
            device.region_write(0, offset, data)


@pytest.mark.point("P78", "P79")
@pytest.mark.parametrize(("offset", "count"), [(0x100, 1), (0xFD, 4), (2**64 - 1, 1), (2**64 - 4, 2**32 - 1)])
def test_an_access_outside_the_bar_is_refused(offset: int, count: int) -> None:
    device = Registers()
    with pytest.raises(RequestRefused, match="BAR0"):
        device.region_read(0, offset, count)
    with pytest.raises(RequestRefused, match="BAR0"):
        device.region_write(0, offset, bytes(min(count, 64)))
    assert device.region_read(0, 0x10, 0) == b""
    device.region_write(0, 0x10, b"")
