"""Runs of guest memory: what PRPs and SGLs come down to (NVMe Base 2.0, 4.1)."""

from typing import Protocol

Run = tuple[int, int]
"""``(address, size)`` of one run of guest memory, in bytes."""

DISCARDED = -1
"""The address of a run that is nowhere: as many bytes of the data are thrown away."""


class Readable(Protocol):
    """Guest memory, as far as reading a list goes."""

    def read(self, address: int, size: int) -> bytes:
        """Return ``size`` bytes from ``address``; raise `DmaError` where there are none."""


def join(runs: list[Run], address: int, size: int) -> None:
    """Add a run; it becomes one with the last if they are neighbours.

    >>> found = [(0x1000, 512)]
    >>> join(found, 0x1200, 512)
    >>> found
    [(4096, 1024)]
    """
    if runs:
        before, length = runs[-1]
        if before + length == address and before != DISCARDED:
            runs[-1] = (before, length + size)
            return
    runs.append((address, size))
