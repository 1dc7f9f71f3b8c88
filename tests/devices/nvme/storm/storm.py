"""A storm of hostile commands over one subsystem with two controllers, and what has to hold all the time.

``python -m tests.devices.nvme.storm.storm {plain|native} COUNT SEED``

Every command completes once, with a status that the specification knows and none of an internal error, soon;
nothing is logged as an error; a controller works again after a reset; a namespace that nobody wrote to holds
what it held; no descriptor, thread, view or much memory is left. An `Episode` depends on its seed alone: what
goes on in the background advances only where the storm lets it.
"""

import logging
import random
import sys
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from outboard.devices.nvme import Nvme
from outboard.devices.nvme.command import Command, Completion
from outboard.devices.nvme.datapath.tuning import Tuning
from outboard.devices.nvme.namespace import Namespace
from outboard.devices.nvme.spec import BROADCAST, NSSR_KEY, AdminOpcode, Cns, IoOpcode, Shutdown
from outboard.devices.nvme.status import Status
from tests.devices.nvme.bench import RAM_ADDRESS, Bench
from tests.devices.nvme.driver import CC, CC_ENABLE, FATAL, NSSR, PAGE, READY, Driver, QueuePair, ended
from tests.devices.nvme.storm.by_hand import advance
from tests.devices.nvme.storm.commands import WRITES, Maker
from tests.devices.nvme.storm.memory import QUEUES, START
from tests.devices.nvme.storm.operator import Operator
from tests.devices.nvme.storm.subject import subsystem
from tests.devices.nvme.storm.watch import Errors, memory, watched

ALL_SETS = CC_ENABLE | 6 << 4
WEIGHTED = 1 << 11
ENTRIES, REMEMBERED = 32, 60
PATIENCE = 20.0
"""Seconds after which a command has not completed."""

BATCHES = 24
"""Of an episode."""

GROWTH = 200 << 20
"""Bytes that the process may grow by, whatever it is sent."""

_FIRST_CID = 0x100


class Pair(QueuePair):
    """A queue pair whose doorbells are rung in guest memory, too, for a controller that looks there."""

    doorbells: int

    def ring(self) -> None:
        self._shadow(0, self.tail)
        super().ring()

    def acknowledge(self) -> None:
        self._shadow(4, self.head)
        super().acknowledge()

    def _shadow(self, offset: int, value: int) -> None:
        self.driver.ram.write(self.doorbells + 8 * self.qid + offset, value.to_bytes(4, "little"))


class Side:
    """A controller, its host, and the commands of it that are under way, by queue and identifier."""

    def __init__(self, device: Nvme, chance: random.Random, name: str) -> None:
        self.bench, self.device, self.chance, self.name = Bench(device), device, chance, name
        self.bench.loop.report = self._report
        self.driver: Driver = self.bench.driver
        self.doorbells = RAM_ADDRESS + QUEUES
        self.maker = Maker(chance, device.state, self.driver.ram, self.doorbells)
        self.waiting: dict[tuple[int, int], Command] = {}
        self.sent: deque[str] = deque(maxlen=REMEMBERED)
        self.seen: set[Status] = set()
        self.failures: list[Exception] = []
        self.pairs: list[QueuePair] = []
        self.cid = _FIRST_CID
        self.digest = 0
        self.start()

    def _report(self, error: Exception, doing: str) -> None:
        error.add_note(doing)
        self.failures.append(error)

    def start(self) -> None:
        """Enable the controller, with two I/O queues, as after a reset."""
        self.waiting.clear()
        self.bench.bus_master(True)
        self.driver.ram.rewind(QUEUES + 2 * PAGE)
        self.driver.enable(ENTRIES, ENTRIES, self.chance.choice((ALL_SETS, ALL_SETS | WEIGHTED, CC_ENABLE)))
        admin = self.driver.admin
        self.pairs = [self._pair(0, admin)]
        for qid in (1, 2):
            pair = self._pair(qid)
            assert self.execute(self.driver.create_cq(pair)) == Status.SUCCESS
            assert self.execute(self.driver.create_sq(pair)) == Status.SUCCESS
            self.pairs.append(pair)

    def _pair(self, qid: int, same: QueuePair | None = None) -> Pair:
        pair = Pair.__new__(Pair)
        pair.doorbells = self.doorbells
        pair.__init__(self.driver, qid, ENTRIES)  # type: ignore[misc]
        if same is not None:
            pair.sq, pair.cq = same.sq, same.cq
        return pair

    def execute(self, command: Command, qid: int = 0) -> Status:
        """A command of ours, that has to end."""
        pair = self.pairs[qid]
        cid = pair.submit(command, self.next_cid())
        pair.ring()
        end = time.monotonic() + PATIENCE
        while cid not in pair.done:
            assert time.monotonic() < end, f"{command} never completed"
            self.bench.loop.run_once(0.0005)
            pair.poll()
        return ended(pair.done.pop(cid))

    def next_cid(self) -> int:
        """An identifier that no command has which may be under way."""
        taken = {cid for _, cid in self.waiting}
        while True:
            self.cid = self.cid + 1 if self.cid < 0xFFF0 else _FIRST_CID
            if self.cid not in taken:
                return self.cid

    def submit(self) -> list[Command]:
        """Put commands into the queues, without ringing."""
        chance, made = self.chance, []
        for pair in self.pairs:
            for _ in range(chance.randrange(ENTRIES if pair.qid else ENTRIES // 2)):
                if pair.qid and chance.random() < 0.02:
                    commands = [*self.maker.pair()]
                else:
                    commands = [self.maker.io() if pair.qid else self.maker.admin()]
                for command in commands:
                    if (pair.tail + 1 - pair.head) % ENTRIES == 0:
                        break
                    cid = pair.submit(command, self.next_cid())
                    self.waiting[pair.qid, cid] = command
                    self.sent.append(f"{self.name} queue {pair.qid} cid {cid:#x}: {described(command)}")
                    made.append(command)
        return made

    def ring(self) -> None:
        """Ring for what was submitted, and sometimes where nobody lives, or with what cannot be."""
        pairs = list(self.pairs)
        self.chance.shuffle(pairs)
        for pair in pairs:
            pair.ring()
        if self.chance.random() < 0.1:
            number = self.chance.choice((6, 7, 8, 10, 66, 1023))
            value = self.chance.choice((0, 1, 2, ENTRIES, 0xFFFF, 0xFFFF_FFFF))
            self.bench.bar.write32(0x1000 + 4 * number, value)

    def collect(self) -> None:
        """Let the device work, and take what has completed."""
        self.bench.settle()
        for failure in self.failures:
            raise AssertionError("the device's code has failed") from failure
        for pair in self.pairs:
            found = pair.poll()
            pair.done.clear()
            for completion in found:
                self._take(pair, completion)
        assert self.driver.status & (READY | FATAL) == READY, f"CSTS is {self.driver.status:#x}"

    def _take(self, pair: QueuePair, completion: Completion) -> None:
        status = Status(completion.status & 0x7FF)
        if completion.sq_id == pair.qid:
            where = f"cid {completion.cid:#x} of queue {pair.qid}"
            command = self.waiting.pop((pair.qid, completion.cid), None)
            assert command is not None, f"{where} completed though it was not under way"
            assert status != Status.INTERNAL_ERROR, (
                f"{where} ended with an internal error: {described(command)}"
            )
        assert not completion.status & 0x1800, f"reserved bits in status {completion.status:#x}"
        told = f"{pair.qid} {completion.cid} {completion.status >> 1:x}"
        self.digest = zlib.crc32(told.encode(), self.digest)
        self.seen.add(status)

    @property
    def missing(self) -> dict[tuple[int, int], Command]:
        """What should have completed; requests for events may wait, and what waits for an operation."""
        events = self.device.state.events
        return {
            (qid, cid): command
            for (qid, cid), command in self.waiting.items()
            if not self._gone(qid) and not (qid == 0 and (cid in events.parked or cid in events.deferred))
        }

    @property
    def missing_words(self) -> str:
        """The same, to be read."""
        return ", ".join(f"{key}: {described(command)}" for key, command in self.missing.items())

    @property
    def paused(self) -> bool:
        """Whether no command is taken now, for firmware is activated."""
        return self.device.subsystem.firmware.activating

    @property
    def bereft(self) -> bool:
        """Whether a command has taken one of our queues away, or put another in its place."""
        return any(self._gone(pair.qid) for pair in self.pairs)

    def _gone(self, qid: int) -> bool:
        submission, completion = self.device.state.submission, self.device.state.completion
        pair = self.pairs[qid]
        return (
            qid not in submission
            or qid not in completion
            or (submission[qid].address, completion[qid].address) != (pair.sq, pair.cq)
        )

    def reset(self) -> None:
        """Reset the controller in one of the ways there are, and see that it works."""
        kind = self.chance.randrange(4)
        self.sent.append(f"{self.name} reset of kind {kind}")
        if kind == 0:
            self.bench.bar.write32(CC, self.bench.bar.read32(CC) | self.chance.choice(list(Shutdown)) << 14)
            self.bench.settle()
        elif kind == 1:
            self.device.reset()
        if kind != 1:
            self.driver.disable()
        self.bench.settle()
        self.start()
        self.check_alive()

    def move(self) -> None:
        """Stop, be saved, perhaps forget everything and be brought back, and go on."""
        device, restored = self.device, self.chance.random() < 0.5
        self.sent.append(f"{self.name} saved" + " and restored" * restored)
        device.stop_device()
        stream = device.save_state()
        if restored:
            device.reset()
            device.restore_state(stream)
        device.run_device()

    def check_alive(self) -> None:
        """Identify succeeds, and a read ends."""
        self.bench.bar.write32(NSSR, 0)
        identify = Command(AdminOpcode.IDENTIFY, prp1=self.driver.data, cdw10=Cns.CONTROLLER)
        assert self.execute(identify) == Status.SUCCESS
        nsid, page = next(iter(self.device.state.namespaces), 1), RAM_ADDRESS + START
        self.execute(Command(IoOpcode.READ, nsid=nsid, prp1=page, mptr=page), 1)


class Episode:
    """A subsystem from its making to its end."""

    def __init__(self, lane: str, chance: random.Random, *, in_threads: bool = False) -> None:
        self.chance = chance
        self.sent = 0
        self.subsystem = subsystem(with_zones=chance.random() < 0.6, in_threads=in_threads)
        tuning = Tuning(pollers=0, native=lane == "native")
        self.turn = self.subsystem.turn
        with self.turn:
            self.sides = [
                Side(
                    Nvme(subsystem=self.subsystem, tuning=tuning, io_queues=5, vectors=4, mdts=5),
                    chance,
                    name,
                )
                for name in ("A", "B")
            ]
        self.operator = Operator(chance, self.subsystem, limits=in_threads)
        self.touched: set[int] = set()
        self.everything_touched = True
        self.before: dict[int, tuple[Namespace, int]] = {}

    def run(self, batches: int) -> Iterator[None]:
        """Batch by batch."""
        with self.turn:
            for _ in range(batches):
                self.batch()
                yield

    def batch(self) -> None:
        """Commands by both hosts, and what comes of them."""
        for side in self.sides:
            made = side.submit()
            self.sent += len(made)
            for command, (qid, _) in zip(made, list(side.waiting)[-len(made) :] if made else [], strict=True):
                self.note(qid, command)
        for side in self.sides:
            side.ring()
            if self.chance.random() < 0.5:
                advance(self.subsystem)
            if self.chance.random() < 0.1:
                self.operate()
            if self.chance.random() < 0.05:
                side.move()
        self.settle()
        for side in self.sides:
            assert side.device.dma.live_views == 0
            if self.chance.random() < 0.1:
                side.move()
            if side.bereft or self.chance.random() < 0.1:
                side.reset()
        if self.chance.random() < 0.04:
            self.reset_subsystem()
        if self.chance.random() < 0.3:
            self.drain()
            self.compare()

    def operate(self) -> None:
        """Whoever runs the drive does something to it, before or after commands were looked at."""
        if self.chance.random() < 0.5:
            self.sides[0].bench.loop.run_pending()
        self.operator.act()
        self.sides[0].sent.append(f"operator: {self.operator.did}")
        self.touched |= self.operator.changed
        self.operator.changed.clear()

    def note(self, qid: int, command: Command) -> None:
        """Remember which namespaces a command may change."""
        if qid:
            if command.opcode in WRITES:
                self.touched.add(command.nsid)
        elif command.opcode in (AdminOpcode.FORMAT_NVM, AdminOpcode.NAMESPACE_MANAGEMENT):
            self.touched.add(command.nsid)
            self.everything_touched |= command.nsid == BROADCAST
        elif command.opcode == AdminOpcode.SANITIZE:
            self.everything_touched = True

    def settle(self) -> None:
        """Let both controllers work until nothing is missing."""
        end = time.monotonic() + PATIENCE
        while True:
            for side in self.sides:
                side.collect()
            if not any(side.missing for side in self.sides):
                return
            if any(side.paused for side in self.sides):
                self.finish_operations()
            assert time.monotonic() < end, f"never completed: {[side.missing_words for side in self.sides]}"
            for side in self.sides:
                side.bench.loop.run_once(0.0005)

    def finish_operations(self) -> None:
        """Let what goes on in the background come to its end."""
        end = time.monotonic() + PATIENCE
        while self.subsystem.background.operations:
            assert time.monotonic() < end, "an operation in the background never ended"
            if advance(self.subsystem):
                continue
            with self.turn.released():
                time.sleep(0.0002)

    def drain(self) -> None:
        """Let everything end that can."""
        self.finish_operations()
        self.settle()
        for side in self.sides:
            assert not side.device.state.events.deferred, "a command waits for an operation that is over"

    def reset_subsystem(self) -> None:
        """One host resets the whole subsystem, or its power fails."""
        if self.chance.random() < 0.5:
            self.chance.choice(self.sides).bench.bar.write32(NSSR, NSSR_KEY)
        else:
            self.subsystem.power_cut(self.chance.randrange(8))
            self.everything_touched = True
        for side in self.sides:
            side.bench.settle()
            assert side.driver.status & READY == 0
        for side in self.sides:
            side.start()
            side.check_alive()

    def compare(self) -> None:
        """See that every namespace that nobody wrote to holds what it held."""
        now = {
            nsid: (space, zlib.crc32(space.storage.read(0, min(space.storage.size, 1 << 20))))
            for nsid, space in self.subsystem.namespaces.items()
        }
        if not self.everything_touched:
            for nsid, (space, sum_before) in self.before.items():
                if nsid not in self.touched and nsid in now and now[nsid][0] is space:
                    assert now[nsid][1] == sum_before, f"namespace {nsid} has changed, and nobody wrote to it"
        self.before, self.everything_touched = now, False
        self.touched.clear()

    def close(self) -> None:
        """Let go of everything."""
        for side in self.sides:
            side.bench.device.unhandled.clear()
            side.bench.leave()
        for space in self.subsystem.namespaces.values():
            space.storage.close()

    @property
    def seen(self) -> set[Status]:
        """How commands have ended."""
        return set().union(*(side.seen for side in self.sides))


@dataclass(frozen=True)
class Outcome:
    """Of an episode: how many commands were sent, how they ended, and of each host a digest of all of it."""

    commands: int
    statuses: set[Status]
    digests: tuple[int, ...]


def episode(lane: str, seed: str, *, in_threads: bool = False) -> Outcome:
    """One episode. A failure says what was sent last.

    With storages ``in_threads`` it depends on more than its seed.
    """
    with watched() as errors:
        try:
            return play(Episode(lane, random.Random(seed), in_threads=in_threads), errors)
        except BaseException as error:
            error.add_note(f"seed {seed!r}, lane {lane}")
            raise


def play(made: Episode, errors: Errors, more: Callable[[], bool] = lambda: True) -> Outcome:
    """One episode, from its making to its end, or until there is no ``more`` to come."""
    try:
        for _ in made.run(BATCHES):
            assert not errors.found, "\n".join(errors.found)
            if not more():
                break
        with made.turn:
            made.drain()
            made.compare()
        made.close()
        assert not errors.found, "\n".join(errors.found)
    except BaseException as error:
        last = [line for side in made.sides for line in side.sent]
        error.add_note("the last commands:\n" + "\n".join(last))
        error.add_note("\n".join(errors.found))
        raise
    return Outcome(made.sent, made.seen, tuple(side.digest for side in made.sides))


def storm(lane: str, count: int, seed: str) -> tuple[int, set[Status]]:
    """At least ``count`` commands; how many there were, and how they ended."""
    done, number, seen, grown = 0, 0, set[Status](), 0
    while done < count:
        found = episode(lane, f"{seed}/{number}")
        done, number, seen = done + found.commands, number + 1, seen | found.statuses
        grown = grown or memory()
        assert memory() - grown < GROWTH, f"{memory() - grown} bytes were added by {done} commands"
    return done, seen


def described(command: Command) -> str:
    """The fields of a command that are not zero."""
    shown = {name: getattr(command, name) for name in command.__slots__ if name != "cid"}
    return " ".join(f"{name}={value:#x}" for name, value in shown.items() if value or name == "opcode")


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    started = time.monotonic()
    commands, statuses = storm(sys.argv[1], int(sys.argv[2]), sys.argv[3])
    names = " ".join(sorted(status.name for status in statuses))
    print(f"{commands} commands in {time.monotonic() - started:.0f} s, {len(statuses)} statuses: {names}")
