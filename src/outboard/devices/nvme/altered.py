"""The storage of a namespace as one command sees it that is to be torn, corrupted, or lied to.

The command is executed by its usual code; only what it stores and reads goes through here. Blocks and their
metadata lie apart in a storage, in whatever order a command reaches for them.
"""

from collections.abc import Callable
from copy import copy
from random import Random
from typing import Any

from outboard.devices.nvme.command import Command
from outboard.devices.nvme.faults import blocks_of
from outboard.devices.nvme.injection import Strike
from outboard.devices.nvme.metadata import Extent
from outboard.devices.nvme.namespace import Namespace
from outboard.devices.nvme.protection import renew_guard
from outboard.devices.nvme.spec import BROADCAST
from outboard.devices.nvme.state import State
from outboard.devices.nvme.work import Call, Work
from outboard.storage import Data, Storage, persist


def reseal(space: Namespace, lba: int, block: bytes, metadata: bytes) -> bytes:
    """The metadata of a block, as the host sees it, with a guard that is right for ``block``.

    The tags stay, and so does all of it where there is no protection information.
    """
    sealed = Extent(space, lba, 1)
    sealed.data[:], sealed.metadata[:] = block, metadata
    renew_guard(sealed)
    return bytes(sealed.metadata)


class Altered:
    """``space``'s storage for ``command``, which ``strike`` has struck. Its calls are still the storage's."""

    def __init__(self, space: Namespace, command: Command, strike: Strike) -> None:
        self.below: Storage = space.storage
        self.size, self.discard_zeroes = self.below.size, self.below.discard_zeroes
        faults = strike.faults
        self._space = space
        self._blocks = blocks_of(command)
        self._base: int | None = None
        self._lies = any(fault.lie for fault in faults)
        self._limit = min(_limits(strike, space.block_size), default=None)
        self._flips = [
            (fault.flip, Random(f"{strike.seed} {number}"))
            for number, fault in enumerate(faults)
            if fault.flip
        ]
        self._reseals = any(fault.flip and fault.guard == "valid" for fault in faults)
        self._wrong: dict[int, int] = {}
        self._stored: list[tuple[int, int]] = []

    def __getattr__(self, name: str) -> Any:
        """What else the storage can."""
        return getattr(self.below, name)

    def read(self, offset: int, size: int) -> bytes:
        """As `readinto`."""
        buffer = bytearray(size)
        self.readinto(offset, memoryview(buffer))
        return bytes(buffer)

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer``, with bits flipped."""
        self.below.readinto(offset, buffer)
        self._begin(offset, buffer.nbytes)
        if offset < self._space.metadata_offset:
            self._flip(offset, buffer)
        elif self._reseals:
            self._reseal(offset, buffer)

    def write(self, offset: int, data: Data) -> None:
        """Store the part of ``data`` that is not torn off, with bits flipped."""
        self._begin(offset, len(data))
        kept = bytearray(memoryview(data)[: self._kept(offset, len(data))])
        if offset < self._space.metadata_offset:
            self._flip(offset, memoryview(kept))
        self._change(offset, len(kept), lambda: self.below.write(offset, kept))

    def discard(self, offset: int, size: int) -> None:
        """Discard the part of the range that is not torn off."""
        self._begin(offset, size)
        kept = self._kept(offset, size)
        self._change(offset, kept, lambda: self.below.discard(offset, kept))

    def write_zeroes(self, offset: int, size: int) -> None:
        """Zero the part of the range that is not torn off."""
        self._begin(offset, size)
        kept = self._kept(offset, size)
        self._change(offset, kept, lambda: self.below.write_zeroes(offset, kept))

    def flush(self) -> None:
        """Flush, unless this is a lie."""
        if not self._lies:
            self.below.flush()

    def persist(self, offset: int, size: int) -> None:
        """Make a range durable, unless this is a lie."""
        if not self._lies:
            persist(self.below, offset, size)

    def close(self) -> None:
        """A command does not close its storage."""

    def seal(self) -> None:
        """Put the guards of what was corrupted and stored right, after all of it was stored."""
        if self._reseals and self._space.metadata:
            for lba in sorted({place // 8 // self._space.block_size for place in self._wrong}):
                if any(start <= lba * self._space.block_size < end for start, end in self._stored):
                    at = self._space.metadata_offset + lba * self._space.metadata
                    metadata = bytearray(self.below.read(at, self._space.metadata))
                    self._seal_block(lba, self._block(lba), memoryview(metadata))
                    self.below.write(at, metadata)

    def settle(self) -> None:
        """Have what was stored outlive a power cut: it had reached the medium."""
        for start, end in self._stored:
            persist(self.below, start, end - start)

    def _begin(self, offset: int, size: int) -> None:
        """The first access says where the command is at work, and so where its wrong bits are."""
        if self._base is not None:
            return
        space = self._space
        inside = offset < space.metadata_offset
        block = offset // space.block_size if inside else (offset - space.metadata_offset) // space.metadata
        self._base = block * space.block_size
        bits = 8 * (self._blocks * space.block_size or size)
        for count, random in self._flips:
            for place in random.sample(range(bits), min(count, bits)):
                # Flipped by two faults, a bit is right again.
                self._wrong[8 * self._base + place] = self._wrong.get(8 * self._base + place, 0) ^ 1

    def _kept(self, offset: int, size: int) -> int:
        """How many bytes of a change are stored."""
        if self._limit is None:
            return size
        space, base = self._space, self._base or 0
        if offset < space.metadata_offset:
            return max(0, min(size, base + self._limit - offset))
        blocks = base // space.block_size + self._limit // space.block_size
        return max(0, min(size, space.metadata_offset + blocks * space.metadata - offset))

    def _change(self, offset: int, size: int, change: Callable[[], None]) -> None:
        if size:
            change()
            self._stored.append((offset, offset + size))

    def _flip(self, offset: int, buffer: memoryview) -> None:
        for place, wrong in self._wrong.items():
            at = place // 8 - offset
            if wrong and 0 <= at < buffer.nbytes:
                buffer[at] ^= 1 << place % 8

    def _reseal(self, offset: int, buffer: memoryview) -> None:
        """What is read is metadata: give wrong blocks guards that do not show it."""
        space = self._space
        first = (offset - space.metadata_offset) // space.metadata
        for lba in range(first, first + buffer.nbytes // space.metadata):
            block = bytearray(self._block(lba))
            right = bytes(block)
            self._flip(lba * space.block_size, memoryview(block))
            if block != right:
                at = (lba - first) * space.metadata
                self._seal_block(lba, bytes(block), buffer[at : at + space.metadata])

    def _seal_block(self, lba: int, block: bytes, stored: memoryview) -> None:
        space = self._space
        stored[:] = space.inverted(reseal(space, lba, block, space.inverted(bytes(stored))))

    def _block(self, lba: int) -> bytes:
        return self.below.read(lba * self._space.block_size, self._space.block_size)


def _limits(strike: Strike, block_size: int) -> list[int]:
    """The bytes that each of the faults lets be stored, of those that tear."""
    return [
        fault.torn * block_size if fault.torn is not None else fault.torn_bytes or 0
        for fault in strike.faults
        if fault.torn is not None or fault.torn_bytes is not None
    ]


def view(state: State, command: Command, strike: Strike) -> tuple[State, list[Altered]]:
    """The controller as the command sees it: with other storages behind its namespaces."""
    seen, altered = copy(state), []
    seen.namespaces = dict(state.namespaces)
    for nsid, space in state.namespaces.items():
        if command.nsid in (nsid, BROADCAST):
            seen.namespaces[nsid] = other = copy(space)
            other.storage = Altered(space, command, strike)
            altered.append(other.storage)
    return seen, altered


def through(work: Work, altered: list[Altered]) -> Work:
    """Run ``work``, which knows the altered storages, by calls of those that are below."""
    below = {id(each): each.below for each in altered}
    error: Exception | None = None
    try:
        while True:
            try:
                call = next(work) if error is None else work.throw(error)
            except StopIteration as end:
                result = int(end.value)
                break
            error = None
            try:
                yield Call(below.get(id(call.storage), call.storage), call.function)
            except Exception as failure:
                error = failure
    finally:
        work.close()
    for each in altered:
        yield Call(each.below, each.seal)
    return result
