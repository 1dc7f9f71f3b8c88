"""What is on disk belongs to one process at a time: the state of a subsystem, the folder of a pool."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from outboard.devices.nvme import FolderPool, Store
from outboard.errors import SetupError
from outboard.operation.configuration import configuration_of

Use = Callable[[Path], object]

HOLD = """
import sys
from pathlib import Path
from outboard.devices.nvme import FolderPool, Store
path = Path(sys.argv[2])
held = Store(path) if sys.argv[1] == "state" else FolderPool(path, 1 << 20)
if sys.argv[1] == "state":
    held.put("greeting", "hello")
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def another_process(what: str, path: Path) -> Iterator["subprocess.Popen[str]"]:
    """One that has it, until the block is left."""
    command = [sys.executable, "-c", HOLD, what, str(path)]
    with subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        try:
            yield holder
        finally:
            holder.kill()


def configured(path: Path, **traits: str) -> object:
    described = {"subsystem": {"main": {"controller": [{"socket": str(path.with_name("a.sock"))}], **traits}}}
    return configuration_of(described, "disks.toml").subsystem["main"].open()


WAYS = [
    pytest.param("state", Store, id="store"),
    pytest.param("state", lambda path: configured(path, state=str(path)), id="configured state"),
    pytest.param("pool", lambda path: FolderPool(path, 1 << 20), id="pool"),
    pytest.param("pool", lambda path: configured(path, pool=f"{path},size=1M"), id="configured pool"),
]


@pytest.mark.parametrize(("what", "use"), WAYS)
def test_a_second_process_is_told_who_is_in_the_way(tmp_path: Path, what: str, use: Use) -> None:
    path = tmp_path / "main"
    with another_process(what, path) as holder:
        for _ in range(2):
            with pytest.raises(
                SetupError, match=f"{path} is in use by another process: end that one, or give"
            ):
                use(path)
        holder.kill()
        holder.wait()
        assert use(path)


def test_the_state_that_was_kept_meanwhile_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "main"
    with another_process("state", path), pytest.raises(SetupError):
        Store(path).put("greeting", "good bye")
    assert Store(path).get("greeting") == "hello"


@pytest.mark.parametrize("what", ["state", "pool"])
def test_what_was_closed_may_be_had_by_another_process(tmp_path: Path, what: str) -> None:
    path = tmp_path / "main"
    held = Store(path) if what == "state" else FolderPool(path, 1 << 20)
    again = Store(path) if what == "state" else FolderPool(path, 1 << 20)
    for each in (held, held, again):
        each.close()
    with another_process(what, path):
        pass


def test_a_state_where_nothing_can_be_written_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"cannot open .*main\.lock, by which .*: No such"):
        Store(tmp_path / "nowhere" / "main")
