"""Machines that sleep and wake: the disk goes to D3hot and back, or is started anew under a resumed Linux."""

from pathlib import Path

import pytest

from outboard.devices.nvme import Nvme
from outboard.pytest_plugin import MakeGuest, Serve
from outboard.storage import open_storage
from tests.guest.linux import checksum, complaints, disk_of, stored, write_random

pytestmark = pytest.mark.guest


@pytest.mark.point("B04", "S02")
def test_a_machine_wakes_from_suspend_to_ram_with_its_disk(serve: Serve, guest: MakeGuest) -> None:
    storage = open_storage("ram:64M")
    machine = guest(serve(Nvme(storage)).path)
    disk = disk_of(machine)
    written = write_random(machine, disk)
    machine.run("(echo mem >/sys/power/state) >/dev/null 2>&1 &")
    machine.wait_event("SUSPEND")
    machine.qmp("system_wakeup")
    # What is sent while the machine wakes is lost.
    machine.wait_for("PM: suspend exit")
    assert checksum(machine, disk) == stored(storage) == written
    assert write_random(machine, disk, at=8) == stored(storage, at=8)
    assert complaints(machine) == []


@pytest.mark.soak
@pytest.mark.point("B04")
def test_a_hibernated_machine_resumes_from_the_disk_in_another_process(
    serve: Serve, guest: MakeGuest, tmp_path: Path
) -> None:
    storage = open_storage("ram:64M")
    server = serve(Nvme(storage, open_storage("ram:512M")))
    first = guest(server.path, memory="256M")
    written = write_random(first, disk_of(first))
    swap = disk_of(first, 2)
    first.run(f"mkswap {swap} && swapon {swap} && echo remembered >/tmp/memory")
    first.run("echo 0 >/sys/power/image_size; echo shutdown >/sys/power/disk")
    first.run("(echo disk >/sys/power/state) >/dev/null 2>&1 &")
    assert first.wait() == 0

    second = guest(server.path, memory="256M")
    number = second.run(f"cat /sys/block/{disk_of(second, 2).removeprefix('/dev/')}/dev").strip()
    second.run(f"(echo {number} >/sys/power/resume) >/dev/null 2>&1 &")
    second.wait_for("PM: hibernation: hibernation exit", timeout=120)
    assert second.run("cat /tmp/memory").strip() == "remembered"
    assert checksum(second, disk_of(second)) == stored(storage) == written
