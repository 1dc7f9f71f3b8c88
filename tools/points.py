"""Which test covers which conformance point, and which points are open.

The points are in ``docs/reference/points.toml``, the tests carry ``@pytest.mark.point("P37", ...)``.
Both are read as text, nothing is imported. ``python -m tools.points`` prints a count for each group
and the open points; with ``--check`` it only refuses marks that name no point. The documentation
draws its tables from the same functions.
"""

import ast
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True)
class Test:
    """A test function: its file, relative to the project, its line and its name."""

    path: Path
    line: int
    name: str


@dataclass(frozen=True, slots=True)
class Point:
    """One point: its id, its sentence, whether QEMU depends on it, and the tests that cover it."""

    id: str
    sentence: str
    qemu: bool
    tests: tuple[Test, ...]


def groups(root: Path = ROOT) -> dict[str, list[Point]]:
    """Every group of points, by its title, in the order of the file."""
    covered = marks(root / "tests")
    table = tomllib.loads((root / "docs/reference/points.toml").read_text())
    return {
        title: [
            Point(id, sentence.removeprefix("[Q] "), sentence.startswith("[Q] "), tuple(covered.get(id, ())))
            for id, sentence in points.items()
        ]
        for title, points in table.items()
    }


def marks(tests: Path) -> Mapping[str, list[Test]]:
    """The tests below a directory, by the points they say they cover."""
    covered: dict[str, list[Test]] = defaultdict(list)
    for path in sorted(tests.rglob("test_*.py")):
        tree = ast.parse(path.read_text())
        everywhere = [point for node in tree.body for point in module_marks(node)]
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                decorators = [child for decorator in node.decorator_list for child in ast.walk(decorator)]
                own = [point for child in decorators for point in mark_ids(child)]
                for point in dict.fromkeys(own + everywhere):
                    covered[point].append(Test(path.relative_to(tests.parent), node.lineno, node.name))
    return covered


def module_marks(node: ast.stmt) -> Iterator[str]:
    """The ids in a module's ``pytestmark = ...``."""
    if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["pytestmark"]:
        for child in ast.walk(node.value):
            yield from mark_ids(child)


def mark_ids(node: ast.AST) -> Iterator[str]:
    """The ids in one ``pytest.mark.point(...)``, none for any other expression."""
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.point":
        for argument in node.args:
            yield ast.literal_eval(argument)


def main() -> int:
    """Refuse unknown ids; print what is covered and what is open."""
    table = groups()
    known = {point.id for points in table.values() for point in points}
    unknown = {id: tests for id, tests in marks(ROOT / "tests").items() if id not in known}
    for id, tests in unknown.items():
        print(f"{tests[0].path}:{tests[0].line}: there is no point {id} in docs/reference/points.toml")
    if "--check" not in sys.argv:
        for title, points in table.items():
            missing = [point.id for point in points if not point.tests]
            print(f"{title}: {len(points) - len(missing)} of {len(points)}")
            if missing:
                print(f"    open: {' '.join(missing)}")
    return 1 if unknown else 0


if __name__ == "__main__":
    sys.exit(main())
