"""A machine whose memory no server can map (plain ``-m``): DMA goes by messages."""

import pytest

from outboard.devices.nvme import Nvme
from outboard.pytest_plugin import MakeGuest
from outboard.storage import open_storage
from tests.guest.linux import checksum, complaints, disk_of, fio, stored, write_random


@pytest.mark.guest
@pytest.mark.point("P143")
def test_a_disk_works_by_messages_alone(guest: MakeGuest) -> None:
    storage = open_storage("ram:64M")
    machine = guest(Nvme(storage), shared=False, tools=["e2fsprogs", "fio"])
    disk = disk_of(machine)
    machine.run(fio(disk), timeout=120)
    machine.run(f"mkfs.ext4 -q {disk} && mount {disk} /mnt")
    machine.run("dd if=/dev/urandom of=/mnt/file bs=1M count=8 && md5sum /mnt/file >/tmp/sum", timeout=120)
    machine.run(f"umount /mnt && mount {disk} /mnt && md5sum -c /tmp/sum && umount /mnt", timeout=120)
    written = write_random(machine, disk, at=32)
    assert checksum(machine, disk, at=32) == stored(storage, at=32) == written
    assert complaints(machine) == []
