"""The data of the suite: ids, sources, and what is covered."""

import re
import tomllib
from pathlib import Path

import pytest

from outboard.conformance import Profile, client_points, server_points
from outboard.conformance.points import Point, select
from outboard.conformance.server import POINTS

KNOWN = {
    id
    for points in tomllib.loads(
        (Path(__file__).parents[2] / "docs" / "reference" / "points.toml").read_text()
    ).values()
    for id in points
}
EVERY: list[Point[object]] = [*POINTS, *client_points()]  # type: ignore[list-item]


def test_every_id_is_one_of_the_documented_points() -> None:
    assert {point.number for point in EVERY} <= KNOWN
    assert len({point.id for point in EVERY}) == len(EVERY)


def test_every_point_of_servers_and_clients_is_judged_or_says_why_not() -> None:
    wanted = {f"P{number}" for number in range(1, 141)} | {"P108a", "P108b", "P108c"}
    assert {point.number for point in EVERY} == wanted


@pytest.mark.parametrize("point", EVERY, ids=str)
def test_a_point_says_where_it_comes_from_and_whom_it_matters_to(point: Point[object]) -> None:
    assert point.title
    assert point.profiles
    if point.judge is None:
        assert point.reason
    else:
        assert point.source
        assert point.matters
    assert not re.search(r"[.;]$", point.title)


def test_points_are_chosen_by_id_by_number_and_by_profile() -> None:
    assert [point.id for point in select(POINTS, ["P41"])] == ["P41a", "P41b"]
    assert [point.id for point in select(POINTS, ["P41b"])] == ["P41b"]
    assert [point.id for point in select(POINTS, ["P42"], Profile.QEMU)] == []
    assert [str(point) for point in server_points(["P108a"])] == ["P108a"]
    with pytest.raises(KeyError):
        select(POINTS, ["P999"])
