"""A disk from which PC firmware and UEFI boot the guest's Linux: GRUB, a kernel, an initramfs.

One FAT partition, which is the EFI system partition: Debian's signed shim, GRUB and kernel, so that Secure
Boot likes them. GRUB for PC firmware, which knows no blocks but those of 512 bytes, lies in front of it: its
first sector in the master boot record, the rest in the sectors behind that.
"""

import os
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from outboard.testing.guest.command_line import KERNEL_ARGUMENTS
from outboard.testing.guest.initramfs import build_initramfs
from outboard.testing.guest.kernel import Kernel, find_kernel
from outboard.testing.guest.packages import PackageSet, PackageStore, Progress, silent

_SECTOR = 512
_PARTITION = 1 << 20
"""Where the partition begins."""
_BOOT_CODE = 440
"""Bytes of the first sector that are the boot loader's; the partition table begins behind."""
_EFI_SYSTEM, _ACTIVE = 0xEF, 0x80

_PC_MODULES = ("biosdisk", "part_msdos", "fat", "normal", "configfile", "linux", "serial", "terminal", "echo")

_MENU = """\
serial --unit=0 --speed=115200
terminal_output serial
set timeout=0
echo "outboard: GRUB on $grub_platform"
linux /vmlinuz {append}
initrd /initrd
boot
"""


def linux_disk(
    path: Path,
    *,
    size: int = 96 << 20,
    block_size: int = _SECTOR,
    kernel: Kernel | None = None,
    tools: Sequence[str] = (),
    append: str = "",
    progress: Progress = silent,
) -> Path:
    """Write a disk of ``size`` bytes to ``path``, to be given to ``Guest(kernel="disk")``.

    Args:
        path: of the image.
        size: in bytes, a multiple of 1 MiB; what the kernel and the tools need, at least.
        block_size: of the disk that this is an image of, in bytes; PC firmware boots from 512 only.
        kernel: what it boots; Debian's cloud kernel by default.
        tools: Debian packages for the guest, as for `Guest`.
        append: more kernel arguments.
        progress: told what is fetched and built the first time.

    Raises:
        SetupError: a package cannot be fetched.
    """
    kernel = kernel or find_kernel(progress)
    store = PackageStore()
    grub = store.fetch("grub-pc-bin", "grub-common", progress=progress)
    signed = store.fetch("shim-signed", "grub-efi-amd64-signed", progress=progress)
    initramfs = build_initramfs(kernel, tools, progress=progress)
    menu = _MENU.format(append=f"{KERNEL_ARGUMENTS} {append}".rstrip()).encode()
    files = {
        "EFI/BOOT/BOOTX64.EFI": signed.path("usr/lib/shim/shimx64.efi.signed").read_bytes(),
        "EFI/BOOT/grubx64.efi": signed.path("usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed").read_bytes(),
        "EFI/debian/grub.cfg": menu,
        "vmlinuz": kernel.image.read_bytes(),
        "initrd": initramfs.read_bytes(),
    }
    with open(path, "wb") as disk:
        os.truncate(disk.fileno(), size)
        disk.write(_master_boot_record(grub, size, block_size))
        disk.seek(_SECTOR)
        disk.write(_grub_for_pc(grub))
    _fill(store.fetch("mtools", progress=progress), path, size, block_size, files)
    return path


def _master_boot_record(grub: PackageSet, size: int, block_size: int) -> bytes:
    code = grub.path("usr/lib/grub/i386-pc/boot.img").read_bytes()[:_BOOT_CODE]
    first, count = _PARTITION // block_size, (size - _PARTITION) // block_size
    entry = struct.pack("<B3sB3sII", _ACTIVE, b"\xfe\xff\xff", _EFI_SYSTEM, b"\xfe\xff\xff", first, count)
    return code + b"outb\0\0" + entry.ljust(64, b"\0") + b"\x55\xaa"


def _grub_for_pc(grub: PackageSet) -> bytes:
    """What the boot sector loads from behind itself: GRUB, which reads its menu from the partition."""
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder, "core.img")
        modules = str(grub.path("usr/lib/grub/i386-pc"))
        _run(
            [
                *grub.command("usr/bin/grub-mkimage"),
                *("-O", "i386-pc", "-d", modules, "-p", "(hd0,msdos1)/EFI/debian", "-o", str(image)),
                *_PC_MODULES,
            ]
        )
        return image.read_bytes()


def _fill(mtools: PackageSet, path: Path, size: int, block_size: int, files: dict[str, bytes]) -> None:
    """Make a FAT file system in the partition, and put ``files`` there."""
    partition = f"{path}@@{_PARTITION}"
    blocks = (size - _PARTITION) // block_size
    # A block has 128 << code bytes. mformat chooses the kind of FAT: UEFI refuses FAT32 with few clusters.
    code = (block_size // 128).bit_length() - 1
    geometry = ("-S", str(code), "-T", str(blocks), "-h", "255", "-s", "63")
    _mtools(mtools, "mformat", partition, *geometry, "::")
    for folder in ("EFI", "EFI/BOOT", "EFI/debian"):
        _mtools(mtools, "mmd", partition, f"::{folder}")
    with tempfile.TemporaryDirectory() as scratch:
        for number, (name, content) in enumerate(files.items()):
            source = Path(scratch, str(number))
            source.write_bytes(content)
            _mtools(mtools, "mcopy", partition, str(source), f"::{name}")


def _mtools(mtools: PackageSet, verb: str, partition: str, *arguments: str) -> None:
    """Run a command of mtools; they are one program, told apart by its first argument."""
    _run([*mtools.command("usr/bin/mtools"), "-c", verb, "-i", partition, *arguments])


def _run(command: Sequence[str]) -> None:
    environment = {**os.environ, "MTOOLS_SKIP_CHECK": "1"}
    subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL, env=environment)
