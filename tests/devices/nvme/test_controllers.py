"""Several controllers of one subsystem: what they have in common, and what one may do to another."""

import struct
import threading
from pathlib import Path

import pytest

from outboard.devices.nvme import Namespace, Nvme
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.datapath.tuning import Tuning
from outboard.devices.nvme.layouts import IDENTIFY_CONTROLLER, IDENTIFY_NAMESPACE
from outboard.devices.nvme.spec import BROADCAST, NSSR_KEY, AdminOpcode, Cns, FeatureId, IoOpcode, LogId
from outboard.devices.nvme.status import Status
from outboard.errors import StorageError
from outboard.storage import RamStorage, Storage, open_storage
from tests.devices.nvme.bench import Bench
from tests.devices.nvme.conftest import MakeBench, MakePaths
from tests.devices.nvme.driver import CSTS, NSSR, PAGE, READY, Driver, QueuePair, ended
from tests.devices.nvme.test_workers import Slow

NAMESPACE_NOTICES = 1 << 8
NAMESPACE_CHANGED = 2 | LogId.CHANGED_NAMESPACES << 16
SIZE = 4 << 20


def controller(driver: Driver) -> dict[str, object]:
    assert ended(driver.identify(Cns.CONTROLLER)) == Status.SUCCESS
    return dict(IDENTIFY_CONTROLLER.decode(driver.ram.read(driver.data, PAGE)))


def namespace(driver: Driver, nsid: int) -> dict[str, object]:
    assert ended(driver.identify(Cns.NAMESPACE, nsid)) == Status.SUCCESS
    return dict(IDENTIFY_NAMESPACE.decode(driver.ram.read(driver.data, PAGE)))


def active(driver: Driver) -> list[int]:
    assert ended(driver.identify(Cns.ACTIVE_NAMESPACES)) == Status.SUCCESS
    return [nsid for nsid in struct.unpack("<1024I", driver.ram.read(driver.data, PAGE)) if nsid]


@pytest.mark.point("Z04", "I05")
def test_controllers_differ_by_their_identifier_and_agree_on_the_rest(make_paths: MakePaths) -> None:
    disks = (Namespace(RamStorage(SIZE)), Namespace(RamStorage(SIZE), shared=False))
    first, second = (bench.driver.enable() for bench in make_paths(*disks, serial="BOTH"))
    one, two = controller(first), controller(second)
    assert (one.pop("cntlid"), two.pop("cntlid")) == (1, 2)
    assert one == two
    assert one["sn"] == b"BOTH".ljust(20)
    assert int(str(one["cmic"])) & 0b11 == 0b11
    assert namespace(first, 1) == namespace(second, 1)
    assert namespace(first, 1)["nmic"] == 1


@pytest.mark.point("Z04")
def test_a_private_namespace_is_one_controllers(make_paths: MakePaths) -> None:
    disks = (Namespace(RamStorage(SIZE)), Namespace(RamStorage(SIZE), shared=False))
    first, second = (bench.driver.enable() for bench in make_paths(*disks))
    assert (active(first), active(second)) == ([1, 2], [1])
    assert namespace(first, 2)["nmic"] == 0
    assert namespace(second, 2)["nsze"] == 0
    pair = second.create_queue_pair()
    reading = second.rw(IoOpcode.READ, 0, 1, second.data, 512, nsid=2)
    assert ended(pair.execute(reading)) == Status.INVALID_NAMESPACE


@pytest.mark.point("Z04")
def test_hosts_are_told_of_several_controllers_from_the_second_one_on_or_from_the_start(
    make_paths: MakePaths, make_bench: MakeBench
) -> None:
    assert controller(make_bench().driver.enable())["cmic"] == 0
    (alone,) = make_paths(count=1)
    assert controller(alone.driver.enable())["cmic"] == 0
    second = Bench(Nvme(subsystem=alone.device.subsystem, tuning=Tuning(pollers=0, native=False)))
    assert controller(alone.driver)["cmic"]
    second.leave()
    assert controller(alone.driver)["cmic"], "hosts look once"
    (early,) = make_paths(RamStorage(SIZE), count=1, multipath=True)
    assert controller(early.driver.enable())["cmic"]


STORAGES = ("ram:4M", "{}/disk.img,size=4M", "{}/disk.img,size=4M,direct=on", "slow")


@pytest.mark.point("Z04")
@pytest.mark.parametrize("spec", STORAGES)
@pytest.mark.parametrize("pollers", [0, 1])
def test_what_one_controller_writes_another_one_reads(
    make_paths: MakePaths, spec: str, pollers: int, tmp_path: Path
) -> None:
    try:
        storage: Storage = Slow() if spec == "slow" else open_storage(spec.format(tmp_path))
    except StorageError as error:
        pytest.skip(str(error))
    pairs = [
        bench.driver.enable().create_queue_pair(1, entries=64)
        for bench in make_paths(storage, pollers=pollers)
    ]
    for turn in range(40):
        writer, reader = pairs if turn % 2 else pairs[::-1]
        at, data = turn * 7 % 60, struct.pack("<I", turn) * (PAGE // 4)
        writer.driver.ram.write(writer.driver.data, data)
        for pair, opcode in ((writer, IoOpcode.WRITE), (reader, IoOpcode.READ)):
            command = pair.driver.rw(opcode, at, 8, pair.driver.data, PAGE)
            assert ended(pair.execute(command)) == Status.SUCCESS
        assert reader.driver.ram.read(reader.driver.data, PAGE) == data


class Overlapping(Slow):
    """Notices whether it is called while it is at work."""

    busy = False
    overlapped = False

    def _do(self, what: str) -> None:
        self.overlapped |= self.busy
        self.busy = True
        super()._do(what)
        self.busy = False


@pytest.mark.point("Z04")
def test_a_storage_is_called_by_one_controller_at_a_time(make_paths: MakePaths) -> None:
    storage = Overlapping()
    benches = make_paths(storage)
    pairs = [bench.driver.enable().create_queue_pair(1, entries=64) for bench in benches]
    storage.gate.clear()
    commands = []
    for bench, pair in zip(benches, pairs, strict=True):
        for _ in range(20):
            commands.append((pair, pair.submit(pair.driver.rw(IoOpcode.READ, 0, 1, pair.driver.data, 512))))
        pair.ring()
        bench.settle()
    storage.gate.set()
    assert {ended(pair.wait(cid)) for pair, cid in commands} == {Status.SUCCESS}
    assert len(storage.threads) == 2
    assert not storage.overlapped


@pytest.mark.point("Z04", "E02")
@pytest.mark.parametrize("pollers", [0, 2])
def test_a_namespace_that_grows_grows_for_all(make_paths: MakePaths, pollers: int, tmp_path: Path) -> None:
    storage = open_storage(f"{tmp_path}/disk.img,size=1M")
    benches = make_paths(storage, pollers=pollers)
    pairs = [bench.driver.enable().create_queue_pair() for bench in benches]
    listening = []
    for pair in pairs:
        admin = pair.driver.admin
        asked = pair.driver.set_feature(FeatureId.ASYNC_EVENT_CONFIGURATION, NAMESPACE_NOTICES)
        assert ended(asked) == Status.SUCCESS
        listening.append(admin.submit(Command(AdminOpcode.ASYNC_EVENT_REQUEST)))
        admin.ring()
    (tmp_path / "disk.img").write_bytes(bytes(2 << 20))
    storage.size = 2 << 20
    benches[0].device.refresh(1)
    for pair, cid in zip(pairs, listening, strict=True):
        assert pair.driver.admin.wait(cid).result == NAMESPACE_CHANGED
        assert namespace(pair.driver, 1)["nsze"] == 4096
        last = pair.driver.rw(IoOpcode.WRITE, 4095, 1, pair.driver.data, 512)
        assert ended(pair.execute(last)) == Status.SUCCESS


@pytest.mark.point("Z04")
def test_commands_that_wait_for_a_storage_end_when_their_namespace_is_taken_away(
    make_paths: MakePaths,
) -> None:
    slow = Slow()
    first, second = make_paths(slow, RamStorage(SIZE))
    pair = second.driver.enable().create_queue_pair(1, entries=64)
    slow.gate.clear()
    slow.entered.clear()
    stuck = [pair.submit(pair.driver.rw(IoOpcode.WRITE, 0, 1, pair.driver.data, 512)) for _ in range(10)]
    pair.ring()
    second.settle()
    assert slow.entered.wait(60)
    state = second.device.state
    rest = state.rest

    def let_it_finish(storage: Storage) -> None:
        slow.gate.set()
        rest(storage)

    state.rest = let_it_finish
    first.device.subsystem.remove(1)
    assert len(slow.done) == 1, "the one that was under way has ended, and none is begun"
    assert {ended(pair.wait(cid)) for cid in stuck} == {Status.INVALID_NAMESPACE}
    assert active(first.driver.enable()) == active(pair.driver) == [2]
    there = pair.driver.rw(IoOpcode.READ, 0, 1, pair.driver.data, 512, nsid=2)
    assert ended(pair.execute(there)) == Status.SUCCESS
    assert len(slow.done) == 1


@pytest.mark.point("Z04")
@pytest.mark.parametrize("pollers", [0, 2])
def test_a_controller_goes_and_comes_while_another_one_works_on(make_paths: MakePaths, pollers: int) -> None:
    (bench,) = make_paths(count=1, pollers=pollers, multipath=True)
    pair = bench.driver.enable().create_queue_pair()
    read = pair.driver.rw(IoOpcode.READ, 0, 1, pair.driver.data, 512)
    subsystem = bench.device.subsystem
    for _ in range(3):
        other = Bench(Nvme(subsystem=subsystem, tuning=Tuning(pollers=0, native=False)))
        beside = other.driver.enable().create_queue_pair()
        assert other.device.cntlid == 2
        assert ended(beside.execute(read_of(beside))) == ended(pair.execute(read)) == Status.SUCCESS
        other.leave()
        assert sorted(subsystem.controllers) == [1]
        assert subsystem.namespaces[1].attached == {1}
        assert ended(pair.execute(read)) == Status.SUCCESS


def read_of(pair: QueuePair) -> Command:
    return pair.driver.rw(IoOpcode.READ, 0, 1, pair.driver.data, 512)


@pytest.mark.point("Z04", "S01", "R13")
def test_a_subsystem_reset_resets_every_controller(make_paths: MakePaths) -> None:
    benches = make_paths(count=3)
    for bench in benches:
        bench.driver.enable()
        assert bench.bar.read32(CSTS) & READY
    benches[1].bar.write32(NSSR, NSSR_KEY)
    for bench in benches:
        bench.settle()
        assert bench.bar.read32(CSTS) == 1 << 4, "not ready, and it says why"
    assert all(bench.driver.enable().status & READY for bench in benches)


def test_a_flush_of_all_leaves_out_a_namespace_that_has_gone_meanwhile(make_bench: MakeBench) -> None:
    slow, gone = Slow(), Slow()
    bench = make_bench(slow, gone)
    pair = bench.driver.enable().create_queue_pair(1)
    slow.gate.clear()
    cid = pair.submit(Command(IoOpcode.FLUSH, nsid=BROADCAST))
    pair.ring()
    bench.settle()
    bench.device.subsystem.remove(2).storage.close()
    slow.gate.set()
    assert ended(pair.wait(cid)) == Status.SUCCESS
    assert (slow.done, gone.done) == (["flush"], [])


@pytest.mark.point("Z04")
@pytest.mark.parametrize("how", ["reset", "delete", "disconnect"])
def test_a_storage_that_does_not_answer_holds_up_no_other_controller(make_paths: MakePaths, how: str) -> None:
    slow = Slow()
    first, second = make_paths(slow, RamStorage(SIZE))
    driver, other = first.driver.enable(), second.driver.enable()
    pair = driver.create_queue_pair(1)
    slow.gate.clear()
    pair.submit(Command(IoOpcode.FLUSH, nsid=1))
    pair.ring()
    first.settle()
    assert slow.entered.wait(60)

    def end() -> None:
        first.loop.run_pending()
        if how == "reset":
            driver.disable()
        elif how == "delete":
            driver.admin.submit(Command(AdminOpcode.DELETE_IO_SQ, cdw10=1))
            driver.admin.ring()
            first.settle()
        else:
            first.device.disconnected()

    ending = threading.Thread(target=end, daemon=True)
    ending.start()
    waiting = threading.Timer(20, slow.gate.set)
    waiting.start()
    while first.device.state.outstanding and not first.device._gone:
        assert ended(other.identify(Cns.CONTROLLER)) == Status.SUCCESS
    assert ended(other.create_queue_pair(1).execute(Command(IoOpcode.FLUSH, nsid=2))) == Status.SUCCESS
    assert not slow.gate.is_set(), "that took as long as the storage did"
    waiting.cancel()
    slow.gate.set()
    ending.join(60)
    assert not ending.is_alive()
    first.loop.run_pending()
    assert slow.done == ["flush"]


def test_a_reset_by_another_thread_carries_nothing_out_in_that(make_paths: MakePaths) -> None:
    slow = Slow()
    (bench,) = make_paths(slow, count=1)
    bench.driver.enable()
    slow.gate.clear()
    seen: list[threading.Thread] = []
    bench.device.controller.flush(lambda: seen.append(threading.current_thread()))
    assert slow.entered.wait(60)
    cutting = threading.Thread(target=bench.device.power_cut)
    cutting.start()
    slow.gate.set()
    cutting.join(60)
    bench.loop.run_once(60)
    assert seen == []


def test_a_disk_of_nothing_may_be_shared_however_large_it_is(make_paths: MakePaths) -> None:
    first, second = make_paths(open_storage("null:1P"))
    assert active(first.driver.enable()) == active(second.driver.enable()) == [1]
