"""Who may send what, when: one table for both connections, and for the documentation.

vfio-user specification, "Message IDs". A connection is new until VERSION is agreed, then open, and
closed after an error that leaves the stream out of step.
"""

from dataclasses import dataclass
from enum import Enum

from outboard.protocol.codec import MAX_FDS
from outboard.protocol.messages import (
    DeviceFeature,
    DeviceInfo,
    DeviceReset,
    DirtyPages,
    DmaMap,
    DmaRead,
    DmaReadReply,
    DmaUnmap,
    DmaWrite,
    DmaWriteReply,
    Empty,
    IrqInfo,
    MigDataRead,
    MigDataReadReply,
    MigDataWrite,
    RegionInfo,
    RegionIoFds,
    RegionRead,
    RegionReadReply,
    RegionWrite,
    RegionWriteMulti,
    RegionWriteMultiReply,
    RegionWriteReply,
    SetIrqs,
    Version,
)
from outboard.protocol.wire import Command, Message


class State(Enum):
    """Where a connection stands."""

    NEW = "new"
    OPEN = "open"
    CLOSED = "closed"


class Direction(Enum):
    """Which side sends a command; the other replies."""

    TO_SERVER = "client to server"
    TO_CLIENT = "server to client"


@dataclass(frozen=True, slots=True)
class Rule:
    """What is allowed for one command.

    ``request_fds`` is how many descriptors the command may have. Where that is none, strays are handed
    over with the request, to be closed by its holder: SPDK attaches one to DMA_UNMAP. ``reply_fds``
    says whether the reply may have some. ``bare_reply``: a reply of only a header is taken for success,
    as `Empty`: QEMU 10.1 and others leave the echo out.
    """

    command: Command
    direction: Direction
    request: type[Message]
    reply: type[Message]
    request_fds: int = 0
    reply_fds: bool = False
    bare_reply: bool = False
    state: State = State.OPEN


TO_SERVER, TO_CLIENT = Direction.TO_SERVER, Direction.TO_CLIENT

RULES: dict[int, Rule] = {
    rule.command: rule
    for rule in (
        Rule(Command.VERSION, TO_SERVER, Version, Version, reply_fds=True, state=State.NEW),
        Rule(Command.DMA_MAP, TO_SERVER, DmaMap, Empty, request_fds=1),
        Rule(Command.DMA_UNMAP, TO_SERVER, DmaUnmap, DmaUnmap, bare_reply=True),
        Rule(Command.DEVICE_GET_INFO, TO_SERVER, DeviceInfo, DeviceInfo),
        Rule(Command.DEVICE_GET_REGION_INFO, TO_SERVER, RegionInfo, RegionInfo, reply_fds=True),
        Rule(Command.DEVICE_GET_REGION_IO_FDS, TO_SERVER, RegionIoFds, RegionIoFds, reply_fds=True),
        Rule(Command.DEVICE_GET_IRQ_INFO, TO_SERVER, IrqInfo, IrqInfo),
        Rule(Command.DEVICE_SET_IRQS, TO_SERVER, SetIrqs, Empty, request_fds=MAX_FDS),
        Rule(Command.REGION_READ, TO_SERVER, RegionRead, RegionReadReply),
        Rule(Command.REGION_WRITE, TO_SERVER, RegionWrite, RegionWriteReply, bare_reply=True),
        Rule(Command.DMA_READ, TO_CLIENT, DmaRead, DmaReadReply),
        Rule(Command.DMA_WRITE, TO_CLIENT, DmaWrite, DmaWriteReply, bare_reply=True),
        Rule(Command.DEVICE_RESET, TO_SERVER, DeviceReset, Empty),
        Rule(Command.DIRTY_PAGES, TO_SERVER, DirtyPages, DirtyPages, bare_reply=True),
        Rule(Command.REGION_WRITE_MULTI, TO_SERVER, RegionWriteMulti, RegionWriteMultiReply, bare_reply=True),
        Rule(Command.DEVICE_FEATURE, TO_SERVER, DeviceFeature, DeviceFeature, bare_reply=True),
        Rule(Command.MIG_DATA_READ, TO_SERVER, MigDataRead, MigDataReadReply),
        Rule(Command.MIG_DATA_WRITE, TO_SERVER, MigDataWrite, Empty),
    )
}

RULE_OF_REQUEST: dict[type[Message], Rule] = {rule.request: rule for rule in RULES.values()}
