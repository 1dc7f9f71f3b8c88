"""A controller that is at work goes on in another place, and its driver does not notice."""

import base64
import os
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from outboard import state
from outboard.devices.nvme import Namespace, Nvme, saved_state
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.datapath.tuning import Tuning
from outboard.devices.nvme.spec import AdminOpcode, FeatureId, IoOpcode, LogId
from outboard.devices.nvme.status import Status
from outboard.errors import StateError
from outboard.storage import FileStorage, RamStorage, Storage
from tests.devices.nvme.bench import Bench
from tests.devices.nvme.conftest import MakeBench
from tests.devices.nvme.datapath.live import LiveBench, tuning, use_shadow
from tests.devices.nvme.driver import PAGE, Driver, QueuePair, ended
from tests.devices.nvme.test_workers import Slow
from tests.devices.nvme.zoned import ALL_SETS, zoned

BLOCKS = 256


def move(source: Bench, device: Nvme, kind: type[Bench] = Bench) -> Bench:
    """Take the source's controller to ``device``, with the same guest memory and the same driver."""
    source.settle()
    source.device.stop_device()
    stream = source.device.save_state()
    target = kind(device, source.fd)
    device.stop_device()
    device.restore_state(stream)
    device.run_device()
    driver = source.driver
    driver.bar, driver.step = target.bar, target.step
    driver.ram.view = memoryview(target.memory)
    target.driver = driver
    return target


Move = Callable[..., Bench]


@pytest.fixture
def moved(lane: str, request: pytest.FixtureRequest) -> Move:
    """Moves to a new controller with the namespaces given, and closes both at the end."""

    def go(source: Bench, *namespaces: Namespace | Storage, **options: Any) -> Bench:
        options.setdefault("tuning", Tuning(pollers=0, native=lane == "native"))
        target = move(source, Nvme(*namespaces, **options), type(source))
        request.addfinalizer(target.close)
        return target

    return go


def blocks(pair: QueuePair, opcode: IoOpcode, at: int, buffer: int) -> Command:
    return pair.driver.rw(opcode, at, 8, buffer, PAGE)


class ShadowPair(QueuePair):
    """Tells by way of guest memory, and by a message all the same: a device may not mind."""

    doorbells: int

    @classmethod
    def create(cls, driver: Driver, entries: int = 16) -> "ShadowPair":
        doorbells, _ = use_shadow(driver)
        pair = cls(driver, 1, entries)
        pair.doorbells = doorbells
        for command in (driver.create_cq(pair), driver.create_sq(pair)):
            assert ended(driver.admin.execute(command)) == Status.SUCCESS
        return pair

    def ring(self) -> None:
        self.driver.ram.write(self.doorbells + 8, self.tail.to_bytes(4, "little"))
        super().ring()

    def acknowledge(self) -> None:
        self.driver.ram.write(self.doorbells + 12, self.head.to_bytes(4, "little"))
        super().acknowledge()


@pytest.mark.point("P114")
def test_what_was_written_before_is_read_after(make_bench: MakeBench, moved: Move) -> None:
    bench = make_bench(RamStorage(1 << 20))
    driver = bench.driver.enable()
    pair = driver.create_queue_pair(1, entries=5)
    buffer = driver.ram.allocate(PAGE)
    for number in range(7):
        driver.ram.write(buffer, bytes([number]) * PAGE)
        assert ended(pair.execute(blocks(pair, IoOpcode.WRITE, 8 * number, buffer))) == Status.SUCCESS
    target = moved(bench, RamStorage(1 << 20))
    for number in range(7):
        assert ended(pair.execute(blocks(pair, IoOpcode.READ, 8 * number, buffer))) == Status.SUCCESS
        assert driver.ram.read(buffer, PAGE) == bytes([number]) * PAGE
    assert target.device.state.health.totals[:2] == (7, 7)
    assert ended(driver.identify(1)) == Status.SUCCESS


def test_commands_in_the_queue_are_executed_where_it_goes_on(make_bench: MakeBench, moved: Move) -> None:
    bench = make_bench(RamStorage(1 << 20))
    pair = bench.driver.enable().create_queue_pair(1)
    buffer = bench.driver.ram.allocate(PAGE)
    bench.driver.ram.write(buffer, b"later" * 8)
    bench.device.stop_device()
    cid = pair.submit(blocks(pair, IoOpcode.WRITE, 0, buffer))
    pair.ring()
    bench.settle()
    assert not pair.poll()
    storage = RamStorage(1 << 20)
    moved(bench, storage)
    assert ended(pair.wait(cid)) == Status.SUCCESS
    assert storage.read(0, 5) == b"later"


def test_shadow_doorbells_move_with_it(make_bench: MakeBench, moved: Move) -> None:
    bench = make_bench(RamStorage(1 << 20))
    driver = bench.driver.enable()
    pair = ShadowPair.create(driver)
    assert ended(pair.execute(Command(IoOpcode.FLUSH, nsid=1))) == Status.SUCCESS
    target = moved(bench, RamStorage(1 << 20))
    assert target.device.plane.shadow == bench.device.plane.shadow is not None
    for _ in range(3):
        assert ended(pair.execute(Command(IoOpcode.FLUSH, nsid=1))) == Status.SUCCESS


def test_features_event_requests_and_errors_move_with_it(make_bench: MakeBench, moved: Move) -> None:
    bench = make_bench(RamStorage(1 << 20))
    driver = bench.driver.enable()
    parked = driver.admin.submit(Command(AdminOpcode.ASYNC_EVENT_REQUEST))
    driver.admin.ring()
    set_arbitration = Command(AdminOpcode.SET_FEATURES, cdw10=FeatureId.ARBITRATION, cdw11=0x0102_0302)
    assert ended(driver.admin.execute(set_arbitration)) == Status.SUCCESS
    assert ended(driver.admin.execute(Command(0x77))) == Status.INVALID_OPCODE
    bench.device.subsystem.set_vitals(temperature=345, spare=7)
    for log, action in ((LogId.HOST_TELEMETRY, 1), (LogId.PERSISTENT_EVENTS, 1)):
        page = Command(AdminOpcode.GET_LOG_PAGE, prp1=driver.data, cdw10=log | action << 8 | 127 << 16)
        assert ended(driver.admin.execute(page)) == Status.SUCCESS
    target = moved(bench, RamStorage(1 << 20))
    state_there = target.device.state
    assert state_there.features.save()["current"] == bench.device.state.features.save()["current"]
    assert list(state_there.events.parked) == [parked]
    assert state_there.subsystem.vitals == bench.device.state.subsystem.vitals
    assert state_there.health.counters.power_cycles == 1
    assert state_there.telemetry.save() == bench.device.state.telemetry.save()
    assert state_there.event_context == bench.device.state.event_context != b""
    assert state_there.features.timestamp[6] == 1, "nobody knows how long it stood still"
    assert list(state_there.errors.entries) == list(bench.device.state.errors.entries)
    driver.bar.write32(0x1000 + 8 * 17, 1)  # a doorbell of no queue: an event
    assert driver.admin.wait(parked).status == Status.SUCCESS


@pytest.mark.parametrize("goes_on_here", [True, False], ids=["given up", "moved"])
def test_what_waits_for_a_slow_storage_is_begun_anew(lane: str, moved: Move, goes_on_here: bool) -> None:
    slow = Slow()
    slow.bytes[:5] = b"there"
    slow.gate.clear()
    bench = Bench(Nvme(slow, tuning=Tuning(pollers=0, native=lane == "native")))
    pair = bench.driver.enable().create_queue_pair(1)
    buffer = bench.driver.ram.allocate(PAGE)
    cids = [pair.submit(Command(IoOpcode.FLUSH, nsid=1)) for _ in range(2)]
    cids.append(pair.submit(bench.driver.rw(IoOpcode.READ, 0, 8, buffer, PAGE)))
    pair.ring()
    bench.loop.run_once(0)
    assert bench.device.state.outstanding
    slow.gate.set()
    bench.device.stop_device()
    assert not bench.device.state.outstanding
    assert not pair.poll()
    if goes_on_here:
        bench.device.run_device()
    else:
        elsewhere = Slow()
        elsewhere.bytes[:5] = b"there"
        moved(bench, elsewhere)
    for cid in cids:
        assert ended(pair.wait(cid)) == Status.SUCCESS
    assert bench.driver.ram.read(buffer, 5) == b"there"
    assert ended(pair.execute(Command(IoOpcode.FLUSH, nsid=1))) == Status.SUCCESS
    bench.close()


def test_a_fused_pair_that_waits_for_a_slow_storage_is_not_done_twice(lane: str) -> None:
    slow = Slow()
    slow.gate.clear()
    bench = Bench(Nvme(slow, tuning=Tuning(pollers=0, native=lane == "native")))
    driver = bench.driver.enable()
    pair = driver.create_queue_pair(1)
    old, new = (driver.ram.allocate(PAGE) for _ in range(2))
    driver.ram.write(new, b"new")
    compare = driver.rw(IoOpcode.COMPARE, 0, 1, old, 512, flags=1)
    cids = [pair.submit(each) for each in (compare, driver.rw(IoOpcode.WRITE, 0, 1, new, 512, flags=2))]
    pair.ring()
    bench.loop.run_once(0)
    assert slow.entered.wait(60)
    slow.gate.set()
    bench.device.stop_device()
    bench.device.run_device()
    assert [ended(pair.wait(cid)) for cid in cids] == [Status.SUCCESS] * 2
    assert slow.bytes[:3] == b"new"
    bench.close()


def test_a_source_that_is_run_again_goes_on(make_bench: MakeBench) -> None:
    bench = make_bench(RamStorage(1 << 20))
    pair = bench.driver.enable().create_queue_pair(1)
    for _ in range(3):
        bench.device.stop_device()
        bench.device.save_state()
        cid = pair.submit(Command(IoOpcode.FLUSH, nsid=1))
        pair.ring()
        bench.device.run_device()
        assert ended(pair.wait(cid)) == Status.SUCCESS


def test_a_controller_that_was_never_enabled_moves(make_bench: MakeBench, moved: Move) -> None:
    bench = make_bench(RamStorage(1 << 20))
    moved(bench, RamStorage(1 << 20))
    assert bench.driver.enable().status == 1


@pytest.mark.parametrize(
    ("storage", "options"),
    [
        (RamStorage(2 << 20), {}),
        (RamStorage(1 << 20), {"serial": "ANOTHER"}),
        (RamStorage(1 << 20), {"io_queues": 1}),
        (RamStorage(1 << 20), {"queue_entries": 4}),
        (RamStorage(1 << 20), {"vectors": 2}),
    ],
)
def test_another_controller_refuses_its_state(
    make_bench: MakeBench, storage: Storage, options: dict[str, Any]
) -> None:
    bench = make_bench(RamStorage(1 << 20))
    driver = bench.driver.enable()
    for qid in (1, 2):
        driver.create_queue_pair(qid, entries=8, vector=qid + 1)
    bench.device.stop_device()
    stream = bench.device.save_state()
    other = make_bench(storage, **options)
    other.device.stop_device()
    with pytest.raises(StateError):
        other.device.restore_state(stream)
    other.device.run_device()
    assert other.driver.enable().status == 1


def damaged(value: Any, chance: random.Random) -> Any:
    """The same JSON with one leaf changed."""
    if isinstance(value, dict) and value:
        key = chance.choice(list(value))
        return value | {key: damaged(value[key], chance)}
    if isinstance(value, list) and value:
        at = chance.randrange(len(value))
        return [*value[:at], damaged(value[at], chance), *value[at + 1 :]]
    return chance.choice([0, -1, 1, 2**16, 2**32, 2**64, 2**70, None, "x", [], {}, [[1]], 3.5, True])


@pytest.mark.parametrize(
    "damage",
    [
        {"taken": [[1, "00" * 63]]},
        {"write_protection": {"2": 0}},
        {"zones": {"1": base64.b64encode(b"no zones").decode()}},
        {"owed": [[0, 0, 1, 1 << 16, 0]]},
    ],
    ids=lambda damage: next(iter(damage)),
)
def test_a_state_with_what_cannot_be_is_refused(make_bench: MakeBench, damage: dict[str, Any]) -> None:
    bench = make_bench(zoned())
    bench.driver.enable(cc=ALL_SETS)
    bench.driver.create_queue_pair(1)
    bench.device.stop_device()
    saved = saved_state.save(bench.device.state)
    for owed in damage.get("owed", []):
        saved["completion"][1]["owed"].append(owed)
    bench.device.reset()
    with pytest.raises(StateError):
        saved_state.restore(bench.device.state, saved | damage)
    bench.device.reset()
    bench.device.run_device()


@pytest.mark.parametrize("seed", range(60))
def test_a_damaged_state_is_refused_or_harmless(make_bench: MakeBench, seed: int) -> None:
    bench = make_bench(RamStorage(64 << 10))
    driver = bench.driver.enable()
    pair = driver.create_queue_pair(1, entries=8)
    driver.admin.submit(Command(AdminOpcode.ASYNC_EVENT_REQUEST))
    driver.admin.ring()
    driver.admin.execute(Command(0x77))
    pair.execute(Command(IoOpcode.FLUSH, nsid=1))
    bench.device.stop_device()
    sections = state.decode(bench.device.save_state())
    sections["own/controller"] = damaged(sections["own/controller"], random.Random(seed))
    target = make_bench(RamStorage(64 << 10))
    target.device.stop_device()
    with suppress(StateError):
        target.device.restore_state(state.encode(sections))
    target.device.run_device()
    target.settle()
    target.driver.disable()
    assert target.driver.enable().status == 1


@pytest.mark.point("P116")
@pytest.mark.parametrize("where", ["ram", "file"])
def test_dirty_pages_are_never_short(make_bench: MakeBench, tmp_path: Any, where: str, lane: str) -> None:
    """Against what changed: memory is compared page by page with how it was at the last report."""
    storage: Storage
    if where == "ram":
        storage = RamStorage(1 << 20)
    else:
        path = tmp_path / "disk"
        path.write_bytes(os.urandom(1 << 20))
        storage = FileStorage(os.open(path, os.O_RDWR), 1 << 20, "disk")
    bench = make_bench(storage)
    chance = random.Random(1)
    driver = bench.driver.enable()
    pair = driver.create_queue_pair(1, entries=64)
    buffers = [driver.ram.allocate(4 * PAGE) for _ in range(16)]
    dma = bench.device.dma
    starts = [(mapping.address, mapping.size) for mapping in dma.maps]
    base = starts[0][0]
    dma.start_log()
    before = bytes(bench.memory)
    for _ in range(30):
        cids = []
        for _ in range(chance.randrange(1, 40)):
            buffer = chance.choice(buffers) + 4 * chance.randrange(PAGE // 4)
            size = 512 * chance.randrange(1, 17)
            opcode = chance.choice([IoOpcode.READ, IoOpcode.READ, IoOpcode.WRITE])
            if opcode == IoOpcode.WRITE:
                driver.ram.write(buffer, os.urandom(size))
            cids.append(pair.submit(driver.rw(opcode, chance.randrange(1000), size // 512, buffer, size)))
        driver_wrote = bytes(bench.memory)
        pair.ring()
        for cid in cids:
            pair.wait(cid)
        after = bytes(bench.memory)
        dirty = set()
        for address, size in starts:
            bits = int.from_bytes(dma.take_dirty(address, size), "little")
            dirty |= {address + n * PAGE for n in range(size // PAGE) if bits >> n & 1}
        changed = {
            base + at
            for at in range(0, len(after), PAGE)
            if driver_wrote[at : at + PAGE] != after[at : at + PAGE]
        }
        assert changed <= dirty
        assert len(dirty) < 200
    assert before != after
    dma.stop_log()


@pytest.mark.parametrize("doorbells", ["trapped", "shadow", "mmap"])
def test_a_busy_controller_with_pollers_moves_again_and_again(
    lane: str, moved: Move, tmp_path: Any, doorbells: str
) -> None:
    """Writes and reads of a shared file, a dozen in flight at each move; all that was written is read."""
    path = tmp_path / "disk"
    path.write_bytes(bytes(BLOCKS * 512))

    def disk() -> FileStorage:
        return FileStorage(os.open(path, os.O_RDWR), BLOCKS * 512, "disk")

    options: dict[str, Any] = {"tuning": tuning(lane), "doorbells": doorbells}
    bench: Bench = LiveBench(Nvme(disk(), **options))
    first = bench
    driver = bench.driver.enable()
    pair = ShadowPair.create(driver) if doorbells == "shadow" else driver.create_queue_pair(1)
    chance = random.Random(2)
    buffers = [driver.ram.allocate(PAGE) for _ in range(12)]
    content = [bytes(512)] * BLOCKS
    for _ in range(8):
        places = chance.sample(range(BLOCKS), len(buffers))
        expected: dict[int, tuple[int, int]] = {}
        for buffer, at in zip(buffers, places, strict=True):
            if chance.random() < 0.5:
                content[at] = os.urandom(512)
                driver.ram.write(buffer, content[at])
                expected[pair.submit(driver.rw(IoOpcode.WRITE, at, 1, buffer, 512))] = (0, at)
            else:
                expected[pair.submit(driver.rw(IoOpcode.READ, at, 1, buffer, 512))] = (buffer, at)
        pair.ring()
        bench = moved(bench, disk(), **options)
        for cid, (buffer, at) in expected.items():
            assert ended(pair.wait(cid)) == Status.SUCCESS
            if buffer:
                assert driver.ram.read(buffer, 512) == content[at]
    first.close()
    assert path.read_bytes() == b"".join(content)
