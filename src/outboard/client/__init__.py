"""The VMM's side of vfio-user.

* `client`: `Client`: configuration space, BARs, memory, interrupts, reset
* `link`: one command at a time, the server's own commands served meanwhile
* `transport`: what carries the messages
* `accessors`, `memory`, `interrupts`: what a client hands out
* `migration`: moving a device from one server to another
"""

from outboard.client.accessors import Accessor, MappedRegion, RegionAccess
from outboard.client.client import Client
from outboard.client.interrupts import Interrupt
from outboard.client.memory import GuestRam
from outboard.client.migration import Migration, migrate
from outboard.client.transport import SocketTransport, Transport

__all__ = [
    "Accessor",
    "Client",
    "GuestRam",
    "Interrupt",
    "MappedRegion",
    "Migration",
    "RegionAccess",
    "SocketTransport",
    "Transport",
    "migrate",
]
