"""NVMe controllers named on the command line: ``ram:256M,block_size=4096``."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from outboard.devices.nvme import Namespace, Nvme
from outboard.storage import open_storage, parse_size

BLOCK_SIZE = re.compile(r",block_size=([^,]*)")


def controller(backends: Sequence[str], **options: Any) -> Nvme:
    """A controller with one namespace for each back end; options that are None are left to `Nvme`.

    Raises:
        StorageError: a back end cannot be opened, or a block size is none.
        DefinitionError: an option that cannot be.
    """
    given = {name: value for name, value in options.items() if value is not None}
    return Nvme(*map(namespace, backends), **given)


def serial_of(socket: Path) -> str:
    """A serial number that belongs to a socket: the same after a restart, another for another socket.

    >>> serial_of(Path("/run/disk.sock"))
    'OB2F3765DDCD12'
    """
    return "OB" + hashlib.sha256(str(socket.resolve()).encode()).hexdigest()[:12].upper()


def namespace(backend: str) -> Namespace:
    """The namespace that ``BACKEND[,block_size=N]`` names."""
    found = BLOCK_SIZE.search(backend)
    storage = open_storage(BLOCK_SIZE.sub("", backend))
    return Namespace(storage, block_size=parse_size(found[1])) if found else Namespace(storage)
