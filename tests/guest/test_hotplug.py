"""Disks that come and go while the machine runs, and servers that die under it.

The controllers have no MSI-X: QEMU up to 11.1 ends itself when a vfio-user device with it is unplugged.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from outboard.testing.guest import Guest
from tests.guest.linux import MIB, checksum, complaints, disk_of, in_file, write_random
from tests.guest.programs import footprint, serving

pytestmark = pytest.mark.guest


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """A machine without a disk, and a root port to plug one into."""
    with Guest(tools=["pciutils"], logs=tmp_path_factory.mktemp("hotplug")) as guest:
        yield guest


@pytest.fixture
def image(tmp_path: Path) -> Path:
    with (path := tmp_path / "disk.img").open("wb") as file:
        file.truncate(64 * MIB)
    return path


@pytest.mark.point("S05", "P142", "P145", "P148")
@pytest.mark.parametrize("times", [20, pytest.param(200, marks=pytest.mark.soak)])
def test_a_disk_plugged_many_times_leaves_nothing_behind(machine: Guest, image: Path, times: int) -> None:
    socket = image.with_name("disk.sock")
    with serving(socket, "--namespace", image, "--vectors", "0") as server:
        # What a server starts for its first guest it keeps.
        machine.unplug(machine.plug(socket))
        before = footprint(server, socket)
        for _ in range(times):
            name = machine.plug(socket)
            disk_of(machine)
            machine.unplug(name)
        name = machine.plug(socket)
        written = write_random(machine, disk_of(machine))
        assert checksum(machine, disk_of(machine)) == in_file(image) == written
        assert complaints(machine) == []
        machine.unplug(name)
        assert footprint(server, socket) == before


@pytest.mark.point("P145", "N04", "S04")
def test_a_killed_server_loses_nothing_flushed_and_the_next_one_is_plugged_in(
    machine: Guest, image: Path
) -> None:
    socket = image.with_name("disk.sock")
    with serving(socket, "--namespace", image, "--vectors", "0") as server:
        name = machine.plug(socket)
        written = write_random(machine, disk_of(machine))
        server.process.kill()
        server.process.wait()
        assert in_file(image) == written
    address = machine.run("basename $(readlink -f /sys/class/nvme/nvme*/device)").strip()
    bar = machine.run(f"head -n1 /sys/bus/pci/devices/{address}/resource").split()[0]
    machine.run(f"echo {address} >/sys/bus/pci/drivers/nvme/unbind")
    assert machine.run(f"setpci -s {address} COMMAND=2:2; devmem {bar} 32").strip() == "0xFFFFFFFF"
    machine.unplug(name)
    with serving(socket, "--namespace", image, "--vectors", "0"):
        name = machine.plug(socket)
        assert checksum(machine, disk_of(machine)) == written
        machine.unplug(name)
