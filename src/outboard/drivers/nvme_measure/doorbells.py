"""The three ways to tell a controller of new commands, best first.

*Mapped*: the server lets its client map the doorbells, and looks at that memory. *Shadow*: doorbells in the
client's own memory, and beside each an index that says when the real one has to ring all the same (NVMe
Base 2.0, 5.8 and annex B.5). *Trapped*: each doorbell is a message, and its answer.
"""

from enum import StrEnum

from outboard.client import Client
from outboard.client.accessors import MappedRegion
from outboard.drivers.nvme import CAP, CNS_CONTROLLER, DOORBELLS, NvmeDriver
from outboard.errors import SetupError

PAGE = 4096
DOORBELL_BUFFER_CONFIG = 0x7C
OACS, OACS_DOORBELL_BUFFER = 256, 1 << 8
SHADOWED = PAGE
"""Bytes of a shadow buffer: one page of the controller."""


class Doorbells(StrEnum):
    """How doorbells are rung."""

    AUTO = "auto"
    MAPPED = "mapped"
    SHADOW = "shadow"
    TRAPPED = "trapped"


def map_doorbells(client: Client, wanted: Doorbells, queues: int) -> MappedRegion | None:
    """BAR 0 with the doorbells of so many I/O queues, where they are wanted and can be mapped.

    Raises `SetupError` when only that was wanted, and the server does not offer it.
    """
    if wanted not in (Doorbells.AUTO, Doorbells.MAPPED):
        return None
    stride = 4 << (client.bar(0).read64(CAP) >> 32 & 0xF)
    size = 2 * (queues + 1) * stride
    try:
        mapping = client.map_bar(0)
        mapping.address(DOORBELLS, size)
    except IndexError:
        if wanted is Doorbells.MAPPED:
            raise SetupError(
                "the server does not let its doorbells be mapped: leave the choice to --doorbells auto"
            ) from None
        return None
    return mapping


def share_doorbells(driver: NvmeDriver, wanted: Doorbells, queues: int, shadow: int, events: int) -> bool:
    """Give the controller shadow doorbells and event indices, a page each, at these IOVAs; False if not.

    Raises `SetupError` when only that was wanted, and the controller does not have it.
    """
    if wanted not in (Doorbells.AUTO, Doorbells.SHADOW):
        return False
    supported = driver.identify(CNS_CONTROLLER)[OACS : OACS + 2]
    offered = int.from_bytes(supported, "little") & OACS_DOORBELL_BUFFER
    if offered and 2 * (queues + 1) * driver.doorbell_stride <= SHADOWED:
        driver.admin("Doorbell Buffer Config", DOORBELL_BUFFER_CONFIG, prp1=shadow, prp2=events)
        return True
    if wanted is Doorbells.SHADOW:
        raise SetupError(
            f"the controller has no shadow doorbells for {queues} queues: leave the choice to"
            " --doorbells auto"
        )
    return False
