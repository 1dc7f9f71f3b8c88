"""The root file system of a guest: busybox, our init, and the tools and kernel modules a test asks for.

What goes in is files of unpacked Debian packages; the result is kept by the hash of its contents.
"""

import hashlib
import os
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from outboard.testing.guest import cpio
from outboard.testing.guest.elf import closure, needs
from outboard.testing.guest.kernel import Kernel
from outboard.testing.guest.packages import PackageSet, PackageStore, Progress, cache_folder, silent

_UNWANTED = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/lintian", "usr/share/bug")
_MERGED = {"/bin": "usr/bin", "/sbin": "usr/sbin", "/lib": "usr/lib", "/lib64": "usr/lib64"}


def build_initramfs(
    kernel: Kernel,
    tools: Sequence[str] = (),
    modules: Sequence[str] = (),
    *,
    progress: Progress = silent,
) -> Path:
    """An initramfs for ``kernel`` as a file in the cache, built if it is not there.

    Args:
        kernel: whose modules go in.
        tools: Debian packages (``fio``, ``nvme-cli``, ``pciutils``, ``e2fsprogs``) whose programs and data
            the guest shall have, with the shared libraries that those programs need. Packages that these
            merely depend on are left out: name them too where they are wanted (``pci.ids``).
        modules: of the kernel, loaded at boot in this order, after those they depend on.
        progress: told what is being done.

    Raises:
        SetupError: a package cannot be fetched, or the kernel has no such module.
    """
    packages = PackageStore().fetch("busybox-static", *sorted(set(tools)), progress=progress)
    loaded = kernel.load_order(modules)
    contents = hashlib.sha256(_INIT.read_bytes())
    contents.update(repr(sorted(folder.name for folder in packages.folders.values())).encode())
    for module in loaded.values():
        contents.update(module)
    path = cache_folder() / "initramfs" / f"{contents.hexdigest()[:16]}.cpio"
    if not path.exists():
        progress("building the initramfs", 0, 1)
        entries = {**_base(packages.path("usr/bin/busybox")), **dict(_modules(loaded))}
        for tool in tools:
            entries.update(_tool(tool, packages))
        _write(path, cpio.archive(entries))
        progress("building the initramfs", 1, 1)
    return path


_INIT = Path(__file__).with_name("init.sh")


def _base(busybox: Path) -> dict[str, cpio.Entry]:
    applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
    return {
        **{path: cpio.link(target) for path, target in _MERGED.items()},
        **{f"/usr/bin/{applet}": cpio.link("busybox") for applet in applets},
        **dict.fromkeys(("/proc", "/sys", "/dev", "/tmp", "/mnt", "/root", "/usr/sbin"), cpio.FOLDER),
        "/usr/bin/busybox": cpio.file(busybox.read_bytes(), executable=True),
        "/init": cpio.file(_INIT.read_bytes(), executable=True),
        "/etc/passwd": cpio.file(b"root:x:0:0:root:/root:/bin/sh\n"),
        "/etc/group": cpio.file(b"root:x:0:\n"),
    }


def _modules(loaded: Mapping[str, bytes]) -> Iterator[tuple[str, cpio.Entry]]:
    if loaded:
        yield "/etc/boot-modules", cpio.file("".join(f"{name}\n" for name in loaded).encode())
    for name, content in loaded.items():
        yield f"/usr/lib/modules/{name}.ko", cpio.file(content)


def _tool(tool: str, packages: PackageSet) -> Iterator[tuple[str, cpio.Entry]]:
    folder = packages.folders[tool]
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if not path.relative_to(folder).as_posix().startswith(_UNWANTED)
    ]
    plain = [path for path in files if path.is_file() and not path.is_symlink()]
    inodes: dict[int, str] = {}
    for path in files:
        name = _merged(path.relative_to(folder))
        if path.is_symlink():
            yield name, cpio.link(os.readlink(path))
        elif path.is_file():
            status = path.stat()
            first = inodes.setdefault(status.st_ino, name)
            entry = cpio.file(path.read_bytes(), executable=bool(status.st_mode & stat.S_IXUSR))
            yield name, entry if first == name else cpio.link(first)
    yield from _libraries([path for path in plain if needs(path.read_bytes())], packages)


def _libraries(programs: Sequence[Path], packages: PackageSet) -> Iterator[tuple[str, cpio.Entry]]:
    for library in closure(programs, packages.libraries):
        folder = next(folder for folder in packages.folders.values() if library.is_relative_to(folder))
        yield _merged(library.relative_to(folder)), cpio.file(library.read_bytes(), executable=True)


def _merged(path: Path) -> str:
    """The absolute path a file of a package has in the guest, where /bin, /sbin and /lib are in /usr."""
    top = f"/{path.parts[0]}"
    return "/" + str(Path(_MERGED[top], *path.parts[1:]) if top in _MERGED else path)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as scratch:
        scratch.write(content)
    os.replace(scratch.name, path)
