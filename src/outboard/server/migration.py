"""Migration: the states a device goes through, and its stream of data (VFIO's migration v2).

vfio-user specification, "VFIO_USER_DEVICE_FEATURE", "VFIO_USER_MIG_DATA_READ" and "..._WRITE". A client asks
for a state; the device gets there by the shortest path of the arcs below, one at a time.
"""

from collections import deque
from typing import Protocol

from outboard.device import DeviceContract
from outboard.errors import RequestRefused
from outboard.protocol.messages import MigrationFlag, MigrationState

ERROR, STOP, RUNNING, STOP_COPY = (
    MigrationState.ERROR,
    MigrationState.STOP,
    MigrationState.RUNNING,
    MigrationState.STOP_COPY,
)
RESUMING, RUNNING_P2P = MigrationState.RESUMING, MigrationState.RUNNING_P2P
PRE_COPY, PRE_COPY_P2P = MigrationState.PRE_COPY, MigrationState.PRE_COPY_P2P

ARCS: dict[MigrationState, tuple[MigrationState, ...]] = {
    ERROR: (),
    STOP: (RUNNING_P2P, STOP_COPY, RESUMING),
    RUNNING: (RUNNING_P2P, PRE_COPY),
    STOP_COPY: (STOP,),
    RESUMING: (STOP,),
    RUNNING_P2P: (RUNNING, STOP, PRE_COPY_P2P),
    PRE_COPY: (RUNNING, PRE_COPY_P2P, STOP_COPY),
    PRE_COPY_P2P: (PRE_COPY, RUNNING_P2P, STOP_COPY),
}
"""Where a device can go in one step."""

SAVING = frozenset({STOP_COPY, PRE_COPY, PRE_COPY_P2P})
"""States that begin or go on with a stream: no path leads through one of them."""

RUNS = frozenset({RUNNING, PRE_COPY})
"""States in which the device runs. In the P2P ones it is stopped already, which is more than is asked for."""

FLAGS = MigrationFlag.STOP_COPY | MigrationFlag.P2P | MigrationFlag.PRE_COPY

LARGEST_STATE = 1 << 30
"""Bytes of a stream that are taken in before the device is restored from them."""


class MovableDevice(Protocol):
    """What a device needs to be migrated; `outboard.Device` has it."""

    def stop_device(self) -> None:
        """Do nothing any more; harmless to repeat."""

    def run_device(self) -> None:
        """Go on; harmless to repeat."""

    def save_state(self, sent: dict[str, bytes] | None = None) -> bytes:
        """The whole state, without what ``sent`` says was saved before."""

    def save_memory(self, sent: dict[str, bytes]) -> bytes:
        """What may be saved while the device runs, and ``sent`` does not have."""

    def restore_state(self, stream: bytes | bytearray) -> None:
        """Become what was saved."""


def movable(device: DeviceContract) -> MovableDevice | None:
    """The device if it can be migrated, or None."""
    return device if hasattr(device, "save_state") else None  # type: ignore[return-value]


def path(start: MigrationState, goal: MigrationState) -> list[MigrationState] | None:
    """The steps from ``start`` to ``goal``; none (None) if it is not allowed.

    >>> [state.name for state in path(RUNNING, STOP_COPY)]
    ['RUNNING_P2P', 'STOP', 'STOP_COPY']
    """
    if goal is ERROR or (start is STOP_COPY and goal in (PRE_COPY, PRE_COPY_P2P)):
        return None
    waiting = deque([[start]])
    seen = {start}
    while waiting:
        steps = waiting.popleft()
        if steps[-1] is goal:
            return steps[1:]
        for state in ARCS[steps[-1]]:
            if state not in seen and (state is goal or state not in SAVING):
                seen.add(state)
                waiting.append([*steps, state])
    return None


class Migration:
    """Where ``device`` stands, for one client."""

    def __init__(self, device: MovableDevice) -> None:
        self.state = RUNNING
        self._device = device
        self._stream = bytearray()
        self._sent: dict[str, bytes] = {}

    def go_to(self, goal: MigrationState) -> None:
        """Take the device to ``goal``.

        Raises RequestRefused if no path leads there. When a step fails the error is passed on, and the state
        is the one before it; after a stream that is no good it is ERROR, which only a reset ends.
        """
        steps = path(self.state, goal)
        if steps is None:
            raise RequestRefused(f"no path of migration states leads from {self.state.name} to {goal.name}")
        for state in steps:
            self._step(state)
            self.state = state

    def reset(self) -> None:
        """The device was reset: it runs, and a stream is forgotten."""
        self.state = RUNNING
        self._forget()
        self._device.run_device()

    def read(self, size: int) -> bytes:
        """The next ``size`` bytes of the stream; fewer at its end, or at what there is of it so far.

        Raises RequestRefused in a state without a stream.
        """
        if self.state not in SAVING:
            raise RequestRefused(f"there is no migration data to read in the state {self.state.name}")
        if not self._stream and self.state is not STOP_COPY:
            self._stream += self._device.save_memory(self._sent)
        data = bytes(self._stream[:size])
        del self._stream[:size]
        return data

    def write(self, data: bytes) -> None:
        """The next bytes of a stream that another device has given. Raises RequestRefused."""
        if self.state is not RESUMING:
            raise RequestRefused(f"migration data is not taken in the state {self.state.name}")
        if len(self._stream) + len(data) > LARGEST_STATE:
            raise RequestRefused(
                f"more than {LARGEST_STATE:#x} bytes of migration data are not taken: a disk that is larger"
                " moves as a file that both ends open"
            )
        self._stream += data

    def _step(self, state: MigrationState) -> None:
        before = self.state
        if state is RESUMING:
            self._forget()
        elif before is RESUMING:
            self._restore()
        elif (state in SAVING) != (before in SAVING):
            self._forget()
        if state in RUNS:
            self._device.run_device()
        else:
            self._device.stop_device()
        if state is STOP_COPY:
            self._save(before)

    def _save(self, before: MigrationState) -> None:
        """The whole state becomes the stream's end; if it cannot be had, all is as it was ``before``."""
        try:
            self._stream += self._device.save_state(dict(self._sent))
        except Exception:
            if before in RUNS:
                self._device.run_device()
            raise

    def _restore(self) -> None:
        """Have the device become what came; if nothing did, the migration was given up: it stays as it is."""
        stream = self._stream
        self._forget()
        try:
            if stream:
                self._device.restore_state(stream)
        except Exception:
            self.state = ERROR
            raise

    def _forget(self) -> None:
        self._stream = bytearray()
        self._sent = {}
