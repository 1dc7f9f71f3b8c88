"""Format operations: namespaces that are erased, and have another LBA format afterwards.

NVMe Base 2.0, 5.14; NVM Command Set 1.0, 4.1.5. An operation goes on to its end when a controller is reset,
and begins anew after a power cycle: section ``format`` of the store.
"""

import itertools
import logging
from collections.abc import Generator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from outboard.devices.nvme import layouts
from outboard.devices.nvme.management.background import Interrupted, Operation, Step, Steps
from outboard.devices.nvme.management.erasing import erase
from outboard.devices.nvme.management.setting import Setting
from outboard.devices.nvme.namespace import Namespace
from outboard.devices.nvme.spec import BROADCAST, PersistentEvent
from outboard.devices.nvme.status import Status, status_field
from outboard.devices.nvme.workers import wait_for_rest
from outboard.errors import StorageError

if TYPE_CHECKING:
    from outboard.devices.nvme.subsystem import Subsystem

log = logging.getLogger(__name__)

SECTION = "format"


class Formatting:
    """The format operations of one subsystem. All in its turn."""

    def __init__(self, subsystem: "Subsystem") -> None:
        self._subsystem = subsystem
        self._under_way: dict[str, dict[str, Any]] = {}

    def go_on(self) -> None:
        """Begin anew what a power cycle has ended."""
        kept = self._subsystem.store.get(SECTION, {})
        for name, saved in sorted(kept.items()):
            spaces = [
                self._subsystem.namespaces[nsid]
                for nsid in saved["namespaces"]
                if nsid in self._subsystem.namespaces
            ]
            setting = Setting.load(saved["setting"])
            for space in spaces:
                setting.check(space.csi)
            self.begin(spaces, setting, name)

    @property
    def under_way(self) -> bool:
        """Whether any namespace is being formatted."""
        return bool(self._under_way)

    def begin(self, spaces: Sequence[Namespace], setting: Setting, name: str = "") -> str:
        """Format these; they answer to nothing until they are done. Return the operation's name."""
        name = name or next(
            name for n in itertools.count(1) if (name := f"format {n}") not in self._under_way
        )
        self._under_way[name] = {"namespaces": [space.nsid for space in spaces], "setting": setting.save()}
        self._write()
        for space in spaces:
            space.barred, space.unformatted = Status.FORMAT_IN_PROGRESS, 100
            self._subsystem.reconfigure(space.nsid)
            for state in self._subsystem.states_of(space.nsid):
                state.abort(space, Status.FORMAT_IN_PROGRESS)
        self._subsystem.background.start(
            Operation(name, lambda operation: self._steps(operation, spaces, setting))
        )
        return name

    def _steps(self, operation: Operation, spaces: Sequence[Namespace], setting: Setting) -> Steps:
        status, left = Status.SUCCESS, 0
        for space in spaces:
            failure = yield from self._format(operation, space, setting)
            status, left = status or failure, max(left, space.unformatted)
            space.unformatted = 0
        completion = layouts.FORMAT_COMPLETION_EVENT.encode(
            nsid=spaces[0].nsid if len(spaces) == 1 else BROADCAST,
            smallest_progress=left,
            failed=bool(status),
            status=status_field(status) if status else 0,
        )
        self._subsystem.remember(PersistentEvent.FORMAT_COMPLETION, completion)
        del self._under_way[operation.name]
        self._write()
        for state in self._subsystem.controllers.values():
            if state.events.finish(operation.name, status):
                state.wake()

    def _format(
        self, operation: Operation, space: Namespace, setting: Setting
    ) -> Generator[Step, None, Status]:
        if self._subsystem.namespaces.get(space.nsid) is not space:
            return Status.INVALID_NAMESPACE
        operation.target = space
        status = Status.SUCCESS

        def told(done: int) -> None:
            space.unformatted = 100 - done * 100 // space.storage.size

        try:
            yield partial(wait_for_rest, space.storage)
            yield from erase(space.storage, told)
            setting.apply(space)
            space.was_erased()
            if space.zones is not None:
                yield space.storage.flush  # the zones as they are now
        except Interrupted:
            return Status.INVALID_NAMESPACE
        except StorageError as error:
            log.warning("namespace %d could not be formatted: %s", space.nsid, error)
            status = Status.WRITE_FAULT
        except Exception as error:
            log.error("namespace %d could not be formatted", space.nsid, exc_info=error)
            status = Status.INTERNAL_ERROR
        else:
            self._subsystem.relocate(space)
            self._subsystem.uncorrectable.renew(space)
            self._subsystem.inventory.note(space)
        operation.target = None
        space.barred = None
        self._subsystem.reconfigure(space.nsid)
        for state in self._subsystem.states_of(space.nsid):
            if operation.name not in state.events.deferred.values():
                state.namespace_changed(space.nsid)
        return status

    def _write(self) -> None:
        self._subsystem.keep(SECTION, self._under_way)
