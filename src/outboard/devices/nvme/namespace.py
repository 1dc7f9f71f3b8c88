"""A namespace: a storage cut into blocks, and the names by which hosts recognise it.

The names are derived from the controller's serial number and the namespace identifier, so that they
are the same after every restart: boot entries and /dev/disk/by-id depend on it.
"""

import hashlib
import uuid
from dataclasses import dataclass, field

from outboard.errors import DefinitionError
from outboard.storage import Storage

BLOCK_SIZES = (512, 4096)

_NAMES = uuid.UUID("5c1a7b0e-3f0d-5b6e-9d2a-6f7574626f61")


def derived_uuid(*words: object) -> uuid.UUID:
    """Return the UUID that belongs to these words: the same one for ever."""
    return uuid.uuid5(_NAMES, "/".join(map(str, words)))


@dataclass(slots=True)
class Namespace:
    """``storage`` as blocks of ``block_size`` bytes (512 or 4096); what is left over is not used.

    Raises `DefinitionError` for another block size, or a storage smaller than one block.
    """

    storage: Storage
    block_size: int = 512
    blocks: int = field(init=False)

    def __post_init__(self) -> None:
        if self.block_size not in BLOCK_SIZES:
            raise DefinitionError(f"a block size of {self.block_size} is not offered: use 512 or 4096")
        self.blocks = self.storage.size // self.block_size
        if self.blocks == 0:
            raise DefinitionError(
                f"a storage of {self.storage.size} bytes holds no block of {self.block_size}: make it larger"
            )


@dataclass(frozen=True, slots=True)
class Names:
    """The identifiers of one namespace, in the byte order of Identify."""

    eui64: bytes
    nguid: bytes
    uuid: bytes

    @classmethod
    def derive(cls, serial: str, nsid: int) -> "Names":
        """Return the names of namespace ``nsid`` of the controller with this serial number."""
        digest = hashlib.sha256(f"outboard/{serial}/{nsid}".encode()).digest()
        # A locally administered, individual identifier: no manufacturer's range is used.
        local = bytes([digest[0] & 0xFC | 0x02])
        return cls(
            eui64=local + digest[1:8],
            nguid=digest[8:16] + local + digest[17:24],
            uuid=derived_uuid(serial, nsid).bytes,
        )
