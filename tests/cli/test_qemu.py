"""`outboard qemu`: devices and machine in one command, and the line of `outboard nvme`, as pasted."""

import shlex
import subprocess
from pathlib import Path

import pytest

from outboard.testing.guest import find_kernel, find_qemu
from tests.cli.conftest import EDU, Outboard, Serving

BOOT = ["-nographic", "-nodefaults", "-serial", "stdio", "-no-reboot"]
APPEND = "console=ttyS0 panic=-1 mitigations=off cryptomgr.notests no_timer_check"
"""A kernel without a root file system panics when all drivers have run, and with this the machine ends."""


def linux() -> list[str]:
    """The arguments that boot a kernel to that end."""
    return [*BOOT, "-kernel", str(find_kernel().image), "-append", APPEND]


def test_a_dry_run_prints_what_would_be_run(outboard: Outboard) -> None:
    shown = outboard("qemu", "--nvme", "ram:16M", "--device", EDU, "--dry-run", "--", "-M", "q35", "-m", "1G")
    words = shlex.split(shown.stdout)
    assert words[:5] == ["qemu-system-x86_64", "-M", "q35", "-m", "1G"]
    assert sum("vfio-user-pci" in word for word in words) == 2
    assert "memory-backend-memfd,id=outboard-memory,size=1073741824,share=on" in words


def test_a_machine_without_a_device_is_refused(outboard: Outboard) -> None:
    refused = outboard("qemu", "--", "-M", "q35")
    assert refused.returncode == 1
    assert "--nvme BACKEND" in refused.stderr


@pytest.mark.guest
@pytest.mark.point("P148")
@pytest.mark.parametrize("machine", ["q35", "pc"])
def test_linux_finds_the_devices_of_one_command(outboard: Outboard, machine: str) -> None:
    arguments = ["-machine", machine, "-m", "512M", *linux()]
    disks = ["--nvme", "ram:16M", "--nvme", "null:1G,block_size=4096"]
    shown = outboard("qemu", *disks, "--device", f"{EDU}:Edu", "--", *arguments)
    assert shown.returncode == 0, shown.stderr
    assert "nvme nvme1: pci function" in shown.stdout
    assert "Duplicate cntlid" not in shown.stdout
    assert "[1234:11e8]" in shown.stdout


@pytest.mark.guest
def test_qemus_own_failure_is_the_commands(outboard: Outboard) -> None:
    failed = outboard("qemu", "--nvme", "ram:16M", "--", "-M", "no-such-machine")
    assert failed.returncode == 1
    assert "no-such-machine" in failed.stderr


@pytest.mark.guest
def test_the_line_that_nvme_prints_works_as_pasted(serving: Serving, tmp_path: Path) -> None:
    process = serving(tmp_path / "disk.sock", "nvme", "--namespace", "ram:16M")
    assert process.stdout is not None
    process.stdout.readline()
    pasted = [process.stdout.readline().rstrip("\\\n") for _ in range(4)]
    command = [*find_qemu().command, *shlex.split(" ".join(pasted)), *linux()]
    shown = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=200, check=False
    )
    assert shown.returncode == 0, shown.stderr
    assert "nvme nvme0: pci function" in shown.stdout
