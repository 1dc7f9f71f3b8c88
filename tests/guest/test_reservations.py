"""Two machines on one namespace, which agree on who may write it: Linux's nvme-cli and blkpr."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from outboard import Server
from outboard.devices.nvme import Nvme, Store, Subsystem
from outboard.errors import GuestError
from outboard.storage import open_storage
from outboard.testing.guest import Guest
from tests.guest.linux import checksum, stored, write_random

pytestmark = pytest.mark.guest

DISK = "/dev/nvme0n1"
WRITE_EXCLUSIVE, EXCLUSIVE_ACCESS = 1, 2
NAMES = ("first-host-in-16", "second-host-a-16")
"""Host identifiers, of 16 bytes."""


class Shared:
    """A disk with a controller for each of two machines, and all that is kept of it in a file."""

    def __init__(self, folder: Path) -> None:
        self.storage = open_storage("ram:64M")
        self.sockets = [folder / f"{number}.sock" for number in range(2)]
        self._store = folder / "state.json"
        self.start()

    def start(self) -> None:
        subsystem = Subsystem(self.storage, serial="SHARED", multipath=True, store=Store(self._store))
        # No MSI-X, so that they can be unplugged.
        controllers = [Nvme(subsystem=subsystem, vectors=0) for _ in self.sockets]
        self._servers = [
            Server(controller, socket).start()
            for controller, socket in zip(controllers, self.sockets, strict=True)
        ]

    def end(self) -> None:
        """All of it but the storage is gone."""
        for server in self._servers:
            server.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    shared = Shared(tmp_path_factory.mktemp("shared"))
    yield shared
    shared.end()
    shared.storage.close()


@pytest.fixture(scope="module")
def machines(shared: Shared, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Guest]]:
    """Both machines, booted at the same time."""
    guests = [
        Guest(
            [socket],
            tools=["nvme-cli", "util-linux-extra"],
            cpus=1,
            memory="256M",
            logs=tmp_path_factory.mktemp("machine"),
        )
        for socket in shared.sockets
    ]
    try:
        with ThreadPoolExecutor(len(guests)) as pool:
            list(pool.map(Guest.start, guests))
        introduce(guests)
        yield guests
    finally:
        for guest in guests:
            guest.kill()


def introduce(guests: list[Guest]) -> None:
    """Wait for the disk, and say who each host is."""
    for guest, name in zip(guests, NAMES, strict=True):
        guest.run(f"until [ -b {DISK} ]; do :; done")
        guest.run(f"printf {name} >/tmp/name && nvme set-feature /dev/nvme0 -f 0x81 -V 1 -l 16 -d /tmp/name")


def reservation(guest: Guest, command: str, **options: int | str) -> str:
    """Run one of nvme-cli's reservation commands."""
    words = " ".join(f"--{name}={value}" for name, value in options.items())
    return guest.run(f"nvme resv-{command} {DISK} -n 1 {words}")


def report(guest: Guest) -> tuple[int, dict[str, tuple[int, int]]]:
    """The type of the reservation, and by host whether it holds it and the key."""
    found: dict[str, Any] = json.loads(reservation(guest, "report", **{"output-format": "json"}))
    hosts = {
        bytes.fromhex(each["hostid"]).decode(): (each["rcsts"], each["rkey"]) for each in found["regctlext"]
    }
    return found["rtype"], hosts


def conflicts(guest: Guest, command: str) -> bool:
    """Whether the kernel fails what a command does for a reservation (EBADE); True or the error is raised."""
    with pytest.raises(GuestError) as failed:
        guest.run(command)
    return "Invalid exchange" in str(failed.value.output)


WRITE = f"dd if=/dev/zero of={DISK} bs=4k count=1 oflag=direct"
READ = f"dd if={DISK} of=/dev/null bs=4k count=1 iflag=direct"


@pytest.mark.point("N14", "Z04")
def test_a_host_that_reserves_the_disk_has_it_for_itself(machines: list[Guest], shared: Shared) -> None:
    first, second = machines
    written = write_random(first, DISK)
    assert checksum(second, DISK) == stored(shared.storage) == written
    reservation(first, "register", nrkey=0x11, rrega=0, cptpl=0)
    reservation(first, "acquire", crkey=0x11, rtype=WRITE_EXCLUSIVE, racqa=0)
    assert report(second) == (WRITE_EXCLUSIVE, {NAMES[0]: (1, 0x11)})
    assert conflicts(second, WRITE)
    assert checksum(second, DISK) == written
    with pytest.raises(GuestError, match="Reservation Conflict"):
        reservation(second, "acquire", crkey=0x22, rtype=EXCLUSIVE_ACCESS, racqa=0)
    reservation(first, "release", crkey=0x11, rtype=WRITE_EXCLUSIVE, rrela=0)
    second.run(WRITE)
    first.run(READ)


@pytest.mark.point("N14")
def test_a_host_preempts_another_one_which_hears_of_it(machines: list[Guest]) -> None:
    first, second = machines
    reservation(second, "register", nrkey=0x22, rrega=0, cptpl=0)
    reservation(first, "acquire", crkey=0x11, rtype=EXCLUSIVE_ACCESS, racqa=0)
    assert conflicts(second, READ)
    reservation(second, "acquire", crkey=0x22, prkey=0x11, rtype=EXCLUSIVE_ACCESS, racqa=2)
    assert report(first) == (EXCLUSIVE_ACCESS, {NAMES[1]: (1, 0x22)})
    assert conflicts(first, READ)
    second.run(WRITE)
    assert "Registration Preempted" in first.run("nvme resv-notif-log /dev/nvme0")
    assert "Empty" in first.run("nvme resv-notif-log /dev/nvme0")
    reservation(second, "release", crkey=0x22, rrela=1)
    assert report(first) == (0, {})


@pytest.mark.point("N14")
def test_linux_itself_reserves_and_a_restart_changes_nothing(machines: list[Guest], shared: Shared) -> None:
    first, second = machines
    first.run(f"blkpr -c register -k 0x11 {DISK}")
    first.run(f"blkpr -c reserve -k 0x11 -t exclusive-access {DISK}")
    second.run(f"blkpr -c register -k 0x22 {DISK}")
    assert conflicts(second, WRITE)
    held = report(first)
    assert held == (EXCLUSIVE_ACCESS, {NAMES[0]: (1, 0x11), NAMES[1]: (0, 0x22)})
    for guest in machines:
        guest.unplug("dev0")
    shared.end()
    shared.start()
    for guest, socket in zip(machines, shared.sockets, strict=True):
        guest.plug(socket)
    introduce(machines)
    assert report(first) == held
    assert conflicts(second, WRITE)
    first.run(WRITE)
    # To Linux -K is one's own key, and -k that of who is preempted.
    second.run(f"blkpr -c preempt -K 0x22 -k 0x11 -t write-exclusive {DISK}")
    assert conflicts(first, WRITE)
    first.run(READ)
    second.run(f"blkpr -c clear -k 0x22 {DISK}")
    first.run(WRITE)


@pytest.mark.point("Z04", "P145")
def test_a_machine_that_is_killed_leaves_the_other_one_its_disk(
    machines: list[Guest], shared: Shared
) -> None:
    first, second = machines
    write = f"dd if=/dev/zero of={DISK} bs=64k count=64 seek=512 oflag=direct"
    second.run(f"while {write}; do :; done </dev/null >/dev/null 2>&1 &")
    second.run(READ)
    second.kill()
    written = write_random(first, DISK)
    assert checksum(first, DISK) == stored(shared.storage) == written
