"""The two ways from the command line to a machine with a disk; that it boots shows that the disk is read."""

import shlex
import subprocess
from pathlib import Path

import pytest

from outboard.testing.guest import bootable_disk, find_qemu
from tests.cli.conftest import PROGRAM
from tests.guest.programs import serving

pytestmark = pytest.mark.guest

SENTENCE = "a sentence of the disk"
HEADLESS = ["-display", "none", "-vga", "none", "-serial", "stdio", "-no-reboot"]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    (path := tmp_path / "boot.img").write_bytes(bootable_disk(SENTENCE))
    return path


def boots(*command: str | Path) -> bool:
    """Whether the disk's sentence is on the console, which is the standard output."""
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as program:
        assert program.stdout is not None
        said = any(SENTENCE in line for line in program.stdout)
        program.terminate()
    return said


@pytest.mark.parametrize("machine", ["q35", "pc"])
def test_one_command_boots_a_machine_from_our_disk(image: Path, machine: str) -> None:
    assert boots(PROGRAM, "qemu", "--nvme", image, "--", "-machine", machine, "-m", "1G", *HEADLESS)


def test_the_lines_that_a_server_prints_boot_a_machine_as_pasted(image: Path) -> None:
    with serving(image.with_name("disk.sock"), "--namespace", image) as server:
        command = f"exec {shlex.join(find_qemu().command)} {server.pasted} {shlex.join(HEADLESS)}"
        assert boots("sh", "-c", command)
