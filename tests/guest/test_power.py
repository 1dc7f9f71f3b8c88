"""What is left of a disk's contents when machines end, well or badly."""

from pathlib import Path

import pytest

from outboard.errors import GuestError
from outboard.pytest_plugin import MakeGuest
from outboard.testing.guest import Guest
from tests.guest.linux import MIB, checksum, complaints, disk_of, in_file, keep_writing, write_random
from tests.guest.programs import footprint, serving


def panic(machine: Guest) -> None:
    with pytest.raises(GuestError, match="the guest panicked"):
        machine.run("echo c >/proc/sysrq-trigger")


@pytest.mark.guest
@pytest.mark.point("S04", "N04", "P145")
@pytest.mark.parametrize("reboots", [2, pytest.param(20, marks=pytest.mark.soak)])
def test_machines_that_reboot_panic_or_are_killed_amid_writes_leave_what_they_flushed_and_nothing_else(
    guest: MakeGuest, tmp_path: Path, reboots: int
) -> None:
    image, socket = tmp_path / "disk.img", tmp_path / "disk.sock"
    with image.open("wb") as file:
        file.truncate(64 * MIB)
    with serving(socket, "--namespace", image) as server:
        before = footprint(server, socket)
        first = guest(socket)
        for number in range(reboots):
            written = write_random(first, disk_of(first))
            keep_writing(first, disk_of(first))
            if panicked := number % 2 == 1:
                panic(first)
            first.reboot(clean=not panicked)
            assert checksum(first, disk_of(first)) == in_file(image) == written
            assert complaints(first) == []
        written = write_random(first, disk_of(first), at=8)
        keep_writing(first, disk_of(first))
        first.kill()
        assert footprint(server, socket) == before

        second = guest(socket)
        assert checksum(second, disk_of(second), at=8) == in_file(image, at=8) == written
        assert write_random(second, disk_of(second)) == checksum(second, disk_of(second)) == in_file(image)
        assert complaints(second) == []
        second.shutdown()
        assert footprint(server, socket) == before
