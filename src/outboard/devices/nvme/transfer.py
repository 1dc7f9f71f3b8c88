"""Moving a command's data between guest memory, ourselves and storage.

Shared memory is moved without a copy of ours: storage reads into, and writes from, the guest's own
pages. What is reached by message, or lies across two mappings, goes through a buffer of at most MDTS.

While a DMA message is awaited the host may do anything, a reset included. `Bus` notices, and raises
`Abandoned`, which ends the processing that was under way without a trace.
"""

from typing import Protocol

from outboard.devices.nvme.command import Command
from outboard.devices.nvme.prp import Segment, segments
from outboard.devices.nvme.status import CommandFailed, Status
from outboard.errors import DmaError, OutboardError
from outboard.storage import Storage


class Memory(Protocol):
    """Guest memory as `outboard.dma.GuestMemory` offers it."""

    def read(self, address: int, size: int) -> bytes:
        """Return a copy."""

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Store ``data``."""

    def view(self, address: int, size: int, *, writable: bool = False) -> memoryview:
        """Return the guest's own bytes, if they lie in one shared mapping."""


class Abandoned(Exception):
    """The controller was reset while a DMA message was awaited: forget what was being done."""


class Bus:
    """Guest memory during one life of the controller: between two resets.

    Whatever goes wrong with it, a message that is refused or never answered included, is a `DmaError`.
    """

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self._life = 0

    def end_life(self) -> None:
        """A reset: whoever waits for memory now gets `Abandoned`."""
        self._life += 1

    def read(self, address: int, size: int) -> bytes:
        """Return ``size`` bytes; raises `DmaError`, `Abandoned`."""
        life = self._life
        try:
            return self.memory.read(address, size)
        except OutboardError as error:
            raise _as_dma_error(error) from error
        finally:
            self._check(life)

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Store ``data``; raises `DmaError`, `Abandoned`."""
        life = self._life
        try:
            self.memory.write(address, data)
        except OutboardError as error:
            raise _as_dma_error(error) from error
        finally:
            self._check(life)

    def _check(self, life: int) -> None:
        if life != self._life:
            raise Abandoned


def _as_dma_error(error: OutboardError) -> DmaError:
    return error if isinstance(error, DmaError) else DmaError(str(error), errno=error.errno)


def check_flags(sq_id: int, command: Command) -> None:
    """Raise `CommandFailed` (Invalid Field) for flags that are not offered."""
    if command.flags:
        raise CommandFailed(
            Status.INVALID_FIELD, "fused commands and scatter gather lists are not offered", location=1
        )


def fetch(bus: Bus, command: Command, length: int) -> bytes:
    """Return the ``length`` bytes the host gives with ``command``: our own copy."""
    return _gather(bus, segments(bus, command.prp1, command.prp2, length))


def deliver(bus: Bus, command: Command, data: bytes) -> None:
    """Store ``data`` where ``command`` wants it."""
    _scatter(bus, segments(bus, command.prp1, command.prp2, len(data)), data)


def load(bus: Bus, command: Command, storage: Storage, offset: int, length: int) -> None:
    """Read: move ``length`` bytes at ``offset`` of ``storage`` to the guest."""
    runs = segments(bus, command.prp1, command.prp2, length)
    views = _views(bus, runs, writable=True)
    if views is None:
        _scatter(bus, runs, storage.read(offset, length))
        return
    for view in views:
        with view:
            storage.readinto(offset, view)
            offset += view.nbytes


def store(bus: Bus, command: Command, storage: Storage, offset: int, length: int) -> None:
    """Write: move ``length`` bytes from the guest to ``offset`` of ``storage``.

    All of the guest's memory is known to be there before the first byte is stored.
    """
    runs = segments(bus, command.prp1, command.prp2, length)
    views = _views(bus, runs, writable=False)
    if views is None:
        storage.write(offset, _gather(bus, runs))
        return
    for view in views:
        with view:
            storage.write(offset, view)
            offset += view.nbytes


def _views(bus: Bus, runs: list[Segment], *, writable: bool) -> list[memoryview] | None:
    """Return the guest's own bytes, or None if some have to be copied, or are not there at all."""
    try:
        return [bus.memory.view(address, size, writable=writable) for address, size in runs]
    except DmaError:
        return None


def _gather(bus: Bus, runs: list[Segment]) -> bytes:
    try:
        return b"".join([bus.read(address, size) for address, size in runs])
    except DmaError as error:
        raise CommandFailed(Status.DATA_TRANSFER_ERROR, str(error)) from error


def _scatter(bus: Bus, runs: list[Segment], data: bytes) -> None:
    source = memoryview(data)
    done = 0
    try:
        for address, size in runs:
            bus.write(address, source[done : done + size])
            done += size
    except DmaError as error:
        raise CommandFailed(Status.DATA_TRANSFER_ERROR, str(error)) from error
