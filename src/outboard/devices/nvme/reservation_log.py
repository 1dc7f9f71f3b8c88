"""The Reservation Notification log of one controller (NVMe Base 2.0, 5.16.1.24): each page is read once."""

import struct
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from outboard.devices.nvme.command import Command
from outboard.devices.nvme.reservation import Notification

if TYPE_CHECKING:
    from outboard.devices.nvme.state import State

MOST_PAGES = 256
"""Pages that wait; then the oldest is lost, which a host sees by the numbers of those it reads."""

MASKABLE = sum(1 << each for each in Notification)
"""Bits of the Reservation Notification Mask."""

_PAGE = struct.Struct("<QBBxxI48x")


class ReservationLog:
    """Pages that wait to be read, and the notifications the host does not want, by namespace."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all of it."""
        self.masks: dict[int, int] = {}
        self._pages: deque[tuple[int, int, int]] = deque(maxlen=MOST_PAGES)
        self._count = 0

    def add(self, what: Notification, nsid: int) -> bool:
        """Something was notified; False if the host does not want to know."""
        if self.masks.get(nsid, 0) & 1 << what:
            return False
        self._count = (self._count + 1) & (1 << 64) - 1 or 1
        self._pages.append((self._count, what, nsid))
        return True

    def oldest(self) -> bytes:
        """The page that is read now; an empty one if none waits."""
        if not self._pages:
            return _PAGE.pack(0, 0, 0, 0)
        count, what, nsid = self._pages[0]
        return _PAGE.pack(count, what, min(len(self._pages) - 1, 255), nsid)

    def was_read(self) -> None:
        """The host has the oldest page."""
        if self._pages:
            self._pages.popleft()

    def save(self) -> dict[str, Any]:
        """All of it, as JSON."""
        masks = {str(nsid): mask for nsid, mask in self.masks.items()}
        return {"masks": masks, "pages": [list(page) for page in self._pages], "count": self._count}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Take back what `save` gave. Raises KeyError, ValueError, TypeError."""
        self.masks = {int(nsid): int(mask) & MASKABLE for nsid, mask in saved["masks"].items()}
        self._count = int(saved["count"]) & (1 << 64) - 1
        self._pages.clear()
        for count, what, nsid in saved["pages"]:
            self._pages.append((int(count), Notification(what), int(nsid)))


def log(state: "State", command: Command) -> bytes:
    """Return the Reservation Notification log page."""
    return state.reservation_log.oldest()
