"""The program that the documentation shows for two controllers of one disk."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from outboard import Client
from outboard.drivers.nvme import NvmeDriver

PAGE = Path(__file__).parents[2] / "docs/howto/share-a-namespace.md"


@pytest.mark.point("Z04")
def test_two_sockets_lead_to_one_disk(tmp_path: Path) -> None:
    found = re.search(r"```\{code-block\} python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found
    program = found[1].replace("/run/", f"{tmp_path}/")
    with subprocess.Popen([sys.executable, "-c", program]) as process:
        try:
            with (
                Client(tmp_path / "disk1.sock", patience=60) as first,
                Client(tmp_path / "disk2.sock", patience=60) as second,
                NvmeDriver(first) as writer,
                NvmeDriver(second) as reader,
            ):
                writer.write(1, 4096, b"shared" * 1024)
                assert reader.read(1, 4096, 6144) == b"shared" * 1024
                reader.write(1, 0, b"x" * 512)
                assert writer.read(1, 0, 512) == b"x" * 512
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()
