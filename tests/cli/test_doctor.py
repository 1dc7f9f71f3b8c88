"""`outboard doctor` on machines that lack something."""

import subprocess
from pathlib import Path

import pytest

from outboard.cli import doctor
from tests.cli.conftest import PROGRAM, Outboard


def test_a_machine_that_runs_the_tests_has_everything_needed(outboard: Outboard) -> None:
    found = outboard("doctor")
    assert found.returncode == 0
    assert "everything needed is there" in found.stdout


def test_too_few_descriptors_are_told_with_the_line_that_mends_them() -> None:
    command = f"ulimit -n 256 && exec {PROGRAM} doctor"
    found = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert found.returncode == 1
    assert "ulimit -n 1024" in found.stdout
    assert "missing: descriptors" in found.stdout


def test_a_machine_without_apt_can_do_without(outboard: Outboard) -> None:
    found = outboard("doctor", PATH="/nowhere")
    assert found.returncode == 0
    assert "no apt-get, dpkg-deb" in found.stdout


def test_a_qemu_that_is_none_is_told(outboard: Outboard) -> None:
    found = outboard("doctor", OUTBOARD_QEMU="/bin/true")
    assert found.returncode == 1
    assert "unset OUTBOARD_QEMU" in found.stdout


@pytest.mark.parametrize(
    ("setting", "mended"),
    [("always [madvise] never", False), ("always madvise [never]", True), (None, False)],
)
def test_huge_pages_that_are_never_given_are_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, setting: str | None, mended: bool
) -> None:
    monkeypatch.setattr(doctor, "HUGE_PAGES", tmp_path / "enabled")
    if setting is not None:
        (tmp_path / "enabled").write_text(setting)
    finding = doctor.huge_pages()
    assert bool(finding.mend) == mended
    assert finding.optional or not mended
