"""PRP walks, against a model and against garbage (D01 to D04)."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outboard.devices.nvme.prp import runs as walk
from outboard.devices.nvme.spec import PAGE
from outboard.devices.nvme.status import CommandFailed, Status
from outboard.errors import DmaUnmapped


class Lists:
    """Guest memory that holds PRP lists and nothing else."""

    def __init__(self) -> None:
        self.pages: dict[int, bytearray] = {}
        self.reads = 0

    def read(self, address: int, size: int) -> bytes:
        self.reads += size
        page = self.pages.get(address // PAGE)
        if page is None:
            raise DmaUnmapped(f"nothing at {address:#x}", address=address, size=size)
        start = address % PAGE
        assert start + size <= PAGE, "a list ends with its page"
        return bytes(page[start : start + size])

    def put(self, address: int, entries: list[int]) -> None:
        page = self.pages.setdefault(address // PAGE, bytearray(PAGE))
        struct.pack_into(f"<{len(entries)}Q", page, address % PAGE, *entries)


def build(pages: list[int], lists: Lists, places: list[int], offset: int) -> int:
    """Chain ``pages`` over lists at the page numbers ``places``, the first beginning at ``offset``."""
    first = places[0] * PAGE + offset
    at, room = first, (PAGE - offset) // 8
    for place in places[1:]:
        if len(pages) <= room:
            break
        lists.put(at, [*pages[: room - 1], place * PAGE])
        pages, at, room = pages[room - 1 :], place * PAGE, PAGE // 8
    lists.put(at, pages)
    return first


def pages_of(runs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Runs cut at page boundaries again, to compare with a model."""
    pieces = []
    for address, size in runs:
        while size:
            piece = min(size, PAGE - address % PAGE)
            pieces.append((address, piece))
            address += piece
            size -= piece
    return pieces


@pytest.mark.point("D01", "D03")
@given(
    offset=st.integers(0, PAGE // 4 - 1).map(lambda n: 4 * n),
    length=st.integers(1, 6 << 20) | st.integers(1, 5 * PAGE),
    list_offset=st.integers(0, PAGE // 8 - 1).map(lambda n: 8 * n),
    data=st.data(),
)
def test_a_legal_walk_finds_the_bytes_that_a_model_finds(
    offset: int, length: int, list_offset: int, data: st.DataObject
) -> None:
    """Any legal offset, length and placement of lists gives the pages in order, each byte once."""
    count = (offset + length - 1) // PAGE + 1
    base = data.draw(st.integers(1000, 1 << 40))
    step = data.draw(st.sampled_from([1, 2, 3]))
    pages = [(base + step * number) * PAGE for number in range(count)]
    lists = Lists()
    prp1, rest = pages[0] + offset, pages[1:]
    if len(rest) > 1:
        places = data.draw(st.permutations(range(1, 12)))
        prp2 = build(rest, lists, places, list_offset)
    else:
        prp2 = rest[0] if rest else data.draw(st.integers(0, (1 << 64) - 1))
    runs = walk(lists, prp1, prp2, length)
    expected, left = [], length
    for number, page in enumerate(pages):
        start = offset if number == 0 else 0
        size = min(left, PAGE - start)
        expected.append((page + start, size))
        left -= size
    assert pages_of(runs) == expected
    assert len(runs) == (1 if step == 1 else count), "neighbours are joined"


@pytest.mark.point("D01", "D02", "D03", "D04")
@given(
    prp1=st.integers(0, (1 << 64) - 1) | st.integers(0, 1 << 20).map(lambda n: n * 4),
    prp2=st.integers(0, (1 << 64) - 1) | st.integers(0, 8 * PAGE) | st.integers(0, 8).map(lambda n: n * PAGE),
    length=st.integers(1, 4 << 20) | st.integers(1, 4 * PAGE),
    content=st.lists(
        st.integers(0, 8).map(lambda n: n * PAGE) | st.integers(0, (1 << 64) - 1), min_size=1, max_size=8
    ),
)
def test_garbage_ends_in_a_named_status(prp1: int, prp2: int, length: int, content: list[int]) -> None:
    """Whatever the two words and the lists hold, the walk ends: in ``length`` bytes, or in a named status.

    What it reads is bounded by the length asked for, also where lists chain in a circle.
    """
    lists = Lists()
    for page in range(8):
        for at in range(0, PAGE, 8 * len(content)):
            lists.put(page * PAGE + at, content[: (PAGE - at) // 8])
    status, runs = Status.SUCCESS, [(0, length)]
    try:
        runs = walk(lists, prp1, prp2, length)
    except CommandFailed as failure:
        status = failure.status
    assert status in (Status.SUCCESS, Status.PRP_OFFSET_INVALID, Status.DATA_TRANSFER_ERROR)
    assert sum(size for _, size in runs) == length
    pages = length // PAGE + 2
    assert lists.reads <= 8 * (pages + pages // 511 + 2)


@pytest.mark.point("D01")
@pytest.mark.parametrize("prp1", [1, 2, 3, 0x1001])
def test_data_begins_on_a_dword(prp1: int) -> None:
    with pytest.raises(CommandFailed) as caught:
        walk(Lists(), prp1, 0, 4)
    assert (caught.value.status, caught.value.location) == (Status.PRP_OFFSET_INVALID, 24)


@pytest.mark.point("D02")
@pytest.mark.parametrize("prp2", [4, 0x1008, 0x1FFC])
def test_a_second_page_begins_with_the_page(prp2: int) -> None:
    with pytest.raises(CommandFailed) as caught:
        walk(Lists(), 0x1000, prp2, PAGE + 1)
    assert caught.value.status == Status.PRP_OFFSET_INVALID


@pytest.mark.point("D02")
def test_a_second_word_that_is_not_needed_is_not_looked_at() -> None:
    assert walk(Lists(), 0x1004, 0x3, PAGE - 4) == [(0x1004, PAGE - 4)]


@pytest.mark.point("D03")
@pytest.mark.parametrize(
    ("prp2", "entries"),
    [
        pytest.param(0x5004, [0x2000, 0x3000], id="list not on a quadword"),
        pytest.param(0x5000, [0x2008, 0x3000], id="entry not on a page"),
        pytest.param(0x5FF8, [0x6008], id="next list not on a page"),
    ],
)
def test_misaligned_lists_are_prp_offset_invalid(prp2: int, entries: list[int]) -> None:
    lists = Lists()
    lists.put(prp2 & ~7, entries)
    lists.put(0x6000, [0x2000, 0x3000])
    with pytest.raises(CommandFailed) as caught:
        walk(lists, 0x1000, prp2, 3 * PAGE)
    assert caught.value.status == Status.PRP_OFFSET_INVALID


@pytest.mark.point("D03")
def test_the_last_entry_of_a_page_is_data_if_nothing_comes_after_it() -> None:
    lists = Lists()
    lists.put(0x5FF0, [0x2000, 0x9000])
    assert walk(lists, 0x1000, 0x5FF0, 3 * PAGE) == [(0x1000, 2 * PAGE), (0x9000, PAGE)]


@pytest.mark.point("D03")
def test_a_list_of_one_entry_at_the_end_of_a_page_chains_at_once() -> None:
    lists = Lists()
    lists.put(0x5FF8, [0x6000])
    lists.put(0x6000, [0x8000, 0xA000])
    assert walk(lists, 0x1000, 0x5FF8, 3 * PAGE) == [(0x1000, PAGE), (0x8000, PAGE), (0xA000, PAGE)]


@pytest.mark.point("D04")
@pytest.mark.parametrize("chained", [False, True])
def test_a_list_that_cannot_be_read_is_a_data_transfer_error(chained: bool) -> None:
    lists = Lists()
    if chained:
        lists.put(0x5FF8, [0x6000])
    with pytest.raises(CommandFailed) as caught:
        walk(lists, 0x1000, 0x5FF8, 4 * PAGE)
    assert caught.value.status == Status.DATA_TRANSFER_ERROR
