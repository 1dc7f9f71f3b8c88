"""What is on the wire: vfio-user without I/O, without a PCI model, without threads.

::

    wire.py                what every message has: command, header, byte layouts
    messages.py            one dataclass a message, its layout beside it; all of them by name
      region_messages.py     regions: info, read, write
      dma_messages.py        guest memory: map, unmap, read, write; QEMU 10.1's layout
      migration_messages.py  features and migration
    capabilities.py        the JSON text of VERSION, and its negotiation
    codec.py               bytes and descriptors -> frames; partial input; limits
    states.py              who may send what, when: one table
    connection.py          ServerConnection, ClientConnection: feed(bytes, fds) -> events
"""

from outboard.protocol.capabilities import (
    CLIENT_DEFAULTS,
    SERVER_DEFAULTS,
    Capabilities,
    Migration,
    TwinSocket,
)
from outboard.protocol.codec import Header
from outboard.protocol.connection import (
    ClientConnection,
    ErrorReply,
    Event,
    Fatal,
    Malformed,
    Reply,
    Request,
    ServerConnection,
)
from outboard.protocol.messages import Command, DmaLayout, Message
from outboard.protocol.states import RULES, Direction, Rule, State

__all__ = [
    "CLIENT_DEFAULTS",
    "RULES",
    "SERVER_DEFAULTS",
    "Capabilities",
    "ClientConnection",
    "Command",
    "Direction",
    "DmaLayout",
    "ErrorReply",
    "Event",
    "Fatal",
    "Header",
    "Malformed",
    "Message",
    "Migration",
    "Reply",
    "Request",
    "Rule",
    "ServerConnection",
    "State",
    "TwinSocket",
]
