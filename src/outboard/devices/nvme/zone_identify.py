"""What Identify says of the zoned command set (Zoned Namespace Command Set 1.1, 4.1.5)."""

import struct

from outboard.devices.nvme.layouts import Layout
from outboard.devices.nvme.namespace import FORMATS, Namespace
from outboard.devices.nvme.state import State
from outboard.devices.nvme.zone_layout import EXTENSION_UNIT

IDENTIFY_ZONED_NAMESPACE = Layout(
    4096,
    zoc=(0, "H"),
    ozcs=(2, "H"),
    mar=(4, "I"),
    mor=(8, "I"),
    rrl=(12, "I"),
    frl=(16, "I"),
    numzrwa=(44, "I"),
    zrwafg=(48, "H"),
    zrwas=(50, "H"),
    zrwacap=(52, "B"),
    lbafe=(2816, "1024s"),
)

IDENTIFY_ZONED_CONTROLLER = Layout(4096, zasl=(0, "B"))

_CROSS_READ, _RANDOM_WRITE_AREAS = 1 << 0, 1 << 1
"""Bits of OZCS."""

_EXPLICIT_COMMIT = 1 << 0
"""A bit of ZRWACAP."""


def zoned_namespace(space: Namespace) -> bytes:
    """Return the Identify Namespace structure of the zoned command set."""
    assert space.zones is not None
    geometry = space.zones.geometry
    layout = geometry.layout
    window = geometry.window > 0
    return IDENTIFY_ZONED_NAMESPACE.encode(
        ozcs=(_CROSS_READ if layout.cross_read else 0) | (_RANDOM_WRITE_AREAS if window else 0),
        mar=_zero_based(layout.most_active),
        mor=_zero_based(layout.most_open or layout.most_active),
        numzrwa=space.zones.windows if window else 0,
        zrwafg=geometry.granularity,
        zrwas=geometry.window,
        zrwacap=_EXPLICIT_COMMIT if window else 0,
        lbafe=b"".join(
            struct.pack("<QB7x", layout.size // each.block_size, layout.extension // EXTENSION_UNIT)
            for each in FORMATS
        ),
    )


def zoned_controller(state: State) -> bytes:
    """Return the Identify Controller structure of the zoned command set."""
    return IDENTIFY_ZONED_CONTROLLER.encode(zasl=state.limits.zasl)


def _zero_based(most: int) -> int:
    """MAR and MOR: all ones if there is no limit."""
    return most - 1 if most else 0xFFFF_FFFF
