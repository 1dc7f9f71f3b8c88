"""Judging a server: every point on a connection of its own, and what to say when the server goes."""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from unittest import SkipTest

from outboard.conformance.peer import Closed
from outboard.conformance.points import (
    NotApplicable,
    Outcome,
    PeerLost,
    Point,
    Profile,
    Verdict,
    Wrong,
    select,
)
from outboard.conformance.report import Report, subject
from outboard.conformance.server import POINTS
from outboard.conformance.target import PATIENCE, Target


def judge_server(
    path: str | os.PathLike[str],
    *,
    command: str | None = None,
    only: Sequence[str] = (),
    profile: Profile | str | None = None,
    writable: tuple[int, int] | None = None,
    timeout: float = 2.0,
    patience: float = PATIENCE,
    progress: Callable[[Verdict], None] = lambda verdict: None,
) -> Report:
    """Judge the server that listens on ``path``; the report has a verdict on each point.

    ``command`` starts the server (``{socket}`` is replaced by the path) whenever nobody listens. ``only``
    chooses points by id, ``profile`` by who needs them. ``writable`` is a (BAR, offset) where four bytes may
    be written and written back. ``timeout`` is how long each answer may take, ``patience`` how long
    the server may take until it listens or has let go of the client before, in seconds. ``progress`` hears of
    each verdict. Raises KeyError for an id that is no point, SetupError if ``command`` cannot be run.
    """
    points = select(POINTS, only, None if profile is None else Profile(profile))
    report = Report(subject(command, path))
    target = Target(path, command=command, writable=writable, timeout=timeout, patience=patience)
    lost = ""
    try:
        for point in points:
            if lost and point.judge is not None:
                verdict = Verdict(point, Outcome.NOT_APPLICABLE, reason=lost)
            else:
                try:
                    verdict = judge_point(point, target)
                except PeerLost as error:
                    verdict = Verdict(point, Outcome.NOT_APPLICABLE, reason=str(error))
                    lost = _blame(report, error)
            report.verdicts.append(verdict)
            progress(verdict)
    finally:
        target.close()
    return report


def judge_point(point: Point[Target], target: Target) -> Verdict:
    """One point. Raises PeerLost if there was nobody to judge when it began."""
    if point.judge is None:
        return Verdict(point, Outcome.NOT_APPLICABLE, reason=point.reason)
    with suppress(NotApplicable):
        _ = target.facts  # asked for first: the server serves one client at a time
    target.end_check()
    verdict = Verdict(point, Outcome.PASS)
    try:
        point.judge(target)
    except NotApplicable as error:
        verdict = Verdict(point, Outcome.NOT_APPLICABLE, reason=str(error))
    except Wrong as error:
        verdict = Verdict(point, Outcome.FAIL, error.expected, error.saw)
        if crash := target.crash(isinstance(error, Closed)):
            verdict = replace(verdict, saw=f"{error.saw}: {crash}")
    except PeerLost as error:
        if not target.was_reached:
            raise
        verdict = Verdict(point, Outcome.FAIL, "the server to take the next client", str(error))
    finally:
        target.end_check()
    if crash := target.crash(suspected=False):
        return Verdict(point, Outcome.FAIL, "the server to live on", crash)
    return verdict


def _blame(report: Report, error: PeerLost) -> str:
    """The server has gone: the point that was judged last brought that about. The reason for the rest."""
    judged = [n for n, verdict in enumerate(report) if verdict.outcome is not Outcome.NOT_APPLICABLE]
    if not judged:
        return f"there is no server: {error}"
    last = report.verdicts[judged[-1]]
    if last.outcome is Outcome.PASS:
        report.verdicts[judged[-1]] = replace(
            last,
            outcome=Outcome.FAIL,
            expected="the server to serve the next client after this point",
            saw=str(error),
        )
    return f"the server went away at {last.point.id}; with --command it would be started again"


@dataclass(frozen=True, slots=True)
class ServerPoint:
    """One point as a test: `check` passes, fails with what was seen, or skips."""

    point: Point[Target]

    def check(
        self,
        path: str | os.PathLike[str],
        *,
        command: str | None = None,
        writable: tuple[int, int] | None = None,
        timeout: float = 2.0,
    ) -> None:
        """Judge the server behind ``path``, with the options of `judge_server`.

        Raises AssertionError with the words of the point if it does not hold, and `unittest.SkipTest`, which
        every test runner understands, if there is nothing to judge.
        """
        target = Target(path, command=command, writable=writable, timeout=timeout)
        try:
            verdict = judge_point(self.point, target)
        except PeerLost as error:
            raise AssertionError(f"{self.point.id}: {error}") from error
        finally:
            target.close()
        if verdict.outcome is Outcome.NOT_APPLICABLE:
            raise SkipTest(verdict.reason)
        if verdict.outcome is Outcome.FAIL:
            words = "\n".join(f"  {label}: {text}" for label, text in verdict.explanation())
            raise AssertionError(f"{self.point.id}: {self.point.title}\n{words}")

    def __str__(self) -> str:
        """The id, as pytest shows it."""
        return self.point.id


def server_points(only: Sequence[str] = (), profile: Profile | str | None = None) -> list[ServerPoint]:
    """The points as tests; those that no check can see are left out. Raises KeyError for an unknown id.

    ::

        @pytest.mark.parametrize("point", server_points(profile="qemu"), ids=str)
        def test_my_server(point):
            point.check("/tmp/my.sock")
    """
    chosen = select(POINTS, only, None if profile is None else Profile(profile))
    return [ServerPoint(point) for point in chosen if point.judge is not None]
