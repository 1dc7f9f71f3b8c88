"""What is known of namespaces over a power cycle: their formats, who has them, which of them a host created.

The section ``namespaces`` of the store. A namespace that the configuration gave has the format and the
write protection a host has given it, and is not with controllers that a host has taken it from.
"""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from outboard.devices.nvme.management.setting import Setting
from outboard.devices.nvme.namespace import Namespace
from outboard.devices.nvme.spec import Csi, WriteProtection
from outboard.errors import DefinitionError, StorageError

if TYPE_CHECKING:
    from outboard.devices.nvme.subsystem import Subsystem

log = logging.getLogger(__name__)

SECTION = "namespaces"


class Inventory:
    """The records of one subsystem's namespaces. All in its turn."""

    def __init__(self, subsystem: "Subsystem") -> None:
        self._subsystem = subsystem
        saved = subsystem.store.get(SECTION, {})
        self._created = int(saved.get("created", 0))
        self._records = {int(nsid): _record(record) for nsid, record in saved.get("each", {}).items()}

    @property
    def reserved(self) -> set[int]:
        """Identifiers of namespaces that a host created."""
        return {nsid for nsid, record in self._records.items() if record["created"]}

    def next_generation(self) -> int:
        """A number that no namespace created here has had: what it is called follows from it."""
        self._created += 1
        return self._created

    def reopen(self) -> None:
        """Bring back what hosts have created; what cannot be is left out, and said."""
        pool = self._subsystem.pool
        for nsid in sorted(self.reserved):
            record = self._records[nsid]
            if pool is None:
                log.warning("namespace %d was created from a pool, and there is none", nsid)
                continue
            try:
                space = Namespace(
                    pool.reopen(nsid, record["size"]), shared=record["shared"], ana_group=record["ana_group"]
                )
                space.csi, space.created = Csi(record["csi"]), record["created"]
                self._subsystem.add(space, nsid)
            except (StorageError, DefinitionError) as error:
                log.warning("namespace %d is not there: %s", nsid, error)

    def recall(self, space: Namespace) -> None:
        """A namespace is there: it is as it was left."""
        record = self._records.get(space.nsid)
        if record is None or bool(record["created"]) != bool(space.created):
            self._records.pop(space.nsid, None)
            return
        setting = Setting.load(record["setting"])
        if setting != Setting.of(space) and setting.blocks(space.storage.size):
            setting.apply(space)
        space.write_protection = max(space.write_protection, record["write_protection"])

    def may_have(self, space: Namespace, cntlid: int) -> bool:
        """Whether a controller that comes, or is there when the namespace comes, gets it."""
        record = self._records.get(space.nsid)
        if record is not None and record["attached"] is not None:
            return cntlid in record["attached"]
        return space.shared or not space.attached

    def note(self, space: Namespace, *, attached: bool = False) -> None:
        """Keep how a namespace is now; with ``attached``, who has it is what a host wants from now on."""
        before = self._records.get(space.nsid, {})
        self._records[space.nsid] = {
            "created": space.created,
            "size": space.storage.size,
            "csi": space.csi,
            "shared": space.shared,
            "ana_group": space.ana_group,
            "setting": Setting.of(space).save(),
            "write_protection": space.lasting_protection,
            "attached": sorted(space.attached) if attached else before.get("attached"),
        }
        self._write()

    def renew(self, space: Namespace) -> None:
        """Keep how a namespace is now, if anything is kept of it."""
        if space.nsid in self._records:
            self.note(space)

    def forget(self, nsid: int) -> None:
        """A namespace is gone for good."""
        if self._records.pop(nsid, None) is not None:
            self._write()

    def _write(self) -> None:
        each = {str(nsid): record for nsid, record in sorted(self._records.items())}
        self._subsystem.keep(SECTION, {"created": self._created, "each": each})


def _record(saved: Mapping[str, Any]) -> dict[str, Any]:
    """A record as `Inventory.note` makes them; raises KeyError, TypeError, ValueError, CommandFailed."""
    setting, csi = Setting.load(saved["setting"]), Csi(saved["csi"])
    setting.check(csi)
    attached = saved["attached"]
    return {
        "created": int(saved["created"]),
        "size": int(saved["size"]),
        "csi": csi,
        "shared": bool(saved["shared"]),
        "ana_group": int(saved["ana_group"]),
        "setting": setting.save(),
        "write_protection": WriteProtection(saved["write_protection"]),
        "attached": None if attached is None else [int(cntlid) for cntlid in attached],
    }
