import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from outboard import Client
from outboard.server.profiles import ProfileName
from outboard.testing.client import TestClient

EXAMPLE = Path(__file__).parents[2] / "examples" / "03_doorbell.py"


@pytest.fixture
def summer() -> Any:
    return runpy.run_path(str(EXAMPLE))["Summer"]()


def test_the_example_is_a_page() -> None:
    assert len(EXAMPLE.read_text().splitlines()) < 60


def exercise(client: Client, by_descriptor: bool) -> None:
    """Queues jobs, rings, waits for the interrupt, looks at the sums."""
    client.bus_master()
    interrupts = client.enable_msi(4)
    ram = client.memory(8192)
    bell = client.doorbells(0).at(0x804)
    assert bell.by_descriptor is by_descriptor
    client.bar(0).write64(0x08, ram.address)
    ram.write(4096, bytes(range(100)))
    for number in range(3):
        job = (ram.address + 4096).to_bytes(8, "little") + (10 * number + 10).to_bytes(4, "little")
        ram.write(16 * number, job)
    bell.ring(2)
    interrupts[1].wait()
    bell.ring(3)
    interrupts[1].wait()
    sums = [int.from_bytes(ram.read(16 * number + 12, 4), "little") for number in range(3)]
    assert sums == [sum(range(10)), sum(range(20)), sum(range(30))]
    client.doorbells(0).at(0x900, 2).ring(0xDEAD)


@pytest.mark.parametrize("profile", ["spec", "libvfio-user"])
def test_jobs_are_done_whichever_way_the_client_rings(summer: Any, profile: ProfileName) -> None:
    with TestClient(summer, profile=profile) as client:
        exercise(client, profile == "libvfio-user")
        assert summer.heads == [0] * 4
        assert summer.tail[1] == 0


def test_it_serves_a_client_in_another_process(tmp_path: Path) -> None:
    path = tmp_path / "s"
    # With an end of its own on SIGTERM: the socket's file goes with it.
    process = subprocess.Popen([sys.executable, EXAMPLE, path])
    try:
        with Client(path, patience=10) as client:
            exercise(client, True)
    finally:
        process.terminate()
        assert process.wait() == 0
    assert not path.exists()
