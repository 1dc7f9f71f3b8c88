"""Abort, Asynchronous Event Request, and what the admin queue refuses (A01 to A04, Q13, Q14)."""

import pytest

from outboard.devices.nvme.admin import ADMIN_COMMANDS
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.spec import AdminOpcode, FeatureId, IoOpcode, LogId
from outboard.devices.nvme.status import Status
from outboard.storage import RamStorage
from tests.devices.nvme.bench import Bench
from tests.devices.nvme.conftest import MakeBench
from tests.devices.nvme.driver import Driver, QueuePair, do_not_retry, ended

EVENT = Command(AdminOpcode.ASYNC_EVENT_REQUEST)
FLUSH = Command(IoOpcode.FLUSH, nsid=1)
INVALID_DOORBELL_REGISTER, INVALID_DOORBELL_VALUE = 0x01_00_00, 0x01_01_00
NAMESPACE_CHANGED = 0x04_00_02


def abort(driver: Driver, sqid: int, cid: int) -> Command:
    return Command(AdminOpcode.ABORT, cdw10=sqid | cid << 16)


@pytest.mark.point("A01")
@pytest.mark.parametrize("opcode", [0x03, 0x0B, 0x13, 0x1C, 0x7D, 0xC0, 0xFF])
def test_an_unknown_opcode_is_invalid(driver: Driver, opcode: int) -> None:
    completion = driver.admin.execute(Command(opcode))
    assert ended(completion) == Status.INVALID_OPCODE
    assert do_not_retry(completion)


@pytest.mark.point("A02")
@pytest.mark.parametrize("flags", [1, 2, 3, 1 << 6, 2 << 6, 3 << 6, 4, 8, 0x10, 0x20])
@pytest.mark.parametrize("opcode", sorted(ADMIN_COMMANDS))
def test_fused_commands_sgls_and_reserved_flags_are_invalid_fields(
    driver: Driver, opcode: AdminOpcode, flags: int
) -> None:
    completion = driver.admin.execute(Command(opcode, flags=flags, prp1=driver.data))
    assert ended(completion) == Status.INVALID_FIELD
    assert do_not_retry(completion)


def test_keep_alive_is_accepted(driver: Driver) -> None:
    assert ended(driver.admin.execute(Command(AdminOpcode.KEEP_ALIVE))) == Status.SUCCESS


@pytest.mark.point("A03")
def test_an_event_request_is_aborted(driver: Driver) -> None:
    driver.admin.submit(EVENT, cid=50)
    completion = driver.admin.execute(abort(driver, 0, 50))
    assert (ended(completion), completion.result) == (Status.SUCCESS, 0)
    victim = driver.admin.wait(50)
    assert ended(victim) == Status.ABORT_REQUESTED
    assert not do_not_retry(victim)
    again = driver.admin.execute(abort(driver, 0, 50))
    assert (ended(again), again.result) == (Status.SUCCESS, 1)


@pytest.mark.point("A03")
def test_a_command_that_waits_is_aborted_and_its_neighbours_are_not(bench: Bench, driver: Driver) -> None:
    pair = driver.create_queue_pair(1, cq_entries=2)
    for cid in range(10, 16):
        pair.submit(FLUSH, cid=cid)
    pair.ring()
    bench.settle()
    completion = driver.admin.execute(abort(driver, 1, 13))
    assert (ended(completion), completion.result) == (Status.SUCCESS, 0)
    endings = {cid: ended(pair.wait(cid)) for cid in range(10, 16)}
    assert endings.pop(13) == Status.ABORT_REQUESTED
    assert set(endings.values()) == {Status.SUCCESS}
    pair.submit(FLUSH, cid=13)
    pair.ring()
    assert ended(pair.wait(13)) == Status.SUCCESS, "the identifier can be used again"


@pytest.mark.point("A03")
def test_a_bad_command_that_is_aborted_takes_its_identifier_with_it(bench: Bench, driver: Driver) -> None:
    pair = driver.create_queue_pair(1, cq_entries=2)
    for cid in range(10, 13):
        pair.submit(Command(0x7F, nsid=1), cid=cid)
    pair.ring()
    bench.settle()
    assert driver.admin.execute(abort(driver, 1, 12)).result == 0
    assert [ended(pair.wait(cid)) for cid in (10, 11)] == [Status.INVALID_OPCODE] * 2
    assert ended(pair.wait(12)) == Status.ABORT_REQUESTED
    pair.submit(FLUSH, cid=12)
    pair.ring()
    assert ended(pair.wait(12)) == Status.SUCCESS


@pytest.mark.point("A03")
def test_a_command_that_waits_behind_the_rings_end_is_found(bench: Bench, driver: Driver) -> None:
    pair = driver.create_queue_pair(1, entries=8, cq_entries=2)
    for _ in range(6):
        pair.execute(FLUSH)
    for cid in range(20, 25):
        pair.submit(FLUSH, cid=cid)
    pair.ring()
    bench.settle()
    assert driver.admin.execute(abort(driver, 1, 24)).result == 0
    assert ended(pair.wait(24)) == Status.ABORT_REQUESTED


@pytest.mark.point("A03")
def test_what_is_not_there_is_not_aborted(driver: Driver) -> None:
    driver.create_queue_pair(1)
    completion = driver.admin.execute(abort(driver, 1, 99))
    assert (ended(completion), completion.result) == (Status.SUCCESS, 1)
    unknown = driver.admin.execute(abort(driver, 2, 99))
    assert ended(unknown) == Status.INVALID_FIELD
    assert do_not_retry(unknown)


def test_nothing_is_aborted_in_a_queue_that_cannot_be_read(driver: Driver) -> None:
    pair = QueuePair(driver, 1, 16)
    command = driver.create_sq(pair)
    command.prp1 = 0x9_0000_0000
    driver.admin.execute(driver.create_cq(pair))
    driver.admin.execute(command)
    first = driver.admin.submit(abort(driver, 1, 5))
    driver.admin.ring()
    driver.bar.write32(0x1008, 1)
    assert driver.admin.wait(first).result == 1


@pytest.mark.point("A04")
def test_event_requests_wait_and_one_too_many_is_refused(bench: Bench, driver: Driver) -> None:
    for cid in range(100, 104):
        driver.admin.submit(EVENT, cid=cid)
    driver.admin.ring()
    bench.settle()
    assert driver.admin.poll() == []
    completion = driver.admin.execute(EVENT)
    assert ended(completion) == Status.EVENT_REQUEST_LIMIT_EXCEEDED
    assert do_not_retry(completion)


@pytest.mark.point("A04", "S01")
def test_event_requests_are_forgotten_silently_at_reset(bench: Bench, driver: Driver) -> None:
    driver.admin.submit(EVENT, cid=100)
    driver.admin.ring()
    bench.settle()
    driver.disable()
    bench.settle()
    assert driver.admin.poll(acknowledge=False) == []
    driver.enable()
    driver.bar.write32(0x1000 + 8 * 5, 1)
    bench.settle()
    assert driver.admin.poll() == []


@pytest.mark.point("Q13")
@pytest.mark.parametrize("tail", [16, 17, 0xFFFF, 0xFFFF_FFFF])
def test_a_tail_outside_its_queue_is_an_event_and_nothing_else(driver: Driver, tail: int) -> None:
    pair = driver.create_queue_pair(1)
    driver.admin.submit(EVENT, cid=100)
    driver.admin.ring()
    driver.bar.write32(0x1008, tail)
    assert driver.admin.wait(100).result == INVALID_DOORBELL_VALUE
    assert ended(pair.execute(FLUSH)) == Status.SUCCESS


@pytest.mark.point("Q13")
@pytest.mark.parametrize("offset", [0x1008, 0x100C, 0x1FF8, 0x1FFC])
def test_the_doorbell_of_no_queue_is_an_event(driver: Driver, offset: int) -> None:
    driver.admin.submit(EVENT, cid=100)
    driver.admin.ring()
    driver.bar.write32(offset, 0)
    assert driver.admin.wait(100).result == INVALID_DOORBELL_REGISTER


@pytest.mark.point("Q14")
@pytest.mark.parametrize("head", [16, 0xFFFF_FFFF, 2])
def test_a_head_past_what_was_completed_is_an_event(bench: Bench, driver: Driver, head: int) -> None:
    pair = driver.create_queue_pair(1)
    pair.submit(FLUSH, cid=1)
    pair.ring()
    bench.settle()
    driver.admin.submit(EVENT, cid=100)
    driver.admin.ring()
    driver.bar.write32(0x100C, head)
    assert driver.admin.wait(100).result == INVALID_DOORBELL_VALUE
    assert ended(pair.wait(1)) == Status.SUCCESS


@pytest.mark.point("Q14")
def test_the_same_doorbell_value_twice_changes_nothing(bench: Bench, driver: Driver) -> None:
    driver.admin.submit(EVENT, cid=100)
    pair = driver.create_queue_pair(1)
    for _ in range(3):
        pair.ring()
        pair.acknowledge()
    bench.settle()
    assert 100 not in driver.admin.done
    assert ended(pair.execute(FLUSH)) == Status.SUCCESS


@pytest.mark.point("L06")
def test_an_event_of_one_type_is_told_once_until_its_log_is_read(bench: Bench, driver: Driver) -> None:
    for cid in (100, 101):
        driver.admin.submit(EVENT, cid=cid)
    driver.admin.ring()
    driver.bar.write32(0x1FF8, 0)
    driver.bar.write32(0x1000, 99)
    assert driver.admin.wait(100).result == INVALID_DOORBELL_REGISTER
    bench.settle()
    assert driver.admin.poll() == []
    driver.get_log(LogId.ERROR_INFORMATION, 64, retain=True)
    bench.settle()
    assert driver.admin.poll() == [], "the host retains the event"
    driver.get_log(LogId.ERROR_INFORMATION, 64)
    bench.settle()
    assert driver.admin.poll() == [], "the log told of both"
    driver.bar.write32(0x1000, 99)
    assert driver.admin.wait(101).result == INVALID_DOORBELL_VALUE


def test_an_event_waits_for_a_request(bench: Bench, driver: Driver) -> None:
    driver.bar.write32(0x1FF8, 0)
    driver.bar.write32(0x1FF8, 0)
    bench.settle()
    assert driver.admin.poll() == []
    driver.admin.submit(EVENT, cid=100)
    driver.admin.ring()
    assert driver.admin.wait(100).result == INVALID_DOORBELL_REGISTER


def test_an_event_waits_for_room_in_the_completion_queue(bench: Bench) -> None:
    driver = bench.driver.enable(8, 2)
    driver.admin.submit(EVENT, cid=100)
    driver.admin.submit(Command(AdminOpcode.KEEP_ALIVE), cid=1)
    driver.admin.ring()
    driver.bar.write32(0x1FF8, 0)
    bench.settle()
    assert [c.cid for c in driver.admin.poll()] == [100]
    bench.settle()
    assert [c.cid for c in driver.admin.poll()] == [1]
    driver.admin.submit(EVENT, cid=101)
    driver.admin.submit(Command(AdminOpcode.GET_LOG_PAGE, prp1=driver.data, cdw10=1 | 15 << 16), cid=2)
    driver.admin.ring()
    bench.settle()
    driver.bar.write32(0x1FF8, 0)
    bench.settle()
    assert [c.cid for c in driver.admin.poll()] == [2]
    bench.settle()
    assert [c.cid for c in driver.admin.poll()] == [101]


@pytest.mark.point("L04")
@pytest.mark.parametrize("wanted", [True, False])
def test_a_resized_namespace_is_told_to_a_host_that_wants_to_know(
    make_bench: MakeBench, wanted: bool
) -> None:
    storage = RamStorage(1 << 20)
    bench = make_bench(storage)
    driver = bench.driver.enable()
    driver.set_feature(FeatureId.ASYNC_EVENT_CONFIGURATION, 0x100 if wanted else 0)
    driver.admin.submit(EVENT, cid=100)
    driver.admin.ring()
    storage.size = 512 << 10
    bench.device.refresh(1)
    bench.settle()
    assert [c.result for c in driver.admin.poll()] == [NAMESPACE_CHANGED] * wanted
    driver.get_log(LogId.CHANGED_NAMESPACES)
    assert driver.ram.read(driver.data, 8) == bytes([1, 0, 0, 0, 0, 0, 0, 0])
    driver.get_log(LogId.CHANGED_NAMESPACES)
    assert driver.ram.read(driver.data, 4) == bytes(4)
    read = driver.create_queue_pair(1).execute(driver.rw(IoOpcode.READ, 1024, 1, driver.data, 512))
    assert ended(read) == Status.LBA_OUT_OF_RANGE
