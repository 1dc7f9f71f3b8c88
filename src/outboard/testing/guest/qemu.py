"""The QEMU that runs guests: the system's where it is new enough, else Debian's own, run from the cache."""

import functools
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from outboard.errors import SetupError
from outboard.testing.guest.packages import BACKPORTS, PackageStore, Progress, silent

PROGRAM = "qemu-system-x86_64"
QEMU_VARIABLE = "OUTBOARD_QEMU"
OLDEST = (10, 1)
"""The first release with ``vfio-user-pci``."""

_DATA = (
    "usr/share/qemu/linuxboot_dma.bin",
    "usr/share/qemu/efi-e1000e.rom",
    "usr/share/seabios/bios-256k.bin",
)
"""A file of each package that holds what QEMU loads into a machine: its own, network cards', the BIOS."""

_OVMF_PAIRS = (
    ("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"),
    ("OVMF_CODE.fd", "OVMF_VARS.fd"),
)
_OVMF_SECURE = (("OVMF_CODE_4M.ms.fd", "OVMF_VARS_4M.ms.fd"),)
"""The variables hold Microsoft's keys, with which Debian's boot loader is signed."""


@dataclass(frozen=True, slots=True)
class Qemu:
    """A QEMU with ``vfio-user-pci``.

    Attributes:
        command: what starts it, arguments of the caller's to follow; the first word is an absolute path.
        version: (major, minor, micro).
    """

    command: tuple[str, ...]
    version: tuple[int, ...]

    def __str__(self) -> str:
        return f"QEMU {'.'.join(map(str, self.version))}"


def find_qemu(progress: Progress = silent) -> Qemu:
    """The QEMU to use: ``$OUTBOARD_QEMU``, the system's if it is 10.1 or later, or Debian's, fetched once.

    Raises:
        SetupError: none can be had; the sentence says what mends it.
    """
    if chosen := os.environ.get(QEMU_VARIABLE):
        if (qemu := probe((chosen,))) is None:
            raise SetupError(
                f"{QEMU_VARIABLE} is {chosen}, which is no QEMU with vfio-user-pci (10.1 or later): "
                f"`unset {QEMU_VARIABLE}` or name another"
            )
        return qemu
    if (system := shutil.which(PROGRAM)) and (qemu := probe((system,))):
        return qemu
    if platform.machine() != "x86_64":
        raise SetupError(
            f"this machine has no {PROGRAM} of 10.1 or later, and Debian's is fetched for x86-64 only, "
            f"not {platform.machine()}: install one, or `export {QEMU_VARIABLE}=/path/to/{PROGRAM}`"
        )
    return _debian_qemu(progress)


def _debian_qemu(progress: Progress) -> Qemu:
    packages = PackageStore().fetch("qemu-system-x86", suite=BACKPORTS, progress=progress)
    program = packages.path(f"usr/bin/{PROGRAM}")
    command = (
        *packages.command(f"usr/bin/{PROGRAM}"),
        *(word for file in _DATA for word in ("-L", str(packages.path(file).parent))),
    )
    if (qemu := probe(command)) is None:
        raise SetupError(
            f"the QEMU fetched from Debian does not run here: `{program}` says what is wrong; "
            f"`export {QEMU_VARIABLE}=/path/to/{PROGRAM}` to use another (10.1 or later)"
        )
    return qemu


@functools.cache
def probe(command: Sequence[str]) -> Qemu | None:
    """The QEMU that ``command`` starts, or None if it does not start, is too old or lacks vfio-user-pci."""
    try:
        version = _output(command, "--version")
        found = re.search(r"version (\d+)\.(\d+)\.(\d+)", version)
        if found is None or (numbers := tuple(map(int, found.groups()))) < OLDEST:
            return None
        devices = _output(command, "-device", "help")
    except (OSError, subprocess.SubprocessError):
        return None
    return Qemu(tuple(command), numbers) if '"vfio-user-pci"' in devices else None


def _output(command: Sequence[str], *args: str) -> str:
    return subprocess.run(
        [*command, *args], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True, timeout=60
    ).stdout


def find_ovmf(progress: Progress = silent, *, secure: bool = False) -> tuple[Path, Path]:
    """The UEFI firmware OVMF: its code and the template of its variables, the system's or Debian's.

    Args:
        progress: told what is being done.
        secure: the build that boots nothing but what is signed (Secure Boot).

    Raises:
        SetupError: the system has none and it cannot be fetched.
    """
    pairs = _OVMF_SECURE if secure else _OVMF_PAIRS
    for folder in (Path("/usr/share/OVMF"), Path("/usr/share/edk2/x64"), Path("/usr/share/edk2/ovmf")):
        for pair in pairs:
            code, variables = (folder / name for name in pair)
            if code.exists() and variables.exists():
                return code, variables
    packages = PackageStore().fetch("ovmf", progress=progress)
    code, variables = (packages.path(f"usr/share/OVMF/{name}") for name in pairs[0])
    return code, variables
