"""What can be said of namespaces, controllers and sockets: one name each, in the file, by flag and by socket.

Each class is declared once (`outboard.operation.declared`) and knows how to make what it describes.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Self

from outboard.device import DeviceContract
from outboard.devices.nvme import (
    Doorbells,
    Namespace,
    Nvme,
    PlacementLayout,
    Protection,
    Qos,
    Subsystem,
    Tuning,
    ZoneLayout,
)
from outboard.devices.nvme.namespace import ANA_GROUPS
from outboard.devices.nvme.placement import MOST_IDENTIFIERS
from outboard.devices.nvme.qos import MOST_BYTES, MOST_COMMANDS
from outboard.devices.nvme.spec import WriteProtection
from outboard.errors import ConfigurationError, DefinitionError
from outboard.native.jit import available
from outboard.operation.declared import Between, Misfit, Size, build, fields_of, from_text
from outboard.server import Server
from outboard.server.profiles import ProfileName
from outboard.storage import open_storage

SHAPE = ("block_size", "metadata", "extended", "shared", "ana_group", "tracked", "placement_handles")
"""What `Namespace` has under the same names."""
LIMITS = tuple(each.name for each in fields(Qos))
Commands = Annotated[int, Between(0, MOST_COMMANDS)]
Bytes = Annotated[Size, Between(0, MOST_BYTES)]


@dataclass(frozen=True, kw_only=True)
class NamespaceOptions:
    """A namespace: a back end, cut into blocks.

    Parameters
    ----------
    backend
        ram:SIZE, null:SIZE, a file or block device, FILE,size=SIZE for a file to be created, or
        volatile:BACKEND for one with a write cache that a power cut loses.
    nsid
        Its identifier; 0: the first one that is free.
    block_size
        Bytes of a block: 512 or 4096.
    metadata
        Bytes of metadata that go with each block: 0, 8, 16 or 64, as the block size allows.
    extended
        The host has the metadata of a block right behind it, instead of in a buffer of its own.
    pi
        Protection information of this type, 1 to 3, is the last of the metadata; 0: there is none.
    pi_first
        It is the first of the metadata instead.
    guard
        Bits of its guards: 16, or 64 with 16 bytes of metadata, either with 64.
    shared
        Several controllers may have it. Without that it is the first controller's.
    ana_group
        The group in which its accessibility is changed (ANA), path by path.
    tracked
        It is remembered which blocks are deallocated, so that a host may ask for an error when it reads one.
        Writes are slower.
    read_only
        It is write protected until this process ends, and no host can change that.
    placement_handles
        The reclaim unit handles by which hosts place data in it, if the subsystem has placement (FDP), by
        their numbers; hosts number them anew from 0. Without any, one that the controller chooses.
    iops
        Reads and writes that all its hosts together may have in a second; 0: any number.
    bytes_per_second
        Bytes that they may read and write in a second; 0: any number.
    read_iops
        Reads in a second; 0: any number.
    write_iops
        Writes in a second; 0: any number.
    read_bytes_per_second
        Bytes that they may read in a second; 0: any number.
    write_bytes_per_second
        Bytes that they may write in a second; 0: any number.
    zoned
        Its blocks are in zones, each of which is written from its beginning to its end.
    zone_size
        Bytes of a zone; Linux wants a power of two.
    zone_capacity
        Bytes of a zone that can be written; 0: all of them.
    zone_extension
        Bytes that a host may attach to the descriptor of a zone, a multiple of 64.
    zone_cross_read
        A read may go over the boundary of two zones.
    max_open
        Zones that may be open at once; 0: any number.
    max_active
        Zones that may be active (open, or closed with room left) at once; 0: any number.
    zrwa
        Bytes of a random write area that a host may have in a zone; 0: there are none.
    zrwa_granularity
        Bytes of the pieces in which it is committed; 0: a block.
    zrwa_resources
        How many of them there are at once; 0: one for each zone that may be active.
    """

    backend: str
    nsid: Annotated[int, Between(0, 0xFFFF_FFFE)] = 0
    block_size: Size = 512
    metadata: Size = 0
    extended: bool = False
    pi: Annotated[int, Between(0, 3)] = 0
    pi_first: bool = False
    guard: Annotated[int, Between(16, 64)] = 16
    shared: bool = True
    ana_group: Annotated[int, Between(1, ANA_GROUPS)] = 1
    tracked: bool = False
    read_only: bool = False
    placement_handles: tuple[Annotated[int, Between(0, MOST_IDENTIFIERS - 1)], ...] = ()
    iops: Commands = 0
    bytes_per_second: Bytes = 0
    read_iops: Commands = 0
    write_iops: Commands = 0
    read_bytes_per_second: Bytes = 0
    write_bytes_per_second: Bytes = 0
    zoned: bool = False
    zone_size: Size = 64 << 20
    zone_capacity: Size = 0
    zone_extension: Size = 0
    zone_cross_read: bool = True
    max_open: Annotated[int, Between(0, 1 << 18)] = 0
    max_active: Annotated[int, Between(0, 1 << 18)] = 0
    zrwa: Size = 0
    zrwa_granularity: Size = 0
    zrwa_resources: Annotated[int, Between(0, 1 << 18)] = 0

    @classmethod
    def of_text(cls, text: str) -> Self:
        """What ``BACKEND[,option=value...]`` says. Raises `ConfigurationError`.

        >>> space = NamespaceOptions.of_text("disk.img,size=8G,block_size=4K")
        >>> space.backend, space.block_size
        ('disk.img,size=8G', 4096)
        >>> NamespaceOptions.of_text("ram:1G,placement_handles=0,3,shared=off").placement_handles
        (0, 3)
        """
        kinds = {each.name: each.kind for each in fields_of(cls) if not each.required}
        given: dict[str, Any] = {}

        def note(found: re.Match[str]) -> str:
            given[found[1]] = from_text(kinds[found[1]], found[2])
            return ""

        # A number that follows belongs to a list.
        backend = re.sub(rf",({'|'.join(kinds)})=([^,]*(?:,[0-9]+(?![^,]))*)", note, text)
        try:
            found: Self = build(cls, {"backend": backend, **given})
        except Misfit as error:
            raise ConfigurationError(f"namespace {text}: {error}") from error
        return found

    @property
    def layout(self) -> ZoneLayout | None:
        """Its zones, if it has any. Raises `DefinitionError`."""
        if not self.zoned:
            if named := [each.name for each in _OF_ZONES if getattr(self, each.name) != each.default]:
                raise DefinitionError(f"{', '.join(named)}: that is said of zones, so say zoned as well")
            return None
        return ZoneLayout(
            size=self.zone_size,
            capacity=self.zone_capacity,
            extension=self.zone_extension,
            cross_read=self.zone_cross_read,
            most_open=self.max_open,
            most_active=self.max_active,
            zrwa=self.zrwa,
            zrwa_granularity=self.zrwa_granularity,
            zrwa_resources=self.zrwa_resources,
        )

    def open(self) -> Namespace:
        """The namespace, its storage open. Raises `StorageError` and `DefinitionError`."""
        shape = {name: getattr(self, name) for name in SHAPE}
        qos = Qos(**{name: getattr(self, name) for name in LIMITS})
        protection = Protection(self.pi, self.pi_first, self.guard) if self.pi else None
        layout = self.layout
        storage = open_storage(self.backend)
        try:
            space = Namespace(storage, zoned=layout, protection=protection, qos=qos or None, **shape)
            if self.read_only:
                space.write_protection = WriteProtection.UNTIL_POWER_CYCLE
            return space
        except BaseException:
            storage.close()
            raise


_OF_ZONES = [each for each in fields_of(NamespaceOptions) if each.name.startswith(("zone_", "max_", "zrwa"))]
"""What can be said of a namespace only if it is zoned."""


_LAYOUT = PlacementLayout()


@dataclass(frozen=True, kw_only=True)
class PlacementOptions:
    """Data placement (FDP): hosts say which data belongs together. In one line: ``handles=8,groups=2``.

    Parameters
    ----------
    handles
        Reclaim unit handles.
    groups
        Reclaim groups.
    unit
        Bytes of a reclaim unit, a multiple of 4K.
    """

    handles: Annotated[int, Between(1, MOST_IDENTIFIERS)] = _LAYOUT.handles
    groups: Annotated[int, Between(1, 256)] = _LAYOUT.groups
    unit: Size = _LAYOUT.unit

    def layout(self) -> PlacementLayout:
        """As the subsystem has it. Raises `DefinitionError`."""
        return PlacementLayout(self.handles, self.groups, self.unit)


@dataclass(frozen=True, kw_only=True)
class SocketOptions:
    """Who may connect to a socket.

    Parameters
    ----------
    socket_mode
        Permission bits of the socket's file in octal, as "660": to connect takes the right to write.
    socket_owner
        USER:GROUP, USER or :GROUP, by name or number, as for chown.
    allow_user
        Serve only processes of these users, by name or number.
    allow_group
        Serve only processes that are in these groups, by name or number.
    """

    socket_mode: str | None = None
    socket_owner: str | None = None
    allow_user: tuple[str, ...] = ()
    allow_group: tuple[str, ...] = ()

    @property
    def access(self) -> dict[str, Any]:
        """As arguments for `Server`. Raises `ConfigurationError` for a mode that is no octal number."""
        return {
            "mode": self.mode,
            "owner": self.socket_owner,
            "allow_users": self.allow_user,
            "allow_groups": self.allow_group,
        }

    @property
    def mode(self) -> int | None:
        """The permission bits."""
        try:
            return None if self.socket_mode is None else int(self.socket_mode, 8)
        except ValueError as error:
            raise ConfigurationError(
                f"socket_mode {self.socket_mode!r}: write the permission bits in octal, as 660"
            ) from error


@dataclass(frozen=True, kw_only=True)
class ControllerOptions:
    """How a controller is made, and how its queues are served.

    Parameters
    ----------
    vectors
        How many MSI-X vectors the controller has: the most a guest can spread its queues over. With 0
        it has MSI and INTx: QEMU up to 11.1 ends itself when a vfio-user device with MSI-X is unplugged.
    io_queues
        Pairs of I/O queues, at most.
    queue_entries
        Entries of an I/O queue, at most.
    mdts
        The largest transfer of a command, as a power of two of 4 KiB pages.
    zasl
        The largest of a Zone Append, likewise; 0: the same.
    doorbells
        How the guest tells of new commands. shadow: in its own memory, silently while a poller looks, with
        a message only when that sleeps (needs a driver that can, as Linux's). mmap: in a page that the
        client maps and a poller looks at all the time. trapped: by messages only. auto: mmap for a client
        that knows no other way, as SPDK's driver; else shadow.
    pollers
        Threads that serve the queues, spread over them. 0: the thread that serves the socket does it.
        Without the option one, or none where Numba is not installed.
    spin
        Microseconds a poller looks for more before it naps, at most; it spins less when that is in vain.
    nap
        Microseconds between looks at mapped doorbells after a while without commands, at most.
    """

    vectors: Annotated[int, Between(0, 2048)] = 129
    io_queues: Annotated[int, Between(1, 511)] = 128
    queue_entries: Annotated[int, Between(2, 1 << 16)] = 4096
    mdts: Annotated[int, Between(1, 16)] = 8
    zasl: Annotated[int, Between(0, 16)] = 0
    doorbells: Doorbells = "auto"
    pollers: Annotated[int, Between(0, 64)] | None = None
    spin: Annotated[int, Between(0, 10**6)] = Tuning.spin
    nap: Annotated[int, Between(1, 10**6)] = Tuning.longest_poll

    @property
    def tuning(self) -> Tuning:
        """How the queues are served."""
        pollers = int(available()) if self.pollers is None else self.pollers
        return Tuning(pollers=pollers, spin=self.spin, longest_poll=self.nap)

    def open(self, subsystem: Subsystem) -> Nvme:
        """One more controller of ``subsystem``. Raises `DefinitionError`."""
        return Nvme(
            subsystem=subsystem,
            vectors=self.vectors,
            io_queues=self.io_queues,
            queue_entries=self.queue_entries,
            mdts=self.mdts,
            zasl=self.zasl,
            doorbells=self.doorbells,
            tuning=self.tuning,
        )


@dataclass(frozen=True, kw_only=True)
class PlacedController(ControllerOptions, SocketOptions):
    """A controller and who may be its client.

    Parameters
    ----------
    profile
        What clients are taken for. auto: what their first message says.
    """

    profile: ProfileName = "auto"


@dataclass(frozen=True, kw_only=True)
class ServedController(PlacedController):
    """A controller and the socket it is served on.

    Parameters
    ----------
    socket
        The UNIX socket to listen on.
    fd
        Listen on this inherited descriptor instead; a connected one serves that one client.
    """

    socket: str | None = None
    fd: int | None = None

    def listen(self, device: DeviceContract, kind: Callable[..., Server] = Server) -> Server:
        """A server for ``device``, made by ``kind``, that listens already. Raises `SetupError`."""
        path = None if self.socket is None else Path(self.socket)
        return kind(device, path, fd=self.fd, profile=self.profile, **self.access)

    @property
    def place(self) -> str:
        """Where it is served, for people."""
        return f"descriptor {self.fd}" if self.socket is None else self.socket
