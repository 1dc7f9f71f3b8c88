"""Steps that leave nothing of what a storage holds: zeros, or a pattern."""

from collections.abc import Callable, Iterator
from functools import partial

from outboard.devices.nvme.management.background import Step
from outboard.storage import Storage

DISCARDED_AT_ONCE = 64 << 20
WRITTEN_AT_ONCE = 4 << 20
"""Bytes of one step; the operation can stop only between steps."""

MOST_DISCARDS = 4096
"""Steps that discard a storage of any size."""

Told = Callable[[int], None]
"""Is told of each step how many bytes are done."""


def erase(storage: Storage, told: Told, *, keep: bool = False) -> Iterator[Step]:
    """Zero all of ``storage``; the space goes back to where it came from, unless that is to be kept."""
    if storage.discard_zeroes and not keep:
        size = max(DISCARDED_AT_ONCE, -(-storage.size // MOST_DISCARDS))
        yield from _each(storage, storage.discard, size, told)
    else:
        yield from _each(storage, storage.write_zeroes, WRITTEN_AT_ONCE, told)
    yield storage.flush


def overwrite(storage: Storage, size: int, pattern: bytes, told: Told) -> Iterator[Step]:
    """Write ``pattern`` again and again over the first ``size`` bytes of ``storage``, and zeros behind."""
    data = pattern * (WRITTEN_AT_ONCE // len(pattern))

    def write(offset: int, count: int) -> None:
        patterned = max(0, min(count, size - offset))
        storage.write(offset, memoryview(data)[:patterned])
        storage.write_zeroes(offset + patterned, count - patterned)

    yield from _each(storage, write, WRITTEN_AT_ONCE, told)
    yield storage.flush


def _each(storage: Storage, do: Callable[[int, int], None], at_once: int, told: Told) -> Iterator[Step]:
    offset = 0
    while offset < storage.size:
        count = min(at_once, storage.size - offset)
        yield partial(do, offset, count)
        offset += count
        told(offset)
