"""The loop of a poller and a host, taken apart: the host goes on at every access to memory they share.

What runs is `serve` itself, uncompiled. Clock, sleep and accesses to shared memory are replaced by ones
that let the host take steps before and after, as many as a schedule says; the host is an operating system's
driver: it submits from one processor and handles interrupts on another.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from outboard.devices.nvme import Nvme
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.datapath import completion, doorbells, loop
from outboard.devices.nvme.datapath.records import (
    CQ_DELAY,
    CQ_FD,
    CQ_HEAD_AT,
    CQ_STARVED,
    CQ_TAIL,
    CQ_THRESHOLD,
    CQ_UNTOLD,
    PL_DOZE,
    PL_GRACE,
    PL_INLINE,
    PL_LONGEST_NAP,
    PL_NAP,
    PL_POLLED,
    PL_SPIN,
    SQ_TAIL_AT,
)
from outboard.devices.nvme.datapath.tuning import Tuning
from outboard.devices.nvme.spec import AdminOpcode, IoOpcode
from outboard.devices.nvme.status import Status
from outboard.native import memory
from outboard.native.memory import store32
from outboard.native.poller import ASLEEP
from outboard.native.words import Block
from outboard.storage import NullStorage
from tests.devices.nvme.bench import Bench
from tests.devices.nvme.driver import PAGE, ended

EVENT_FD = 1 << 20
"""No descriptor: who writes to it is caught."""

TOO_LONG = 200_000
"""Looks at shared memory after which a loop will never rest."""

TICK = 300
"""Nanoseconds that pass between two looks at the clock."""


@dataclass(frozen=True)
class Setting:
    """What a controller and its host have agreed on; times are nanoseconds."""

    doorbells: str = "shadow"
    entries: int = 8
    cq_entries: int = 8
    threshold: int = 0
    delay: int = 0
    grace: int = 500_000
    spin: int = 0
    doze: int = 0
    inline: bool = False


def need_event(event: int, new: int, old: int) -> bool:
    """Whether the host has to ring: Linux's rule, in 16 bits."""
    return (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF


@dataclass
class Machine:
    """Both sides. ``batches`` are the commands the host submits at a time, ``schedule`` its steps, over and
    over: 0 none, 1 the submitter's, 2 the interrupt handler's, 3 one of each; 4 has the host look for
    completions without an interrupt. Before it begins, ``delay`` turns pass."""

    setting: Setting
    batches: list[int]
    schedule: list[int]
    delay: int = 0
    interrupts: int = 0
    spurious: int = 0
    rings: int = 0
    consumed: int = 0
    sleeps: int = 0
    now: int = 1_000_000
    _pending: bool = False
    _looks: bool = False
    _woken: bool = False
    _stop: int = 0
    _turns: int = 0
    _stepping: bool = False
    _old: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        setting = self.setting
        device = Nvme(NullStorage(1 << 20), tuning=Tuning(pollers=0, native=False))
        self.bench = bench = Bench(device)
        driver = bench.driver.enable()
        self.shadow = self.events = 0
        if setting.doorbells == "shadow":
            self.shadow, self.events = driver.ram.allocate(PAGE), driver.ram.allocate(PAGE)
            command = Command(AdminOpcode.DOORBELL_BUFFER_CONFIG, prp1=self.shadow, prp2=self.events)
            assert ended(driver.admin.execute(command)) == Status.SUCCESS
        self.pair = driver.create_queue_pair(1, setting.entries, setting.cq_entries, vector=1)
        bench.settle()
        self.sq = device.state.submission[1].record
        self.cq = device.state.completion[1].record
        self.cq[CQ_FD], self.cq[CQ_THRESHOLD], self.cq[CQ_DELAY] = EVENT_FD, setting.threshold, setting.delay
        workspace = device.plane.workspaces[0]
        self.plane = workspace.address
        workspace.record[PL_INLINE] = int(setting.inline)
        workspace.record[PL_POLLED] = int(setting.doorbells == "mmap")
        workspace.record[PL_SPIN], workspace.record[PL_GRACE] = setting.spin, setting.grace
        workspace.record[PL_NAP], workspace.record[PL_LONGEST_NAP] = 50_000, 200_000
        workspace.record[PL_DOZE] = setting.doze
        self.control = Block(512)
        self._submitter, self._handler = self._submit(), self._handle()
        self._finished = False
        self._scheduled = self._tokens()

    def close(self) -> None:
        self.bench.close()

    @property
    def sent(self) -> int:
        return sum(self.batches)

    # The host.

    def _submit(self) -> Iterator[bool]:
        """Yields after each step; False if it cannot go on."""
        pair = self.pair
        for batch in self.batches:
            for _ in range(batch):
                while self._submitted - self.consumed >= min(pair.entries, 1 << 16) - 1:
                    yield False
                pair.submit(Command(IoOpcode.FLUSH, nsid=1), cid=self._submitted & 0xFFFF)
                self._submitted += 1
                self._room_left = (pair.entries - 1) - (self._submitted - self.consumed)
                if not self._room_left:
                    yield from self._tell(0, pair.tail)
                yield True
            yield from self._tell(0, pair.tail)

    _submitted = 0
    _room_left = 0

    def _handle(self) -> Iterator[bool]:
        pair = self.pair
        while True:
            if not (self._pending or self._looks):
                yield False
                continue
            asked = self._pending
            self._pending = self._looks = False
            yield True
            found = 0
            while fresh := pair.poll(acknowledge=False):
                # The driver's poll takes all there are; one at a time leaves more room for a race.
                found += len(fresh)
                self.consumed += len(fresh)
                yield True
            self.spurious += asked and not found
            if found:
                yield from self._tell(1, pair.head)

    def _tell(self, head: int, value: int) -> Iterator[bool]:
        """Give a doorbell a value, and ring if that is wanted."""
        number = 2 + head
        old = self._old.get(number, 0)
        self._old[number] = value
        record = self.cq if head else self.sq
        page = self.bench.device._page.address
        if self.setting.doorbells == "shadow":
            store32(record[CQ_HEAD_AT if head else SQ_TAIL_AT], value)
            yield True
            (event,) = memoryview(self.bench.driver.ram.read(self.events + 4 * number, 4)).cast("I")
            yield True
            if not need_event(event, value, old):
                return
        store32(page + 4 * number, value)
        yield True
        if self.setting.doorbells != "mmap":
            self.rings += 1
            if self.control[ASLEEP] and (not head or self.cq[CQ_STARVED] or self.cq[CQ_UNTOLD]):
                self._woken = True
            self._rang = True
            yield True

    _rang = False
    _head_seen = 0

    def _tokens(self) -> Iterator[int]:
        for _ in range(self.delay):
            yield 0
        while True:
            yield from self.schedule

    def _step(self, token: int) -> bool:
        """Let the host take a step; whether it could."""
        if self._stepping:
            return False
        self._stepping = True
        try:
            self._looks |= token == 4
            moved = False
            if token in (1, 3):
                moved |= next(self._submitter, False)
            if token in (2, 3, 4):
                moved |= next(self._handler)
            return moved
        finally:
            self._stepping = False

    def turn(self) -> None:
        """The loop is about to look at shared memory, or has just changed it."""
        if self._stepping:
            return
        self._turns += 1
        assert self._turns < TOO_LONG, "the loop never rests"
        self._step(next(self._scheduled))

    # What the loop sees.

    def sleep(self, control: int, fd: int, timeout: int) -> int:
        """Until the host rings, or the time is over; for ever, and the host is stuck: that is the end."""
        self.sleeps += 1
        moving = True
        while not self._woken and moving:
            moving = self._step(3)
        self.control[ASLEEP] = 0
        if self._woken:
            self._woken = False
            return 1
        if timeout < 0 or (self._settled and self.setting.doorbells == "mmap"):
            self._stop = 1
        else:
            self.now += timeout
        return 0

    @property
    def _settled(self) -> bool:
        return self.consumed == self.sent

    def clock(self) -> int:
        self.now += TICK
        return self.now

    def interrupt(self, fd: int, scratch: int) -> int:
        assert fd == EVENT_FD
        assert self._head_seen != self.cq[CQ_TAIL], "everything was consumed when the loop last looked"
        self.interrupts += 1
        self._pending = True
        return 8

    def run(self, patch: pytest.MonkeyPatch) -> None:
        """Let both run until neither can go on."""

        def load(address: int) -> int:
            self.turn()
            value = memory.load_acquire32(address)
            if address == self.cq[CQ_HEAD_AT]:
                self._head_seen = value
            self.turn()
            return value

        def give_event(address: int, value: int) -> int:
            self.turn()
            memory.store32(address, value)
            self.turn()
            return 0

        def post(address: int, value: int) -> int:
            self.turn()
            memory.store_release64(address, value)
            self.turn()
            return 0

        def wait_a_little() -> int:
            self.turn()
            return 0

        for module, name, by in (
            (loop, "LOOKS", 4),
            (loop, "monotonic_ns", self.clock),
            (loop, "pause", wait_a_little),
            (loop, "sched_yield", wait_a_little),
            (loop, "sleep", self.sleep),
            (loop, "stopping", lambda control: self._stop),
            (doorbells, "load_acquire32", load),
            (doorbells, "store32", give_event),
            (completion, "load_acquire32", load),
            (completion, "store_release64", post),
            (completion, "write_eventfd", self.interrupt),
        ):
            patch.setattr(module, name, by)
        serve = loop.serve.plain
        if not self.setting.inline:
            serve(self.control.address, self.plane)
            return
        wait = loop.MORE
        while True:
            self._rang = False
            wait = serve(self.control.address, self.plane)
            assert self._turns < TOO_LONG, "the loop never rests"
            if wait == loop.MORE:
                continue
            moving = True
            while moving and not self._rang:
                moving = self._step(3)
            if self._rang:
                continue
            if wait == loop.IDLE:
                return
            self.now += wait
