"""Doorbells: places of a BAR that a client may ring by descriptor, past the server.

vfio-user specification, "VFIO_USER_DEVICE_GET_REGION_IO_FDS"; KVM's ioeventfds are what it is for. A write
to such a place signals an eventfd and, with a shadow, lands in shared memory first: the VMM need not be
asked, and no vCPU waits. A client that knows nothing of it writes by message, and the same handler hears it.
"""

import os
import select
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from fcntl import F_ADD_SEALS, F_SEAL_GROW, F_SEAL_SEAL, F_SEAL_SHRINK, fcntl
from functools import partial
from mmap import PAGESIZE, mmap
from typing import TYPE_CHECKING, Any, TypeVar

from outboard.pci.fields import Field, check
from outboard.pci.interrupts import Watcher

if TYPE_CHECKING:
    from outboard.pci.bar import Bar

WORD = 8
"""Bytes of memory that each doorbell has for its latest value, little-endian, whatever its size."""

Ringer = TypeVar("Ringer", bound=Callable[[Any, int, Any], None])


@dataclass(frozen=True, slots=True)
class IoEventFd:
    """A part of a region that is rung by descriptor: what a device tells a server.

    A write of ``size`` bytes at ``offset`` signals ``fd``; only one of the value ``match``, if that is
    given. With ``shadow_fd`` the bytes go to ``shadow_offset`` of it before. ``pio``: in an I/O BAR.
    """

    offset: int
    size: int
    fd: int
    match: int | None = None
    shadow_fd: int | None = None
    shadow_offset: int = 0
    pio: bool = False


class Doorbell(Field["Doorbells"]):
    """One doorbell or several equal ones; made by `Bar.doorbell`. On the instance, `Doorbells`."""

    def __init__(
        self,
        bar: "Bar",
        offset: int,
        *,
        size: int,
        count: int,
        stride: int,
        matches: Sequence[int],
        shadow: bool,
        shared: bool,
        doc: str,
    ) -> None:
        where = f"doorbell at {offset:#x} of BAR{bar.index}"
        check(size in (1, 2, 4, 8), f"{where}: size is {size}, a doorbell has 1, 2, 4 or 8 bytes")
        check(count >= 1, f"{where}: count is {count}, there is at least one")
        stride = stride or size
        check(stride >= size, f"{where}: stride {stride} is smaller than the doorbell, {size} bytes")
        end = offset + (count - 1) * stride + size
        check(offset >= 0 and end <= bar.size, f"{where} ends at {end:#x}, the BAR at {bar.size:#x}")
        if matches:
            check(count == 1, f"{where}: values to match are for one place, count is {count}")
            check(not shadow, f"{where}: a value that is matched is known, a shadow would never be read")
            check(not shared, f"{where}: with one eventfd for all, no value could be told from another")
            check(len(set(matches)) == len(matches), f"{where}: a value to match comes twice: {matches}")
        for match in matches:
            check(0 <= match < 1 << 8 * size, f"{where}: the value {match:#x} does not fit in {size} bytes")
        check(not shared or count > 1, f"{where}: nothing shares its eventfd, count is {count}")
        self.bar, self.offset, self.size, self.count, self.stride = bar, offset, size, count, stride
        self.matches, self.shadow, self.shared, self.doc = tuple(matches), shadow, shared, doc
        self.starts = range(offset, offset + count * stride, stride)
        self.handler = ""
        self.handlers: dict[str, Callable[..., Any]] = {}

    def take_over(self, replaced: Field[Any]) -> None:
        """Other doorbells in place of these keep the handler."""
        if isinstance(replaced, Doorbell) and not self.handler:
            self.handler, self.handlers = replaced.handler, replaced.handlers

    def on_ring(self, handler: Ringer) -> Ringer:
        """Decorate ``handler(self, index, value)``, which runs after a ring, in the device's thread.

        ``index`` counts the doorbells, or the values to match. ``value`` is what was written: always
        known with a shadow or a match, else None when the ring came by descriptor. Rings that follow
        each other fast may be heard as one.
        """
        what = f"on_ring of the doorbell at {self.offset:#x} of BAR{self.bar.index}"
        check(not self.handler, f"{what} is {self.handler} already: override that method")
        check(not self.name, f"{what}: {handler.__name__} must be defined in the class that declares it")
        self.handler = handler.__name__
        self.handlers[handler.__name__] = handler
        return handler

    def bind(self, holder: object) -> "Doorbells":
        """The doorbells of one device."""
        return Doorbells(self, holder)


class Doorbells:
    """The doorbells of one device: ``bells[i]`` is the latest value that is known of one.

    ``memory`` holds those values, `WORD` bytes each; with a shadow the client stores there at once, at any
    moment, and ``shadow_fd`` is the descriptor behind it. A fast path reads it by address and sets
    ``heard`` to False while it looks by itself: then no eventfd is watched, and `fd` is the fast path's.
    """

    def __init__(self, declared: Doorbell, holder: object) -> None:
        self.declared = declared
        self.shadow_fd: int | None = None
        size = -(-declared.count * WORD // PAGESIZE) * PAGESIZE
        if declared.shadow:
            self.shadow_fd = os.memfd_create("doorbells", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(self.shadow_fd, size)
            # A client that shrank the file would kill us (SIGBUS) at the next look.
            fcntl(self.shadow_fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)
        self.memory = mmap(-1 if self.shadow_fd is None else self.shadow_fd, size)
        self._holder = holder
        self._watcher: Watcher | None = None
        self._heard = True
        self._hushed = False
        self._owed: list[int] = []
        self._fds: dict[int, int] = {}
        self._last = [0] * declared.count

    def __del__(self) -> None:
        if hasattr(self, "_fds"):
            self.disconnect()
        if getattr(self, "shadow_fd", None) is not None:
            os.close(self.shadow_fd)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return self.declared.count

    def __getitem__(self, index: int) -> int:
        if not 0 <= index < self.declared.count:
            raise IndexError(f"{self.declared.name}[{index}]: there are {self.declared.count} doorbells")
        return int.from_bytes(self.memory[index * WORD : index * WORD + self.declared.size], "little")

    @property
    def heard(self) -> bool:
        """Whether rings by descriptor run the handler."""
        return self._heard

    @heard.setter
    def heard(self, heard: bool) -> None:
        self._heard = heard
        self._watch_all()

    @property
    def hushed(self) -> bool:
        """Whether the device is stopped, or becomes quiet: rings by descriptor wait."""
        return self._hushed

    @hushed.setter
    def hushed(self, hushed: bool) -> None:
        if hushed != self._hushed:
            self._hushed = hushed
            self._watch_all()

    def fd(self, index: int) -> int:
        """The eventfd of a doorbell, or of a value to match; made when first asked for.

        The device's: it is closed when the client goes. The client may take away O_NONBLOCK and read it
        empty, so wait for it (poll), and read it with RWF_NOWAIT only.
        """
        number = 0 if self.declared.shared else index
        if number not in self._fds:
            self._fds[number] = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            self._watch(number, self._fds[number])
        return self._fds[number]

    def io_event_fds(self) -> Iterator[IoEventFd]:
        """What a client needs to ring, one by one: an eventfd is made only when its turn comes."""
        declared = self.declared
        for index, match in enumerate(declared.matches):
            yield IoEventFd(declared.offset, declared.size, self.fd(index), match, pio=declared.bar.io)
        if declared.matches:
            return
        for index, offset in enumerate(declared.starts):
            yield IoEventFd(
                offset,
                declared.size,
                self.fd(index),
                shadow_fd=self.shadow_fd,
                shadow_offset=index * WORD if declared.shadow else 0,
                pio=declared.bar.io,
            )

    def windows(self) -> "Iterator[_Place]":
        """The places in the BAR where written messages end."""
        for index, start in enumerate(self.declared.starts):
            yield _Place(self, index, start)

    def attach(self, watcher: Watcher) -> None:
        """From now on rings by descriptor are heard through ``watcher``."""
        self._unwatch_all()
        self._watcher = watcher
        self._watch_all()

    def disconnect(self) -> None:
        """The client is gone, and perhaps its loop: the eventfds are closed; the values stay."""
        self._unwatch_all()
        self._watcher = None
        while self._fds:
            os.close(self._fds.popitem()[1])

    def reset(self) -> None:
        """Every value back to 0; rings not heard yet are forgotten."""
        self.memory[:] = bytes(len(self.memory))
        self._last = [0] * self.declared.count
        self._owed.clear()
        for fd in self._fds.values():
            _take(fd)

    def save(self) -> dict[str, list[int]]:
        """What moves with a device that is stopped: the values, and the eventfds that wait to be heard."""
        poll = select.poll()
        numbers = {fd: number for number, fd in self._fds.items()}
        for fd in numbers:
            poll.register(fd, select.POLLIN)
        waiting = {numbers[fd] for fd, _ in poll.poll(0)} | set(self._owed)
        return {"values": [self[i] for i in range(len(self))], "last": self._last, "waiting": sorted(waiting)}

    def restore(self, saved: Mapping[str, Sequence[int]]) -> None:
        """Take back what `save` gave; `hear_owed` then rings. ValueError for what it cannot have given."""
        numbers = range(len(self.declared.matches) or len(self))
        if not len(saved["values"]) == len(saved["last"]) == len(self) or {*saved["waiting"]} - {*numbers}:
            raise ValueError(f"no state of {len(self)} doorbells {self.declared.name}: {saved}")
        self.memory[: len(self) * WORD] = b"".join(
            value.to_bytes(self.declared.size, "little").ljust(WORD, b"\0") for value in saved["values"]
        )
        self._last, self._owed = list(saved["last"]), list(saved["waiting"])

    def hear_owed(self) -> None:
        """Ring what had been rung before the device was moved here."""
        owed, self._owed = self._owed, []
        with ExitStack() as stack:
            for number in reversed(owed):
                stack.callback(self._heard_by_eventfd, number)

    def store(self, index: int, first: int, data: bytes) -> None:
        """A ring by message: ``data`` goes to byte ``first`` of the doorbell; then the handler runs."""
        start = index * WORD + first
        self.memory[start : start + len(data)] = data
        value = self._last[index] = self[index]
        matches = self.declared.matches
        if not matches:
            self._ring(index, value)
        elif value in matches:
            self._ring(matches.index(value), value)

    def _watch_all(self) -> None:
        for number, fd in self._fds.items():
            self._watch(number, fd)

    def _watch(self, number: int, fd: int) -> None:
        if self._watcher is None or not self.declared.handler:
            return
        if self._heard and not self._hushed:
            self._watcher.watch(fd, partial(self._signalled, number, fd))
        else:
            self._watcher.unwatch(fd)

    def _unwatch_all(self) -> None:
        if self._watcher is not None:
            for fd in self._fds.values():
                self._watcher.unwatch(fd)

    def _signalled(self, number: int, fd: int) -> None:
        """An eventfd is readable, or was until the client read it itself."""
        if _take(fd):
            self._heard_by_eventfd(number)

    def _heard_by_eventfd(self, number: int) -> None:
        declared = self.declared
        if declared.matches:
            self._ring(number, declared.matches[number])
        elif not declared.shared:
            self._ring(number, self[number] if declared.shadow else None)
        else:
            self._ring_shared()

    def _ring_shared(self) -> None:
        """One of all was rung: the shadow says which; without it, it may have been any."""
        values: list[int | None] = [None] * len(self)
        if self.declared.shadow:
            before, self._last = self._last, [self[index] for index in range(len(self))]
            values = [now if now != old else None for now, old in zip(self._last, before, strict=True)]
        # All of them run, also when one fails; an ExitStack goes backwards.
        with ExitStack() as stack:
            for index in reversed(range(len(self))):
                if values[index] is not None or not self.declared.shadow:
                    stack.callback(self._ring, index, values[index])

    def _ring(self, index: int, value: int | None) -> None:
        if self.declared.handler:
            getattr(self._holder, self.declared.handler)(index, value)


class _Place:
    """A window of a BAR: one doorbell."""

    __slots__ = ("_bells", "_index", "end", "start")

    def __init__(self, bells: Doorbells, index: int, start: int) -> None:
        self._bells, self._index = bells, index
        self.start, self.end = start, start + bells.declared.size

    def load(self, offset: int, size: int) -> bytes:
        """A guest's read: bytes of the latest value."""
        at = self._index * WORD + offset - self.start
        return bytes(self._bells.memory[at : at + size])

    def store(self, offset: int, data: bytes) -> None:
        """A guest's write: a ring."""
        self._bells.store(self._index, offset - self.start, data)


def _take(fd: int) -> bool:
    """Whether an eventfd had been signalled. Never waits, whatever the client does to the descriptor."""
    with suppress(OSError):
        return os.preadv(fd, [bytearray(8)], -1, os.RWF_NOWAIT) == 8
    return False
