"""The bound of a RAM disk: one processor that copies random blocks of 256 MiB, as the data plane does.

To and from 32 small buffers in turn, with the data plane's own functions: the next block of a read is
fetched ahead, small writes go past the cache.
"""

import mmap
import os
from contextlib import suppress

from harness.cores import DEVICE_CORE, in_threads
from outboard.devices.nvme.datapath.execute import ANNOUNCED_TOGETHER, SMALL
from outboard.drivers.nvme_measure.choose import HALF, MULTIPLIER
from outboard.native.jit import entry
from outboard.native.libc import monotonic_ns
from outboard.native.memory import address_of, copy, copy_ahead, copy_stream, drain_stream

AREA = 256 << 20
BUFFERS = 32


@entry
def copy_out(area: int, blocks: int, buffers: int, size: int, nanoseconds: int) -> int:
    """Copy random blocks to the buffers for so long; how many."""
    deadline = monotonic_ns() + nanoseconds
    random = 88172645463325252
    done = 0
    block = area
    while done & 63 or monotonic_ns() < deadline:
        random = (random & HALF) * MULTIPLIER + (random >> 31)
        following = area + ((random & HALF) * blocks >> 31) * size
        buffer = buffers + done % BUFFERS * size
        if size <= SMALL:
            copy_ahead(buffer, block, size, following)
        else:
            copy(buffer, block, size)
        block = following
        done += 1
    return done


@entry
def copy_in(area: int, blocks: int, buffers: int, size: int, nanoseconds: int) -> int:
    """Copy the buffers to random blocks for so long; how many."""
    deadline = monotonic_ns() + nanoseconds
    random = 88172645463325252
    done = 0
    while done & 63 or monotonic_ns() < deadline:
        random = (random & HALF) * MULTIPLIER + (random >> 31)
        block = area + ((random & HALF) * blocks >> 31) * size
        buffer = buffers + done % BUFFERS * size
        if size <= SMALL:
            copy_stream(block, buffer, size, buffers + (done + 1) % BUFFERS * size)
            if done % ANNOUNCED_TOGETHER == 0:
                drain_stream()
        else:
            copy(block, buffer, size)
        done += 1
    return done


def memory(size: int, *, huge: bool) -> mmap.mmap:
    """Memory that is there, in huge pages where the system has them."""
    area = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if huge:
        with suppress(OSError):
            area.madvise(mmap.MADV_HUGEPAGE)
    noise = os.urandom(1 << 16)
    for at in range(0, size, len(noise)):
        area[at : at + len(noise)] = noise
    return area


class CopyBound:
    """The area and the buffers; `iops` measures."""

    def __init__(self) -> None:
        self._area = memory(AREA, huge=True)
        self._buffers = memory(BUFFERS * (128 << 10), huge=False)

    def iops(self, size: int, seconds: float, *, write: bool) -> float:
        """Blocks of ``size`` bytes a second."""
        call = (copy_in if write else copy_out).native
        area, buffers = address_of(self._area), address_of(self._buffers)
        nanoseconds = int(seconds * 1e9)
        [done] = in_threads((DEVICE_CORE, lambda: call(area, AREA // size, buffers, size, nanoseconds)))
        return done / seconds
