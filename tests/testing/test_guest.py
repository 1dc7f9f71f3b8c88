"""A real virtual machine: commands, tools, unplugging, reboot, panic, firmware, and none left over."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from outboard import Bar, Device, PciExpress, Server
from outboard.errors import GuestError
from outboard.pytest_plugin import MakeGuest
from outboard.testing.guest import Guest, bootable_disk
from outboard.testing.guest.bootsector import GREETING, SECOND

pytestmark = pytest.mark.guest


class Inverter(Device):
    """One register that reads as the inverse of what was written."""

    vendor_id, device_id, class_code = 0x1234, 0x5678, 0xFF0000
    mmio = Bar(0, size=0x1000)
    pcie = PciExpress()
    value = mmio.reg(0x10)

    @value.on_write
    def invert(self, value: int) -> None:
        self.value = ~value & 0xFFFFFFFF


def nvme_of_qemu(disk: Path, bus: str, *more: str) -> list[str]:
    return [
        *("-drive", f"if=none,id=disk,file={disk},format=raw"),
        *("-device", ",".join(["nvme", "drive=disk", "serial=test", f"bus={bus}", "id=nvme", *more])),
    ]


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bootable_disk())
    return path


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """One machine for all tests that leave it as they found it: booting takes most of the time."""
    folder = tmp_path_factory.mktemp("machine")
    (disk := folder / "disk.img").write_bytes(bootable_disk())
    with (
        Server(Inverter(), folder / "inverter.sock").start(),
        Guest(
            [folder / "inverter.sock"],
            tools=["nvme-cli", "pciutils"],
            modules=["uio_pci_generic"],
            files={"/opt/greet": b"#!/bin/sh\necho hello $1\n"},
            extra=nvme_of_qemu(disk, "port1"),
            spare_ports=2,
            logs=folder,
        ) as guest,
    ):
        yield guest
        guest.shutdown()
        assert not guest.running


def test_a_command_gives_both_its_outputs(machine: Guest) -> None:
    assert machine.run("echo out; echo err >&2; printf 'a b\n\nc'") == "out\nerr\na b\n\nc"


def test_a_failed_command_raises_its_status_and_output(machine: Guest) -> None:
    with pytest.raises(GuestError, match="`echo sorry; exit 3` ended with status 3") as raised:
        machine.run("echo sorry; exit 3")
    assert (raised.value.status, raised.value.output) == (3, "sorry\n")


def test_a_command_that_takes_too_long_is_given_up_and_the_next_one_runs(machine: Guest) -> None:
    with pytest.raises(GuestError, match=r"within 0\.3 s; QEMU says it is running") as raised:
        machine.run("echo began; sleep 2", timeout=0.3)
    assert raised.value.status is None
    assert machine.run("echo next") == "next\n"


def test_a_file_put_into_the_guest_is_the_same_there(machine: Guest) -> None:
    content = bytes(range(256)) * 150
    machine.put("/tmp/with space", content)
    assert machine.run(
        "wc -c <'/tmp/with space'; tail -c 256 '/tmp/with space' | hexdump -v -e '/1 \"%02x\"'"
    ) == (f"{len(content)}\n{content[:256].hex()}")


def test_tools_modules_and_files_asked_for_are_there(machine: Guest) -> None:
    assert "test" in machine.run("nvme list")
    assert "1234:5678" in machine.run("lspci -nn")
    assert "uio_pci_generic" in machine.run("lsmod")
    assert machine.run("/opt/greet you") == "hello you\n"


def test_the_guest_drives_our_device(machine: Guest) -> None:
    machine.run("echo 1 >/sys/bus/pci/devices/0000:01:00.0/enable")
    bar = int(machine.run("head -1 /sys/bus/pci/devices/0000:01:00.0/resource").split()[0], 16)
    machine.run(f"devmem {bar + 0x10:#x} 32 0x12345678")
    assert machine.run(f"devmem {bar + 0x10:#x} 32") == "0xEDCBA987\n"


def test_qemu_answers_and_refuses(machine: Guest) -> None:
    assert machine.qmp("query-status")["running"] is True
    with pytest.raises(GuestError, match="dev9"):
        machine.qmp("device_del", id="dev9")


def test_a_device_is_unplugged_and_plugged_again(machine: Guest) -> None:
    path = machine.devices[0].path
    machine.unplug("dev0")
    assert "1234:5678" not in machine.run("lspci -n")
    assert machine.plug(path) == "dev0"
    machine.run("until lspci -n | grep -q 1234:5678; do sleep 0.1; done")


def test_a_panic_is_told_and_the_reset_button_brings_the_guest_back(machine: Guest) -> None:
    with pytest.raises(GuestError, match=r"panicked(.|\n)*sysrq triggered crash"):
        machine.run("echo c >/proc/sysrq-trigger")
    machine.reboot(clean=False)
    assert machine.run("echo back") == "back\n"


def test_a_guest_reboots_cleanly_and_takes_commands_again(machine: Guest) -> None:
    machine.run("touch /tmp/before")
    machine.reboot()
    assert machine.run("test -e /tmp/before || echo fresh") == "fresh\n"
    assert "reboot: Restarting system" in machine.console


def test_seabios_boots_a_disk_and_reads_on_from_it(guest: MakeGuest, disk: Path) -> None:
    machine = guest(kernel=None, firmware="seabios", extra=nvme_of_qemu(disk, "port0", "bootindex=0"))
    machine.wait_for(GREETING)
    machine.wait_for(SECOND)
    machine.reboot()
    machine.wait_for(SECOND)


def test_ovmf_lists_a_disk_as_a_boot_option(guest: MakeGuest, disk: Path) -> None:
    machine = guest(kernel=None, firmware="ovmf", extra=nvme_of_qemu(disk, "port0", "bootindex=0"))
    machine.wait_for('Boot0001 "UEFI QEMU NVMe Ctrl test 1"')


def test_the_fixture_serves_a_device_and_keeps_the_logs(guest: MakeGuest, tmp_path: Path) -> None:
    machine = guest(Inverter(), kernel=None)
    machine.wait_for("SeaBIOS")
    assert f"'device': {Inverter.device_id}" in str(machine.qmp("query-pci"))
    assert "SeaBIOS" in (tmp_path / "guest-1" / "console.log").read_text(errors="replace")


def test_a_killed_guest_is_gone_and_says_so(guest: MakeGuest) -> None:
    machine = guest(kernel=None)
    machine.kill()
    assert machine.wait() == -signal.SIGKILL
    with pytest.raises(GuestError, match="gone"):
        machine.qmp("query-status")
    machine.kill()


def test_a_device_without_server_is_reported_in_qemus_words(tmp_path: Path) -> None:
    with (
        pytest.raises(GuestError, match=r"did not start(.|\n)*nobody\.sock"),
        Guest([tmp_path / "nobody.sock"]),
    ):
        pass


ORPHAN = """
from outboard.testing.guest import Guest
with Guest(kernel=None) as guest:
    print(guest.pid, flush=True)
    input()
"""


def test_no_virtual_machine_outlives_a_killed_test_run(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", ORPHAN],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    ) as parent:
        assert parent.stdout is not None
        machine = os.pidfd_open(int(parent.stdout.readline()))
        parent.kill()
    ended, _, _ = select.select([machine], [], [], 10)
    os.close(machine)
    assert ended
