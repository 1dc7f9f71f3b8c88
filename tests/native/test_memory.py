"""Loads, stores and copies do the same plain and compiled."""

import ctypes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outboard.native import memory
from outboard.native.jit import Entry, entry
from outboard.native.words import Block
from tests.native.conftest import Call

PATTERN = bytes(range(0x81, 0xC1))


@entry
def load(kind: int, address: int) -> int:
    if kind == 8:
        return memory.load8(address)
    if kind == 16:
        return memory.load16(address)
    if kind == 32:
        return memory.load32(address)
    if kind == 64:
        return memory.load64(address)
    if kind == 132:
        return memory.load_acquire32(address)
    return memory.load_acquire64(address)


@entry
def store(kind: int, address: int, value: int) -> int:
    if kind == 16:
        return memory.store16(address, value)
    if kind == 32:
        return memory.store32(address, value)
    if kind == 64:
        return memory.store64(address, value)
    if kind == 132:
        return memory.store_release32(address, value)
    return memory.store_release64(address, value)


@entry
def copy(to: int, source: int, size: int) -> int:
    return memory.copy(to, source, size)


@entry
def fill(to: int, value: int, size: int) -> int:
    return memory.fill(to, value, size)


@entry
def copy_ahead(to: int, source: int, size: int) -> int:
    return memory.copy_ahead(to, source, size, source + size)


@entry
def copy_stream(to: int, source: int, size: int) -> int:
    memory.copy_stream(to, source, size, 0)
    return memory.drain_stream()


@entry
def hint() -> int:
    memory.fence()
    memory.pause()
    memory.prefetch(0)
    return memory.prefetch(-1)


@pytest.mark.parametrize("kind", [8, 16, 32, 64, 132, 164])
def test_a_load_gives_the_bytes_unsigned_unless_all_64_are_taken(call: Call, kind: int) -> None:
    block = Block(64)
    block.bytes[:] = PATTERN
    size = kind % 100 // 8
    expected = int.from_bytes(PATTERN[8 : 8 + size], "little", signed=size == 8)
    assert call(load)(kind, block.address + 8) == expected


@pytest.mark.parametrize("kind", [16, 32, 64, 132, 164])
@pytest.mark.parametrize("value", [0, 1, -1, 0x1234_5678_9ABC_DEF0, -(1 << 63), (1 << 63) - 1])
def test_a_store_puts_the_low_bytes_and_touches_no_others(call: Call, kind: int, value: int) -> None:
    block = Block(64)
    block.bytes[:] = PATTERN
    size = kind % 100 // 8
    assert call(store)(kind, block.address + 8, value) == 0
    low = (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")
    assert bytes(block.bytes) == PATTERN[:8] + low + PATTERN[8 + size :]


@pytest.mark.parametrize(
    ("function", "alignment", "unit"),
    [(copy, 1, 1), (copy_ahead, 1, 64), (copy_stream, 64, 64)],
    ids=lambda value: getattr(value, "name", None),
)
@given(st.integers(0, 64), st.integers(0, 40), st.integers(0, 130))
def test_a_copy_moves_exactly_its_bytes(
    call_both: list[Call], function: Entry, alignment: int, unit: int, at: int, to: int, size: int
) -> None:
    """Whatever the alignment of the source, the bytes asked for are there, and those around are untouched."""
    size, to = size * 7 % 5000 if unit == 1 else size * unit, to * alignment
    content = bytes((number * 31 + at) & 0xFF for number in range(at + size))
    source, target = Block(16384), Block(16384)
    for call in call_both:
        source.bytes[: len(content)] = content
        target.bytes[:] = b"\x55" * 16384
        call(function)(target.address + to, source.address + at, size)
        assert bytes(target.bytes[to : to + size]) == content[at:]
        assert target.bytes[:to] == b"\x55" * to
        assert target.bytes[to + size :] == b"\x55" * (16384 - to - size)


@given(st.integers(0, 5000), st.integers(0, 5000), st.integers(-(1 << 63), (1 << 63) - 1))
def test_a_fill_sets_exactly_its_bytes_to_the_low_byte(
    call_both: list[Call], to: int, size: int, value: int
) -> None:
    """Exactly the bytes asked for are the low byte of the value."""
    target = Block(16384)
    for call in call_both:
        target.bytes[:] = bytes(16384)
        call(fill)(target.address + to, value, size)
        assert bytes(target.bytes) == bytes(to) + bytes([value & 0xFF]) * size + bytes(16384 - to - size)


def test_hints_are_taken_for_any_address(call: Call) -> None:
    assert call(hint)() == 0


@pytest.mark.parametrize("buffer", [bytearray(b"bytes"), memoryview(bytearray(b"--bytes"))[2:], b"bytes"])
def test_the_address_of_a_buffer_is_where_its_bytes_are(buffer: bytearray) -> None:
    assert ctypes.string_at(memory.address_of(buffer), 5) == b"bytes"


def test_asking_for_an_address_keeps_nothing_of_the_buffer() -> None:
    buffer = bytearray(b"grows")
    memory.address_of(buffer)
    buffer.extend(b" on")
    with pytest.raises(BufferError):
        memory.address_of(memoryview(bytes(64))[::2])
