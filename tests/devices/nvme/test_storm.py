"""A storm of hostile commands by two hosts, over namespaces of every kind: `tests.devices.nvme.storm`."""

import subprocess
import sys

import pytest

from outboard.devices.nvme.status import Status
from tests.devices.nvme.storm.storm import episode, storm

COMMANDS = 4000


@pytest.mark.point("T01", "A01", "A02")
def test_thousands_of_mutated_commands_each_end_with_a_status_and_do_no_harm(lane: str) -> None:
    done, statuses = storm(lane, COMMANDS, "short")
    assert done >= COMMANDS
    assert len(statuses) > 40, "the commands were hardly executed"
    assert Status.SUCCESS in statuses


@pytest.mark.point("T01")
def test_storages_in_threads_change_nothing_of_that(lane: str) -> None:
    for number in range(2):
        episode(lane, f"threads/{number}", in_threads=True)


@pytest.mark.point("T01")
def test_an_episode_depends_on_its_seed_alone(lane: str) -> None:
    for seed in ("again", "and again"):
        assert episode(lane, seed) == episode("plain", seed)


@pytest.mark.soak
def test_ten_million_mutated_commands_do_no_harm() -> None:
    command = [sys.executable, "-m", "tests.devices.nvme.storm.storm", "native", "10000000", "soak"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=12 * 3600, check=False)
    assert done.returncode == 0, f"ended by {done.returncode}\n{done.stderr[-8000:]}"
