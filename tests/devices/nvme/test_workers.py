"""Storages that block: what they do in their threads, while everything else goes on."""

import gc
import os
import struct
import threading
from collections.abc import Callable, Generator, Iterator

import pytest

from outboard.devices.nvme import Namespace, Subsystem, workers
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.command_set import Commands
from outboard.devices.nvme.datapath.plane import DataPlane
from outboard.devices.nvme.datapath.records import BY_PYTHON
from outboard.devices.nvme.datapath.tuning import Tuning
from outboard.devices.nvme.io import CONDITIONS, IO_COMMANDS
from outboard.devices.nvme.monitor import Monitor
from outboard.devices.nvme.spec import BROADCAST, IoOpcode
from outboard.devices.nvme.state import Identity, Limits, State
from outboard.devices.nvme.status import CommandFailed, Status
from outboard.devices.nvme.transfer import Bus
from outboard.devices.nvme.work import Call, Work, run_inline
from outboard.devices.nvme.workers import Task, Workers
from outboard.dma import GuestMemory, Mapping
from outboard.errors import StorageError
from outboard.loop import Loop
from outboard.native.words import Block
from outboard.storage import Data, RamStorage, Storage

SIZE = 1 << 20


class Slow:
    """A storage in plain Python that does nothing while ``gate`` is shut; notes what it did and where."""

    discard_zeroes = True

    def __init__(self) -> None:
        self.size = SIZE
        self.bytes = bytearray(SIZE)
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.failure: StorageError | None = None
        self.done: list[str] = []
        self.threads: set[threading.Thread] = set()

    def _do(self, what: str) -> None:
        self.entered.set()
        assert self.gate.wait(60)
        self.done.append(what)
        self.threads.add(threading.current_thread())
        if self.failure:
            raise self.failure

    def read(self, offset: int, size: int) -> bytes:
        self._do("read")
        return bytes(self.bytes[offset : offset + size])

    def readinto(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = self.read(offset, len(buffer))

    def write(self, offset: int, data: Data) -> None:
        self._do(f"write {data[0]}")
        self.bytes[offset : offset + len(data)] = data

    def flush(self) -> None:
        self._do("flush")

    def discard(self, offset: int, size: int) -> None:
        self._do("discard")

    def write_zeroes(self, offset: int, size: int) -> None:
        self._do("write zeroes")

    def close(self) -> None:
        self.gate.set()


class Stand:
    """Two slow storages and one in memory as namespaces 1 to 3, a page of guest memory at 0, and workers."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.workers = Workers(self.loop, Monitor())
        self.slow, self.other, self.ram = Slow(), Slow(), RamStorage(SIZE)
        self.memory = GuestMemory()
        self.fd = os.memfd_create("guest")
        os.truncate(self.fd, 4096)
        self.memory.map(Mapping(0, 4096, fd=os.dup(self.fd)))
        disks: tuple[Storage, ...] = (self.slow, self.other, self.ram)
        subsystem = Subsystem(*disks)
        spaces: dict[int, Namespace] = {}
        limits = Limits()
        self.doorbells = Block(4096)
        plane = DataPlane(
            self.memory,
            spaces,
            most_namespaces=subsystem.most_namespaces,
            io_queues=limits.io_queues,
            mdts=limits.transfer,
            doorbells=self.doorbells.address,
            vector_fd=lambda cq: BY_PYTHON,
            line_heard=lambda: False,
            tuning=Tuning(native=False),
        )
        self.state = subsystem.enrol(
            lambda cntlid: State(
                subsystem,
                Identity(cntlid, "F", 1, 1),
                limits,
                Commands({}, IO_COMMANDS, CONDITIONS),
                spaces,
                Bus(self.memory),
                plane,
                lambda: None,
            )
        )
        self.ended: list[tuple[str, int | Exception]] = []

    def work(self, opcode: IoOpcode, nsid: int, **more: int) -> Work:
        work = IO_COMMANDS[opcode].handler(self.state, Command(opcode, nsid=nsid, **more))
        assert isinstance(work, Generator)
        return work

    def start(self, name: str, opcode: IoOpcode, nsid: int, **more: int) -> Task:
        return self.workers.start(
            self.work(opcode, nsid, **more), lambda outcome: self.ended.append((name, outcome))
        )

    def until(self, condition: Callable[[], object]) -> None:
        while not condition():
            assert self.loop.run_once(timeout=60)

    def close(self) -> None:
        self.slow.gate.set()
        self.other.gate.set()
        self.workers.close()
        self.loop.close()
        os.close(self.fd)
        self.memory.unmap_all()
        self.ram.close()


@pytest.fixture
def stand() -> Iterator[Stand]:
    gc.collect()  # other tests' descriptors are not to be closed meanwhile
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    stand = Stand()
    yield stand
    stand.close()
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before, "something is left behind"


def test_other_storages_go_on_while_one_blocks(stand: Stand) -> None:
    stand.slow.gate.clear()
    stand.start("slow", IoOpcode.READ, 1)
    stand.start("ram", IoOpcode.READ, 3)
    assert stand.ended == [("ram", 0)], "at once, in place"
    stand.start("other", IoOpcode.READ, 2, cdw12=7)
    stand.until(lambda: len(stand.ended) == 2)
    assert stand.ended == [("ram", 0), ("other", 0)]
    assert stand.state.health.reads == 2
    stand.slow.gate.set()
    stand.until(lambda: len(stand.ended) == 3)
    assert stand.ended[2] == ("slow", 0)


def test_data_crosses_guest_memory_and_back(stand: Stand) -> None:
    stand.memory.write(0, b"outboard" * 64)
    stand.start("write", IoOpcode.WRITE, 1, cdw10=5)
    stand.memory.write(0, bytes(512))  # what is written was taken before
    stand.start("read", IoOpcode.READ, 1, cdw10=5, prp1=1024)
    assert stand.memory.read(1024, 512) == bytes(512)
    stand.until(lambda: len(stand.ended) == 2)
    assert stand.memory.read(1024, 512) == b"outboard" * 64


def test_the_calls_of_a_storage_are_made_in_order_by_one_thread(stand: Stand) -> None:
    stand.slow.gate.clear()
    for number in range(50):
        stand.memory.write(0, bytes([number]))
        stand.start(str(number), IoOpcode.WRITE, 1)
    stand.slow.gate.set()
    stand.until(lambda: len(stand.ended) == 50)
    assert stand.slow.done == [f"write {number}" for number in range(50)]
    assert stand.ended == [(str(number), 0) for number in range(50)]
    assert stand.slow.bytes[0] == 49
    assert len(stand.slow.threads) == 1
    assert threading.current_thread() not in stand.slow.threads


def test_a_command_of_several_calls_makes_them_in_turn(stand: Stand) -> None:
    stand.start("durable", IoOpcode.WRITE, 1, cdw12=1 << 30)
    stand.start("all", IoOpcode.FLUSH, BROADCAST)
    stand.until(lambda: len(stand.ended) == 2)
    assert (stand.slow.done, stand.other.done) == (["write 0", "flush", "flush"], ["flush"])


def test_what_a_storage_raises_ends_its_command(stand: Stand) -> None:
    stand.slow.failure = StorageError("the medium is broken", errno=28)
    stand.start("write", IoOpcode.WRITE, 1)
    stand.until(lambda: stand.ended)
    ((_, failure),) = stand.ended
    assert isinstance(failure, CommandFailed)
    assert failure.status == Status.CAPACITY_EXCEEDED
    assert stand.state.health.media_errors == 1


def test_a_command_that_fails_at_once_ends_at_once(stand: Stand) -> None:
    stand.start("nowhere", IoOpcode.WRITE, 1, prp1=1 << 40)
    ((_, failure),) = stand.ended
    assert isinstance(failure, CommandFailed)
    assert failure.status == Status.DATA_TRANSFER_ERROR
    assert stand.slow.done == []


@pytest.mark.point("D04")
def test_memory_that_goes_while_storage_works_is_a_data_transfer_error(stand: Stand) -> None:
    stand.slow.gate.clear()
    stand.start("read", IoOpcode.READ, 1)
    stand.memory.unmap(0, 4096)
    stand.slow.gate.set()
    stand.until(lambda: stand.ended)
    ((_, failure),) = stand.ended
    assert isinstance(failure, CommandFailed)
    assert failure.status == Status.DATA_TRANSFER_ERROR


def test_nothing_comes_of_what_is_cancelled(stand: Stand) -> None:
    stand.slow.gate.clear()
    under_way, waiting = stand.start("first", IoOpcode.READ, 1), stand.start("second", IoOpcode.WRITE, 1)
    assert stand.slow.entered.wait(60)
    stand.memory.write(0, b"new life")
    for task in (waiting, under_way, under_way):
        task.cancel()
    stand.slow.gate.set()
    stand.workers.drain()
    assert stand.slow.done == ["read"], "what had begun was finished, nothing else was begun"
    assert stand.ended == []
    assert stand.memory.read(0, 8) == b"new life"


def test_a_command_can_be_cancelled_by_what_it_causes_itself(stand: Stand) -> None:
    tasks: list[Task] = []
    seen: list[object] = []

    def work() -> Work:
        yield Call(stand.slow, stand.slow.flush)
        tasks[0].cancel()
        yield Call(stand.slow, lambda: seen.append("called"))
        return 0

    tasks.append(stand.workers.start(work(), seen.append))
    stand.workers.drain()
    assert seen == []


def test_draining_runs_commands_to_their_end(stand: Stand) -> None:
    for number in range(10):
        stand.start(str(number), IoOpcode.WRITE, 1 + number % 2, cdw12=1 << 30)
    assert stand.workers.outstanding == 10
    stand.workers.drain()
    assert (len(stand.ended), stand.workers.outstanding) == (10, 0)
    assert stand.slow.done == stand.other.done == ["write 0"] * 5 + ["flush"] * 5


def test_a_thread_at_rest_ends_and_another_takes_its_place(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "LINGER", 0.001)
    for _ in range(2):
        stand.start("write", IoOpcode.WRITE, 1)
        stand.workers.drain()
        (thread,) = stand.slow.threads
        thread.join(60)
        stand.slow.threads.clear()
    assert stand.slow.done == ["write 0", "write 0"]


def test_a_result_that_cannot_be_dealt_with_keeps_no_other_back(stand: Stand) -> None:
    reported: list[Exception] = []
    stand.loop.report = lambda error, doing: reported.append(error)

    def fail(outcome: object) -> None:
        raise RuntimeError("a mistake of ours")

    stand.workers.start(stand.work(IoOpcode.FLUSH, 1), fail)
    stand.start("write", IoOpcode.WRITE, 1)
    stand.until(lambda: stand.ended)
    assert [str(error) for error in reported] == ["a mistake of ours"]


CHANGES: dict[Status, Callable[[Stand, Namespace], object]] = {
    Status.INCOMPATIBLE_NAMESPACE_OR_FORMAT: lambda stand, source: source.reformat(3),
    Status.FORMAT_IN_PROGRESS: lambda stand, source: setattr(source, "barred", Status.FORMAT_IN_PROGRESS),
    Status.INVALID_NAMESPACE: lambda stand, source: stand.state.subsystem.remove(source.nsid),
}


@pytest.mark.point("N09")
@pytest.mark.parametrize("status", CHANGES)
def test_a_copy_ends_when_the_namespace_it_copies_from_is_not_what_it_was(
    stand: Stand, status: Status
) -> None:
    stand.state.features.behavior = bytes([0, 0, 0, 0, 1 << 2]).ljust(512, b"\0")
    stand.memory.write(0, struct.pack("<I4xQH", 2, 0, 7))
    stand.other.gate.clear()
    stand.start("copy", IoOpcode.COPY, 1, cdw10=4, cdw12=2 << 8)
    assert stand.other.entered.wait(60)
    CHANGES[status](stand, stand.state.namespaces[2])
    stand.other.gate.set()
    stand.until(lambda: stand.ended)
    ((_, failure),) = stand.ended
    assert isinstance(failure, CommandFailed)
    assert failure.status == status
    assert (stand.slow.done, stand.state.health.media_errors) == ([], 0)


def test_a_flush_of_all_leaves_out_what_is_taken_away_meanwhile(stand: Stand) -> None:
    stand.slow.gate.clear()
    stand.start("all", IoOpcode.FLUSH, BROADCAST)
    stand.state.subsystem.remove(2)
    stand.slow.gate.set()
    stand.until(lambda: stand.ended)
    assert (stand.ended, stand.other.done) == ([("all", 0)], [])


def test_work_can_be_run_in_place(stand: Stand) -> None:
    assert run_inline(stand.work(IoOpcode.FLUSH, BROADCAST)) == 0
    stand.slow.failure = StorageError("the medium is broken")
    with pytest.raises(CommandFailed):
        run_inline(stand.work(IoOpcode.READ, 1))
    assert stand.slow.threads == {threading.current_thread()}


def test_a_drain_in_another_threads_turn_does_not_wait_for_what_the_loop_was_about_to_deliver() -> None:
    """Whoever calls it: the loop, which hears of a call that has returned, cannot take it before."""
    about_to_deliver = threading.Event()

    class Watched(Monitor):
        def __enter__(self) -> None:
            if threading.current_thread() is loops:
                about_to_deliver.set()
            super().__enter__()

    storage, loop, turn = Slow(), Loop(), Watched()
    working = Workers(loop, turn)
    ended: list[object] = []

    def work() -> Work:
        yield Call(storage, storage.flush)
        return 0

    def drain() -> None:
        with turn:
            storage.gate.set()
            assert about_to_deliver.wait(60)
            working.drain()

    storage.gate.clear()
    working.start(work(), ended.append)
    loops = threading.Thread(target=loop.run, daemon=True)
    drains = threading.Thread(target=drain, daemon=True)
    drains.start()
    loops.start()
    drains.join(30)
    assert not drains.is_alive(), "each waits for the other"
    assert ended == [0]
    loop.stop()
    loops.join()
    working.close()
    loop.close()
