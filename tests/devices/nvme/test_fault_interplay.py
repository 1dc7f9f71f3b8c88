"""Faults that come and go while everything else happens, too (T04)."""

import random
import threading
from typing import Any

import pytest

from outboard.devices.nvme import Fault, Namespace, Nvme
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.spec import AdminOpcode, IoOpcode
from outboard.devices.nvme.status import Status
from outboard.native.jit import available
from outboard.storage import RamStorage, open_storage
from tests.devices.nvme.conftest import MakeBench
from tests.devices.nvme.datapath.live import LiveBench, complete, tuning
from tests.devices.nvme.driver import PAGE, QueuePair
from tests.devices.nvme.stand import FLUSH, Stand

EFFECTS: list[dict[str, Any]] = [
    {"status": (2, 0x81)},
    {"status": (0, 6), "delay": (0, 0.001)},
    {"delay": ("exponential", 0.0005)},
    {"hang": "abort"},
    {"hang": "reset"},
    {"lost_completion": True},
    {"lost_interrupt": True},
    {"torn": 1},
    {"flip": 9},
    {"lie": True},
]


def any_fault(chance: random.Random) -> Fault:
    effects = chance.choice(EFFECTS)
    admin = not effects.keys() & {"torn", "flip", "lie"} and chance.random() < 0.3
    return Fault(queue="admin" if admin else "io", probability=0.3, seed=chance.getrandbits(32), **effects)


class Life:
    """A controller under random commands, from its start to a reset: what may still come and what may not."""

    def __init__(self, stand: Stand, chance: random.Random) -> None:
        self.stand, self.chance = stand, chance
        self.under_way: dict[QueuePair, set[int]] = {stand.pair: set(), stand.driver.admin: set()}

    def collect(self) -> None:
        self.stand.bench.settle()
        for pair, cids in self.under_way.items():
            for completion in pair.poll():
                assert completion.cid in cids, "it was completed before, or never begun"
                cids.remove(completion.cid)

    def submit(self, pair: QueuePair, command: Command) -> None:
        if len(self.under_way[pair]) < pair.entries - 1:
            self.under_way[pair].add(pair.submit(command))
            pair.ring()

    def step(self) -> None:
        stand, chance = self.stand, self.chance
        match chance.choice(["io"] * 8 + ["admin"] * 2 + ["abort", "inject", "inject", "remove"]):
            case "io":
                opcode = chance.choice([IoOpcode.READ, IoOpcode.WRITE, IoOpcode.FLUSH, IoOpcode.COMPARE])
                command = FLUSH if opcode == IoOpcode.FLUSH else stand.rw(opcode, chance.randrange(64))
                self.submit(stand.pair, command)
            case "admin":
                self.submit(stand.driver.admin, Command(AdminOpcode.KEEP_ALIVE))
            case "abort" if self.under_way[stand.pair]:
                cid = chance.choice([*self.under_way[stand.pair]])
                self.submit(stand.driver.admin, Command(AdminOpcode.ABORT, cdw10=1 | cid << 16))
            case "inject":
                stand.faults.inject(any_fault(chance))
            case "remove" if injected := stand.faults.list():
                stand.faults.remove(chance.choice(injected).id)


@pytest.mark.parametrize("seed", range(6))
def test_whatever_faults_do_the_next_life_is_whole(make_bench: MakeBench, seed: int) -> None:
    """Nothing completes twice, nothing of one life comes in the next, and no place in a queue is lost."""
    chance = random.Random(seed)
    bench = make_bench()
    for turn in range(6):
        bench.driver.ram.rewind(PAGE)
        stand = Stand(bench)
        life = Life(stand, chance)
        for _ in range(40):
            life.step()
            if chance.random() < 0.5:
                life.collect()
        stand.faults.clear()
        life.collect()
        if turn % 2:
            deletion = stand.driver.admin.submit(Command(AdminOpcode.DELETE_IO_SQ, cdw10=1))
            life.under_way[stand.driver.admin].add(deletion)
            stand.driver.admin.ring()
            life.collect()
            assert deletion not in life.under_way[stand.driver.admin]
            assert stand.device.state.completion[1].pending == 0
            assert not [each for each in stand.device.state.outstanding.values() if each.sq.id]
        stand.driver.disable()
        assert not stand.device.state.outstanding
    stand = Stand(bench)
    for _ in range(2 * stand.pair.entries):
        assert stand.pair.execute(FLUSH).status == 0
        assert stand.driver.admin.execute(Command(AdminOpcode.KEEP_ALIVE)).status == 0


@pytest.mark.parametrize("file", [False, True], ids=["ram", "file"])
def test_faults_come_and_go_under_load_by_another_thread(tmp_path: Any, file: bool) -> None:
    storage = open_storage(f"{tmp_path}/disk.img,size=1M") if file else RamStorage(1 << 20)
    how = tuning("native" if available() else "plain", pollers=2)
    bench = LiveBench(Nvme(Namespace(storage), tuning=how))
    stand = Stand(bench)
    over, injected = threading.Event(), 0

    def come_and_go() -> None:
        nonlocal injected
        while not over.is_set():
            some = Fault(opcode=("read", "write"), status=Status.COMMAND_INTERRUPTED, every=2)
            unheard = Fault(opcode="flush", lost_interrupt=True)
            for id in [stand.faults.inject(fault) for fault in (some, unheard)]:
                stand.faults.remove(id)
            injected += 1

    thread = threading.Thread(target=come_and_go)
    thread.start()
    commands = [stand.rw(opcode, lba) for lba in range(10) for opcode in (IoOpcode.WRITE, IoOpcode.READ)]
    seen: set[int] = set()
    for _ in range(40):
        seen |= {each.status for each in complete(bench, stand.pair, [*commands, FLUSH])}
    over.set()
    thread.join()
    assert injected > 3
    assert seen <= {0, Status.COMMAND_INTERRUPTED}
    assert {each.status for each in complete(bench, stand.pair, commands)} == {0}
    bench.close()
