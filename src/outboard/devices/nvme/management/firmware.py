r"""Firmware: images in slots, of which one is what the controller says it runs (NVMe Base 2.0, 5.11, 5.12).

An image is anything whose first line is ``outboard-firmware REVISION``, of 1 to 8 printable characters; the
rest is not looked at. Slot 1 is read only: what is built in. Slots belong to the subsystem (section
``firmware`` of the store), the parts of an image that is being downloaded to a controller.

>>> revision_of(b"outboard-firmware 1.1\n" + bytes(4074))
'1.1'
>>> revision_of(bytes(4096)) is None
True
"""

import re
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from outboard.devices.nvme import layouts
from outboard.devices.nvme.events import FIRMWARE_ACTIVATION_STARTING
from outboard.devices.nvme.management.background import Operation, Steps
from outboard.devices.nvme.status import CommandFailed, Status

if TYPE_CHECKING:
    from outboard.devices.nvme.subsystem import Subsystem

SECTION = "firmware"

SLOTS = 3

GRANULARITY = 4096
"""Bytes that parts of an image begin and end on multiples of (FWUG)."""

MOST_BYTES = 16 << 20
"""An image may have so many."""

ACTIVATION_TIME = 0.05
"""Seconds for which processing is paused while other firmware is activated."""

MOST_ACTIVATION_TIME = 10
"""MTFA, in units of 100 ms."""

OPERATION = "firmware activation"

_FIRST_LINE = re.compile(rb"outboard-firmware ([!-~]{1,8})\n")


def revision_of(image: bytes) -> str | None:
    """The revision an image is of; None if it is none."""
    found = _FIRST_LINE.match(image)
    return found[1].decode() if found else None


class Firmware:
    """The slots of one subsystem, and what is downloaded. All in its turn."""

    def __init__(self, subsystem: "Subsystem") -> None:
        self._subsystem = subsystem
        saved: dict[str, Any] = subsystem.store.get(SECTION, {})
        self._slots = {_slot(slot): _revision(name) for slot, name in saved.get("slots", {}).items()}
        self._next = _slot(saved.get("next", 0))
        self.active = _slot(saved.get("active", 1))
        self._activating = _slot(saved.get("activating", 0))
        self._parts: dict[int, dict[int, bytes]] = {}

    def go_on(self) -> None:
        """After a power cycle: activate what waited for one, and end an activation that was under way."""
        if self._next and not self._subsystem.away:
            self.active, self._next = self._next, 0
        if self._activating:
            self.activate_now(self._activating)

    @property
    def pending(self) -> bool:
        """Whether a reset will activate other firmware."""
        return self._next != 0

    @property
    def activating(self) -> bool:
        """Whether other firmware is being activated."""
        return self._activating != 0

    def revision(self, built_in: str) -> str:
        """What the controller says it runs."""
        return self._slots.get(self.active, built_in)

    def revision_in(self, slot: int, built_in: str) -> str:
        """What a slot holds; nothing if it is empty."""
        return built_in if slot == 1 else self._slots.get(slot, "")

    def download(self, cntlid: int, offset: int, part: bytes) -> None:
        """A part of an image came. Raises `CommandFailed` (Overlapping Range)."""
        parts = self._parts.setdefault(cntlid, {})
        if any(at < offset + len(part) and offset < at + len(other) for at, other in parts.items()):
            raise CommandFailed(
                Status.OVERLAPPING_RANGE,
                f"bytes from {offset:#x} of the image are there already",
                location=44,
            )
        parts[offset] = part

    def store_image(self, cntlid: int, slot: int) -> int:
        """Put what was downloaded into ``slot`` (0: one that is not active); return which it is.

        Raises `CommandFailed` (Invalid Firmware Image or Slot).
        """
        if slot == 1:
            raise CommandFailed(Status.INVALID_FIRMWARE_SLOT, "slot 1 is read only", location=40)
        slot = slot or next(n for n in range(SLOTS, 1, -1) if n != self.active)
        # What is no image is of no use, and in the way of what is downloaded next.
        revision = revision_of(_image(self._parts.pop(cntlid, {})))
        if revision is None:
            raise CommandFailed(
                Status.INVALID_FIRMWARE_IMAGE, "an image begins with a line: outboard-firmware REVISION"
            )
        self._slots[slot] = revision
        self._keep()
        return slot

    def holds_download(self, cntlid: int) -> bool:
        """Whether anything was downloaded by a controller."""
        return bool(self._parts.get(cntlid))

    def check_slot(self, slot: int) -> None:
        """Raise `CommandFailed` (Invalid Firmware Image) if there is nothing in a slot to activate."""
        if slot != 1 and slot not in self._slots:
            raise CommandFailed(Status.INVALID_FIRMWARE_IMAGE, f"slot {slot} is empty", location=40)

    def activate_at_reset(self, slot: int) -> None:
        """Run what is in a slot after the next reset of a controller."""
        self._next = slot
        self._keep()

    def activate_now(self, slot: int) -> None:
        """Run what is in a slot from very soon on; hosts are told, and see that processing is paused."""
        self._activating, self._next = slot, 0
        self._keep()
        for state in self._subsystem.controllers.values():
            state.pause(True)
            state.report(FIRMWARE_ACTIVATION_STARTING)
        self._subsystem.background.start(Operation(OPERATION, self._activation))

    def controller_was_reset(self, cntlid: int) -> None:
        """A download is lost; what waited for a reset is active."""
        self._parts.pop(cntlid, None)
        if self._next:
            self.active, self._next = self._next, 0
            self._keep()

    def log(self, built_in: str) -> bytes:
        """The Firmware Slot Information log page."""
        revisions = {1: built_in} | self._slots
        return layouts.FIRMWARE_LOG.encode(
            active=self.active | self._next << 4,
            **{f"slot{slot}": name.encode().ljust(8) for slot, name in revisions.items()},
        )

    def _activation(self, operation: Operation) -> Steps:
        yield partial(time.sleep, ACTIVATION_TIME)
        self.active, self._activating = self._activating, 0
        self._keep()
        for state in self._subsystem.controllers.values():
            state.pause(False)
            if state.events.finish(OPERATION):
                state.wake()

    def _keep(self) -> None:
        self._subsystem.keep(
            SECTION,
            {
                "slots": {str(slot): name for slot, name in sorted(self._slots.items())},
                "active": self.active,
                "next": self._next,
                "activating": self._activating,
            },
        )


def _image(parts: dict[int, bytes]) -> bytes:
    """The parts in order. Raises `CommandFailed` if there is a gap."""
    image = bytearray()
    for offset, part in sorted(parts.items()):
        if offset != len(image):
            raise CommandFailed(
                Status.INVALID_FIRMWARE_IMAGE, f"bytes {len(image):#x} to {offset:#x} of the image lack"
            )
        image += part
    return bytes(image)


def _revision(name: str) -> str:
    """A revision as it was kept. Raises ValueError, TypeError."""
    if not re.fullmatch("[!-~]{1,8}", name):
        raise ValueError(f"{name!r} is no revision")
    return name


def _slot(number: int | str) -> int:
    """A slot's number as it was kept; 0 is none. Raises ValueError."""
    if not 0 <= int(number) <= SLOTS:
        raise ValueError(f"there is no slot {number}")
    return int(number)
