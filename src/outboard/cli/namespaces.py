"""NVMe controllers named on the command line: ``ram:256M,block_size=4096``."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from outboard.devices.nvme import Namespace, Nvme
from outboard.operation.options import NamespaceOptions
from outboard.operation.service import naming


def controller(backends: Sequence[str], **options: Any) -> Nvme:
    """A controller with one namespace for each back end; options are those of `Nvme`.

    Raises, with nothing left open:
        StorageError: a back end cannot be opened.
        ConfigurationError: a value that is none, or options that cannot be.
    """
    with ExitStack() as undo:
        spaces = []
        for backend in backends:
            spaces.append(_opened(backend))
            undo.callback(spaces[-1].storage.close)
        with naming(""):
            made = Nvme(*spaces, **options)
        undo.pop_all()
    return made


def _opened(backend: str) -> Namespace:
    options = NamespaceOptions.of_text(backend)
    with naming("", f"namespace {backend}"):
        return options.open()
