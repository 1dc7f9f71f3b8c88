"""Debian packages without root and without installing anything: resolved, fetched, verified, unpacked.

apt's own client does the work with lists, status and cache of its own, so signatures, proxies and
credentials are the machine's. Each package is unpacked once into a folder of its own and shared by
all that need it::

    $OUTBOARD_CACHE, or ~/.cache/outboard
        debian/
            apt/                        apt's lists and configuration
            packages/fio_3.39-1_amd64/  what the package holds
            sets/trixie/fio             the folders of fio and of all it depends on
"""

import fcntl
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote

from outboard.errors import SetupError
from outboard.testing.guest.elf import closure
from outboard.testing.guest.sources import debian_source

Progress = Callable[[str, int, int], None]
"""Called as ``progress(stage, done, total)``: a word or two on what is being done, and how far it is."""

SUITE = "trixie"
BACKPORTS = "trixie-backports"
_LISTS_STAY_FRESH = 3600


def silent(stage: str, done: int, total: int) -> None:
    """The progress callback that shows nothing."""


def cache_folder() -> Path:
    """Where everything fetched or built for guests is kept: ``$OUTBOARD_CACHE`` or ~/.cache/outboard.

    Removing it is always safe while no guest runs; it is made again when needed.
    """
    return Path(os.environ.get("OUTBOARD_CACHE") or Path.home() / ".cache" / "outboard")


@dataclass(frozen=True)
class PackageSet:
    """Some packages with all they depend on: the name of each and the folder it is unpacked in."""

    folders: dict[str, Path]

    def path(self, relative: str) -> Path:
        """The file or folder that some package has at ``relative`` (``usr/bin/fio``).

        Raises:
            SetupError: no package of the set has it.
        """
        for folder in self.folders.values():
            if (found := folder / relative).exists():
                return found
        raise SetupError(f"no package of {', '.join(self.folders)} holds {relative}")

    def command(self, program: str) -> tuple[str, ...]:
        """What runs the program at ``program`` (``usr/bin/mcopy``) on this machine, arguments to follow.

        Through Debian's own loader, as the program may want a newer libc than the machine has.
        """
        path = self.path(program)
        folders = {library.parent: None for library in closure([path], self.libraries)}
        loader = self.libraries["ld-linux-x86-64.so.2"]
        return (str(loader), "--library-path", ":".join(map(str, folders)), str(path))

    @cached_property
    def libraries(self) -> dict[str, Path]:
        """Every shared library of the set: the file for each file name; the shallowest where several are."""
        found: dict[str, Path] = {}
        for folder in self.folders.values():
            for path in sorted(folder.glob("usr/lib*/**/*.so*"), key=lambda path: len(path.parts)):
                found.setdefault(path.name, path)
        return found


class PackageStore:
    """The packages in a cache folder; safe for several processes at once."""

    def __init__(self, root: Path | None = None) -> None:
        self._root = (root or cache_folder()) / "debian"

    def fetch(self, *names: str, suite: str = SUITE, progress: Progress = silent) -> PackageSet:
        """The packages ``names`` and all they depend on, unpacked; fetched only the first time.

        Args:
            names: of Debian packages.
            suite: ``trixie``, or ``trixie-backports`` to prefer what is newer there.
            progress: told what is being done.

        Raises:
            SetupError: apt is missing, the machine has no Debian mirror, or it does not answer.
        """
        record = self._root / "sets" / suite / "+".join(names)
        if (known := self._recorded(record)) is not None:
            return known
        self._root.mkdir(parents=True, exist_ok=True)
        with _locked(self._root / "lock"):
            if (known := self._recorded(record)) is not None:
                return known
            apt = _Apt(self._root / "apt")
            apt.update(progress)
            files = apt.resolve(names, suite)
            self._download(
                [file for file in files if not self._folder(file).exists()], names[0], apt, progress
            )
            record.parent.mkdir(parents=True, exist_ok=True)
            record.write_text("".join(f"{file}\n" for file in files))
        return PackageSet({_name(file): self._folder(file) for file in files})

    def _folder(self, file: str) -> Path:
        return self._root / "packages" / file.removesuffix(".deb")

    def _recorded(self, record: Path) -> PackageSet | None:
        files = record.read_text().split() if record.exists() else []
        folders = {_name(file): self._folder(file) for file in files}
        return PackageSet(folders) if folders and all(path.exists() for path in folders.values()) else None

    def _download(self, files: Sequence[str], what: str, apt: "_Apt", progress: Progress) -> None:
        if not files:
            return
        (self._root / "packages").mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._root, prefix="fetch-") as scratch:
            apt.download(files, Path(scratch), f"fetching {what}", progress)

            def unpack(file: str) -> None:
                folder = Path(scratch, file.removesuffix(".deb"))
                _call(["dpkg-deb", "--extract", str(Path(scratch, file)), str(folder)])
                folder.rename(self._folder(file))

            with ThreadPoolExecutor(os.cpu_count()) as pool:
                for done, _ in enumerate(pool.map(unpack, files), 1):
                    progress(f"unpacking {what}", done, len(files))


class _Apt:
    """apt-get with lists, sources and package status of its own."""

    def __init__(self, folder: Path) -> None:
        for program in ("apt-get", "dpkg-deb"):
            if shutil.which(program) is None:
                raise SetupError(
                    f"{program} is not on this machine, and guests are made of Debian's packages: "
                    f"install the packages apt and dpkg of your distribution"
                )
        self._folder = folder
        self._lists = folder / "lists"
        (self._lists / "partial").mkdir(parents=True, exist_ok=True)
        (folder / "archives" / "partial").mkdir(parents=True, exist_ok=True)
        (folder / "sources.d").mkdir(exist_ok=True)
        (folder / "status").touch()
        (folder / "sources.d" / "debian.sources").write_text(debian_source().stanza(SUITE, BACKPORTS))
        self._configuration = folder / "apt.conf"
        # Given with -c, which apt reads after the machine's own files: #clear must come last to
        # keep hooks of the machine (appstream, packagekit) from running on our lists.
        self._configuration.write_text(
            f"""
            Dir::State "{folder}"; Dir::State::lists "{self._lists}"; Dir::State::status "{folder}/status";
            Dir::Cache "{folder}"; Dir::Cache::archives "{folder}/archives";
            Dir::Cache::pkgcache "pkgcache.bin"; Dir::Cache::srcpkgcache "srcpkgcache.bin";
            Dir::Etc::sourcelist "/dev/null"; Dir::Etc::sourceparts "{folder}/sources.d";
            Dir::Etc::preferences "/dev/null"; Dir::Etc::preferencesparts "/dev/null";
            Dir::Log "{folder}"; APT::Sandbox::User "root"; APT::Architecture "amd64";
            APT::Install-Recommends "false"; Acquire::Languages "none"; Acquire::Retries "3";
            #clear APT::Architectures;
            #clear APT::Update::Pre-Invoke;
            #clear APT::Update::Post-Invoke;
            #clear APT::Update::Post-Invoke-Success;
            """
        )

    def update(self, progress: Progress) -> None:
        """Fetch the package lists, unless they are fresh."""
        stamp = self._folder / "updated"
        if stamp.exists() and time.time() - stamp.stat().st_mtime < _LISTS_STAY_FRESH:
            return
        self._run(
            ["update", "-o", "APT::Update::Error-Mode=any"], stage="Debian package lists", progress=progress
        )
        stamp.touch()

    def resolve(self, names: Sequence[str], suite: str) -> list[str]:
        """The file names of the packages that installing ``names`` on an empty machine takes."""
        listing = self._run(["install", "--print-uris", "-qq", "-y", "-t", suite, *names])
        return [line.split()[1] for line in listing.splitlines() if line.startswith("'")]

    def download(self, files: Sequence[str], folder: Path, stage: str, progress: Progress) -> None:
        """Fetch package ``files`` into ``folder``; apt checks each against the signed lists."""
        wanted = [
            f"{name}={unquote(version)}" for name, version, _ in (file.rsplit("_", 2) for file in files)
        ]
        self._run(["download", *wanted], cwd=folder, stage=stage, progress=progress)

    def _run(
        self, args: Sequence[str], *, cwd: Path | None = None, stage: str = "", progress: Progress = silent
    ) -> str:
        command = ["apt-get", "-c", str(self._configuration), *args]
        if not stage:
            return _call(command)
        status, child = os.pipe()
        with open(status) as lines, ThreadPoolExecutor(1) as pool:
            try:
                output = pool.submit(_call, [*command, "-o", f"APT::Status-Fd={child}"], cwd, child)
            except BaseException:
                os.close(child)
                raise
            for line in lines:
                kind, _, percent, *_ = [*line.split(":"), "", ""]
                if kind == "dlstatus":
                    progress(stage, int(float(percent)), 100)
            return output.result()


def _call(command: Sequence[str], cwd: Path | None = None, pass_fd: int | None = None) -> str:
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env={**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"},
            pass_fds=() if pass_fd is None else (pass_fd,),
        )
    finally:
        if pass_fd is not None:
            os.close(pass_fd)
    if done.returncode == 0:
        return done.stdout
    complaint = [
        line for line in done.stderr.splitlines() if line.startswith("E:")
    ] or done.stderr.splitlines()
    raise SetupError(
        f"{command[0]} failed to provide Debian's packages for guests: {' '.join(complaint[-3:])} "
        f"(see that `apt-get update` works on this machine, then try again)"
    )


def _name(file: str) -> str:
    return file.split("_", 1)[0]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
