"""What a server says of its device: regions, interrupts, configuration space.

Read once, so that a check knows what there is to judge. The walk over capabilities is that of PCI 3.0,
section 6.7, and ends for a broken chain too.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from outboard.conformance import wire
from outboard.conformance.peer import Peer
from outboard.conformance.points import NotApplicable, Wrong

MOST_REGIONS, MOST_INDEXES = 100, 50
INFO = struct.Struct("=IIIIQQ")
SPARSE = 1
MSI_CAP, MSIX_CAP, EXPRESS_CAP, POWER_CAP = 0x05, 0x11, 0x10, 0x01


@dataclass(frozen=True, slots=True)
class RegionFacts:
    """One region: ``areas`` are (offset, size) that may be mapped, ``needed`` the argsz for everything."""

    index: int
    flags: int
    size: int
    offset: int
    needed: int
    fds: int
    areas: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Facts:
    """A device. ``vectors`` and ``irq_flags`` by interrupt index; ``config`` is its whole space."""

    flags: int
    regions: tuple[RegionFacts, ...]
    vectors: tuple[int, ...]
    irq_flags: tuple[int, ...]
    config: bytes

    def region(self, index: int) -> RegionFacts:
        """A region that exists. Raises NotApplicable."""
        if index >= len(self.regions) or not self.regions[index].size:
            raise NotApplicable(f"the device has no region {index}")
        return self.regions[index]

    def present(self) -> list[RegionFacts]:
        """The regions that have a size."""
        return [region for region in self.regions if region.size]

    def mappable(self) -> list[RegionFacts]:
        """The regions that may be mapped. Raises NotApplicable if there are none."""
        found = [region for region in self.present() if region.flags & wire.MAPPABLE]
        if not found:
            raise NotApplicable("the device has no mappable BAR")
        return found

    def with_caps(self) -> RegionFacts:
        """A region whose description has more than its fixed part. Raises NotApplicable."""
        for region in self.regions:
            if region.needed > INFO.size:
                return region
        raise NotApplicable("no region of the device has capabilities in its description")

    def irqs(self, index: int, at_least: int = 1) -> int:
        """How many vectors an interrupt index has. Raises NotApplicable below ``at_least``."""
        count = self.vectors[index] if index < len(self.vectors) else 0
        if count < at_least:
            raise NotApplicable(
                f"the device has {count} {wire.INDEXES[index]} vectors, {at_least} are needed"
            )
        return count

    def busiest(self, at_least: int = 1) -> tuple[int, int]:
        """The interrupt index with most vectors, and their number. Raises NotApplicable."""
        choice = [wire.MSIX, wire.MSI, wire.INTX]
        index = max(choice, key=lambda kind: self.vectors[kind] if kind < len(self.vectors) else 0)
        return index, self.irqs(index, at_least)

    def capability(self, identifier: int) -> int:
        """Where a PCI capability is in configuration space. Raises NotApplicable if there is none."""
        for found, at in capabilities(self.config):
            if found == identifier:
                return at
        raise NotApplicable(f"the device has no PCI capability {identifier:#04x}")


def gather(peer: Peer) -> Facts:
    """Ask for everything. Raises Wrong where the server does not answer properly."""
    answer = peer.ask(wire.device_info())
    _, flags, regions, indexes = struct.unpack_from("=IIII", answer.payload.ljust(16, b"\0"))
    if regions > MOST_REGIONS or indexes > MOST_INDEXES:
        raise Wrong("a credible device", f"{regions} regions and {indexes} interrupt indexes")
    irqs = [irq(peer, index) for index in range(indexes)]
    found = tuple(region(peer, index) for index in range(regions))
    size = found[wire.CONFIG].size if len(found) > wire.CONFIG else 0
    config = read(peer, wire.CONFIG, 0, min(size, wire.PAGE)) if size else b""
    return Facts(flags, found, tuple(i[1] for i in irqs), tuple(i[0] for i in irqs), config)


def irq(peer: Peer, index: int) -> tuple[int, int]:
    """The flags and the count of an interrupt index; (0, 0) where the server refuses to tell."""
    body = wire.irq_info(index)
    answer = peer.answer(body, peer.command(body))
    if answer.is_error or len(answer.payload) < 16:
        return 0, 0
    _, flags, _, count = struct.unpack_from("=IIII", answer.payload)
    return flags, count


def region(peer: Peer, index: int) -> RegionFacts:
    """One region; of size 0 where the server refuses to describe it."""
    payload, fds = description(peer, index, INFO.size)
    needed = INFO.unpack_from(payload)[0]
    if INFO.size < needed <= wire.PAGE * 4:
        wire.close_all(fds)
        payload, fds = description(peer, index, needed)
    wire.close_all(fds)
    _, flags, _, cap_offset, size, offset = INFO.unpack_from(payload)
    areas = sparse_areas(payload, cap_offset) if flags & wire.HAS_CAPS else ()
    return RegionFacts(index, flags, size, offset, needed, len(fds), areas or ((0, size),))


def description(peer: Peer, index: int, argsz: int) -> tuple[bytes, tuple[int, ...]]:
    """The payload of region info, zeros where it is refused, and the descriptors that came."""
    body = wire.region_info(index, argsz)
    answer = peer.answer(body, peer.command(body))
    payload = b"" if answer.is_error else answer.payload
    return payload.ljust(INFO.size, b"\0"), answer.fds


def sparse_areas(payload: bytes, at: int) -> tuple[tuple[int, int], ...]:
    """The areas of the first sparse capability in a region's description."""
    for identifier, _, _, start in region_caps(payload, at):
        if identifier == SPARSE and start + 16 <= len(payload):
            count = struct.unpack_from("=I", payload, start + 8)[0]
            room = (len(payload) - start - 16) // 16
            return tuple(
                struct.unpack_from("=QQ", payload, start + 16 + 16 * n) for n in range(min(count, room))
            )
    return ()


def region_caps(payload: bytes, at: int) -> Iterator[tuple[int, int, int, int]]:
    """The chain in a region's description: (id, version, next, where it is), each once."""
    seen = set()
    while INFO.size <= at <= len(payload) - 8 and at not in seen:
        seen.add(at)
        identifier, version, following = struct.unpack_from("=HHI", payload, at)
        yield identifier, version, following, at
        at = following


def capabilities(config: bytes) -> Iterator[tuple[int, int]]:
    """The PCI capabilities in configuration space: (id, where it is), each once."""
    if len(config) < 256 or not config[0x06] & 0x10:
        return
    at, seen = config[0x34] & 0xFC, set()
    while at >= 0x40 and at not in seen:
        seen.add(at)
        yield config[at], at
        at = config[at + 1] & 0xFC


def extended_capabilities(config: bytes) -> Iterator[tuple[int, int, int]]:
    """The extended ones of PCI Express: (id, next, where it is), each once."""
    at, seen = 0x100, set()
    while 0x100 <= at <= len(config) - 4 and at not in seen:
        seen.add(at)
        word = int.from_bytes(config[at : at + 4], "little")
        if not word:
            return
        yield word & 0xFFFF, word >> 20, at
        at = word >> 20


def read(peer: Peer, region: int, offset: int, count: int) -> bytes:
    """What REGION_READ answers. Raises Wrong unless it is ``count`` bytes."""
    payload = peer.ask(wire.region_read(region, offset, count)).payload
    if len(payload) != 16 + count:
        raise Wrong(
            f"{count} bytes of region {region} at {offset:#x}",
            f"a reply with {len(payload) - 16} bytes of data",
        )
    return payload[16:]


def write(peer: Peer, region: int, offset: int, data: bytes) -> None:
    """A REGION_WRITE that has to succeed."""
    peer.ask(wire.region_write(region, offset, data))


def config16(config: bytes, at: int) -> int:
    """A 16-bit register of configuration space."""
    return int.from_bytes(config[at : at + 2], "little")


def config32(config: bytes, at: int) -> int:
    """A 32-bit register of configuration space."""
    return int.from_bytes(config[at : at + 4], "little")
