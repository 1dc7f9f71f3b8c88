import os
import runpy
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from outboard.client import Client
from outboard.native.jit import available
from outboard.server import Server

EXAMPLE = Path(__file__).parents[2] / "examples" / "02_copy_engine.py"
RING, ENTRIES, TAIL = 0x00, 0x08, 0x1000
SLOTS = 8
SOURCE, TARGET = 0x10000, 0x20000
DONE, REFUSED = 1, 2


class Driver:
    """What a driver of the engine does, on our client."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.ram = client.memory(0x40000)
        self.registers = client.bar(0)
        self.doorbell = client.map_bar(0)
        client.bus_master(True)
        self.interrupt = client.enable_msi(1)[0]
        self.tail = 0
        self.begin()

    def begin(self) -> None:
        self.registers.write64(RING, self.ram.address)
        self.registers.write32(ENTRIES, SLOTS)
        self.tail = 0

    def queue(self, source: int, target: int, length: int) -> int:
        slot = self.tail
        self.ram.write(slot * 32, struct.pack("<QQII8x", source, target, length, 0))
        self.tail = (slot + 1) % SLOTS
        return slot

    def ring(self, *, mapped: bool = True) -> None:
        (self.doorbell if mapped else self.registers).write32(TAIL, self.tail)

    def status(self, slot: int) -> int:
        return int.from_bytes(self.ram.read(slot * 32 + 20, 4), "little")

    def finish(self, slot: int) -> int:
        """Wait for the interrupt until the job has a status."""
        while not self.status(slot):
            self.interrupt.wait()
        return self.status(slot)

    def address(self, offset: int) -> int:
        return self.ram.address + offset


@pytest.fixture(params=["plain", "native"])
def driver(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Driver]:
    if request.param == "plain":
        monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    elif not available():
        if os.environ.get("CI"):
            pytest.fail("Numba is not installed: pip install 'outboard[fast]'")
        pytest.skip("Numba is not installed: pip install 'outboard[fast]'")
    example = runpy.run_path(str(EXAMPLE))
    if request.param == "native":
        _ = example["pump"].native
    path = tmp_path / "engine.sock"
    with Server(example["CopyEngine"](), path).start(), Client(path) as client:
        driver = Driver(client)
        yield driver
        driver.doorbell.close()


def test_the_example_has_sixty_lines_of_code() -> None:
    lines = EXAMPLE.read_text().splitlines()
    assert sum(bool(line.strip()) for line in lines) <= 60


@pytest.mark.parametrize("mapped", [True, False])
def test_a_job_is_carried_out_however_the_doorbell_is_rung(driver: Driver, mapped: bool) -> None:
    driver.ram.write(SOURCE, b"from here to there")
    slot = driver.queue(driver.address(SOURCE), driver.address(TARGET), 18)
    driver.ring(mapped=mapped)
    assert driver.finish(slot) == DONE
    assert driver.ram.read(TARGET, 19) == b"from here to there\0"


def test_many_jobs_are_carried_out_in_order_round_the_ring(driver: Driver) -> None:
    for turn in range(20):
        slots = [
            driver.queue(driver.address(SOURCE + 64 * n), driver.address(SOURCE + 64 * (n + 1)), 64)
            for n in range(SLOTS - 1)
        ]
        driver.ram.write(SOURCE, bytes([turn + 1]) * 64)
        driver.ring()
        assert [driver.finish(slot) for slot in slots] == [DONE] * (SLOTS - 1)
        assert driver.ram.read(SOURCE + 64 * (SLOTS - 1), 64) == bytes([turn + 1]) * 64


@pytest.mark.parametrize(
    ("source", "target", "length"),
    [
        (lambda here: 0, lambda here: here(TARGET), 64),
        (lambda here: here(SOURCE), lambda here: here(0x40000 - 63), 64),
        (lambda here: (1 << 64) - 64, lambda here: here(TARGET), 64),
        (lambda here: here(SOURCE), lambda here: here(TARGET), 0xFFFF_FFFF),
    ],
)
def test_a_job_outside_of_guest_memory_is_refused_and_the_next_one_done(
    driver: Driver,
    source: Callable[[Callable[[int], int]], int],
    target: Callable[[Callable[[int], int]], int],
    length: int,
) -> None:
    refused = driver.queue(source(driver.address), target(driver.address), length)
    done = driver.queue(driver.address(SOURCE), driver.address(TARGET), 64)
    driver.ring()
    assert driver.finish(done) == DONE
    assert driver.status(refused) == REFUSED


@pytest.mark.parametrize("tail", [SLOTS, 0xFFFF_FFFF])
def test_a_tail_that_cannot_be_is_ignored(driver: Driver, tail: int) -> None:
    driver.queue(driver.address(SOURCE), driver.address(TARGET), 64)
    driver.doorbell.write32(TAIL, tail)
    driver.ring()
    assert driver.finish(0) == DONE


def test_memory_is_not_touched_once_it_was_unmapped(driver: Driver) -> None:
    other = driver.client.memory(0x1000)
    gone = other.address
    other.unmap()
    refused = driver.queue(driver.address(SOURCE), gone, 64)
    driver.ring()
    assert driver.finish(refused) == REFUSED


def test_a_reset_stops_the_engine_until_it_is_given_a_ring_again(driver: Driver) -> None:
    driver.client.reset()
    driver.client.bus_master(True)
    slot = driver.queue(driver.address(SOURCE), driver.address(TARGET), 64)
    driver.ring()
    driver.registers.read32(ENTRIES)
    assert driver.status(slot) == 0
    driver.ram.write(SOURCE, b"after")
    driver.begin()
    driver.queue(driver.address(SOURCE), driver.address(TARGET), 64)
    driver.ring()
    assert driver.finish(0) == DONE
    assert driver.ram.read(TARGET, 5) == b"after"
