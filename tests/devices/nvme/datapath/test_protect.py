"""Blocks with metadata, protection information in all its types, against a model in plain Python (N13, D08).

Memory is served by the compiled loop, what it cannot reach by Python: both have to do the same.
"""

import itertools
import struct
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from outboard.devices.nvme import Namespace, Protection
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.layouts import ERROR_ENTRY
from outboard.devices.nvme.spec import IoOpcode
from outboard.devices.nvme.status import Status
from outboard.storage import RamStorage
from tests.devices.nvme.bench import Bench
from tests.devices.nvme.conftest import MakeBench
from tests.devices.nvme.driver import PAGE, ended
from tests.devices.nvme.protected import ACTION, APPLICATION, GUARD, REFERENCE, Model, Request

BLOCKS = 8
MOST = 3
"""Blocks of a command."""

OPCODES = [IoOpcode.READ, IoOpcode.WRITE, IoOpcode.COMPARE, IoOpcode.WRITE_ZEROES, IoOpcode.VERIFY]
FORMATS = ((512, 8, 16), (4096, 8, 16), (512, 16, 64), (4096, 16, 64), (4096, 64, 16), (4096, 64, 64))
NOWHERE = 0x9_0000_0000
SCRATCH = 1 << 20
"""Guest memory from here on is used again by each command."""


class OutOfReach(RamStorage):
    """Memory that compiled code does not get to."""

    fast = None


def spaces(storage: type[RamStorage]) -> Iterator[Namespace]:
    """One namespace for each way in which blocks can be protected, and for metadata that is not."""
    for (size, metadata, guard), extended in itertools.product(FORMATS, (False, True)):
        kinds: list[Protection | None] = [None]
        kinds += [
            Protection(type, first, guard) for type, first in itertools.product((1, 2, 3), (False, True))
        ]
        for protection in kinds:
            yield Namespace(
                storage((size + metadata) * BLOCKS), size, metadata, extended, protection=protection
            )


class Host:
    """A driver that moves blocks and their metadata in every way there is."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.driver = bench.driver.enable()
        self.pair = self.driver.create_queue_pair(1)
        self.models = {nsid: Model(space) for nsid, space in bench.device.subsystem.namespaces.items()}

    def execute(self, nsid: int, request: Request, *, psdt: int = 0, offset: int = 0) -> Status:
        """Execute a command on device and model; both have to agree on everything."""
        model, ram = self.models[nsid], self.driver.ram
        expected, lba = model.execute(request)
        ram.rewind(SCRATCH)
        moves = request.opcode not in (IoOpcode.WRITE_ZEROES, IoOpcode.VERIFY)
        carried = model.carried(request.info) and moves
        behind = carried and model.space.extended
        apart = carried and not model.space.extended
        blocks, metadata = list(request.data), list(request.metadata)
        if request.opcode == IoOpcode.READ:
            blocks = [b"\xee" * model.space.block_size] * request.blocks
            metadata = [b"\xee" * model.space.metadata] * request.blocks
        data = b"".join(itertools.chain(*zip(blocks, metadata, strict=True)) if behind else blocks)
        buffer = ram.allocate(len(data) + PAGE, offset=offset)
        ram.write(buffer, data)
        more = b"".join(metadata) if apart else b""
        unaligned = {0: 4, 1: 3, 2: 4}[psdt]
        beside = ram.allocate(len(more) + 8, offset=unaligned)
        ram.write(beside, more)
        command = self._command(nsid, request, buffer, data, beside, more, psdt)
        completion = self.pair.execute(command)
        assert ended(completion) == expected, (request, model.space)
        if expected != Status.SUCCESS:
            entry = ERROR_ENTRY.decode(self.bench.device.state.errors.entries[0])
            assert (entry["lba"], entry["nsid"]) == (request.slba if lba is None else lba, nsid)
        if request.opcode == IoOpcode.READ and expected == Status.SUCCESS:
            stored = [model.block(request.slba + number) for number in range(request.blocks)]
            parts = itertools.chain(*stored) if behind else (block for block, _ in stored)
            data, more = b"".join(parts), b"".join(part for _, part in stored) if apart else b""
        assert ram.read(buffer, len(data)) == data
        assert ram.read(beside, len(more)) == more
        self._compare_storage(model)
        return expected

    def _command(
        self, nsid: int, request: Request, buffer: int, data: bytes, beside: int, more: bytes, psdt: int
    ) -> Command:
        cdw12 = request.info << 26
        command = self.driver.rw(
            request.opcode, request.slba, request.blocks, buffer, len(data), nsid=nsid, cdw12=cdw12
        )
        command.cdw3, command.cdw14 = request.reference >> 32, request.reference & 0xFFFFFFFF
        command.cdw15 = request.application | request.mask << 16
        command.mptr = beside if more else NOWHERE
        command.flags = psdt << 6
        if psdt:
            command.prp1, command.prp2 = buffer, len(data)
        if psdt == 2 and more:
            command.mptr = self.driver.ram.allocate(16)
            self.driver.ram.write(command.mptr, struct.pack("<QII", beside, len(more), 0))
        return command

    @staticmethod
    def _compare_storage(model: Model) -> None:
        """What is below is what the model holds, protection information inverted."""
        space = model.space
        start, end = model.span
        stored = [model.block(lba) for lba in range(BLOCKS)]
        flipped = (
            part[:start] + bytes(byte ^ 0xFF for byte in part[start:end]) + part[end:] for _, part in stored
        )
        assert space.storage.read(0, BLOCKS * space.block_size) == b"".join(block for block, _ in stored)
        below = space.storage.read(space.metadata_offset, BLOCKS * space.metadata)
        assert below == b"".join(flipped)


@st.composite
def requests(draw: st.DrawFn, host: Host) -> tuple[int, Request, int, int]:
    """A command, more often than not one that passes: namespace, command, PSDT, offset in a page."""
    nsid = draw(st.sampled_from(sorted(host.models)))
    model = host.models[nsid]
    space = model.space
    opcode = draw(st.sampled_from(OPCODES))
    blocks = draw(st.integers(1, MOST))
    slba = draw(st.integers(0, BLOCKS - blocks))
    wide = space.protection is not None and space.protection.guard == 64
    most = (1 << 48) - 1 if wide else (1 << 32) - 1
    request = Request(
        opcode,
        slba,
        blocks,
        info=draw(st.integers(0, 15)),
        application=draw(st.sampled_from([0, 0x1234, 0xFFFF])),
        mask=draw(st.sampled_from([0, 0x00FF, 0xFFFF])),
        reference=draw(st.sampled_from([slba, slba, slba, 7, most - 1])),
    )
    data, metadata = [], []
    for number in range(blocks):
        block = bytes([draw(st.integers(0, 3))]) * space.block_size
        plain = bytes([draw(st.integers(0, 1))]) * space.metadata
        if opcode == IoOpcode.COMPARE and draw(st.booleans()):
            block, plain = model.block(slba + number)
        if space.protection is not None:
            plain = model.protected(request, number, block, plain)
            plain = draw(damaged(model, plain))
        data.append(block)
        metadata.append(plain)
    request = Request(**{**vars(request), "data": tuple(data), "metadata": tuple(metadata)})
    psdt = draw(st.integers(0, 2))
    return nsid, request, psdt, draw(st.sampled_from([0, 4, 512, PAGE - 4]))


@st.composite
def damaged(draw: st.DrawFn, model: Model, metadata: bytes) -> bytes:
    """Metadata with a field of its protection information changed, or with tags that say: do not check."""
    start, end = model.span
    raw = bytearray(metadata)
    guard = 8 if end - start == 16 else 2
    fields = {"guard": (0, guard), "application": (guard, guard + 2), "reference": (guard + 2, end - start)}
    for name in draw(st.sampled_from([(), (), (), ("guard",), ("application",), ("reference",)])):
        first, end_of_field = fields[name]
        raw[start + draw(st.integers(first, end_of_field - 1))] ^= 1
    if draw(st.integers(0, 4)) == 0:
        first, last = fields["application"]
        raw[start + first : start + last] = b"\xff" * 2
        if draw(st.booleans()):
            raw[start + last : end] = b"\xff" * (end - start - last)
    return bytes(raw)


def compare_with_the_model(bench: Bench, examples: int) -> None:
    host = Host(bench)

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def run(data: st.DataObject) -> None:
        for _ in range(data.draw(st.integers(1, 4))):
            nsid, request, psdt, offset = data.draw(requests(host))
            host.execute(nsid, request, psdt=psdt, offset=offset)

    run()


@pytest.mark.point("N13", "D08")
@pytest.mark.parametrize("storage", [RamStorage, OutOfReach])
def test_every_command_does_what_the_model_does(make_bench: MakeBench, storage: type[RamStorage]) -> None:
    compare_with_the_model(make_bench(*spaces(storage)), 300)


DAMAGE = {
    "none": (),
    "guard": ((0, 0x01),),
    "application tag": ((-5, 0x80),),
    "application tag beyond its mask": ((-5, 0x01),),
    "reference tag": ((-1, 0x01),),
    "no checks": ((-5, 0x00), (-6, 0x00)),
    "no checks at all": tuple((at, 0x00) for at in range(-6, 0)),
}
"""Where a narrow tuple is damaged, from its end, and by which bits; 0: the byte becomes FFh."""


def spoil(metadata: bytes, damage: str, wide: bool) -> bytes:
    raw = bytearray(metadata)
    for at, bits in DAMAGE[damage]:
        if wide and at < -4:
            at -= 2
        raw[at] = raw[at] ^ bits if bits else 0xFF
    if wide and damage == "no checks at all":
        raw[-6:] = b"\xff" * 6
    return bytes(raw)


@pytest.mark.point("N13", "D08")
@pytest.mark.parametrize("storage", [RamStorage, OutOfReach])
@pytest.mark.parametrize("extended", [False, True], ids=["apart", "extended"])
@pytest.mark.parametrize(("metadata", "guard"), [(8, 16), (16, 64)], ids=["guard16", "guard64"])
def test_each_check_finds_what_it_is_for_and_nothing_else(
    make_bench: MakeBench, storage: type[RamStorage], metadata: int, guard: int, extended: bool
) -> None:
    made = [
        Namespace(storage(BLOCKS << 10), 512, metadata, extended, protection=Protection(type, guard=guard))
        for type in (1, 2, 3)
    ]
    host = Host(make_bench(*made))
    found = set()
    for nsid, action, checks, damage in itertools.product(
        host.models, (0, ACTION), range(GUARD | APPLICATION | REFERENCE | 1), DAMAGE
    ):
        model = host.models[nsid]
        block = b"protected block " * 32
        request = Request(IoOpcode.WRITE, 5, 1, action | checks, 0x12F0, 0xFFF0, 5, (block,))
        metadata_given = spoil(model.protected(request, 0, block, bytes(metadata)), damage, guard == 64)
        request = Request(**{**vars(request), "metadata": (metadata_given,)})
        found.add(host.execute(nsid, request))
        model.data[5], model.metadata[5] = block, metadata_given
        space = model.space
        space.storage.write(5 * 512, block)
        space.storage.write(
            space.metadata_offset + 5 * metadata, bytes(byte ^ 0xFF for byte in metadata_given)
        )
        for opcode in (IoOpcode.READ, IoOpcode.COMPARE, IoOpcode.VERIFY):
            found.add(host.execute(nsid, Request(**{**vars(request), "opcode": opcode})))
    assert found == {
        Status.SUCCESS,
        Status.GUARD_CHECK_ERROR,
        Status.APPLICATION_TAG_CHECK_ERROR,
        Status.REFERENCE_TAG_CHECK_ERROR,
        Status.INVALID_PROTECTION_INFORMATION,
    }


@pytest.mark.soak
@pytest.mark.point("N13", "D08")
@pytest.mark.parametrize("storage", [RamStorage, OutOfReach])
def test_every_command_does_what_the_model_does_at_length(
    make_bench: MakeBench, storage: type[RamStorage]
) -> None:
    compare_with_the_model(make_bench(*spaces(storage)), 20_000)


PROTECTED = Protection(type=1)


def host_of(make_bench: MakeBench, *, extended: bool = False, blocks: int = 1024) -> Host:
    space = Namespace(RamStorage(blocks * 520), 512, 8, extended, protection=PROTECTED)
    return Host(make_bench(space, mdts=7))


def write_of(slba: int, blocks: int, info: int = ACTION) -> Request:
    data = tuple(bytes([number + 1]) * 512 for number in range(blocks))
    return Request(
        IoOpcode.WRITE, slba, blocks, info, reference=slba, data=data, metadata=(bytes(8),) * blocks
    )


@pytest.mark.point("N13")
def test_what_is_in_order_never_comes_to_python(make_bench: MakeBench) -> None:
    host = host_of(make_bench, blocks=BLOCKS)
    host.execute(1, write_of(2, 3))
    for info in (ACTION | GUARD | REFERENCE, GUARD | REFERENCE):
        host.execute(1, Request(IoOpcode.READ, 2, 3, info, reference=2))
    counted = host.bench.device.state.plane.statistics
    assert (counted["diverted"], counted["writes"], counted["reads"]) == (0, 1, 2)
    assert (counted["bytes_written"], counted["bytes_read"]) == (3 * 512, 2 * 3 * 512)


@pytest.mark.point("N13")
def test_a_bad_write_among_good_ones_ends_alone(make_bench: MakeBench) -> None:
    host = host_of(make_bench, blocks=64)
    driver, model = host.driver, host.models[1]
    buffers, bad = [driver.ram.allocate(PAGE) for _ in range(12)], (0, 5, 11)
    cids = []
    for number, buffer in enumerate(buffers):
        request = Request(IoOpcode.WRITE, number, 1, GUARD, reference=number)
        block = bytes([number + 1]) * 512
        driver.ram.write(buffer, block)
        metadata = model.protected(request, 0, block, bytes(8))
        driver.ram.write(buffer + 1024, spoil(metadata, "guard" if number in bad else "none", wide=False))
        command = driver.rw(IoOpcode.WRITE, number, 1, buffer, 512, cdw12=GUARD << 26, mptr=buffer + 1024)
        cids.append(host.pair.submit(command))
    host.pair.ring()
    found = [ended(host.pair.wait(cid)) for cid in cids]
    assert [number for number, status in enumerate(found) if status == Status.GUARD_CHECK_ERROR] == [*bad]
    stored = [model.space.storage.read(number * 512, 512) for number in range(12)]
    assert stored == [bytes([0 if number in bad else number + 1]) * 512 for number in range(12)]


@pytest.mark.point("N13")
def test_a_damaged_block_is_a_media_error_and_a_bad_write_is_none(make_bench: MakeBench) -> None:
    host = host_of(make_bench, blocks=BLOCKS)
    request = write_of(0, 3, GUARD)
    assert host.execute(1, request) == Status.GUARD_CHECK_ERROR
    assert host.bench.device.state.health.media_errors == 0
    host.execute(1, write_of(0, 3))
    model = host.models[1]
    model.data[1] = b"\0" + model.data[1][1:]
    model.space.storage.write(512, b"\0")
    assert host.execute(1, Request(IoOpcode.READ, 0, 3, GUARD)) == Status.GUARD_CHECK_ERROR
    assert host.bench.device.state.health.media_errors == 1


@pytest.mark.point("N07", "N13")
def test_deallocated_blocks_are_zeros_that_nobody_checks(make_bench: MakeBench) -> None:
    host = host_of(make_bench, blocks=BLOCKS)
    model, driver = host.models[1], host.driver
    host.execute(1, write_of(0, 3))
    driver.ram.write(driver.data, struct.pack("<IIQ", 0, 1, 1))
    deallocate = Command(IoOpcode.DATASET_MANAGEMENT, nsid=1, prp1=driver.data, cdw11=1 << 2)
    assert ended(host.pair.execute(deallocate)) == Status.SUCCESS
    model.deallocate(1)
    zeroes = driver.rw(IoOpcode.WRITE_ZEROES, 2, 1, driver.data, 512, cdw12=(ACTION << 26) | 1 << 25)
    assert ended(host.pair.execute(zeroes)) == Status.SUCCESS
    model.deallocate(2)
    for reference in (0, 1, 2):
        read = Request(IoOpcode.READ, reference, 1, GUARD | APPLICATION | REFERENCE, reference=reference)
        assert host.execute(1, read) == Status.SUCCESS


@pytest.mark.point("N08", "N13")
def test_write_zeroes_of_very_many_blocks_protects_each(make_bench: MakeBench) -> None:
    host = host_of(make_bench, blocks=10_000)
    driver = host.driver
    zeroes = driver.rw(IoOpcode.WRITE_ZEROES, 100, 9000, driver.data, 512, cdw12=ACTION << 26, cdw14=100)
    assert ended(host.pair.execute(zeroes)) == Status.SUCCESS
    space = host.models[1].space
    stored = space.inverted(space.storage.read(space.metadata_offset + 99 * 8, 9002 * 8))
    tuples = [*struct.iter_unpack(">HHI", stored)]
    assert tuples[0] == tuples[-1] == (0xFFFF, 0xFFFF, 0xFFFF_FFFF)
    assert tuples[1:-1] == [(0, 0, lba) for lba in range(100, 9100)]


@pytest.mark.point("N01", "D06", "N13")
@pytest.mark.parametrize("extended", [False, True])
def test_blocks_end_with_the_namespace_and_transfers_with_mdts(make_bench: MakeBench, extended: bool) -> None:
    host = host_of(make_bench, extended=extended, blocks=1200)
    driver = host.driver

    def status(slba: int, blocks: int, info: int = 0) -> Status:
        driver.ram.rewind(SCRATCH)
        buffer = driver.ram.allocate(1 << 20)
        command = driver.rw(IoOpcode.READ, slba, blocks, buffer, blocks * 520, cdw12=info << 26)
        command.mptr = driver.ram.allocate(16 << 10)
        return ended(host.pair.execute(command))

    assert status(1199, 1) == status(176, 1024, ACTION) == Status.SUCCESS
    assert status(1199, 2) == status(1 << 63, 1) == Status.LBA_OUT_OF_RANGE
    assert status(176, 1024) == (Status.INVALID_FIELD if extended else Status.SUCCESS)
    assert status(0, 1008) == Status.SUCCESS
    assert status(0, 1025, ACTION) == Status.INVALID_FIELD


HALFWAY = 1 << 32
"""Where one mapping of guest memory ends and the next begins."""


@pytest.mark.point("D08")
@pytest.mark.parametrize(
    ("psdt", "pointer", "expected"),
    [
        (0, HALFWAY - 12, Status.SUCCESS),
        (1, HALFWAY - 11, Status.SUCCESS),
        (0, HALFWAY - 11, Status.INVALID_FIELD),
        (0, NOWHERE, Status.DATA_TRANSFER_ERROR),
        (1, (1 << 64) - 8, Status.DATA_TRANSFER_ERROR),
        (2, NOWHERE, Status.DATA_TRANSFER_ERROR),
        (2, (1 << 64) - 8, Status.DATA_TRANSFER_ERROR),
        (2, HALFWAY + 4, Status.INVALID_SGL_SEGMENT_DESCRIPTOR),
    ],
)
@pytest.mark.parametrize("opcode", [IoOpcode.READ, IoOpcode.WRITE])
def test_metadata_pointers_anywhere(
    make_bench: MakeBench, opcode: IoOpcode, psdt: int, pointer: int, expected: Status
) -> None:
    host = host_of(make_bench)
    driver = host.driver
    command = driver.rw(opcode, 0, 3, driver.data, 3 * 512, mptr=pointer, flags=psdt << 6)
    if psdt:
        command.prp2 = 3 * 512
    assert ended(host.pair.execute(command)) == expected


def descriptor(address: int, size: int, identifier: int = 0) -> bytes:
    return struct.pack("<QI3xB", address, size, identifier)


@pytest.mark.point("D08")
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (descriptor(HALFWAY - 12, 24), Status.SUCCESS),
        (descriptor(HALFWAY + 64, 24), Status.SUCCESS),
        (descriptor(HALFWAY + 64, 32), Status.SUCCESS),
        (descriptor(HALFWAY + 64, 16), Status.METADATA_SGL_LENGTH_INVALID),
        (descriptor(HALFWAY + 65, 24), Status.SUCCESS),
        (descriptor(HALFWAY + 64, 24, 0x40), Status.SGL_DESCRIPTOR_TYPE_INVALID),
        (descriptor(NOWHERE, 24), Status.DATA_TRANSFER_ERROR),
        (descriptor(NOWHERE, 24, 0x10), Status.SUCCESS),
    ],
)
def test_descriptors_of_metadata_anywhere(make_bench: MakeBench, given: bytes, expected: Status) -> None:
    host = host_of(make_bench)
    driver = host.driver
    driver.ram.write(HALFWAY, given)
    command = driver.rw(IoOpcode.READ, 0, 3, driver.data, 3 * 512, mptr=HALFWAY, flags=2 << 6)
    command.prp2 = 3 * 512
    assert ended(host.pair.execute(command)) == expected
    if expected == Status.SUCCESS and given[15] == 0:
        assert driver.ram.read(int.from_bytes(given[:8], "little"), 24) == b"\xff" * 24


@pytest.mark.point("D04", "N13")
@pytest.mark.parametrize("extended", [False, True])
@pytest.mark.parametrize("psdt", [0, 1])
def test_data_that_is_not_there_is_found_out_before_anything_is_stored(
    make_bench: MakeBench, extended: bool, psdt: int
) -> None:
    host = host_of(make_bench, extended=extended)
    driver = host.driver
    beside = driver.ram.allocate(64)
    for opcode in (IoOpcode.READ, IoOpcode.WRITE):
        command = Command(opcode, nsid=1, prp1=NOWHERE, prp2=520, flags=psdt << 6, mptr=beside)
        command.prp2 = 520 if extended else 512
        assert ended(host.pair.execute(command)) == Status.DATA_TRANSFER_ERROR
    assert not any(host.models[1].space.storage.read(0, 1024 * 520))


@pytest.mark.point("D07", "D08")
def test_a_bit_bucket_takes_blocks_and_their_metadata(make_bench: MakeBench) -> None:
    host = host_of(make_bench, extended=True)
    driver = host.driver
    segment = driver.ram.allocate(64)
    driver.ram.write(segment, descriptor(0, 516, 0x10) + descriptor(driver.data, 524))
    command = driver.rw(IoOpcode.READ, 0, 2, segment, 32, flags=1 << 6)
    command.prp2 = 32 | 0x30 << 56
    assert ended(host.pair.execute(command)) == Status.SUCCESS
    assert driver.ram.read(driver.data, 524) == b"\xff" * 4 + bytes(512) + b"\xff" * 8
