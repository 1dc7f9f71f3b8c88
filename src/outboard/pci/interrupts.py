"""Interrupts over eventfds: INTx, MSI, MSI-X, ERR, REQ (VFIO's five indexes; PCI 3.0 6.8, VFIO SET_IRQS).

A client gives an eventfd for each vector it wants to hear; the device writes 1 to it. A vector that is
masked, by the client (SET_IRQS) or by the guest (mask registers, MSI-X table), remembers that it is
pending and fires when the last mask goes. A vector nobody listens to only counts. Every descriptor given
to `Interrupts.set_irqs` belongs to it from then on, and is closed exactly once.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from enum import IntFlag
from typing import Any, Protocol, overload

from outboard.errors import RequestRefused, StateError
from outboard.pci.config_space import COMMAND, INTERRUPT_PIN, STATUS, Command, ConfigSpace, Status
from outboard.pci.eventfd import EventFd
from outboard.pci.fields import Field, check

INTX, MSI, MSIX, ERROR, REQUEST = range(5)
INDEX_NAMES = ("INTx", "MSI", "MSI-X", "ERR", "REQ")


class IrqFlag(IntFlag):
    """What GET_IRQ_INFO says of an index."""

    EVENTFD = 1
    MASKABLE = 2
    AUTOMASKED = 4
    NORESIZE = 8


IRQ_FLAGS = (
    IrqFlag.EVENTFD | IrqFlag.MASKABLE | IrqFlag.AUTOMASKED,
    IrqFlag.EVENTFD,
    IrqFlag.EVENTFD,
    IrqFlag.EVENTFD,
    IrqFlag.EVENTFD,
)


class IrqData(IntFlag):
    """What comes with SET_IRQS: nothing, one byte a vector, or one descriptor a vector."""

    NONE = 1
    BOOL = 2
    EVENTFD = 4


class IrqAction(IntFlag):
    """What SET_IRQS asks for."""

    MASK = 8
    UNMASK = 16
    TRIGGER = 32


class Watcher(Protocol):
    """The part of a loop that INTx needs: calls back when a descriptor is readable."""

    def watch(self, fd: int, readable: Callable[[], None], /) -> None:
        """Call ``readable`` whenever ``fd`` has something to read."""

    def unwatch(self, fd: int, /) -> None:
        """Stop watching ``fd``."""


class Vector:
    """One interrupt vector of MSI, MSI-X, ERR or REQ.

    ``fired`` counts how often the device triggered it, heard or not.
    """

    __slots__ = ("_owner", "event", "fired", "number")

    def __init__(self, owner: "Vectors", number: int) -> None:
        self._owner = owner
        self.number = number
        self.fired = 0
        self.event: EventFd | None = None

    def trigger(self) -> None:
        """Send the interrupt; while the vector is masked it becomes pending instead."""
        self.fired += 1
        self._owner.send(self.number)

    @property
    def masked(self) -> bool:
        """Whether the client or the guest holds the vector back."""
        return bool(self._owner.masks >> self.number & 1)

    @property
    def pending(self) -> bool:
        """Whether it was triggered while masked."""
        return bool(self._owner.pending >> self.number & 1)

    @property
    def fd(self) -> int:
        """The client's eventfd, -1 if none: for a data path that writes to it by itself."""
        return self.event.fd if self.event else -1


class Vectors(Sequence[Vector]):
    """All vectors of one index. ``enabled`` is the capability's enable bit.

    ``pending`` and ``masks`` have one bit a vector. ``on_change(number)`` is called after a vector got
    another descriptor or mask, before the old descriptor is closed.
    """

    def __init__(self, count: int) -> None:
        self.enabled = False
        self.on_change: Callable[[int], None] | None = None
        self.on_pending: Callable[[int], None] | None = None
        self._vectors = [Vector(self, number) for number in range(count)]
        self._pending = 0
        self._client_mask = 0
        self._guest_mask = 0

    def __len__(self) -> int:
        return len(self._vectors)

    @overload
    def __getitem__(self, index: int) -> Vector: ...
    @overload
    def __getitem__(self, index: slice) -> list[Vector]: ...
    def __getitem__(self, index: int | slice) -> Vector | list[Vector]:
        return self._vectors[index]

    @property
    def pending(self) -> int:
        """The pending bits, as the PBA shows them."""
        return self._pending

    @property
    def masks(self) -> int:
        """The vectors that are held back; -1 for all."""
        return self._client_mask | self._guest_mask

    @property
    def guest_mask(self) -> int:
        """The vectors the guest holds back, -1 for all. Setting it fires what is no longer held back."""
        return self._guest_mask

    @guest_mask.setter
    def guest_mask(self, mask: int) -> None:
        changed = self._guest_mask ^ mask
        self._guest_mask = mask
        if changed:
            self._masks_changed(changed)

    def send(self, number: int) -> None:
        """Signal the client, or remember it while the vector is masked; nothing if nobody listens."""
        event = self._vectors[number].event
        if event is None:
            return
        if self.masks >> number & 1:
            self._set_pending(self._pending | 1 << number)
        else:
            event.signal()

    def assign(self, number: int, event: EventFd | None) -> None:
        """Another descriptor for one vector, or none; the old one is closed."""
        vector = self._vectors[number]
        old, vector.event = vector.event, event
        if event is None:
            self._set_pending(self._pending & ~(1 << number))
        if self.on_change is not None:
            self.on_change(number)
        if old is not None:
            old.close()

    def mask(self, number: int, masked: bool) -> None:
        """The client masks or unmasks one vector."""
        bit = 1 << number
        self._client_mask = self._client_mask | bit if masked else self._client_mask & ~bit
        self._masks_changed(bit)

    def control(self, action: IrqAction, event: EventFd | None) -> None:
        """MSI has no descriptor to mask or unmask by: refused."""
        raise RequestRefused(f"only INTx can be given a descriptor to {action.name} by")

    def disable(self) -> None:
        """Nobody listens any more: all descriptors closed, the client's masks and pending bits gone."""
        self._client_mask = 0
        self._set_pending(0)
        for vector in self._vectors:
            if vector.event is not None:
                self.assign(vector.number, None)

    def reset(self) -> None:
        """The device is reset: nothing is pending; descriptors stay."""
        self._set_pending(0)

    def save(self) -> dict[str, Any]:
        """What the device itself remembers of them; descriptors and masks of the client are not in it."""
        return {"pending": self._pending}

    def restore(self, state: dict[str, Any]) -> None:
        """Back to what `save` gave, with the guest's masks there already. Raises ValueError, KeyError."""
        pending = int(state["pending"])
        if not 0 <= pending < 1 << len(self._vectors):
            raise ValueError(f"pending bits {pending:#x} of {len(self._vectors)} vectors")
        self._set_pending(pending)

    def attach(self, watcher: Watcher) -> None:
        """Vectors watch nothing."""

    def _masks_changed(self, changed: int) -> None:
        changed &= (1 << len(self._vectors)) - 1
        ready = self._pending & ~self.masks
        self._set_pending(self._pending & ~ready)
        while changed:
            number = changed.bit_length() - 1
            changed ^= 1 << number
            if self.on_change is not None:
                self.on_change(number)
            if ready >> number & 1:
                self.send(number)

    def _set_pending(self, pending: int) -> None:
        if pending != self._pending:
            self._pending = pending
            if self.on_pending is not None:
                self.on_pending(pending)


class IntxLine:
    """INTx of one device: a level, not an event.

    While the line is asserted and not masked the client is signalled once, and the line is masked
    (automask). Unmasking signals again if the line is still asserted. ``fired`` counts rising edges.
    """

    def __init__(self, config: ConfigSpace) -> None:
        self.asserted = False
        self.fired = 0
        self.masked = False
        self._config = config
        self._event: EventFd | None = None
        self._controls: dict[IrqAction, EventFd] = {}
        self._watcher: Watcher | None = None
        config.watch(COMMAND, 2, self._deliver)

    def __len__(self) -> int:
        return 1

    @property
    def heard(self) -> bool:
        """Whether the client listens to the line."""
        return self._event is not None

    def assert_(self) -> None:
        """Raise the line; nothing happens if it is up."""
        if not self.asserted:
            self.fired += 1
            self._set_level(True)
            self._deliver()

    def deassert(self) -> None:
        """Lower the line."""
        self._set_level(False)

    def send(self, number: int) -> None:
        """The client's loopback test: signal it whatever the level."""
        if self._event is not None and not self.masked:
            self._event.signal()

    def assign(self, number: int, event: EventFd | None) -> None:
        """Another descriptor for the line, or none; a line that is up is heard at once."""
        old, self._event = self._event, event
        if old is None or event is None:
            self.masked = False
        if old is not None:
            old.close()
        self._deliver()

    def mask(self, number: int, masked: bool) -> None:
        """The client masks or unmasks the line."""
        self.masked = masked
        self._deliver()

    def control(self, action: IrqAction, event: EventFd | None) -> None:
        """A descriptor by which the client will mask or unmask (KVM's resampling), or none any more."""
        old = self._controls.pop(action, None)
        if old is not None:
            self._drop(old)
        if event is not None:
            self._controls[action] = event
            self._watch(action, event)

    def disable(self) -> None:
        """Nobody listens any more: all descriptors closed, mask gone."""
        for action in list(self._controls):
            self.control(action, None)
        self.assign(0, None)

    def reset(self) -> None:
        """The device is reset: the line goes down; descriptors and the client's mask stay."""
        self._set_level(False)

    def save(self) -> dict[str, Any]:
        """The level of the line."""
        return {"asserted": self.asserted}

    def restore(self, state: dict[str, Any]) -> None:
        """Back to what `save` gave; a line that is up is heard at once. Raises KeyError."""
        self._set_level(bool(state["asserted"]))
        self._deliver()

    def attach(self, watcher: Watcher) -> None:
        """From now on the client's unmask descriptor is watched by ``watcher``."""
        for event in self._controls.values():
            if self._watcher is not None:
                self._watcher.unwatch(event.fd)
        self._watcher = watcher
        for action, event in self._controls.items():
            self._watch(action, event)

    def _watch(self, action: IrqAction, event: EventFd) -> None:
        def signalled() -> None:
            event.drain()
            self.mask(0, action == IrqAction.MASK)

        if self._watcher is not None:
            self._watcher.watch(event.fd, signalled)

    def _drop(self, event: EventFd) -> None:
        if self._watcher is not None:
            self._watcher.unwatch(event.fd)
        event.close()

    def _set_level(self, asserted: bool) -> None:
        self.asserted = asserted
        status = self._config.load(STATUS, 2) & ~Status.INTERRUPT
        self._config.store(STATUS, 2, status | (Status.INTERRUPT if asserted else 0))

    def _deliver(self) -> None:
        disabled = self._config.load(COMMAND, 2) & Command.INTX_DISABLE
        if self.asserted and not self.masked and not disabled and self._event is not None:
            self.masked = True
            self._event.signal()


class Intx(Field[IntxLine]):
    """The legacy interrupt line, ``pin`` "A" to "D"; on the instance, an `IntxLine`."""

    def __init__(self, pin: str = "A") -> None:
        check(pin in ("A", "B", "C", "D"), f"Intx pin {pin!r} is none of A, B, C, D")
        self.pin = pin

    def bind(self, config: ConfigSpace) -> IntxLine:
        """The line of one device."""
        config.define(INTERRUPT_PIN, bytes([" ABCD".index(self.pin)]))
        return IntxLine(config)


class Interrupts:
    """All interrupts of one device, by VFIO's index; what SET_IRQS acts on."""

    def __init__(self, intx: IntxLine | None, msi: Vectors, msix: Vectors) -> None:
        self.error, self.request = Vectors(1), Vectors(1)
        self._indexes: tuple[Vectors | IntxLine, ...] = (
            intx if intx is not None else Vectors(0),
            msi,
            msix,
            self.error,
            self.request,
        )
        self.counts = tuple(len(index) for index in self._indexes)

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
        """Assign, de-assign, mask, unmask or fire vectors ``start`` to ``start + count``.

        The descriptors ``fds`` are taken over in any case. `RequestRefused` (EINVAL) for what VFIO does
        not allow; then nothing has changed and all of ``fds`` are closed.
        """
        events: list[EventFd] = []
        try:
            self._validate(index, action, data, start, count, len(fds), len(bools))
            events.extend(EventFd(fd) for fd in fds)
        except BaseException:
            for fd in fds[len(events) :]:
                with suppress(OSError):
                    os.close(fd)
            for event in events:
                event.close()
            raise
        target = self._indexes[index]
        numbers = range(start, start + count)
        if data == IrqData.EVENTFD and action != IrqAction.TRIGGER:
            target.control(action, events[0] if events else None)
        elif data == IrqData.EVENTFD:
            for number in numbers:
                target.assign(number, events[number - start] if events else None)
        elif action == IrqAction.TRIGGER and count == 0:
            target.disable()
        else:
            chosen = [n for n in numbers if data == IrqData.NONE or bools[n - start]]
            self._act(target, action, chosen)

    def attach(self, watcher: Watcher) -> None:
        """Watch the client's unmask descriptors with ``watcher``."""
        for index in self._indexes:
            index.attach(watcher)

    def disconnect(self) -> None:
        """The client is gone: every descriptor is closed; the device's own state stays."""
        for index in self._indexes:
            index.disable()

    def save(self) -> dict[str, Any]:
        """What the device remembers, by the index's name; indexes without vectors are left out."""
        return {
            name: index.save() for name, index in zip(INDEX_NAMES, self._indexes, strict=True) if len(index)
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Back to what `save` gave. Raises StateError."""
        try:
            for name, index in zip(INDEX_NAMES, self._indexes, strict=True):
                if len(index):
                    index.restore(state[name])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StateError(f"the saved interrupts are not this device's: {error!r}") from error

    def reset(self) -> None:
        """The device is reset: lines go down, nothing is pending, descriptors stay."""
        for index in self._indexes:
            index.reset()

    @staticmethod
    def _act(target: Vectors | IntxLine, action: IrqAction, numbers: Iterable[int]) -> None:
        for number in numbers:
            if action == IrqAction.TRIGGER:
                target.send(number)
            else:
                target.mask(number, action == IrqAction.MASK)

    def _validate(
        self, index: int, action: IrqAction, data: IrqData, start: int, count: int, fds: int, bools: int
    ) -> None:
        def require(condition: bool, sentence: str) -> None:
            if not condition:
                raise RequestRefused(f"SET_IRQS of index {index}: {sentence}")

        require(0 <= index < len(self._indexes), f"there are {len(self._indexes)} indexes")
        require(action in tuple(IrqAction), f"action {int(action):#x} is not exactly one of 8, 16, 32")
        require(data in tuple(IrqData), f"data type {int(data):#x} is not exactly one of 1, 2, 4")
        available = self.counts[index]
        require(
            0 <= start < available and 0 <= count <= available - start,
            f"vectors {start} to {start + count} of {available} {INDEX_NAMES[index]} vectors",
        )
        trigger = action == IrqAction.TRIGGER
        disables = count == 0 and trigger and data == IrqData.NONE and start == 0
        require(count > 0 or disables, "count 0 is allowed only to disable: NONE, TRIGGER, start 0")
        if index in (ERROR, REQUEST):
            require(trigger, f"{INDEX_NAMES[index]} can only be triggered")
        if data == IrqData.EVENTFD:
            require(fds in (0, count), f"{fds} descriptors for {count} vectors")
            require(trigger or index == INTX, "only INTx can be masked or unmasked by a descriptor")
        else:
            require(fds == 0, f"{fds} descriptors, which only EVENTFD takes")
        if data == IrqData.BOOL:
            require(bools == count, f"{bools} bytes for {count} vectors")
