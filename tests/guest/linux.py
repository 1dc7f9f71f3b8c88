"""What the tests ask of a Linux in a guest, and how."""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outboard.errors import GuestError
from outboard.storage import Storage
from outboard.testing.guest import Guest

MIB = 1 << 20

NO_SGL = "using unchecked data buffer"
"""What Linux says once of any controller without scatter gather lists, when a tool talks to it."""


def disk_of(guest: Guest, nsid: int = 1) -> str:
    """The disk that is namespace ``nsid``, waited for: Linux numbers disks as it finds them, in any order."""
    search = f"grep -lx {nsid} /sys/block/nvme*/nsid"
    found = guest.run(f"until {search} 2>/dev/null; do :; done")
    disk = "/dev/" + found.split("/")[3]
    guest.run(f"until [ -b {disk} ]; do :; done")
    return disk


def write_random(guest: Guest, disk: str, *, mib: int = 4, at: int = 0) -> str:
    """Write ``mib`` MiB of noise at MiB ``at`` of ``disk`` and flush; return its MD5."""
    guest.run(f"dd if=/dev/urandom of=/tmp/noise bs=1M count={mib}")
    guest.run(f"dd if=/tmp/noise of={disk} bs=1M seek={at} conv=fsync,notrunc")
    return guest.run("md5sum </tmp/noise").split()[0]


def checksum(guest: Guest, disk: str, *, mib: int = 4, at: int = 0) -> str:
    """The MD5 of ``mib`` MiB at MiB ``at`` of ``disk``, read from the disk and not from Linux's cache."""
    return guest.run(f"dd if={disk} bs=1M skip={at} count={mib} iflag=direct 2>/dev/null | md5sum").split()[0]


def stored(storage: Storage, *, mib: int = 4, at: int = 0) -> str:
    """The MD5 of the same bytes on our side."""
    return hashlib.md5(storage.read(at * MIB, mib * MIB)).hexdigest()


def in_file(image: Path, *, mib: int = 4, at: int = 0) -> str:
    """The MD5 of the same bytes of a file."""
    with image.open("rb") as file:
        file.seek(at * MIB)
        return hashlib.md5(file.read(mib * MIB)).hexdigest()


def keep_writing(guest: Guest, disk: str, *, at: int = 32) -> None:
    """Write zeros to 8 MiB at MiB ``at`` for ever; returns once there are commands in flight."""
    writes = f"dd if=/dev/zero of={disk} bs=128k seek={at * 8} count=64 oflag=direct"
    guest.run(f"(while {writes}; do :; done) >/dev/null 2>&1 &")
    inflight = f"/sys/block/{disk.removeprefix('/dev/')}/inflight"
    guest.run(f"until [ $(awk '{{print $2}}' {inflight}) -gt 0 ]; do :; done")


def complaints(guest: Guest, about: str = "nvme") -> list[str]:
    """What the kernel said about a driver as a warning or worse."""
    lines = guest.run("dmesg -r").splitlines()
    return [line for line in lines if about in line and line[:3] < "<5>" and NO_SGL not in line]


def interrupts(guest: Guest, name: str) -> dict[str, int]:
    """How often each interrupt whose line in /proc/interrupts holds ``name`` came, by its last word."""
    lines = [line.split() for line in guest.run("cat /proc/interrupts").splitlines()]
    processors = len(lines[0])
    return {
        words[-1]: sum(map(int, words[1 : 1 + processors]))
        for words in lines[1:]
        if any(name in word for word in words)
    }


class Registers:
    """32-bit accesses from within the guest, to what lies at ``base`` there."""

    def __init__(self, guest: Guest, base: int) -> None:
        self.guest = guest
        self.base = base

    def __getitem__(self, offset: int) -> int:
        return int(self.guest.run(f"devmem {self.base + offset:#x} 32"), 16)

    def __setitem__(self, offset: int, value: int) -> None:
        self.guest.run(f"devmem {self.base + offset:#x} 32 {value:#x}")


def bar(guest: Guest, address: str, index: int = 0) -> Registers:
    resources = guest.run(f"cat /sys/bus/pci/devices/{address}/resource").splitlines()
    return Registers(guest, int(resources[index].split()[0], 16))


def fio(*disks: str, size: str = "4M") -> str:
    """The command that writes noise at depth 32 from two processors to each disk, and verifies all of it."""
    options = {
        "ioengine": "libaio",
        "direct": 1,
        "iodepth": 32,
        "rw": "randwrite",
        "bsrange": "4k-128k",
        "size": size,
        "numjobs": 2,
        "offset_increment": size,
        "cpus_allowed": "0,1",
        "cpus_allowed_policy": "split",
        "verify": "crc32c",
        "verify_fatal": 1,
    }
    common = " ".join(f"--{name}={value}" for name, value in options.items())
    return f"fio {common} " + " ".join(f"--name={disk} --filename={disk}" for disk in disks)


@dataclass
class Load:
    """What runs of fio said: how many, how many commands, and the longest that one took, in seconds."""

    runs: int = 0
    commands: int = 0
    longest: float = 0.0


def deep(disk: str, *, size: str = "4M", **more: object) -> str:
    """The command that loads a disk from four jobs, 64 deep each, reading and writing, and verifies all."""
    options: Mapping[str, object] = {
        "ioengine": "io_uring",
        "direct": 1,
        "iodepth": 64,
        "rw": "randrw",
        "bsrange": "4k-32k",
        "size": size,
        "numjobs": 4,
        "offset_increment": size,
        "cpus_allowed": "0,1",
        "cpus_allowed_policy": "split",
        "verify": "crc32c",
        "verify_fatal": 1,
        "group_reporting": 1,
        "output-format": "json",
        "name": "deep",
        "filename": disk,
    } | more
    return "fio " + " ".join(f"--{name}={value}" for name, value in options.items())


@contextmanager
def under(guest: Guest, command: str, *, timeout: float = 120) -> Iterator[Load]:
    """Run a command of fio's with JSON again and again while the block runs, twice at least.

    The load that is yielded is filled in at the end. Raises GuestError if one fails: what it wrote was not
    what it read, or a command failed, or it did not end within ``timeout`` seconds.
    """
    loop = f"""cd /tmp && rm -f fio.stop fio.status fio.out
    (status=0; turns=0; until [ -e fio.stop -a $turns -ge 2 ]; do
        {command} >fio.turn 2>&1; status=$?; cat fio.turn >>fio.out
        turns=$((turns + 1)); [ $status = 0 ] || break
    done; echo $status >fio.status) </dev/null >/dev/null 2>&1 &"""
    guest.run(loop)
    load = Load()
    try:
        yield load
    finally:
        guest.run(": >/tmp/fio.stop")
        said = _outcome(guest, time.monotonic() + timeout)
    for report in _reports(said):
        for job in report["jobs"]:
            directions = [job[name] for name in ("read", "write")]
            load.commands += sum(direction["total_ios"] for direction in directions)
            load.longest = max(load.longest, *(direction["clat_ns"]["max"] / 1e9 for direction in directions))
            load.runs += 1


def _outcome(guest: Guest, deadline: float) -> str:
    """What fio said when it has ended well."""
    guest.run("until [ -e /tmp/fio.status ]; do sleep 0.1; done", timeout=deadline - time.monotonic())
    said = guest.run("cat /tmp/fio.out")
    if (status := guest.run("cat /tmp/fio.status").strip()) != "0":
        raise GuestError(
            f"fio ended with status {status} in the guest:\n{said}\n{guest.run('dmesg | tail -n 40')}"
        )
    return said


def _reports(said: str) -> Iterator[dict[str, Any]]:
    """The JSON objects among what fio said."""
    decoder = json.JSONDecoder()
    while (start := said.find("{\n")) >= 0:
        report, end = decoder.raw_decode(said[start:])
        yield report
        said = said[start + end :]
