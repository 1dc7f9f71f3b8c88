import pytest
from hypothesis import given
from hypothesis import strategies as st

from outboard import Bar, Device, Intx, Msi, MsiX, PciExpress, PowerManagement, Rom, SerialNumber
from outboard.errors import RequestRefused
from outboard.pci.config_space import ConfigSpace

COMMAND, STATUS = 0x04, 0x06
CONFIG = 7


class Everything(Device):
    vendor_id, device_id, class_code, revision_id = 0x1234, 0x5678, 0x010802, 0x9A
    subsystem_vendor_id, subsystem_id = 0xABCD, 0xEF01
    registers = Bar(0, size=0x4000, bits=64)
    ports = Bar(2, size=0x20, io=True)
    rom = Rom(b"image")
    power = PowerManagement()
    link = PciExpress()
    msi = Msi(vectors=4)
    msix = MsiX(vectors=4)
    intx = Intx("B")
    serial = SerialNumber(0x1122334455667788)


class Bare(Device):
    pass


def read(device: Device, offset: int, size: int) -> int:
    return int.from_bytes(device.region_read(CONFIG, offset, size), "little")


def write(device: Device, offset: int, size: int, value: int) -> None:
    device.region_write(CONFIG, offset, value.to_bytes(size, "little"))


writes = st.lists(
    st.tuples(st.integers(0, 0x13F), st.binary(min_size=1, max_size=8)), min_size=1, max_size=20
)


@pytest.mark.point("P70", "P73", "P76", "PCI01")
@given(initial=st.binary(min_size=64, max_size=64), mask=st.binary(min_size=64, max_size=64), data=writes)
def test_no_sequence_of_writes_changes_a_read_only_bit(
    initial: bytes, mask: bytes, data: list[tuple[int, bytes]]
) -> None:
    """A bit outside the write mask keeps its reset value, one inside has the value last written."""
    config = ConfigSpace(256)
    config.define(0x40, initial, mask=mask)
    expected = bytearray(256)
    expected[0x40:0x80] = initial
    for offset, chunk in data:
        chunk = chunk[: max(0, 256 - offset)]
        if not chunk:
            continue
        config.write(offset, chunk)
        for position, byte in enumerate(chunk, offset):
            m = mask[position - 0x40] if 0x40 <= position < 0x80 else 0
            expected[position] = expected[position] & ~m | byte & m
    assert config.read(0, 256) == expected
    config.reset()
    assert config.read(0x40, 64) == initial


@pytest.mark.point("P70")
@given(state=st.integers(0, 255), clearable=st.integers(0, 255), written=st.integers(0, 255))
def test_a_clearable_bit_is_cleared_by_a_one_and_never_set(state: int, clearable: int, written: int) -> None:
    """Write-1-to-clear: what remains is exactly what was set and not hit by a one on a clearable bit."""
    config = ConfigSpace()
    config.define(0x50, b"\0", w1c=bytes([clearable]))
    config.store(0x50, 1, state)
    config.write(0x50, bytes([written]))
    assert config.load(0x50, 1) == state & ~(written & clearable)


@pytest.mark.point("P40", "P67")
@pytest.mark.parametrize(("device", "size"), [(Everything(), 4096), (Bare(), 256)])
def test_every_small_read_is_a_slice_of_the_whole(device: Device, size: int) -> None:
    assert device.regions[CONFIG].size == size
    assert device.regions[CONFIG].flags == 3
    whole = device.region_read(CONFIG, 0, size)
    assert len(whole) == size
    for width in (1, 2, 4, 8):
        for offset in range(size - width + 1):
            assert device.region_read(CONFIG, offset, width) == whole[offset : offset + width]


@given(data=writes)
def test_the_header_of_a_device_survives_any_writes(data: list[tuple[int, bytes]]) -> None:
    """Whatever a guest writes, the ids, class, pin, BAR type bits and capability pointer read as declared."""
    device = Everything()
    for offset, chunk in data:
        device.region_write(CONFIG, offset, chunk)
    assert read(device, 0x00, 4) == 0x5678_1234
    assert read(device, 0x08, 4) == 0x010802_9A
    assert read(device, 0x0E, 1) == 0
    assert read(device, 0x10, 4) & 0x3FFF == 0x4
    assert read(device, 0x18, 4) & 0x1F == 0x1
    assert read(device, 0x2C, 4) == 0xEF01_ABCD
    assert read(device, 0x34, 4) == 0x40
    assert read(device, 0x3D, 1) == 2


@pytest.mark.point("P70")
def test_command_has_the_six_bits_of_an_endpoint_and_no_other() -> None:
    device = Everything()
    write(device, COMMAND, 2, 0xFFFF)
    assert read(device, COMMAND, 2) == 0x0547
    write(device, COMMAND, 2, 0)
    assert read(device, COMMAND, 2) == 0


@pytest.mark.point("P70")
def test_status_says_whether_there_are_capabilities() -> None:
    assert read(Everything(), STATUS, 2) == 0x0010
    assert read(Bare(), STATUS, 2) == 0
    assert read(Bare(), 0x34, 1) == 0


@pytest.mark.point("P70")
def test_error_bits_of_status_are_cleared_by_writing_ones() -> None:
    device = Everything()
    device.config.store(STATUS, 2, 0xF910)
    write(device, STATUS, 2, 0x8100)
    assert read(device, STATUS, 2) == 0x7810


@pytest.mark.point("P71")
def test_interrupt_line_is_a_scratch_byte_and_the_pin_follows_the_declaration() -> None:
    device = Everything()
    write(device, 0x3C, 2, 0xFF0B)
    assert read(device, 0x3C, 2) == 0x020B
    assert device.interrupts[0] == 1
    assert read(Bare(), 0x3D, 1) == 0
    assert Bare().interrupts[0] == 0


@pytest.mark.point("P67", "P78")
@pytest.mark.parametrize(
    ("offset", "count"), [(256, 1), (255, 2), (0, 257), (2**64 - 1, 2), (2**64 - 1, 2**32 - 1)]
)
def test_an_access_past_the_end_is_refused(offset: int, count: int) -> None:
    with pytest.raises(RequestRefused, match="0x100 bytes"):
        Bare().region_read(CONFIG, offset, count)
    with pytest.raises(RequestRefused):
        Bare().region_write(CONFIG, offset, bytes(min(count, 1000)))


def test_hooks_run_for_writes_that_touch_their_bytes_and_after_a_reset() -> None:
    config, seen = ConfigSpace(), []
    config.define(0x40, bytes(8), mask=b"\xff" * 8)
    config.watch(0x42, 2, lambda: seen.append(config.load(0x40, 4)))
    config.write(0x40, b"\1\2")
    config.write(0x44, b"\5")
    assert seen == []
    config.write(0x41, b"\2\3")
    config.write(0x43, b"\4")
    assert seen == [0x00030201, 0x04030201]
    config.reset()
    assert seen[2:] == [0]
