"""Our own clients, judged by a server that is odd in one way after the other."""

import sys
from pathlib import Path

import pytest

from outboard.conformance import Report, judge_client

VMM = Path(__file__).with_name("vmm.py")


def judged(folder: Path, kind: str) -> Report:
    return judge_client(
        folder / "vmm.sock", command=f"{sys.executable} {VMM} {kind} {{socket}}", settle=1.0, patience=30
    )


@pytest.mark.point(
    "P122", "P123", "P124", "P125", "P126", "P127", "P128", "P129", "P130", "P131", "P132", "P133", "P134"
)
def test_our_client_holds_every_point(folder: Path) -> None:
    report = judged(folder, "client")
    assert {verdict.point.id: verdict.saw for verdict in report.failures} == {}
    assert report.ok


@pytest.mark.point("P139", "P140")
def test_the_client_that_plays_qemu_has_qemus_faults(folder: Path) -> None:
    """QEMU needs JSON in the answer, and takes a short header for fatal: so does its double."""
    report = judged(folder, "qemu")
    assert [verdict.point.id for verdict in report.failures] == ["P123a", "P129a"]
