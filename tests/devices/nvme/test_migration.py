"""A disk under load moves between two server processes, as in a live migration with shared storage.

Each end has guest memory of its own. What the driver writes is known, what the device writes its log of dirty
pages says: only such pages are copied once the load goes on. A page too few, and a check fails.
"""

import mmap
import os
import random
import select
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from outboard import Client
from outboard.client import Interrupt, migrate
from outboard.devices.nvme.spec import IoOpcode
from outboard.devices.nvme.status import Status
from outboard.protocol.messages import MigrationState
from tests.cli.conftest import PROGRAM
from tests.devices.nvme.driver import PAGE, Driver, QueuePair, Ram, ended

RAM_ADDRESS, RAM_SIZE = 0x1000_0000, 8 << 20
BLOCKS, BLOCK = 4096, 4096
DEPTH = 24
PATTERN = 64
"""Bytes that tell one version of a block from another."""


class TrackedRam(Ram):
    """Guest memory that knows which pages the driver has written."""

    dirty: set[int]

    def write(self, address: int, data: bytes) -> None:
        first, last = address // PAGE, (address + len(data) - 1) // PAGE
        self.dirty.update(page * PAGE for page in range(first, last + 1))
        super().write(address, data)


class Vm:
    """What stays when a device moves: a driver, and what it knows of its disk."""

    def __init__(self, seed: int) -> None:
        self.fd, self.memory = new_memory()
        self.chance = random.Random(seed)
        self.content: dict[int, bytes] = {}
        self.client: Client
        self.interrupts: list[Interrupt]
        self.driver: Driver
        self.pair: QueuePair
        self.under_way: dict[int, tuple[IoOpcode, int, int, bytes]] = {}
        self.done = 0

    def attach(self, client: Client) -> None:
        """Give the device its memory, and hear its interrupts."""
        self.client = client
        client.dma_map(RAM_ADDRESS, RAM_SIZE, fd=self.fd)
        self.interrupts = client.enable_msix(2)

    def boot(self) -> None:
        self.client.bus_master()
        ram = TrackedRam(memoryview(self.memory), RAM_ADDRESS)
        ram.dirty = set()
        self.driver = Driver(self.client.bar(0), ram, self.wait)
        self.driver.enable()
        self.pair = self.driver.create_queue_pair(1, entries=64, vector=1)
        self.free = [self.driver.ram.allocate(BLOCK) for _ in range(DEPTH)]

    def wait(self) -> None:
        """As a guest does: until an interrupt comes."""
        fds = [interrupt.fd for interrupt in self.interrupts]
        for fd in select.select(fds, [], [], 10)[0]:
            os.eventfd_read(fd)

    def submit(self) -> None:
        """Fill the queue with reads and writes of blocks that nothing else is under way for."""
        busy = {block for _, block, _, _ in self.under_way.values()}
        while self.free:
            block = self.chance.randrange(BLOCKS)
            if block in busy:
                continue
            busy.add(block)
            buffer = self.free.pop()
            if self.chance.random() < 0.5:
                opcode, data = IoOpcode.WRITE, self.chance.randbytes(PATTERN)
                self.driver.ram.write(buffer, data * (BLOCK // PATTERN))
            else:
                opcode, data = IoOpcode.READ, self.content.get(block, bytes(PATTERN))
                self.driver.ram.write(buffer, b"\xa5" * BLOCK)
            cid = self.pair.submit(self.driver.rw(opcode, block * 8, 8, buffer, BLOCK))
            self.under_way[cid] = opcode, block, buffer, data
        self.pair.ring()

    def reap(self) -> None:
        """Check what has completed."""
        for completion in self.pair.poll():
            assert ended(completion) == Status.SUCCESS
            opcode, block, buffer, data = self.under_way.pop(completion.cid)
            if opcode == IoOpcode.READ:
                assert self.driver.ram.read(buffer, BLOCK) == data * (BLOCK // PATTERN), f"block {block}"
            else:
                self.content[block] = data
            self.free.append(buffer)
            self.done += 1

    def work(self, commands: int) -> None:
        goal = self.done + commands
        while self.done < goal:
            self.submit()
            self.wait()
            self.reap()

    def move(self, to: Client) -> None:
        """Live: the load goes on while the device is saved for the first time, and waits at the end only."""
        old, interrupts, old_fd, old_memory = self.client, self.interrupts, self.fd, self.memory
        ram = self.driver.ram
        assert isinstance(ram, TrackedRam)
        self.fd, self.memory = new_memory()
        old.migration.start_dirty_log([(RAM_ADDRESS, RAM_SIZE)])
        ram.dirty.clear()
        self.memory[:] = old_memory[:]

        def copy_the_rest() -> None:
            pages = {*old.migration.dirty_pages(RAM_ADDRESS, RAM_SIZE), *ram.dirty}
            ram.dirty.clear()
            for page in pages:
                at = page - RAM_ADDRESS
                self.memory[at : at + PAGE] = old_memory[at : at + PAGE]
            assert len(pages) < RAM_SIZE // PAGE // 2, "then all of it might as well be copied"

        self.work(self.chance.randrange(1, 100))
        copy_the_rest()
        self.work(self.chance.randrange(1, 100))
        self.submit()
        self.attach(to)
        migrate(old, to, copy_the_rest)
        assert old.migration.state is MigrationState.STOP
        for interrupt in interrupts:
            interrupt.close()
        self.driver.bar = to.bar(0)
        ram.view = memoryview(self.memory)
        os.close(old_fd)


def new_memory() -> tuple[int, mmap.mmap]:
    fd = os.memfd_create("guest")
    os.truncate(fd, RAM_SIZE)
    return fd, mmap.mmap(fd, RAM_SIZE)


@pytest.fixture
def servers() -> Iterator[tuple[Path, Path]]:
    """Two processes that serve the same file."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ob", dir="/tmp")))
        disk = folder / "disk"
        with disk.open("wb") as file:
            file.truncate(BLOCKS * BLOCK)
        paths = folder / "a.sock", folder / "b.sock"
        for path in paths:
            command = [str(PROGRAM), "nvme", "--socket", str(path), "--serial", "MOVING"]
            command += ["--namespace", f"{disk},share=on"]
            # A pipe that nobody reads would fill with its log, and hold it up.
            log = stack.enter_context(path.with_suffix(".log").open("w"))
            process = stack.enter_context(
                subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
            )
            stack.callback(process.terminate)
            assert process.stdout is not None
            assert process.stdout.readline()
        yield paths


@pytest.mark.point("P114", "P116")
@pytest.mark.parametrize("times", [100, pytest.param(1000, marks=pytest.mark.soak)])
def test_a_live_disk_moves_between_processes_and_back(servers: tuple[Path, Path], times: int) -> None:
    vm = Vm(times)
    client = Client(servers[0], patience=60)
    vm.attach(client)
    vm.boot()
    for number in range(times):
        vm.work(50)
        there = Client(servers[(number + 1) % 2], patience=60)
        vm.move(there)
        client.close()
        client = there
    vm.work(500)
    while vm.under_way:
        vm.wait()
        vm.reap()
    vm.driver.disable()
    client.close()
    os.close(vm.fd)
