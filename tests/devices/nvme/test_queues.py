"""Creating, deleting and running I/O queues."""

import gc
import os
from pathlib import Path

import pytest

from outboard import Mapping
from outboard.devices.nvme.command import Command, Completion
from outboard.devices.nvme.spec import AdminOpcode, FeatureId, IoOpcode
from outboard.devices.nvme.status import Status
from tests.devices.nvme.bench import RAM_ADDRESS, RAM_SIZE, Bench
from tests.devices.nvme.conftest import MakeBench
from tests.devices.nvme.driver import Driver, QueuePair, do_not_retry, ended

NOWHERE = 0x9_0000_0000
FLUSH = Command(IoOpcode.FLUSH, nsid=1)


def create_cq(driver: Driver, qid: int = 1, size: int = 16, flags: int = 1, prp1: int = 0) -> Status:
    command = Command(
        AdminOpcode.CREATE_IO_CQ,
        prp1=prp1 or driver.data,
        cdw10=qid | (size - 1 & 0xFFFF) << 16,
        cdw11=flags,
    )
    completion = driver.admin.execute(command)
    assert do_not_retry(completion) == (ended(completion) != Status.SUCCESS)
    return ended(completion)


def create_sq(
    driver: Driver, qid: int = 1, size: int = 16, flags: int = 1, cqid: int = 1, prp1: int = 0
) -> Status:
    command = Command(
        AdminOpcode.CREATE_IO_SQ,
        prp1=prp1 or driver.data,
        cdw10=qid | (size - 1 & 0xFFFF) << 16,
        cdw11=flags | cqid << 16,
    )
    completion = driver.admin.execute(command)
    assert do_not_retry(completion) == (ended(completion) != Status.SUCCESS)
    return ended(completion)


def delete(driver: Driver, opcode: AdminOpcode, qid: int) -> Status:
    return ended(driver.admin.execute(Command(opcode, cdw10=qid)))


@pytest.mark.point("Q01")
@pytest.mark.parametrize("qid", [0, 129, 0xFFFF])
def test_a_queue_identifier_outside_the_range_is_invalid(driver: Driver, qid: int) -> None:
    assert create_cq(driver, qid) == Status.INVALID_QUEUE_ID
    create_cq(driver)
    assert create_sq(driver, qid) == Status.INVALID_QUEUE_ID


@pytest.mark.point("Q01")
def test_a_queue_identifier_cannot_be_used_twice(driver: Driver) -> None:
    driver.create_queue_pair(1)
    assert create_cq(driver, 1) == create_sq(driver, 1) == Status.INVALID_QUEUE_ID


@pytest.mark.point("Q01", "Q18")
def test_no_more_queues_can_be_created_than_were_granted(driver: Driver) -> None:
    assert driver.set_feature(FeatureId.NUMBER_OF_QUEUES, 1 | 1 << 16).result == 1 | 1 << 16
    assert create_cq(driver, 2) == Status.SUCCESS
    assert create_cq(driver, 3) == Status.INVALID_QUEUE_ID


@pytest.mark.point("Q02", "R03")
@pytest.mark.parametrize(
    ("size", "status"),
    [
        (1, Status.INVALID_QUEUE_SIZE),
        (2, Status.SUCCESS),
        (4096, Status.SUCCESS),
        (4097, Status.INVALID_QUEUE_SIZE),
        (65536, Status.INVALID_QUEUE_SIZE),
    ],
)
def test_a_queue_has_from_two_to_mqes_entries(driver: Driver, size: int, status: Status) -> None:
    assert create_cq(driver, 1, size) == status
    create_cq(driver, 2)
    assert create_sq(driver, 1, size, cqid=2) == status


@pytest.mark.point("Q03")
def test_queues_have_to_be_contiguous(driver: Driver) -> None:
    assert create_cq(driver, flags=0) == Status.INVALID_FIELD
    create_cq(driver)
    assert create_sq(driver, flags=0) == Status.INVALID_FIELD


@pytest.mark.point("Q04")
@pytest.mark.parametrize("offset", [4, 16, 64, 2048])
def test_a_queue_begins_with_a_page(driver: Driver, offset: int) -> None:
    assert create_cq(driver, prp1=driver.data + offset) == Status.PRP_OFFSET_INVALID
    create_cq(driver)
    assert create_sq(driver, prp1=driver.data + offset) == Status.PRP_OFFSET_INVALID


@pytest.mark.point("Q05")
def test_an_interrupt_vector_has_to_exist_if_it_is_used(driver: Driver) -> None:
    assert create_cq(driver, 1, flags=3 | 129 << 16) == Status.INVALID_INTERRUPT_VECTOR
    assert create_cq(driver, 1, flags=3 | 128 << 16) == Status.SUCCESS
    assert create_cq(driver, 2, flags=1 | 0xFFFF << 16) == Status.SUCCESS


@pytest.mark.point("Q06")
@pytest.mark.parametrize(
    ("cqid", "status"),
    [
        (0, Status.INVALID_QUEUE_ID),
        (2, Status.COMPLETION_QUEUE_INVALID),
        (128, Status.COMPLETION_QUEUE_INVALID),
        (129, Status.INVALID_QUEUE_ID),
        (0xFFFF, Status.INVALID_QUEUE_ID),
    ],
)
def test_a_submission_queue_needs_a_completion_queue(driver: Driver, cqid: int, status: Status) -> None:
    create_cq(driver, 1)
    assert create_sq(driver, 1, cqid=cqid) == status


@pytest.mark.point("Q07")
def test_queues_are_deleted_submission_queues_first(driver: Driver) -> None:
    driver.create_queue_pair(1)
    assert delete(driver, AdminOpcode.DELETE_IO_CQ, 1) == Status.INVALID_QUEUE_DELETION
    assert delete(driver, AdminOpcode.DELETE_IO_SQ, 1) == Status.SUCCESS
    assert delete(driver, AdminOpcode.DELETE_IO_CQ, 1) == Status.SUCCESS


@pytest.mark.point("Q07")
@pytest.mark.parametrize("qid", [0, 1, 129, 0xFFFF])
def test_only_a_queue_that_exists_can_be_deleted(driver: Driver, qid: int) -> None:
    for opcode in (AdminOpcode.DELETE_IO_SQ, AdminOpcode.DELETE_IO_CQ):
        assert delete(driver, opcode, qid) == Status.INVALID_QUEUE_ID


@pytest.mark.point("Q08")
def test_submission_queues_can_share_a_completion_queue(driver: Driver) -> None:
    first = driver.create_queue_pair(1, cq_entries=64)
    others = [QueuePair(driver, qid, 8, cqid=1) for qid in (2, 3)]
    for pair in others:
        assert ended(driver.admin.execute(driver.create_sq(pair))) == Status.SUCCESS
    for number, pair in enumerate([first, *others]):
        for i in range(3):
            pair.submit(FLUSH, cid=100 * number + i)
        pair.ring()
    for _ in range(5):
        driver.step()
    found = [(c.sq_id, c.sq_head, c.cid) for c in first.poll()]
    assert sorted(found) == [(n + 1, i + 1, 100 * n + i) for n in range(3) for i in range(3)]
    assert delete(driver, AdminOpcode.DELETE_IO_SQ, 2) == Status.SUCCESS
    assert delete(driver, AdminOpcode.DELETE_IO_CQ, 1) == Status.INVALID_QUEUE_DELETION


@pytest.mark.point("Q09")
def test_commands_that_wait_in_a_deleted_queue_end_before_the_deletion_does(driver: Driver) -> None:
    pair = driver.create_queue_pair(1, cq_entries=4)
    for cid in range(8):
        pair.submit(FLUSH, cid=cid)
    pair.ring()
    driver.step()
    assert [c.cid for c in pair.poll()] == [0, 1, 2]
    deletion = driver.admin.submit(Command(AdminOpcode.DELETE_IO_SQ, cdw10=1))
    driver.admin.ring()
    assert ended(driver.admin.wait(deletion)) == Status.SUCCESS
    found = pair.poll()
    assert [c.cid for c in found] == [3, 4, 5], "as many as there was room for; the others end silently"
    assert delete(driver, AdminOpcode.DELETE_IO_CQ, 1) == Status.SUCCESS


def test_a_queue_whose_memory_is_gone_can_be_deleted(bench: Bench, driver: Driver) -> None:
    pair = QueuePair(driver, 1, 16)
    command = driver.create_sq(pair)
    command.prp1 = NOWHERE
    driver.admin.execute(driver.create_cq(pair))
    driver.admin.execute(command)
    pair.ring()
    assert delete(driver, AdminOpcode.DELETE_IO_SQ, 1) == Status.SUCCESS


@pytest.mark.point("Q10")
def test_all_queues_are_created_and_deleted_many_times_and_leave_nothing_behind(
    bench: Bench, driver: Driver
) -> None:
    def all_there_are() -> None:
        for qid in range(1, 129):
            assert create_cq(driver, qid, 2) == Status.SUCCESS
            assert create_sq(driver, qid, 2, cqid=qid) == Status.SUCCESS
        for qid in range(1, 129):
            assert delete(driver, AdminOpcode.DELETE_IO_SQ, qid) == Status.SUCCESS
            assert delete(driver, AdminOpcode.DELETE_IO_CQ, qid) == Status.SUCCESS

    all_there_are()
    objects, descriptors, mappings = held()
    for _ in range(4):
        all_there_are()
    now = held()
    assert now[0] - objects < 128, "less than one for each queue that there was"
    assert now[1:] == (descriptors, mappings)
    state = bench.device.state
    assert (set(state.submission), set(state.completion)) == ({0}, {0})


def held() -> tuple[int, int, int]:
    """What this process has: objects, file descriptors, mappings of memory."""
    gc.collect()
    mappings = Path("/proc/self/maps").read_text().count("\n")
    return len(gc.get_objects()), len(os.listdir("/proc/self/fd")), mappings


@pytest.mark.point("Q11")
@pytest.mark.parametrize(
    ("sq", "cq"), [(2, 2), (3, 3), (2, 3), (3, 2), (1024, 1024), (7, 1024), (4096, 4096)]
)
def test_phase_tags_stay_right_over_many_wraps(driver: Driver, sq: int, cq: int) -> None:
    pair = driver.create_queue_pair(1, sq, cq)
    sent = finished = 0
    while finished < 4 * max(sq, cq):
        for _ in range(sq - 1):
            pair.submit(FLUSH)
        sent += sq - 1
        pair.ring()
        while finished < sent:
            driver.step()
            found = pair.poll()
            assert all(ended(c) == Status.SUCCESS for c in found)
            finished += len(found)


@pytest.mark.point("Q12")
def test_a_full_completion_queue_stops_the_fetching_and_loses_nothing(bench: Bench, driver: Driver) -> None:
    pair = driver.create_queue_pair(1, entries=32, cq_entries=4)
    for cid in range(20):
        pair.submit(FLUSH, cid=cid)
    pair.ring()
    found: list[Completion] = []
    for _ in range(7):
        bench.settle()
        assert not bench.loop.run_pending(), "nothing spins while the queue is full"
        batch = pair.poll()
        assert len(batch) == min(3, 20 - len(found))
        found += batch
    assert [c.cid for c in found] == list(range(20))
    assert found[-1].sq_head == 20


@pytest.mark.point("Q12")
def test_one_full_completion_queue_holds_up_no_other(bench: Bench, driver: Driver) -> None:
    stuck, free = driver.create_queue_pair(1, cq_entries=2), driver.create_queue_pair(2)
    for _ in range(4):
        stuck.submit(FLUSH)
    stuck.ring()
    bench.settle()
    assert ended(free.execute(FLUSH)) == Status.SUCCESS
    assert ended(driver.get_feature(FeatureId.ARBITRATION)) == Status.SUCCESS


@pytest.mark.point("Q15")
def test_queues_take_turns(make_bench: MakeBench) -> None:
    driver = make_bench().driver.enable()
    pairs = [driver.create_queue_pair(qid, entries=128, cq_entries=512) for qid in (1, 2, 3)]
    for pair in pairs:
        for _ in range(100):
            pair.submit(FLUSH)
    for pair in pairs:
        pair.ring()
    driver.step()
    served = [len(pair.poll()) for pair in pairs]
    assert served == [16, 16, 16], "bursts of 16 in turn"
    driver.step()
    served = [was + len(pair.poll()) for was, pair in zip(served, pairs, strict=True)]
    assert served == [32, 32, 32]


@pytest.mark.point("Q15")
def test_the_hosts_arbitration_burst_is_kept(driver: Driver) -> None:
    driver.set_feature(FeatureId.ARBITRATION, 2)
    pairs = [driver.create_queue_pair(qid, entries=128) for qid in (1, 2)]
    for pair in pairs:
        for _ in range(100):
            pair.submit(FLUSH)
        pair.ring()
    driver.step()
    assert [len(pair.poll()) for pair in pairs] == [4, 4]


@pytest.mark.point("Q16")
def test_the_identifier_of_an_outstanding_event_request_conflicts(driver: Driver) -> None:
    driver.admin.submit(Command(AdminOpcode.ASYNC_EVENT_REQUEST), cid=7)
    cid = driver.admin.submit(Command(AdminOpcode.KEEP_ALIVE), cid=7)
    driver.admin.ring()
    completion = driver.admin.wait(cid)
    assert ended(completion) == Status.COMMAND_ID_CONFLICT


@pytest.mark.point("Q16")
def test_two_io_commands_of_one_identifier_are_the_hosts_affair_and_both_complete(driver: Driver) -> None:
    pair = driver.create_queue_pair(1)
    for slba in range(2):
        driver.ram.write(driver.data, bytes([slba + 1]) * 512)
        assert ended(pair.execute(driver.rw(IoOpcode.WRITE, slba, 1, driver.data, 512))) == Status.SUCCESS
    for slba in range(2):
        pair.submit(driver.rw(IoOpcode.READ, slba, 1, driver.data + 512 * slba, 512), cid=7)
    pair.ring()
    found: list[Completion] = []
    while len(found) < 2:
        driver.step()
        found += pair.poll()
    assert [(c.cid, ended(c)) for c in found] == [(7, Status.SUCCESS)] * 2
    assert driver.ram.read(driver.data, 1024) == b"\1" * 512 + b"\2" * 512


def test_a_failing_command_leaves_the_queue_unharmed(driver: Driver) -> None:
    pair = driver.create_queue_pair(1)
    for command in (Command(0xFF), Command(IoOpcode.READ, nsid=9), Command(IoOpcode.READ, nsid=1, prp1=1)):
        assert ended(pair.execute(command)) != Status.SUCCESS
        assert ended(pair.execute(FLUSH)) == Status.SUCCESS


def test_a_queue_whose_memory_comes_back_goes_on(bench: Bench, driver: Driver) -> None:
    pair = driver.create_queue_pair(1)
    bench.unmap()
    pair.submit(FLUSH, cid=3)
    pair.ring()
    bench.step()
    bench.map()
    bench.bus_master(True)
    pair.ring()
    assert ended(pair.wait(3)) == Status.SUCCESS


def test_a_queue_that_stays_out_of_reach_fails_the_controller(
    bench: Bench, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outboard.devices.nvme.patience.PATIENCE", 0.0)
    bench.unmap()
    driver.admin.ring()
    driver.bar.write32(0x1000, 1)
    bench.settle()
    assert driver.status == 1 | 2
    bench.map()
    driver.disable()
    assert driver.enable().status == 1
    assert ended(driver.identify(1)) == Status.SUCCESS


def test_queue_memory_is_retried_by_itself(bench: Bench, driver: Driver) -> None:
    bench.bus_master(False)
    cid = driver.admin.submit(Command(AdminOpcode.KEEP_ALIVE))
    driver.admin.ring()
    bench.step()
    bench.device.dma.enabled = True
    for _ in range(2):
        bench.loop.run_once(timeout=1)
    assert ended(driver.admin.wait(cid)) == Status.SUCCESS


def test_queues_go_on_when_bus_mastering_is_switched_on(bench: Bench, driver: Driver) -> None:
    bench.bus_master(False)
    cid = driver.admin.submit(Command(AdminOpcode.KEEP_ALIVE))
    driver.admin.ring()
    bench.settle()
    assert driver.admin.poll() == []
    bench.bus_master(True)
    bench.settle()
    assert [c.cid for c in driver.admin.poll()] == [cid]


def test_a_queue_out_of_reach_holds_up_no_other(bench: Bench, driver: Driver) -> None:
    lost = QueuePair(driver, 1, 16)
    command = driver.create_sq(lost)
    command.prp1 = NOWHERE
    driver.admin.execute(driver.create_cq(lost))
    driver.admin.execute(command)
    good = driver.create_queue_pair(2)
    driver.bar.write32(0x1008, 5)
    for _ in range(3):
        assert ended(good.execute(FLUSH)) == Status.SUCCESS
        assert ended(driver.admin.execute(Command(AdminOpcode.KEEP_ALIVE))) == Status.SUCCESS


def test_a_completion_that_could_not_be_written_is_written_later(bench: Bench, driver: Driver) -> None:
    pair = QueuePair(driver, 1, 16)
    command = driver.create_cq(pair)
    command.prp1 = NOWHERE
    assert ended(driver.admin.execute(command)) == Status.SUCCESS
    assert ended(driver.admin.execute(driver.create_sq(pair))) == Status.SUCCESS
    pair.submit(FLUSH, cid=5)
    pair.ring()
    bench.step()
    bench.device.dma_map(Mapping(NOWHERE, 4096, fd=os.dup(bench.fd), offset=pair.cq - driver.ram.address))
    pair.ring()
    bench.settle()
    assert ended(pair.wait(5)) == Status.SUCCESS
    bench.device.dma_unmap(NOWHERE, 4096)


class Eager:
    """Memory by message whose guest consumes a completion before its writer hears that it was written."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.pair: QueuePair | None = None

    def read(self, address: int, count: int) -> bytes:
        return self.bench.driver.ram.read(address, count)

    def write(self, address: int, data: bytes) -> None:
        self.bench.driver.ram.write(address, data)
        if self.pair is not None:
            self.pair.poll()


def test_a_guest_may_consume_a_completion_while_the_message_that_writes_it_is_awaited(bench: Bench) -> None:
    remote = Eager(bench)
    bench.unmap()
    bench.device.dma.remote = remote
    bench.device.dma_map(Mapping(RAM_ADDRESS, RAM_SIZE))
    pair = bench.driver.enable().create_queue_pair(1, entries=4)
    remote.pair = pair
    for _ in range(10):
        assert ended(pair.execute(FLUSH)) == Status.SUCCESS
        assert bench.device.state.completion[1].used == 0
    assert not bench.device.state.events.waiting
    bench.device.dma_unmap(RAM_ADDRESS, RAM_SIZE)
    bench.map()
