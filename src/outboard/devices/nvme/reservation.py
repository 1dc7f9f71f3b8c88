"""Who has registered with a namespace, and who has reserved it (NVMe Base 2.0, 8.19).

Hosts that share a namespace agree by this on which of them may use it. A host is told apart by its Host
Identifier, whatever controller it comes by. Nothing here knows of controllers or commands: a method is an
action of a reservation command, which raises `CommandFailed` and changes nothing, or returns who is to hear.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, IntEnum
from typing import Any, Self

from outboard.devices.nvme.status import CommandFailed, Status
from outboard.devices.nvme.store import Store
from outboard.errors import SetupError

SECTION = "reservations"
"""What a store keeps of them, by namespace identifier."""

MOST_REGISTRANTS = 256
"""Hosts that may be registered with a namespace at once: identifiers cost them nothing."""


class Type(IntEnum):
    """Types of reservations, by how many may write and how many may read."""

    WRITE_EXCLUSIVE = 1
    EXCLUSIVE_ACCESS = 2
    WRITE_EXCLUSIVE_REGISTRANTS_ONLY = 3
    EXCLUSIVE_ACCESS_REGISTRANTS_ONLY = 4
    WRITE_EXCLUSIVE_ALL_REGISTRANTS = 5
    EXCLUSIVE_ACCESS_ALL_REGISTRANTS = 6


ALL_REGISTRANTS = frozenset({Type.WRITE_EXCLUSIVE_ALL_REGISTRANTS, Type.EXCLUSIVE_ACCESS_ALL_REGISTRANTS})
"""Each registrant holds these."""

FOR_REGISTRANTS = ALL_REGISTRANTS | {
    Type.WRITE_EXCLUSIVE_REGISTRANTS_ONLY,
    Type.EXCLUSIVE_ACCESS_REGISTRANTS_ONLY,
}
"""Registrants lose something when one of these ends, and are told."""


class Group(Enum):
    """What commands are to a reservation."""

    READ = "read"
    WRITE = "write"
    OTHER = "any other"


ALLOWED, CONFLICT = False, True

BEHAVIOR: Mapping[Type, Mapping[Group, tuple[bool, bool]]] = {
    Type.WRITE_EXCLUSIVE: {Group.READ: (ALLOWED, ALLOWED), Group.WRITE: (CONFLICT, CONFLICT)},
    Type.EXCLUSIVE_ACCESS: {Group.READ: (CONFLICT, CONFLICT), Group.WRITE: (CONFLICT, CONFLICT)},
    Type.WRITE_EXCLUSIVE_REGISTRANTS_ONLY: {
        Group.READ: (ALLOWED, ALLOWED),
        Group.WRITE: (CONFLICT, ALLOWED),
    },
    Type.EXCLUSIVE_ACCESS_REGISTRANTS_ONLY: {
        Group.READ: (CONFLICT, ALLOWED),
        Group.WRITE: (CONFLICT, ALLOWED),
    },
    Type.WRITE_EXCLUSIVE_ALL_REGISTRANTS: {Group.READ: (ALLOWED, ALLOWED), Group.WRITE: (CONFLICT, ALLOWED)},
    Type.EXCLUSIVE_ACCESS_ALL_REGISTRANTS: {
        Group.READ: (CONFLICT, ALLOWED),
        Group.WRITE: (CONFLICT, ALLOWED),
    },
}
"""Command Behavior in the Presence of a Reservation: of who has not registered, and of who has and
does not hold it. A holder may do everything."""


class Notification(IntEnum):
    """What a host hears of what another one did."""

    REGISTRATION_PREEMPTED = 1
    RESERVATION_RELEASED = 2
    RESERVATION_PREEMPTED = 3


@dataclass(frozen=True, slots=True)
class Host:
    """A host by its identifier, of 8 or 16 bytes. Without one it is who uses controller ``cntlid``."""

    identifier: bytes
    cntlid: int = 0


Notices = Sequence[tuple[Host, Notification]]
"""Who is to hear what."""


@dataclass(slots=True)
class Reservation:
    """The registrants of a namespace with their ``keys``, and the ``type`` of its reservation, if it has one.

    ``holder`` is the one host that holds it; None if all registrants do. ``persistent``: all this outlives
    a power cycle. ``generation`` counts what changed.
    """

    keys: dict[Host, int] = field(default_factory=dict)
    type: Type | None = None
    holder: Host | None = None
    generation: int = 0
    persistent: bool = False

    def copy(self) -> Self:
        """Another one that is the same."""
        return replace(self, keys=dict(self.keys))

    def holds(self, host: Host) -> bool:
        """Whether the reservation is (also) that host's."""
        return self.type is not None and (
            host in self.keys if self.type in ALL_REGISTRANTS else host == self.holder
        )

    def conflicts(self, host: Host, group: Group) -> bool:
        """Whether a command of that host has to be refused."""
        if self.type is None or group is Group.OTHER or self.holds(host):
            return False
        return BEHAVIOR[self.type][group][host in self.keys]

    def rights(self, host: Host) -> tuple[bool, bool]:
        """Whether that host may read, and whether it may write."""
        return not self.conflicts(host, Group.READ), not self.conflicts(host, Group.WRITE)

    def register(self, host: Host, key: int) -> Notices:
        """Make ``host`` a registrant; once more with the same key does no harm."""
        if self.keys.get(host, key) != key:
            raise _conflict("the host has registered with another key")
        if len(self.keys) >= MOST_REGISTRANTS and host not in self.keys:
            raise _conflict(f"{MOST_REGISTRANTS} hosts have registered already")
        self.keys[host] = key
        self._count()
        return []

    def unregister(self, host: Host, key: int | None) -> Notices:
        """Have ``host`` be none any more; without a ``key``, whatever its key is."""
        self._require(host, key)
        self._count()
        return self.forget(host)

    def replace_key(self, host: Host, key: int | None, new: int) -> Notices:
        """Give a registrant another key; without a ``key``, whatever its key is."""
        self._require(host, key)
        self.keys[host] = new
        self._count()
        return []

    def acquire(self, host: Host, key: int, type: Type) -> Notices:
        """Reserve the namespace; once more as the same type does no harm."""
        self._require(host, key)
        if self.type is None:
            self._take(host, type)
        elif not self.holds(host) or self.type != type:
            raise _conflict(f"there is a reservation of type {self.type} already")
        return []

    def preempt(self, host: Host, key: int, victim: int, type: Type) -> tuple[set[Host], Notices]:
        """Unregister the hosts with the key ``victim``; take the reservation over if it was one of theirs.

        The hosts that are no registrants any more come with the notices.
        """
        self._require(host, key)
        matching = {each for each, theirs in self.keys.items() if theirs == victim}
        before = self.type
        if before in ALL_REGISTRANTS and victim == 0:
            victims = set(self.keys) - {host}
            self._take(host, type)
        elif self.holder is not None and self.holder in matching:
            victims = matching - {host}
            self._take(host, type)
        elif before is not None and victim == 0:
            raise CommandFailed(Status.INVALID_FIELD, "the holder's key is not 0")
        elif not matching:
            raise _conflict(f"nobody has registered with the key {victim:#x}")
        else:
            victims = matching
        for each in victims:
            del self.keys[each]
        if not self.keys:
            self.type = self.holder = None
        self._count()
        notices = [(each, Notification.REGISTRATION_PREEMPTED) for each in victims - {host}]
        if before in FOR_REGISTRANTS and before != self.type:
            notices += self._tell(Notification.RESERVATION_RELEASED, self.keys.keys() - {host})
        return victims, notices

    def release(self, host: Host, key: int, type: int) -> Notices:
        """Give the reservation up; whoever does not hold it does nothing by that."""
        self._require(host, key)
        if not self.holds(host):
            return []
        if type != self.type:
            raise CommandFailed(
                Status.INVALID_FIELD, f"the reservation is of type {self.type}, not {type}", location=41
            )
        return self._end(self.keys.keys() - {host})

    def clear(self, host: Host, key: int) -> Notices:
        """End the reservation and every registration."""
        self._require(host, key)
        others = self.keys.keys() - {host}
        self.keys.clear()
        self.type = self.holder = None
        self._count()
        return self._tell(Notification.RESERVATION_PREEMPTED, others)

    def forget(self, host: Host) -> Notices:
        """That host is not registered any more, if it was; what it held alone ends."""
        if self.keys.pop(host, None) is None:
            return []
        if self.holder == host or (self.type in ALL_REGISTRANTS and not self.keys):
            return self._end(self.keys.keys())
        return []

    def save(self) -> dict[str, Any]:
        """All of it, as JSON."""
        return {
            "keys": [[host.identifier.hex(), host.cntlid, key] for host, key in self.keys.items()],
            "type": self.type or 0,
            "holder": [self.holder.identifier.hex(), self.holder.cntlid] if self.holder else None,
            "generation": self.generation,
            "persistent": self.persistent,
        }

    @classmethod
    def load(cls, saved: Mapping[str, Any]) -> Self:
        """What `save` gave. Raises KeyError, ValueError, TypeError."""
        keys = {_host(*names): int(key) for *names, key in saved["keys"]}
        holder = _host(*saved["holder"]) if saved["holder"] else None
        type = Type(saved["type"]) if saved["type"] else None
        held_by_one = type is not None and type not in ALL_REGISTRANTS
        if held_by_one != (holder in keys) or (type is not None and not keys) or len(keys) > MOST_REGISTRANTS:
            raise ValueError("this is held by none of its registrants")
        return cls(keys, type, holder, int(saved["generation"]) & 0xFFFF_FFFF, bool(saved["persistent"]))

    def after_power_loss(self) -> Self:
        """What is left then: of hosts without an identifier nothing, and of others if it is persistent."""
        left = type(self)()
        if self.persistent:
            left = self.copy()
            for host in self.keys:
                if not host.identifier:
                    left.forget(host)
        return left

    def _require(self, host: Host, key: int | None) -> None:
        if host not in self.keys:
            raise _conflict("the host has not registered")
        if key is not None and self.keys[host] != key:
            raise _conflict("that is not the host's key")

    def _take(self, host: Host, type: Type) -> None:
        self.type, self.holder = type, None if type in ALL_REGISTRANTS else host

    def _end(self, concerned: Collection[Host]) -> Notices:
        """There is no reservation any more; who had something of it hears that."""
        before, self.type, self.holder = self.type, None, None
        return self._tell(Notification.RESERVATION_RELEASED, concerned) if before in FOR_REGISTRANTS else []

    def _count(self) -> None:
        self.generation = (self.generation + 1) & 0xFFFF_FFFF

    @staticmethod
    def _tell(what: Notification, hosts: Collection[Host]) -> Notices:
        return [(host, what) for host in hosts]


def keep(store: Store, nsid: int, reservation: Reservation, *, anyway: bool = False) -> None:
    """Have ``store`` remember what outlives a power cycle, as `Store.put` does. Raises `SetupError`."""
    section = dict(store.get(SECTION, {}))
    section.pop(str(nsid), None)
    if reservation.persistent:
        section[str(nsid)] = reservation.save() | {"generation": 0}
    store.put(SECTION, section, anyway=anyway)


def kept(store: Store, nsid: int) -> Reservation:
    """What is left of a namespace's reservation after a power cycle. Raises `SetupError`."""
    try:
        saved = store.get(SECTION, {}).get(str(nsid))
        return Reservation.load(saved).after_power_loss() if saved else Reservation()
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise SetupError(
            f"{store.path} has no sound reservation of namespace {nsid}: {error!r}; take it out of there"
        ) from error


def _host(identifier: str, cntlid: int) -> Host:
    return Host(bytes.fromhex(identifier), int(cntlid))


def _conflict(sentence: str) -> CommandFailed:
    return CommandFailed(Status.RESERVATION_CONFLICT, sentence)
