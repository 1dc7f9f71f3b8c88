"""A block is written whole or not at all, whoever else reads or writes it meanwhile (AWUN, NAWUN)."""

from collections.abc import Callable, Iterator

import pytest

from outboard.devices.nvme import Namespace, Nvme, Protection, Subsystem
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
from tests.devices.nvme.datapath.live import LiveBench, tuning
from tests.devices.nvme.driver import PAGE, QueuePair, ended

BLOCK = 4096
DEPTH = 60
MAKE_PROTECTION, CHECK_GUARD = 1 << 29, 1 << 28

MakeBenches = Callable[..., list[LiveBench]]
Queues = list[tuple[LiveBench, QueuePair]]


def rounds(lane: str) -> int:
    """Plain Python copies a block in one step anyway."""
    return 40 if lane == "native" else 2


@pytest.fixture
def benches(lane: str) -> Iterator[MakeBenches]:
    made: list[LiveBench] = []

    def make(space: Namespace, pollers: int, controllers: int = 1) -> list[LiveBench]:
        subsystem = Subsystem(space)
        for _ in range(controllers):
            made.append(LiveBench(Nvme(subsystem=subsystem, tuning=tuning(lane, pollers))))
            made[-1].driver.enable()
        return made

    yield make
    for bench in made:
        bench.leave()
    for bench in made[:1]:
        for space in bench.device.subsystem.namespaces.values():
            space.storage.close()


def by_two(make: MakeBenches, space: Namespace, who: str) -> Queues:
    """Two queues with a loop for each, of one controller or of two."""
    if who == "pollers":
        (bench,) = make(space, pollers=2)
        return [(bench, bench.driver.create_queue_pair(qid, entries=64)) for qid in (1, 2)]
    found = make(space, pollers=1, controllers=2)
    return [(bench, bench.driver.create_queue_pair(1, entries=64)) for bench in found]


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
@pytest.mark.parametrize("who", ["pollers", "controllers"])
def test_a_block_that_is_read_while_it_is_written_is_one_or_the_other(
    benches: MakeBenches, who: str, lane: str
) -> None:
    queues = by_two(benches, Namespace(RamStorage(1 << 20), BLOCK), who)
    (_, writer), (_, reader) = queues
    sources, targets = pages(writer, 2), pages(reader, DEPTH)
    for number, source in enumerate(sources):
        writer.driver.ram.write(source, bytes([number + 1]) * BLOCK)
    writes = [Command(IoOpcode.WRITE, nsid=1, prp1=sources[number % 2]) for number in range(DEPTH)]
    reads = [Command(IoOpcode.READ, nsid=1, prp1=target) for target in targets]
    assert only(all_ended(queues[:1], [writes[:1]])) == {Status.SUCCESS}
    for _ in range(rounds(lane)):
        assert only(all_ended(queues, [writes, reads])) == {Status.SUCCESS}
        for target in targets:
            found = set(reader.driver.ram.read(target, BLOCK))
            assert len(found) == 1, "a block of two writes"


@pytest.mark.point("N12", "N13")
@pytest.mark.parametrize("who", ["pollers", "controllers"])
def test_protection_information_fits_its_block_at_any_time(benches: MakeBenches, who: str, lane: str) -> None:
    space = Namespace(RamStorage(1 << 20), BLOCK, metadata=8, protection=Protection(type=1))
    queues = by_two(benches, space, who)
    (_, writer), (_, reader) = queues
    sources, (target,) = pages(writer, 2), pages(reader, 1)
    for number, source in enumerate(sources):
        writer.driver.ram.write(source, bytes([number + 1]) * BLOCK)
    writes = [
        Command(IoOpcode.WRITE, nsid=1, prp1=sources[number % 2], cdw12=MAKE_PROTECTION)
        for number in range(DEPTH)
    ]
    reads = [Command(IoOpcode.READ, nsid=1, prp1=target, cdw12=MAKE_PROTECTION | CHECK_GUARD)] * DEPTH
    assert only(all_ended(queues[:1], [writes[:1]])) == {Status.SUCCESS}
    for _ in range(rounds(lane)):
        assert only(all_ended(queues, [writes, reads])) == {Status.SUCCESS}


@pytest.mark.point("N12", "N11")
def test_what_python_reads_is_whole_although_a_poller_writes(benches: MakeBenches, lane: str) -> None:
    space = Namespace(RamStorage(1 << 20), BLOCK, metadata=8, protection=Protection(type=1))
    (bench,) = benches(space, pollers=1)
    queues = [(bench, bench.driver.create_queue_pair(qid, entries=64)) for qid in (1, 2)]
    (_, writer), _ = queues
    sources = pages(writer, 2)
    for number, source in enumerate(sources):
        writer.driver.ram.write(source, bytes([number + 1]) * BLOCK)
    writes = [
        Command(IoOpcode.WRITE, nsid=1, prp1=sources[number % 2], cdw12=MAKE_PROTECTION)
        for number in range(DEPTH)
    ]
    verifies = [Command(IoOpcode.VERIFY, nsid=1, cdw12=CHECK_GUARD)] * DEPTH
    assert only(all_ended(queues[:1], [writes[:1]])) == {Status.SUCCESS}
    for _ in range(rounds(lane)):
        assert only(all_ended(queues, [writes, verifies])) == {Status.SUCCESS}


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
