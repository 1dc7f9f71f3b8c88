"""NVMe controllers named on the command line: ``ram:256M,block_size=4096``."""

from collections.abc import Sequence
from typing import Any

from outboard.devices.nvme import Nvme
from outboard.operation.options import NamespaceOptions


def controller(backends: Sequence[str], **options: Any) -> Nvme:
    """A controller with one namespace for each back end; options are those of `Nvme`.

    Raises:
        StorageError: a back end cannot be opened.
        DefinitionError: an option that cannot be.
        SetupError: a value that is none.
    """
    return Nvme(*(NamespaceOptions.of_text(backend).open() for backend in backends), **options)
