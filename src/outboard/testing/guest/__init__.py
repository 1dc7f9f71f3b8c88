"""Virtual machines that use a device as any machine would: a real QEMU, a real Linux, its own drivers.

Nothing is installed and no root is needed: QEMU (where the system has none of 10.1 or later), the
kernel and the tools are Debian packages, fetched once into ``~/.cache/outboard``.

* `guest`: `Guest`: start it, run commands in it, reboot, unplug, pull the cord
* `command_line`: `Attach`: how a device is attached; what QEMU is told
* `commands`, `console`, `qmp`: talking to the shell inside, to its console, to QEMU
* `qemu`, `kernel`: `find_qemu`, `find_kernel`: what it is run by and what it runs
* `initramfs`, `init.sh`, `cpio`, `elf`: the guest's root file system, made of tools and what they need
* `packages`, `sources`: Debian packages without root, from the machine's own mirror
* `bootsector`: a disk that firmware can boot, in two sectors of machine code
* `linux_disk`: a disk from which every firmware boots a Linux
* `process`: QEMU never outlives us
"""

from outboard.testing.guest.bootsector import bootable_disk
from outboard.testing.guest.command_line import Attach
from outboard.testing.guest.guest import Guest
from outboard.testing.guest.kernel import CLOUD, EVERY_MACHINE, Kernel, find_kernel
from outboard.testing.guest.linux_disk import linux_disk
from outboard.testing.guest.packages import Progress, cache_folder
from outboard.testing.guest.qemu import Qemu, find_ovmf, find_qemu

__all__ = [
    "CLOUD",
    "EVERY_MACHINE",
    "Attach",
    "Guest",
    "Kernel",
    "Progress",
    "Qemu",
    "bootable_disk",
    "cache_folder",
    "find_kernel",
    "find_ovmf",
    "find_qemu",
    "linux_disk",
]
