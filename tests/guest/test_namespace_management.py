"""Linux and nvme-cli manage a drive: namespaces come, change and go while others are used."""

import hashlib
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from outboard import Server
from outboard.devices.nvme import FolderPool, Nvme, Store, Subsystem
from outboard.storage import RamStorage
from outboard.testing.guest import Guest
from tests.guest.linux import MIB, checksum, complaints, disk_of, under, write_random

pytestmark = pytest.mark.guest

DEVICE = "/dev/nvme0"


class Lab:
    """A machine, and the subsystem its drive is."""

    def __init__(self, guest: Guest, subsystem: Subsystem) -> None:
        self.guest, self.subsystem = guest, subsystem

    def nvme(self, command: str) -> str:
        return self.guest.run(f"nvme {command}")

    def told(self, command: str) -> dict[str, Any]:
        """What nvme-cli says in JSON."""
        found = json.loads(self.nvme(f"{command} -o json"))
        assert isinstance(found, dict)
        return found

    def size(self, disk: str, expected: int) -> None:
        """Wait until Linux says that a disk has so many bytes."""
        self.guest.run(f"until [ $(blockdev --getsize64 {disk}) = {expected} ]; do :; done", timeout=20)

    def until(self, command: str, key: str, value: object) -> None:
        """Wait until nvme-cli says ``key: value``."""
        deadline = time.monotonic() + 20
        while self.told(command)[key] != value:
            assert time.monotonic() < deadline


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("management")
    subsystem = Subsystem(
        RamStorage(64 * MIB),
        serial="LAB-7",
        pool=FolderPool(folder / "spaces", 256 * MIB),
        store=Store(folder / "state.json"),
    )
    with (
        Server(Nvme(subsystem=subsystem), folder / "nvme.sock").start(),
        Guest([folder / "nvme.sock"], tools=["nvme-cli", "fio"], logs=folder) as guest,
    ):
        yield Lab(guest, subsystem)


@pytest.mark.point("M01", "M02")
def test_a_namespace_is_made_used_formatted_and_deleted(lab: Lab) -> None:
    guest = lab.guest
    kept = write_random(guest, disk_of(guest, 1))
    said = lab.nvme(f"create-ns {DEVICE} --nsze=131072 --ncap=131072 --flbas=0 --nmic=1")
    assert "created nsid:2" in said
    assert lab.told(f"id-ctrl {DEVICE}")["unvmcap"] == 192 * MIB
    lab.nvme(f"attach-ns {DEVICE} --namespace-id=2 --controllers=1")
    disk = disk_of(guest, 2)
    lab.size(disk, 64 * MIB)
    written = write_random(guest, disk)
    assert checksum(guest, disk) == written
    lab.nvme(f"format {DEVICE} --namespace-id=2 --lbaf=1 --ses=1 --force")
    guest.run(f"until [ $(blockdev --getss {disk}) = 4096 ]; do :; done", timeout=20)
    assert checksum(guest, disk) == hashlib.md5(bytes(4 * MIB)).hexdigest()
    again = write_random(guest, disk)
    assert checksum(guest, disk) == again
    lab.nvme(f"detach-ns {DEVICE} --namespace-id=2 --controllers=1")
    guest.run(f"until [ ! -e {disk} ]; do :; done", timeout=20)
    lab.nvme(f"attach-ns {DEVICE} --namespace-id=2 --controllers=1")
    assert checksum(guest, disk_of(guest, 2)) == again
    lab.nvme(f"delete-ns {DEVICE} --namespace-id=2")
    assert lab.nvme(f"list-ns {DEVICE} --all").splitlines()[-1] == "[   0]:0x1"
    assert checksum(guest, disk_of(guest, 1)) == kept
    assert complaints(guest) == []


@pytest.mark.point("M05", "E02")
def test_linux_follows_namespaces_that_come_grow_shrink_and_go(lab: Lab) -> None:
    guest = lab.guest
    space = lab.subsystem.add(RamStorage(32 * MIB))
    disk = disk_of(guest, space.nsid)
    lab.size(disk, 32 * MIB)
    written = write_random(guest, disk)
    load = (
        "fio --name=load --filename=" + disk + " --rw=randwrite --bs=4k --size=8M --offset=8M --direct=1"
        " --ioengine=libaio --iodepth=16 --verify=crc32c --verify_fatal=1 --output-format=json"
    )
    with under(guest, load):
        for size in (64, 48, 128, 32):
            lab.subsystem.resize(space.nsid, size * MIB)
            lab.size(disk, size * MIB)
    assert checksum(guest, disk) == written
    lab.subsystem.remove(space.nsid).storage.close()
    guest.run(f"until [ ! -e {disk} ]; do :; done", timeout=20)
    assert complaints(guest) == []


@pytest.mark.point("M03", "M04", "L05")
def test_a_drive_is_tested_and_sanitized(lab: Lab) -> None:
    guest = lab.guest
    disk = disk_of(guest, 1)
    written = write_random(guest, disk)
    for code in (1, 2):
        lab.nvme(f"device-self-test {DEVICE} --namespace-id=1 --self-test-code={code}")
        lab.until(f"self-test-log {DEVICE}", "Current Device Self-Test Operation", 0)
    results = lab.told(f"self-test-log {DEVICE}")["List of Valid Reports"]
    assert [result["Self test code"] for result in results[:2]] == [2, 1]
    assert [result["Self test result"] for result in results[:2]] == [0, 0]
    assert checksum(guest, disk) == written
    lab.nvme(f"sanitize {DEVICE} --sanact=3 --owpass=2 --ovrpat=0x01020304 --no-dealloc")
    guest.run(f"until nvme sanitize-log {DEVICE} | grep -q 'SPROG.*65535'; do :; done", timeout=20)
    assert guest.run(f"dd if={disk} bs=4 count=1 iflag=fullblock 2>/dev/null | od -An -tx4").split() == [
        "01020304"
    ]
    again = write_random(guest, disk)
    assert checksum(guest, disk) == again
    assert complaints(guest) == []


@pytest.mark.point("M04", "S07")
def test_firmware_is_activated_while_linux_uses_the_drive(lab: Lab) -> None:
    guest = lab.guest
    disk = disk_of(guest, 1)
    written = write_random(guest, disk)
    guest.run("printf 'outboard-firmware 1.1\n' >/tmp/image && truncate -s 16384 /tmp/image")
    lab.nvme(f"fw-download {DEVICE} --fw=/tmp/image --xfer=4096")
    lab.nvme(f"fw-commit {DEVICE} --slot=2 --action=3")
    # Linux holds everything back while it sees that processing is paused.
    guest.run("until [ $(cat /sys/class/nvme/nvme0/state) = live ]; do :; done", timeout=20)
    assert lab.told(f"id-ctrl {DEVICE}")["fr"].strip() == "1.1"
    assert "1.1" in lab.nvme(f"fw-log {DEVICE}")
    assert checksum(guest, disk) == written
    assert complaints(guest) == []


@pytest.mark.point("F03")
def test_a_write_protected_namespace_is_read_and_not_written(lab: Lab) -> None:
    guest = lab.guest
    disk = disk_of(guest, 1)
    written = write_random(guest, disk)
    protect = f"set-feature {DEVICE} --namespace-id=1 --feature-id=0x84"
    lab.nvme(f"{protect} --value=1")
    write = f"dd if=/dev/zero of={disk} bs=4096 count=1 oflag=direct 2>/dev/null"
    assert guest.run(f"{write} && echo written || echo refused").strip() == "refused"
    assert checksum(guest, disk) == written
    lab.nvme(f"{protect} --value=0")
    assert guest.run(f"{write} && echo written").strip() == "written"
