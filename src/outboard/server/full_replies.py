"""Replies in place of errors, for a client that does not look at the Error flag.

rust-vmm's client reads a reply of the size that success has, whatever the header says: after an error reply,
which is a header alone, it waits for the rest for ever, and the virtual machine with it.
"""

from outboard.protocol import Message
from outboard.protocol.messages import (
    DmaUnmap,
    IrqInfo,
    RegionInfo,
    RegionIoFds,
    RegionRead,
    RegionReadReply,
    RegionWrite,
    RegionWriteReply,
)


def full_reply(body: Message) -> Message | None:
    r"""What answers the failed request `body` in full size; None where success is a header alone as well.

    What was to be read is all ones, what was asked for is not there, what was to be done counts as done.

    >>> full_reply(RegionRead(offset=0, region=0, count=2)).data
    b'\xff\xff'
    """
    match body:
        case RegionRead(offset, region, count):
            return RegionReadReply(offset, region, count, b"\xff" * count)
        case RegionWrite(offset, region, count):
            return RegionWriteReply(offset, region, count)
        case DmaUnmap(_, flags, address, size):
            return DmaUnmap(DmaUnmap.LAYOUT.size, flags, address, size)
        case RegionInfo(index=index):
            return RegionInfo(RegionInfo.LAYOUT.size, 0, index, cap_offset=0, size=0, offset=0)
        case IrqInfo(index=index):
            return IrqInfo(IrqInfo.LAYOUT.size, 0, index, count=0)
        case RegionIoFds(index=index):
            return RegionIoFds(RegionIoFds.LAYOUT.size, 0, index, count=0)
    return None
