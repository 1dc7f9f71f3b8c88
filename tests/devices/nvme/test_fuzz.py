"""Guests that send nonsense: whatever they do, the controller answers and lives."""

import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from outboard.devices.nvme.command import Command
from outboard.devices.nvme.spec import AdminOpcode, Cns, FeatureId, IoOpcode, LogId
from outboard.devices.nvme.status import Status
from tests.devices.nvme.bench import RAM_ADDRESS, Bench
from tests.devices.nvme.driver import READY, Driver, ended

FUZZED = 2 << 20
"""The part of guest memory at which fuzzed commands aim; queues lie behind it."""

anything = st.integers(0, 0xFFFF_FFFF)
address = (
    st.integers(0, (1 << 64) - 1)
    | st.integers(0, 64).map(lambda page: RAM_ADDRESS + 4096 * page)
    | st.integers(0, 1 << 19).map(lambda offset: RAM_ADDRESS + offset)
)
opcode = st.sampled_from([*AdminOpcode, *IoOpcode]) | st.integers(0, 255)
dword10 = (
    anything
    | st.integers(0, 64)
    | st.builds(lambda low, high: low | high << 16, st.integers(0, 40), st.integers(0, 64))
    | st.sampled_from([*Cns, *LogId, *FeatureId])
)
descriptor = st.builds(
    lambda length, identifier: length | identifier << 56,
    st.integers(0, 64).map(lambda count: 16 * count) | anything,
    st.sampled_from([0x00, 0x10, 0x20, 0x30]),
)
commands = st.builds(
    Command,
    opcode,
    flags=st.sampled_from([0, 1 << 6]) | st.integers(0, 255),
    nsid=st.integers(0, 3) | anything,
    cdw2=anything,
    cdw3=anything,
    mptr=address,
    prp1=address,
    prp2=address | descriptor,
    cdw10=dword10,
    cdw11=st.integers(0, 7) | anything,
    cdw12=st.integers(0, 255) | anything,
    cdw13=st.just(0) | anything,
    cdw14=st.just(0) | anything,
    cdw15=anything,
)
entries = commands.map(Command.encode) | st.binary(min_size=64, max_size=64)
fuzz = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)


def start_over(bench: Bench) -> Driver:
    """A controller as new, and guest memory for it that a fuzzed command may have filled with anything."""
    bench.device.reset()
    bench.bus_master(True)
    bench.driver.ram.rewind(FUZZED)
    return bench.driver.enable()


def is_event_request(entry: bytes) -> bool:
    return entry[0] == AdminOpcode.ASYNC_EVENT_REQUEST and entry[1] == 0


@pytest.mark.point("A01", "A02")
@fuzz
@given(st.lists(entries, min_size=1, max_size=12), st.booleans())
def test_every_command_gets_exactly_one_completion(bench: Bench, batch: list[bytes], admin: bool) -> None:
    """Any 64 bytes in a queue end in one completion with a known status, and the controller stays ready.

    An event request may wait instead. The queues lie where no fuzzed command writes.
    """
    driver = start_over(bench)
    pair = driver.admin if admin else driver.create_queue_pair(1)
    sent = [(entry, 100 + number) for number, entry in enumerate(batch)]
    for entry, cid in sent:
        command = Command.decode(entry)
        pair.submit(command, cid=cid)
    pair.ring()
    found = {}
    for _ in range(30):
        bench.settle()
        for completion in pair.poll():
            assert completion.cid not in found
            found[completion.cid] = Status(completion.status & 0x7FF)
    waiting = {cid for _, cid in sent} - set(found)
    assert all(admin and is_event_request(entry) for entry, cid in sent if cid in waiting)
    assert driver.status == READY
    assert bench.device.dma.live_views == 0


@fuzz
@given(
    st.lists(
        st.tuples(st.sampled_from([0x14, 0x20, 0x24, 0x28, 0x2C, 0x30, 0x34, 0x0C, 0x10, 0x1C]), anything)
        | st.tuples(st.integers(0, 8).map(lambda n: 0x1000 + 4 * n), st.integers(0, 40) | anything)
        | st.tuples(st.just(0x14), st.sampled_from([0, 1, 0x46_0001, 0x46_4001, 0x46_8000])),
        max_size=40,
    ),
    st.binary(min_size=64, max_size=4096),
)
def test_any_sequence_of_register_writes_leaves_a_controller_that_can_be_started(
    bench: Bench, writes: list[tuple[int, int]], content: bytes
) -> None:
    """Register and doorbell writes in any order, over any memory, raise nothing; a reset mends it all."""
    driver = start_over(bench)
    driver.ram.write(driver.admin.sq, content[:2048])
    for offset, value in writes:
        bench.bar.write32(offset, value)
        bench.step()
    for _ in range(3):
        bench.loop.run_pending()
    assert ended(start_over(bench).identify(Cns.CONTROLLER)) == Status.SUCCESS


@pytest.mark.point("D04")
@fuzz
@given(
    st.lists(st.integers(0, 40) | st.integers(0, (1 << 61) - 1), min_size=1, max_size=8),
    st.integers(1, 1024),
    st.sampled_from([IoOpcode.READ, IoOpcode.WRITE, IoOpcode.COMPARE]),
)
def test_prp_lists_of_garbage_end_in_a_status(
    bench: Bench, pages: list[int], blocks: int, opcode: IoOpcode
) -> None:
    """A data command over a list of anything, over and over, completes once, and the next one works."""
    driver = start_over(bench)
    pair = driver.create_queue_pair(1)
    target = driver.ram.allocate(64 * 4096)
    place = driver.ram.allocate(4096)
    entries = [target + 4096 * n if n <= 40 else n * 8 for n in pages] * 512
    driver.ram.write(place, struct.pack("<512Q", *entries[:512]))
    command = Command(opcode, nsid=1, prp1=target, prp2=place, cdw12=blocks - 1)
    assert ended(pair.execute(command)) in (
        Status.SUCCESS,
        Status.PRP_OFFSET_INVALID,
        Status.DATA_TRANSFER_ERROR,
        Status.COMPARE_FAILURE,
    )
    assert ended(pair.execute(Command(IoOpcode.FLUSH, nsid=1))) == Status.SUCCESS
