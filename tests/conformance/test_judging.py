"""How a server is judged: anew for each point, started by a command, lost, and told of."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import SkipTest

import pytest

from outboard.conformance import Outcome, Report, judge_server, server_points
from outboard.errors import SetupError
from tests.conformance.little import Little
from tests.raw import open_descriptors

SERVER = f"{sys.executable} -m tests.conformance.little {{socket}}"


@pytest.fixture
def wrong(folder: Path) -> Iterator[Little]:
    with Little(str(folder / "little.sock"), ["intx flags", "no multi"]) as little:
        yield little


@pytest.fixture
def report(wrong: Little) -> Report:
    return judge_server(wrong.path, only=["P1", "P2", "P48", "P84"])


def test_a_failure_says_what_was_expected_what_was_seen_and_whom_it_matters_to(report: Report) -> None:
    verdict = report["P48b"]
    assert verdict.outcome is Outcome.FAIL
    assert [label for label, _ in verdict.explanation()] == ["expected", "saw", "source", "matters"]
    assert "MASKABLE" in verdict.saw
    assert not report.ok


def test_what_cannot_be_judged_says_why(report: Report) -> None:
    assert "program's business" in report["P2"].reason
    assert "see P84a" in report["P84c"].reason


def test_the_json_has_everything_a_program_wants(report: Report) -> None:
    found = json.loads(report.to_json())
    assert found["ok"] is False
    assert found["counts"] == {"pass": 5, "fail": 2, "not applicable": 2}
    [point] = [point for point in found["points"] if point["id"] == "P84a"]
    assert point["outcome"] == "fail"
    assert point["profiles"] == ["qemu"]
    assert "REGION_WRITE_MULTI refused" in point["saw"]


def test_the_pages_have_the_failures_in_full(report: Report) -> None:
    for page in (report.to_markdown(), report.to_html()):
        assert "INTx without MASKABLE" in page
        assert "one interrupt, then silence" in page
        assert "The socket is there" in page
    assert report.to_html().count("<tr>") == len(report)


def test_a_point_is_a_test_in_three_lines(wrong: Little) -> None:
    points = {str(point): point for point in server_points()}
    points["P37a"].check(wrong.path)
    with pytest.raises(AssertionError, match=r"(?s)P48b.*expected: MASKABLE.*matters: a client"):
        points["P48b"].check(wrong.path)
    with pytest.raises(SkipTest, match="256 bytes"):
        points["P75"].check(wrong.path)
    assert "P2" not in points


def test_a_profile_leaves_out_what_others_need(wrong: Little) -> None:
    report = judge_server(wrong.path, only=["P48"], profile="qemu")
    assert [verdict.point.id for verdict in report] == ["P48a", "P48c"]
    assert report.ok


def test_nothing_is_left_open(folder: Path) -> None:
    before = open_descriptors()
    with Little(str(folder / "little.sock")) as little:
        judge_server(little.path)
    assert open_descriptors() == before


def test_a_command_starts_a_server_that_ends_with_its_client(folder: Path) -> None:
    report = judge_server(
        folder / "s.sock", command=f"{SERVER} 'ends with its client'", only=["P1", "P37", "P118"]
    )
    assert [verdict.point.id for verdict in report.failures] == ["P118a"]
    assert "started anew" in report["P118a"].saw
    assert "see P118a" in report["P118b"].reason


def test_a_server_that_crashes_is_told_by_its_signal(folder: Path) -> None:
    report = judge_server(folder / "s.sock", command=f"{SERVER} 'dies of resets'", only=["P37", "P110"])
    assert {verdict.point.id for verdict in report.failures} == {"P37b", "P110"}
    assert "SIGABRT" in report["P110"].saw


def test_the_end_by_sigterm_is_judged_of_a_command(folder: Path) -> None:
    report = judge_server(folder / "s.sock", command=SERVER, only=["P119"])
    assert "still there" in report["P119"].saw


def test_a_device_has_to_arrive_in_a_new_process(folder: Path) -> None:
    for fault, outcome in (("", Outcome.PASS), (" 'loads nothing'", Outcome.FAIL)):
        report = judge_server(folder / "s.sock", command=SERVER + fault, only=["P114"], writable=(0, 0x1000))
        assert [verdict.outcome for verdict in report] == [Outcome.PASS, outcome]
    assert "of the new process" in report["P114b"].expected


def test_a_server_that_goes_is_blamed_where_it_went(folder: Path) -> None:
    with Little(str(folder / "little.sock"), ["goes at a second version"]) as little:
        report = judge_server(little.path, only=["P35", "P36", "P37"], patience=0.3)
    assert [verdict.point.id for verdict in report.failures] == ["P36"]
    assert "went away at P36" in report["P37b"].reason


def test_no_server_at_all_is_no_success(folder: Path) -> None:
    report = judge_server(folder / "nobody.sock", only=["P1", "P37"], patience=0.1)
    assert not report.ok
    assert "nobody listens" in report["P37a"].reason


def test_a_command_that_cannot_run_is_said(folder: Path) -> None:
    with pytest.raises(SetupError, match="cannot be run"):
        judge_server(folder / "s.sock", command="/does/not/exist {socket}", only=["P1"])
