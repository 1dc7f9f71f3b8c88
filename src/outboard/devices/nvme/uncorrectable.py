"""Blocks that a host has made uncorrectable (Write Uncorrectable; NVM Command Set 1.0, 3.2.7), and who knows.

They are kept as data in a volatile write cache is: what has changed is written with the next flush, not with
each command, and a power cut brings back what was kept last. Sections ``uncorrectable/NSID`` of the store.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from outboard.devices.nvme.extents import Extents
from outboard.devices.nvme.namespace import Namespace
from outboard.devices.nvme.status import CommandFailed, Status

if TYPE_CHECKING:
    from outboard.devices.nvme.subsystem import Subsystem

MOST = 1 << 17
"""Uncorrectable blocks of all namespaces together: there are half as many runs of them at most."""


class Uncorrectable:
    """The uncorrectable blocks of one subsystem's namespaces. All in its turn."""

    def __init__(self, subsystem: "Subsystem") -> None:
        self._subsystem = subsystem
        self._unkept: set[int] = set()

    def recall(self, space: Namespace) -> None:
        """A namespace is there: its blocks are as they were left."""
        space.uncorrectable = Extents(self._subsystem.store.get(_section(space.nsid), []))

    def add(self, space: Namespace, start: int, end: int) -> None:
        """Blocks ``start..end`` cannot be read any more. Raises `CommandFailed` if that would be too many."""
        total = sum(each.uncorrectable.total for each in self._subsystem.namespaces.values())
        known = sum(b - a for a, b in space.uncorrectable.within(start, end))
        if total + end - start - known > MOST:
            raise CommandFailed(
                Status.WRITE_FAULT, f"{total} blocks are uncorrectable, and not more than {MOST} can be"
            )
        space.uncorrectable.add(start, end)
        self._changed(space)

    def remove(self, space: Namespace, start: int, end: int) -> None:
        """Blocks ``start..end`` have new contents."""
        if space.uncorrectable.first(start, end) is not None:
            space.uncorrectable.remove(start, end)
            self._changed(space)

    def replace(self, space: Namespace, runs: Iterable[tuple[int, int]]) -> None:
        """The uncorrectable blocks of a namespace are these, as another process had them.

        Raises ValueError if they cannot be.
        """
        found, end = list(runs), 0
        for start, following in found:
            if not end <= start < following <= space.blocks:
                raise ValueError(f"uncorrectable blocks {start}..{following}, of {space.blocks}")
            end = following
        if sum(following - start for start, following in found) > MOST:
            raise ValueError(f"more than {MOST} uncorrectable blocks")
        space.uncorrectable = Extents(found)
        self._changed(space)

    def lose_power(self) -> None:
        """What was not kept is as it was before."""
        for nsid in sorted(self._unkept):
            self.recall(self._subsystem.namespaces[nsid])
            self._subsystem.reconfigure(nsid)
        self._unkept.clear()

    def is_unkept(self, nsid: int) -> bool:
        """Whether a flush of this namespace has something to keep."""
        return nsid in self._unkept

    def keep(self, nsid: int) -> None:
        """Have the blocks of a namespace be as they are now after a power cycle, too."""
        if nsid in self._unkept:
            self._unkept.discard(nsid)
            space = self._subsystem.namespaces[nsid]
            self._subsystem.keep(_section(nsid), [list(run) for run in space.uncorrectable])
            self._subsystem.reconfigure(nsid)

    def keep_all(self) -> None:
        """Keep those of every namespace."""
        for nsid in sorted(self._unkept):
            self.keep(nsid)

    def renew(self, space: Namespace) -> None:
        """Something else has changed the blocks of a namespace, if it is there still: keep them."""
        if self._subsystem.namespaces.get(space.nsid) is space:
            self._unkept.add(space.nsid)
            self.keep(space.nsid)

    def forget(self, nsid: int) -> None:
        """A namespace is gone for good."""
        self._unkept.discard(nsid)
        self._subsystem.keep(_section(nsid), [])

    def _changed(self, space: Namespace) -> None:
        known = space.nsid in self._unkept
        self._unkept.add(space.nsid)
        # The data planes go by whether there are any, and whether a flush has something to do.
        if not known or len(space.uncorrectable) <= 1:
            self._subsystem.reconfigure(space.nsid)


def _section(nsid: int) -> str:
    return f"uncorrectable/{nsid}"
