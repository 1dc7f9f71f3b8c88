"""Physical Region Pages: the two words and the lists that say where a command's data is.

NVMe Base 2.0, 4.1.1. The rules that drivers lean on, and that hostile ones break:

* PRP1 may start anywhere in a page, on a dword; every further page starts at its beginning.
* Data that needs one more page has it in PRP2; data that needs more has a pointer to a list there.
* A list may begin anywhere in a page, on a quadword, and ends with the page. If it does not hold all
  that is needed, its last entry points to the next list, which begins with a page.
"""

import struct

from outboard.devices.nvme.runs import Readable, Run, join
from outboard.devices.nvme.spec import PAGE
from outboard.devices.nvme.status import CommandFailed, Status
from outboard.errors import DmaError

_PRP1_LOCATION = 24
_PRP2_LOCATION = 32


def runs(memory: Readable, prp1: int, prp2: int, length: int) -> list[Run]:
    """Return the runs of guest memory that hold ``length`` bytes, neighbours joined.

    Raises `CommandFailed`: PRP_OFFSET_INVALID for a misaligned entry or list, DATA_TRANSFER_ERROR for a
    list that cannot be read. Never more than one list entry a page of ``length`` is read.
    """
    if prp1 & 3:
        raise _misaligned("PRP1", prp1, "a dword", _PRP1_LOCATION)
    first = min(length, PAGE - prp1 % PAGE)
    found = [(prp1, first)]
    left = length - first
    if left == 0:
        return found
    if left <= PAGE:
        pages = [prp2]
    else:
        pages = _list(memory, prp2, -(-left // PAGE))
    for page in pages:
        if page % PAGE:
            raise _misaligned("a PRP entry behind the first", page, "a page", _PRP2_LOCATION)
        size = min(left, PAGE)
        join(found, page, size)
        left -= size
    return found


def _list(memory: Readable, address: int, count: int) -> list[int]:
    """Return ``count`` entries of the list at ``address``, following its chain."""
    if address & 7:
        raise _misaligned("the PRP list", address, "a quadword", _PRP2_LOCATION)
    entries: list[int] = []
    while True:
        capacity = (PAGE - address % PAGE) // 8
        missing = count - len(entries)
        here = min(capacity, missing)
        try:
            data = memory.read(address, here * 8)
        except DmaError as error:
            raise CommandFailed(
                Status.DATA_TRANSFER_ERROR, f"the PRP list cannot be read: {error}", location=_PRP2_LOCATION
            ) from error
        entries += struct.unpack(f"<{here}Q", data)
        if missing <= capacity:
            return entries
        address = entries.pop()
        if address % PAGE:
            raise _misaligned("the next PRP list", address, "a page", _PRP2_LOCATION)


def _misaligned(what: str, address: int, boundary: str, location: int) -> CommandFailed:
    return CommandFailed(
        Status.PRP_OFFSET_INVALID, f"{what}, {address:#x}, does not begin on {boundary}", location=location
    )
