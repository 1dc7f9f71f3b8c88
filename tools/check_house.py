"""The rules of the house that no linter knows.

A Python file has at most 500 lines and, tests apart, opens with a docstring; every public name of the
package has one; the core imports nothing but the standard library; no committed file names a package
registry's host or a path that exists only on somebody's machine. Prints one line a breach; exit status 1
if any.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
MOST_LINES = 500
"""A reader keeps a file of this length in mind; a longer one holds two ideas."""

OUTER_ROOMS = {
    "cli": {"cyclopts", "rich", "textual"},
    "operation": {"prometheus_client"},
    "pytest_plugin": {"pytest"},
    "native": {"numba", "numpy", "llvmlite"},
}
"""What the rooms outside the core may import beyond the standard library."""

# Written in pieces, so that this file passes its own inspection.
REGISTRY_HOSTS = re.compile(
    "|".join(
        [
            r"\bpypi\.(?:org|python)",
            r"\bpython" + r"hosted\b",
            r"\bdeb\.deb" + "ian",
            r"\bregistry\.np" + "mjs",
        ]
    )
)
PRIVATE_PATHS = re.compile(r"(?<![\w.}~$])/(?:work|root|home/[a-z]\w*|Users/\w+)/|\.\./sha" + "red/")


def main() -> int:
    """Inspect every file git knows, or would know; return the exit status."""
    breaches = [breach for path in committed_files() for breach in inspect(path)]
    for breach in breaches:
        print(breach)
    return 1 if breaches else 0


def committed_files() -> list[Path]:
    """The files git tracks and those it would take."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return sorted(ROOT / name for name in listing.split("\0") if name and (ROOT / name).is_file())


def inspect(path: Path) -> Iterator[str]:
    """Every breach in one file, as ``path:line: sentence``."""
    name = path.relative_to(ROOT)
    try:
        text = path.read_text()
    except UnicodeDecodeError:
        return
    for number, line in enumerate(text.splitlines(), 1):
        if REGISTRY_HOSTS.search(line):
            yield f"{name}:{number}: names the host of a package registry"
        if PRIVATE_PATHS.search(line):
            yield f"{name}:{number}: names a path of somebody's own machine"
    if path.suffix == ".py" and text:
        yield from inspect_python(name, text)


def inspect_python(name: Path, text: str) -> Iterator[str]:
    """The breaches that only Python source can have."""
    lines = text.count("\n")
    if lines > MOST_LINES:
        yield f"{name}:{lines}: has {lines} lines; {MOST_LINES} are the most a file may have"
    tree = ast.parse(text)
    if name.parts[0] != "tests" and not ast.get_docstring(tree):
        yield f"{name}:1: does not open with a docstring"
    if name.parts[0] == "src":
        yield from undocumented(name, tree, "")
        yield from foreign_imports(name, tree)


def undocumented(name: Path, node: ast.Module | ast.ClassDef, prefix: str) -> Iterator[str]:
    """The public classes and functions below ``node`` that say nothing of themselves."""
    for child in node.body:
        if not isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if child.name.startswith("_") or is_repetition(child):
            continue
        if not ast.get_docstring(child):
            yield f"{name}:{child.lineno}: {prefix}{child.name} has no docstring"
        if isinstance(child, ast.ClassDef):
            yield from undocumented(name, child, f"{prefix}{child.name}.")


def is_repetition(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether the docstring is elsewhere: an overload, a setter, an override, a register's handler."""
    decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
    if decorators & {"overload", "typing.overload", "override"}:
        return True
    return any(text.endswith((".setter", ".deleter", ".on_write", ".on_read")) for text in decorators)


def foreign_imports(name: Path, tree: ast.Module) -> Iterator[str]:
    """The imports that the core may not have: anything outside the standard library."""
    room = name.parts[2].removesuffix(".py") if len(name.parts) > 2 else ""
    allowed = OUTER_ROOMS.get(room, set()) | set(sys.stdlib_module_names) | {"outboard"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            modules = [node.module or ""]
        else:
            continue
        for module in modules:
            if module.partition(".")[0] not in allowed:
                yield f"{name}:{node.lineno}: imports {module}, which the core does without"


if __name__ == "__main__":
    sys.exit(main())
