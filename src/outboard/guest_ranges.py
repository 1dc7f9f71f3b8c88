"""One range of guest memory that a client has mapped: what is behind it, and who looks at it.

Follows DMA_MAP of vfio-user; `outboard.dma` has all the ranges of a client.
"""

import errno
import logging
import weakref
from dataclasses import dataclass
from typing import NamedTuple

from outboard.dirty_pages import DirtyPages
from outboard.errors import RequestRefused
from outboard.guest_files import GuestFile, InPlace, UnmappedFile

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Mapping:
    """A range of guest memory: `size` bytes at IOVA `address`.

    `readable` and `writable` are the device's rights. With `fd`, the range is the file's bytes from
    `offset` on, mapped or, with `file_io`, read and written in place; without, it is reached by messages.
    """

    address: int
    size: int
    readable: bool = True
    writable: bool = True
    fd: int | None = None
    offset: int = 0
    file_io: bool = False

    def __str__(self) -> str:
        rights = ("r" if self.readable else "-") + ("w" if self.writable else "-")
        return f"{self.size:#x} bytes at {self.address:#x} ({rights})"


class View(NamedTuple):
    """A view handed out: what it shows is writable for ``writable_size`` bytes at IOVA ``address``."""

    memory: weakref.ref[memoryview]
    address: int
    writable_size: int


class Range:
    """A mapped range, what is behind it and the views handed out over it.

    It is reached by its mapped ``file`` or ``in_place``; both None: by messages.
    """

    __slots__ = ("backing", "base", "dirty", "end", "file", "in_place", "mapping", "start", "views")

    def __init__(self, mapping: Mapping, backing: GuestFile | UnmappedFile | None) -> None:
        self.mapping = mapping
        self.start = mapping.address
        self.end = mapping.address + mapping.size
        self.base = mapping.offset - mapping.address
        self.backing = backing
        self.file = backing if isinstance(backing, GuestFile) else None
        self.in_place = InPlace(backing, self.base) if isinstance(backing, UnmappedFile) else None
        self.views: list[View] = []
        self.dirty: DirtyPages | None = None

    def live_views(self) -> list[View]:
        """The views that are still in use."""
        return [view for view in self.views if usable(view.memory())]

    def mark_views(self) -> None:
        """What can be written through a view without our knowledge counts as written."""
        if self.dirty is not None:
            for view in self.live_views():
                self.dirty.mark(view.address, view.writable_size)

    def remember(self) -> None:
        """From now on what the device writes here is logged, unless it goes by message.

        Raises RequestRefused (ENOMEM) if there is no memory to remember it in.
        """
        if self.backing:
            try:
                self.dirty = DirtyPages(self.start, self.mapping.size)
            except OSError as error:
                raise RequestRefused(
                    f"cannot log what is written to {self.mapping} ({error.strerror})", errno=errno.ENOMEM
                ) from error
            self.mark_views()

    def kill_views(self) -> None:
        """Takes back the views handed out: the range is unmapped."""
        for handed_out in self.views:
            if (view := handed_out.memory()) is not None:
                try:
                    view.release()
                except BufferError:
                    log.error(
                        "something (an array?) still uses a DMA view of %s, which the client has unmapped",
                        self.mapping,
                    )


def usable(view: memoryview | None) -> bool:
    """Whether a view is still held by someone and not released."""
    if view is None:
        return False
    try:
        return view.nbytes >= 0
    except ValueError:
        return False
