"""Guest memory: mapping, copying, viewing, refusing."""

import ctypes
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outboard.dma import ADDRESS_SPACE, MAX_MESSAGE_TRANSFER, GuestMemory, Mapping
from outboard.errors import DmaForbidden, DmaUnmapped, RequestRefused
from outboard.native.translation import READ, WRITE, translate
from tests.raw import open_descriptors

PAGE = 4096


def memory_file(size: int, content: bytes = b"") -> int:
    fd = os.memfd_create("test")
    os.truncate(fd, size)
    os.pwrite(fd, content, 0)
    return fd


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    memory = GuestMemory()
    yield memory
    memory.unmap_all()


class Recorder:
    """The client's side of DMA by message: one bytearray at address 0."""

    def __init__(self, size: int) -> None:
        self.bytes = bytearray(size)

    def read(self, address: int, count: int) -> bytes:
        return bytes(self.bytes[address : address + count])

    def write(self, address: int, data: bytes) -> None:
        self.bytes[address : address + len(data)] = data


@pytest.mark.point("P90")
def test_reads_and_writes_reach_the_files_bytes_at_the_mapped_offset(memory: GuestMemory) -> None:
    fd = memory_file(4 * PAGE)
    keep = os.dup(fd)
    memory.map(Mapping(0x10_0000, PAGE, fd=fd, offset=2 * PAGE))
    memory.write(0x10_0010, b"written by the device")
    assert os.pread(keep, 21, 2 * PAGE + 0x10) == b"written by the device"
    os.pwrite(keep, b"written by the guest", 2 * PAGE + 0x100)
    assert memory.read(0x10_0100, 20) == b"written by the guest"
    os.close(keep)


@pytest.mark.point("P90")
def test_a_range_mapped_for_reading_refuses_writes_and_the_reverse(memory: GuestMemory) -> None:
    memory.map(Mapping(0, PAGE, writable=False, fd=memory_file(PAGE)))
    memory.map(Mapping(PAGE, PAGE, readable=False, fd=memory_file(PAGE)))
    memory.read(0, 1)
    memory.write(PAGE, b"x")
    with pytest.raises(DmaForbidden, match=r"writing 0x1 bytes at 0x0"):
        memory.write(0, b"x")
    with pytest.raises(DmaForbidden):
        memory.read(PAGE, 1)
    with pytest.raises(DmaForbidden):
        memory.view(0, 1, writable=True)


def test_a_view_of_a_read_only_range_cannot_be_written(memory: GuestMemory) -> None:
    memory.map(Mapping(0, PAGE, fd=memory_file(PAGE)))
    with pytest.raises(TypeError):
        memory.view(0, 8)[0] = 1


@pytest.mark.point("P99")
def test_a_view_dies_when_its_range_is_unmapped(memory: GuestMemory) -> None:
    memory.map(Mapping(0, PAGE, fd=memory_file(PAGE, b"alive")))
    view = memory.view(0, 5)
    assert bytes(view) == b"alive"
    assert memory.live_views == 1
    memory.unmap(0, PAGE)
    assert memory.live_views == 0
    with pytest.raises(ValueError, match="released"):
        view[0]


def test_a_slice_kept_beyond_unmap_is_reported_and_never_a_crash(
    memory: GuestMemory, caplog: pytest.LogCaptureFixture
) -> None:
    memory.map(Mapping(0, PAGE, fd=memory_file(PAGE, b"alive")))
    part = memory.view(0, 8)[2:4]
    memory.unmap(0, PAGE)
    assert "outlives" in caplog.text
    assert bytes(part) == b"iv"


@pytest.mark.point("P100", "D05")
def test_an_access_crosses_adjacent_ranges_of_different_files(memory: GuestMemory) -> None:
    memory.map(Mapping(0, PAGE, fd=memory_file(PAGE)))
    memory.map(Mapping(PAGE, PAGE, fd=memory_file(PAGE)))
    memory.write(PAGE - 3, b"crossing")
    assert memory.read(PAGE - 3, 8) == b"crossing"
    assert memory.read(PAGE, 5) == b"ssing"


@pytest.mark.point("P100")
def test_an_access_over_a_hole_is_refused_and_nothing_is_stored(memory: GuestMemory) -> None:
    memory.map(Mapping(0, PAGE, fd=memory_file(PAGE)))
    memory.map(Mapping(2 * PAGE, PAGE, fd=memory_file(PAGE)))
    with pytest.raises(DmaUnmapped, match="0x1000"):
        memory.write(PAGE - 4, bytes(8))
    with pytest.raises(DmaUnmapped):
        memory.read(PAGE - 4, 2 * PAGE)
    with pytest.raises(DmaUnmapped):
        memory.view(PAGE - 4, 8)
    memory.write(PAGE - 4, b"last")
    with pytest.raises(DmaUnmapped):
        memory.write(PAGE - 4, b"lost?!")
    assert memory.read(PAGE - 4, 4) == b"last"


@pytest.mark.point("P93")
@pytest.mark.parametrize(
    ("offset", "size"), [(0, 2 * PAGE), (PAGE, PAGE), (ADDRESS_SPACE - PAGE, PAGE), (1, PAGE)]
)
def test_a_descriptor_shorter_than_its_range_is_refused(memory: GuestMemory, offset: int, size: int) -> None:
    with pytest.raises(RequestRefused, match="0x1000 bytes") as caught:
        memory.map(Mapping(0, size, fd=memory_file(PAGE), offset=offset))
    assert caught.value.errno == errno.EINVAL
    assert memory.maps == ()


@pytest.mark.point("P93")
def test_descriptors_that_cannot_be_memory_are_refused_and_closed(memory: GuestMemory) -> None:
    before = open_descriptors()
    reader, writer = os.pipe()
    for fd in (
        reader,
        writer,
        os.eventfd(0),
        os.open("/dev/null", os.O_RDWR),
        os.open("/", os.O_RDONLY),
        9999,
    ):
        with pytest.raises(RequestRefused):
            memory.map(Mapping(0, PAGE, fd=fd))
    assert open_descriptors() == before


def test_a_writable_range_of_a_read_only_descriptor_is_refused(memory: GuestMemory) -> None:
    fd = memory_file(PAGE)
    read_only = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    os.close(fd)
    with pytest.raises(RequestRefused, match="not open for writing"):
        memory.map(Mapping(0, PAGE, fd=os.dup(read_only)))
    memory.map(Mapping(0, PAGE, writable=False, fd=read_only))
    assert memory.read(0, 4) == bytes(4)


@pytest.mark.point("P92")
@pytest.mark.parametrize(
    ("address", "size"), [(0, 0), (ADDRESS_SPACE - PAGE, 2 * PAGE), (ADDRESS_SPACE, PAGE)]
)
def test_a_range_of_no_size_or_past_the_address_space_is_refused(
    memory: GuestMemory, address: int, size: int
) -> None:
    with pytest.raises(RequestRefused):
        memory.map(Mapping(address, size))


@pytest.mark.point("P94")
def test_the_same_map_twice_is_one_and_an_overlap_changes_nothing(memory: GuestMemory) -> None:
    fd = memory_file(4 * PAGE)
    original = Mapping(PAGE, 2 * PAGE, fd=os.dup(fd), offset=PAGE)
    memory.map(original)
    memory.map(Mapping(PAGE, 2 * PAGE, fd=os.dup(fd), offset=PAGE))
    assert len(memory.maps) == 1
    for address, size in [(0, 2 * PAGE), (2 * PAGE, PAGE), (PAGE, PAGE), (0, 8 * PAGE), (PAGE, 2 * PAGE)]:
        with pytest.raises(RequestRefused) as caught:
            memory.map(Mapping(address, size))
        assert caught.value.errno == errno.EEXIST
    assert len(memory.maps) == 1
    os.close(fd)


@pytest.mark.point("P95")
def test_ranges_need_no_alignment(memory: GuestMemory) -> None:
    fd = memory_file(PAGE)
    os.pwrite(fd, b"odd", 0x123)
    memory.map(Mapping(0x777, 0x10, fd=fd, offset=0x123))
    assert memory.read(0x777, 3) == b"odd"


@pytest.mark.point("P96")
def test_thousands_of_ranges_of_one_file_cost_one_descriptor(memory: GuestMemory) -> None:
    before = open_descriptors()
    fd = memory_file(5000 * PAGE)
    for number in range(5000):
        memory.map(Mapping(2 * number * PAGE, PAGE, fd=os.dup(fd), offset=number * PAGE))
    memory.write(2 * 4999 * PAGE, b"last")
    assert os.pread(fd, 4, 4999 * PAGE) == b"last"
    assert open_descriptors() <= before + 2
    memory.unmap_all()
    os.close(fd)
    assert open_descriptors() == before


def test_a_file_that_has_grown_is_mapped_to_its_new_end(memory: GuestMemory) -> None:
    fd = memory_file(PAGE)
    memory.map(Mapping(0, PAGE, fd=os.dup(fd)))
    os.truncate(fd, 2 * PAGE)
    memory.map(Mapping(PAGE, PAGE, fd=os.dup(fd), offset=PAGE))
    memory.write(PAGE - 2, b"both")
    assert os.pread(fd, 4, PAGE - 2) == b"both"
    os.close(fd)


@pytest.mark.point("P98")
@pytest.mark.parametrize(("address", "size"), [(0, PAGE), (PAGE, PAGE), (0, 4 * PAGE), (8 * PAGE, PAGE)])
def test_only_exactly_what_was_mapped_can_be_unmapped(memory: GuestMemory, address: int, size: int) -> None:
    memory.map(Mapping(0, 2 * PAGE, fd=memory_file(2 * PAGE)))
    with pytest.raises(RequestRefused) as caught:
        memory.unmap(address, size)
    assert caught.value.errno == errno.ENOENT
    assert memory.read(0, 1) == b"\0"


@pytest.mark.point("P97")
def test_unmapped_memory_is_not_reached_any_more(memory: GuestMemory) -> None:
    memory.map(Mapping(0, PAGE, fd=memory_file(PAGE)))
    memory.unmap(0, PAGE)
    with pytest.raises(DmaUnmapped):
        memory.read(0, 1)
    with pytest.raises(DmaUnmapped):
        memory.write(0, b"x")


@pytest.mark.point("P106")
def test_nothing_is_reached_while_bus_mastering_is_off(memory: GuestMemory) -> None:
    memory.map(Mapping(0, PAGE, fd=memory_file(PAGE)))
    memory.enabled = False
    with pytest.raises(DmaForbidden, match="bus mastering"):
        memory.read(0, 1)
    memory.enabled = True
    assert memory.read(0, 1) == b"\0"


@pytest.mark.point("P91")
def test_a_range_without_descriptor_goes_by_message(memory: GuestMemory) -> None:
    memory.map(Mapping(0, PAGE))
    memory.map(Mapping(PAGE, PAGE, fd=memory_file(PAGE)))
    with pytest.raises(DmaUnmapped, match="share=on"):
        memory.read(0, 4)
    memory.remote = recorder = Recorder(PAGE)
    memory.write(PAGE - 4, b"farawayhere")
    assert recorder.bytes[-4:] == b"fara"
    assert memory.read(PAGE - 4, 11) == b"farawayhere"
    with pytest.raises(DmaUnmapped, match="by messages"):
        memory.view(0, 4)


@pytest.mark.point("P107")
def test_a_range_may_be_huge_but_one_access_by_message_may_not(memory: GuestMemory) -> None:
    memory.map(Mapping(0, 1 << 63))
    memory.remote = Recorder(PAGE)
    with pytest.raises(DmaForbidden, match="split"):
        memory.read(0, MAX_MESSAGE_TRANSFER + 1)


@given(
    st.lists(st.tuples(st.integers(0, 31), st.integers(1, 6)), max_size=10),
    st.integers(0, 40 * 64),
    st.integers(0, 40 * 64),
)
def test_memory_equals_a_model(ranges: list[tuple[int, int]], start: int, length: int) -> None:
    """An access succeeds exactly where every byte is mapped, and moves the bytes of the model."""
    unit = 64
    memory = GuestMemory()
    model: dict[int, int] = {}
    for first, count in ranges:
        addresses = range(first * unit, (first + count) * unit)
        content = bytes((first * 7 + at) & 0xFF for at in range(len(addresses)))
        try:
            memory.map(Mapping(addresses.start, len(addresses), fd=memory_file(len(content), content)))
        except RequestRefused:
            assert any(at in model for at in addresses)
        else:
            assert not any(at in model for at in addresses)
            model.update(zip(addresses, content, strict=True))
    wanted = range(start, start + max(length, 1))
    if all(at in model for at in wanted):
        assert memory.read(start, len(wanted)) == bytes(model[at] for at in wanted)
        memory.write(start, bytes(len(wanted)))
        assert memory.read(start, len(wanted)) == bytes(len(wanted))
    else:
        with pytest.raises(DmaUnmapped):
            memory.read(start, len(wanted))
        with pytest.raises(DmaUnmapped):
            memory.write(start, bytes(len(wanted)))
    memory.unmap_all()


def found(memory: GuestMemory, iova: int, size: int = 1, rights: int = READ) -> int:
    return translate(memory.translation.address, iova, size, rights)


def test_compiled_code_finds_the_files_bytes_under_their_guest_address(memory: GuestMemory) -> None:
    memory.map(
        Mapping(0x10_0000, PAGE, fd=memory_file(4 * PAGE, bytes(2 * PAGE) + b"first"), offset=2 * PAGE)
    )
    assert ctypes.string_at(found(memory, 0x10_0001), 4) == b"irst"
    memory.map(Mapping(0x20_0000, PAGE, fd=memory_file(PAGE, b"second")))
    assert ctypes.string_at(found(memory, 0x20_0000), 6) == b"second"
    assert found(memory, 0x10_0000 + PAGE) == found(memory, 0x10_0000, PAGE + 1) == 0
    memory.unmap(0x10_0000, PAGE)
    assert found(memory, 0x10_0000) == 0
    assert found(memory, 0x20_0000)
    memory.unmap_all()
    assert found(memory, 0x20_0000) == 0


def test_compiled_code_has_the_rights_the_client_gave(memory: GuestMemory) -> None:
    memory.map(Mapping(0, PAGE, writable=False, fd=memory_file(PAGE)))
    memory.map(Mapping(PAGE, PAGE, readable=False, fd=memory_file(PAGE)))
    assert [bool(found(memory, 0, rights=rights)) for rights in (READ, WRITE, READ | WRITE)] == [1, 0, 0]
    assert [bool(found(memory, PAGE, rights=rights)) for rights in (READ, WRITE, READ | WRITE)] == [0, 1, 0]


def test_compiled_code_finds_nothing_while_bus_mastering_is_off(memory: GuestMemory) -> None:
    memory.enabled = False
    memory.map(Mapping(0, PAGE, fd=memory_file(PAGE)))
    assert found(memory, 0) == 0
    memory.enabled = True
    assert found(memory, 0)
    memory.map(Mapping(PAGE, PAGE, fd=memory_file(PAGE)))
    assert found(memory, PAGE)
    memory.enabled = False
    assert found(memory, 0) == found(memory, PAGE) == 0


def test_compiled_code_does_not_see_what_it_could_not_reach(memory: GuestMemory) -> None:
    memory.map(Mapping(PAGE, PAGE))
    memory.map(Mapping((1 << 63) - PAGE // 2, PAGE, fd=memory_file(PAGE)))
    memory.map(Mapping(1 << 63 | PAGE, PAGE, fd=memory_file(PAGE)))
    memory.map(Mapping((1 << 63) - 3 * PAGE, PAGE, fd=memory_file(PAGE)))
    assert len(memory.translation) == 1
    assert found(memory, (1 << 63) - 3 * PAGE, PAGE)
    assert found(memory, PAGE) == found(memory, -(1 << 63) + PAGE) == 0


def test_compiled_code_reads_a_file_that_is_open_for_reading_only(memory: GuestMemory) -> None:
    fd = memory_file(PAGE, b"read")
    read_only = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    os.close(fd)
    memory.map(Mapping(PAGE, PAGE, writable=False, fd=read_only))
    assert ctypes.string_at(found(memory, PAGE), 4) == b"read"
    assert found(memory, PAGE, rights=WRITE) == 0


def test_thousands_of_ranges_are_found_each(memory: GuestMemory) -> None:
    first = memory.translation.address
    fd = memory_file(2000 * PAGE)
    order = [number * 7 % 2000 for number in range(2000)]
    for number in order:
        memory.map(Mapping(2 * number * PAGE, PAGE, fd=os.dup(fd), offset=number * PAGE))
    start = found(memory, 0)
    assert [found(memory, 2 * number * PAGE) - start for number in order] == [n * PAGE for n in order]
    for number in order[::2]:
        memory.unmap(2 * number * PAGE, PAGE)
    assert [bool(found(memory, 2 * number * PAGE)) for number in order] == [False, True] * 1000
    assert memory.translation.address == first
    os.close(fd)


def test_guest_memory_changes_only_while_its_users_let_go_of_it(memory: GuestMemory) -> None:
    events: list[str] = []

    @contextmanager
    def user(name: str) -> Iterator[None]:
        events.append(f"{name} stops")
        yield
        events.append(f"{name} goes on with {len(memory.maps)}, {memory.enabled}")

    memory.users += [lambda: user("a"), lambda: user("b")]
    memory.map(Mapping(0, PAGE, fd=memory_file(PAGE)))
    with pytest.raises(RequestRefused):
        memory.map(Mapping(0, PAGE // 2))
    memory.enabled = True
    assert events == ["a stops", "b stops", "b goes on with 1, True", "a goes on with 1, True"]
    events.clear()
    memory.enabled = False
    memory.enabled = True
    memory.unmap(0, PAGE)
    memory.map(Mapping(0, PAGE))
    memory.map(Mapping(PAGE, PAGE))
    memory.unmap_all()
    goes_on = [event.removeprefix("a goes on with ") for event in events if event.startswith("a goes")]
    assert goes_on == ["1, False", "1, True", "0, True", "1, True", "2, True", "0, True"]


def test_the_file_is_unmapped_although_compiled_code_knew_its_address(memory: GuestMemory) -> None:
    fd = memory_file(PAGE)
    assert found(memory, 0) == 0
    memory.map(Mapping(0, PAGE, fd=fd))
    assert found(memory, 0)
    with open("/proc/self/maps") as maps:
        assert "memfd:test" in maps.read()
    memory.unmap(0, PAGE)
    with open("/proc/self/maps") as maps:
        assert "memfd:test" not in maps.read()
