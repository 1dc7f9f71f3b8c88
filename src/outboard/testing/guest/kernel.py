"""The Linux kernel that guests run, and its modules: Debian's cloud kernel (NVMe, ext4, virtio built in)."""

import lzma
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from outboard.errors import SetupError
from outboard.testing.guest.packages import PackageStore, Progress, silent

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


def find_kernel(progress: Progress = silent) -> Kernel:
    """Debian's cloud kernel with its modules, fetched the first time.

    Raises:
        SetupError: it cannot be fetched; the sentence says what mends it.
    """
    packages = PackageStore().fetch("linux-image-cloud-amd64", progress=progress)
    folder = next(path for name, path in packages.folders.items() if name.startswith("linux-image-6"))
    return Kernel(next(folder.glob("boot/vmlinuz-*")), next(folder.glob("usr/lib/modules/*")))
