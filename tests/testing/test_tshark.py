"""Which tshark is used: the one that reads our dissector."""

from pathlib import Path

import pytest

from outboard.errors import SetupError
from outboard.testing.tshark import TSHARK_VARIABLE, find_tshark, probe


def test_a_chosen_tshark_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(TSHARK_VARIABLE, "/bin/false")
    with pytest.raises(SetupError, match=f"{TSHARK_VARIABLE} is /bin/false"):
        find_tshark(tmp_path)


@pytest.mark.parametrize(("status", "usable"), [(0, True), (2, False)])
def test_a_tshark_is_used_if_a_filter_on_our_fields_is_one(tmp_path: Path, status: int, usable: bool) -> None:
    program = tmp_path / "tshark"
    program.write_text(f"#!/bin/sh\nexit {status}\n")
    program.chmod(0o755)
    assert (probe((str(program),), tmp_path) is not None) == usable


def test_a_program_that_does_not_start_is_no_tshark(tmp_path: Path) -> None:
    assert probe((str(tmp_path / "nothing"),), tmp_path) is None
