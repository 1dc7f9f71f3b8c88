"""A real QEMU, judged as a client by the conformance suite; no guest has to boot for that."""

import json
import shlex
import tempfile
from pathlib import Path

import pytest

from outboard.conformance import judge_client
from outboard.testing.guest.qemu import find_qemu

SHARED = "memory-backend-memfd,id=mem,size=128M,share=on"
POINTS = ["P122a", "P123b", "P127", "P129a", "P130a", "P131", "P132", "P133a", "P134", "P136"]


@pytest.mark.guest
@pytest.mark.point("P122", "P123", "P127", "P130", "P131", "P132", "P133", "P134", "P136")
def test_qemu_speaks_as_its_own_profile_says_but_needs_a_header_in_one_piece() -> None:
    with tempfile.TemporaryDirectory(prefix="ob", dir="/tmp") as folder:
        device = {"driver": "vfio-user-pci", "socket": {"type": "unix", "path": "SOCKET"}}
        machine = ["-M", "q35,memory-backend=mem", "-m", "128M", "-object", SHARED]
        words = [
            *find_qemu().command,
            *machine,
            "-nodefaults",
            "-display",
            "none",
            "-device",
            json.dumps(device),
        ]
        command = shlex.join(words).replace("SOCKET", "{socket}")
        report = judge_client(Path(folder, "vmm.sock"), command=command, only=POINTS, settle=2.0)
    assert [verdict.point.id for verdict in report.failures] == ["P129a"]
    assert report.ok is False
    held = {verdict.point.id for verdict in report if verdict.outcome == "pass"}
    assert {"P122a", "P123b", "P127", "P130a", "P131", "P132a", "P133a", "P136"} <= held
