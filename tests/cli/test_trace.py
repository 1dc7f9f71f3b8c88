"""`outboard trace` over the captures that tshark is tested with, and its dissector put in place.

``OUTBOARD_GOLDEN=write pytest tests/cli`` writes the golden file anew.
"""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from outboard.trace import dissector
from tests.cli.conftest import EDU, PROGRAM, Outboard
from tests.cli.test_identify import golden

CAPTURES = Path(__file__).parents[1] / "trace" / "captures"
EVERY_COMMAND, NVME_IDENTIFY = CAPTURES / "every-command.pcapng", CAPTURES / "nvme-identify.pcapng"
EDU_START = CAPTURES / "edu-start.pcapng"


def test_a_capture_is_printed_a_line_a_message(outboard: Outboard) -> None:
    golden("trace.txt", outboard("trace", EVERY_COMMAND).stdout)


def test_an_nvme_controllers_registers_have_names_without_being_asked_for(outboard: Outboard) -> None:
    shown = outboard("trace", NVME_IDENTIFY, "--region", "bar0", "--only", "region-write").stdout
    assert "BAR0 cc [0x14] = 0x00460061 (enable=1" in shown
    assert "REGION_READ" not in shown
    assert "config" not in shown


def test_registers_are_named_as_a_file_declares_them(outboard: Outboard) -> None:
    shown = outboard("trace", EDU_START, "--device", EDU, "--only", "REGION_WRITE,REGION_READ").stdout
    assert "BAR0 factorial [0x8] = 0x00000078" in shown
    assert "BAR0 command [0x98] = 0x0000000000000001 (running=1 to_guest=0 notify=0)" in shown
    assert "VERSION" not in shown


def test_json_is_one_object_a_message(outboard: Outboard) -> None:
    lines = outboard("trace", EVERY_COMMAND, "--json").stdout.splitlines()
    messages = [json.loads(line) for line in lines]
    assert [message["number"] for message in messages] == list(range(1, len(lines) + 1))
    assert messages[0]["fields"]["json"]["capabilities"]["max_msg_fds"] == 16


def test_a_timeline_is_written_for_perfetto(outboard: Outboard, tmp_path: Path) -> None:
    path = tmp_path / "timeline.json"
    assert outboard("trace", NVME_IDENTIFY, "--timeline", path).stdout == ""
    names = {event["name"] for event in json.loads(path.read_text())["traceEvents"]}
    assert {"read BAR0 csts", "write BAR0 doorbells[0]", "DMA_MAP"} <= names


def test_a_pipe_is_read_as_it_comes() -> None:
    with subprocess.Popen(
        [PROGRAM, "trace", "/dev/stdin"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        program.stdin.write(NVME_IDENTIFY.read_bytes())
        program.stdin.flush()
        assert program.stdout.readline() == b"/run/nvme-identify.sock\n"
        assert b"VERSION" in program.stdout.readline()
        program.stdin.close()
        program.stdout.read()
        assert program.wait() == 0


def test_a_capture_that_ends_early_is_printed_and_said_to_end_early(
    outboard: Outboard, tmp_path: Path
) -> None:
    path = tmp_path / "killed.pcapng"
    path.write_bytes(EVERY_COMMAND.read_bytes()[:-10])
    shown = outboard("trace", path)
    assert shown.returncode == 0
    assert "DEVICE_RESET" in shown.stdout
    assert "ends inside a packet" in shown.stderr


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--only", "REGION_REED"), "there is no command REGION_REED; there are VERSION, DMA_MAP"),
        (("--region", "BAR6"), "there is no region BAR6; there are BAR0"),
        (("--device", f"{EDU}:Nothing"), "has no 'Nothing'; it has Edu"),
    ],
)
def test_what_does_not_exist_is_named(outboard: Outboard, arguments: tuple[str, str], complaint: str) -> None:
    refused = outboard("trace", EVERY_COMMAND, *arguments)
    assert refused.returncode == 1
    assert complaint in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_a_file_that_is_no_capture_is_refused_in_one_line(outboard: Outboard) -> None:
    refused = outboard("trace", EDU)
    assert refused.returncode == 1
    assert "no pcapng file" in refused.stderr


def test_the_dissector_is_put_where_it_is_told(outboard: Outboard, tmp_path: Path) -> None:
    shown = outboard("trace", "install-dissector", "--directory", tmp_path / "plugins")
    assert shown.returncode == 0
    assert (tmp_path / "plugins" / "vfio_user.lua").read_bytes() == dissector().read_bytes()
    assert "tshark -r boot.pcapng -O vfio_user" in shown.stdout


def test_without_a_tshark_the_dissector_goes_where_wireshark_looks(
    outboard: Outboard, tmp_path: Path
) -> None:
    shown = outboard("trace", "install-dissector", HOME=str(tmp_path), PATH="")
    assert shown.returncode == 0
    assert (tmp_path / ".local/lib/wireshark/plugins/vfio_user.lua").exists()


@pytest.mark.skipif(shutil.which("tshark") is None, reason="this machine has no tshark")
def test_with_a_tshark_the_dissector_goes_where_it_says(outboard: Outboard, tmp_path: Path) -> None:
    shown = outboard("trace", "install-dissector", HOME=str(tmp_path))
    assert shown.returncode == 0
    [installed] = tmp_path.rglob("vfio_user.lua")
    assert f"installed {installed}" in shown.stdout
