"""One source runs plain, compiled, and without Numba; machine code is made once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from outboard.errors import SetupError
from outboard.native import jit
from outboard.native.jit import compile_all, entry
from tests.native.conftest import Call

needs_numba = pytest.mark.skipif(
    not jit.available() and os.environ.get("CI") != "true", reason="there is no Numba here"
)

PROGRAM = """
from outboard.native.jit import entry, jitable
from outboard.native.memory import load64, store64
import shapes
STEP = 3

@jitable
def more(value: int) -> int:
    return value + STEP

@entry
def twice(address: int) -> int:
    value = load64(address)
    store64(address, more(value) + shapes.wider(value) + shapes.WIDTH)
    return load64(address)
"""

SHAPES = """
from outboard.native.jit import jitable
WIDTH = 10

@jitable
def wider(value: int) -> int:
    return value * 2

@jitable
def unused(value: int) -> int:
    return 1
"""

RUN = """
import sys
from program import twice
from outboard.native.words import Block
block = Block(64)
block[0] = 4
print(twice.is_ready, twice.native(block.address), block[0], "numba" in sys.modules)
"""

NO_NUMBA = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("numba", "numpy", "llvmlite"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "shapes.py").write_text(SHAPES)
    return tmp_path


def run(folder: Path, script: str = RUN, **environment: str) -> str:
    """What a program prints that has ``folder`` for its modules and its cache."""
    variables = {**os.environ, "OUTBOARD_CACHE": str(folder / "cache"), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env={**variables, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def kept(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in (folder / "cache").rglob("*") if path.is_file()}


@entry
def lanes(value: int, shift: int) -> int:
    total = 0
    for bit in range(64):
        total += (value >> bit & 1) << (bit + shift) % 60
    return total // 3 - value % 7


@pytest.mark.parametrize("value", [0, 1, -1, 12345, -(1 << 63), (1 << 63) - 1])
def test_compiled_functions_give_what_plain_ones_give(call: Call, value: int) -> None:
    assert call(lanes)(value, 7) == lanes.plain(value, 7)


@needs_numba
def test_machine_code_is_made_once_and_loads_without_numba(folder: Path) -> None:
    assert run(folder) == "False 25 25 True"
    files = kept(folder)
    assert [path.name for path in files] == ["twice.o"]
    assert run(folder) == "True 25 25 False"
    assert kept(folder) == files


@needs_numba
def test_a_change_of_what_the_entry_reaches_is_compiled_anew(folder: Path) -> None:
    run(folder)
    (folder / "shapes.py").write_text(SHAPES.replace("value * 2", "value * 3"))
    assert run(folder) == "False 29 29 True"
    assert len(kept(folder)) == 2


@needs_numba
@pytest.mark.parametrize(
    ("file", "old", "new", "counts"),
    [
        ("program.py", "STEP = 3", "STEP = 5", True),
        ("program.py", "value + STEP", "value - STEP", True),
        ("program.py", "load64(address)\n    store", "load64(address + 0)\n    store", True),
        ("shapes.py", "WIDTH = 10", "WIDTH = 11", True),
        ("shapes.py", "value * 2", "value * 3", True),
        ("shapes.py", "return 1", "return 2", False),
        ("shapes.py", "WIDTH", "# A comment\nWIDTH", False),
    ],
)
def test_the_folder_is_named_after_all_that_the_entry_reaches(
    folder: Path, file: str, old: str, new: str, counts: bool
) -> None:
    name = (
        "from outboard.native.jit import cache_folder as f; from program import twice; print(f(twice.plain))"
    )
    before = run(folder, name)
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new))
    assert (run(folder, name) != before) == counts


@needs_numba
@pytest.mark.parametrize("damage", [b"", bytes(5000)])
def test_damaged_machine_code_is_made_anew(folder: Path, damage: bytes) -> None:
    run(folder)
    [file] = kept(folder)
    file.write_bytes(damage or file.read_bytes()[:-1])
    assert run(folder) == "False 25 25 True"
    assert run(folder) == "True 25 25 False"


@needs_numba
def test_without_a_place_to_keep_it_machine_code_is_made_each_time(folder: Path) -> None:
    assert run(folder, OUTBOARD_CACHE="/proc/nothing") == "False 25 25 True"


@needs_numba
def test_progress_names_what_is_being_compiled_and_says_nothing_when_all_is_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OUTBOARD_CACHE", str(tmp_path))

    @entry
    def first(value: int) -> int:
        return value + 1

    @entry
    def second(value: int) -> int:
        return value + 2

    seen: list[tuple[str, int, int]] = []
    _ = first.native
    compile_all([first, second], lambda *step: seen.append(step))
    assert seen == [("second", 0, 1), ("", 1, 1)]
    compile_all([first, second], lambda *step: seen.append(step))
    assert len(seen) == 2
    assert (first.native(1), second.native(1)) == (2, 3)


@entry
def raises(value: int) -> int:
    if value > 3:
        raise ValueError("too large")
    return value


@entry
def prints(value: int) -> int:
    print(value)
    return 0


@needs_numba
@pytest.mark.parametrize("function", [raises, prints])
def test_a_function_that_needs_more_than_integers_is_refused(function: jit.Entry) -> None:
    with pytest.raises(SetupError, match=f"{function.name} cannot be a data plane"):
        _ = function.native


def test_compiling_without_numba_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")

    @entry
    def alone(value: int) -> int:
        return value

    assert not alone.is_ready
    assert alone.best()(3) == 3
    with pytest.raises(SetupError, match=r"pip install 'outboard\[fast\]'"):
        _ = alone.native


WITHOUT = """
import pkgutil, importlib, os
import outboard
import outboard.native
from outboard import Bar, Device
from outboard.native import jit
from outboard.native.poller import Poller
from outboard.testing import TestClient
assert not jit.available()
for module in pkgutil.walk_packages(outboard.__path__, "outboard."):
    if not module.name.endswith(("lowering", "pytest_plugin")) and ".cli" not in module.name:
        importlib.import_module(module.name)

from program import twice
from outboard.native.words import Block
block = Block(64)
block[0] = 4
assert twice.best()(block.address) == 25

class Echo(Device):
    mmio = Bar(0, size=0x1000)
    value = mmio.reg(0x0)

with TestClient(Echo()) as client:
    memory = client.memory(4096)
    client.bar(0).write32(0, 7)
    assert client.bar(0).read32(0) == 7
print("works")
"""


def test_everything_works_where_numba_numpy_and_llvmlite_are_missing(folder: Path) -> None:
    assert run(folder, NO_NUMBA + WITHOUT) == "works"


def test_nothing_of_numba_is_loaded_by_what_does_not_compile(folder: Path) -> None:
    loaded = "import sys; print([m for m in sys.modules if m in ('numba', 'numpy', 'llvmlite')])"
    assert run(
        folder, WITHOUT.replace("assert not jit.available()", "jit.available = lambda: False") + loaded
    ) == ("works\n[]")
