"""Debian packages, QEMU and kernel modules from the cache; what is said when they cannot be had."""

import shutil
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outboard.errors import SetupError
from outboard.testing.guest.elf import closure, needs
from outboard.testing.guest.kernel import Kernel
from outboard.testing.guest.packages import PackageStore
from outboard.testing.guest.qemu import QEMU_VARIABLE, find_qemu, probe

PROGRAM = Path(shutil.which("sh") or sys.executable).resolve()


def store_with(root: Path, *files: str) -> PackageStore:
    for file in files:
        (root / "debian" / "packages" / file.removesuffix(".deb") / "usr" / "bin").mkdir(parents=True)
    record = root / "debian" / "sets" / "trixie" / "tool"
    record.parent.mkdir(parents=True)
    record.write_text("".join(f"{file}\n" for file in files))
    return PackageStore(root)


def test_what_was_fetched_once_is_used_without_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_with(tmp_path, "tool_1.0-1_amd64.deb", "libc6_1%3a2.41_amd64.deb")
    monkeypatch.setenv("PATH", "")
    packages = store.fetch("tool")
    assert list(packages.folders) == ["tool", "libc6"]
    assert packages.path("usr/bin") == tmp_path / "debian/packages/tool_1.0-1_amd64/usr/bin"


def test_a_file_no_package_has_is_named(tmp_path: Path) -> None:
    packages = store_with(tmp_path, "tool_1.0-1_amd64.deb").fetch("tool")
    with pytest.raises(SetupError, match="usr/bin/nothing"):
        packages.path("usr/bin/nothing")


def test_a_machine_without_apt_is_told_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SetupError, match="install the packages apt and dpkg"):
        PackageStore(tmp_path).fetch("tool")


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="this machine has no apt-get")
def test_a_mirror_that_is_not_there_is_reported_with_what_apt_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUTBOARD_DEBIAN_MIRROR", f"file:{tmp_path}/nowhere/debian")
    with pytest.raises(SetupError, match=r"nowhere.*apt-get update"):
        PackageStore(tmp_path).fetch("tool")


def test_a_chosen_qemu_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(QEMU_VARIABLE, "/bin/true")
    with pytest.raises(SetupError, match=f"{QEMU_VARIABLE} is /bin/true"):
        find_qemu()


@pytest.mark.parametrize(
    ("version", "devices", "usable"),
    [
        ("10.1.0", 'name "vfio-user-pci", bus PCI', True),
        ("11.0.2 (Debian)", 'name "vfio-user-pci", bus PCI', True),
        ("10.0.9", 'name "vfio-user-pci", bus PCI', False),
        ("9.2.1", "", False),
        ("11.1.3", 'name "vfio-pci", bus PCI', False),
    ],
)
def test_a_qemu_is_used_if_it_is_new_enough_and_has_the_device(
    tmp_path: Path, version: str, devices: str, usable: bool
) -> None:
    program = tmp_path / "qemu"
    program.write_text(
        "#!/bin/sh\n"
        f"case $1 in --version) echo 'QEMU emulator version {version}' ;; *) echo '{devices}' ;; esac\n"
    )
    program.chmod(0o755)
    assert (probe((str(program),)) is not None) == usable


def test_the_libraries_of_a_program_are_found_through_each_other() -> None:
    libraries = {path.name: path for path in Path("/lib/x86_64-linux-gnu").glob("*.so*")}
    wanted = needs(PROGRAM.read_bytes())
    assert wanted is not None
    assert "libc.so.6" in wanted.libraries
    assert (wanted.interpreter or "").endswith("ld-linux-x86-64.so.2")
    assert "ld-linux-x86-64.so.2" in {path.name for path in closure([PROGRAM], libraries)}


def test_a_script_needs_no_libraries() -> None:
    assert needs(b"#!/bin/sh\n") is None


@given(st.integers(0, 4096), st.binary(max_size=64))
def test_a_damaged_program_is_read_without_a_crash(position: int, damage: bytes) -> None:
    """Any bytes over the start of a program: `needs` answers, and raises nothing."""
    image = bytearray(PROGRAM.read_bytes()[:8192])
    image[position : position + len(damage)] = damage
    needs(bytes(image))


def module(depends: str) -> bytes:
    return b"\0license=GPL\0depends=" + depends.encode() + b"\0name=x\0"


def test_modules_are_loaded_after_those_they_depend_on(tmp_path: Path) -> None:
    for name, depends in {"vfio-pci": "vfio_core,vfio", "vfio-core": "vfio", "vfio": "builtin"}.items():
        (tmp_path / f"{name}.ko").write_bytes(module(depends))
    order = Kernel(tmp_path / "vmlinuz", tmp_path).load_order(["vfio_pci"])
    assert list(order) == ["vfio", "vfio_core", "vfio_pci"]


def test_a_module_the_kernel_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="no module floppy"):
        Kernel(tmp_path / "vmlinuz", tmp_path).load_order(["floppy"])
