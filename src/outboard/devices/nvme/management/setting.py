"""How a namespace is formatted: what Format NVM and Namespace Management choose, and what is kept of it.

LBA formats are numbered as in `outboard.devices.nvme.namespace.FORMATS`; NVM Command Set 1.0, 4.1.5.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from outboard.devices.nvme.namespace import FORMATS, Namespace, Protection
from outboard.devices.nvme.placement import Placement
from outboard.devices.nvme.spec import Csi
from outboard.devices.nvme.status import CommandFailed, Status
from outboard.errors import DefinitionError


@dataclass(frozen=True, slots=True)
class Setting:
    """An LBA format, ``extended`` metadata (MSET), a type of ``protection``, whether that comes ``first``."""

    format: int
    extended: bool = False
    protection: int = 0
    first: bool = False

    @classmethod
    def of(cls, space: Namespace) -> Self:
        """How a namespace is formatted now."""
        protection = space.protection
        if protection is None:
            return cls(space.format, space.extended)
        return cls(space.format, space.extended, protection.type, protection.first)

    @classmethod
    def load(cls, saved: Mapping[str, Any]) -> Self:
        """What `save` gave."""
        return cls(
            int(saved["format"]), bool(saved["extended"]), int(saved["protection"]), bool(saved["first"])
        )

    def save(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    def check(self, csi: Csi, location: int | None = None) -> None:
        """Raise `CommandFailed` (Invalid Format) if no namespace of this command set can be so."""
        if not 0 <= self.format < len(FORMATS):
            raise CommandFailed(
                Status.INVALID_FORMAT,
                f"there are {len(FORMATS)} formats, no {self.format}",
                location=location,
            )
        try:
            self._protection()
        except DefinitionError as error:
            raise CommandFailed(Status.INVALID_FORMAT, str(error), location=location) from error
        if self.protection and csi == Csi.ZONED:
            raise CommandFailed(
                Status.INVALID_FORMAT, "zones have no protection information", location=location
            )

    def check_placed(
        self, spaces: Sequence[Namespace], placement: Placement | None, location: int | None = None
    ) -> None:
        """Raise `CommandFailed` if there are no handles for data placement in such blocks.

        They are for ``spaces``, which get another format; or, if there are none, for one that is new.
        """
        block_size = FORMATS[self.format].block_size
        changed = [space for space in spaces if space.block_size != block_size]
        if placement is None or not placement.enabled or (spaces and not changed):
            return
        try:
            for handles in [space.placement_handles for space in changed] or [()]:
                placement.choose(handles, block_size, changed)
        except DefinitionError as error:
            status = Status.INVALID_FORMAT if spaces else Status.INVALID_PLACEMENT_HANDLE_LIST
            raise CommandFailed(status, str(error), location=location) from error

    def blocks(self, size: int) -> int:
        """How many blocks a storage of ``size`` bytes has."""
        return size // self.bytes

    @property
    def bytes(self) -> int:
        """Bytes of a block and its metadata."""
        return FORMATS[self.format].block_size + FORMATS[self.format].metadata

    def apply(self, space: Namespace) -> None:
        """Have a namespace that is empty be so. Nobody may use it meanwhile."""
        space.reformat(self.format, extended=self.extended, protection=self._protection())

    def _protection(self) -> Protection | None:
        """What of the metadata is protection information. Raises `DefinitionError` if there is no room."""
        chosen = FORMATS[self.format]
        if not self.protection:
            return None
        protection = Protection(self.protection, self.first, chosen.guard)
        if chosen.metadata < protection.size:
            raise DefinitionError(
                f"metadata of {chosen.metadata} bytes has no room for protection information"
            )
        return protection
