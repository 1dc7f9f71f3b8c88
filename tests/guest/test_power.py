"""What is left of a disk's contents when machines end, well or badly."""

import pytest

from outboard.devices.nvme import Nvme
from outboard.pytest_plugin import MakeGuest, Serve
from outboard.storage import open_storage
from tests.guest.linux import checksum, complaints, disk_of, stored, write_random

ENDLESS = "while dd if=/dev/zero of={disk} bs=128k seek=256 count=64 oflag=direct; do :; done"
IN_FLIGHT = "until [ $(awk '{{print $2}}' /sys/block/{name}/inflight) -gt 0 ]; do :; done"


@pytest.mark.guest
@pytest.mark.point("S04", "N04", "P145")
def test_a_machine_killed_amid_writes_leaves_what_it_flushed_to_the_next(
    serve: Serve, guest: MakeGuest
) -> None:
    storage = open_storage("ram:64M")
    server = serve(Nvme(storage))
    first = guest(server.path)
    disk = disk_of(first)
    written = write_random(first, disk)
    first.run(f"({ENDLESS.format(disk=disk)}) >/dev/null 2>&1 &")
    first.run(IN_FLIGHT.format(name=disk.removeprefix("/dev/")))
    first.kill()

    second = guest(server.path)
    assert checksum(second, disk_of(second)) == stored(storage) == written
    rewritten = write_random(second, disk_of(second), at=32)
    second.reboot()
    assert checksum(second, disk_of(second), at=32) == stored(storage, at=32) == rewritten
    assert complaints(second) == []
    second.shutdown()
