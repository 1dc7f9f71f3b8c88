"""The demonstration without a virtual machine: outboard's own driver plays the guest."""

import hashlib
import os
from pathlib import Path

from outboard.cli.demo_steps import Report
from outboard.client import Client
from outboard.drivers.nvme import CNS_CONTROLLER, LARGEST_TRANSFER, NvmeDriver
from outboard.errors import GuestError

NSID = 1
AMOUNT = 64 << 20


def drive(socket: Path, size: int, model: str, report: Report) -> None:
    """Prove the disk that listens at ``socket``: find it, write, flush, come again, read back.

    Raises:
        GuestError: it is another disk, or other data came back.
    """
    report.step("find the disk", lambda: find(socket, size, model))
    written = report.step("write 64 MiB and flush", lambda: write(socket))
    found = report.step("come again and read", lambda: read(socket))
    if found != written:
        raise GuestError(f"other data came back: {written} was written, {found} read")


def find(socket: Path, size: int, model: str) -> str:
    """The controller's model and the first namespace's size, which have to be these."""
    with Client(socket) as client, NvmeDriver(client) as driver:
        name = driver.identify(CNS_CONTROLLER)[24:64].decode().rstrip()
        blocks = int.from_bytes(driver.identify(0, NSID)[:8], "little")
        found = f"{name}\n{blocks * driver.block_size(NSID)} bytes"
    if found != f"{model}\n{size} bytes":
        raise GuestError(f"the driver found another disk than {model!r} of {size} bytes: {found}")
    return found


def write(socket: Path) -> str:
    """Write random data; its checksum."""
    checksum = hashlib.sha256()
    with Client(socket) as client, NvmeDriver(client) as driver:
        for offset in range(0, AMOUNT, LARGEST_TRANSFER):
            data = os.urandom(LARGEST_TRANSFER)
            driver.write(NSID, offset, data)
            checksum.update(data)
        driver.flush(NSID)
    return checksum.hexdigest()


def read(socket: Path) -> str:
    """The checksum of what is there now."""
    checksum = hashlib.sha256()
    with Client(socket) as client, NvmeDriver(client) as driver:
        for offset in range(0, AMOUNT, LARGEST_TRANSFER):
            checksum.update(driver.read(NSID, offset, LARGEST_TRANSFER))
    return checksum.hexdigest()
