"""A device that does nothing but in its subsystem's turn: see `outboard.devices.nvme.monitor`.

Every way into a device is here: the contract's methods, and what its loop calls. While memory is awaited
that a client gives by message the others have their turns: the client may be waiting for one of them.
"""

from collections.abc import Callable, Sequence

from outboard.device import Device
from outboard.device_state import Sent
from outboard.devices.nvme.monitor import Monitor
from outboard.dma import Mapping, RemoteMemory
from outboard.loop import Timer
from outboard.pci.interrupts import IrqAction, IrqData


class InTurn(Device):
    """A `Device` whose methods and callbacks run in `turn`."""

    turn: Monitor

    def region_write(self, region: int, offset: int, data: bytes) -> None:
        """As `Device`'s."""
        with self.turn:
            super().region_write(region, offset, data)

    def dma_map(self, mapping: Mapping) -> None:
        """As `Device`'s."""
        with self.turn:
            super().dma_map(mapping)

    def dma_unmap(self, address: int, size: int) -> None:
        """As `Device`'s."""
        with self.turn:
            super().dma_unmap(address, size)

    def set_irqs(
        self,
        index: int,
        action: IrqAction,
        data: IrqData,
        start: int,
        count: int,
        *,
        fds: Sequence[int] = (),
        bools: bytes = b"",
    ) -> None:
        """As `Device`'s."""
        with self.turn:
            super().set_irqs(index, action, data, start, count, fds=fds, bools=bools)

    def reset(self) -> None:
        """As `Device`'s."""
        with self.turn:
            super().reset()

    def connected(self, remote: RemoteMemory | None) -> None:
        """As `Device`'s."""
        with self.turn:
            super().connected(_Awaited(remote, self.turn) if remote is not None else None)

    def disconnected(self) -> None:
        """As `Device`'s."""
        with self.turn:
            super().disconnected()

    def stop_device(self) -> None:
        """As `Movable`'s."""
        with self.turn:
            super().stop_device()

    def run_device(self) -> None:
        """As `Movable`'s."""
        with self.turn:
            super().run_device()

    def save_state(self, sent: Sent | None = None) -> bytes:
        """As `Movable`'s."""
        with self.turn:
            return super().save_state(sent)

    def restore_state(self, stream: bytes | bytearray) -> None:
        """As `Movable`'s."""
        with self.turn:
            super().restore_state(stream)

    def _due(self, timer: Timer | None, callback: Callable[[], None]) -> None:
        with self.turn:
            super()._due(timer, callback)


class _Awaited:
    """Memory by message, for which the others have their turns."""

    def __init__(self, remote: RemoteMemory, turn: Monitor) -> None:
        self._remote = remote
        self._turn = turn

    def read(self, address: int, count: int) -> bytes:
        with self._turn.released():
            return self._remote.read(address, count)

    def write(self, address: int, data: bytes) -> None:
        with self._turn.released():
            self._remote.write(address, data)
