"""A disk that nobody hands over: its BAR moves under a running Linux, and another Linux takes it over.

The controller is on the root bus. There Linux places BAR0 above 4 GiB when it has the choice; behind a port
it may not, as BAR0 is not prefetchable.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from outboard import Server
from outboard.devices.nvme import Nvme
from outboard.storage import RamStorage
from outboard.testing.guest import Attach, Guest, find_kernel
from outboard.testing.guest.initramfs import build_initramfs
from tests.guest.linux import (
    MIB,
    Registers,
    bar,
    checksum,
    complaints,
    disk_of,
    keep_writing,
    stored,
    write_random,
)

pytestmark = pytest.mark.guest

TOOLS = ["pciutils", "kexec-tools"]
DISK = RamStorage(64 * MIB)
KERNEL, INITRAMFS = 2, 3
"""The namespaces that hold what is to take over."""

VERSION, VERSION_2_0 = 0x08, 0x0002_0000
"""A register, and what it says."""

FOUR_GIB = 1 << 32
FAR_AWAY = 0x7_1234_0000


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """A machine whose disks hold the kernel and the initramfs that it runs, and with room for both."""
    folder = tmp_path_factory.mktemp("takeover")
    kernel = find_kernel()
    disks = [DISK, holding(kernel.image), holding(build_initramfs(kernel, TOOLS))]
    with (
        Server(Nvme(*disks), folder / "nvme.sock").start(),
        Guest(
            [Attach(folder / "nvme.sock", port=False)],
            tools=TOOLS,
            append="crashkernel=160M",
            spare_ports=0,
            logs=folder,
        ) as guest,
    ):
        yield guest


def holding(file: Path) -> RamStorage:
    """A disk with the content of a file, and zeros up to the next block."""
    content = file.read_bytes()
    storage = RamStorage(len(content) + -len(content) % 4096)
    storage.write(0, content)
    return storage


def address_of(guest: Guest) -> str:
    """The controller's address on the PCI bus."""
    return guest.run("basename $(readlink -f /sys/class/nvme/nvme*/device)").strip()


@pytest.mark.point("PCI06")
def test_bar0_answers_where_it_is_put_and_works_above_4_gib(machine: Guest) -> None:
    controller, written = address_of(machine), write_random(machine, disk_of(machine))
    before = bar(machine, controller)
    machine.run(f"echo {controller} >/sys/bus/pci/drivers/nvme/unbind && setpci -s {controller} COMMAND=2:2")
    assert before[VERSION] == VERSION_2_0
    there = f"BASE_ADDRESS_1={FAR_AWAY >> 32:x} BASE_ADDRESS_0={FAR_AWAY % FOUR_GIB:x}"
    machine.run(f"setpci -s {controller} COMMAND=0:2 {there} COMMAND=2:2")
    assert Registers(machine, FAR_AWAY)[VERSION] == VERSION_2_0 != before[VERSION]
    # Linux places it once more, and gives it to the driver.
    machine.run(f"echo 1 >/sys/bus/pci/devices/{controller}/remove; echo 1 >/sys/bus/pci/rescan")
    disk = disk_of(machine)
    assert FOUR_GIB <= bar(machine, controller).base != FAR_AWAY
    assert Registers(machine, FAR_AWAY)[VERSION] != VERSION_2_0
    assert checksum(machine, disk) == stored(DISK) == written
    assert write_random(machine, disk, at=8) == stored(DISK, at=8) == checksum(machine, disk, at=8)
    assert complaints(machine) == []


START = {"-l": "kexec -e", "-p": "echo c >/proc/sysrq-trigger"}
"""What starts a kernel, by the option it was loaded with: a reboot that leaves firmware out, or a panic."""


@pytest.mark.point("S04")
@pytest.mark.parametrize("option", START, ids=["by kexec", "after a panic"])
def test_another_kernel_takes_over_amid_writes(machine: Guest, option: str) -> None:
    disk = disk_of(machine)
    written = write_random(machine, disk)
    for file, nsid in (("kernel", KERNEL), ("initramfs", INITRAMFS)):
        machine.run(f"cat {disk_of(machine, nsid)} >/tmp/{file}")
    machine.run(f"kexec -s {option} /tmp/kernel --initrd=/tmp/initramfs --reuse-cmdline && rm /tmp/kernel")
    keep_writing(machine, disk)
    machine.reboot(command=START[option])
    disk = disk_of(machine)
    assert checksum(machine, disk) == stored(DISK) == written
    assert write_random(machine, disk, at=8) == stored(DISK, at=8) == checksum(machine, disk, at=8)
    assert complaints(machine) == []
