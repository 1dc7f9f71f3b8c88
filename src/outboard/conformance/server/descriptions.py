"""Points 47 and 48: the descriptors that stand for registers, and what there is of interrupts.

vfio-user specification, "VFIO_USER_DEVICE_GET_REGION_IO_FDS" and "VFIO_USER_DEVICE_GET_IRQ_INFO".
"""

import struct

from outboard.conformance import wire
from outboard.conformance.facts import RegionFacts
from outboard.conformance.peer import Peer
from outboard.conformance.points import LIBVFIO_USER, QEMU, ROBUST, SPEC, NotApplicable, Wrong
from outboard.conformance.server.information import information
from outboard.conformance.target import Target

point = information.point

FIXED = struct.Struct("=IIII")
SUB_REGION = struct.Struct("=QQIIII")
SPEC_SIZE, LIBVFIO_USER_SIZE = 40, 48
"""A sub-region in the specification, and in libvfio-user's header (with a shadow's place in it)."""
IOEVENTFD, IOREGIONFD, SHADOW = range(3)
EVENTFD, MASKABLE, AUTOMASKED, NORESIZE = 1, 2, 4, 8


def io_fds(peer: Peer, region: RegionFacts, argsz: int = 16) -> wire.Message:
    """The answer of a server that knows this command. Raises NotApplicable for one that does not."""
    body = wire.region_io_fds(region.index, argsz)
    answer = peer.answer(body, peer.command(body))
    if answer.is_error:
        raise NotApplicable(f"the server does not support GET_REGION_IO_FDS: {answer}")
    return answer


def with_io_fds(target: Target, peer: Peer) -> tuple[RegionFacts, int, int]:
    """A region that has some: the region, their number, the argsz for all. Raises NotApplicable."""
    for region in target.facts.present():
        answer = io_fds(peer, region)
        wire.close_all(answer.fds)
        argsz, _, _, count = FIXED.unpack_from(answer.payload.ljust(16, b"\0"))
        if count:
            return region, count, argsz
    raise NotApplicable("no region of the device has descriptors in place of registers")


@point(
    "P47a",
    source="GET_REGION_IO_FDS: flags and count of the request are zero, argsz has room for the fixed part",
    matters="a client's mistake stays unseen",
    profiles=(SPEC, LIBVFIO_USER),
)
def io_fds_refuses(target: Target) -> None:
    """REGION_IO_FDS with flags, a count, a short argsz or no such region is refused."""
    peer, region = target.open(), target.facts.present()[0]
    wire.close_all(io_fds(peer, region).fds)
    for body, what in (
        (wire.region_io_fds(region.index, flags=1), "flags 1"),
        (wire.region_io_fds(region.index, count=1), "a count of 1"),
        (wire.region_io_fds(region.index, argsz=15), "argsz 15"),
        (wire.region_io_fds(100), "region 100"),
    ):
        peer.refused(body, what=f"GET_REGION_IO_FDS with {what}")


@point(
    "P47b",
    source="GET_REGION_IO_FDS: count is how many sub-regions there are, none for most regions",
    matters="a client looks for descriptors that do not come",
    profiles=(SPEC, LIBVFIO_USER),
)
def io_fds_none(target: Target) -> None:
    """A region without any is answered with a count of 0, in 16 bytes."""
    peer = target.open()
    for region in target.facts.present():
        answer = io_fds(peer, region)
        wire.close_all(answer.fds)
        argsz, _, index, count = FIXED.unpack_from(answer.payload.ljust(16, b"\0"))
        if len(answer.payload) != 16 or index != region.index or answer.fds or (not count and argsz != 16):
            raise Wrong(
                f"16 bytes without descriptors for region {region.index}",
                f"{answer}: argsz {argsz}, index {index}, count {count}",
            )


@point(
    "P47c",
    source="argsz: too little for all sub-regions gets the fixed part, the count and the size to ask again"
    " with",
    matters="a client takes half a list for the whole",
    profiles=(SPEC, LIBVFIO_USER),
)
def io_fds_short(target: Target) -> None:
    """A short argsz gets the number of sub-regions, the size for all, and no descriptor."""
    peer = target.open()
    region, count, needed = with_io_fds(target, peer)
    if needed - 16 not in (count * SPEC_SIZE, count * LIBVFIO_USER_SIZE):
        raise Wrong(f"an argsz of 16 and {count} times 40 (specification) or 48 (libvfio-user)", f"{needed}")
    answer = io_fds(peer, region, needed - 1)
    wire.close_all(answer.fds)
    if len(answer.payload) != 16 or answer.fds or FIXED.unpack(answer.payload)[0] != needed:
        raise Wrong(f"16 bytes and an argsz of {needed}", str(answer))


@point(
    "P47d",
    source="GET_REGION_IO_FDS: offset, size, fd_index, type (0 ioeventfd, 1 ioregionfd), flags, and"
    " datamatch;"
    " descriptors may be shared. libvfio-user adds where a shadow is (type 2), 48 bytes in all",
    matters="the client writes to the wrong descriptor: another register's, or none",
    profiles=(SPEC, LIBVFIO_USER),
)
def io_fds_list(target: Target) -> None:
    """Each sub-region lies in its region and names a descriptor that came."""
    peer = target.open()
    region, count, needed = with_io_fds(target, peer)
    answer = io_fds(peer, region, needed)
    wire.close_all(answer.fds)
    if len(answer.payload) != needed or not answer.fds:
        raise Wrong(f"{needed} bytes with descriptors", str(answer))
    size = (needed - 16) // count
    for at in range(16, needed, size):
        offset, length, which, kind, _, shadow = SUB_REGION.unpack_from(answer.payload, at)
        known = kind in (IOEVENTFD, IOREGIONFD) or (kind == SHADOW and size == LIBVFIO_USER_SIZE)
        if not known or which >= len(answer.fds) or offset + length > region.size:
            raise Wrong(
                f"a known type, one of {len(answer.fds)} descriptors, inside {region.size:#x} bytes",
                f"type {kind}, descriptor {which}, {length} bytes at {offset:#x}",
            )
        if kind == SHADOW and shadow >= len(answer.fds):
            raise Wrong(f"a shadow in one of {len(answer.fds)} descriptors", f"shadow_mem_fd_index {shadow}")


@point(
    "P48a",
    source="GET_IRQ_INFO: EVENTFD says that a vector signals an eventfd, count how many there are",
    matters="QEMU finds no way to hear an interrupt",
    profiles=(SPEC, QEMU, LIBVFIO_USER),
)
def irq_counts(target: Target) -> None:
    """GET_IRQ_INFO tells counts and flags of every kind, in 16 bytes."""
    peer = target.open()
    for index in range(len(target.facts.vectors)):
        answer = peer.ask(wire.irq_info(index))
        argsz, flags, said, count = FIXED.unpack_from(answer.payload.ljust(16, b"\0"))
        if len(answer.payload) != 16 or argsz != 16 or said != index or count > 2048:
            raise Wrong(
                f"16 bytes, argsz 16, index {index}, at most 2048 vectors",
                f"{answer}: argsz {argsz}, {said}, {count}",
            )
        if count and not flags & EVENTFD:
            raise Wrong(f"the EVENTFD flag, for {count} {wire.INDEXES[index]} vectors", f"flags {flags:#x}")


@point(
    "P48b",
    source="VFIO: INTx is level-triggered: MASKABLE, and AUTOMASKED when it is signalled. libvfio-user"
    " announces INTx without MASKABLE and AUTOMASKED (its issue 806)",
    matters="a client that goes by the flags never unmasks: one interrupt, then silence, or a storm of them",
    profiles=(SPEC,),
)
def intx_flags(target: Target) -> None:
    """INTx is maskable and masks itself."""
    target.facts.irqs(wire.INTX)
    flags = target.facts.irq_flags[wire.INTX]
    if flags & (MASKABLE | AUTOMASKED) != MASKABLE | AUTOMASKED:
        raise Wrong("MASKABLE and AUTOMASKED", f"INTx without MASKABLE or AUTOMASKED: flags {flags:#x}")


@point(
    "P48c",
    source="NORESIZE: the vectors have to be set all at once, anew for each change"
    " (QEMU: vfio_msix_early_setup)",
    matters="QEMU disables and enables every vector whenever the guest takes one more",
    profiles=(QEMU,),
)
def msix_resizes(target: Target) -> None:
    """MSI-X is announced without NORESIZE."""
    target.facts.irqs(wire.MSIX)
    if target.facts.irq_flags[wire.MSIX] & NORESIZE:
        raise Wrong("MSI-X without NORESIZE", f"flags {target.facts.irq_flags[wire.MSIX]:#x}")


@point(
    "P48d",
    source="GET_IRQ_INFO: the index is below num_irqs, argsz has room for the fixed part",
    matters="a server that looks beyond its table answers with what lies there, or crashes",
    profiles=(SPEC, LIBVFIO_USER, ROBUST),
)
def irq_beyond(target: Target) -> None:
    """An interrupt index beyond the last, and an argsz below 16, are refused."""
    peer = target.open()
    for index in (len(target.facts.vectors), 100, 0xFFFF_FFFF):
        peer.refused(wire.irq_info(index), what=f"GET_IRQ_INFO of index {index}")
    for argsz in (0, 15):
        peer.refused(wire.irq_info(0, argsz), what=f"GET_IRQ_INFO with argsz {argsz}")
