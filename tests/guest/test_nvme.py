"""An NVMe controller with two namespaces and an unmodified Linux that spreads its queues over MSI-X."""

import re
from collections.abc import Iterator

import pytest

from outboard import Server
from outboard.devices.nvme import Namespace, Nvme
from outboard.storage import open_storage
from outboard.testing.guest import Guest
from tests.guest.linux import checksum, complaints, disk_of, fio, interrupts, write_random

pytestmark = pytest.mark.guest

SMALL_BLOCKS, LARGE_BLOCKS = open_storage("ram:128M"), open_storage("ram:64M")
PCI = "0000:01:00.0"


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """One machine for all tests: booting takes longer than any of them."""
    folder = tmp_path_factory.mktemp("nvme")
    controller = Nvme(SMALL_BLOCKS, Namespace(LARGE_BLOCKS, block_size=4096), serial="LAB-7")
    with (
        Server(controller, folder / "nvme.sock").start(),
        Guest(
            [folder / "nvme.sock"],
            tools=["e2fsprogs", "fio", "nvme-cli", "pciutils"],
            logs=folder,
        ) as guest,
    ):
        yield guest


@pytest.mark.point("P141", "PCI01")
def test_linux_finds_the_controller_and_both_namespaces(machine: Guest) -> None:
    capabilities = machine.run(f"lspci -vvv -s {PCI}")
    for words in (
        "size=16K",
        "Power Management version 3",
        "Express (v2) Endpoint",
        "MSI-X: Enable+ Count=129",
    ):
        assert words in capabilities
    assert "Kernel driver in use: nvme" in capabilities
    assert machine.run("cat /sys/class/nvme/nvme0/model").strip() == "outboard NVMe"
    for nsid, storage, block_size in ((1, SMALL_BLOCKS, 512), (2, LARGE_BLOCKS, 4096)):
        disk = disk_of(machine, nsid)
        assert int(machine.run(f"blockdev --getsize64 {disk}")) == storage.size
        assert int(machine.run(f"blockdev --getss {disk}")) == block_size
    assert complaints(machine) == []


@pytest.mark.point("N03", "Q17", "P142", "P143")
def test_fio_verifies_what_it_wrote_at_depth_32_from_several_queues(machine: Guest) -> None:
    before = interrupts(machine, "nvme0q")
    machine.run(fio(disk_of(machine, 1), disk_of(machine, 2)), timeout=120)
    after = interrupts(machine, "nvme0q")
    assert {"nvme0q0", "nvme0q1", "nvme0q2"} == {*after}
    assert all(after[queue] > before[queue] for queue in ("nvme0q1", "nvme0q2"))
    assert complaints(machine) == []


@pytest.mark.parametrize("nsid", [1, 2])
def test_a_file_system_gives_back_what_was_written(machine: Guest, nsid: int) -> None:
    disk = disk_of(machine, nsid)
    machine.run(f"mkfs.ext4 -q {disk} && mount {disk} /mnt")
    machine.run("dd if=/dev/urandom of=/mnt/file bs=1M count=8 && md5sum /mnt/file >/tmp/sum")
    machine.run(f"umount /mnt && mount {disk} /mnt && md5sum -c /tmp/sum && umount /mnt")
    machine.run(f"e2fsck -fn {disk}")
    assert complaints(machine) == complaints(machine, "EXT4-fs") == []


def test_nvme_cli_understands_the_controller(machine: Guest) -> None:
    assert re.search(r"sn +: LAB-7 ", machine.run("nvme id-ctrl /dev/nvme0"))
    listed = machine.run("nvme list")
    assert "512   B +  0 B" in listed
    assert "4 KiB +  0 B" in listed
    assert re.search(r"critical_warning\s+: 0\n", machine.run("nvme smart-log /dev/nvme0"))
    assert complaints(machine) == []


@pytest.mark.point("S05")
@pytest.mark.parametrize("times", [20, pytest.param(200, marks=pytest.mark.soak)])
def test_the_driver_lets_go_and_comes_back_many_times(machine: Guest, times: int) -> None:
    written = write_random(machine, disk_of(machine))
    driver = "/sys/bus/pci/drivers/nvme"
    turn = f"echo {PCI} >{driver}/unbind && echo {PCI} >{driver}/bind || exit 1"
    machine.run(f"for turn in $(seq {times}); do {turn}; done", timeout=6 * times)
    assert checksum(machine, disk_of(machine)) == written
    machine.run(fio(disk_of(machine, 2), size="1M"))
    assert complaints(machine) == []


@pytest.mark.point("S02")
def test_a_function_level_reset_recovers(machine: Guest) -> None:
    written = write_random(machine, disk_of(machine))
    machine.run(f"echo 1 >/sys/bus/pci/devices/{PCI}/reset")
    assert checksum(machine, disk_of(machine)) == written
    assert complaints(machine) == []
