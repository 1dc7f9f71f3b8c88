"""Every command that nvme-cli has for what the controller claims, and what it prints: golden transcripts.

One machine, one subsystem with a namespace of each kind. A session is a list of commands; its transcript is
``tests/guest/nvme_cli/NAME.txt``. What cannot be the same twice (times, counters that depend on the boot) is
replaced. ``OUTBOARD_GOLDEN=write`` writes the files anew.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from outboard import Server
from outboard.devices.nvme import (
    Namespace,
    Nvme,
    PlacementLayout,
    Protection,
    RamPool,
    Subsystem,
    ZoneLayout,
)
from outboard.errors import GuestError
from outboard.storage import RamStorage
from outboard.testing.guest import Guest

pytestmark = pytest.mark.guest

GOLDEN = Path(__file__).with_name("nvme_cli")
MIB = 1 << 20

SESSIONS: dict[str, list[str]] = {
    "list": [
        "nvme list",
        "nvme list-subsys /dev/nvme0n1",
        "nvme list-ns /dev/nvme0",
        "nvme list-ns /dev/nvme0 --all",
        "nvme list-ns /dev/nvme0 --csi=2",
        "nvme list-ctrl /dev/nvme0",
        "nvme list-ctrl /dev/nvme0 --namespace-id=1",
        "nvme list-secondary /dev/nvme0",
        "nvme list-endgrp /dev/nvme0",
        "nvme get-ns-id /dev/nvme0n1",
        "nvme ns-rescan /dev/nvme0",
        "nvme show-topology",
    ],
    "identify": [
        "nvme id-ctrl /dev/nvme0 -H",
        "nvme id-ns /dev/nvme0 -n 1 -H",
        "nvme id-ns /dev/nvme0 -n 3",
        "nvme id-ns /dev/nvme0 -n 0xffffffff",
        "nvme id-ns /dev/nvme0 -n 9",
        "nvme id-ns-lba-format /dev/nvme0 -i 1",
        "nvme nvm-id-ctrl /dev/nvme0",
        "nvme nvm-id-ns /dev/nvme0 -n 3",
        "nvme nvm-id-ns-lba-format /dev/nvme0 -i 5",
        "nvme cmdset-ind-id-ns /dev/nvme0 -n 1",
        "nvme ns-descs /dev/nvme0 -n 1",
        "nvme ns-descs /dev/nvme0 -n 2",
        "nvme id-iocs /dev/nvme0",
        "nvme id-uuid /dev/nvme0",
        "nvme primary-ctrl-caps /dev/nvme0",
    ],
    "logs": [
        "nvme smart-log /dev/nvme0",
        "nvme error-log /dev/nvme0 -e 2",
        "nvme fw-log /dev/nvme0",
        "nvme changed-ns-list-log /dev/nvme0",
        "nvme effects-log /dev/nvme0 -c 0 -H",
        "nvme effects-log /dev/nvme0 -c 2",
        "nvme supported-log-pages /dev/nvme0",
        "nvme fid-support-effects-log /dev/nvme0",
        "nvme mi-cmd-support-effects-log /dev/nvme0",
        "nvme self-test-log /dev/nvme0 -e 2",
        "nvme telemetry-log /dev/nvme0 --output-file=/tmp/telemetry",
        "head -c 1 /tmp/telemetry | od -An -tx1",
        "nvme endurance-log /dev/nvme0 -g 1",
        "nvme persistent-event-log /dev/nvme0 -a 3 | sed -n '4,7p;14,25p'",
        "nvme persistent-event-log /dev/nvme0 -a 0 | grep '^Event Type:'",
        "nvme persistent-event-log /dev/nvme0 -a 2",
        "nvme sanitize-log /dev/nvme0",
        "nvme resv-notif-log /dev/nvme0",
        "nvme ana-log /dev/nvme0",
        "nvme get-log /dev/nvme0 -i 3 -l 16",
    ],
    "features": [
        *(f"nvme get-feature /dev/nvme0 -f {fid} -s {way} -H" for fid in (1, 2, 4, 6) for way in range(4)),
        *(f"nvme get-feature /dev/nvme0 -f {fid} -H" for fid in (7, 8, 9, 10, 11, 12, 14, 15, 16, 21, 22)),
        "nvme get-feature /dev/nvme0 -f 5 -n 1 -H",
        "nvme get-feature /dev/nvme0 -f 0x84 -n 1 -H",
        "nvme set-feature /dev/nvme0 -f 4 --value=340",
        "nvme get-feature /dev/nvme0 -f 4",
        "nvme set-feature /dev/nvme0 -f 4 --value=343 --save",
        "nvme get-feature /dev/nvme0 -f 4 -s 2",
        "nvme set-feature /dev/nvme0 -f 0x0f --value=1 --save",
        "nvme set-feature /dev/nvme0 -f 0x7f --value=1",
    ],
    "blocks": [
        "seq 1 1000 | head -c 512 >/tmp/block",
        "nvme write /dev/nvme0n1 -s 8 -c 0 -z 512 -d /tmp/block",
        "nvme read /dev/nvme0n1 -s 8 -c 0 -z 512 -d /tmp/back && cmp /tmp/block /tmp/back && echo same",
        "nvme compare /dev/nvme0n1 -s 8 -c 0 -z 512 -d /tmp/block",
        "nvme compare /dev/nvme0n1 -s 9 -c 0 -z 512 -d /tmp/block",
        "nvme flush /dev/nvme0n1",
        "nvme verify /dev/nvme0n1 -s 0 -c 15",
        "nvme write-uncor /dev/nvme0n1 -s 9 -c 0",
        "nvme verify /dev/nvme0n1 -s 0 -c 15",
        "nvme read /dev/nvme0n1 -s 9 -c 0 -z 512 -d /tmp/back",
        "nvme get-lba-status /dev/nvme0 -n 1 -s 0 -m 14 -a 0x11 -l 16",
        "nvme lba-status-log /dev/nvme0",
        "nvme write-zeroes /dev/nvme0n1 -s 9 -c 0",
        "nvme verify /dev/nvme0n1 -s 0 -c 15",
        "nvme copy /dev/nvme0n1 --sdlba=64 --slbs=8 --blocks=0",
        "nvme compare /dev/nvme0n1 -s 64 -c 0 -z 512 -d /tmp/block",
        "nvme dsm /dev/nvme0n1 --ad --slbs=64 --blocks=8",
        "nvme read /dev/nvme0n1 -s 0x10000000 -c 0 -z 512 -d /tmp/back",
        "nvme io-passthru /dev/nvme0n1 --opcode=0x7f -n 1",
        "nvme admin-passthru /dev/nvme0 --opcode=0x06 --cdw10=0x55 -l 4096 -r",
    ],
    "reservations": [
        "nvme resv-register /dev/nvme0n1 -n 1 --nrkey=0xabc --rrega=0 --iekey",
        "nvme resv-acquire /dev/nvme0n1 -n 1 --crkey=0xabc --rtype=1 --racqa=0",
        "nvme resv-report /dev/nvme0n1 -n 1 --eds",
        "nvme resv-release /dev/nvme0n1 -n 1 --crkey=0xabc --rtype=1 --rrela=0",
        "nvme resv-register /dev/nvme0n1 -n 1 --crkey=0xabc --rrega=1",
        "nvme resv-report /dev/nvme0n1 -n 1 --eds",
        "nvme get-feature /dev/nvme0 -f 0x82 -n 1",
        "nvme get-feature /dev/nvme0 -f 0x83 -n 1",
    ],
    "zones": [
        "nvme zns list",
        "nvme zns id-ctrl /dev/nvme0",
        "nvme zns id-ns /dev/nvme0n2 -H",
        "nvme zns report-zones /dev/nvme0n2",
        "nvme zns open-zone /dev/nvme0n2 -s 0",
        "nvme zns zone-append /dev/nvme0n2 -s 0 -z 512 -d /tmp/block",
        "nvme zns report-zones /dev/nvme0n2 -d 2",
        "nvme zns close-zone /dev/nvme0n2 -s 0",
        "nvme zns finish-zone /dev/nvme0n2 -s 0",
        "nvme zns report-zones /dev/nvme0n2 -d 1 -S 5",
        "nvme zns reset-zone /dev/nvme0n2 -a",
        "nvme zns changed-zone-list /dev/nvme0n2",
        "nvme zns zone-mgmt-recv /dev/nvme0n2 -s 0 -z 0 -l 64 -p",
        "nvme zns zone-mgmt-send /dev/nvme0n2 -s 0 --zsa=3",
        "nvme zns set-zone-desc /dev/nvme0n2 -s 0 -d /tmp/block",
        "nvme zns zrwa-flush-zone /dev/nvme0n2 -l 7",
        "nvme zns offline-zone /dev/nvme0n2 -s 0",
        "nvme zns open-zone /dev/nvme0n2 -s 3",
        "nvme zns report-zones /dev/nvme0n2 -d 1",
    ],
    "placement": [
        "nvme fdp configs /dev/nvme1 -e 1",
        "nvme fdp usage /dev/nvme1 -e 1",
        "nvme fdp stats /dev/nvme1 -e 1",
        "nvme fdp events /dev/nvme1 -e 1",
        "nvme fdp status /dev/nvme1n1 -n 1",
        "nvme fdp update /dev/nvme1n1 -n 1 -p 0,1",
        "nvme fdp feature /dev/nvme1 -e 1",
        "nvme dir-receive /dev/nvme1 -n 1 -D 0 -O 1 -H",
        "nvme dir-send /dev/nvme1 -n 1 -D 0 -O 1 -T 2 -e 1",
        "nvme io-mgmt-recv /dev/nvme1n1 -n 1 -o 1 -l 64",
        "nvme endurance-log /dev/nvme1 -g 1",
    ],
    "namespaces": [
        "nvme create-ns /dev/nvme0 -s 0x2000 -c 0x2000 -f 0 -d 0 -m 0",
        "nvme attach-ns /dev/nvme0 -n 4 -c 1",
        "until [ -b /dev/nvme0n4 ]; do :; done; blockdev --getsize64 /dev/nvme0n4",
        "nvme list-ns /dev/nvme0",
        "nvme format /dev/nvme0 -n 4 -l 1 -f",
        "nvme id-ns /dev/nvme0 -n 4 | grep -E 'nsze|in use'",
        "nvme detach-ns /dev/nvme0 -n 4 -c 1",
        "nvme delete-ns /dev/nvme0 -n 4",
        "nvme delete-ns /dev/nvme0 -n 4",
        "nvme create-ns /dev/nvme0 -s 0x20000000 -c 0x20000000 -f 0",
    ],
    "drive": [
        "nvme device-self-test /dev/nvme0 -n 1 -s 1",
        "until nvme self-test-log /dev/nvme0 -e 1 | grep -q 'Current operation  : 0'; do :; done",
        "nvme self-test-log /dev/nvme0 -e 1 | grep -v -i 'power on'",
        "printf 'outboard-firmware 2.0\\n' >/tmp/fw; head -c 8170 /dev/zero >>/tmp/fw",
        "nvme fw-download /dev/nvme0 -f /tmp/fw",
        "nvme fw-commit /dev/nvme0 -s 2 -a 1",
        "nvme fw-log /dev/nvme0",
        "nvme reset /dev/nvme0",
        "nvme fw-log /dev/nvme0",
        "nvme security-recv /dev/nvme0 -p 0 -s 0 -t 16 -x 16",
        "nvme security-send /dev/nvme0 -p 0 -s 0 -t 512 -f /tmp/block",
        "nvme format /dev/nvme0 -n 3 -l 3 -i 1 -f",
        "nvme id-ns /dev/nvme0 -n 3 | grep -E 'dps|flbas|in use'",
        "nvme sanitize /dev/nvme0 -a start-block-erase",
        "until nvme sanitize-log /dev/nvme0 | grep -q ':  65535'; do :; done",
        "nvme sanitize-log /dev/nvme0",
        "nvme show-regs /dev/nvme0 -H | head -5",
        "nvme get-reg /dev/nvme0 --vs --csts",
        "nvme subsystem-reset /dev/nvme0",
    ],
}  # fmt: skip

CHANGING = (
    (r"hostnqn=.*", "hostnqn=(the guest's)"),
    (
        r"(power_on_hours|busy_time|Controller Busy Time|power_cycles|unsafe_shutdowns)\s*: .*",
        r"\1: (counted)",
    ),
    (r"(Data Units \w+|data_units_\w+|host_\w+_(?:commands|cmds)|num_err\w+)\s*: .*", r"\1: (counted)"),
    (r"(?i)(timestamp|error_count|sqid|cmdid)(.*): .*", r"\1: (varies)"),
)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    folder = tmp_path_factory.mktemp("cli")
    disks = Subsystem(RamStorage(64 * MIB), serial="CLI-1", pool=RamPool(64 * MIB))
    more = (
        Namespace(RamStorage(16 * MIB), zoned=ZoneLayout(size=2 * MIB)),
        Namespace(RamStorage(16 * MIB), metadata=8, protection=Protection(type=1)),
    )
    placed = Subsystem(
        Namespace(RamStorage(16 * MIB), placement_handles=(0, 1)), serial="CLI-2", placement=PlacementLayout()
    )
    with (
        Server(Nvme(subsystem=disks), folder / "0.sock").start(),
        Server(Nvme(subsystem=placed), folder / "1.sock").start(),
        Guest([folder / "0.sock"], tools=["nvme-cli"], logs=folder, append="iomem=relaxed") as guest,
    ):
        guest.run("until [ -b /dev/nvme0n1 ]; do :; done")
        # One after the other: Linux numbers those that are there together in any order.
        for number, space in enumerate(more, 2):
            disks.add(space)
            guest.run(f"until [ -b /dev/nvme0n{number} ]; do :; done")
        guest.plug(folder / "1.sock")
        guest.run("until [ -b /dev/nvme1n1 ]; do :; done")
        yield guest


@pytest.mark.parametrize("name", SESSIONS)
def test_nvme_cli_prints_what_it_printed(machine: Guest, name: str) -> None:
    transcript = "".join(spoken(machine, command) for command in SESSIONS[name])
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("OUTBOARD_GOLDEN") == "write":
        path.write_text(transcript)
    assert transcript == path.read_text()


def spoken(machine: Guest, command: str) -> str:
    """A command and its output as a transcript has them."""
    try:
        said, status = machine.run(command, timeout=60), 0
    except GuestError as error:
        said, status = error.output, error.status or 0
    for pattern, replacement in CHANGING:
        said = re.sub(pattern, replacement, said)
    said = "\n".join(line.rstrip() for line in said.strip("\n").splitlines())
    ending = f"[status {status}]\n" if status else ""
    return f"$ {command}\n{said}\n{ending}\n"
