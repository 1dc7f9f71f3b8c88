"""Moving a command's data between guest memory and ourselves.

It goes through a buffer of ours, of at most MDTS: storage may be slow, in a thread of its own, and the
guest's pages may go while it works.

While a DMA message is awaited the host may do anything, a reset included. `Bus` notices, and raises
`Abandoned`, which ends the processing that was under way without a trace.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from outboard.devices.nvme import prp, sgl
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.runs import DISCARDED, Run
from outboard.devices.nvme.status import CommandFailed, Status
from outboard.errors import DmaError, OutboardError


class Memory(Protocol):
    """Guest memory as `outboard.dma.GuestMemory` offers it."""

    def read(self, address: int, size: int) -> bytes:
        """Return a copy."""

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Store ``data``."""


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

    @contextmanager
    def one_life(self) -> Iterator[None]:
        """Raise `Abandoned` if a reset has come when the block is left: others had their turns in it."""
        life = self._life
        yield
        self._check(life)

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


def check_io_flags(command: Command) -> None:
    """Raise `CommandFailed` (Invalid Field) for flags that no I/O command has: fused ones are not offered."""
    _check_flags(command, "an I/O", most_psdt=2)


def check_admin_flags(command: Command) -> None:
    """Raise `CommandFailed` (Invalid Field) for flags that no admin command has.

    Those are SGLs, too: NVMe over PCIe has PRPs there.
    """
    _check_flags(command, "an admin", most_psdt=0)


def _check_flags(command: Command, kind: str, *, most_psdt: int) -> None:
    if command.flags & 0x3F:
        raise CommandFailed(Status.INVALID_FIELD, "fused commands are not offered", location=1)
    if command.psdt > most_psdt:
        raise CommandFailed(
            Status.INVALID_FIELD, f"PSDT {command.psdt} is not for {kind} command", location=1
        )


def runs(bus: Bus, command: Command, length: int, *, reading: bool) -> list[Run]:
    """Return the runs of guest memory for ``command``'s data, of ``length`` bytes; PRPs or SGL.

    ``reading`` says that the command fills guest memory. Raises `CommandFailed`.
    """
    if command.psdt:
        return sgl.runs(bus, command.prp1, command.prp2, length, reading=reading)
    return prp.runs(bus, command.prp1, command.prp2, length)


def fetch(bus: Bus, command: Command, length: int) -> bytes:
    """Return the ``length`` bytes the host gives with ``command``: our own copy. Raises `CommandFailed`."""
    return gather(bus, runs(bus, command, length, reading=False))


def gather(bus: Bus, found: list[Run]) -> bytes:
    """Return what these runs hold: our own copy. Raises `CommandFailed` (Data Transfer Error)."""
    try:
        return b"".join([bus.read(address, size) for address, size in found])
    except DmaError as error:
        raise CommandFailed(Status.DATA_TRANSFER_ERROR, str(error)) from error


def deliver(bus: Bus, command: Command, data: bytes | bytearray) -> None:
    """Store ``data`` where ``command`` wants it. Raises `CommandFailed`."""
    scatter(bus, runs(bus, command, len(data), reading=True), data)


def scatter(bus: Bus, found: list[Run], data: bytes | bytearray) -> None:
    """Store ``data`` in these runs. Raises `CommandFailed` (Data Transfer Error)."""
    source = memoryview(data)
    done = 0
    try:
        for address, size in found:
            if address != DISCARDED:
                bus.write(address, source[done : done + size])
            done += size
    except DmaError as error:
        raise CommandFailed(Status.DATA_TRANSFER_ERROR, str(error)) from error
