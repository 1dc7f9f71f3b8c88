"""Clients of one subsystem, each in a thread of its own, that get in each other's way as much as they can.

Each has its server, and its part of a shared namespace that nobody else writes. Meanwhile namespaces come and
go, paths open and close, hosts reserve and preempt, and one client vanishes again and again.
"""

import random
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from outboard import Server
from outboard.client import Client
from outboard.devices.nvme import AnaState, Namespace, Nvme, Subsystem
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.datapath.tuning import Tuning
from outboard.devices.nvme.spec import AdminOpcode, Cns, FeatureId, IoOpcode, LogId
from outboard.devices.nvme.status import Status
from outboard.storage import RamStorage
from tests.devices.nvme.driver import FATAL, PAGE, Driver, Ram, ended
from tests.devices.nvme.hosts import ACQUIRE, CLEAR, PREEMPT_AND_ABORT
from tests.devices.nvme.test_workers import Slow

SIZE = 4 << 20
PART = 128
"""Blocks of the first namespace that are one client's own."""


class Guest:
    """A client with a driver, over a socket; without ``shared`` memory every byte goes by message."""

    def __init__(self, path: Path, number: int, *, shared: bool = True) -> None:
        self.number = number
        self.random = random.Random(number)
        self.client = Client(path, timeout=60, patience=60)
        self.client.bus_master(True)
        memory = self.client.memory(1 << 20, shared=shared)
        self.driver = Driver(self.client.bar(0), Ram(memory.view, memory.address), self.step)
        self.driver.disable()
        self.driver.enable()
        self.pair = self.driver.create_queue_pair(1, entries=16)
        self.found: dict[int, bytes] = {}

    def step(self) -> None:
        """Ask for the status: messages for memory are answered meanwhile."""
        assert not self.driver.status & FATAL

    def check_part(self) -> None:
        """Write to a place of its own, or read what it wrote there: whatever others do, it is so."""
        driver = self.driver
        place = self.random.randrange(PART // 8)
        slba = self.number * PART + 8 * place
        if self.random.random() < 0.5:
            data = self.random.randbytes(16) * (PAGE // 16)
            driver.ram.write(driver.data, data)
            writing = driver.rw(IoOpcode.WRITE, slba, 8, driver.data, PAGE)
            assert self.insist(writing) == Status.SUCCESS
            self.found[place] = data
        elif place in self.found:
            reading = driver.rw(IoOpcode.READ, slba, 8, driver.data, PAGE)
            assert self.insist(reading) == Status.SUCCESS
            assert driver.ram.read(driver.data, PAGE) == self.found[place]

    def insist(self, command: Command) -> Status:
        """How a command ends that is tried again while a namespace is being resized, as drivers do."""
        while (status := ended(self.pair.execute(command))) == Status.COMMAND_INTERRUPTED:
            pass
        return status

    def meddle(self) -> None:
        """Something that concerns the others' data planes, or a namespace that they may not have now."""
        driver = self.driver
        what = self.random.randrange(6)
        if what == 0:
            key = struct.pack("<QQ", 0, self.number + 1)
            driver.ram.write(driver.data, key)
            self.pair.execute(Command(IoOpcode.RESERVATION_REGISTER, nsid=2, prp1=driver.data))
        elif what == 1:
            action = self.random.choice((ACQUIRE, PREEMPT_AND_ABORT))
            driver.ram.write(driver.data, struct.pack("<QQ", self.number + 1, self.random.randrange(4)))
            cdw10 = action | self.random.randint(1, 6) << 8
            self.pair.execute(Command(IoOpcode.RESERVATION_ACQUIRE, nsid=2, prp1=driver.data, cdw10=cdw10))
        elif what == 2:
            driver.ram.write(driver.data, struct.pack("<Q", self.number + 1))
            self.pair.execute(Command(IoOpcode.RESERVATION_RELEASE, nsid=2, prp1=driver.data, cdw10=CLEAR))
        elif what == 3:
            driver.set_feature(FeatureId.VOLATILE_WRITE_CACHE, self.random.randrange(2))
            driver.identify(Cns.NAMESPACE, 2)
            driver.get_log(LogId.NAMESPACE_ACCESS)
        elif what == 4:
            driver.admin.execute(Command(AdminOpcode.DELETE_IO_SQ, cdw10=1))
            driver.admin.execute(Command(AdminOpcode.DELETE_IO_CQ, cdw10=1))
            driver.ram.rewind(len(driver.ram.view) // 2)
            self.pair = driver.create_queue_pair(1, entries=16)
        else:
            nsid = self.random.choice((2, 3))
            cids = [
                self.pair.submit(driver.rw(self.random.choice(RW), 0, 1, driver.data, 512, nsid=nsid))
                for _ in range(8)
            ]
            self.pair.ring()
            for cid in cids:
                self.pair.wait(cid)


RW = (IoOpcode.READ, IoOpcode.WRITE)


@contextmanager
def served(folder: Path, *, native: bool) -> Iterator[tuple[Subsystem, list[Path]]]:
    """Four controllers with their servers; namespaces 1 and 2 in memory, and 3 in plain Python."""
    subsystem = Subsystem(RamStorage(SIZE), Namespace(RamStorage(SIZE), ana_group=2), Slow())
    paths = [folder / f"{number}.sock" for number in range(4)]
    with ExitStack() as stack:
        devices = [
            Nvme(subsystem=subsystem, tuning=Tuning(pollers=pollers, native=native, spin=5))
            for pollers in (2, 1, 1, 0)
        ]
        for device, path in zip(devices, paths, strict=True):
            stack.callback(device.close)
            stack.enter_context(Server(device, path).start())
        yield subsystem, paths
    for space in subsystem.namespaces.values():
        space.storage.close()


def prove(folder: Path, *, native: bool, seconds: float) -> None:
    """All of it for so long; an error or a wait without end in one thread ends all."""
    over = threading.Event()
    turns = [0] * 5

    def until_over(number: int, turn: Callable[[], None]) -> None:
        try:
            while not over.is_set():
                turn()
                turns[number] += 1
        finally:
            over.set()

    def work(number: int, path: Path, shared: bool) -> None:
        guest = Guest(path, number, shared=shared)

        def turn() -> None:
            guest.check_part()
            if guest.random.random() < 0.2:
                guest.meddle()

        with guest.client:
            until_over(number, turn)

    def vanish(path: Path) -> None:
        guest = Guest(path, 3)
        elsewhere = guest.driver.ram.allocate(PAGE)
        for _ in range(5):
            guest.pair.submit(guest.driver.rw(IoOpcode.READ, 0, 8, elsewhere, PAGE, nsid=3))
            guest.check_part()
        guest.pair.ring()
        guest.client.close()

    def rule(subsystem: Subsystem, chance: random.Random) -> None:
        cntlid = chance.randint(1, 4)
        what = chance.randrange(4)
        if what == 0:
            subsystem.detach(2, cntlid)
            subsystem.attach(2, cntlid)
            subsystem.announce(2)
        elif what == 1:
            subsystem.set_ana(cntlid, 2, chance.choice(list(AnaState)))
        elif what == 2:
            subsystem.resized(1)
        else:
            subsystem.add(subsystem.remove(3), 3)

    with served(folder, native=native) as (subsystem, paths), ThreadPoolExecutor(5) as pool:
        chance = random.Random(7)
        running = [
            pool.submit(work, 0, paths[0], True),
            pool.submit(work, 1, paths[1], False),
            pool.submit(work, 2, paths[2], True),
            pool.submit(until_over, 3, lambda: vanish(paths[3])),
            pool.submit(until_over, 4, lambda: rule(subsystem, chance)),
        ]
        over.wait(seconds)
        over.set()
        for each in running:
            each.result(60)
    assert all(turns), f"somebody was never served: {turns}"


@pytest.mark.point("Z04")
def test_clients_in_threads_disturb_each_other_and_nothing_is_lost(lane: str, tmp_path: Path) -> None:
    before = threading.active_count()
    prove(tmp_path, native=lane == "native", seconds=2)
    assert threading.active_count() == before


@pytest.mark.soak
def test_clients_disturb_each_other_for_an_hour(tmp_path: Path) -> None:
    started = time.monotonic()
    prove(tmp_path, native=True, seconds=3600)
    assert time.monotonic() - started >= 3600, "somebody ended it before"
