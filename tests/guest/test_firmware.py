"""What firmware makes of an NVMe disk: both kinds read it by a driver of their own, without interrupts."""

from pathlib import Path

import pytest

from outboard.devices.nvme import Nvme
from outboard.devices.nvme.namespace import Names
from outboard.pytest_plugin import MakeGuest, Serve
from outboard.storage import open_storage
from outboard.testing.guest import Attach, bootable_disk

pytestmark = pytest.mark.guest


@pytest.fixture
def disk(serve: Serve, tmp_path: Path) -> Attach:
    """A disk that PC firmware can boot, first in the boot order."""
    image = tmp_path / "boot.img"
    image.write_bytes(bootable_disk("a sentence of the disk", "and another"))
    path = serve(Nvme(open_storage(str(image)), serial="LAB-7")).path
    assert path is not None
    return Attach(path, bootindex=0)


@pytest.mark.point("B01", "P147")
def test_seabios_boots_from_the_disk(guest: MakeGuest, disk: Attach) -> None:
    machine = guest(disk, kernel=None)
    machine.wait_for("a sentence of the disk")
    machine.wait_for("and another")
    machine.reboot()
    machine.wait_for("and another")


@pytest.mark.point("P147", "I05")
def test_ovmf_offers_the_disk_under_its_own_name(guest: MakeGuest, disk: Attach) -> None:
    machine = guest(disk, kernel=None, firmware="ovmf")
    name = Names.derive("LAB-7", 1).eui64[::-1].hex("-").upper()
    machine.wait_for('Boot0001 "UEFI outboard NVMe LAB-7 1"', timeout=120)
    machine.wait_for(f"NVMe(0x1,{name})")
