"""The checks that keep the house in order find what they are for."""

from pathlib import Path

import pytest

from tools import check_house, points

HOST = "py" + "pi.org"
PLACE = "/ro" + "ot/project/file"


@pytest.mark.parametrize(
    ("name", "text", "breach"),
    [
        ("notes.md", f"see https://{HOST}/x\n", "notes.md:1: names the host of a package registry"),
        ("notes.md", f"ok\nin {PLACE}\n", "notes.md:2: names a path of somebody's own machine"),
        ("src/p/a.py", "x = 1\n", "src/p/a.py:1: does not open with a docstring"),
        (
            "src/p/a.py",
            '"""A."""\n' + "\n" * 500,
            "src/p/a.py:501: has 501 lines; 500 are the most a file may have",
        ),
        ("src/p/a.py", '"""A."""\ndef f(): pass\n', "src/p/a.py:2: f has no docstring"),
        (
            "src/p/a.py",
            '"""A."""\nclass C:\n    """C."""\n    def m(self): pass\n',
            "src/p/a.py:4: C.m has no docstring",
        ),
        (
            "src/p/a.py",
            '"""A."""\nimport numpy\n',
            "src/p/a.py:2: imports numpy, which the core does without",
        ),
    ],
)
def test_each_breach_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str, breach: str
) -> None:
    monkeypatch.setattr(check_house, "ROOT", tmp_path)
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    assert list(check_house.inspect(path)) == [breach]


def test_the_outer_rooms_may_import_what_they_are_made_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_house, "ROOT", tmp_path)
    path = tmp_path / "src" / "outboard" / "cli" / "a.py"
    path.parent.mkdir(parents=True)
    path.write_text('"""A."""\nfrom rich.console import Console\n')
    assert list(check_house.inspect(path)) == []


def test_marks_are_found_on_functions_parameters_and_modules(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_a.py").write_text(
        """
import pytest
pytestmark = pytest.mark.point("P1")

@pytest.mark.point("P2", "P3")
def test_one(): ...

@pytest.mark.parametrize("n", [pytest.param(1, marks=pytest.mark.point("P4"))])
def test_two(n): ...
"""
    )
    found = points.marks(tmp_path / "tests")
    assert {id: [test.name for test in tests] for id, tests in found.items()} == {
        "P1": ["test_one", "test_two"],
        "P2": ["test_one"],
        "P3": ["test_one"],
        "P4": ["test_two"],
    }


def test_every_point_has_one_place_and_a_sentence() -> None:
    every = [point for group in points.groups().values() for point in group]
    assert len({point.id for point in every}) == len(every)
    assert all(point.sentence for point in every)
    assert {f"P{number}" for number in range(1, 151)} <= {point.id for point in every}
