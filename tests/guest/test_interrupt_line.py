"""An NVMe controller on the one interrupt line that is left where messages are forbidden."""

import pytest

from outboard.devices.nvme import Nvme
from outboard.pytest_plugin import MakeGuest
from outboard.storage import open_storage
from tests.guest.linux import checksum, complaints, disk_of, fio, interrupts, stored, write_random


@pytest.mark.guest
@pytest.mark.point("Q17", "P142", "PCI03")
def test_no_interrupt_is_lost_on_the_line(guest: MakeGuest) -> None:
    storage = open_storage("ram:64M")
    machine = guest(Nvme(storage), append="pci=nomsi", tools=["fio"])
    disk = disk_of(machine)
    assert "IO-APIC" in machine.run("grep nvme0q1 /proc/interrupts")
    machine.run(fio(disk), timeout=120)
    written = write_random(machine, disk, at=32)
    assert checksum(machine, disk, at=32) == stored(storage, at=32) == written
    assert interrupts(machine, "nvme0q1")["nvme0q1"] > 0
    # Linux finds completions without an interrupt when it gives up waiting, 30 s on, and says so.
    log = machine.run("dmesg")
    assert "completion polled" not in log
    assert "timeout" not in log.lower().replace("timeouts", "")
    assert complaints(machine) == []
