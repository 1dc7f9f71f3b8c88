"""`outboard bench` against running servers."""

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from outboard.cli.bench_report import grouped
from outboard.drivers.nvme_measure import Doorbells
from outboard.server import Server
from tests.cli.conftest import PROGRAM, Outboard
from tests.drivers.controllers import SmallNvme

SHORT = ("--seconds", "0.2", "--warm-up", "0.05")
UNCOMPILED = {"NUMBA_DISABLE_JIT": "1"}
"""Much of a short command's time would be compiling."""


@pytest.fixture
def device(tmp_path: Path) -> Iterator[SmallNvme]:
    """A controller that listens on ``disk.sock``."""
    device = SmallNvme(8192, Doorbells.MAPPED)
    with Server(device, tmp_path / "disk.sock").start():
        yield device


def test_the_json_has_the_numbers_and_what_was_asked(
    device: SmallNvme, outboard: Outboard, tmp_path: Path
) -> None:
    options = "--rw randrw --mix 40 --bs 8k --qd 3 --queues 2 --json".split()
    done = outboard("bench", tmp_path / "disk.sock", *options, *SHORT, **UNCOMPILED)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["iops"] > 0
    assert found["bytes_per_second"] == pytest.approx(found["iops"] * 8192, rel=0.01)
    assert list(found["latency_us"]) == ["mean", "p50", "p99", "p999", "max"]
    assert found["errors"] == 0
    assert found["doorbells"] == "mapped"
    assert found["asked"] == {
        "rw": "randrw", "bs": 8192, "qd": 3, "queues": 2, "seconds": 0.2, "warm_up": 0.05, "nsid": 1,
        "mix": 40.0, "verify": False,
    }  # fmt: skip


def test_people_get_a_histogram_of_the_times(device: SmallNvme, outboard: Outboard, tmp_path: Path) -> None:
    done = outboard("bench", tmp_path / "disk.sock", *SHORT, **UNCOMPILED)
    assert done.returncode == 0, done.stderr
    assert "IOPS" in done.stdout
    assert "p99.9" in done.stdout
    assert "█" in done.stdout


def test_without_numba_it_works_and_says_that_it_is_slow(
    device: SmallNvme, outboard: Outboard, tmp_path: Path
) -> None:
    done = outboard("bench", tmp_path / "disk.sock", *SHORT, "--json", **UNCOMPILED)
    assert not json.loads(done.stdout)["native"]
    assert done.stderr.count("\n") == 1
    assert "pip install 'outboard[fast]'" in done.stderr


def test_corruption_is_told_with_its_block_and_fails(
    device: SmallNvme, outboard: Outboard, tmp_path: Path
) -> None:
    device.faults.lose_writes = True
    done = outboard("bench", tmp_path / "disk.sock", "--rw", "randwrite", "--verify", *SHORT, **UNCOMPILED)
    assert done.returncode == 1
    assert "reads came back wrong" in done.stdout
    assert "LBA" in done.stdout


def test_failed_commands_fail_the_program(device: SmallNvme, outboard: Outboard, tmp_path: Path) -> None:
    device.faults.fail = set(range(0, 8192, 8))
    done = outboard("bench", tmp_path / "disk.sock", *SHORT, "--json", **UNCOMPILED)
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert found["iops"] == 0
    assert found["errors"] == found["error_statuses"]["2/0x81"] > 0
    assert "status type 2, code 0x81" in found["first_error"]


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_the_result_so_far(
    device: SmallNvme, tmp_path: Path, sign: signal.Signals
) -> None:
    command: list[str | Path] = [PROGRAM, "bench", tmp_path / "disk.sock"]
    command += ["--seconds", "600", "--warm-up", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        deadline = time.monotonic() + 60
        while device.done < 100 and time.monotonic() < deadline:
            time.sleep(0.01)
        running.send_signal(sign)
        assert running.stdout is not None
        found = json.loads(running.stdout.read())
    assert running.returncode == 0
    assert found["operations"] > 0
    assert found["measured_seconds"] < 60
    assert device.cc & 1 == 0


def test_what_cannot_be_is_one_line(device: SmallNvme, outboard: Outboard, tmp_path: Path) -> None:
    failed = outboard("bench", tmp_path / "disk.sock", "--bs", "1000", **UNCOMPILED)
    assert failed.returncode == 1
    assert failed.stdout == ""
    assert "blocks of 512 bytes" in failed.stderr.splitlines()[-1]


@pytest.mark.parametrize("spread", [1, 3, 1 << 10, 1 << 34])
def test_a_histogram_of_any_spread_has_at_most_twenty_lines_and_loses_nothing(spread: int) -> None:
    buckets = tuple((1000 + spread * step, 1000 + spread * step, step + 1) for step in range(10))
    lines = grouped(buckets)
    assert 1 <= len(lines) <= 20
    assert sum(count for _, count in lines) == 55
    assert [first for first, _ in lines] == sorted(first for first, _ in lines)
