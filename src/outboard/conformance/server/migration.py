"""Points 111 to 116: DEVICE_FEATURE, migration and the log of written pages.

vfio-user specification, "VFIO_USER_DEVICE_FEATURE", "VFIO_USER_MIG_DATA_READ", "..._WRITE"; the states are
VFIO's (version 2 of its migration).
"""

import struct

from outboard.conformance import facts, wire
from outboard.conformance.peer import Peer
from outboard.conformance.points import LIBVFIO_USER, ROBUST, SPEC, NotApplicable, Wrong
from outboard.conformance.server.framing import in_step
from outboard.conformance.server.life import life
from outboard.conformance.server.memory import BASE, file, map_one
from outboard.conformance.target import Target
from outboard.conformance.wire import FEATURE_GET, FEATURE_PROBE, FEATURE_SET, PAGE, feature

point, unseen = life.point, life.unseen

ERROR, STOP, RUNNING, STOP_COPY, RESUMING, RUNNING_P2P, PRE_COPY, PRE_COPY_P2P = range(8)
NAMES = "ERROR STOP RUNNING STOP_COPY RESUMING RUNNING_P2P PRE_COPY PRE_COPY_P2P".split()
STOP_COPY_FLAG, P2P_FLAG, PRE_COPY_FLAG = 1, 2, 4
NOBODY_KNOWS = 0x7FFF
MOST_STATE = 64 << 20
CHUNK = 65536
RANGE, LOG_PAGES = struct.Struct("=QQ"), 16


def probe(peer: Peer, number: int, kind: int = 0) -> bool:
    """Whether a feature is supported, for GET or SET where one is asked for."""
    body = feature(FEATURE_PROBE | kind | number)
    return not peer.answer(body, peer.command(body)).is_error


def migratable(peer: Peer) -> int:
    """The flags of the feature MIGRATION. Raises NotApplicable where there is none."""
    if not probe(peer, wire.MIGRATION, FEATURE_GET):
        raise NotApplicable("the server does not offer migration")
    body = feature(FEATURE_GET | wire.MIGRATION, argsz=16)
    answer = peer.ask(body)
    if len(answer.payload) != 16:
        raise Wrong("16 bytes: argsz, flags, and 8 of migration flags", str(answer))
    return int(struct.unpack_from("=Q", answer.payload, 8)[0])


def state(peer: Peer) -> int:
    """The migration state."""
    answer = peer.ask(feature(FEATURE_GET | wire.MIG_STATE, argsz=16))
    if len(answer.payload) != 16:
        raise Wrong("16 bytes of migration state", str(answer))
    return int(struct.unpack_from("=I", answer.payload, 8)[0])


def set_state(peer: Peer, wanted: int) -> bool:
    """Ask for a migration state; whether it was taken."""
    body = feature(FEATURE_SET | wire.MIG_STATE, struct.pack("=II", wanted, 0))
    return not peer.answer(body, peer.command(body)).is_error


def go(peer: Peer, *states: int) -> None:
    """Through these states, each of which has to be taken."""
    for wanted in states:
        if not set_state(peer, wanted):
            raise Wrong(f"state {NAMES[wanted]} to be taken", "an error")
        if (now := state(peer)) != wanted:
            raise Wrong(f"state {NAMES[wanted]}", f"state {now}")


def back_to_running(target: Target) -> None:
    """Have the device run again when the check has ended."""

    def run(peer: Peer) -> None:
        if state(peer) == ERROR:
            peer.ask(wire.Body(wire.RESET))
        set_state(peer, RUNNING)

    target.restore_later(run)


def supports_features(peer: Peer) -> None:
    """Raises NotApplicable for a server without DEVICE_FEATURE."""
    known = (wire.MIGRATION, wire.MIG_STATE, wire.LOG_START, wire.LOG_STOP, wire.LOG_REPORT)
    if not any(probe(peer, number) for number in known):
        raise NotApplicable("the server does not offer DEVICE_FEATURE: no probe of a known one succeeds")


@point(
    "P111a",
    source="DEVICE_FEATURE: a feature that is not supported is answered with an error, probed or not",
    matters="a client believes in what is not there",
    profiles=(SPEC, LIBVFIO_USER),
)
def unknown_features(target: Target) -> None:
    """Unknown features are refused, probed or not."""
    peer = target.open()
    for flags in (FEATURE_PROBE, FEATURE_GET, FEATURE_SET, FEATURE_PROBE | FEATURE_GET):
        peer.refused(feature(flags | NOBODY_KNOWS, bytes(8)), what="DEVICE_FEATURE 0x7fff")
    in_step(peer, "unknown features")


@point(
    "P111b",
    source="DEVICE_FEATURE: argsz has room for the reply; GET and SET are not asked for at once",
    matters="a client's mistake stays unseen",
    profiles=(SPEC, LIBVFIO_USER),
)
def senseless_features(target: Target) -> None:
    """A feature with a short argsz, or with GET and SET at once, is refused."""
    peer = target.open()
    supports_features(peer)
    number = wire.MIGRATION if probe(peer, wire.MIGRATION) else wire.LOG_REPORT
    peer.refused(feature(FEATURE_GET | number, argsz=7), what="DEVICE_FEATURE with argsz 7")
    both = feature(FEATURE_GET | FEATURE_SET | number, bytes(8))
    peer.refused(both, what="DEVICE_FEATURE with GET and SET")


@point(
    "P112a",
    source="VFIO: a device that migrates knows STOP_COPY, and is RUNNING at first",
    matters="a VMM refuses to migrate",
    profiles=(SPEC, LIBVFIO_USER),
)
def migration_flags(target: Target) -> None:
    """A device that migrates says STOP_COPY, and runs."""
    peer = target.open()
    flags = migratable(peer)
    if not flags & STOP_COPY_FLAG or flags & ~7:
        raise Wrong("STOP_COPY (1) among known flags (7)", f"{flags:#x}")
    if (now := state(peer)) != RUNNING:
        raise Wrong("RUNNING", NAMES[now] if now < len(NAMES) else str(now))


def reachable(flags: int) -> list[int]:
    """The states that a client may ask a device with these flags for."""
    states = [STOP, RUNNING, STOP_COPY, RESUMING]
    states += [RUNNING_P2P] if flags & P2P_FLAG else []
    states += [PRE_COPY] if flags & PRE_COPY_FLAG else []
    return states + ([PRE_COPY_P2P] if flags & P2P_FLAG and flags & PRE_COPY_FLAG else [])


@point(
    "P112b",
    source="VFIO: any state may be asked for from any other and is reached by the shortest way; only from"
    " STOP_COPY to a PRE_COPY state there is none",
    matters="a migration that is given up cannot go back to RUNNING",
    profiles=(SPEC, LIBVFIO_USER),
)
def pairs_of_states(target: Target) -> None:
    """Every pair of migration states is reached, or refused and the state kept."""
    peer = target.open()
    states = reachable(migratable(peer))
    back_to_running(target)
    for start in states:
        for end in states:
            go(peer, RUNNING, *([start] if start != RUNNING else []))
            no_way = start == STOP_COPY and end in (PRE_COPY, PRE_COPY_P2P)
            taken = set_state(peer, end)
            now, wanted = state(peer), (start if no_way else end)
            if start == RESUMING and end != RESUMING and not taken:
                continue  # nothing was loaded: a device may refuse to run on that
            if taken == no_way or now != wanted:
                raise Wrong(
                    f"{NAMES[start]} to {NAMES[end]} to be {'refused' if no_way else 'taken'}",
                    f"{'success' if taken else 'an error'}, and state {NAMES[now]}",
                )


@point(
    "P112c",
    source="VFIO: ERROR is entered by the device alone; other numbers are no states",
    matters="a client's slip costs the device",
    profiles=(SPEC, LIBVFIO_USER, ROBUST),
)
def no_states(target: Target) -> None:
    """ERROR and numbers that are no state are refused."""
    peer = target.open()
    migratable(peer)
    back_to_running(target)
    for wanted in (ERROR, 8, 0xFFFF_FFFF):
        if set_state(peer, wanted):
            raise Wrong(f"state {wanted} to be refused", "success")
    if (now := state(peer)) != RUNNING:
        raise Wrong("RUNNING as before", NAMES[now])


def saved(peer: Peer) -> bytes:
    """All of the device's data, read in STOP_COPY."""
    data = b""
    while len(data) < MOST_STATE:
        answer = peer.ask(wire.mig_data_read(CHUNK))
        _, size = struct.unpack_from("=II", answer.payload.ljust(8, b"\0"))
        if size > CHUNK or len(answer.payload) < 8 + size:
            raise Wrong(f"8 bytes and up to {CHUNK} of data, as many as said", f"{answer}, size {size}")
        data += answer.payload[8 : 8 + size]
        if not size:
            return data
    raise Wrong("an end of the device's data", f"no end after {MOST_STATE} bytes")


@point(
    "P113a",
    source="MIG_DATA_READ: any size up to max_data_xfer_size; less comes at the end, nothing after it",
    matters="a migration that does not end, or ends short",
    profiles=(SPEC, LIBVFIO_USER),
)
def data_sizes(target: Target) -> None:
    """Migration data keeps its sizes, and comes to an end."""
    peer = target.open()
    migratable(peer)
    back_to_running(target)
    go(peer, STOP_COPY)
    if not saved(peer):
        raise Wrong("some data", "none")
    too_much = wire.Body(wire.MIG_DATA_READ, struct.pack("=II", 0xFFFF_FFFF, 0xFFFF_FFF0))
    peer.refused(too_much, what="MIG_DATA_READ of 4 GiB")


@point(
    "P113c",
    source="MIG_DATA_READ: the reply has as much data as its size says. libvfio-user sends as much as was"
    " asked for, zeros behind the data",
    matters="a client that goes by the message's length loads zeros into the device",
)
def data_as_said(target: Target) -> None:
    """A reply with migration data is as long as the data in it."""
    peer = target.open()
    migratable(peer)
    back_to_running(target)
    go(peer, STOP_COPY)
    answer = peer.ask(wire.mig_data_read(CHUNK))
    size = struct.unpack_from("=II", answer.payload.ljust(8, b"\0"))[1]
    if len(answer.payload) != 8 + size:
        raise Wrong(f"8 bytes and the {size} of data that it says", str(answer))


@point(
    "P113b",
    source="MIG_DATA_READ in PRE_COPY and STOP_COPY, MIG_DATA_WRITE in RESUMING",
    matters="a running device is overwritten, or saved in the middle of something",
    profiles=(SPEC, LIBVFIO_USER),
)
def data_states(target: Target) -> None:
    """Migration data is refused in a state that has none."""
    peer = target.open()
    migratable(peer)
    back_to_running(target)
    peer.refused(wire.mig_data_read(16), what="MIG_DATA_READ while RUNNING")
    peer.refused(wire.mig_data_write(b"1234"), what="MIG_DATA_WRITE while RUNNING")
    go(peer, RESUMING)
    peer.refused(wire.mig_data_read(16), what="MIG_DATA_READ while RESUMING")


def load(peer: Peer, data: bytes) -> None:
    """Write a device's data in RESUMING, and have it run."""
    go(peer, RESUMING)
    for at in range(0, len(data), CHUNK):
        peer.ask(wire.mig_data_write(data[at : at + CHUNK]))
    go(peer, RUNNING)


@point(
    "P114a",
    source="VFIO: what was read in STOP_COPY is written in RESUMING, and the device is the same",
    matters="the guest finds another device after it moved",
    profiles=(SPEC, LIBVFIO_USER),
)
def load_what_was_saved(target: Target) -> None:
    """A device that is loaded with its own data is as it was."""
    peer = target.open()
    migratable(peer)
    back_to_running(target)
    before = facts.read(peer, wire.CONFIG, 0, 256)
    go(peer, STOP_COPY)
    data = saved(peer)
    go(peer, STOP)
    load(peer, data)
    if (after := facts.read(peer, wire.CONFIG, 0, 256)) != before:
        raise Wrong(f"configuration space {before.hex()}", after.hex())


@point(
    "P114b",
    source="VFIO: the data is for another device of the same kind: a server that was started as this one was",
    matters="the guest stops here, and goes on nowhere",
    profiles=(SPEC, LIBVFIO_USER),
)
def load_elsewhere(target: Target) -> None:
    """A new process that is loaded with the data runs on from there."""
    peer = target.open()
    migratable(peer)
    if target.process is None:
        raise NotApplicable("only a server that is started by --command can be started anew")
    registers = four_bytes(target, peer)
    back_to_running(target)
    go(peer, STOP_COPY)
    data = saved(peer)
    peer.close()
    target.stop()
    peer = target.open()
    load(peer, data)
    for bar, at, value in registers:
        if (seen := facts.read(peer, bar, at, 4)) != value:
            raise Wrong(f"{value.hex()} in BAR {bar} at {at:#x} of the new process", seen.hex())


def four_bytes(target: Target, peer: Peer) -> list[tuple[int, int, bytes]]:
    """What is written where the caller allows it, and has to be found elsewhere: (BAR, offset, bytes)."""
    if target.writable is None:
        return []
    bar, at = target.writable
    old, new = facts.read(peer, bar, at, 4), b"\x44\x33\x22\x11"
    target.restore_later(lambda peer: facts.write(peer, bar, at, old))
    facts.write(peer, bar, at, new)
    return [(bar, at, new)]


unseen("P115", "A failed transition leaves a defined state", "it takes a device whose transition fails")


def logging(peer: Peer) -> None:
    """Raises NotApplicable for a server without a log of written pages."""
    if not probe(peer, wire.LOG_START, FEATURE_SET):
        raise NotApplicable("the server does not offer a log of the pages the device writes")


def start_log(peer: Peer, address: int, size: int) -> None:
    """DMA_LOGGING_START of one range."""
    data = struct.pack("=QII", PAGE, 1, 0) + RANGE.pack(address, size)
    peer.ask(feature(FEATURE_SET | wire.LOG_START, data))


def report(address: int, size: int, page: int = PAGE) -> wire.Body:
    """DMA_LOGGING_REPORT, with room for its bitmap."""
    room = 8 + 24 + (size // page + 63) // 64 * 8
    data = RANGE.pack(address, size) + struct.pack("=Q", page)
    return feature(FEATURE_GET | wire.LOG_REPORT, data, argsz=room)


@point(
    "P116a",
    source="DMA_LOGGING_REPORT: any range inside what is logged, a bit for each page. libvfio-user needs the"
    " dirty report's exact region: any other is refused (its issue 824)",
    matters="QEMU asks for the ranges of its own slots, which are not the device's maps: migration fails",
    profiles=(SPEC,),
)
def any_range(target: Target) -> None:
    """The log is told for any part of the range."""
    peer = target.open()
    logging(peer)
    with file(LOG_PAGES * PAGE) as fd:
        map_one(peer, BASE, LOG_PAGES * PAGE, fd)
    start_log(peer, BASE, LOG_PAGES * PAGE)
    for first, count in ((0, LOG_PAGES), (0, 4), (4, 8)):
        body = report(BASE + first * PAGE, count * PAGE)
        answer = peer.answer(body, peer.command(body))
        if answer.is_error:
            raise Wrong(
                f"a report of pages {first} to {first + count} of {LOG_PAGES}",
                f"{answer}: the dirty report wants the exact region",
            )
        if len(answer.payload) != 8 + 24 + 8 or any(answer.payload[32:]):
            raise Wrong("one word of bits, none set: nothing was written", answer.payload.hex())
    peer.ask(feature(FEATURE_SET | wire.LOG_STOP))


@point(
    "P116b",
    source="DMA_LOGGING: a page size is a power of two; there is nothing to report before the start",
    matters="a bitmap of no size, or one that fills the memory",
    profiles=(SPEC, LIBVFIO_USER, ROBUST),
)
def senseless_log(target: Target) -> None:
    """A log of a senseless page size, or before its start, is refused."""
    peer = target.open()
    logging(peer)
    with file(LOG_PAGES * PAGE) as fd:
        map_one(peer, BASE, LOG_PAGES * PAGE, fd)
    peer.refused(report(BASE, LOG_PAGES * PAGE), what="a report before the start")
    start_log(peer, BASE, LOG_PAGES * PAGE)
    for page in (0, 3, 5000):
        data = RANGE.pack(BASE, LOG_PAGES * PAGE) + struct.pack("=Q", page)
        body = feature(FEATURE_GET | wire.LOG_REPORT, data, argsz=4096)
        peer.refused(body, what=f"a report of pages of {page} bytes")
    in_step(peer, "senseless logs")
