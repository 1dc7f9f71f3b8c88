"""How many reads a second does a guest get from our NVMe controller, and how many from QEMU's own disks?

One Linux guest with two processors has all of them, and none has anything behind it: ours with shadow
doorbells and with mapped ones, QEMU's `nvme` with and without its ioeventfd, virtio-blk. fio reads 4 KiB at
random by io_uring, from one disk at a time, in turns; medians are printed. Without KVM most of the time is
the guest's own. A server that is not being measured is stopped (SIGSTOP), so that none has to share with
one that never sleeps. `--other SOCKET` adds another vfio-user server's NVMe controller. Run:
`python bench/in_guest.py`.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness.report import Table
from outboard.client import Client
from outboard.errors import SetupError
from outboard.testing.guest import Guest

DEPTHS = (1, 32)
NULL = f"driver=null-co,size={1 << 40},read-zeroes=off"


@dataclass(frozen=True)
class Disk:
    """One to measure: its name in the table, its serial number, and the process that serves it (0: QEMU)."""

    name: str
    serial: str
    process: int = 0


@contextmanager
def serving(socket: Path, serial: str, doorbells: str, more: list[str]) -> Iterator[int]:
    """`outboard nvme` in a process of its own; its process id."""
    command = [
        sys.executable,
        "-c",
        "from outboard.cli import main; main()",
        "nvme",
        "--namespace",
        "null:1T",
    ]
    command += ["--namespace", "null:1T", "--socket", str(socket), "--serial", serial]
    command += ["--doorbells", doorbells, *more]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            # The first time it compiles the data plane before it listens.
            Client(socket, patience=60).close()
            yield process.pid
        finally:
            process.send_signal(signal.SIGCONT)
            process.terminate()


def arguments_of_qemu() -> list[str]:
    """QEMU's own disks, each with nothing behind it."""
    devices = ("nvme,serial=QEMU", "nvme,serial=QEMU-IOEVENTFD,ioeventfd=on", "virtio-blk-pci,serial=VIRTIO")
    arguments = []
    for number, device in enumerate(devices):
        arguments += ["-blockdev", f"node-name=null{number},{NULL}"]
        arguments += ["-device", f"{device},drive=null{number}"]
    return arguments


def block_devices(guest: Guest, disks: list[Disk]) -> dict[Disk, str]:
    """Where the guest has each disk, found by its serial number; one of another server is what is left."""
    listing = "ls /dev/nvme*n1 /dev/vd* 2>/dev/null | wc -l"
    guest.run(f"until [ $({listing}) = {len(disks)} ]; do sleep 0.1; done")
    found = {}
    for line in guest.run("grep . /sys/block/vd*/serial /sys/class/nvme/nvme*/serial").splitlines():
        path, _, serial = line.partition(":")
        name = path.split("/")[-2]
        found[serial.strip()] = f"/dev/{name}" if name.startswith("vd") else f"/dev/{name}n1"
    placed = {disk: found.pop(disk.serial) for disk in disks if disk.serial}
    return placed | {disk: found.popitem()[1] for disk in disks if not disk.serial}


def reads_a_second(guest: Guest, device: str, depth: int, seconds: int) -> float:
    """One run of fio."""
    said = guest.run(
        f"fio --name=read --filename={device} --ioengine=io_uring --direct=1 --rw=randread --bs=4k"
        f" --iodepth={depth} --size=1G --norandommap --time_based --runtime={seconds} --ramp_time=1"
        " --output-format=json",
        timeout=seconds + 60,
    )
    return float(json.loads(said[said.index("{") : said.rindex("}") + 1])["jobs"][0]["read"]["iops"])


def processor_seconds(process: int) -> float:
    """What a process has used so far."""
    if not process:
        return 0.0
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measures and prints."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seconds", type=int, default=5, help="of each run")
    arguments.add_argument("--turns", type=int, default=5, help="runs of each; medians are printed")
    arguments.add_argument("--only", nargs="*", help="the rows whose name has one of these words")
    arguments.add_argument("--serve", default="", help="more options of `outboard nvme`")
    arguments.add_argument("--other", type=Path, help="the socket of another server's NVMe controller")
    arguments.add_argument("--other-name", default="other", help="what the table calls that")
    arguments.add_argument("--other-process", type=int, default=0, help="its process")
    arguments.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    arguments.add_argument("--markdown", action="store_true", help="the table as Markdown")
    arguments.add_argument("--quick", action="store_true", help="one turn of a second: a look")
    options = arguments.parse_args()
    if options.quick:
        options.seconds, options.turns = 1, 1

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        disks, sockets = [], []
        for doorbells in ("shadow", "mmap"):
            sockets.append(folder / doorbells)
            serial = f"OB-{doorbells.upper()}"
            process = stack.enter_context(serving(sockets[-1], serial, doorbells, options.serve.split()))
            disks.append(Disk(f"outboard {doorbells}", serial, process))
        disks.append(Disk("qemu nvme", "QEMU"))
        disks.append(Disk("qemu nvme ioeventfd", "QEMU-IOEVENTFD"))
        disks.append(Disk("virtio-blk", "VIRTIO"))
        if options.other:
            sockets.append(options.other)
            disks.append(Disk(options.other_name, "", options.other_process))
        machine = Guest(
            sockets,
            tools=["fio"],
            modules=["virtio_blk"],
            extra=arguments_of_qemu(),
            spare_ports=0,
        )
        guest = stack.enter_context(machine)
        devices = block_devices(guest, disks)
        if options.only:
            disks = [disk for disk in disks if any(word in disk.name for word in options.only)]
        servers = {disk.process for disk in devices if disk.process}
        runs: dict[tuple[Disk, int], list[float]] = {(disk, depth): [] for disk in disks for depth in DEPTHS}
        cost: dict[tuple[Disk, int], list[float]] = {key: [] for key in runs}
        try:
            for server in servers:
                os.kill(server, signal.SIGSTOP)
            for _ in range(options.turns):
                for disk, depth in runs:
                    if disk.process:
                        os.kill(disk.process, signal.SIGCONT)
                    before = processor_seconds(disk.process)
                    rate = reads_a_second(guest, devices[disk], depth, options.seconds)
                    used = processor_seconds(disk.process) - before
                    if disk.process:
                        os.kill(disk.process, signal.SIGSTOP)
                    runs[disk, depth].append(rate)
                    cost[disk, depth].append(used / (options.seconds + 1))
        finally:
            for server in servers:
                os.kill(server, signal.SIGCONT)

    medians = {key: statistics.median(rates) for key, rates in runs.items()}
    if options.json:
        found = {disk.name: {depth: round(medians[disk, depth]) for depth in DEPTHS} for disk in disks}
        print(json.dumps(found))
        return
    rows = []
    for disk in disks:
        row = [disk.name]
        for depth in DEPTHS:
            share = f"{statistics.median(cost[disk, depth]):.0%}" if disk.process else ""
            row += [f"{medians[disk, depth]:,.0f}", share]
        rows.append(row)
    headings = (
        "reads of 4 KiB a second",
        *(word for depth in DEPTHS for word in (f"depth {depth}", "server")),
    )
    print(Table(headings, rows).printed(markdown=options.markdown))
    print(f"Medians of {options.turns} runs of {options.seconds} s; server: of one processor.")


if __name__ == "__main__":
    try:
        main()
    except SetupError as missing:
        print(f"not measured: {missing}")
