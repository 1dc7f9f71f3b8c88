"""The page of BAR0 that holds the doorbells: shared memory, for a client that wants to map it.

NVMe over PCIe 1.0, 3.1.2. Who writes a doorbell by message gets it put here by a register handler; who has
mapped the page writes here at once, and nobody hears of it. The data plane looks here in both cases.
"""

import mmap
import os
from dataclasses import replace
from fcntl import F_ADD_SEALS, F_SEAL_GROW, F_SEAL_SEAL, F_SEAL_SHRINK, fcntl

from outboard.device import MMAP, Region
from outboard.devices.nvme.spec import PAGE
from outboard.native.memory import address_of

OFFSET = 0x1000
"""Where in BAR0 the doorbells begin."""


class DoorbellPage:
    """The words of 512 pairs of doorbells, at ``address`` here."""

    def __init__(self) -> None:
        self._fd = -1
        self._fd = os.memfd_create("doorbells", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        # The client's offset is the one within the BAR, so the file has what comes before the page, too.
        os.ftruncate(self._fd, OFFSET + PAGE)
        # A client that shrank the file would kill us (SIGBUS) at the next look.
        fcntl(self._fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)
        self._memory = mmap.mmap(self._fd, PAGE, offset=OFFSET)
        self.address = address_of(self._memory)

    def offered_in(self, region: Region, offered: bool) -> Region:
        """BAR0 as a client sees it: with the page to map, or without."""
        if offered:
            return replace(region, flags=region.flags | MMAP, areas=((OFFSET, PAGE),), fd=self._fd)
        return replace(region, flags=region.flags & ~MMAP, areas=(), fd=None)

    def close(self) -> None:
        """Close the descriptor; the words stay. Again is harmless."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()
