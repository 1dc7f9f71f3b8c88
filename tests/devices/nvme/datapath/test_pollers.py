"""Queues served by pollers, in threads of their own, with every kind of doorbells."""

import os
import struct
import threading
from collections.abc import Callable, Iterator

import pytest

from outboard import IrqAction, IrqData, Mapping
from outboard.devices.nvme import Namespace, Nvme
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.spec import AdminOpcode, FeatureId, IoOpcode
from outboard.devices.nvme.status import Status
from outboard.storage import NullStorage, RamStorage, Storage
from tests.devices.nvme.bench import RAM_ADDRESS
from tests.devices.nvme.datapath.live import LiveBench, complete, tuning, use_shadow
from tests.devices.nvme.driver import PAGE, QueuePair, ended
from tests.devices.nvme.test_interrupts import Listener, find_capability
from tests.devices.nvme.test_workers import Slow

FLUSH = Command(IoOpcode.FLUSH, nsid=1)
SIZE = 4 << 20

MakeLive = Callable[..., LiveBench]


@pytest.fixture
def make_live(lane: str) -> Iterator[MakeLive]:
    benches: list[LiveBench] = []

    def make(
        *namespaces: Namespace | Storage, pollers: int = 1, doorbells: str = "auto", **more: int
    ) -> LiveBench:
        namespaces = namespaces or (RamStorage(SIZE), NullStorage(SIZE))
        device = Nvme(*namespaces, tuning=tuning(lane, pollers, **more), doorbells=doorbells)  # type: ignore[arg-type]
        benches.append(LiveBench(device))
        return benches[-1]

    before = threading.active_count()
    yield make
    for bench in benches:
        bench.close()
    assert threading.active_count() == before


class Mapped:
    """A queue pair whose doorbells are written without a message: into the page, or the buffer."""

    def __init__(self, bench: LiveBench, pair: QueuePair, write: Callable[[int, int], None]) -> None:
        self.bench, self.pair, self.write = bench, pair, write
        pair.ring = lambda: write(2 * pair.qid, pair.tail)  # type: ignore[method-assign]
        pair.acknowledge = lambda: write(2 * pair.cqid + 1, pair.head)  # type: ignore[method-assign]


def map_page(bench: LiveBench) -> Callable[[int, int], None]:
    """Map the page of doorbells as a client does; how to write one."""
    import mmap

    region = bench.device.regions[0]
    assert region.fd is not None
    page = mmap.mmap(region.fd, PAGE, offset=0x1000)
    return lambda number, value: struct.pack_into("<I", page, 4 * number, value)


@pytest.mark.parametrize("pollers", [1, 3])
@pytest.mark.parametrize("doorbells", ["mmap", "shadow", "trapped"])
def test_every_kind_of_doorbells_serves_queues_over_many_wraps(
    make_live: MakeLive, doorbells: str, pollers: int
) -> None:
    bench = make_live(pollers=pollers, doorbells=doorbells)
    write: Callable[[int, int], None] | None = None
    if doorbells == "mmap":
        write = on_page = map_page(bench)
        bench.bar.write32 = lambda offset, value: (  # type: ignore[method-assign]
            on_page(offset - 0x1000 >> 2, value) if offset >= 0x1000 else bench.bar.write(offset, 4, value)
        )
    driver = bench.driver.enable()
    if doorbells == "shadow":
        shadow, _ = use_shadow(driver)

        def write_both(number: int, value: int) -> None:
            driver.ram.write(shadow + 4 * number, struct.pack("<I", value))
            bench.bar.write32(0x1000 + 4 * number, value)

        write = write_both
    pairs = [driver.create_queue_pair(qid, entries=8, cq_entries=5) for qid in (1, 2, 3, 4)]
    if write:
        for pair in pairs:
            Mapped(bench, pair, write)
    data = driver.ram.allocate(4 * PAGE)
    for turn in range(6):
        for number, pair in enumerate(pairs):
            driver.ram.write(data, bytes([turn + 1, number]) * (PAGE // 2))
            writing = driver.rw(IoOpcode.WRITE, 8 * number, 8, data, PAGE)
            reading = driver.rw(IoOpcode.READ, 8 * number, 8, data + PAGE, PAGE)
            assert ended(complete(bench, pair, [writing])[0]) == Status.SUCCESS
            done = complete(bench, pair, [reading] * 7)
            assert {ended(completion) for completion in done} == {Status.SUCCESS}
            assert driver.ram.read(data + PAGE, PAGE) == driver.ram.read(data, PAGE)
    statistics = bench.device.statistics
    assert (statistics["reads"], statistics["writes"]) == (6 * 4 * 7, 6 * 4)
    if doorbells == "mmap":
        bench.until(lambda: bench.device.statistics["naps"] > 2)


def test_what_is_not_for_the_fast_lane_goes_to_python_and_comes_back(make_live: MakeLive) -> None:
    bench = make_live()
    driver = bench.driver.enable()
    pair = driver.create_queue_pair(1, entries=1024)
    commands = [Command(0xFF, nsid=1), driver.rw(IoOpcode.READ, 1 << 40, 1, driver.data, 512)] * 350
    done = complete(bench, pair, commands)
    assert [ended(completion) for completion in done] == [
        Status.INVALID_OPCODE,
        Status.LBA_OUT_OF_RANGE,
    ] * 350, "more than Python takes at once"
    assert bench.device.statistics["diverted"] == 700


def test_a_slow_storage_delays_no_fast_one(make_live: MakeLive) -> None:
    slow = Slow()
    bench = make_live(slow, RamStorage(SIZE))
    driver = bench.driver.enable()
    pair = driver.create_queue_pair(1, entries=1024)
    slow.gate.clear()
    stuck = [pair.submit(driver.rw(IoOpcode.READ, 0, 1, driver.data, 512)) for _ in range(20)]
    done = complete(bench, pair, [driver.rw(IoOpcode.READ, 0, 1, driver.data, 512, nsid=2)] * 20)
    assert {ended(completion) for completion in done} == {Status.SUCCESS}
    assert slow.done == []
    slow.gate.set()
    assert {ended(pair.wait(cid)) for cid in stuck} == {Status.SUCCESS}


@pytest.mark.point("Q09")
def test_commands_that_wait_for_storage_end_with_their_queue(make_live: MakeLive) -> None:
    slow = Slow()
    bench = make_live(slow)
    driver = bench.driver.enable()
    pair = driver.create_queue_pair(1, entries=1024)
    slow.gate.clear()
    count = 600
    for number in range(count):
        pair.submit(driver.rw(IoOpcode.READ, 0, 1, driver.data, 512), cid=number)
    pair.ring()
    bench.until(lambda: len(bench.device.state.outstanding) == 256)
    deletion = driver.admin.submit(Command(AdminOpcode.DELETE_IO_SQ, cdw10=1))
    state = bench.device.state
    still = state.still

    def let_it_finish() -> None:
        slow.gate.set()
        still()

    state.still = let_it_finish
    driver.admin.ring()
    assert ended(driver.admin.wait(deletion)) == Status.SUCCESS
    found = pair.poll(acknowledge=False)
    assert {completion.cid for completion in found} == set(range(count))
    assert {ended(completion) for completion in found} == {Status.ABORTED_SQ_DELETION}
    assert len(slow.done) <= 1, "only the call that was under way"
    assert ended(driver.admin.execute(Command(AdminOpcode.DELETE_IO_CQ, cdw10=1))) == Status.SUCCESS


@pytest.mark.point("S01")
def test_resets_under_load_leave_nothing_behind(make_live: MakeLive) -> None:
    bench = make_live(pollers=2)
    for _ in range(5):
        driver = bench.driver.enable()
        pairs = [driver.create_queue_pair(qid, entries=64) for qid in (1, 2)]
        for pair in pairs:
            for _ in range(30):
                pair.submit(driver.rw(IoOpcode.READ, 0, 8, driver.data, PAGE))
                pair.submit(Command(0xFF, nsid=1))
            pair.ring()
        bench.step()
        driver.disable()
        before = [driver.ram.read(pair.cq, 64 * 16) for pair in pairs]
        for _ in range(3):
            bench.step()
        assert [driver.ram.read(pair.cq, 64 * 16) for pair in pairs] == before


@pytest.mark.point("S01")
def test_a_controller_that_has_failed_carries_nothing_out_though_memory_comes_and_goes(
    make_live: MakeLive,
) -> None:
    bench = make_live(doorbells="mmap")
    write = map_page(bench)
    driver = bench.driver.enable()
    pair = driver.create_queue_pair()
    hardware = bench.device.state.hardware
    assert hardware is not None
    hardware.fail()
    pair.submit(FLUSH)
    write(2 * pair.qid, pair.tail)
    bench.bus_master(False)
    bench.bus_master(True)
    for _ in range(50):
        bench.step()
    assert pair.poll() == []
    driver.disable()
    assert ended(driver.enable().create_queue_pair().execute(FLUSH)) == Status.SUCCESS


def test_queues_change_lanes_as_memory_comes_and_goes(make_live: MakeLive) -> None:
    bench = make_live(pollers=2, doorbells="mmap")
    driver = bench.driver.enable()
    other = 0x7_0000_0000
    pair = QueuePair(driver, 1, 64)
    fd, offset = bench.fd, pair.sq - RAM_ADDRESS
    bench.device.dma_map(Mapping(other, PAGE, fd=os.dup(fd), offset=offset))
    create = driver.create_sq(pair)
    create.prp1 = other
    assert ended(driver.admin.execute(driver.create_cq(pair))) == Status.SUCCESS
    assert ended(driver.admin.execute(create)) == Status.SUCCESS
    sq = bench.device.state.submission[1]
    expected = []
    for turn in range(6):
        assert sq.fast
        expected += [pair.submit(FLUSH if turn % 2 else Command(0xFF, nsid=1)) for _ in range(10)]
        pair.ring()
        bench.device.dma_unmap(other, PAGE)
        assert not sq.fast
        bench.step()
        bench.device.dma_map(Mapping(other, PAGE, fd=os.dup(fd), offset=offset))
        for cid in expected:
            pair.wait(cid)
        expected.clear()
    bench.device.dma_unmap(other, PAGE)


def test_a_queue_in_memory_that_is_gone_is_watched_until_it_is_back(make_live: MakeLive) -> None:
    """With mapped doorbells nobody rings for Python either: a poller looks."""
    bench = make_live(doorbells="mmap")
    write = map_page(bench)
    driver = bench.driver.enable()
    pair = QueuePair(driver, 1, 16)
    create = driver.create_cq(pair)
    create.prp1 = 0x9_0000_0000
    assert ended(driver.admin.execute(create)) == Status.SUCCESS
    assert ended(driver.admin.execute(driver.create_sq(pair))) == Status.SUCCESS
    cid = pair.submit(FLUSH)
    write(2, pair.tail)
    bench.until(lambda: bench.device.state.completion[1].owed)
    bench.device.dma_map(Mapping(0x9_0000_0000, PAGE, fd=os.dup(bench.fd), offset=pair.cq - RAM_ADDRESS))
    Mapped(bench, pair, write)
    assert ended(pair.wait(cid)) == Status.SUCCESS
    assert ended(complete(bench, pair, [FLUSH])[0]) == Status.SUCCESS
    bench.device.dma_unmap(0x9_0000_0000, PAGE)


@pytest.mark.point("Q13", "Q14")
@pytest.mark.parametrize("number", [2, 3], ids=["tail", "head"])
def test_a_doorbell_with_a_value_that_cannot_be_is_an_event_and_no_more(
    make_live: MakeLive, number: int
) -> None:
    bench = make_live(doorbells="mmap")
    write = map_page(bench)
    driver = bench.driver.enable()
    pair = driver.create_queue_pair(1, vector=1)
    Mapped(bench, pair, write)
    driver.admin.submit(Command(AdminOpcode.ASYNC_EVENT_REQUEST), cid=77)
    driver.admin.ring()
    write(number, 0xFFFF)
    cid = pair.submit(FLUSH)
    if number == 3:
        pair.acknowledge = lambda: None  # type: ignore[method-assign]
        pair.ring()
    assert driver.admin.wait(77).result & 0xFFFF == 0x0100
    pair.ring()
    assert ended(pair.wait(cid)) == Status.SUCCESS


def test_interrupts_go_by_the_clients_eventfd_and_by_python_where_that_is_masked(make_live: MakeLive) -> None:
    bench = make_live(grace=100)
    bench.config.write(find_capability(bench, 0x11) + 2, 2, 0x8000)
    listener = Listener(bench, 2, 129)
    driver = bench.driver.enable()
    pair = driver.create_queue_pair(1, vector=1)
    quiet = driver.create_queue_pair(2)
    heard = 0

    def listen() -> int:
        nonlocal heard
        heard += listener.heard(1)
        return heard

    assert {ended(done) for done in complete(bench, quiet, [FLUSH] * 3)} == {Status.SUCCESS}
    pair.submit(FLUSH)
    pair.ring()
    bench.until(listen)
    pair.poll()
    mask = 0x2000 + 16 + 12
    bench.bar.write32(mask, 1)
    pair.submit(FLUSH)
    pair.ring()
    bench.until(lambda: bench.bar.read64(0x3000) == 1 << 1)
    before = listen()
    bench.bar.write32(mask, 0)
    bench.until(lambda: listen() > before)
    pair.poll()
    bench.device.set_irqs(2, IrqAction.TRIGGER, IrqData.NONE, 0, 0)
    assert ended(complete(bench, pair, [FLUSH])[0]) == Status.SUCCESS
    listener.close()


@pytest.mark.point("F05")
def test_interrupts_are_coalesced_until_the_time_is_up(make_live: MakeLive) -> None:
    bench = make_live()
    bench.config.write(find_capability(bench, 0x11) + 2, 2, 0x8000)
    listener = Listener(bench, 2, 129)
    driver = bench.driver.enable()
    assert ended(driver.set_feature(FeatureId.INTERRUPT_COALESCING, 0xFF | 20 << 8)) == Status.SUCCESS
    pair = driver.create_queue_pair(1, vector=1)
    for _ in range(10):
        pair.submit(FLUSH)
    pair.ring()
    heard = 0

    def listen() -> int:
        nonlocal heard
        heard += listener.heard(1)
        return heard

    bench.until(listen)
    assert heard == 1
    assert len(pair.poll()) == 10
    listener.close()


def test_a_client_that_comes_back_finds_its_queues(make_live: MakeLive) -> None:
    bench = make_live()
    driver = bench.driver.enable()
    pair = driver.create_queue_pair(1)
    bench.device.disconnected()
    bench.device.connected(None)
    bench.map()
    bench.bus_master(True)
    assert {ended(done) for done in complete(bench, pair, [FLUSH] * 5)} == {Status.SUCCESS}
