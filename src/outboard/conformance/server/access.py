"""Points 77 to 88: reads and writes of regions. Only configuration space is written to, with what it holds.

vfio-user specification, "VFIO_USER_REGION_READ", "..._WRITE", "..._WRITE_MULTI".
"""

import struct

from outboard.conformance import facts, wire
from outboard.conformance.peer import Peer
from outboard.conformance.points import LIBVFIO_USER, QEMU, ROBUST, SPEC, NotApplicable, Wrong
from outboard.conformance.server.config import LINE, access, borrow, get
from outboard.conformance.server.framing import in_step
from outboard.conformance.target import Target

point, unseen = access.point, access.unseen

ECHO = struct.Struct("=QII")
TOP = 2**64 - 1


@point(
    "P77",
    source="REGION_READ and REGION_WRITE: offset, region and count are those of the access; PCI is"
    " little-endian",
    matters="a driver reads its registers at the wrong place, or backwards",
    profiles=(SPEC, QEMU, LIBVFIO_USER),
)
def exact_access(target: Target) -> None:
    """What is written to a BAR is read back, whole and in pieces, little end first."""
    if target.writable is None:
        raise NotApplicable("writing to a BAR may do anything: name a place with --writable BAR:OFFSET")
    bar, at = target.writable
    target.facts.region(bar)
    peer = target.open()
    old = facts.read(peer, bar, at, 4)
    target.restore_later(lambda peer: facts.write(peer, bar, at, old))
    facts.write(peer, bar, at, b"\x11\x22\x33\x44")
    for offset, count in ((0, 4), (0, 2), (2, 2), (0, 1), (3, 1)):
        seen = facts.read(peer, bar, at + offset, count)
        if seen != b"\x11\x22\x33\x44"[offset : offset + count]:
            raise Wrong(f"11223344 from BAR {bar} at {at:#x}", f"{seen.hex()} at {at + offset:#x}")


@point(
    "P78a",
    source="REGION_READ and REGION_WRITE: offset and count lie inside the region; their sum does not wrap",
    matters="a guest reads and writes the server's memory",
    profiles=(SPEC, QEMU, LIBVFIO_USER, ROBUST),
)
def outside(target: Target) -> None:
    """An access outside its region is refused."""
    peer = target.open()
    for region in target.facts.present():
        size = region.size
        for offset, count in ((size, 4), (size - 2, 4), (TOP, 4), (TOP - 3, 4), (1 << 63, 8)):
            what = f"an access of {count} bytes at {offset:#x} of {size:#x} in region {region.index}"
            peer.refused(wire.region_read(region.index, offset, count), what=what)
            peer.refused(wire.region_write(region.index, offset, bytes(count)), what=what)


@point(
    "P78b",
    source="REGION_READ and REGION_WRITE: the region is one that the device has",
    matters="the server looks up a handler that is not there",
    profiles=(SPEC, QEMU, LIBVFIO_USER),
)
def no_such_region(target: Target) -> None:
    """An access to a region that is not there is refused."""
    peer = target.open()
    missing = [region.index for region in target.facts.regions if not region.size]
    for index in (*missing, len(target.facts.regions), 0xFFFF_FFFF):
        peer.refused(wire.region_read(index, 0, 4), what=f"a read of region {index}")
        peer.refused(wire.region_write(index, 0, bytes(4)), what=f"a write to region {index}")


@point(
    "P78c",
    source="VERSION: max_data_xfer_size is the most data in one message",
    matters="the server allocates what a client asks for",
    profiles=(SPEC, LIBVFIO_USER, ROBUST),
)
def over_the_limit(target: Target) -> None:
    """A read of more than max_data_xfer_size is refused."""
    peer = target.open()
    for count in ((64 << 20) + 1, 0xFFFF_FFFF):
        peer.refused(wire.region_read(wire.CONFIG, 0, count), what=f"a read of {count} bytes")


@point(
    "P79",
    source="libvfio-user answers an access of no bytes with success",
    matters="clients written against it do not expect an error",
    profiles=(LIBVFIO_USER,),
)
def no_bytes(target: Target) -> None:
    """An access of no bytes succeeds."""
    peer = target.open()
    answer = peer.ask(wire.region_read(wire.CONFIG, 0, 0))
    if len(answer.payload) not in (0, 16):
        raise Wrong("no data", str(answer))
    facts.write(peer, wire.CONFIG, 0, b"")


@point(
    "P80",
    source="REGION_READ: the reply is offset, region, count and the data. REGION_WRITE: the same without"
    " data",
    matters="QEMU drops what does not fit its buffer, and with it the stream",
    profiles=(SPEC, QEMU, LIBVFIO_USER),
)
def reply_sizes(target: Target) -> None:
    """Read and write replies have their exact sizes."""
    peer = target.open()
    read = peer.ask(wire.region_read(wire.CONFIG, LINE, 1))
    if len(read.payload) != 17 or ECHO.unpack_from(read.payload) != (LINE, wire.CONFIG, 1):
        raise Wrong("16 bytes that repeat the read, and one of data", f"{read}: {read.payload.hex()}")
    write = peer.ask(wire.region_write(wire.CONFIG, LINE, read.payload[16:]))
    if len(write.payload) != 16 or ECHO.unpack(write.payload) != (LINE, wire.CONFIG, 1):
        raise Wrong("16 bytes that repeat the write", f"{write}: {write.payload.hex()}")


@point(
    "P81",
    source="REGION_WRITE: count bytes of data follow; the message's size says the same",
    matters="bytes that did not come are written: the server's own memory",
    profiles=(SPEC, LIBVFIO_USER, ROBUST),
)
def data_and_count(target: Target) -> None:
    """A write with less data than it says is refused."""
    peer, line = target.open(), target.facts.config[LINE : LINE + 1]
    peer.refused(wire.region_write(wire.CONFIG, LINE, line, 4), what="a write of 4 bytes with 1 of data")
    peer.refused(wire.region_write(wire.CONFIG, LINE, b"", 1), what="a write of 1 byte without data")
    in_step(peer, "writes with too little data")


unseen("P82", "A device that raises costs an error reply, not the server", "it takes a device that fails")


@point(
    "P83",
    source="No_reply says that no answer is wanted, not that order is lost: QEMU posts writes and then reads",
    matters="a driver reads a register before what it wrote has arrived",
    profiles=(SPEC, QEMU),
)
def posted_writes(target: Target) -> None:
    """Posted writes happen in order with what follows."""
    peer = target.open()
    borrow(target, LINE, 1)
    for value in range(100):
        peer.command(wire.region_write(wire.CONFIG, LINE, bytes([value])), flags=wire.NO_REPLY)
        if (seen := get(peer, LINE, 1)) != value:
            raise Wrong(f"{value} after a posted write of it", f"{seen}")


def multi(target: Target, peer: Peer, *, count: int | None = None, flags: int = 0) -> wire.Message | None:
    """REGION_WRITE_MULTI of three bytes to Interrupt Line; the last is 0x33."""
    borrow(target, LINE, 1)
    body = wire.write_multi(*((wire.CONFIG, LINE, bytes([v])) for v in (0x11, 0x22, 0x33)), count=count)
    number = peer.command(body, flags=flags)
    return None if flags else peer.answer(body, number)


@point(
    "P84a",
    source="REGION_WRITE_MULTI: wr_cnt writes, carried out in order, the reply is their number. QEMU sends it"
    " where it was agreed, QEMU 10.1 with x-send-queued=on also where it was not",
    matters="under load QEMU's posted writes are lost: it batches them with No_reply and hears no error",
    profiles=(QEMU,),
)
def write_multi(target: Target) -> None:
    """REGION_WRITE_MULTI is accepted and writes all in order."""
    peer = target.open()
    answer = multi(target, peer)
    assert answer is not None
    if answer.is_error:
        raise Wrong("REGION_WRITE_MULTI to be carried out", f"REGION_WRITE_MULTI refused: {answer}")
    if answer.payload != struct.pack("=Q", 3) or get(peer, LINE, 1) != 0x33:
        raise Wrong("a reply of 3 and the last value in its register", f"{answer}: {answer.payload.hex()}")


@point(
    "P84b",
    source="REGION_WRITE_MULTI: each write has 24 bytes and at most 8 of data, and lies in its region",
    matters="a count beyond the data is written from the server's own memory",
    profiles=(SPEC, ROBUST),
)
def nonsense_multi(target: Target) -> None:
    """REGION_WRITE_MULTI whose numbers disagree is refused."""
    peer = target.open()
    for count in (4, 1 << 32, TOP):
        answer = multi(target, peer, count=count)
        if answer is not None and not answer.is_error:
            raise Wrong(f"a wr_cnt of {count} with 3 writes to be refused", str(answer))
    long = struct.pack("=QQII8s", 1, LINE, wire.CONFIG, 9, bytes(8))
    peer.refused(wire.Body(wire.WRITE_MULTI, long), what="a write of 9 bytes in REGION_WRITE_MULTI")
    peer.refused(wire.write_multi((100, 0, b"1")), what="REGION_WRITE_MULTI to region 100")
    in_step(peer, "REGION_WRITE_MULTI that makes no sense")


@point(
    "P84c",
    source="REGION_WRITE_MULTI from QEMU always has No_reply",
    matters="an answer that nobody waits for",
    profiles=(QEMU,),
)
def posted_multi(target: Target) -> None:
    """REGION_WRITE_MULTI with No_reply is carried out and not answered."""
    first = target.open()
    answer = multi(target, first)
    if answer is None or answer.is_error:
        raise NotApplicable("the server refuses REGION_WRITE_MULTI, see P84a")
    first.ask(wire.region_write(wire.CONFIG, LINE, b"\0"))
    multi(target, first, flags=wire.NO_REPLY)
    if (seen := get(first, LINE, 1)) != 0x33:
        raise Wrong("0x33, the last value of a posted REGION_WRITE_MULTI", f"{seen:#x}")


@point(
    "P85",
    source="QEMU passes the guest's reads of the PBA on (pci.c, vfio_user_pba_read)",
    matters="a driver that polls pending bits reads all ones",
    profiles=(QEMU,),
)
def pending_bits(target: Target) -> None:
    """The PBA can be read."""
    at = target.facts.capability(facts.MSIX_CAP)
    register = facts.config32(target.facts.config, at + 8)
    peer, vectors = target.open(), (facts.config16(target.facts.config, at + 2) & 0x7FF) + 1
    for offset in range(0, (vectors + 63) // 64 * 8, 8):
        facts.read(peer, register & 7, (register & ~7) + offset, 8)


unseen("P86", "A handler slower than the client's patience is reported", "the report is in the server's log")


@point(
    "P87",
    source="VERSION: max_data_xfer_size bytes in one message are still fine",
    matters="a ROM or a large buffer cannot be read in one access",
    profiles=(SPEC, QEMU),
)
def whole_limit(target: Target) -> None:
    """An access of the negotiated size works."""
    harmless = [*target.facts.present()]
    for region in harmless:
        plain = region.index == wire.ROM or (region.flags & wire.MAPPABLE and region.areas[0][0] == 0)
        if plain and region.areas[0][1] >= wire.DEFAULT_TRANSFER:
            facts.read(target.open(), region.index, 0, wire.DEFAULT_TRANSFER)
            return
    raise NotApplicable("no ROM and no mapped area has a mebibyte to read without side effects")


@point(
    "P88",
    source="QEMU reads the whole ROM in one REGION_READ (vfio_pci_load_rom)",
    matters="the firmware finds no boot ROM",
    profiles=(QEMU,),
)
def rom_in_one(target: Target) -> None:
    """The ROM is read in one access."""
    region = target.facts.region(wire.ROM)
    facts.read(target.open(), wire.ROM, 0, region.size)
