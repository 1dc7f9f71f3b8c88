"""A block is written whole or not at all, whoever else reads or writes it meanwhile (AWUN, NAWUN)."""

import pytest

from outboard.devices.nvme import Namespace, Protection
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.datapath import stripes
from outboard.devices.nvme.datapath.records import (
    NS_RECORD,
    NS_STRIPES,
    OP_DISK,
    OP_LENGTH,
    OP_RECORD,
    OP_SPACE,
)
from outboard.devices.nvme.datapath.stripes import STRIPE, Stripes, lock, unlock
from outboard.devices.nvme.spec import IoOpcode
from outboard.devices.nvme.status import Status
from outboard.native.memory import load64, store64
from outboard.native.words import Block
from outboard.storage import RamStorage
from tests.devices.nvme.conftest import MakePaths
from tests.devices.nvme.datapath.live import LiveBench
from tests.devices.nvme.driver import PAGE, QueuePair, ended

BLOCK = 4096
DEPTH = 60
MAKE_PROTECTION, CHECK_GUARD = 1 << 29, 1 << 28

Queues = list[tuple[LiveBench, QueuePair]]

BY_TWO = pytest.mark.parametrize(("pollers", "controllers"), [(2, 1), (1, 2)], ids=["pollers", "controllers"])


def rounds(lane: str) -> int:
    """Plain Python copies a block in one step anyway."""
    return 40 if lane == "native" else 2


def two_queues(make_paths: MakePaths, space: Namespace, pollers: int, controllers: int = 1) -> Queues:
    """Two queues of one controller, or one of each of two."""
    queues: Queues = []
    for bench in make_paths(space, count=controllers, pollers=pollers):
        assert isinstance(bench, LiveBench)
        driver = bench.driver.enable()
        for qid in range(1, 2 // controllers + 1):
            queues.append((bench, driver.create_queue_pair(qid, entries=64)))
    return queues


def writes_of(writer: QueuePair, cdw12: int = 0) -> list[Command]:
    """Writes of one block that are alternately of ones and of twos."""
    sources = pages(writer, 2)
    for number, source in enumerate(sources):
        writer.driver.ram.write(source, bytes([number + 1]) * BLOCK)
    return [Command(IoOpcode.WRITE, nsid=1, prp1=sources[number % 2], cdw12=cdw12) for number in range(DEPTH)]


def pages(pair: QueuePair, count: int) -> list[int]:
    return [pair.driver.ram.allocate(PAGE) for _ in range(count)]


def all_ended(queues: Queues, commands: list[list[Command]]) -> list[list[Status]]:
    """Submit to all queues before any is rung, and wait for all of it; how the commands of each ended."""
    cids = [[pair.submit(each) for each in given] for (_, pair), given in zip(queues, commands, strict=True)]
    for _, pair in queues:
        pair.ring()

    def done() -> bool:
        for bench, pair in queues:
            bench.step()
            pair.poll()
        return all(len(pair.done) == len(given) for (_, pair), given in zip(queues, cids, strict=True))

    queues[0][0].until(done)
    return [
        [ended(pair.done.pop(cid)) for cid in given] for (_, pair), given in zip(queues, cids, strict=True)
    ]


def only(statuses: list[list[Status]]) -> set[Status]:
    return {status for each in statuses for status in each}


@pytest.mark.point("N12", "N03")
@BY_TWO
def test_a_block_that_is_read_while_it_is_written_is_one_or_the_other(
    make_paths: MakePaths, pollers: int, controllers: int, lane: str
) -> None:
    queues = two_queues(make_paths, Namespace(RamStorage(1 << 20), BLOCK), pollers, controllers)
    (_, writer), (_, reader) = queues
    writes, targets = writes_of(writer), pages(reader, DEPTH)
    reads = [Command(IoOpcode.READ, nsid=1, prp1=target) for target in targets]
    assert only(all_ended(queues[:1], [writes[:1]])) == {Status.SUCCESS}
    for _ in range(rounds(lane)):
        assert only(all_ended(queues, [writes, reads])) == {Status.SUCCESS}
        for target in targets:
            found = set(reader.driver.ram.read(target, BLOCK))
            assert len(found) == 1, "a block of two writes"


@pytest.mark.point("N12", "N13")
@BY_TWO
def test_protection_information_fits_its_block_at_any_time(
    make_paths: MakePaths, pollers: int, controllers: int, lane: str
) -> None:
    space = Namespace(RamStorage(1 << 20), BLOCK, metadata=8, protection=Protection(type=1))
    queues = two_queues(make_paths, space, pollers, controllers)
    (_, writer), (_, reader) = queues
    (target,) = pages(reader, 1)
    read = Command(IoOpcode.READ, nsid=1, prp1=target, cdw12=MAKE_PROTECTION | CHECK_GUARD)
    writes_and_checks_succeed(queues, writes_of(writer, MAKE_PROTECTION), read, lane)


@pytest.mark.point("N12", "N11")
def test_what_python_reads_is_whole_although_a_poller_writes(make_paths: MakePaths, lane: str) -> None:
    space = Namespace(RamStorage(1 << 20), BLOCK, metadata=8, protection=Protection(type=1))
    queues = two_queues(make_paths, space, pollers=1)
    verify = Command(IoOpcode.VERIFY, nsid=1, cdw12=CHECK_GUARD)
    writes_and_checks_succeed(queues, writes_of(queues[0][1], MAKE_PROTECTION), verify, lane)


def writes_and_checks_succeed(queues: Queues, writes: list[Command], check: Command, lane: str) -> None:
    """While the first queue writes, the second one's commands check the guard of the same block."""
    assert only(all_ended(queues[:1], [writes[:1]])) == {Status.SUCCESS}
    for _ in range(rounds(lane)):
        assert only(all_ended(queues, [writes, [check] * DEPTH])) == {Status.SUCCESS}


def test_who_finds_a_stripe_taken_waits_until_it_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    locks, space, operation = Stripes().address(4 * STRIPE), Block(NS_RECORD), Block(OP_RECORD)
    space[NS_STRIPES], operation[OP_SPACE] = locks, space.address
    operation[OP_DISK], operation[OP_LENGTH] = STRIPE - 512, STRIPE + 1024
    store64(locks + 8, 1)
    looks: list[str] = []
    monkeypatch.setattr(stripes, "PATIENCE", 3)
    monkeypatch.setattr(stripes, "pause", lambda: looks.append("pause"))

    def others_go_on() -> None:
        looks.append("yield")
        store64(locks + 8, 0)

    monkeypatch.setattr(stripes, "sched_yield", others_go_on)
    assert lock(operation.address) == locks
    assert looks == ["pause", "pause", "yield"]
    assert [load64(locks + 8 * number) for number in range(4)] == [1, 1, 1, 0]
    unlock(locks, operation.address)
    assert [load64(locks + 8 * number) for number in range(4)] == [0] * 4
