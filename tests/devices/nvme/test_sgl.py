"""Scatter gather lists: every descriptor works, or fails with its own status (D07 to D10)."""

import os
import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outboard import Mapping
from outboard.devices.nvme.admin import ADMIN_COMMANDS
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.runs import DISCARDED, Run
from outboard.devices.nvme.sgl import LIMIT
from outboard.devices.nvme.sgl import runs as walk
from outboard.devices.nvme.spec import PAGE, AdminOpcode, IoOpcode
from outboard.devices.nvme.status import CommandFailed, Status
from outboard.errors import DmaUnmapped
from tests.devices.nvme.bench import RAM_ADDRESS, Bench
from tests.devices.nvme.driver import Driver, QueuePair, do_not_retry, ended
from tests.devices.nvme.test_transfer import pattern

BLOCK, BUCKET, SEGMENT, LAST = 0x00, 0x10, 0x20, 0x30
KEYED, TRANSPORT, OFFSET_BLOCK, OFFSET_SEGMENT, VENDOR = 0x40, 0x50, 0x01, 0x21, 0xF0
SGL, SGL_METADATA = 1 << 6, 2 << 6
NOWHERE = 0x9_0000_0000

Descriptor = tuple[int, int, int]
"""Identifier, address, length."""


def pack(*descriptors: Descriptor) -> bytes:
    return b"".join(
        struct.pack("<QI3xB", address, length, identifier) for identifier, address, length in descriptors
    )


class Lists:
    """Guest memory that holds SGL segments and nothing else; counts what is read of it."""

    def __init__(self, size: int = 1 << 16) -> None:
        self.bytes = bytearray(size)
        self.reads = 0

    def read(self, address: int, size: int) -> bytes:
        if address + size > len(self.bytes):
            raise DmaUnmapped(f"nothing at {address:#x}", address=address, size=size)
        self.reads += size
        return bytes(self.bytes[address : address + size])

    def put(self, address: int, *descriptors: Descriptor) -> None:
        data = pack(*descriptors)
        self.bytes[address : address + len(data)] = data

    def walk(self, first: Descriptor, length: int, *, reading: bool = True) -> list[Run]:
        low, high = struct.unpack("<QQ", pack(first))
        return walk(self, low, high, length, reading=reading)

    def fails(self, first: Descriptor, length: int = 4096) -> Status:
        with pytest.raises(CommandFailed) as caught:
            self.walk(first, length)
        assert caught.value.location == 24
        return caught.value.status


@pytest.fixture
def lists() -> Lists:
    return Lists()


@pytest.fixture
def pair(driver: Driver) -> QueuePair:
    return driver.create_queue_pair(1)


@pytest.mark.point("D07")
@given(
    pieces=st.lists(
        st.tuples(st.sampled_from([BLOCK, BLOCK, BUCKET]), st.integers(0, 1 << 50), st.integers(0, 2000)),
        min_size=1,
        max_size=40,
    ),
    cuts=st.lists(st.integers(1, 10), min_size=1, max_size=5),
    surplus=st.integers(0, 64),
    reading=st.booleans(),
)
def test_a_legal_list_finds_the_bytes_that_a_model_finds(
    pieces: list[tuple[int, int, int]], cuts: list[int], surplus: int, reading: bool
) -> None:
    """Any data descriptors, cut into any chain of segments, give their bytes in order, each once."""
    lists = Lists()
    described = pieces
    first = lay_out(lists, described, cuts)
    expected = [
        (DISCARDED if identifier == BUCKET else address, size)
        for identifier, address, size in described
        if identifier == BLOCK or reading
    ]
    length = sum(size for _, size in expected) - surplus
    if length <= 0:
        return
    assert by_byte(lists.walk(first, length, reading=reading)) == by_byte(expected)[:length]


def lay_out(lists: Lists, described: list[Descriptor], cuts: list[int]) -> Descriptor:
    """Put the descriptors into segments of so many each, in turn; what points to the first of them."""
    segments, turn = [], 0
    while described:
        count = cuts[turn % len(cuts)]
        segments.append(described[:count])
        described, turn = described[count:], turn + 1
    pointer: Descriptor | None = None
    for number, segment in reversed(list(enumerate(segments))):
        entries = segment + ([pointer] if pointer else [])
        lists.put(number * 0x200, *entries)
        pointer = (SEGMENT if pointer else LAST, number * 0x200, 16 * len(entries))
    assert pointer
    return pointer


def by_byte(runs: list[Run]) -> list[int]:
    return [address if address == DISCARDED else address + at for address, size in runs for at in range(size)]


@pytest.mark.point("D07")
@given(
    first=st.tuples(
        st.sampled_from([BLOCK, BUCKET, SEGMENT, LAST]) | st.integers(0, 255),
        st.integers(0, 600),
        st.integers(0, 600),
    ),
    garbage=st.lists(
        st.tuples(
            st.sampled_from([BLOCK, BUCKET, SEGMENT, SEGMENT, LAST]) | st.integers(0, 255),
            st.integers(0, 80).map(lambda n: 8 * n) | st.integers(0, (1 << 64) - 1),
            st.integers(0, 40).map(lambda n: 16 * n) | st.integers(0, (1 << 32) - 1),
        ),
        min_size=1,
        max_size=12,
    ),
    length=st.integers(1, 1 << 18),
    reading=st.booleans(),
)
def test_garbage_ends_in_a_named_status(
    first: Descriptor, garbage: list[Descriptor], length: int, reading: bool
) -> None:
    """Whatever a list holds, the walk ends: in ``length`` bytes, or in a named status.

    What it reads is bounded, also where segments chain in a circle.
    """
    lists = Lists(1024)
    lists.put(0, *(garbage * 64)[:64])
    status, runs = Status.SUCCESS, [(0, length)]
    try:
        runs = lists.walk(first, length, reading=reading)
    except CommandFailed as failure:
        status = failure.status
    assert status in (
        Status.SUCCESS,
        Status.SGL_DESCRIPTOR_TYPE_INVALID,
        Status.INVALID_SGL_SEGMENT_DESCRIPTOR,
        Status.INVALID_NUMBER_OF_SGL_DESCRIPTORS,
        Status.DATA_SGL_LENGTH_INVALID,
        Status.DATA_TRANSFER_ERROR,
    )
    assert sum(size for _, size in runs) == length
    assert all(size for _, size in runs)
    assert lists.reads <= 1024 * (LIMIT + length // PAGE + 1)


@pytest.mark.point("D07")
def test_one_descriptor_in_the_command_is_enough(lists: Lists) -> None:
    assert lists.walk((BLOCK, 0x5004, 8192), 8192) == [(0x5004, 8192)]
    assert lists.walk((BUCKET, 0, 8192), 8192) == [(DISCARDED, 8192)]


@pytest.mark.point("D07")
def test_descriptors_of_no_bytes_are_skipped(lists: Lists) -> None:
    lists.put(0, (BLOCK, 3, 0), (BLOCK, 0x1000, 512), (BUCKET, 0, 0), (BLOCK, 0x1200, 512), (BLOCK, 0, 0))
    assert lists.walk((LAST, 0, 80), 1024) == [(0x1000, 1024)]


@pytest.mark.point("D07")
def test_a_list_may_be_longer_than_the_data_and_the_rest_is_not_looked_at(lists: Lists) -> None:
    lists.put(0, (BLOCK, 0x1000, 512), (BLOCK, 0x3000, 4096), (VENDOR, 1, 1), (SEGMENT, 1, 1))
    assert lists.walk((SEGMENT, 0, 64), 1024) == [(0x1000, 512), (0x3000, 512)]
    assert lists.walk((BLOCK, 0x1000, 1 << 31), 512) == [(0x1000, 512)]


@pytest.mark.point("D07")
def test_a_list_shorter_than_the_data_has_an_invalid_length(lists: Lists) -> None:
    assert lists.fails((BLOCK, 0x1000, 4092)) == Status.DATA_SGL_LENGTH_INVALID
    lists.put(0, (BLOCK, 0x1000, 2048), (BLOCK, 0x2000, 2044))
    for pointer in (SEGMENT, LAST):
        assert lists.fails((pointer, 0, 32)) == Status.DATA_SGL_LENGTH_INVALID


@pytest.mark.point("D07")
def test_what_is_written_has_nothing_to_throw_away(lists: Lists) -> None:
    lists.put(0, (BUCKET, 0, 512), (BLOCK, 0x1000, 512))
    assert lists.walk((LAST, 0, 32), 512, reading=False) == [(0x1000, 512)]
    assert lists.walk((LAST, 0, 32), 1024, reading=True) == [(DISCARDED, 512), (0x1000, 512)]
    with pytest.raises(CommandFailed) as caught:
        lists.walk((LAST, 0, 32), 1024, reading=False)
    assert caught.value.status == Status.DATA_SGL_LENGTH_INVALID


@pytest.mark.point("D07")
@pytest.mark.parametrize(
    "identifier",
    [KEYED, KEYED | 0xF, TRANSPORT, VENDOR, OFFSET_BLOCK, OFFSET_SEGMENT, BUCKET | 1, LAST | 0xA],
)
def test_a_type_that_is_not_offered_is_invalid(lists: Lists, identifier: int) -> None:
    assert lists.fails((identifier, 0x1000, 4096)) == Status.SGL_DESCRIPTOR_TYPE_INVALID
    lists.put(0, (BLOCK, 0x1000, 512), (identifier, 0x2000, 4096))
    assert lists.fails((LAST, 0, 32)) == Status.SGL_DESCRIPTOR_TYPE_INVALID


@pytest.mark.point("D07")
def test_data_begins_at_any_byte_and_has_any_number_of_them(lists: Lists) -> None:
    assert lists.walk((BLOCK, 0x1003, 4097), 2) == [(0x1003, 2)]
    lists.put(0, (BLOCK, 0x1001, 1), (BUCKET, 0, 3), (BLOCK, 0x2002, 5), (BLOCK, 0x2007, 4096))
    assert lists.walk((LAST, 0, 64), 4100) == [(0x1001, 1), (DISCARDED, 3), (0x2002, 4096)]


@pytest.mark.point("D07")
@pytest.mark.parametrize("pointer", [SEGMENT, LAST])
@pytest.mark.parametrize(
    ("address", "length"), [(0x100, 0), (0x100, 8), (0x100, 24), (0x104, 16), (0x101, 16)]
)
def test_a_segment_has_whole_descriptors_from_a_quadword_on(
    lists: Lists, pointer: int, address: int, length: int
) -> None:
    assert lists.fails((pointer, address, length)) == Status.INVALID_SGL_SEGMENT_DESCRIPTOR
    lists.put(0, (BLOCK, 0x1000, 512), (pointer, address, length))
    assert lists.fails((SEGMENT, 0, 32)) == Status.INVALID_SGL_SEGMENT_DESCRIPTOR


@pytest.mark.point("D07")
@pytest.mark.parametrize("pointer", [SEGMENT, LAST])
def test_nothing_comes_after_the_last_segment(lists: Lists, pointer: int) -> None:
    lists.put(0, (BLOCK, 0x1000, 512), (pointer, 0x100, 16))
    lists.put(0x100, (BLOCK, 0x2000, 4096))
    assert lists.fails((LAST, 0, 32)) == Status.INVALID_SGL_SEGMENT_DESCRIPTOR
    assert lists.walk((SEGMENT, 0, 32), 4608) == [(0x1000, 512), (0x2000, 4096)]


@pytest.mark.point("D07")
@pytest.mark.parametrize("pointer", [SEGMENT, LAST])
def test_a_pointer_in_the_middle_of_a_segment_is_an_invalid_number(lists: Lists, pointer: int) -> None:
    lists.put(0, (BLOCK, 0x1000, 512), (pointer, 0x100, 16), (BLOCK, 0x2000, 4096))
    assert lists.fails((SEGMENT, 0, 48)) == Status.INVALID_NUMBER_OF_SGL_DESCRIPTORS


@pytest.mark.point("D07")
@pytest.mark.parametrize("first", [(SEGMENT, 0, 16), (LAST, 0x100, 0xFFFF_FFF0)])
def test_endless_lists_have_an_invalid_number(first: Descriptor) -> None:
    lists = Lists()
    lists.put(0, (SEGMENT, 0, 16))
    lists.put(0x100, *[(BLOCK, 0x1000, 0)] * 4000)
    assert lists.fails(first) == Status.INVALID_NUMBER_OF_SGL_DESCRIPTORS
    assert lists.reads <= 16 * (LIMIT + 300)


@pytest.mark.point("D07")
def test_as_many_descriptors_as_are_promised_can_be_used(lists: Lists) -> None:
    length, count = 8 * PAGE, LIMIT + 8
    lists.put(0, *((BLOCK, 64 * number, 4) for number in range(count - 1)), (BLOCK, 1 << 20, length))
    assert len(lists.walk((LAST, 0, 16 * count), length)) == count
    lists.put(0, *((BLOCK, 64 * number, 4) for number in range(count)), (BLOCK, 1 << 20, length))
    assert lists.fails((LAST, 0, 16 * (count + 1)), length) == Status.INVALID_NUMBER_OF_SGL_DESCRIPTORS


@pytest.mark.point("D07", "D04")
@pytest.mark.parametrize("address", [1 << 16, (1 << 16) - 16, (1 << 64) - 16, NOWHERE])
def test_a_segment_that_is_not_there_is_a_data_transfer_error(lists: Lists, address: int) -> None:
    assert lists.fails((LAST, address, 32)) == Status.DATA_TRANSFER_ERROR
    lists.put(0, (BLOCK, 0x1000, 512), (LAST, address, 32))
    assert lists.fails((SEGMENT, 0, 32)) == Status.DATA_TRANSFER_ERROR


def command(opcode: IoOpcode, size: int, first: Descriptor, flags: int = SGL, **more: int) -> Command:
    low, high = struct.unpack("<QQ", pack(first))
    return Command(opcode, flags=flags, nsid=1, prp1=low, prp2=high, cdw12=size // 512 - 1, **more)


def place(driver: Driver, *descriptors: Descriptor) -> int:
    """The address of a segment of these."""
    address = driver.ram.allocate(16 * len(descriptors), align=16)
    driver.ram.write(address, pack(*descriptors))
    return address


def chained(driver: Driver, *described: Descriptor) -> Descriptor:
    """A segment of the first descriptor and a last one of the others."""
    last = (LAST, place(driver, *described[1:]), 16 * len(described) - 16)
    return SEGMENT, place(driver, described[0], last), 32


def straight(driver: Driver, *described: Descriptor) -> Descriptor:
    return LAST, place(driver, *described), 16 * len(described)


@pytest.mark.point("D07")
@pytest.mark.parametrize("shape", [straight, chained])
@pytest.mark.parametrize("flags", [SGL, SGL_METADATA])
@pytest.mark.parametrize(("unit", "sizes"), [(4, [4, 508, 3584, 4000, 96]), (1, [1, 510, 3, 7581, 97])])
def test_scattered_data_is_written_compared_and_read(
    pair: QueuePair, shape: Callable[..., Descriptor], flags: int, unit: int, sizes: list[int]
) -> None:
    driver, data = pair.driver, pattern(8192)
    places = [driver.ram.allocate(size, offset=unit * number) for number, size in enumerate(sizes)]
    described, done = [], 0
    for address, size in zip(places, sizes, strict=True):
        driver.ram.write(address, data[done : done + size])
        described.append((BLOCK, address, size))
        done += size
    for opcode in (IoOpcode.WRITE, IoOpcode.COMPARE):
        assert ended(pair.execute(command(opcode, 8192, shape(driver, *described), flags))) == Status.SUCCESS
    for address, size in zip(places, sizes, strict=True):
        driver.ram.write(address, bytes(size))
    assert (
        ended(pair.execute(command(IoOpcode.READ, 8192, shape(driver, *described), flags))) == Status.SUCCESS
    )
    assert b"".join(driver.ram.read(*where) for where in zip(places, sizes, strict=True)) == data


@pytest.mark.point("D07")
def test_a_bit_bucket_throws_away_what_is_read(pair: QueuePair) -> None:
    driver, data = pair.driver, pattern(8192)
    buffer = driver.ram.allocate(8192)
    driver.ram.write(buffer, data)
    assert ended(pair.execute(command(IoOpcode.WRITE, 8192, (BLOCK, buffer, 8192)))) == Status.SUCCESS
    driver.ram.write(buffer, bytes(8192))
    pieces = ((BLOCK, buffer, 512), (BUCKET, NOWHERE, 7000), (BLOCK, buffer + 512, 680))
    assert ended(pair.execute(command(IoOpcode.READ, 8192, straight(driver, *pieces)))) == Status.SUCCESS
    assert driver.ram.read(buffer, 8192) == (data[:512] + data[7512:]).ljust(8192, b"\0")


@pytest.mark.point("D07")
def test_segments_and_data_may_lie_in_different_maps(bench: Bench, pair: QueuePair) -> None:
    bench.device.dma_map(Mapping(NOWHERE, PAGE, fd=os.dup(bench.fd)))
    driver, data = pair.driver, pattern(1024)
    buffer = driver.ram.allocate(512)
    halfway = RAM_ADDRESS + (8 << 20)
    first = straight(driver, (BLOCK, halfway - 256, 512), (BLOCK, buffer, 512))
    driver.ram.write(halfway - 256, data[:512])
    driver.ram.write(buffer, data[512:])
    assert ended(pair.execute(command(IoOpcode.WRITE, 1024, first))) == Status.SUCCESS
    driver.ram.write(RAM_ADDRESS + 0x100, pack((BLOCK, NOWHERE + 0x800, 1024)))
    through = (LAST, NOWHERE + 0x100, 16)
    assert ended(pair.execute(command(IoOpcode.READ, 1024, through))) == Status.SUCCESS
    assert driver.ram.read(RAM_ADDRESS + 0x800, 1024) == data


@pytest.mark.point("D07")
def test_deallocation_takes_its_ranges_from_a_list(pair: QueuePair) -> None:
    driver = pair.driver
    driver.ram.write(driver.data, b"\xff" * PAGE)
    assert ended(pair.execute(driver.rw(IoOpcode.WRITE, 0, 8, driver.data, PAGE))) == Status.SUCCESS
    driver.ram.write(driver.data, struct.pack("<IIQIIQ", 0, 1, 0, 0, 1, 2))
    ranges = straight(driver, (BLOCK, driver.data, 8), (BLOCK, driver.data + 8, 24))
    low, high = struct.unpack("<QQ", pack(ranges))
    deallocate = Command(
        IoOpcode.DATASET_MANAGEMENT, flags=SGL, nsid=1, prp1=low, prp2=high, cdw10=1, cdw11=4
    )
    assert ended(pair.execute(deallocate)) == Status.SUCCESS
    assert ended(pair.execute(command(IoOpcode.READ, PAGE, (BLOCK, driver.data, PAGE)))) == Status.SUCCESS
    holes = bytes(512) + b"\xff" * 512
    assert driver.ram.read(driver.data, PAGE) == holes * 2 + b"\xff" * 2048


@pytest.mark.point("D07", "D04")
@pytest.mark.parametrize("opcode", [IoOpcode.READ, IoOpcode.WRITE, IoOpcode.COMPARE])
def test_a_bad_list_fails_its_command_and_no_other(pair: QueuePair, opcode: IoOpcode) -> None:
    driver = pair.driver
    buffer = driver.ram.allocate(PAGE)
    bad = {
        (BLOCK, NOWHERE, PAGE): Status.DATA_TRANSFER_ERROR,
        straight(driver, (BLOCK, buffer, 512), (BLOCK, NOWHERE, 3584)): Status.DATA_TRANSFER_ERROR,
        (BLOCK, buffer, 512): Status.DATA_SGL_LENGTH_INVALID,
        (KEYED, buffer, PAGE): Status.SGL_DESCRIPTOR_TYPE_INVALID,
        (LAST, buffer, 8): Status.INVALID_SGL_SEGMENT_DESCRIPTOR,
    }
    for first, status in bad.items():
        completion = pair.execute(command(opcode, PAGE, first))
        assert ended(completion) == status
        assert do_not_retry(completion) == (status != Status.DATA_TRANSFER_ERROR)
    assert ended(pair.execute(command(opcode, PAGE, (BLOCK, buffer, PAGE)))) == Status.SUCCESS


@pytest.mark.point("D08")
@pytest.mark.parametrize("mptr", [0, 1, 0x1003, NOWHERE, (1 << 64) - 1])
@pytest.mark.parametrize("flags", [0, SGL, SGL_METADATA])
def test_blocks_without_metadata_have_no_use_for_a_metadata_pointer(
    pair: QueuePair, flags: int, mptr: int
) -> None:
    buffer = pair.driver.ram.allocate(512)
    first = (BLOCK, buffer, 512)
    if flags:
        completion = pair.execute(command(IoOpcode.READ, 512, first, flags, mptr=mptr))
    else:
        completion = pair.execute(Command(IoOpcode.READ, nsid=1, mptr=mptr, prp1=buffer))
    assert ended(completion) == Status.SUCCESS


@pytest.mark.point("D09")
@pytest.mark.parametrize("flags", [SGL, SGL_METADATA, 3 << 6])
@pytest.mark.parametrize("opcode", sorted(ADMIN_COMMANDS))
def test_an_admin_command_has_no_list(driver: Driver, opcode: AdminOpcode, flags: int) -> None:
    low, high = struct.unpack("<QQ", pack((BLOCK, driver.data, PAGE)))
    completion = driver.admin.execute(Command(opcode, flags=flags, prp1=low, prp2=high, cdw10=1))
    assert ended(completion) == Status.INVALID_FIELD
    assert do_not_retry(completion)


@pytest.mark.point("D10")
def test_no_controller_memory_is_claimed(driver: Driver) -> None:
    supported, location, size = 1 << 57, driver.bar.read32(0x38), driver.bar.read32(0x3C)
    assert not driver.bar.read64(0) & supported
    assert location == size == 0
