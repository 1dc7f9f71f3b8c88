"""Points 89 to 108: guest memory, mapped and unmapped. What the device does with it no client can ask for.

vfio-user specification, "VFIO_USER_DMA_MAP" and "VFIO_USER_DMA_UNMAP".
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from outboard.conformance import wire
from outboard.conformance.peer import Peer
from outboard.conformance.points import LIBVFIO_USER, QEMU, ROBUST, SPEC, Group, NotApplicable, Wrong
from outboard.conformance.server.framing import in_step
from outboard.conformance.target import Target
from outboard.conformance.wire import PAGE, dma_map, dma_unmap
from outboard.conformance.witness import Witness

memory = Group[Target]("Server: DMA")
point, unseen = memory.point, memory.unseen

BASE = 0x1_0000_0000
MANY = 500
"""As QEMU sends at start, below the descriptors that a process may have under way."""
FEW = 48
"""Maps that any server takes."""
UNMAP_ALL = 2
NEEDS_DEVICE = "only the device itself reads and writes guest memory; judge it by its own driver"


@contextmanager
def file(size: int) -> Iterator[int]:
    """A descriptor of shared memory."""
    fd = os.memfd_create("conformance")
    try:
        os.truncate(fd, size)
        yield fd
    finally:
        os.close(fd)


def map_one(peer: Peer, address: int, size: int, fd: int | None, offset: int = 0) -> None:
    """A map that has to be taken."""
    peer.ask(dma_map(address, size, offset), () if fd is None else (fd,))


@point(
    "P89",
    source="QEMU sends its maps right after VERSION, before DEVICE_GET_INFO, and waits for the last only"
    " (container.c, vfio_user_listener_begin and commit)",
    matters="QEMU ends with 'DMA mapping failed, unable to continue'",
    profiles=(SPEC, QEMU),
)
def maps_in_a_row(target: Target) -> None:
    """Maps are taken right after VERSION, hundreds of them in a row."""
    peer, body = target.open(), dma_map(BASE, PAGE)
    with file(MANY * PAGE) as fd:
        for number in range(MANY):
            body = dma_map(BASE + 2 * number * PAGE, PAGE, number * PAGE)
            peer.send(body.message(number), (fd,))
        for number in range(MANY):
            if (answer := peer.answer(body, number)).is_error:
                raise Wrong(f"map {number + 1} of {MANY} to be taken", str(answer))
    in_step(peer, f"{MANY} maps")


@point(
    "P90",
    source="DMA_MAP: a descriptor and an offset in it; readable, writable or both",
    matters="the guest's memory is out of the device's reach",
    profiles=(SPEC, QEMU, LIBVFIO_USER),
)
def map_with_descriptor(target: Target) -> None:
    """A map with a descriptor is taken, in each direction and at an offset."""
    peer = target.open()
    with file(4 * PAGE) as fd:
        for flags in (1, 2, 3):
            peer.ask(dma_map(BASE, PAGE, 2 * PAGE, flags), (fd,))
            peer.ask(dma_unmap(BASE, PAGE))


@point(
    "P91",
    source="DMA_MAP without a descriptor: the device asks for the memory by message. QEMU without a shared"
    " memory backend sends every map so",
    matters="QEMU ends when its RAM has no descriptor, and for the BARs of other devices",
    profiles=(SPEC, QEMU),
)
def map_without_descriptor(target: Target) -> None:
    """A map without a descriptor is taken."""
    peer = target.open()
    map_one(peer, BASE, 16 * PAGE, None)
    peer.ask(dma_unmap(BASE, 16 * PAGE))


def senseless(target: Target, body: wire.Body, what: str) -> None:
    """A map that is refused leaves nothing behind, neither range nor descriptor."""
    peer = target.open()
    peer.refused(body, what=what)
    in_step(peer, what)


@point("P92a", source="argsz: the request has 32 bytes", matters="a client's mistake stays unseen")
def map_argsz(target: Target) -> None:
    """A map with an argsz below 32 is refused."""
    senseless(target, dma_map(BASE, PAGE, argsz=31), "DMA_MAP with argsz 31")


@point("P92b", source="A map of no bytes maps nothing", matters="the range can never be unmapped again")
def map_nothing(target: Target) -> None:
    """A map of no bytes is refused."""
    senseless(target, dma_map(BASE, 0), "DMA_MAP of no bytes")


@point(
    "P92c",
    source="Addresses have 64 bits; a map ends before they do",
    matters="a range that wraps covers everything, or nothing",
    profiles=(SPEC, ROBUST),
)
def map_that_wraps(target: Target) -> None:
    """A map that wraps around the address space is refused."""
    senseless(target, dma_map(2**64 - PAGE, 2 * PAGE), "DMA_MAP beyond the last address")


@point("P92d", source="DMA_MAP: flags not defined are zero", matters="what the client asked for is not done")
def map_flags(target: Target) -> None:
    """A map with unknown flags is refused."""
    senseless(target, dma_map(BASE, PAGE, flags=0x8003), "DMA_MAP with flags 0x8003")


@point(
    "P92e",
    source="DMA_MAP: one descriptor, or none",
    matters="each such message costs the server a descriptor",
    profiles=(SPEC, LIBVFIO_USER, ROBUST),
)
def map_of_two(target: Target) -> None:
    """A map with two descriptors is refused, and both are closed."""
    peer = target.open()
    with Witness() as witness:
        what = "DMA_MAP with two descriptors"
        peer.refused(dma_map(BASE, PAGE), (witness.fd,) * 2, what=what)
        witness.expect_closed(what, peer.timeout)


@point(
    "P93",
    source="The file behind a map may be shorter than the map; beyond its end a mapping raises SIGBUS",
    matters="a guest, or a mistaken VMM, ends the server",
    profiles=(ROBUST,),
)
def short_file(target: Target) -> None:
    """A descriptor shorter than its map is refused, or at least survived."""
    peer, body = target.open(), dma_map(BASE, 16 * PAGE)
    with file(PAGE) as fd:
        peer.answer(body, peer.command(body, (fd,)))
    in_step(peer, "a map longer than its file")


@point(
    "P94a",
    source="QEMU and libvfio-user treat the same map twice as success; EEXIST is the specification's word",
    matters="QEMU ends when a map fails",
    profiles=(SPEC, LIBVFIO_USER),
)
def same_map_twice(target: Target) -> None:
    """The same map twice is fine, or refused with EEXIST."""
    peer, body = target.open(), dma_map(BASE, 4 * PAGE)
    with file(4 * PAGE) as fd:
        map_one(peer, BASE, 4 * PAGE, fd)
        answer = peer.answer(body, peer.command(body, (fd,)))
    if answer.is_error and answer.error != errno.EEXIST:
        raise Wrong("success or EEXIST", str(answer))


def overlapping(target: Target) -> tuple[Peer, wire.Message]:
    """A map over the middle of another, and its answer."""
    peer, body = target.open(), dma_map(BASE + PAGE, 4 * PAGE)
    with file(8 * PAGE) as fd:
        map_one(peer, BASE, 4 * PAGE, fd)
        return peer, peer.answer(body, peer.command(body, (fd,)))


@point(
    "P94b",
    source="DMA_MAP: a range that is mapped cannot be mapped again",
    matters="one address, two memories",
    profiles=(SPEC, LIBVFIO_USER),
)
def overlap(target: Target) -> None:
    """An overlap is refused and changes nothing."""
    peer, answer = overlapping(target)
    if not answer.is_error:
        raise Wrong("an overlapping map to be refused", str(answer))
    peer.ask(dma_unmap(BASE, 4 * PAGE))
    peer.refused(dma_unmap(BASE + PAGE, 4 * PAGE), what="the unmap of a map that was refused")


@point(
    "P94c",
    source="DMA_MAP: the errno for a range that overlaps one that is mapped is EEXIST. libvfio-user answers"
    " an overlap with EINVAL where the specification says EEXIST",
    matters="a client cannot tell its own slip from a senseless request",
)
def overlap_errno(target: Target) -> None:
    """An overlap is refused with EEXIST."""
    _, answer = overlapping(target)
    if answer.is_error and answer.error != errno.EEXIST:
        raise Wrong(
            "EEXIST", f"overlap -> {wire.errno_name(answer.error)} where the specification says EEXIST"
        )
    if not answer.is_error:
        raise NotApplicable("the overlap was not refused, see P94b")


@point(
    "P95",
    source="QEMU maps parts of pages below 1 MiB, and whatever a virtual IOMMU gives it",
    matters="QEMU ends with 'DMA mapping failed'",
    profiles=(QEMU, ROBUST),
)
def unaligned(target: Target) -> None:
    """Maps need not be page-aligned."""
    peer = target.open()
    with file(4 * PAGE) as fd:
        map_one(peer, BASE + 0x200, 0x1400, fd, 0x600)
        peer.ask(dma_unmap(BASE + 0x200, 0x1400))


@point(
    "P96",
    source="QEMU sends the same descriptor with every map of its RAM",
    matters="a guest with an IOMMU uses up the server's descriptors",
    profiles=(QEMU, ROBUST),
)
def one_file(target: Target) -> None:
    """Many maps of one file share one descriptor."""
    peer = target.open()
    before = target.descriptors(peer)
    with file(FEW * PAGE) as fd:
        for number in range(FEW):
            map_one(peer, BASE + 2 * number * PAGE, PAGE, fd, number * PAGE)
        after = target.descriptors(peer)
    if after > before + FEW // 4:
        raise Wrong(f"a few descriptors more than {before}", f"{after} after {FEW} maps of one file")


@point(
    "P97",
    source="DMA_UNMAP: the reply repeats the request. The Rust crate reads exactly these 24 bytes",
    matters="cloud-hypervisor waits for the rest for ever",
    profiles=(SPEC, LIBVFIO_USER),
)
def unmap_echo(target: Target) -> None:
    """An unmap is answered by its own 24 bytes."""
    peer, body = target.open(), dma_unmap(BASE, 4 * PAGE)
    with file(4 * PAGE) as fd:
        map_one(peer, BASE, 4 * PAGE, fd)
    answer = peer.ask(body)
    if answer.payload[8:] != body.payload[8:]:
        raise Wrong("24 bytes that repeat address and size", f"{answer}: {answer.payload.hex()}")


@point(
    "P98a",
    source="DMA_UNMAP: the range is one that was mapped; libvfio-user says ENOENT otherwise",
    matters="a client goes on as if the device had let go of memory",
    profiles=(SPEC, LIBVFIO_USER),
)
def unmap_unknown(target: Target) -> None:
    """Unmapping what is not mapped is refused."""
    target.open().refused(dma_unmap(BASE, PAGE), what="DMA_UNMAP of what is not mapped")


@point(
    "P98b",
    source="DMA_UNMAP: address and size are those of one map",
    matters="half a map is given to another process while the device still writes to it",
    profiles=(SPEC, LIBVFIO_USER),
)
def unmap_part(target: Target) -> None:
    """Unmapping a part of a map is refused and changes nothing."""
    peer = target.open()
    with file(4 * PAGE) as fd:
        map_one(peer, BASE, 4 * PAGE, fd)
    for address, size in ((BASE, PAGE), (BASE + PAGE, PAGE), (BASE + PAGE, 3 * PAGE)):
        peer.refused(dma_unmap(address, size), what=f"DMA_UNMAP of {size:#x} bytes of {4 * PAGE:#x}")
    peer.ask(dma_unmap(BASE, 4 * PAGE))


@point(
    "P98c",
    source="QEMU unmaps everything with VFIO's flag ALL, address and size 0 (vfio_user_dma_unmap)",
    matters="QEMU leaves the device with memory that is no longer the guest's",
    profiles=(QEMU, LIBVFIO_USER),
)
def unmap_all(target: Target) -> None:
    """Unmap-all takes every map, and is refused with an address."""
    peer = target.open()
    with file(4 * PAGE) as fd:
        for number in range(4):
            map_one(peer, BASE + 2 * number * PAGE, PAGE, fd, number * PAGE)
        peer.refused(dma_unmap(BASE, PAGE, UNMAP_ALL), what="DMA_UNMAP of ALL with an address")
        peer.ask(dma_unmap(0, 0, UNMAP_ALL))
        peer.refused(dma_unmap(BASE, PAGE), what="DMA_UNMAP after DMA_UNMAP of ALL")


@point(
    "P98d",
    source="DMA_UNMAP: flags not defined are zero",
    matters="what the client asked for is not done",
    profiles=(LIBVFIO_USER,),
)
def unmap_flags(target: Target) -> None:
    """An unmap with unknown flags is refused."""
    peer = target.open()
    with file(PAGE) as fd:
        map_one(peer, BASE, PAGE, fd)
    peer.refused(dma_unmap(BASE, PAGE, 0x8000), what="DMA_UNMAP with flags 0x8000")
    peer.ask(dma_unmap(BASE, PAGE))


unseen("P99", "A view over unmapped memory raises instead of crashing", NEEDS_DEVICE)
unseen("P100", "An access may cross adjacent maps, never a hole", NEEDS_DEVICE)
unseen("P101", "DMA by message keeps to the peer's transfer size", NEEDS_DEVICE)
unseen("P102", "Commands that arrive while we wait for DMA are served", NEEDS_DEVICE)
unseen("P103", "The message layout of QEMU 10.1 is detected and spoken", NEEDS_DEVICE)
unseen("P104", "DMA by message inside a handler is refused with the way out", NEEDS_DEVICE)
unseen(
    "P105", "An error, a short reply, silence or a disconnect during DMA raises and never hangs", NEEDS_DEVICE
)
unseen("P106", "DMA without bus mastering can be refused", NEEDS_DEVICE)


@point(
    "P107",
    source="DMA_MAP of a range of 2^63 bytes is well formed; ENOSPC is an answer to it",
    matters="a table of pages for it fills the memory",
    profiles=(LIBVFIO_USER, ROBUST),
)
def huge_map(target: Target) -> None:
    """A huge map is taken or refused, not a crash."""
    peer, body = target.open(), dma_map(0, 1 << 63)
    peer.answer(body, peer.command(body))
    in_step(peer, "a map of 2^63 bytes")


unseen("P108", "Memory that is not shared is noticed and said", "what a server logs does not pass its socket")
