"""`outboard demo`: the main job, with a guest and without."""

import pytest

from tests.cli.conftest import Outboard


@pytest.mark.guest
@pytest.mark.point("P141")
def test_a_linux_guest_proves_the_disk(outboard: Outboard) -> None:
    shown = outboard("demo")
    assert shown.returncode == 0, shown.stderr
    for words in ("outboard NVMe", "268435456 bytes", "Creating filesystem", "/mnt/file", "has no driver"):
        assert words in shown.stdout
    checksums = {line.split()[0] for line in shown.stdout.splitlines() if line.endswith("  /mnt/file")}
    assert len(checksums) == 1
    assert "every step did what it should" in shown.stdout


def test_the_built_in_driver_proves_it_too(outboard: Outboard) -> None:
    shown = outboard("demo", "--no-guest", "--size", "128M")
    assert shown.returncode == 0, shown.stderr
    assert "134217728 bytes" in shown.stdout
    assert "every step did what it should" in shown.stdout


def test_where_no_machine_can_run_the_driver_plays_the_guest_and_it_is_said(outboard: Outboard) -> None:
    shown = outboard("demo", OUTBOARD_QEMU="/bin/true")
    assert shown.returncode == 0, shown.stderr
    assert "No virtual machine can run here" in shown.stdout
    assert "own driver plays the guest" in shown.stdout
    assert "every step did what it should" in shown.stdout


def test_a_disk_too_small_for_the_job_is_a_failure(outboard: Outboard) -> None:
    shown = outboard("demo", "--no-guest", "--size", "32M")
    assert shown.returncode == 1
    assert "Write failed" in shown.stderr
    assert "failed" in shown.stdout
