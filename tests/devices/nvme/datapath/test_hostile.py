"""Whatever a guest does: named statuses, and no access beyond its maps, which guard pages would notice."""

import subprocess
import sys

import pytest

from outboard.native.jit import available


def run(lane: str, what: str, count: int, seed: int, timeout: float = 120) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.devices.nvme.datapath.hostile", lane, what, str(count), str(seed)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"ended by {done.returncode}\n{done.stderr[-4000:]}"
    return done.stdout.split()


@pytest.mark.point("D04", "D07")
def test_random_commands_do_the_same_plain_and_compiled_and_touch_nothing_else(lane: str) -> None:
    digest, served, diverted = run("plain", "repeat", 2000, 1)
    assert int(served) > 100
    assert int(diverted) > 100
    if lane == "native":
        assert run("native", "repeat", 2000, 1) == [digest, served, diverted]


@pytest.mark.point("T02")
def test_lists_and_entries_may_change_while_they_are_read(lane: str) -> None:
    served, diverted = run(lane, "race", 20_000 if lane == "native" else 1000, 2)
    assert int(served) > 10
    assert int(diverted) > 10


@pytest.mark.soak
def test_a_hundred_thousand_random_commands_do_the_same_plain_and_compiled() -> None:
    assert available()
    assert run("plain", "repeat", 100_000, 3, 3600) == run("native", "repeat", 100_000, 3, 3600)


@pytest.mark.point("T01")
@pytest.mark.soak
@pytest.mark.parametrize("what", ["repeat", "race"])
def test_ten_million_random_commands_do_no_harm(what: str) -> None:
    run("native", what, 10_000_000, 4, 12 * 3600)
