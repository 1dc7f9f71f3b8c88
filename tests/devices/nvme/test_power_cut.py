"""A controller whose power fails: what is left of commands, queues, features, data and counters."""

import random
import threading
from pathlib import Path

import pytest

from outboard.devices.nvme import Fault, Nvme, Subsystem
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.datapath.tuning import Tuning
from outboard.devices.nvme.layouts import HEALTH_LOG
from outboard.devices.nvme.spec import FeatureId, IoOpcode, LogId
from outboard.devices.nvme.status import Status
from outboard.native.jit import available
from outboard.storage import RamStorage, VolatileStorage, open_storage
from outboard.testing.faults import fail
from tests.devices.nvme.bench import Bench
from tests.devices.nvme.conftest import MakeBench
from tests.devices.nvme.datapath.live import LiveBench, tuning
from tests.devices.nvme.driver import ACQ, AQA, ASQ, CC, CSTS, PAGE, READY, ended
from tests.devices.nvme.stand import BLOCK, FLUSH, Stand
from tests.devices.nvme.test_moving import move

SIZE = 1 << 20


def unsafe_shutdowns(stand: Stand) -> int:
    stand.driver.get_log(LogId.HEALTH, 512)
    counted = HEALTH_LOG.decode(stand.driver.ram.read(stand.driver.data, 512))["unsafe_shutdowns"]
    assert isinstance(counted, int)
    return counted


def after(stand: Stand) -> Stand:
    """The next boot."""
    stand.bench.bus_master(True)
    return Stand(stand.bench)


@pytest.mark.point("S04", "T04")
def test_after_a_power_cut_it_is_as_after_power_on(make_bench: MakeBench) -> None:
    stand = Stand(make_bench(VolatileStorage(RamStorage(SIZE))))
    stand.driver.set_feature(FeatureId.ARBITRATION, 3)
    until_power_cycle = stand.driver.set_feature(FeatureId.NAMESPACE_WRITE_PROTECTION, 2, nsid=1)
    assert until_power_cycle.status == 0
    assert ended(stand.write(0, bytes(BLOCK))) == Status.NAMESPACE_WRITE_PROTECTED
    stand.device.power_cut()
    bar = stand.bench.bar
    assert [bar.read32(at) for at in (CC, CSTS, AQA)] == [0, 0, 0]
    assert [bar.read64(at) for at in (ASQ, ACQ)] == [0, 0]
    stand = after(stand)
    assert stand.driver.get_feature(FeatureId.ARBITRATION).result & 7 != 3
    assert unsafe_shutdowns(stand) == 1
    assert stand.pair.execute(FLUSH).status == 0
    assert stand.write(0, bytes(BLOCK)).status == 0


def test_a_power_cut_after_a_shutdown_is_a_safe_one(make_bench: MakeBench) -> None:
    stand = Stand(make_bench(VolatileStorage(RamStorage(SIZE))))
    assert stand.write(0, b"kept" * 128).status == 0
    stand.bench.bar.write32(CC, stand.bench.bar.read32(CC) | 1 << 14)
    stand.bench.settle()
    while stand.driver.status >> 2 & 3 != 2:
        stand.driver.step()
    stand.device.power_cut()
    stand = after(stand)
    assert stand.read(0, 1) == b"kept" * 128
    assert unsafe_shutdowns(stand) == 0


@pytest.mark.point("N04", "N05", "T04", "N12")
@pytest.mark.parametrize("seed", range(6))
def test_what_was_flushed_outlives_any_power_cut(make_bench: MakeBench, seed: int) -> None:
    """Each block has what it had at the last flush, or a forced write, or anything written since."""
    chance = random.Random(seed)
    stand = Stand(make_bench(VolatileStorage(RamStorage(SIZE))))
    possible = {lba: {bytes(BLOCK)} for lba in range(24)}
    newest = {lba: bytes(BLOCK) for lba in possible}
    for life in range(3):
        for _ in range(40):
            what = chance.choice(["write", "write", "write", "forced", "zeroes", "flush"])
            lba, blocks = chance.randrange(16), chance.randrange(1, 9)
            if what == "flush":
                assert stand.pair.execute(FLUSH).status == 0
                possible = {each: {data} for each, data in newest.items()}
                continue
            data = [chance.randbytes(BLOCK) if what != "zeroes" else bytes(BLOCK) for _ in range(blocks)]
            if what == "zeroes":
                assert stand.pair.execute(stand.rw(IoOpcode.WRITE_ZEROES, lba, blocks)).status == 0
            else:
                forced = 1 << 30 if what == "forced" else 0
                assert stand.write(lba, b"".join(data), cdw12=forced).status == 0
            for each, block in zip(range(lba, lba + blocks), data, strict=True):
                newest[each] = block
                possible[each] = {block} if what == "forced" else possible[each] | {block}
        stand.device.power_cut(f"{seed} {life}")
        stand = after(stand)
        newest = {lba: stand.read(lba, 1) for lba in possible}
        assert all(newest[lba] in blocks for lba, blocks in possible.items())
        possible = {lba: {block} for lba, block in newest.items()}


def test_without_the_write_cache_every_completed_write_outlives_it(make_bench: MakeBench) -> None:
    disk = VolatileStorage(RamStorage(SIZE))
    stand = Stand(make_bench(disk))
    assert stand.driver.set_feature(FeatureId.VOLATILE_WRITE_CACHE, 0).status == 0
    for lba in range(20):
        assert stand.write(lba, bytes([lba + 1]) * BLOCK).status == 0
    stand.device.power_cut(3)
    assert all(disk.read(lba * BLOCK, 1) == bytes([lba + 1]) for lba in range(20))


def test_a_write_is_torn_by_the_cut_that_ends_it(make_bench: MakeBench) -> None:
    disk = VolatileStorage(RamStorage(SIZE))
    stand = Stand(make_bench(disk))
    assert stand.write(0, b"o" * PAGE).status == 0
    assert stand.pair.execute(FLUSH).status == 0
    for seed in range(5):
        stand.driver.ram.write(stand.buffer, b"n" * PAGE)
        with fail(stand.device, opcode="write", torn=3, power_cut=True, seed=seed) as fault:
            stand.begin(stand.rw(IoOpcode.WRITE, 0))
            while stand.driver.status & READY:
                stand.driver.step()
        assert fault.struck == 1
        assert disk.read(0, PAGE) == b"n" * 3 * BLOCK + b"o" * 5 * BLOCK
        assert stand.pair.poll() == []
        stand = after(stand)


def test_what_is_held_vanishes(make_bench: MakeBench) -> None:
    stand = Stand(make_bench(VolatileStorage(RamStorage(SIZE))))
    stand.faults.inject(Fault(opcode="write", delay=0.001))
    stand.begin(stand.rw(IoOpcode.WRITE, 0))
    stand.device.power_cut()
    assert not stand.device.state.outstanding
    stand = after(stand)
    assert stand.pair.execute(FLUSH).status == 0
    assert stand.pair.poll() == []


def test_all_controllers_of_a_subsystem_lose_power_together(lane: str) -> None:
    how = Tuning(pollers=0, native=lane == "native")
    disks = Subsystem(VolatileStorage(RamStorage(SIZE)))
    benches = [Bench(Nvme(subsystem=disks, tuning=how)) for _ in range(2)]
    stands = [Stand(bench) for bench in benches]
    disks.faults.inject(Fault(controller=2, opcode="flush", power_cut=True))
    assert stands[0].pair.execute(FLUSH).status == 0
    stands[1].begin(FLUSH)
    for stand in stands:
        assert stand.pair.poll() == []
        assert stand.driver.status == 0
    disks.faults.clear()
    for stand in map(after, stands):
        assert stand.pair.execute(FLUSH).status == 0
    for bench in benches:
        bench.close()


def test_it_may_come_from_any_thread_while_pollers_and_storages_work(tmp_path: Path) -> None:
    native = available()
    below = open_storage(f"{tmp_path}/disk.img,size=1M")
    bench = LiveBench(
        Nvme(
            VolatileStorage(below),
            RamStorage(SIZE),
            tuning=tuning("native" if native else "plain", pollers=1),
        )
    )
    stand = Stand(bench)
    for seed in range(5):
        for nsid in (1, 2):
            for lba in range(16):
                stand.pair.submit(stand.rw(IoOpcode.WRITE, lba, nsid=nsid))
        stand.pair.ring()
        cutting = threading.Thread(target=stand.device.power_cut, args=(seed,))
        cutting.start()
        while cutting.is_alive():
            bench.loop.run_once(timeout=0.01)
        bench.settle()
        bench.bus_master(True)
        bench.driver.ram.rewind(0)
        stand = Stand(bench)
        assert stand.pair.execute(FLUSH).status == 0
    bench.close()


def test_a_disk_with_a_write_cache_moves_with_what_it_holds(make_bench: MakeBench, lane: str) -> None:
    stand = Stand(make_bench(VolatileStorage(RamStorage(SIZE))))
    assert stand.write(0, b"held" * 128).status == 0
    stand.faults.inject(Fault(opcode="read", delay=60))
    stand.faults.inject(Fault(opcode="keep_alive", delay=60))
    late = stand.begin(stand.rw(IoOpcode.READ, 0, 1))
    admin = stand.begin(Command(0x18), stand.driver.admin)
    how = Tuning(pollers=0, native=lane == "native")
    target = move(stand.bench, Nvme(VolatileStorage(RamStorage(SIZE)), tuning=how))
    assert stand.pair.wait(late).status == 0
    assert ended(stand.driver.admin.wait(admin)) == Status.SUCCESS
    assert stand.driver.ram.read(stand.buffer, BLOCK) == b"held" * 128
    target.close()
