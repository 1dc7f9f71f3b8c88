"""One disk by two controllers in one machine: Linux's own multipath, its paths worse, lost, and back again.

The controllers have no MSI-X: QEMU up to 11.1 ends itself when a vfio-user device with it is unplugged.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from outboard import Server
from outboard.devices.nvme import AnaState, Fault, Nvme, Subsystem
from outboard.storage import open_storage
from outboard.testing.guest import Guest
from tests.guest.linux import checksum, deep, stored, under, write_random

pytestmark = pytest.mark.guest

DISK = "/dev/shared"
"""A link: Linux names the disk after whichever controller it finds first."""

SOON = "nvme_core.io_timeout=4"
"""Seconds after which Linux looks at a controller that does not answer: thirty otherwise."""


class Paths:
    """A disk, its two controllers, and their servers."""

    def __init__(self, folder: Path) -> None:
        self.storage = open_storage("ram:64M")
        self.subsystem = Subsystem(self.storage, serial="TWO-PATHS")
        self.controllers = [Nvme(subsystem=self.subsystem, vectors=0) for _ in range(2)]
        self.sockets = [folder / f"path{number}.sock" for number in range(2)]
        self.servers = [self.serve(number) for number in range(2)]

    def serve(self, number: int) -> Server:
        return Server(self.controllers[number], self.sockets[number]).start()

    def commands(self, number: int) -> int:
        return self.controllers[number].statistics["commands"]

    def close(self) -> None:
        for server in self.servers:
            server.close()
        for controller in self.controllers:
            controller.close()
        self.storage.close()


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Paths]:
    paths = Paths(tmp_path_factory.mktemp("paths"))
    yield paths
    paths.close()


@pytest.fixture(scope="module")
def machine(paths: Paths, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """A machine with both."""
    logs = tmp_path_factory.mktemp("multipath")
    with Guest(paths.sockets, tools=["fio", "nvme-cli"], append=SOON, logs=logs) as guest:
        wait_for_states(guest, "optimized", "optimized")
        guest.run(f"until [ -b /dev/nvme*n1 ]; do :; done; ln -s /dev/nvme*n1 {DISK}")
        guest.run("echo round-robin >$(ls -d /sys/class/nvme-subsystem/nvme-subsys*)/iopolicy")
        yield guest


def wait_for_states(guest: Guest, *states: str) -> None:
    """Wait until the disk has paths of just these states, in any order."""
    wanted = "\n".join(sorted(states))
    guest.run(
        f"until [ \"$(cat /sys/block/nvme*c*n1/ana_state 2>/dev/null | sort)\" = '{wanted}' ]; do :; done"
    )


def errors(guest: Guest) -> list[str]:
    """What Linux said of commands that failed: none may, for there is a path all the time."""
    words = ("I/O error", "no available path", "no usable path")
    return [line for line in guest.run("dmesg").splitlines() if any(each in line for each in words)]


@pytest.mark.point("Z04")
def test_linux_takes_two_controllers_for_two_paths_to_one_disk(machine: Guest, paths: Paths) -> None:
    assert machine.run("cat /sys/module/nvme_core/parameters/multipath").strip() == "Y"
    shown = machine.run("nvme list-subsys")
    assert shown.count("live") == 2
    assert paths.subsystem.nqn in shown
    assert len(machine.run("ls -d /dev/nvme*n*").split()) == 1
    assert checksum(machine, DISK) == stored(paths.storage)
    assert write_random(machine, DISK) == stored(paths.storage)


@pytest.mark.point("Z04", "E02")
def test_a_path_that_gets_worse_is_left_alone(machine: Guest, paths: Paths) -> None:
    subsystem = paths.subsystem
    with under(machine, deep(DISK)):
        for number, state, name in (
            (0, AnaState.NON_OPTIMIZED, "non-optimized"),
            (1, AnaState.INACCESSIBLE, "inaccessible"),
            (0, AnaState.CHANGE, "change"),
            (1, AnaState.PERSISTENT_LOSS, "persistent-loss"),
        ):
            cntlid = paths.controllers[number].cntlid
            subsystem.set_ana(cntlid, 1, state)
            wait_for_states(machine, name, "optimized")
            before = [paths.commands(each) for each in range(2)]
            machine.run(f"dd if={DISK} of=/dev/null bs=4k count=64 iflag=direct")
            after = [paths.commands(each) for each in range(2)]
            assert after[1 - number] >= before[1 - number] + 64
            subsystem.set_ana(cntlid, 1, AnaState.OPTIMIZED)
            wait_for_states(machine, "optimized", "optimized")
    assert errors(machine) == []


@pytest.mark.point("Z04", "S05")
def test_a_path_is_unplugged_and_plugged_in_again_under_load(machine: Guest, paths: Paths) -> None:
    with under(machine, deep(DISK)):
        machine.unplug("dev1")
        wait_for_states(machine, "optimized")
        machine.plug(paths.sockets[1])
        wait_for_states(machine, "optimized", "optimized")
    assert errors(machine) == []


@pytest.mark.point("Z04")
def test_a_controller_that_fails_under_load_is_reset_and_used_again(machine: Guest, paths: Paths) -> None:
    fault = Fault(queue="io", controller=paths.controllers[1].cntlid, fatal=True, count=1)
    with under(machine, deep(DISK)):
        paths.subsystem.faults.inject(fault)
        machine.run("until dmesg | grep -q 'controller is down; will reset'; do :; done")
        machine.run("until [ $(cat /sys/class/nvme/*/state | grep -cx live) = 2 ]; do :; done")
        before = paths.commands(1)
        machine.run(f"dd if={DISK} of=/dev/null bs=4k count=64 iflag=direct")
        assert paths.commands(1) > before
    assert errors(machine) == []


@pytest.mark.point("Z04", "S04", "P145")
def test_a_path_whose_server_has_died_is_replaced(machine: Guest, paths: Paths) -> None:
    # Not under load: Linux may fail what it does anew while it gives a vanished controller up.
    paths.servers[1].close()
    machine.unplug("dev1")
    paths.servers[1] = paths.serve(1)
    machine.plug(paths.sockets[1])
    wait_for_states(machine, "optimized", "optimized")
    machine.run(deep(DISK))
    assert errors(machine) == []
    assert checksum(machine, DISK) == stored(paths.storage)
