"""What a point is: an id, the sentence that holds, where it comes from, and the check that judges it.

The ids are those of the documentation's list of points; a letter after the number tells checks of one point
apart. A check is a function: it returns if the point holds, raises `Wrong` if it does not, and
`NotApplicable` where there is nothing to judge.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Generic, TypeVar


class Profile(StrEnum):
    """Who needs a point to hold."""

    SPEC = "spec"
    QEMU = "qemu"
    LIBVFIO_USER = "libvfio-user"
    ROBUST = "robust"


SPEC, QEMU, LIBVFIO_USER, ROBUST = Profile
MEANINGS = {
    SPEC: "the specification says so",
    QEMU: "QEMU's vfio-user-pci relies on it",
    LIBVFIO_USER: "libvfio-user does so, and its peers rely on it",
    ROBUST: "nobody's sentence and everybody's wish: hostile, sloppy and vanishing peers are survived",
}


class Outcome(StrEnum):
    """How a point ended."""

    PASS = "pass"
    FAIL = "fail"
    NOT_APPLICABLE = "not applicable"


class Wrong(AssertionError):
    """The peer did not do what the point asks for: ``expected`` and ``saw`` are sentences."""

    def __init__(self, expected: str, saw: str) -> None:
        super().__init__(f"expected {expected}; saw {saw}")
        self.expected = expected
        self.saw = saw


class NotApplicable(Exception):
    """The point cannot be judged here; the text is the reason."""


class PeerLost(Exception):
    """There is nobody left to judge; the text says how that shows."""


S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Point(Generic[S]):
    """One point. ``judge`` is the check, or None where ``reason`` says why nothing outside can see it.

    ``source`` is the sentence or the habit it stands for, ``matters`` what breaks and for whom;
    ``scenario`` is, for a client's point, the connection that shows it.
    """

    id: str
    group: str
    title: str
    source: str = ""
    matters: str = ""
    profiles: tuple[Profile, ...] = (SPEC,)
    judge: Callable[[S], None] | None = None
    reason: str = ""
    scenario: str = ""

    @property
    def number(self) -> str:
        """The id without the letter that tells the checks of one point apart: P41 for P41a.

        P108a, P108b and P108c have theirs from the list of points.
        """
        return re.sub(r"(?<!P108)[a-z]$", "", self.id)

    def __str__(self) -> str:
        """The id, as pytest shows it."""
        return self.id


@dataclass(frozen=True, slots=True)
class Verdict:
    """How one point ended. A failure has ``expected`` and ``saw``, what was not judged a ``reason``."""

    point: Point[Any]
    outcome: Outcome
    expected: str = ""
    saw: str = ""
    reason: str = ""

    def explanation(self) -> list[tuple[str, str]]:
        """What to tell a person, as (label, sentence)."""
        if self.outcome is Outcome.NOT_APPLICABLE:
            return [("because", self.reason)]
        lines = [("source", self.point.source)]
        if self.outcome is Outcome.FAIL:
            lines = [("expected", self.expected), ("saw", self.saw), *lines, ("matters", self.point.matters)]
        return [line for line in lines if line[1]]


@dataclass(slots=True)
class Group(Generic[S]):
    """The points of one subject; `point` and `unseen` add to it."""

    title: str
    points: list[Point[S]] = field(default_factory=list)

    def point(
        self,
        id: str,
        *,
        source: str,
        matters: str,
        profiles: Sequence[Profile] = (SPEC,),
        scenario: str = "",
    ) -> Callable[[Callable[[S], None]], Callable[[S], None]]:
        """Make a check the judge of point ``id``; the first line of its docstring is what holds."""

        def add(check: Callable[[S], None]) -> Callable[[S], None]:
            title = (check.__doc__ or "").splitlines()[0].removesuffix(".")
            self.points.append(
                Point(id, self.title, title, source, matters, tuple(profiles), check, scenario=scenario)
            )
            return check

        return add

    def unseen(self, id: str, title: str, reason: str) -> None:
        """A point that no check at the other end of a socket can judge."""
        self.points.append(Point(id, self.title, title, reason=reason, profiles=tuple(Profile)))


def select(
    points: Sequence[Point[S]], only: Sequence[str] = (), profile: Profile | None = None
) -> list[Point[S]]:
    """The points named by ``only`` (P41 means P41a and P41b too), and needed by ``profile``.

    Raises KeyError for a name that is no point.
    """
    known = {name for point in points for name in (point.id, point.number)}
    for name in only:
        if name not in known:
            raise KeyError(name)
    return [
        point
        for point in points
        if (not only or point.id in only or point.number in only)
        and (profile is None or profile in point.profiles)
    ]
