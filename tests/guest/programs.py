"""Servers in processes of their own, to be killed and looked at from outside."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from outboard.client import Client
from tests.cli.conftest import PROGRAM


@dataclass(frozen=True)
class Served:
    """A running server, and what it says is to be pasted behind QEMU's command."""

    process: "subprocess.Popen[str]"
    pasted: str


@contextmanager
def serving(socket: Path, *arguments: str | Path) -> Iterator[Served]:
    """``outboard nvme`` with these arguments, listening on ``socket``, until the block's end."""
    command = [PROGRAM, "nvme", "--socket", socket, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        said = []
        try:
            # The device is the last thing it says, when it listens.
            for line in process.stdout:
                said.append(line)
                if "vfio-user-pci" in line:
                    break
            yield Served(process, "".join(line for line in said if line.startswith("  -")).rstrip())
        finally:
            process.kill()


@dataclass(frozen=True)
class Footprint:
    """What a process holds."""

    descriptors: int
    threads: int
    guest_maps: int


def footprint(server: Served, socket: Path) -> Footprint:
    """What a server holds when its only client is ours, and so has let go of the one before."""
    process = Path("/proc", str(server.process.pid))
    with Client(socket):
        return Footprint(
            descriptors=len(list((process / "fd").iterdir())),
            threads=len(list((process / "task").iterdir())),
            guest_maps=(process / "maps").read_text().count("/memfd:memory-backend"),
        )
