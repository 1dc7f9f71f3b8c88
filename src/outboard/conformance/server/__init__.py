"""Every point a server can be judged by, in the order of the list of points."""

from outboard.conformance.points import Point
from outboard.conformance.server import access, descriptions, migration, misbehaviour
from outboard.conformance.server.config import access as regions
from outboard.conformance.server.framing import framing
from outboard.conformance.server.information import information
from outboard.conformance.server.interrupts import interrupts
from outboard.conformance.server.life import life
from outboard.conformance.server.memory import memory
from outboard.conformance.server.version import version
from outboard.conformance.target import Target

__all__ = ["POINTS", "access", "descriptions", "migration", "misbehaviour"]


def _place(point: Point[Target]) -> tuple[int, str]:
    digits = "".join(c for c in point.id if c.isdigit())
    return int(digits), point.id


POINTS: tuple[Point[Target], ...] = tuple(
    sorted(
        (
            point
            for group in (framing, version, information, interrupts, regions, memory, life)
            for point in group.points
        ),
        key=_place,
    )
)
