"""The program as a whole: its commands, their help, and how failure looks."""

import subprocess
import sys

import pytest

from outboard.cli import COMMANDS, main
from tests.cli.conftest import Outboard


def test_the_help_lists_every_command(outboard: Outboard) -> None:
    shown = outboard("--help")
    assert shown.returncode == 0
    assert all(name in shown.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_help_with_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"], width=100)
    assert ended.value.code == 0
    assert f"outboard {name}" in capsys.readouterr().out.partition("Examples")[2]


def test_a_wrong_command_is_a_wrong_use(outboard: Outboard) -> None:
    refused = outboard("serv")
    assert refused.returncode == 2
    assert "serve" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_an_error_is_one_line_that_names_whose_fault_it_is(outboard: Outboard) -> None:
    failed = outboard("identify", "/nowhere.sock")
    assert failed.returncode == 1
    assert failed.stdout == ""
    assert failed.stderr.count("\n") == 1
    assert "/nowhere.sock" in failed.stderr
    assert "the fault is the peer's" in failed.stderr


def test_debug_shows_the_traceback(outboard: Outboard) -> None:
    failed = outboard("--debug", "identify", "/nowhere.sock")
    assert failed.returncode == 1
    assert "Traceback" in failed.stderr
    assert "ConnectionLost" in failed.stderr


def test_without_its_extra_the_program_says_how_to_install_it() -> None:
    blocked = "import sys; sys.modules['cyclopts'] = None; from outboard.cli import main; main(['doctor'])"
    failed = subprocess.run([sys.executable, "-c", blocked], capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert failed.stderr.strip() == "outboard: the command line needs cyclopts: pip install 'outboard[cli]'"
