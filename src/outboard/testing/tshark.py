"""tshark with the dissector of vfio-user: the machine's where it will do, else Debian's, from the cache.

Nothing is installed: Debian's packages are fetched as those for guests are (`outboard.testing.guest`).
"""

import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from outboard.errors import SetupError
from outboard.testing.guest.elf import closure
from outboard.testing.guest.packages import PackageStore, Progress, silent
from outboard.trace import dissector, pcapng

TSHARK_VARIABLE = "OUTBOARD_TSHARK"
LOADER = "ld-linux-x86-64.so.2"
_COLUMNS = '"No.","%m","Source","%s","Destination","%d","Info","%i"'


@dataclass(frozen=True, slots=True)
class Tshark:
    """A tshark that knows vfio-user: ``command`` starts it, arguments to follow.

    ``home`` is its home directory, an empty one: whatever plugins and preferences a user has, it has none.
    """

    command: tuple[str, ...]
    home: Path

    def run(self, *arguments: str | Path) -> str:
        """What tshark prints. Raises `SetupError` with its complaint if it fails."""
        done = subprocess.run(
            [*self.command, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env=_environment(self.home),
            check=False,
        )
        if done.returncode:
            raise SetupError(f"tshark {' '.join(map(str, arguments))} failed: {done.stderr.strip()}")
        return done.stdout

    def summary(self, capture: Path) -> str:
        """The list of packets: number, from whom to whom, what; without times."""
        return self.run("-2", "-r", capture, "-o", f"gui.column.format:{_COLUMNS}")

    def details(self, capture: Path) -> str:
        """Every field of every message."""
        return self.run("-2", "-r", capture, "-O", "vfio_user")


def find_tshark(folder: Path, progress: Progress = silent) -> Tshark:
    """The tshark to use: ``$OUTBOARD_TSHARK``, the system's, or Debian's, fetched once.

    ``folder`` is an empty one of the caller's, kept for as long as tshark is used: its home, and what
    Debian's is run from.

    Raises `SetupError`: none can be had; the sentence says what mends it.
    """
    if chosen := os.environ.get(TSHARK_VARIABLE):
        if (tshark := probe((chosen,), folder)) is None:
            raise SetupError(
                f"{TSHARK_VARIABLE} is {chosen}, which is no tshark that reads Lua scripts (from Wireshark "
                f"4.4 on it reads none of root's): `unset {TSHARK_VARIABLE}` or name another"
            )
        return tshark
    if (system := shutil.which("tshark")) and (tshark := probe((system,), folder)):
        return tshark
    if platform.machine() != "x86_64":
        raise SetupError(
            f"this machine has no tshark that reads Lua scripts, and Debian's is fetched for x86-64 only, "
            f"not {platform.machine()}: install one, or `export {TSHARK_VARIABLE}=/path/to/tshark`"
        )
    return debian_tshark(folder, progress)


def debian_tshark(folder: Path, progress: Progress = silent) -> Tshark:
    """Debian's tshark, run from ``folder`` by Debian's own loader.

    Wireshark takes the folder of the running program, here the loader's copy, for its installation: data
    files and plugins are looked for there, and only there if it is root who runs it.
    """
    packages = PackageStore().fetch("tshark", progress=progress)
    program = packages.path("usr/bin/tshark")
    loader = shutil.copy(packages.libraries[LOADER], folder / LOADER)
    for path in packages.path("usr/share/wireshark").iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "plugins").mkdir()
    (folder / "plugins" / dissector().name).symlink_to(dissector())
    folders = {path.parent: None for path in closure([program], packages.libraries)}
    command = str(loader), "--library-path", ":".join(map(str, folders)), str(program)
    if not _knows_vfio_user(command, folder):
        raise SetupError(
            f"the tshark fetched from Debian does not run here: `{program}` says what is wrong; "
            f"`export {TSHARK_VARIABLE}=/path/to/tshark` to use another"
        )
    return Tshark(command, folder)


def probe(command: Sequence[str], home: Path) -> Tshark | None:
    """The tshark that ``command`` starts, with our dissector; None if it does not start or read it."""
    with_dissector = (*command, "-X", f"lua_script:{dissector()}")
    return Tshark(with_dissector, home) if _knows_vfio_user(with_dissector, home) else None


def _environment(home: Path) -> dict[str, str]:
    """With UTF-8 as it is and times in UTC, so that the same is printed everywhere."""
    return {**os.environ, "HOME": str(home), "XDG_CONFIG_HOME": str(home), "LC_ALL": "C.UTF-8", "TZ": "UTC"}


def _knows_vfio_user(command: Sequence[str], home: Path) -> bool:
    """Whether a filter on our fields is one, over a capture without packets."""
    try:
        done = subprocess.run(
            [*command, "-r", "-", "-Y", "vfio_user.command"],
            input=pcapng.section("outboard"),
            env=_environment(home),
            capture_output=True,
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0
