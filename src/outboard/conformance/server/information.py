"""Points 37 to 48: what the server says of its device, its regions and its interrupts.

vfio-user specification, "VFIO_USER_DEVICE_GET_INFO", "..._GET_REGION_INFO", "..._GET_REGION_IO_FDS",
"..._GET_IRQ_INFO".
"""

import mmap
import os
import struct

from outboard.conformance import facts, wire
from outboard.conformance.facts import INFO, RegionFacts
from outboard.conformance.peer import Peer
from outboard.conformance.points import LIBVFIO_USER, QEMU, ROBUST, SPEC, Group, NotApplicable, Wrong
from outboard.conformance.target import Target

information = Group[Target]("Server: device, region and interrupt information")
point = information.point

PCI, RESETS = 2, 1
BEYOND = (100, 0x7FFF_FFFF, 0xFFFF_FFFF)
MORE_QUERIES = 1000


@point(
    "P37a",
    source="DEVICE_GET_INFO: flags, regions, interrupts. QEMU wants the PCI flag, 8 to 100 regions and 3"
    " to 50"
    " interrupt indexes (device.c, vfio_user_get_device_info)",
    matters="QEMU ends with 'no PCI device' or refuses the counts",
    profiles=(SPEC, QEMU, LIBVFIO_USER),
)
def device_info(target: Target) -> None:
    """GET_INFO says PCI, eight regions or more, and three interrupt kinds or more, in 16 bytes."""
    answer = target.open().ask(wire.device_info())
    if len(answer.payload) != 16:
        raise Wrong("16 bytes", str(answer))
    argsz, flags, regions, indexes = struct.unpack("=IIII", answer.payload)
    if argsz != 16 or not flags & PCI or not 8 <= regions <= 100 or not 3 <= indexes <= 50:
        raise Wrong(
            "argsz 16, the PCI flag, 8 to 100 regions, 3 to 50 interrupt indexes",
            f"argsz {argsz}, flags {flags:#x}, {regions} regions, {indexes} indexes",
        )


@point(
    "P37b",
    source="DEVICE_GET_INFO: the flag RESET says whether DEVICE_RESET is supported",
    matters="QEMU resets the device at every reboot only if the flag is set",
    profiles=(SPEC, QEMU),
)
def reset_flag(target: Target) -> None:
    """The RESET flag says whether DEVICE_RESET works."""
    peer, body = target.open(), wire.Body(wire.RESET)
    says = bool(target.facts.flags & RESETS)
    works = not peer.answer(body, peer.command(body)).is_error
    if says and not works:
        raise Wrong("DEVICE_RESET to succeed, as the flag says", "an error")
    if works and not says:
        raise NotApplicable("the flag is off and DEVICE_RESET is taken all the same, as P108a wants it")


@point(
    "P38a",
    source="argsz is the room for the reply's payload; below the fixed part there is none",
    matters="a client's mistake stays unseen",
    profiles=(SPEC, LIBVFIO_USER),
)
def short_argsz(target: Target) -> None:
    """GET_INFO with an argsz below 16 is refused."""
    peer = target.open()
    for argsz in (0, 15):
        peer.refused(wire.device_info(argsz), what=f"GET_INFO with argsz {argsz}")


@point(
    "P38b",
    source="argsz may be larger than needed; the reply has what there is. The Rust crate asks with 32",
    matters="cloud-hypervisor gets no device",
    profiles=(SPEC, LIBVFIO_USER),
)
def long_argsz(target: Target) -> None:
    """GET_INFO takes any argsz from 16 up and answers 16 bytes."""
    peer = target.open()
    for argsz in (16, 32, 4096):
        answer = peer.ask(wire.device_info(argsz))
        if len(answer.payload) != 16:
            raise Wrong(f"16 bytes for an argsz of {argsz}", str(answer))


@point(
    "P39a",
    source="GET_REGION_INFO: READ, WRITE, MMAP, CAPS are the flags; a region that is not there has size 0",
    matters="QEMU makes a BAR of whatever has a size",
    profiles=(SPEC, QEMU),
)
def region_flags(target: Target) -> None:
    """Each region has a size and known flags, or neither."""
    peer = target.open()
    for region in target.facts.regions:
        answer = peer.ask(wire.region_info(region.index))
        wire.close_all(answer.fds)
        _, flags, index, _, size, _ = INFO.unpack_from(answer.payload.ljust(32, b"\0"))
        if index != region.index or flags & ~0xF or (not size and flags & 0x7):
            raise Wrong(
                f"region {region.index} with known flags, none if its size is 0",
                f"index {index}, flags {flags:#x}, size {size:#x}",
            )


@point(
    "P39b",
    source="GET_REGION_INFO: the index is below num_regions. QEMU asks for num_regions itself by mistake",
    matters="a server that looks beyond its table answers with what lies there, or crashes",
    profiles=(SPEC, QEMU, LIBVFIO_USER, ROBUST),
)
def region_beyond(target: Target) -> None:
    """An index beyond the regions is refused."""
    peer = target.open()
    for index in (len(target.facts.regions), *BEYOND):
        peer.refused(wire.region_info(index), what=f"region info of region {index}")


@point(
    "P40",
    source="PCI: configuration space has 256 bytes, 4096 for PCI Express; region 7 is it",
    matters="QEMU reads min(4096, size) of it at start, and all of the guest's accesses go there",
    profiles=(SPEC, QEMU, LIBVFIO_USER),
)
def config_region(target: Target) -> None:
    """The configuration space is 256 or 4096 bytes, readable and writable."""
    region = target.facts.region(wire.CONFIG)
    if region.size not in (256, 4096) or region.flags & 3 != 3:
        raise Wrong(
            "256 or 4096 bytes, readable and writable", f"{region.size} bytes, flags {region.flags:#x}"
        )


def short_description(peer: Peer, region: RegionFacts, argsz: int) -> None:
    """With room for the fixed part only that part comes, with the size to ask again with."""
    answer = peer.ask(wire.region_info(region.index, argsz))
    wire.close_all(answer.fds)
    needed, flags, _, cap_offset, _, _ = INFO.unpack_from(answer.payload.ljust(32, b"\0"))
    if len(answer.payload) != 32 or needed != region.needed:
        raise Wrong(f"32 bytes and an argsz of {region.needed}", f"{answer}, argsz {needed}")
    if flags & wire.HAS_CAPS or cap_offset or answer.fds:
        raise Wrong(
            "no CAPS flag, cap_offset 0 and no descriptor with what is cut",
            f"flags {flags:#x}, cap_offset {cap_offset}, {len(answer.fds)} descriptors",
        )


@point(
    "P41a",
    source="argsz: a reply that does not fit is cut to its fixed part and tells the size for all. QEMU"
    " asks so"
    " first (hw/vfio/device.c, vfio_device_get_region_info)",
    matters="QEMU reads capabilities that are not there, and keeps a descriptor too many",
    profiles=(SPEC, QEMU, LIBVFIO_USER),
)
def first_question(target: Target) -> None:
    """A short argsz gets 32 bytes and the size to ask again with."""
    region = target.facts.with_caps()
    short_description(target.open(), region, 32)


@point(
    "P41b",
    source="The second question, with the argsz that was told, is answered in full; its message is no longer"
    " than the first. QEMU 10.1 takes one descriptor",
    matters="QEMU maps nothing: every access of the guest to the BAR is a message",
    profiles=(SPEC, QEMU, LIBVFIO_USER),
)
def second_question(target: Target) -> None:
    """Asked again with that size, the description comes in full with one descriptor."""
    region = target.facts.with_caps()
    answer = target.open().ask(wire.region_info(region.index, region.needed))
    wire.close_all(answer.fds)
    argsz, flags, _, cap_offset, _, _ = INFO.unpack_from(answer.payload.ljust(32, b"\0"))
    if (len(answer.payload), argsz) != (region.needed, region.needed):
        raise Wrong(f"{region.needed} bytes, argsz the same", f"{answer}, argsz {argsz}")
    if not flags & wire.HAS_CAPS or cap_offset < 32 or len(answer.fds) != 1:
        raise Wrong(
            "the CAPS flag, cap_offset from 32, one descriptor",
            f"flags {flags:#x}, cap_offset {cap_offset}, {len(answer.fds)} descriptors",
        )


@point(
    "P42a",
    source="argsz between the fixed part and the whole is still too little for the whole",
    matters="half a chain of capabilities would be walked into nothing",
)
def between(target: Target) -> None:
    """An argsz between the two behaves like the short one."""
    region = target.facts.with_caps()
    peer = target.open()
    for argsz in {33, region.needed - 1}:
        short_description(peer, region, argsz)


@point(
    "P42b",
    source="argsz below the fixed part leaves no room for an answer",
    matters="a client's mistake stays unseen",
    profiles=(SPEC, LIBVFIO_USER),
)
def region_argsz(target: Target) -> None:
    """Region info with an argsz below 32 is refused."""
    peer = target.open()
    for argsz in (0, 31):
        peer.refused(wire.region_info(wire.CONFIG, argsz), what=f"region info with argsz {argsz}")


@point(
    "P43",
    source="Sparse mmap capability: id 1, version 1, areas inside the region, on page borders",
    matters="QEMU maps what is said, also what lies outside the BAR",
    profiles=(SPEC, QEMU),
)
def sparse_chain(target: Target) -> None:
    """The sparse capability chain is well formed, its areas page-aligned and inside."""
    region = target.facts.with_caps()
    answer = target.open().ask(wire.region_info(region.index, region.needed))
    wire.close_all(answer.fds)
    at = INFO.unpack_from(answer.payload)[3]
    chain = list(facts.region_caps(answer.payload, at))
    if not chain or chain[-1][2]:
        raise Wrong("a chain of capabilities whose last has next 0", f"{chain} from {at}")
    if any(identifier == facts.SPARSE and version != 1 for identifier, version, _, _ in chain):
        raise Wrong("version 1 of the sparse capability", f"{chain}")
    end = 0
    for offset, size in sorted(facts.sparse_areas(answer.payload, at)):
        if offset % wire.PAGE or size % wire.PAGE or offset + size > region.size or offset < end:
            raise Wrong(
                f"areas on page borders, apart, inside {region.size:#x} bytes", f"{size:#x} at {offset:#x}"
            )
        end = offset + size


def mapped(peer: Peer, region: RegionFacts, offset: int, size: int) -> mmap.mmap:
    """An area of a region, mapped. Raises Wrong if its descriptor cannot be."""
    answer = peer.ask(wire.region_info(region.index, region.needed))
    try:
        if len(answer.fds) not in (1, len(region.areas)):
            raise Wrong("a descriptor with a region that may be mapped", f"{len(answer.fds)}")
        which = 0 if len(answer.fds) == 1 else region.areas.index((offset, size))
        fd, at = answer.fds[which], region.offset + offset
        if os.fstat(fd).st_size < at + size:
            raise Wrong(f"a file of {at + size:#x} bytes or more", f"{os.fstat(fd).st_size:#x} bytes")
        return mmap.mmap(fd, size, offset=at)
    except (OSError, ValueError) as error:
        raise Wrong(
            f"{size:#x} bytes at {offset:#x} of region {region.index} to be mapped", str(error)
        ) from error
    finally:
        wire.close_all(answer.fds)


@point(
    "P44a",
    source="GET_REGION_INFO: MMAP means that a descriptor comes, and the region is at 'offset' in it",
    matters="the guest's accesses go to a page that is not the device's, or to none (SIGBUS in QEMU)",
    profiles=(SPEC, QEMU, LIBVFIO_USER),
)
def areas_map(target: Target) -> None:
    """What may be mapped can be mapped, and shows what a read shows."""
    peer = target.open()
    for region in target.facts.mappable():
        for offset, size in region.areas:
            with mapped(peer, region, offset, size) as memory:
                count = min(64, size)
                said = facts.read(peer, region.index, offset, count)
                if memory[:count] != said:
                    raise Wrong(
                        f"region {region.index} at {offset:#x} to read alike by message and mapping",
                        f"{said.hex()} and {memory[:count].hex()}",
                    )


@point(
    "P44b",
    source="A mapped area is the region itself: both sides see each other's writes",
    matters="doorbells that nobody hears",
    profiles=(SPEC, QEMU),
)
def both_see(target: Target) -> None:
    """A write by message is seen through the mapping, and the other way round."""
    if target.writable is None:
        raise NotApplicable("writing to a BAR may do anything: name a place with --writable BAR:OFFSET")
    bar, at = target.writable
    region = target.facts.region(bar)
    for offset, size in region.areas if region.flags & wire.MAPPABLE else ():
        if offset <= at <= offset + size - 4:
            break
    else:
        raise NotApplicable(f"BAR {bar} is not mapped at {at:#x}")
    peer = target.open()
    with mapped(peer, region, offset, size) as memory:
        old = facts.read(peer, bar, at, 4)
        target.restore_later(lambda peer: facts.write(peer, bar, at, old))
        facts.write(peer, bar, at, b"\x12\x34\x56\x78")
        if (seen := memory[at - offset : at - offset + 4]) != b"\x12\x34\x56\x78":
            raise Wrong("12345678 in the mapping", seen.hex())
        memory[at - offset : at - offset + 4] = b"\x9a\xbc\xde\xf0"
        if (seen := facts.read(peer, bar, at, 4)) != b"\x9a\xbc\xde\xf0":
            raise Wrong("9abcdef0 by REGION_READ", seen.hex())


@point(
    "P45",
    source="QEMU emulates the MSI-X table over the BAR; sparse areas it takes as given"
    " (vfio_pci_fixup_msix_region)",
    matters="the guest writes its interrupts' addresses into the device's page, and none arrives",
    profiles=(QEMU,),
)
def msix_unmapped(target: Target) -> None:
    """MSI-X table and PBA are never in a mappable area."""
    config = target.facts.config
    at = target.facts.capability(facts.MSIX_CAP)
    vectors = (facts.config16(config, at + 2) & 0x7FF) + 1
    for word, size, what in ((at + 4, 16 * vectors, "table"), (at + 8, (vectors + 63) // 64 * 8, "PBA")):
        register = facts.config32(config, word)
        bar, start = register & 7, register & ~7
        region = target.facts.region(bar)
        if not region.flags & wire.MAPPABLE or not region.fds or region.areas == ((0, region.size),):
            continue  # of a BAR mapped whole QEMU takes the table out itself
        for offset, length in region.areas:
            if offset < start + size and start < offset + length:
                raise Wrong(
                    f"the MSI-X {what} of BAR {bar} at {start:#x} outside of what may be mapped",
                    f"an area of {length:#x} bytes at {offset:#x}",
                )


@point(
    "P46",
    source="A descriptor in a reply is the receiver's own copy",
    matters="a VMM that asks at every boot uses up the server's descriptors",
    profiles=(ROBUST,),
)
def queries_do_not_leak(target: Target) -> None:
    """Region descriptors are copies that leak nowhere."""
    region = target.facts.mappable()[0]
    peer = target.open()
    before = target.descriptors(peer)
    for _ in range(MORE_QUERIES):
        wire.close_all(peer.ask(wire.region_info(region.index, region.needed)).fds)
    if (after := target.descriptors(peer)) > before + 2:
        raise Wrong(f"{before} descriptors in the server, as before", f"{after} after {MORE_QUERIES} queries")
