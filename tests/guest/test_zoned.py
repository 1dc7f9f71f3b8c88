"""Zoned namespaces beside an ordinary one, and an unmodified Linux with file systems made for zones (Z01)."""

import re
from collections.abc import Iterator

import pytest

from outboard import Server
from outboard.devices.nvme import Namespace, Nvme, ZoneLayout, ZoneState
from outboard.storage import RamStorage
from outboard.testing.guest import EVERY_MACHINE, Guest, find_kernel
from tests.guest.linux import MIB, complaints, disk_of

pytestmark = [pytest.mark.guest, pytest.mark.point("Z01")]

SMALL, LARGE = 1, 2
ORDINARY = 3
SMALL_ZONES = ZoneLayout(size=4 * MIB, capacity=3 * MIB, most_active=6, most_open=4, extension=64)


@pytest.fixture(scope="module")
def controller() -> Nvme:
    return Nvme(
        Namespace(RamStorage(64 * MIB), zoned=SMALL_ZONES),
        Namespace(RamStorage(512 * MIB), block_size=4096, zoned=ZoneLayout(size=4 * MIB)),
        Namespace(RamStorage(64 * MIB), block_size=4096),
    )


@pytest.fixture(scope="module")
def machine(controller: Nvme, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """One machine for all tests; only the large kernel has f2fs."""
    folder = tmp_path_factory.mktemp("zoned")
    with (
        Server(controller, folder / "nvme.sock").start(),
        Guest(
            [folder / "nvme.sock"],
            kernel=find_kernel(package=EVERY_MACHINE),
            modules=["nvme", "f2fs", "zonefs", "crc32_generic"],
            tools=["f2fs-tools", "fio", "nvme-cli", "util-linux", "zonefs-tools"],
            logs=folder,
        ) as guest,
    ):
        yield guest


def test_linux_sees_zones_and_their_limits(machine: Guest) -> None:
    for nsid, kind in ((SMALL, "host-managed"), (LARGE, "host-managed"), (ORDINARY, "none")):
        queue = f"/sys/block/{disk_of(machine, nsid)[5:]}/queue"
        assert machine.run(f"cat {queue}/zoned").strip() == kind
    queue = f"/sys/block/{disk_of(machine, SMALL)[5:]}/queue"
    numbers = machine.run(f"cd {queue} && cat chunk_sectors max_open_zones max_active_zones nr_zones")
    assert numbers.split() == ["8192", "4", "6", "16"]
    report = machine.run(f"blkzone report {disk_of(machine, SMALL)}").splitlines()
    assert len(report) == 16
    assert all("len 0x002000, cap 0x001800" in line and "1(em)" in line for line in report)
    assert complaints(machine) == []


def test_nvme_cli_manages_zones(machine: Guest, controller: Nvme) -> None:
    disk = disk_of(machine, SMALL)
    machine.run("head -c 64 /dev/zero | tr '\\0' 'e' >/tmp/extension; head -c 4096 /dev/zero >/tmp/data")
    machine.run(f"nvme zns open-zone {disk} -s 0")
    machine.run(f"nvme zns zone-append {disk} -s 0x2000 -z 4096 -d /tmp/data")
    appended = machine.run(f"nvme zns zone-append {disk} -s 0x2000 -z 4096 -d /tmp/data")
    assert "LBA 2008" in appended
    machine.run(f"nvme zns set-zone-desc {disk} -s 0x4000 -d /tmp/extension")
    machine.run(f"nvme zns finish-zone {disk} -s 0x6000")
    zones = controller.namespaces[SMALL].zones
    assert zones is not None
    zones.set_state(4, ZoneState.OFFLINE)
    report = machine.run(f"nvme zns report-zones {disk} -d 5")
    assert re.findall(r"State: (0x\w+)", report) == ["0x30", "0x20", "0x40", "0xe0", "0xf0"]
    assert f"zid 000: {0x8000}" in machine.run(f"nvme zns changed-zone-list {disk}")
    machine.run(f"nvme zns reset-zone {disk} -a")
    assert machine.run(f"nvme zns report-zones {disk} -d 16").count("State: 0x10") == 15


@pytest.mark.parametrize("rw", ["write", "randwrite"])
def test_fio_verifies_what_it_wrote_to_zones(machine: Guest, rw: str) -> None:
    disk = disk_of(machine, LARGE)
    options = "--zonemode=zbd --direct=1 --ioengine=io_uring --iodepth=8 --max_open_zones=4 --verify=crc32c"
    machine.run(f"fio --name=zones --filename={disk} {options} --rw={rw} --bs=64k --size=8M", timeout=60)
    machine.run(f"blkzone reset {disk}")
    assert complaints(machine) == []


def test_zonefs_appends_to_its_files(machine: Guest) -> None:
    disk = disk_of(machine, LARGE)
    machine.run(f"mkzonefs -f {disk} && mount -t zonefs {disk} /mnt")
    machine.run("dd if=/dev/urandom of=/tmp/noise bs=64k count=20")
    machine.run("dd if=/tmp/noise of=/mnt/seq/0 bs=64k oflag=direct,append conv=notrunc")
    machine.run("cmp /tmp/noise /mnt/seq/0")
    machine.run(f"umount /mnt && mount -t zonefs {disk} /mnt && cmp /tmp/noise /mnt/seq/0 && umount /mnt")
    assert complaints(machine) == complaints(machine, "zonefs") == []


def test_f2fs_lives_on_zones_with_its_metadata_on_the_ordinary_namespace(machine: Guest) -> None:
    zoned, ordinary = disk_of(machine, LARGE), disk_of(machine, ORDINARY)
    machine.run(f"mkfs.f2fs -f -m -c {zoned} {ordinary} && mount -t f2fs {ordinary} /mnt")
    machine.run("dd if=/dev/urandom of=/mnt/file bs=1M count=4 && md5sum /mnt/file >/tmp/sum")
    machine.run(f"umount /mnt && mount -t f2fs {ordinary} /mnt && md5sum -c /tmp/sum && umount /mnt")
    assert complaints(machine) == complaints(machine, "F2FS") == []
