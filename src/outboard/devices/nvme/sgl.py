"""Scatter Gather Lists: descriptors of 16 bytes that say where a command's data is.

NVMe Base 2.0, 4.1.2. Of the types there are, four are offered (Data Block, Bit Bucket, Segment, Last
Segment), with addresses as their only sub type. The rules that drivers lean on, and hostile ones break:

* The command holds one descriptor. It is the data, or points to a segment, an array of descriptors.
* The last descriptor of a segment may point to the next; a Last Segment says that none comes after it.
* Data may begin at any byte and have any number of them (SGLS in Identify Controller says so).
* A bit bucket throws away what a command reads; what a command writes has nothing to throw away.

A list ends where the data does: it may describe more than that, and nothing behind it is looked at.
A command may use `LIMIT` descriptors and one more for each page of its data.
"""

import struct
from collections.abc import Iterator

from outboard.devices.nvme.runs import DISCARDED, Readable, Run, join
from outboard.devices.nvme.spec import PAGE
from outboard.devices.nvme.status import CommandFailed, Status
from outboard.errors import DmaError

OFFERED, BIT_BUCKETS, LONGER_THAN_DATA = 0b01, 1 << 16, 1 << 18
"""What of SGLS in Identify Controller is true here; SGLs are `OFFERED` without a granularity."""

LIMIT = 1024
"""Descriptors read for a command, besides one a page of data: lists can be empty, and run in circles."""

DATA_BLOCK, BIT_BUCKET, SEGMENT, LAST_SEGMENT = 0x00, 0x10, 0x20, 0x30
"""SGL identifiers: the type above the sub type, which is 0, an address."""

_DESCRIPTOR = struct.Struct("<QI3xB")
_IN_COMMAND = struct.Struct("<QQ")
_LOCATION = 24

_Descriptor = tuple[int, int, int]
"""Address, length in bytes, identifier."""


def runs(memory: Readable, low: int, high: int, length: int, *, reading: bool) -> list[Run]:
    """Return the runs of guest memory for ``length`` bytes, neighbours joined.

    ``low`` and ``high`` are the two words of the command's data pointer. ``reading`` says that the
    command fills guest memory: only then are there runs at `DISCARDED`.

    Raises `CommandFailed`: SGL_DESCRIPTOR_TYPE_INVALID, INVALID_SGL_SEGMENT_DESCRIPTOR,
    INVALID_NUMBER_OF_SGL_DESCRIPTORS (too many, or a segment in the middle of one),
    DATA_SGL_LENGTH_INVALID (too short), DATA_TRANSFER_ERROR (a segment cannot be read).
    """
    found: list[Run] = []
    left = length
    first = _DESCRIPTOR.unpack(_IN_COMMAND.pack(low, high))
    for address, described, identifier in _walk(memory, first, LIMIT + length // PAGE):
        if described == 0 or (identifier == BIT_BUCKET and not reading):
            continue
        size = min(described, left)
        if identifier == BIT_BUCKET:
            found.append((DISCARDED, size))
        else:
            join(found, address, size)
        left -= size
        if left == 0:
            return found
    raise _failed(Status.DATA_SGL_LENGTH_INVALID, f"the list ends {left:#x} bytes short of {length:#x}")


def _walk(memory: Readable, descriptor: _Descriptor, limit: int) -> Iterator[_Descriptor]:
    """Give the data descriptors in turn, up to ``limit`` of any kind; ``descriptor`` is the command's own."""
    address, length, identifier = descriptor
    _check_identifier(identifier)
    if identifier in (DATA_BLOCK, BIT_BUCKET):
        yield descriptor
        return
    seen = 0
    while True:
        _check_segment(address, length)
        pointer, last = None, identifier == LAST_SEGMENT
        for entry in _entries(memory, address, length):
            if pointer:
                raise _failed(
                    Status.INVALID_NUMBER_OF_SGL_DESCRIPTORS, "a segment descriptor is not its segment's last"
                )
            seen += 1
            if seen > limit:
                raise _failed(
                    Status.INVALID_NUMBER_OF_SGL_DESCRIPTORS, f"the list has more than {limit} descriptors"
                )
            _check_identifier(entry[2])
            if entry[2] in (DATA_BLOCK, BIT_BUCKET):
                yield entry
            elif last:
                raise _failed(
                    Status.INVALID_SGL_SEGMENT_DESCRIPTOR, "the last segment holds a segment descriptor"
                )
            else:
                pointer = entry
        if pointer is None:
            return
        address, length, identifier = pointer


def _entries(memory: Readable, address: int, length: int) -> Iterator[_Descriptor]:
    """Read a segment, a page's worth at a time, as it is asked for: it may claim to have 4 GiB."""
    for start in range(address, address + length, PAGE):
        try:
            data = memory.read(start, min(PAGE, address + length - start))
        except DmaError as error:
            raise _failed(Status.DATA_TRANSFER_ERROR, f"an SGL segment cannot be read: {error}") from error
        yield from _DESCRIPTOR.iter_unpack(data)


def _check_identifier(identifier: int) -> None:
    if identifier not in (DATA_BLOCK, BIT_BUCKET, SEGMENT, LAST_SEGMENT):
        raise _failed(
            Status.SGL_DESCRIPTOR_TYPE_INVALID,
            f"SGL descriptors of type {identifier >> 4:#x}, sub type {identifier & 0xF:#x}, are not offered",
        )


def _check_segment(address: int, length: int) -> None:
    if address & 7 or length == 0 or length % _DESCRIPTOR.size:
        raise _failed(
            Status.INVALID_SGL_SEGMENT_DESCRIPTOR,
            f"{length:#x} bytes at {address:#x} are no segment: whole descriptors, from a quadword on",
        )


def _failed(status: Status, sentence: str) -> CommandFailed:
    return CommandFailed(status, sentence, location=_LOCATION)
