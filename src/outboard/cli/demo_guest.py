"""The demonstration in a virtual machine: an unmodified Linux proves a disk with its own driver."""

from pathlib import Path

from outboard.cli.demo_steps import Report
from outboard.errors import GuestError
from outboard.testing.guest import Guest, find_kernel, find_qemu

APPEAR = "for i in $(seq 100); do [ -b /dev/nvme0n1 ] && break; sleep 0.1; done; "
"""The driver probes beside whoever asked it to."""

DISK = APPEAR + "cd /sys/block/nvme0n1; cat device/model; echo $(( $(cat size) * 512 )) bytes"
DRIVER = "dmesg | grep -o 'nvme nvme0: .*'"
MAKE = "mkfs.ext4 -F /dev/nvme0n1 2>&1 >/tmp/mkfs && grep '^Creating filesystem' /tmp/mkfs"
MOUNT = "mkdir -p /mnt && mount -t ext4 /dev/nvme0n1 /mnt && df -h /mnt | tail -n 1"
WRITE = "dd if=/dev/urandom of=/mnt/file bs=1M count=64 2>/dev/null && ls -l /mnt/file"
CHECKSUM = "sha256sum /mnt/file"
UNBIND = (
    "umount /mnt && basename $(readlink -f /sys/block/nvme0n1/device/device) >/tmp/slot && "
    "cat /tmp/slot >/sys/bus/pci/drivers/nvme/unbind && [ ! -b /dev/nvme0n1 ] && "
    'echo "$(cat /tmp/slot) has no driver, /dev/nvme0n1 is gone"'
)
BIND = f"cat /tmp/slot >/sys/bus/pci/drivers/nvme/bind && {APPEAR} ls -l /dev/nvme0n1"


def prove(socket: Path, size: int, model: str, report: Report) -> None:
    """Boot Linux on the disk that listens at ``socket`` and prove it, step by step.

    Raises:
        SetupError: no virtual machine can run here.
        GuestError: the guest failed, or found another disk or other data than it should.
    """
    guest = Guest([socket], tools=["e2fsprogs"], progress=report.progress)

    def provide() -> str:
        kernel = find_kernel(report.progress)
        return f"{find_qemu(report.progress)}, Linux {kernel.image.name.removeprefix('vmlinuz-')}"

    def boot() -> str:
        guest.start()
        return guest.run("uname -srm")

    def find() -> str:
        said = guest.run(DISK)
        name, capacity, *_ = said.splitlines()
        if name.strip() != model or capacity != f"{size} bytes":
            raise GuestError(f"the guest found another disk than {model!r} of {size} bytes: {said}")
        return said + guest.run(DRIVER)

    def verify() -> str:
        found = guest.run(CHECKSUM)
        if found != written:
            raise GuestError(
                f"the file came back different: {written.strip()} was written, {found.strip()} is read"
            )
        return found

    def switch_off() -> str:
        guest.run("umount /mnt")
        guest.shutdown()
        return ""

    report.step("provide QEMU and a kernel", provide)
    try:
        report.step("boot Linux", boot)
        report.step("find the disk", find)
        report.step("make a file system", lambda: guest.run(MAKE))
        report.step("mount it", lambda: guest.run(MOUNT))
        report.step("write 64 MiB", lambda: guest.run(WRITE))
        report.step("sync", lambda: guest.run("sync"))
        written = report.step("take the checksum", lambda: guest.run(CHECKSUM))
        report.step("unmount, take the driver away", lambda: guest.run(UNBIND))
        report.step("give the driver back", lambda: guest.run(BIND))
        report.step("mount again", lambda: guest.run(MOUNT))
        report.step("verify the checksum", verify)
        report.step("switch off", switch_off)
    finally:
        guest.kill()
