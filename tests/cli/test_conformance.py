"""`outboard conformance` against running servers and clients."""

import json
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import EDU, PROGRAM, Outboard

VMM = Path(__file__).parents[1] / "conformance" / "vmm.py"


@pytest.mark.point("P37", "P119")
def test_a_good_server_is_judged_and_the_status_is_0(outboard: Outboard, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    command = f"{PROGRAM} serve {EDU} --socket {{socket}}"
    done = outboard("conformance", "--command", command, "--html", page, "--markdown", tmp_path / "page.md")
    assert done.returncode == 0, done.stdout
    assert "Server: version" in done.stdout
    assert " 0 fail" in done.stdout
    assert "<h2>Server: version</h2>" in page.read_text()
    assert "## Server: version" in (tmp_path / "page.md").read_text()


def test_a_bad_server_costs_status_1_and_is_explained(outboard: Outboard) -> None:
    command = f"{sys.executable} -m tests.conformance.little {{socket}} 'intx flags'"
    done = outboard("conformance", "--command", command, "--only", "P48")
    assert done.returncode == 1
    assert "matters a client that goes by the flags never unmasks" in " ".join(done.stdout.split())


def test_a_client_is_judged_by_a_command(outboard: Outboard) -> None:
    command = f"{sys.executable} {VMM} client {{socket}}"
    done = outboard("conformance", "--client", "--command", command, "--only", "P122a,P132", "--json")
    assert done.returncode == 0, done.stdout
    found = json.loads(done.stdout)
    assert [point["outcome"] for point in found["points"]] == ["pass"] * 3


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "say which socket"),
        (["/tmp/none.sock", "--only", "P999"], "there is no point P999"),
        (["/tmp/none.sock", "--writable", "BAR0"], "BAR:OFFSET"),
    ],
)
def test_a_slip_is_answered_with_what_to_do(outboard: Outboard, arguments: list[str], sentence: str) -> None:
    done = outboard("conformance", *arguments)
    assert done.returncode == 1
    assert sentence in done.stderr


def test_the_list_tells_what_each_point_stands_for(outboard: Outboard) -> None:
    text = " ".join(outboard("conformance", "--list").stdout.split())
    assert "P62 The resample descriptor of INTx is listened to" in text
    assert "KVM's resample descriptor" in text
    assert "P130b" in outboard("conformance", "--list", "--client").stdout
