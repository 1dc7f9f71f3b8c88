"""A guest with a virtual IOMMU: the device reaches what the guest's kernel maps for it, page by page."""

import pytest

from outboard.devices.nvme import Nvme
from outboard.pytest_plugin import MakeGuest
from outboard.storage import open_storage
from tests.guest.linux import checksum, complaints, disk_of, stored, write_random

IOMMU = ["-device", "intel-iommu,caching-mode=on"]


@pytest.mark.guest
@pytest.mark.point("P149", "PCI02")
def test_a_disk_behind_an_iommu_survives_its_reset(guest: MakeGuest) -> None:
    storage = open_storage("ram:64M")
    machine = guest(Nvme(storage), extra=IOMMU, append="intel_iommu=on iommu.strict=1")
    written = write_random(machine, disk_of(machine))
    assert stored(storage) == written
    machine.reboot()
    assert checksum(machine, disk_of(machine)) == written
    assert write_random(machine, disk_of(machine), at=32) == stored(storage, at=32)
    assert complaints(machine) == []
