"""The VMM's side of vfio-user.

* `client`: `Client`: configuration space, BARs, memory, interrupts, reset
* `link`: one command at a time, the server's own commands served meanwhile
* `transport`: what carries the messages
* `accessors`, `doorbells`, `memory`, `interrupts`: what a client hands out
* `migration`: moving a device from one server to another
* `writes`: many writes in few messages
"""

from outboard.client.accessors import Accessor, MappedRegion, RegionAccess
from outboard.client.client import Client
from outboard.client.doorbells import Doorbell, Doorbells
from outboard.client.interrupts import Interrupt
from outboard.client.memory import GuestRam
from outboard.client.migration import Migration, migrate
from outboard.client.transport import SocketTransport, Transport

__all__ = [
    "Accessor",
    "Client",
    "Doorbell",
    "Doorbells",
    "GuestRam",
    "Interrupt",
    "MappedRegion",
    "Migration",
    "RegionAccess",
    "SocketTransport",
    "Transport",
    "migrate",
]
