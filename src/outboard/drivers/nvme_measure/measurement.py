"""Sets a measurement up, runs it, and gathers the result; the loop itself is `drive`."""

import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from outboard.client import Client
from outboard.client.memory import GuestRam
from outboard.drivers.nvme import NvmeDriver
from outboard.drivers.nvme_measure import layout as at
from outboard.drivers.nvme_measure.doorbells import Doorbells, map_doorbells, share_doorbells
from outboard.drivers.nvme_measure.histogram import Histogram
from outboard.drivers.nvme_measure.loop import drive
from outboard.drivers.nvme_measure.plan import PAGE, Plan
from outboard.drivers.nvme_measure.workload import Corruption, FirstFailure, Latency, Result, Workload
from outboard.errors import PeerTimeout, RemoteProtocolError
from outboard.native.jit import available
from outboard.native.words import Block, Record

PATIENCE = 10.0
"""Seconds without a single completion after which a controller that still answers is given up."""

NATIVE_LOOK, NATIVE_POLLS = 100_000_000, 1024
PLAIN_LOOK, PLAIN_POLLS = 0, 8
"""How long the loop goes on without completions, in nanoseconds, and how often it looks between two looks at
the clock. Uncompiled it holds the GIL, which a server in this process may need."""

SECOND = 1_000_000_000
FOREVER = (1 << 63) - 1


@contextmanager
def measuring(
    client: Client,
    workload: Workload,
    *,
    doorbells: Doorbells = Doorbells.AUTO,
    native: bool | None = None,
) -> Iterator["Measurement"]:
    """Set up a measurement of the controller behind ``client``; leaves the controller disabled.

    ``native`` is whether the loop is compiled (default: where Numba is installed).

    Raises:
        SetupError: the controller or the namespace cannot do what is asked for.
        RemoteError: the controller refuses a command, or has failed.
    """
    chosen = available() if native is None else native
    # Compiling takes seconds; no controller is kept waiting for that.
    call = drive.native if chosen else drive.plain
    mapping = map_doorbells(client, doorbells, workload.queues)
    with NvmeDriver(client, doorbells=mapping) as driver:
        plan = Plan(driver, workload)
        ram = client.memory(plan.size)
        measurement = Measurement(driver, plan, ram, call, chosen)
        measurement.connect(doorbells, mapping.address if mapping else None)
        yield measurement
    # The controller is disabled now, and lets go.
    ram.unmap()


class Measurement:
    """One measurement, made by `measuring`. `run` it once; other threads may `stop` it and look at it."""

    def __init__(
        self, driver: NvmeDriver, plan: Plan, ram: GuestRam, call: Callable[[int], int], native: bool
    ) -> None:
        self.workload = workload = plan.workload
        self.doorbells = Doorbells.TRAPPED
        self.native = native
        self.reading_back = False
        self._driver, self._plan, self._ram, self._call = driver, plan, ram, call
        self._seconds: float | None = None
        self._histogram = Histogram()
        self._errors = Block(8 * at.STATUSES)
        self._batch = Block(16 * workload.qd)
        self._generations = Block(4 * plan.chunks + 8 if workload.verify else 8)
        self._slots = Block(plan.slots * at.SLOT_SIZE)
        self._run = Block(at.RUN_SIZE + workload.queues * at.QUEUE_SIZE)
        self._queues = [
            Record(self._run, at.RUN_SIZE + number * at.QUEUE_SIZE) for number in range(workload.queues)
        ]
        self._set_up_run()
        self._set_up_slots()

    def connect(self, wanted: Doorbells, mapped: Callable[[int, int], int] | None) -> None:
        """Create the queues, and find how their doorbells are rung.

        ``mapped`` gives the address of a range of BAR 0 where that is mapped.
        """
        plan, driver, ram = self._plan, self._driver, self._ram
        shadow, events = ram.address + plan.shadow, ram.address + plan.events
        if mapped is not None:
            self.doorbells = Doorbells.MAPPED
        elif share_doorbells(driver, wanted, self.workload.queues, shadow, events):
            self.doorbells = Doorbells.SHADOW
        stride = driver.doorbell_stride
        for number, queue in enumerate(self._queues):
            submissions, completions = plan.queue(number)
            self._preset_entries(submissions)
            driver.create_queues(
                number + 1, ram.address + submissions, ram.address + completions, plan.entries
            )
            offset = 2 * (number + 1) * stride
            queue[at.PHASE] = 1
            queue[at.ENTRIES] = plan.entries
            queue[at.SUBMISSIONS] = ram.address_here(submissions)
            queue[at.COMPLETIONS] = ram.address_here(completions)
            queue[at.SLOTS] = self._slots.address + number * self.workload.qd * at.SLOT_SIZE
            queue[at.DEPTH] = self.workload.qd
            queue[at.BELL_STRIDE] = stride
            queue[at.BELL_KIND] = at.TRAPPED
            if mapped is not None:
                queue[at.BELL_KIND] = at.MAPPED
                queue[at.BELL] = mapped(driver.doorbell(number + 1), 2 * stride)
            elif self.doorbells is Doorbells.SHADOW:
                queue[at.BELL_KIND] = at.SHADOW
                queue[at.BELL] = ram.address_here(plan.shadow + offset)
                queue[at.EVENT] = ram.address_here(plan.events + offset)
            queue[at.HEAD_SLACK] = max(0, plan.entries - 1 - 2 * self.workload.qd)
            queue[at.NEXT] = 0 if self.workload.verify else number * plan.chunks // self.workload.queues

    def run(self) -> None:
        """Measure, in this thread, until the time is over or `stop`; then verify, if that was asked for.

        Raises:
            PeerTimeout: nothing was completed for `PATIENCE` seconds.
            ConnectionLost: the server has gone.
            RemoteError: the controller has failed.
        """
        begin = time.monotonic_ns() + int(self.workload.warm_up * SECOND)
        self._run[at.RECORD_FROM] = begin
        self._run[at.DEADLINE] = begin + int(self.workload.seconds * SECOND)
        self._drive()
        self._seconds = self.elapsed
        if self.workload.verify and not self._run[at.CORRUPT] and not self._run[at.STOP]:
            self._read_back()

    def stop(self) -> None:
        """End early, from any thread; what is measured so far counts."""
        self._run[at.STOP] = 1

    @property
    def completed(self) -> int:
        """Commands that were measured so far."""
        return self._run[at.COMPLETED]

    @property
    def elapsed(self) -> float:
        """Seconds measured so far; 0 while it warms up."""
        if self._seconds is not None:
            return self._seconds
        begin = self._run[at.RECORD_FROM]
        until = self._run[at.ENDED] or time.monotonic_ns()
        return max(0, until - begin) / SECOND if begin else 0.0

    def result(self) -> Result:
        """What was measured, so far if it still runs."""
        run, histogram = self._run, self._histogram
        first = None
        if run[at.FAILED]:
            status = run[at.FIRST_STATUS]
            first = FirstFailure(status >> 8, status & 0xFF, run[at.FIRST_OPCODE], run[at.FIRST_LBA])
        corruption = None
        if run[at.CORRUPT]:
            block, byte = divmod(run[at.CORRUPT_WORD], self._plan.block)
            corruption = Corruption(
                run[at.CORRUPT_LBA] + block, byte, run[at.CORRUPT_EXPECTED], run[at.CORRUPT_FOUND]
            )
        p50, p99, p999 = (histogram.percentile(percent) for percent in (50, 99, 99.9))
        statuses = enumerate(self._errors.words)
        return Result(
            workload=self.workload,
            doorbells=self.doorbells,
            native=self.native,
            seconds=self.elapsed,
            operations=run[at.COMPLETED],
            latency=Latency(histogram.mean, p50, p99, p999, histogram.max, tuple(histogram)),
            failures={(status >> 8, status & 0xFF): count for status, count in statuses if count},
            first_failure=first,
            compared=run[at.COMPARED],
            corrupt=run[at.CORRUPT],
            corruption=corruption,
        )

    def _set_up_run(self) -> None:
        plan, workload, run = self._plan, self.workload, self._run
        run[at.PATIENCE] = NATIVE_LOOK if self.native else PLAIN_LOOK
        run[at.POLLS] = NATIVE_POLLS if self.native else PLAIN_POLLS
        run[at.QUEUES] = run.address + at.RUN_SIZE
        run[at.QUEUES_END] = run[at.QUEUES] + workload.queues * at.QUEUE_SIZE
        run[at.BATCH] = self._batch.address
        run[at.RANDOM] = random.randrange(1, 1 << 61)
        run[at.READ_SHARE] = round(workload.read_percent / 100 * (1 << 16))
        run[at.IS_RANDOM] = workload.is_random
        run[at.CHUNKS] = plan.chunks
        run[at.BLOCKS] = workload.bs // plan.block
        run[at.CHUNK_SIZE] = workload.bs
        run[at.VERIFY] = workload.verify
        run[at.SLOT_COUNT] = plan.slots
        run[at.GENERATIONS] = self._generations.address
        run[at.HISTOGRAM] = self._histogram.address
        run[at.ERRORS] = self._errors.address

    def _set_up_slots(self) -> None:
        """Identifiers, data, and the lists of its pages (NVMe Base 2.0, 4.1.1)."""
        plan, ram = self._plan, self._ram
        # Not zeros: a storage that looks for those would not write.
        noise = os.urandom(PAGE) * (plan.data_size // PAGE)
        for index in range(plan.slots):
            slot = Record(self._slots, index * at.SLOT_SIZE)
            identifier = index % self.workload.qd
            offset = plan.buffer(index)
            ram.write(offset, noise)
            buffers = range(ram.address + offset, ram.address + offset + plan.data_size, PAGE)
            slot[at.PRP1] = buffers[0]
            if plan.has_lists:
                slot[at.PRP2] = ram.address + plan.prp_list(index)
                ram.write(plan.prp_list(index), b"".join(page.to_bytes(8, "little") for page in buffers[1:]))
            elif len(buffers) == 2:
                slot[at.PRP2] = buffers[1]
            base = identifier << 16 | self.workload.nsid << 32
            slot[at.BASE] = base - (1 << 64) if base >> 63 else base
            slot[at.BUFFER] = ram.address_here(offset)
            slot[at.INDEX] = index

    def _preset_entries(self, submissions: int) -> None:
        """Put what is the same in every command, dword 12, into every entry of a queue."""
        blocks = self.workload.bs // self._plan.block
        entry = bytes(48) + (blocks - 1 | self._plan.protection).to_bytes(4, "little") + bytes(12)
        self._ram.write(submissions, entry * self._plan.entries)

    def _drive(self) -> None:
        """Call the loop until it is done; ring for it what has to be rung by message."""
        seen, since = 0, time.monotonic()
        while (reason := self._call(self._run.address)) != at.DONE:
            if reason == at.IS_BROKEN:
                raise RemoteProtocolError(
                    f"the controller completed command {self._run[at.BROKEN] - 1}, which it was not given"
                )
            if reason == at.RING:
                self._ring()
            elif self._run[at.NOW] != seen:
                seen, since = self._run[at.NOW], time.monotonic()
                self._give_way()
            else:
                self._give_way()
                self._look_after_it(time.monotonic() - since)

    def _give_way(self) -> None:
        """Nothing completes just now: without the GIL others may see to that."""
        if not self.native:
            time.sleep(0)

    def _look_after_it(self, waited: float) -> None:
        """Nothing has been completed for so many seconds: is anybody there?"""
        if waited >= PATIENCE:
            in_flight = sum(queue[at.IN_FLIGHT] for queue in self._queues)
            raise PeerTimeout(
                f"the controller answers, but has completed none of {in_flight} commands for {PATIENCE:g} s"
            )
        if self.native or waited > 0.1:
            self._driver.check()

    def _ring(self) -> None:
        stride = self._driver.doorbell_stride
        for number, queue in enumerate(self._queues, 1):
            owed, queue[at.OWED] = queue[at.OWED], 0
            if owed & at.OWED_TAIL:
                self._driver.ring(self._driver.doorbell(number), queue[at.TAIL])
            if owed & at.OWED_HEAD:
                self._driver.ring(self._driver.doorbell(number) + stride, queue[at.HEAD])

    def _read_back(self) -> None:
        """Read every chunk whose data is known once more, and compare it."""
        self.reading_back = True
        for index in range(self._plan.slots):
            Record(self._slots, index * at.SLOT_SIZE)[at.LBA] = -self._run[at.BLOCKS]
        self._run[at.RECORD_FROM] = self._run[at.DEADLINE] = FOREVER
        self._run[at.SCAN] = 1
        self._run[at.PRIMED] = self._run[at.ENDED] = 0
        self._drive()
