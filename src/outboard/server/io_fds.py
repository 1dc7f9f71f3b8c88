"""The answer to DEVICE_GET_REGION_IO_FDS: which descriptors ring which parts of a region.

vfio-user specification, "VFIO_USER_DEVICE_GET_REGION_IO_FDS". A descriptor that several parts share travels
once. What the client has no room for is left out: it writes there by message, which always works.
"""

from collections.abc import Iterable

from outboard.descriptors import MAX_DESCRIPTORS
from outboard.pci.doorbells import IoEventFd
from outboard.protocol.messages import IoFdFlag, IoFdsLayout, IoFdType, IoSubRegion, RegionIoFds


def region_io_fds(
    request: RegionIoFds, parts: Iterable[IoEventFd], layout: IoFdsLayout, most_fds: int
) -> tuple[RegionIoFds, tuple[int, ...]]:
    """The answer to `request` for a region of these `parts`, and its descriptors, `most_fds` at most.

    A request without room for all sub-regions gets none, and no descriptor: argsz says what to ask with.
    """
    places: dict[int, int] = {}
    subs: list[IoSubRegion] = []
    for part in parts:
        wanted = {fd for fd in (part.fd, part.shadow_fd) if fd is not None and fd not in places}
        if len(places) + len(wanted) > min(most_fds, MAX_DESCRIPTORS):
            break
        subs.append(_sub_region(part, places))
    needed = RegionIoFds.LAYOUT.size + len(subs) * layout.value
    answer = RegionIoFds(needed, 0, request.index, len(subs), tuple(subs), layout)
    if request.argsz < needed:
        answer.sub_regions = ()
        return answer, ()
    return answer, tuple(places)


def _sub_region(part: IoEventFd, places: dict[int, int]) -> IoSubRegion:
    """One sub-region; a descriptor met for the first time is given a place among those of the reply."""
    place = places.setdefault(part.fd, len(places))
    flags = 0 if part.match is None else IoFdFlag.DATAMATCH
    flags |= IoFdFlag.PIO if part.pio else 0
    kind, shadow_place = IoFdType.IOEVENTFD, 0
    if part.shadow_fd is not None:
        kind, shadow_place = IoFdType.SHADOW_IOEVENTFD, places.setdefault(part.shadow_fd, len(places))
    return IoSubRegion(
        offset=part.offset,
        size=part.size,
        fd_index=place,
        type=kind,
        flags=flags,
        datamatch=part.match or 0,
        shadow_fd_index=shadow_place,
        shadow_offset=part.shadow_offset,
    )
