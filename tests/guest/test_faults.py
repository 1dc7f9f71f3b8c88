"""Each fault as Linux meets it: the status it is told, and how it recovers (T04).

Linux gives a command a second here, not thirty; the block layer rounds that up, so one that is late is
noticed within two. What it does then is in the kernel's log.
"""

import re
import time
from collections.abc import Iterator

import pytest

from outboard import Server
from outboard.devices.nvme import Nvme
from outboard.errors import GuestError
from outboard.storage import open_storage
from outboard.testing.faults import fail
from outboard.testing.guest import Guest

pytestmark = [pytest.mark.guest, pytest.mark.point("T04")]

PCI = "0000:01:00.0"
DISK = "/dev/nvme0n1"
READ = f"dd if={DISK} of=/tmp/read bs=4k skip=1 count=1 iflag=direct"
WRITE = f"dd if=/tmp/noise of={DISK} bs=4k seek=1 count=1 oflag=direct"
PASSED_THROUGH = f"nvme read {DISK} -s 8 -c 7 -z 4096 -d /tmp/read"
BACK = f"until [ $(cat /sys/class/nvme/nvme0/state) = live ] && [ -b {DISK} ]; do :; done"


class Linux:
    """A machine, and the disk in it, which is to fail."""

    def __init__(self, guest: Guest, disk: Nvme) -> None:
        self.guest, self.disk = guest, disk

    def run(self, command: str) -> str:
        """Run a command that succeeds, and return what the kernel said meanwhile."""
        self.guest.run(command)
        return self.said()

    def fails(self, command: str) -> tuple[str, str]:
        """Run a command that fails, and return what it and the kernel said."""
        with pytest.raises(GuestError) as caught:
            self.guest.run(command)
        return caught.value.output, self.said()

    def said(self) -> str:
        return self.guest.run("dmesg -c")

    def content(self) -> bytes:
        """The blocks that `READ` and `WRITE` are about."""
        return self.disk.namespaces[1].storage.read(4096, 4096)

    def noise(self) -> bytes:
        """What `WRITE` writes."""
        return bytes.fromhex(self.guest.run("hexdump -v -e '1/1 \"%02x\"' /tmp/noise"))


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Linux]:
    folder = tmp_path_factory.mktemp("faults")
    disk = Nvme(open_storage("ram:64M"), serial="FAULTY")
    with (
        Server(disk, folder / "nvme.sock").start(),
        Guest([folder / "nvme.sock"], tools=["nvme-cli"], spare_ports=0, logs=folder) as guest,
    ):
        yield Linux(guest, disk)


@pytest.fixture
def linux(machine: Linux) -> Linux:
    """The machine, its disk at rest and as it was."""
    machine.run(
        f"{BACK}; echo 1000 >/sys/block/nvme0n1/queue/io_timeout; head -c 4096 /dev/urandom >/tmp/noise"
    )
    return machine


@pytest.mark.parametrize(
    ("status", "more", "field"),
    [
        ((2, 0x81), {}, "0x281"),
        ((2, 0x81), {"dnr": True, "crd": 1}, "0x4a81"),
        ((0, 0x82), {"more": True}, "0x2082"),
        ((3, 0x70), {"dnr": True, "more": True, "crd": 3}, "0x7b70"),
        ((7, 0xFF), {}, "0x7ff"),
    ],
)
def test_a_status_reaches_a_tool_bit_for_bit(
    linux: Linux, status: tuple[int, int], more: dict[str, bool], field: str
) -> None:
    with fail(linux.disk, opcode="read", lba=(8, 15), status=status, **more):
        output, _ = linux.fails(PASSED_THROUGH)
    assert output.rstrip().endswith(f"({field})")
    linux.run(PASSED_THROUGH)


def test_a_status_that_forbids_it_is_not_retried(linux: Linux) -> None:
    with fail(linux.disk, opcode="read", lba=(8, 15), status=(2, 0x81), dnr=True, more=True) as fault:
        _, said = linux.fails(READ)
    assert fault.struck == 1
    assert re.search(r"@ LBA 8, 8 blocks, .*\(sct 0x2 / sc 0x81\) (MORE DNR|DNR MORE)", said)
    assert "critical medium error" in said


def test_a_status_that_allows_it_is_retried_five_times(linux: Linux) -> None:
    with fail(linux.disk, opcode="write", lba=8, status="write_fault") as fault:
        _, said = linux.fails(WRITE)
    assert fault.struck == 6
    assert re.search(r"\(sct 0x2 / sc 0x80\) *\n", said)
    with fail(linux.disk, opcode="write", lba=8, status="write_fault", count=2) as fault:
        assert "sct" not in linux.run(WRITE)
    assert fault.struck == 2


def test_an_admin_command_fails(linux: Linux) -> None:
    with fail(linux.disk, opcode="identify", status=(0, 0x06), dnr=True):
        output, _ = linux.fails("nvme id-ctrl /dev/nvme0")
    assert "(0x4006)" in output
    assert "status_field\t: 0x4006" in linux.guest.run("nvme error-log /dev/nvme0 -e 1")


def test_a_delay_is_waited_for(linux: Linux) -> None:
    with fail(linux.disk, opcode="read", lba=8, delay=0.4):
        begun = time.monotonic()
        assert "timeout" not in linux.run(READ)
    assert time.monotonic() - begun >= 0.4


def test_a_command_that_hangs_is_aborted_and_tried_again(linux: Linux) -> None:
    with fail(linux.disk, opcode="read", lba=8, hang="abort", nth=1) as fault:
        said = linux.run(READ)
    assert fault.struck == 1
    assert re.search(r"timeout, aborting.*\n.*Abort status: 0x0", said)
    assert "reset" not in said


def test_a_command_that_cannot_be_aborted_makes_it_reset_the_controller(linux: Linux) -> None:
    with fail(linux.disk, opcode="read", lba=8, hang="reset", nth=1):
        said = linux.run(READ)
    assert re.search(r"timeout, aborting(.*\n)+.*timeout, reset controller", said)


def test_a_lost_interrupt_is_made_up_for_by_a_look(linux: Linux) -> None:
    with fail(linux.disk, opcode="read", lba=8, lost_interrupt=True, nth=1):
        said = linux.run(READ)
    assert "timeout, completion polled" in said
    assert "reset" not in said


def test_a_write_whose_completion_is_lost_was_executed(linux: Linux) -> None:
    with fail(linux.disk, opcode="write", lba=8, lost_completion=True, nth=1):
        linux.guest.run(f"{WRITE} >/dev/null 2>&1 &")
        linux.guest.run("until dmesg | grep -q 'timeout, aborting'; do :; done")
        assert linux.content() == linux.noise()
        linux.guest.run(f"until dmesg | grep -q 'timeout, reset controller'; do :; done; {BACK}")
    linux.said()


@pytest.mark.parametrize("status", [None, (2, 0x80)])
def test_of_a_torn_write_the_beginning_is_stored(linux: Linux, status: tuple[int, int] | None) -> None:
    linux.run(WRITE)
    before = linux.content()
    linux.run("head -c 4096 /dev/urandom >/tmp/noise")
    with fail(linux.disk, opcode="write", lba=8, torn=3, status=status, dnr=bool(status)):
        if status is None:
            linux.run(WRITE)
        else:
            assert "sc 0x80" in linux.fails(WRITE)[1]
    now = linux.content()
    assert now[: 3 * 512] != before[: 3 * 512]
    assert now[3 * 512 :] == before[3 * 512 :]


def test_flipped_bits_are_read_and_nobody_says_so(linux: Linux) -> None:
    linux.run(WRITE)
    with fail(linux.disk, opcode="read", lba=(8, 15), flip=3):
        said = linux.run(READ)
    wrong = linux.guest.run("cmp -l /tmp/noise /tmp/read; :").splitlines()
    assert 1 <= len(wrong) <= 3
    assert "error" not in said


def test_a_fatal_controller_is_reset_and_the_write_done(linux: Linux) -> None:
    with fail(linux.disk, opcode="write", lba=8, fatal=True, nth=1):
        said = linux.run(WRITE)
    assert "controller is down; will reset: CSTS=0x3" in said
    assert linux.content() == linux.noise()


def test_a_controller_that_lost_its_power_is_set_up_anew(linux: Linux) -> None:
    with fail(linux.disk, opcode="write", lba=8, power_cut=True, nth=1):
        said = linux.run(WRITE)
    assert "timeout, reset controller" in said
    assert re.search(r"unsafe_shutdowns\s+: [1-9]", linux.guest.run("nvme smart-log /dev/nvme0"))


def test_a_controller_that_was_pulled_out_is_given_up(linux: Linux) -> None:
    with fail(linux.disk, opcode="write", lba=8, removal=True):
        _, said = linux.fails(WRITE)
    assert "CSTS=0xffffffff" in said
    linux.guest.run("until [ $(cat /sys/class/nvme/nvme0/state) = dead ]; do :; done")
    linux.disk.replug()
    linux.run(f"echo 1 >/sys/bus/pci/devices/{PCI}/remove; echo 1 >/sys/bus/pci/rescan; {BACK}")
    linux.run(READ)
