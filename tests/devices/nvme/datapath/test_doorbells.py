"""Doorbell buffers in guest memory (A05), seen by the loop in the device's thread, which does all in turn."""

import struct

import pytest

from outboard import Mapping
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.spec import AdminOpcode, IoOpcode
from outboard.devices.nvme.status import Status
from tests.devices.nvme.bench import RAM_ADDRESS, Bench
from tests.devices.nvme.conftest import MakeBench
from tests.devices.nvme.datapath.interleaving import need_event
from tests.devices.nvme.datapath.live import use_shadow
from tests.devices.nvme.driver import PAGE, READY, Driver, QueuePair, ended

FLUSH = Command(IoOpcode.FLUSH, nsid=1)


class Shadow:
    """A host that uses the buffers, and rings when the event index says so; counts how often."""

    def __init__(self, bench: Bench, driver: Driver) -> None:
        self.bench, self.driver = bench, driver
        self.doorbells, self.events = use_shadow(driver)
        self.rings = 0

    def tell(self, number: int, value: int) -> None:
        old, event = (
            struct.unpack("<I", self.driver.ram.read(base + 4 * number, 4))[0]
            for base in (self.doorbells, self.events)
        )
        self.driver.ram.write(self.doorbells + 4 * number, struct.pack("<I", value))
        if need_event(event, value, old):
            self.rings += 1
            self.bench.bar.write32(0x1000 + 4 * number, value)

    def run(self, pair: QueuePair, command: Command) -> Status:
        cid = pair.submit(command)
        self.tell(2 * pair.qid, pair.tail)
        for _ in range(100):
            self.bench.settle()
            for completion in pair.poll(acknowledge=False):
                self.tell(2 * pair.cqid + 1, pair.head)
                assert completion.cid == cid
                return ended(completion)
        raise AssertionError("it never completed")


@pytest.fixture
def shadow(bench: Bench, driver: Driver) -> Shadow:
    return Shadow(bench, driver)


@pytest.mark.point("A05")
def test_the_buffers_work_for_queues_before_and_after_and_over_many_wraps(
    bench: Bench, driver: Driver
) -> None:
    before = driver.create_queue_pair(1, entries=4)
    for _ in range(6):
        assert ended(before.execute(FLUSH)) == Status.SUCCESS
    shadow = Shadow(bench, driver)
    after = driver.create_queue_pair(32, entries=5, cq_entries=3)
    for _ in range(40):
        assert shadow.run(before, FLUSH) == Status.SUCCESS
        assert shadow.run(after, FLUSH) == Status.SUCCESS
    assert driver.status == READY


@pytest.mark.point("A05")
def test_the_last_queue_there_can_be_has_the_last_words_of_the_buffers(make_bench: MakeBench) -> None:
    bench = make_bench(io_queues=511)
    driver = bench.driver.enable()
    shadow = Shadow(bench, driver)
    pair = driver.create_queue_pair(511, entries=5, cq_entries=3)
    for _ in range(20):
        assert shadow.run(pair, FLUSH) == Status.SUCCESS
    for buffer in (shadow.doorbells, shadow.events):
        assert driver.ram.read(buffer + 8, PAGE - 16) == bytes(PAGE - 16), "no other queue's are touched"
    assert driver.ram.read(shadow.doorbells + PAGE - 8, 8) == struct.pack("<II", pair.tail, pair.head)
    (event,) = struct.unpack("<I", driver.ram.read(shadow.events + PAGE - 8, 4))
    assert event == pair.tail, "the host is to ring for the next command"
    assert shadow.rings == 20
    assert driver.status == READY


@pytest.mark.point("A05")
def test_a_host_whose_completions_nobody_waits_for_does_not_ring_for_them(
    driver: Driver, shadow: Shadow
) -> None:
    pair = driver.create_queue_pair(1, entries=64)
    for _ in range(20):
        assert shadow.run(pair, FLUSH) == Status.SUCCESS
    assert shadow.rings == 20, "for each command that found the loop at rest, and for no head"


@pytest.mark.point("A05", "Q12")
def test_a_full_completion_queue_has_the_host_ring_for_room(
    bench: Bench, driver: Driver, shadow: Shadow
) -> None:
    pair = driver.create_queue_pair(1, entries=16, cq_entries=2)
    for cid in range(5):
        pair.submit(FLUSH, cid=cid)
    shadow.tell(2, pair.tail)
    found = []
    for _ in range(5):
        bench.settle()
        (completion,) = pair.poll(acknowledge=False)
        found.append(completion.cid)
        shadow.tell(3, pair.head)
    assert found == [0, 1, 2, 3, 4]


@pytest.mark.point("A05")
@pytest.mark.parametrize("which", ["doorbells", "events", "same", "nowhere"])
def test_a_buffer_has_to_be_a_page_of_memory_of_its_own(driver: Driver, which: str) -> None:
    page, other = driver.ram.allocate(PAGE), driver.ram.allocate(PAGE)
    prps = {
        "doorbells": (page + 4, other),
        "events": (page, other + 8),
        "same": (page, page),
        "nowhere": (page, 0x9_0000_0000),
    }[which]
    command = Command(AdminOpcode.DOORBELL_BUFFER_CONFIG, prp1=prps[0], prp2=prps[1])
    assert ended(driver.admin.execute(command)) == Status.INVALID_FIELD


@pytest.mark.point("A05", "S01")
def test_a_reset_ends_the_use_of_the_buffers(bench: Bench, driver: Driver, shadow: Shadow) -> None:
    driver.disable()
    driver.enable()
    pair = driver.create_queue_pair(1)
    driver.ram.write(shadow.doorbells, b"\xff" * PAGE)
    assert ended(pair.execute(FLUSH)) == Status.SUCCESS
    assert driver.ram.read(shadow.doorbells, PAGE) == b"\xff" * PAGE


@pytest.mark.point("A05")
def test_what_an_old_driver_leaves_in_the_buffer_of_a_new_queue_is_cleared(
    driver: Driver, shadow: Shadow
) -> None:
    driver.ram.write(shadow.doorbells + 8, struct.pack("<II", 7, 9))
    pair = driver.create_queue_pair(1)
    assert driver.ram.read(shadow.doorbells + 8, 8) == bytes(8)
    assert shadow.run(pair, FLUSH) == Status.SUCCESS


@pytest.mark.point("A05", "Q13")
def test_a_value_in_the_buffer_that_cannot_be_is_told_once(
    bench: Bench, driver: Driver, shadow: Shadow
) -> None:
    pair = driver.create_queue_pair(1)
    driver.admin.submit(Command(AdminOpcode.ASYNC_EVENT_REQUEST), cid=77)
    driver.admin.ring()
    driver.ram.write(shadow.doorbells + 8, struct.pack("<I", 16))
    for _ in range(3):
        driver.bar.write32(0x1008, 0)
        bench.settle()
    event = driver.admin.wait(77)
    assert event.result & 0xFFFF == 0x0100, "an error: invalid doorbell write value"
    driver.ram.write(shadow.doorbells + 12, struct.pack("<I", 5))
    driver.admin.submit(Command(AdminOpcode.ASYNC_EVENT_REQUEST), cid=78)
    driver.admin.ring()
    driver.get_log(1)
    driver.ram.write(shadow.doorbells + 8, struct.pack("<I", 0))
    assert shadow.run(pair, FLUSH) == Status.SUCCESS


def test_buffers_that_are_unmapped_come_back_with_what_was_in_them(bench: Bench, driver: Driver) -> None:
    other = 0x7_0000_0000
    from os import dup

    at = driver.ram.allocate(2 * PAGE)
    bench.device.dma_map(Mapping(other, 2 * PAGE, fd=dup(bench.fd), offset=at - RAM_ADDRESS))
    command = Command(AdminOpcode.DOORBELL_BUFFER_CONFIG, prp1=other, prp2=other + PAGE)
    assert ended(driver.admin.execute(command)) == Status.SUCCESS
    pair = driver.create_queue_pair(1)
    bench.device.dma_unmap(other, 2 * PAGE)
    cid = pair.submit(FLUSH)
    driver.ram.write(at + 8, struct.pack("<I", pair.tail))
    bench.settle()
    assert pair.poll() == []
    late = driver.create_queue_pair(2)
    bench.device.dma_map(Mapping(other, 2 * PAGE, fd=dup(bench.fd), offset=at - RAM_ADDRESS))
    bench.bar.write32(0x1008, pair.tail)
    assert ended(pair.wait(cid)) == Status.SUCCESS
    bench.device.dma_unmap(other, 2 * PAGE)
    assert late.poll() == []


@pytest.mark.parametrize("doorbells", ["trapped"])
def test_buffers_that_are_not_offered_are_an_unknown_command(make_bench: MakeBench, doorbells: str) -> None:
    driver = make_bench(doorbells=doorbells).driver.enable()
    page, other = driver.ram.allocate(PAGE), driver.ram.allocate(PAGE)
    command = Command(AdminOpcode.DOORBELL_BUFFER_CONFIG, prp1=page, prp2=other)
    assert ended(driver.admin.execute(command)) == Status.INVALID_OPCODE


@pytest.mark.point("A05")
def test_queues_that_python_serves_have_their_event_index_too(
    bench: Bench, driver: Driver, shadow: Shadow
) -> None:
    """A queue pair in memory that is only reached by message, or not there, is Python's."""
    pair = QueuePair(driver, 1, 16)
    create = driver.create_cq(pair)
    create.prp1 = 0x9_0000_0000
    assert ended(driver.admin.execute(create)) == Status.SUCCESS
    assert ended(driver.admin.execute(driver.create_sq(pair))) == Status.SUCCESS
    cid = pair.submit(FLUSH)
    shadow.tell(2, pair.tail)
    bench.step()
    (event,) = struct.unpack("<I", driver.ram.read(shadow.events + 8, 4))
    assert event == pair.tail
    import os

    bench.device.dma_map(Mapping(0x9_0000_0000, PAGE, fd=os.dup(bench.fd), offset=pair.cq - RAM_ADDRESS))
    assert ended(pair.wait(cid)) == Status.SUCCESS
    bench.device.dma_unmap(0x9_0000_0000, PAGE)
