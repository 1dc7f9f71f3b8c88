"""What the tests ask of a Linux in a guest, and how."""

import hashlib

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
