"""Guest addresses become ours exactly where a range with the rights is, plain and compiled."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outboard.native.jit import entry
from outboard.native.translation import LARGEST, READ, WRITE, Translation, translate
from outboard.native.words import Block
from tests.native.conftest import Call

PAGE = 4096
HOST = 0x7000_0000_0000
Range = tuple[int, int, int]


@entry
def find(table: int, iova: int, size: int, rights: int) -> int:
    return translate(table, iova, size, rights)


def host(start: int) -> int:
    return HOST + (start & 0xFFFF_FFFF)


def table_of(*ranges: Range) -> Translation:
    table = Translation()
    for start, size, rights in ranges:
        table.add(start, size, host=host(start), rights=rights)
    return table


def test_an_empty_table_has_nothing(call: Call) -> None:
    table = Translation()
    for iova in (0, 1, -1, LARGEST, -LARGEST - 1):
        assert call(find)(table.address, iova, 1, READ) == 0


@pytest.mark.parametrize("start", [0, PAGE, 0x8000_0000, LARGEST - 2 * PAGE])
def test_every_edge_of_a_range_is_exact(call: Call, start: int) -> None:
    size = 2 * PAGE
    table = table_of((start, size, READ))
    for iova in (start, start + 1, start + size - 1, start + size):
        for count in (1, 2, size - 1, size, size + 1, LARGEST):
            is_inside = iova < start + size and iova + count <= start + size
            expected = host(start) + iova - start if is_inside else 0
            assert call(find)(table.address, iova, count, READ) == expected
    for iova in (start - 1, -1, -start - 1, start - LARGEST - 1):
        assert call(find)(table.address, iova, 1, READ) == 0


def test_an_access_across_two_adjacent_ranges_is_not_found(call: Call) -> None:
    table = table_of((0, PAGE, READ), (PAGE, PAGE, READ))
    assert call(find)(table.address, PAGE - 1, 1, READ) == HOST + PAGE - 1
    assert call(find)(table.address, PAGE - 1, 2, READ) == 0
    assert call(find)(table.address, PAGE, PAGE, READ) == HOST + PAGE


def test_ranges_that_end_beyond_signed_addresses_are_left_out(call: Call) -> None:
    table = table_of(
        (LARGEST - 10, 10, READ), (LARGEST - 20, 100, READ), (1 << 63, 10, READ), (0, 1 << 63, READ)
    )
    assert len(table) == 1
    assert call(find)(table.address, LARGEST - 1, 1, READ)
    assert call(find)(table.address, -(1 << 63), 1, READ) == 0


def test_every_reader_sees_every_change(call: Call) -> None:
    table = Translation()
    readers = [table.address, table.reader(), table.reader()]
    table.add(0, PAGE, host=HOST, rights=WRITE)
    assert len(set(readers)) == 3
    assert [call(find)(reader, 5, 1, WRITE) for reader in readers] == [HOST + 5] * 3
    table.remove(0)
    assert [call(find)(reader, 5, 1, WRITE) for reader in readers] == [0] * 3


def test_a_table_that_is_not_enabled_finds_nothing_and_forgets_nothing(call: Call) -> None:
    table = table_of((0, PAGE, READ))
    assert call(find)(table.address, 0, 1, READ)
    table.enabled = False
    assert call(find)(table.address, 0, 1, READ) == 0
    table.add(PAGE, PAGE, host=HOST + PAGE, rights=READ)
    assert call(find)(table.address, PAGE, 1, READ) == 0
    table.enabled = True
    assert call(find)(table.address, PAGE, 1, READ) == HOST + PAGE


def test_the_range_hit_last_is_not_hit_after_it_is_gone(call: Call) -> None:
    table = table_of((0, PAGE, READ), (2 * PAGE, PAGE, READ))
    assert call(find)(table.address, 0, 1, READ)
    table.remove(0)
    assert call(find)(table.address, 0, 1, READ) == 0
    assert call(find)(table.address, 2 * PAGE, 1, READ)
    table.clear()
    assert call(find)(table.address, 2 * PAGE, 1, READ) == 0
    table.remove(12345)
    assert len(table) == 0


def test_ten_thousand_ranges_are_each_found(call: Call) -> None:
    table = table_of(*((number * 7919 % 10007 * PAGE * 2, PAGE, READ) for number in range(10000)))
    held = {number * 7919 % 10007 for number in range(10000)}
    found = [call(find)(table.address, number * 2 * PAGE + 1, PAGE - 1, READ) for number in range(10007)]
    assert found == [host(number * 2 * PAGE) + 1 if number in held else 0 for number in range(10007)]


def test_who_looks_up_an_address_to_write_marks_its_pages(call: Call) -> None:
    start, pages = 0x10000 + 512, Block(64)
    table = table_of((start, 8 * PAGE, READ | WRITE), (0x8000_0000, PAGE, READ | WRITE))

    def marked() -> list[int]:
        found = [number for number, byte in enumerate(pages.bytes) if byte]
        pages.bytes[:] = bytes(64)
        return found

    call(find)(table.address, start, PAGE, WRITE)
    assert marked() == []
    table.log(start, pages.address)
    table.log(start + 1, pages.address)  # where no range begins: nothing
    table.log(1 << 40, pages.address)
    call(find)(table.address, start, 1, READ)
    assert marked() == []
    call(find)(table.address, start, 1, READ | WRITE)
    assert marked() == [0]
    call(find)(table.address, start + 3 * PAGE, 2 * PAGE, WRITE)
    assert marked() == [3, 4, 5]
    call(find)(table.address, start + 8 * PAGE - 1, 1, WRITE)
    assert marked() == [8]
    call(find)(table.address, start + 8 * PAGE - 1, 2, WRITE)
    call(find)(table.address, 0x8000_0000, 1, WRITE)
    assert marked() == []
    table.log(start, 0)
    call(find)(table.address, start, 1, WRITE)
    assert marked() == []


unit = st.integers(0, 40)


@given(
    st.lists(st.tuples(unit, st.integers(1, 4), st.sampled_from([READ, WRITE, READ | WRITE]), st.booleans())),
    st.lists(
        st.tuples(st.integers(-5, 200), st.integers(1, 30), st.sampled_from([READ, WRITE, READ | WRITE]))
    ),
)
def test_a_table_equals_a_model(
    call_both: list[Call], changes: list[tuple[int, int, int, bool]], questions: list[Range]
) -> None:
    """After any adding and removing, an access is found exactly if one range with the rights holds it."""
    table = Translation()
    model: dict[int, tuple[int, int]] = {}
    for start, size, rights, adds in changes:
        start, size = start * 4, size * 4
        if adds and all(start + size <= other or start >= other + its for other, (its, _) in model.items()):
            table.add(start, size, host=HOST + start, rights=rights)
            model[start] = size, rights
        elif not adds:
            table.remove(start)
            model.pop(start, None)
        for call in call_both:
            call(find)(table.address, start, 1, READ)
    for iova, size, rights in questions:
        held = any(
            start <= iova and iova + size <= start + length and rights & allowed == rights
            for start, (length, allowed) in model.items()
        )
        expected = HOST + iova if held else 0
        assert [call(find)(table.address, iova, size, rights) for call in call_both] == [expected] * len(
            call_both
        )
