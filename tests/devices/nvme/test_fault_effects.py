"""What each kind of fault does to its command (T04)."""

import random
import time
from collections.abc import Iterator
from typing import Any

import pytest

from outboard.devices.nvme import Fault
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.events import INVALID_DOORBELL_VALUE
from outboard.devices.nvme.spec import AdminOpcode, FeatureId, IoOpcode
from outboard.devices.nvme.status import Status
from outboard.storage import RamStorage, VolatileStorage
from outboard.testing.faults import fail
from tests.devices.nvme.bench import Bench
from tests.devices.nvme.conftest import MakeBench, MakePaths
from tests.devices.nvme.driver import CSTS, FATAL, PAGE, READY, ended
from tests.devices.nvme.hosts import WE, A, B, Host
from tests.devices.nvme.stand import BLOCK, FLUSH, Stand
from tests.devices.nvme.test_interrupts import MSIX, Listener, find_capability
from tests.devices.nvme.test_workers import Slow


@pytest.fixture
def stand(bench: Bench) -> Stand:
    return Stand(bench)


@pytest.mark.point("T04")
@pytest.mark.parametrize("delay", [0.03, (0.03, 0.05)])
def test_a_delayed_command_is_executed_later_and_holds_up_no_other(stand: Stand, delay: Any) -> None:
    stand.write(0, b"before" + bytes(506))
    with fail(stand.device, opcode="read", delay=delay):
        begun = time.monotonic()
        late = stand.begin(stand.rw(IoOpcode.READ, 0, 1))
        assert stand.pair.execute(FLUSH).status == 0
        storage = stand.device.namespaces[1].storage
        storage.write(0, b"after.")
        assert stand.pair.wait(late).status == 0
        assert time.monotonic() - begun >= 0.03
    assert stand.driver.ram.read(stand.buffer, 6) == b"after."


def test_a_delayed_admin_command_too(stand: Stand) -> None:
    with fail(stand.device, opcode="get_features", delay=0.02):
        cid = stand.begin(
            Command(AdminOpcode.GET_FEATURES, cdw10=FeatureId.NUMBER_OF_QUEUES), stand.driver.admin
        )
        assert stand.driver.admin.execute(Command(AdminOpcode.KEEP_ALIVE)).status == 0
        assert stand.driver.admin.wait(cid).status == 0


def abort(stand: Stand, cid: int, qid: int = 1) -> int:
    completion = stand.driver.admin.execute(Command(AdminOpcode.ABORT, cdw10=qid | cid << 16))
    assert completion.status == 0
    return completion.result & 1


def test_a_controller_that_has_failed_tells_no_event(stand: Stand) -> None:
    stand.begin(Command(AdminOpcode.ASYNC_EVENT_REQUEST), stand.driver.admin)
    stand.faults.inject(Fault(opcode="keep_alive", fatal=True))
    stand.driver.bar.write32(0x1000 + 8 * 17, 1)  # a doorbell of no queue: an event
    stand.begin(Command(AdminOpcode.KEEP_ALIVE), stand.driver.admin)
    assert stand.driver.status & FATAL
    assert stand.driver.admin.poll() == []


@pytest.mark.point("T04", "A03")
@pytest.mark.parametrize("what", [{"hang": "abort"}, {"delay": 60}])
def test_what_is_held_can_be_aborted_and_was_not_executed(stand: Stand, what: dict[str, Any]) -> None:
    stand.driver.ram.write(stand.buffer, b"x" * PAGE)
    with fail(stand.device, opcode="write", **what):
        cid = stand.begin(stand.rw(IoOpcode.WRITE, 0))
    assert abort(stand, cid) == 0
    assert ended(stand.pair.wait(cid)) == Status.ABORT_REQUESTED
    assert abort(stand, cid) == 1, "not twice"
    assert stand.read(0) == bytes(PAGE)
    assert not stand.device.state.outstanding


def test_only_what_is_for_the_blocks_is_altered(make_paths: MakePaths) -> None:
    first, second = make_paths(RamStorage(1 << 20))
    owner, other = Host(first, A), Host(second, B)
    with fail(first.device, lie=True):
        assert owner.register(1) == Status.SUCCESS
        assert owner.acquire(1, WE) == Status.SUCCESS
    assert other.write() == Status.RESERVATION_CONFLICT


def test_a_torn_write_is_one_all_the_same_after_a_sanitize_operation(stand: Stand) -> None:
    space = stand.device.namespaces[1]
    space.erased = True
    stand.device.subsystem.reconfigure(1)
    with fail(stand.device, opcode="write", torn=1):
        assert stand.write(0, bytes(PAGE)).status == 0
    assert not space.erased


@pytest.mark.point("T04")
@pytest.mark.parametrize("qid", [0, 1])
def test_a_command_that_hangs_until_reset_is_gone_for_good(stand: Stand, qid: int) -> None:
    pair = stand.pair if qid else stand.driver.admin
    with fail(stand.device, qid=qid, hang="reset", nth=1):
        cid = stand.begin(FLUSH if qid else Command(AdminOpcode.KEEP_ALIVE), pair)
    assert abort(stand, cid, qid) == 1
    for _ in range(100):
        assert pair.execute(FLUSH if qid else Command(AdminOpcode.KEEP_ALIVE)).status == 0
    stand.bench.settle()
    assert cid not in pair.done


def test_a_reset_forgets_what_is_held(stand: Stand) -> None:
    stand.faults.inject(Fault(opcode="read", hang="abort"))
    stand.faults.inject(Fault(opcode="flush", delay=0.01))
    stand.faults.inject(Fault(queue="admin", opcode="keep_alive", delay=0.01))
    stand.begin(stand.rw(IoOpcode.READ, 0))
    stand.begin(FLUSH)
    stand.begin(Command(AdminOpcode.KEEP_ALIVE), stand.driver.admin)
    stand.driver.disable()
    assert not stand.device.state.outstanding
    again = Stand(stand.bench)
    stand.bench.loop.run_once(timeout=0.02)
    stand.bench.settle()
    assert again.pair.poll() == again.driver.admin.poll() == []


@pytest.mark.parametrize("qid", [0, 1])
def test_a_migration_leaves_behind_what_holds_a_command(stand: Stand, qid: int) -> None:
    pair, command = (stand.pair, FLUSH) if qid else (stand.driver.admin, Command(AdminOpcode.KEEP_ALIVE))
    with fail(stand.device, qid=qid, hang="abort", nth=1):
        cid = stand.begin(command, pair)
    stand.device.stop_device()
    stand.device.run_device()
    assert pair.wait(cid).status == 0
    assert not stand.device.state.outstanding


@pytest.mark.point("Q09")
def test_deleting_a_queue_ends_what_is_held_in_it(stand: Stand) -> None:
    stand.faults.inject(Fault(opcode="read", hang="abort"))
    stand.faults.inject(Fault(opcode="flush", delay=60))
    cids = {stand.begin(stand.rw(IoOpcode.READ, 0)), stand.begin(FLUSH)}
    deletion = Command(AdminOpcode.DELETE_IO_SQ, cdw10=1)
    assert stand.driver.admin.execute(deletion).status == 0
    assert {each.cid for each in stand.pair.poll()} == cids
    assert all(ended(stand.pair.done[cid]) == Status.ABORTED_SQ_DELETION for cid in cids)
    assert not stand.device.state.outstanding


@pytest.mark.point("T04")
@pytest.mark.parametrize("qid", [0, 1])
def test_a_lost_completion_was_executed_and_leaves_its_place_to_others(stand: Stand, qid: int) -> None:
    if qid:
        pair, command = stand.pair, stand.rw(IoOpcode.WRITE, 0)
    else:
        pair = stand.driver.admin
        assert stand.device.state.features.burst != 8
        command = Command(AdminOpcode.SET_FEATURES, cdw10=FeatureId.ARBITRATION, cdw11=3)
    stand.driver.ram.write(stand.buffer, b"stored" * 683)
    with fail(
        stand.device, qid=qid, opcode=command.opcode, queue="io" if qid else "admin", lost_completion=True
    ):
        cid = stand.begin(command, pair)
        assert pair.poll() == []
    assert stand.read(0, 1)[:6] == (b"stored" if qid else bytes(6))
    assert (stand.device.state.features.burst == 8) == (qid == 0)
    assert abort(stand, cid, qid) == 1
    for _ in range(100):
        assert pair.execute(FLUSH if qid else Command(AdminOpcode.KEEP_ALIVE)).status == 0


@pytest.fixture
def msix(bench: Bench) -> Iterator[Listener]:
    bench.config.write(find_capability(bench, 0x11) + 2, 2, 0x8000)
    listener = Listener(bench, MSIX, 33)
    yield listener
    listener.close()


@pytest.mark.point("T04")
def test_a_lost_interrupt_leaves_the_completion_to_be_found(bench: Bench, msix: Listener) -> None:
    stand = Stand(bench)
    pair = stand.driver.create_queue_pair(2, vector=2)
    assert pair.execute(FLUSH).status == 0
    assert msix.heard(2) == 1
    with fail(stand.device, opcode="flush", lost_interrupt=True):
        cid = stand.begin(FLUSH, pair)
        assert msix.heard(2) == 0
        (found,) = pair.poll(acknowledge=False)
        assert (found.cid, found.status) == (cid, 0)
    # The next one that is told has the host find both.
    assert pair.execute(FLUSH).status == 0
    assert msix.heard(2) == 1
    msix.heard(0)
    with fail(stand.device, queue="admin", lost_interrupt=True):
        cid = stand.begin(Command(AdminOpcode.KEEP_ALIVE), stand.driver.admin)
        assert msix.heard(0) == 0
        assert [each.cid for each in stand.driver.admin.poll()] == [cid]


def test_event_requests_meet_faults_like_other_commands(bench: Bench, msix: Listener) -> None:
    stand = Stand(bench)
    admin = stand.driver.admin
    request = Command(AdminOpcode.ASYNC_EVENT_REQUEST)

    def tell() -> list[int]:
        stand.device.state.events.masked.clear()
        stand.device.state.report(INVALID_DOORBELL_VALUE)
        stand.bench.settle()
        return [each.cid for each in admin.poll()]

    with fail(stand.device, opcode="async_event_request", status=(1, 5)):
        assert admin.execute(request).status == 0x105
    with fail(stand.device, opcode="async_event_request", lost_completion=True):
        stand.begin(request, admin)
    assert tell() == [], "told, and lost"
    with fail(stand.device, opcode="async_event_request", lost_interrupt=True):
        unheard = stand.begin(request, admin)
    msix.heard(0)
    assert tell() == [unheard]
    assert msix.heard(0) == 0
    assert admin.execute(Command(AdminOpcode.KEEP_ALIVE)).status == 0
    with fail(stand.device, opcode="async_event_request", hang="reset"):
        stand.begin(request, admin)
    usual = stand.begin(request, admin)
    msix.heard(0)
    assert tell() == [usual]
    assert msix.heard(0) == 1


@pytest.mark.point("T04")
@pytest.mark.parametrize(
    ("torn", "stored"),
    [({"torn": 3}, 3 * BLOCK), ({"torn": 0}, 0), ({"torn": 99}, 8 * BLOCK), ({"torn_bytes": 700}, 700)],
)
@pytest.mark.parametrize("status", [None, (2, 0x80)])
def test_a_torn_write_stores_its_beginning(
    stand: Stand, torn: dict[str, int], stored: int, status: tuple[int, int] | None
) -> None:
    stand.write(16, b"o" * PAGE)
    with fail(stand.device, opcode="write", status=status, **torn):
        assert stand.write(16, b"n" * PAGE).status == (0x280 if status else 0)
    assert stand.read(16) == b"n" * stored + b"o" * (PAGE - stored)


def test_zeros_and_discards_are_torn_too(stand: Stand) -> None:
    stand.write(0, b"o" * PAGE)
    with fail(stand.device, torn=2):
        assert stand.pair.execute(stand.rw(IoOpcode.WRITE_ZEROES, 0)).status == 0
        assert stand.read(0) == bytes(1024) + b"o" * 3072
        stand.driver.ram.write(stand.buffer, bytes(4) + (8).to_bytes(4, "little") + (2).to_bytes(8, "little"))
        trim = Command(IoOpcode.DATASET_MANAGEMENT, nsid=1, prp1=stand.buffer, cdw11=4)
        assert stand.pair.execute(trim).status == 0
    assert stand.read(0) == bytes(2048) + b"o" * 2048


@pytest.mark.point("T04")
def test_flipped_bits_are_in_what_is_read_or_in_what_is_stored(stand: Stand) -> None:
    def wrong(found: bytes, right: bytes) -> int:
        return sum((one ^ other).bit_count() for one, other in zip(found, right, strict=True))

    data = random.Random(3).randbytes(PAGE)
    stand.write(8, data)
    with fail(stand.device, opcode="read", flip=5, seed=4):
        assert wrong(stand.read(8), data) == 5
        assert wrong(stand.read(8, 1), data[:BLOCK]) == 5
    assert stand.read(8) == data
    with fail(stand.device, opcode="write", flip=3):
        assert stand.write(8, data).status == 0
    assert wrong(stand.read(8), data) == 3
    with fail(stand.device, opcode="compare", flip=1):
        stand.write(8, data)
        assert ended(stand.pair.execute(stand.rw(IoOpcode.COMPARE, 8))) == Status.COMPARE_FAILURE
    assert stand.pair.execute(stand.rw(IoOpcode.COMPARE, 8)).status == 0


def test_flipped_bits_are_the_same_for_the_same_seed(make_bench: MakeBench) -> None:
    def run(seed: int) -> list[bytes]:
        stand = Stand(make_bench())
        with fail(stand.device, opcode="read", flip=2, seed=seed):
            return [stand.read(0) for _ in range(3)]

    assert run(1) == run(1) != run(2)
    assert len(set(run(1))) == 3, "other bits for each command"


@pytest.mark.point("T04")
@pytest.mark.parametrize("forced", [0, 1 << 30])
def test_a_flush_that_lies_loses_what_it_promised(make_bench: MakeBench, forced: int) -> None:
    disk = VolatileStorage(RamStorage(1 << 20))
    stand = Stand(make_bench(disk))
    lost = 0
    for seed in range(8):
        assert stand.write(0, b"true" * 128, cdw12=forced).status == 0
        assert stand.pair.execute(FLUSH).status == 0
        assert disk.unflushed == 0
        with fail(stand.device, lie=True):
            assert stand.write(0, b"lies" * 128, cdw12=forced).status == 0
            assert stand.pair.execute(FLUSH).status == 0
        assert stand.read(0, 1) == b"lies" * 128
        stand.device.power_cut(seed)
        lost += disk.read(0, 4) == b"true"
        stand.bench.bus_master(True)
        stand = Stand(stand.bench)
    assert 0 < lost < 8


@pytest.mark.point("T04", "S07")
def test_a_fatal_controller_stops_and_is_reset(stand: Stand) -> None:
    with fail(stand.device, opcode="flush", fatal=True):
        for _ in range(3):
            stand.pair.submit(FLUSH)
        stand.pair.ring()
        stand.bench.settle()
    assert stand.driver.status & FATAL
    assert stand.pair.poll() == []
    stand.driver.disable()
    assert stand.driver.status & (FATAL | READY) == 0
    assert Stand(stand.bench).pair.execute(FLUSH).status == 0


@pytest.mark.point("T04")
def test_a_removed_controller_reads_as_ones_until_it_is_back(stand: Stand) -> None:
    bar, config = stand.bench.bar, stand.bench.config
    with fail(stand.device, opcode="flush", removal=True):
        stand.begin(FLUSH)
    assert stand.pair.poll() == []
    assert (bar.read32(CSTS), bar.read64(0), config.read(0, 4)) == (0xFFFF_FFFF, (1 << 64) - 1, 0xFFFF_FFFF)
    stand.driver.enable()
    assert bar.read32(CSTS) == 0xFFFF_FFFF
    stand.device.replug()
    assert (bar.read32(CSTS), config.read(0, 2)) == (0, stand.device.vendor_id)
    stand.bench.bus_master(True)
    assert Stand(stand.bench).pair.execute(FLUSH).status == 0
    stand.device.surprise_removal()
    assert bar.read32(CSTS) == 0xFFFF_FFFF
    stand.device.disconnected()
    stand.device.connected(None)
    assert bar.read32(CSTS) == 0, "the next client finds it"


def test_held_commands_go_on_for_the_next_client(stand: Stand) -> None:
    stand.faults.inject(Fault(opcode="flush", delay=0.2, count=1))
    cid = stand.begin(FLUSH)
    stand.device.disconnected()
    stand.bench.unmap()
    while stand.bench.loop.run_once(timeout=0.3):
        pass  # its time comes, and nobody is there
    stand.bench.map()
    stand.device.connected(None)
    assert stand.pair.wait(cid).status == 0


@pytest.mark.parametrize(
    "what", [{"status": (0, 6)}, {"torn": 1}, {"flip": 1}, {"delay": 0.01}, {"lost_interrupt": True}]
)
def test_a_storage_that_blocks_meets_faults_in_its_thread(
    lane: str, make_bench: MakeBench, what: Any
) -> None:
    slow = Slow()
    stand = Stand(make_bench(slow))
    with fail(stand.device, opcode="write", lba=0, **what):
        struck = stand.write(0, b"new" + bytes(PAGE - 3))
        assert stand.write(8, b"new" + bytes(PAGE - 3)).status == 0
    assert struck.status == (6 if "status" in what else 0)
    assert stand.read(8)[:3] == b"new"
    assert len({thread.name for thread in slow.threads}) == 1
    slow.failure = None
