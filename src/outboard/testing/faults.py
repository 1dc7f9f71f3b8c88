"""Faults for the length of a test's block: `fail`.

::

    with fail(disk, opcode="read", lba=(8, 15), status=(2, 0x81)) as fault:
        read_something()
    assert fault.struck == 1
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from outboard.devices.nvme.faults import Fault
from outboard.devices.nvme.injection import Injection
from outboard.devices.nvme.subsystem import Subsystem


@contextmanager
def fail(disk: Any, **conditions_and_effects: Any) -> Iterator[Injection]:
    """Have ``disk``, an `Nvme` or a `Subsystem`, fail until the block is left, as `Fault` takes it.

    What is yielded counts: ``matched``, ``struck``. Raises `DefinitionError` for what is no fault.

    >>> from outboard.devices.nvme import Nvme
    >>> from outboard.storage import open_storage
    >>> disk = Nvme(open_storage("ram:64M"))
    >>> with fail(disk, opcode="flush", status="write_fault") as fault:
    ...     fault.struck
    0
    """
    subsystem: Subsystem = getattr(disk, "subsystem", disk)
    faults = subsystem.faults
    id = faults.inject(Fault(**conditions_and_effects))
    injection = faults[id]
    try:
        yield injection
    finally:
        if id in [each.id for each in faults.list()]:
            faults.remove(id)
