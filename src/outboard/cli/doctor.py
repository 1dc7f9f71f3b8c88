"""``outboard doctor``: what this machine lacks, and the exact line that mends it."""

import importlib.util
import os
import platform
import re
import resource
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from outboard.native import uring
from outboard.testing.guest import cache_folder
from outboard.testing.guest.command_line import accelerator
from outboard.testing.guest.qemu import PROGRAM, QEMU_VARIABLE, probe

PYTHON = (3, 11)
DESCRIPTORS = 1024
"""A client shares its memory and up to 2048 interrupts by descriptor; two devices fit well into this."""

SHARED_MEMORY = 512 << 20
CACHE_SPACE = 1 << 30
MIB = 1 << 20
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at: its name, what was found, what mends it, and whether it can be done without."""

    name: str
    found: str
    mend: str = ""
    optional: bool = False


def doctor() -> int:
    """Tell what this machine lacks, and what mends it.

    Looks at Python, QEMU and what is needed to fetch one, virtualisation, limits and shared
    memory. Exit status 1 if something is missing that cannot be done without.

    **Examples**

    ```
    outboard doctor
    ```
    """
    console = Console(highlight=False, soft_wrap=True)
    findings = [check() for check in CHECKS]
    for finding in findings:
        mark = "[green]✓[/]" if not finding.mend else "[yellow]·[/]" if finding.optional else "[red]✗[/]"
        console.print(f"{mark} {finding.name:<16} {escape(finding.found)}")
        if finding.mend:
            console.print(f"  {'':<16} [bold]{escape(finding.mend)}[/]")
    missing = [finding.name for finding in findings if finding.mend and not finding.optional]
    verdict = f"[red]missing: {', '.join(missing)}[/]" if missing else "[green]everything needed is there[/]"
    console.print(f"\n{verdict}")
    return 1 if missing else 0


def python() -> Finding:
    """Python itself."""
    mend = "" if sys.version_info >= PYTHON else "apt install python3.11"
    return Finding("Python", platform.python_version(), mend)


def system() -> Finding:
    """Linux on x86-64: what eventfd, memfd and the guests are made for."""
    found = f"{platform.system()} {platform.release()}, {platform.machine()}"
    if platform.system() != "Linux":
        return Finding("system", found, "run outboard on Linux: it needs eventfd, memfd and SCM_RIGHTS")
    guests = platform.machine() == "x86_64"
    return Finding("system", found, "" if guests else "guests are fetched for x86_64 only", optional=True)


def numba() -> Finding:
    """The compiler of the data plane."""
    there = importlib.util.find_spec("numba") is not None
    return Finding(
        "numba",
        "installed" if there else "not installed",
        "" if there else "pip install 'outboard[fast]'",
        True,
    )


def file_rings() -> Finding:
    """io_uring: files without a thread for each command."""
    why = uring.available()
    return Finding("io_uring", "files are served by threads" if why else "works", why, optional=True)


def huge_pages() -> Finding:
    """Transparent huge pages: RAM disks gain a fifth by them."""
    try:
        allowed = re.findall(r"\[(\w+)\]", HUGE_PAGES.read_text())
    except OSError:
        return Finding("huge pages", "not in this kernel; RAM disks do without")
    if allowed == ["never"]:
        return Finding("huge pages", "never: RAM disks are slower", f"echo madvise > {HUGE_PAGES}", True)
    return Finding("huge pages", f"{' '.join(allowed)}: RAM disks have them")


def system_qemu() -> Finding:
    """The QEMU of this machine: taken where it has vfio-user-pci, which came with 10.1."""
    named = os.environ.get(QEMU_VARIABLE)
    program = named or shutil.which(PROGRAM)
    if program is None:
        return Finding("QEMU", "none on this machine: one is fetched when a guest is booted")
    if (found := probe((program,))) is not None:
        return Finding("QEMU", f"{program}, {found}")
    lacking = f"{program} is older than 10.1 or lacks vfio-user-pci"
    if named:
        return Finding("QEMU", lacking, f"unset {QEMU_VARIABLE}")
    return Finding("QEMU", f"{lacking}: another one is fetched when a guest is booted")


def fetching() -> Finding:
    """What QEMU and a kernel are fetched with."""
    missing = [name for name in ("apt-get", "dpkg-deb") if shutil.which(name) is None]
    if missing:
        return Finding("apt", f"no {', '.join(missing)}", "install the packages apt and dpkg", optional=True)
    return Finding("apt", "QEMU and a kernel can be fetched from Debian's packages, without root")


def cache() -> Finding:
    """Where fetched packages go."""
    folder = cache_folder()
    place = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(place, os.W_OK):
        return Finding("cache", f"{folder} cannot be written", "export OUTBOARD_CACHE=/a/folder/of/yours")
    free = shutil.disk_usage(place).free
    mend = "" if free >= CACHE_SPACE else "export OUTBOARD_CACHE=/a/folder/with/1/GiB/free"
    return Finding("cache", f"{folder}, {free // MIB} MiB free", mend)


def virtualisation() -> Finding:
    """KVM: guests run without it, slowly."""
    if accelerator() == "kvm":
        return Finding("KVM", "works")
    device = Path("/dev/kvm")
    if device.exists() and not os.access(device, os.R_OK | os.W_OK):
        return Finding(
            "KVM", "/dev/kvm is not ours to open: guests are emulated", "sudo usermod -aG kvm $USER", True
        )
    found = "no virtualisation by the processor: guests are emulated, which is slow"
    return Finding(
        "KVM", found, "enable VT-x or AMD-V in the firmware, or nested virtualisation in the host", True
    )


def descriptors() -> Finding:
    """How many files a process may hold open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    mend = "" if soft >= DESCRIPTORS or soft == resource.RLIM_INFINITY else f"ulimit -n {DESCRIPTORS}"
    return Finding("descriptors", f"{soft} (at most {hard})", mend)


def locked_memory() -> Finding:
    """Locked memory: only io_uring and passed-through hardware ask for it."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    shown = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft // MIB} MiB"
    return Finding("locked memory", f"{shown}; nothing of outboard needs it yet")


def anonymous_files() -> Finding:
    """memfd: what shared guest memory and mapped BARs are made of."""
    try:
        os.close(os.memfd_create("outboard-doctor", os.MFD_CLOEXEC))
    except OSError as error:
        return Finding(
            "memfd",
            f"memfd_create fails: {error.strerror}",
            "run outside the sandbox that forbids memfd_create",
        )
    return Finding("memfd", "works")


def shared_memory() -> Finding:
    """/dev/shm: for guests whose memory is a file there."""
    place = Path("/dev/shm")
    if not place.is_dir():
        return Finding("/dev/shm", "not there", "mount -t tmpfs tmpfs /dev/shm", optional=True)
    free = shutil.disk_usage(place).free
    mend = "" if free >= SHARED_MEMORY else "use memory-backend-memfd, or mount -o remount,size=2G /dev/shm"
    return Finding("/dev/shm", f"{free // MIB} MiB free", mend, optional=True)


CHECKS: tuple[Callable[[], Finding], ...] = (
    python,
    system,
    numba,
    file_rings,
    huge_pages,
    system_qemu,
    fetching,
    cache,
    virtualisation,
    descriptors,
    locked_memory,
    anonymous_files,
    shared_memory,
)
