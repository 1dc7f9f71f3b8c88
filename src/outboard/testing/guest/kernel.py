"""The Linux kernels that guests run, and their modules: Debian's, for the cloud or for every machine."""

import lzma
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from outboard.errors import SetupError
from outboard.testing.guest.packages import PackageStore, Progress, silent

CLOUD = "linux-image-cloud-amd64"
"""Boots soonest and has NVMe, ext4 and virtio built in, but few other drivers."""

EVERY_MACHINE = "linux-image-amd64"
"""Has nearly all of Linux's drivers, nearly all as modules: NVMe and virtio too (three times as large)."""

_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")


@dataclass(frozen=True)
class Kernel:
    """A kernel to boot.

    Attributes:
        image: the bzImage.
        modules: the folder of its modules (``.../lib/modules/<release>``), None for a kernel without.
    """

    image: Path
    modules: Path | None = None

    @cached_property
    def _module_files(self) -> dict[str, Path]:
        found = self.modules.rglob("*.ko*") if self.modules is not None else ()
        return {_module_name(path.name.split(".ko")[0]): path for path in found}

    def load_order(self, names: Iterable[str]) -> dict[str, bytes]:
        """The modules ``names`` and those they depend on, in the order to load: name to plain ``.ko`` bytes.

        A module that is built into the kernel is no file, and is passed over when another depends on it.

        Raises:
            SetupError: the kernel has no module of a name.
        """
        loaded: dict[str, bytes] = {}
        for name in names:
            if _module_name(name) not in self._module_files:
                raise SetupError(
                    f"the kernel {self.image.name} has no module {name} (it may be built in); "
                    f"`ls {self.modules}/kernel` shows what there is"
                )
            for module, content in self._with_dependencies(name, loaded):
                loaded.setdefault(module, content)
        return loaded

    def _with_dependencies(self, name: str, loaded: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
        path = self._module_files.get(name := _module_name(name))
        if path is None or name in loaded:
            return
        content = path.read_bytes()
        if path.suffix == ".xz":
            content = lzma.decompress(content)
        if match := _DEPENDS.search(content):
            for dependency in filter(None, match[1].decode().split(",")):
                yield from self._with_dependencies(dependency, loaded)
        yield name, content


def _module_name(name: str) -> str:
    return name.replace("-", "_")


def find_kernel(progress: Progress = silent, *, package: str = CLOUD) -> Kernel:
    """A kernel of Debian's with its modules, fetched the first time.

    Args:
        progress: told what is being done.
        package: `CLOUD`, or `EVERY_MACHINE` for a driver that the cloud's has not.

    Raises:
        SetupError: it cannot be fetched; the sentence says what mends it.
    """
    packages = PackageStore().fetch(package, progress=progress)
    folder = next(path for name, path in packages.folders.items() if name.startswith("linux-image-6"))
    return Kernel(next(folder.glob("boot/vmlinuz-*")), next(folder.glob("usr/lib/modules/*")))
