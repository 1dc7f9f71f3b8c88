"""The run of libvfio-user's sample client against our device, step by step."""

import runpy
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from outboard import Client, Server
from outboard.client import GuestRam, Interrupt, migrate
from outboard.protocol.messages import MigrationState

EXAMPLE = Path(__file__).parents[2] / "examples" / "05_alarm.py"
PAGE = 4096
SHARED = 0x3000
CHUNKS = b"".join(bytes([letter]) * 1024 for letter in b"ABCD")


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[tuple[Client, Client]]:
    alarm: Any = runpy.run_path(str(EXAMPLE))["Alarm"]
    with (
        Server(alarm(), tmp_path / "here").start(),
        Server(alarm(), tmp_path / "there").start(),
        Client(tmp_path / "here") as here,
        Client(tmp_path / "there") as there,
    ):
        yield here, there


def map_pages(client: Client, count: int, first: int = 0) -> list[GuestRam]:
    return [client.memory(PAGE, (first + number) * PAGE) for number in range(count)]


def expect_alarm(client: Client, line: Interrupt, by_message: GuestRam, in_place: GuestRam) -> None:
    assert line.wait(10) == 1
    end = time.monotonic() + 10
    while bytes(by_message.view) != CHUNKS:
        assert time.monotonic() < end
        client.serve_dma(0.1)
    assert bytes(in_place.view) == CHUNKS
    client.bar(0).read64(0)  # while we wait for the answer the device reads it back


def test_the_example_is_a_page() -> None:
    assert len(EXAMPLE.read_text().splitlines()) < 60


@pytest.mark.point("P114", "P116", "P136")
def test_the_sample_clients_run(ends: tuple[Client, Client]) -> None:
    client, there = ends
    assert struct.unpack("<HH", client.config.read(0, 4)) == (0xDEAD, 0xBEEF)
    assert struct.unpack("<HH", client.config.read(0x2C, 4)) == (0xCAFE, 0xBABE)
    client.reset()
    pages = map_pages(client, 32)
    line = client.enable_intx()

    client.migration.start_dirty_log([])
    client.bar(0).write64(0, int(time.time()) + 1)
    assert client.bar(0).read64(0) in (0, (1 << 64) - 1)
    expect_alarm(client, line, pages[0], pages[1])
    dirty = {page for number in range(32) for page in client.migration.dirty_pages(number * PAGE, PAGE)}
    assert dirty == {PAGE}
    client.migration.stop_dirty_log()
    for page in pages[:16]:
        page.unmap()

    client.bar(0).write64(0, int(time.time()) + 2)
    noise = bytes(range(256)) * (SHARED // 256)
    client.bar(1).write(0, noise)
    migrate(client, there, pre_copy=False, chunk=1024)
    assert there.bar(1).read(0, SHARED) == noise
    pages = map_pages(there, 16, first=16)
    expect_alarm(there, there.enable_intx(), pages[0], pages[1])
    there.dma_unmap_all()


def test_while_it_runs_it_gives_its_memory_again_and_again(ends: tuple[Client, Client]) -> None:
    client, _ = ends
    client.migration.state = MigrationState.PRE_COPY
    stream = client.migration.read(1024)
    assert sum(len(next(stream)) for _ in range(24)) == 24 * 1024
