"""What is left of a disk's contents when machines end, well or badly."""

from pathlib import Path

import pytest

from outboard.errors import GuestError
from outboard.pytest_plugin import MakeGuest
from tests.guest.linux import MIB, checksum, complaints, disk_of, in_file, keep_writing, write_random
from tests.guest.programs import footprint, serving


@pytest.mark.guest
@pytest.mark.point("S04", "N04", "P145")
def test_killed_and_crashed_amid_writes_machines_leave_what_they_flushed_and_nothing_else(
    guest: MakeGuest, tmp_path: Path
) -> None:
    image, socket = tmp_path / "disk.img", tmp_path / "disk.sock"
    with image.open("wb") as file:
        file.truncate(64 * MIB)
    with serving(socket, "--namespace", image) as server:
        before = footprint(server, socket)
        first = guest(socket)
        written = write_random(first, disk_of(first))
        keep_writing(first, disk_of(first))
        first.kill()
        assert footprint(server, socket) == before

        second = guest(socket)
        assert checksum(second, disk_of(second)) == in_file(image) == written
        keep_writing(second, disk_of(second))
        with pytest.raises(GuestError, match="the guest panicked"):
            second.run("echo c >/proc/sysrq-trigger")
        second.reboot(clean=False)
        assert checksum(second, disk_of(second)) == in_file(image) == written
        rewritten = write_random(second, disk_of(second), at=8)
        assert checksum(second, disk_of(second), at=8) == in_file(image, at=8) == rewritten
        assert complaints(second) == []
        second.shutdown()
        assert footprint(server, socket) == before
