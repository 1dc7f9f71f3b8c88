"""Flexible data placement as nvme-cli in an unmodified Linux sees it (Z02)."""

import re

import pytest

from outboard import Server
from outboard.devices.nvme import Namespace, Nvme, PlacementLayout, Subsystem
from outboard.storage import RamStorage
from outboard.testing.guest import Guest
from tests.guest.linux import MIB, complaints, disk_of

pytestmark = [pytest.mark.guest, pytest.mark.point("Z02")]


def test_nvme_cli_places_data(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("placement")
    space = Namespace(RamStorage(64 * MIB), 4096, placement_handles=(0, 1))
    group = PlacementLayout(handles=4, groups=2, unit=16 * MIB)
    controller = Nvme(subsystem=Subsystem(space, placement=group))
    with (
        Server(controller, folder / "nvme.sock").start(),
        Guest([folder / "nvme.sock"], tools=["nvme-cli"], logs=folder) as guest,
    ):
        disk = disk_of(guest)
        assert "Number of Reclaim Unit Handles: 4" in guest.run("nvme fdp configs /dev/nvme0 -e 1")
        assert "Host Specified" in guest.run("nvme fdp usage /dev/nvme0 -e 1")
        guest.run(f"nvme fdp set-events {disk} -p 1 -e 0 --enable -t 0")
        guest.run("head -c 8192 /dev/urandom >/tmp/data")
        guest.run(f"nvme write {disk} -s 0 -c 1 -z 8192 -d /tmp/data -T 2 -S 1")
        status = guest.run(f"nvme fdp status {disk}")
        assert re.findall(r"\(RUAMW\): (\d+)", status) == ["4096", "4096", "4094", "4096"]
        guest.run(f"nvme fdp update {disk} -p 1")
        statistics = guest.run("nvme fdp stats /dev/nvme0 -e 1")
        assert "8192" in statistics or "8,192" in statistics
        assert "Reclaim Unit Not Fully Written" in guest.run("nvme fdp events /dev/nvme0 -e 1 --host-events")
        assert complaints(guest) == []
