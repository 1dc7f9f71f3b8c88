"""Points 49 to 66: SET_IRQS. The loopback (NONE or BOOL with TRIGGER) fires vectors from the outside.

vfio-user specification, "VFIO_USER_DEVICE_SET_IRQS".
"""

import os
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from outboard.conformance import wire
from outboard.conformance.peer import Peer, ready
from outboard.conformance.points import LIBVFIO_USER, QEMU, ROBUST, SPEC, Group, NotApplicable, Wrong
from outboard.conformance.server.framing import in_step
from outboard.conformance.target import Target
from outboard.conformance.wire import DATA_BOOL, DATA_EVENTFD, DATA_NONE, MASK, TRIGGER, UNMASK, set_irqs
from outboard.conformance.witness import Witness

interrupts = Group[Target]("Server: SET_IRQS")
point, unseen = interrupts.point, interrupts.unseen

ASSIGN, FIRE, DISABLE = DATA_EVENTFD | TRIGGER, DATA_NONE | TRIGGER, DATA_NONE | TRIGGER


@contextmanager
def eventfds(count: int) -> Iterator[list[int]]:
    """New eventfds, closed at the end."""
    made = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(count)]
    try:
        yield made
    finally:
        for fd in made:
            os.close(fd)


def fired(fds: Sequence[int]) -> list[int]:
    """How often each eventfd was signalled since it was last asked. The fire has been answered before."""
    return [os.eventfd_read(fd) if ready(fd) else 0 for fd in fds]


def chunk(peer: Peer, index: int, start: int, fds: Sequence[int]) -> None:
    """Assign eventfds in runs of eight: less than any server's limit that QEMU met so far."""
    for at in range(0, len(fds), 8):
        part = fds[at : at + 8]
        peer.ask(set_irqs(index, ASSIGN, start + at, len(part)), part)


def expect(fds: Sequence[int], wanted: Sequence[int], after: str) -> None:
    """Each eventfd was signalled exactly as often as wanted."""
    if (counts := fired(fds)) != list(wanted):
        raise Wrong(f"signals {list(wanted)} after {after}", f"{counts}")


@point(
    "P49",
    source="SET_IRQS: argsz is 20 and the data, and so long is the payload",
    matters="a client's mistake stays unseen",
    profiles=(SPEC, LIBVFIO_USER),
)
def short_set_irqs(target: Target) -> None:
    """A short SET_IRQS is refused."""
    index, _ = target.facts.busiest()
    peer = target.open()
    for argsz in (0, 19):
        peer.refused(set_irqs(index, DISABLE, 0, 0, argsz=argsz), what=f"SET_IRQS with argsz {argsz}")
    peer.refused(wire.Body(wire.SET_IRQS, set_irqs(index, DISABLE, 0, 0).payload[:19]))


@point(
    "P50",
    source="SET_IRQS: exactly one action (MASK, UNMASK, TRIGGER) and one kind of data (NONE, BOOL, EVENTFD)",
    matters="what a client meant is anybody's guess",
    profiles=(SPEC, LIBVFIO_USER),
)
def one_action(target: Target) -> None:
    """Exactly one action and one kind of data."""
    index, _ = target.facts.busiest()
    peer = target.open()
    for flags in range(64):
        if (flags & 7).bit_count() != 1 or (flags >> 3).bit_count() != 1:
            peer.refused(set_irqs(index, flags), what=f"SET_IRQS with flags {flags:#x}")


@point(
    "P51",
    source="SET_IRQS: start and count lie within the vectors of the index",
    matters="the sum of both wraps: a write beyond the server's table",
    profiles=(SPEC, LIBVFIO_USER, ROBUST),
)
def range_of_vectors(target: Target) -> None:
    """A range beyond the vectors, or that wraps, is refused."""
    index, count = target.facts.busiest()
    peer, top = target.open(), 0xFFFF_FFFF
    for start, length in ((count, 1), (0, count + 1), (top, 1), (top, top), (1, top), (count - 1, 2)):
        what = f"vectors from {start}, {length} of them, of {count}"
        peer.refused(set_irqs(index, FIRE, start, length), what=what)
    peer.refused(set_irqs(100, FIRE), what="SET_IRQS of index 100")


@point(
    "P52",
    source="VFIO: a count of 0 with NONE and TRIGGER from 0 disables a whole index, and means nothing else",
    matters="a slip of a client switches interrupts off",
    profiles=(LIBVFIO_USER,),
)
def count_of_nothing(target: Target) -> None:
    """A count of nothing only disables a whole index."""
    index, count = target.facts.busiest()
    peer = target.open()
    for flags in (DATA_NONE | MASK, DATA_NONE | UNMASK, DATA_BOOL | TRIGGER, DATA_EVENTFD | TRIGGER):
        peer.refused(set_irqs(index, flags, 0, 0), what=f"SET_IRQS with count 0 and flags {flags:#x}")
    if count > 1:
        peer.refused(set_irqs(index, DISABLE, 1, 0), what="SET_IRQS with count 0 from vector 1")
    peer.ask(set_irqs(index, DISABLE, 0, 0))


@point(
    "P53",
    source="ERR and REQ are signals of one vector each; there is nothing to mask",
    matters="a client's mistake stays unseen",
    profiles=(LIBVFIO_USER,),
)
def error_and_request(target: Target) -> None:
    """ERR and REQ know only TRIGGER of one."""
    peer, judged = target.open(), False
    for index in (wire.ERR, wire.REQ):
        if index < len(target.facts.vectors) and target.facts.vectors[index]:
            judged = True
            for flags, count in ((DATA_NONE | MASK, 1), (DATA_NONE | UNMASK, 1), (FIRE, 2)):
                peer.refused(
                    set_irqs(index, flags, 0, count), what=f"{wire.INDEXES[index]}, flags {flags:#x}"
                )
    if not judged:
        raise NotApplicable("the device has neither ERR nor REQ")


@point(
    "P54a",
    source="SET_IRQS: descriptors come with EVENTFD only",
    matters="they leak, or take the place of others",
    profiles=(SPEC, LIBVFIO_USER),
)
def descriptors_without_eventfd(target: Target) -> None:
    """Descriptors with NONE or BOOL are refused and closed."""
    index, _ = target.facts.busiest()
    peer = target.open()
    for flags, data in ((FIRE, b""), (DATA_BOOL | TRIGGER, b"\0")):
        with Witness() as witness:
            what = f"SET_IRQS with flags {flags:#x} and a descriptor"
            peer.refused(set_irqs(index, flags, 0, 1, data), (witness.fd,), what=what)
            witness.expect_closed(what, peer.timeout)


@point(
    "P54b",
    source="SET_IRQS: with EVENTFD there are as many descriptors as vectors, or none",
    matters="vectors get one another's descriptors",
    profiles=(SPEC, LIBVFIO_USER),
)
def descriptors_in_number(target: Target) -> None:
    """Descriptors in another number than the vectors are refused and closed."""
    index, _ = target.facts.busiest(at_least=2)
    peer = target.open()
    for count, number in ((1, 2), (2, 1)):
        with Witness() as witness:
            what = f"{number} descriptors for {count} vectors"
            peer.refused(set_irqs(index, ASSIGN, 0, count), (witness.fd,) * number, what=what)
            witness.expect_closed(what, peer.timeout)


@point(
    "P55",
    source="SET_IRQS: EVENTFD with TRIGGER gives each vector its eventfd; a signal adds 1 to it",
    matters="the guest's driver waits for one queue and is told of another",
    profiles=(SPEC, QEMU, LIBVFIO_USER),
)
def own_eventfd(target: Target) -> None:
    """A vector signals its own eventfd and no other."""
    index, count = target.facts.busiest()
    count, peer = min(count, 8), target.open()
    with eventfds(count) as fds:
        chunk(peer, index, 0, fds)
        for vector in range(count):
            peer.ask(set_irqs(index, FIRE, vector))
            expect(fds, [int(number == vector) for number in range(count)], f"vector {vector} was fired")


def taken_away(target: Target, vector: int) -> None:
    """One vector loses its eventfd and the others keep theirs."""
    index, count = target.facts.busiest(at_least=vector + 1)
    count, peer = min(count, 8), target.open()
    with eventfds(count) as fds:
        chunk(peer, index, 0, fds)
        peer.ask(set_irqs(index, ASSIGN, vector, 1))
        body = set_irqs(index, FIRE, 0, count)
        peer.answer(body, peer.command(body))
        for other in range(count):
            single = set_irqs(index, FIRE, other)
            peer.answer(single, peer.command(single))
        if fired([fds[vector]]) != [0]:
            raise Wrong(
                f"vector {vector} to be silent after it lost its eventfd (EVENTFD, TRIGGER, start {vector},"
                " count 1, no descriptor)",
                f"it signals: the de-assign of start {vector} does nothing",
            )
        if count > 1 and not all(fired([fd for number, fd in enumerate(fds) if number != vector])):
            raise Wrong("the other vectors to signal as before", "that some are silent")


@point(
    "P56a",
    source="VFIO: EVENTFD and TRIGGER without a descriptor takes a vector's eventfd away",
    matters="QEMU cannot mask a vector",
    profiles=(SPEC, QEMU, LIBVFIO_USER),
)
def first_taken_away(target: Target) -> None:
    """The first vector can be taken away."""
    taken_away(target, 0)


@point(
    "P56b",
    source="VFIO: EVENTFD and TRIGGER without descriptors is for the range that start and count name."
    " libvfio-user loops from start to count (irqs_disable): a de-assign of start > 0 does nothing",
    matters="a guest that masks a vector goes on hearing it; QEMU writes to an eventfd it has given up",
    profiles=(SPEC, QEMU),
)
def later_taken_away(target: Target) -> None:
    """A vector in the middle can be taken away."""
    taken_away(target, min(3, target.facts.busiest(at_least=2)[1] - 1))


@point(
    "P57",
    source="SET_IRQS: the new eventfd takes the place of the old",
    matters="QEMU swaps a vector's descriptor whenever the guest masks it; the old one would wake nobody",
    profiles=(SPEC, QEMU, LIBVFIO_USER),
)
def replaced(target: Target) -> None:
    """A new eventfd replaces the old."""
    index, _ = target.facts.busiest()
    peer = target.open()
    with eventfds(2) as fds:
        for fd in fds:
            peer.ask(set_irqs(index, ASSIGN), (fd,))
        peer.ask(set_irqs(index, FIRE))
        expect(fds, [0, 1], "the eventfd was replaced")


@point(
    "P58",
    source="VFIO: NONE and TRIGGER with count 0 disables the index",
    matters="interrupts reach a driver that has been removed",
    profiles=(SPEC, QEMU, LIBVFIO_USER),
)
def disabled(target: Target) -> None:
    """A disabled index triggers nothing and breaks nothing."""
    index, count = target.facts.busiest()
    count, peer = min(count, 8), target.open()
    with eventfds(count) as fds:
        chunk(peer, index, 0, fds)
        peer.ask(set_irqs(index, DISABLE, 0, 0))
        for vector in range(count):
            body = set_irqs(index, FIRE, vector)
            peer.answer(body, peer.command(body))  # whether it is an error is the server's choice
        expect(fds, [0] * count, "the index was disabled")
        chunk(peer, index, 0, fds)
        peer.ask(set_irqs(index, FIRE, 0))
        expect(fds, [1] + [0] * (count - 1), "the index was enabled again")


@point(
    "P59",
    source="QEMU enables MSI-X with vector 0 and no descriptor, then assigns vectors one by one, or in"
    " runs as"
    " long as the server's max_msg_fds (device.c, vfio_user_device_io_set_irqs)",
    matters="the guest's driver gets no interrupts on some queues",
    profiles=(QEMU,),
)
def in_runs(target: Target) -> None:
    """Vectors may be assigned in runs, with and without descriptors."""
    index, count = target.facts.busiest(at_least=3)
    count, peer = min(count, 24), target.open()
    with eventfds(count) as fds:
        peer.ask(set_irqs(index, ASSIGN, 0, 1))
        chunk(peer, index, 1, fds[1:])
        peer.ask(set_irqs(index, ASSIGN, 0, 1), fds[:1])
        peer.ask(set_irqs(index, FIRE, 0, count))
        expect(fds, [1] * count, "all were fired")


@point(
    "P60a",
    source="SET_IRQS: BOOL has a byte for each vector; those that are 1 are fired",
    matters="interrupts that the device did not raise",
    profiles=(SPEC, LIBVFIO_USER),
)
def chosen_vectors(target: Target) -> None:
    """BOOL fires the chosen vectors."""
    index, count = target.facts.busiest()
    count, peer = min(count, 8), target.open()
    with eventfds(count) as fds:
        chunk(peer, index, 0, fds)
        chosen = bytes(number % 2 for number in range(count))
        peer.ask(set_irqs(index, DATA_BOOL | TRIGGER, 0, count, chosen))
        expect(fds, list(chosen), f"BOOL {list(chosen)}")


@point(
    "P60b",
    source="SET_IRQS: with BOOL the data has count bytes",
    matters="bytes of the next message decide",
    profiles=(SPEC, LIBVFIO_USER),
)
def bytes_in_number(target: Target) -> None:
    """BOOL with fewer bytes than vectors is refused."""
    index, count = target.facts.busiest()
    peer = target.open()
    peer.refused(set_irqs(index, DATA_BOOL | TRIGGER, 0, 1), what="BOOL without its byte")
    if count > 1:
        peer.refused(set_irqs(index, DATA_BOOL | TRIGGER, 0, 2, b"\0"), what="BOOL of 2 vectors with 1 byte")
    in_step(peer, "BOOL with too few bytes")


@point(
    "P61",
    source="QEMU unmasks INTx after every interrupt, announced as maskable or not (vfio_intx_enable,"
    " vfio_eoi)",
    matters="one interrupt, then silence",
    profiles=(QEMU,),
)
def intx_masks(target: Target) -> None:
    """INTx can always be masked and unmasked, also when nobody listens."""
    target.facts.irqs(wire.INTX)
    peer = target.open()
    with eventfds(1) as fds:
        for assigned in (False, True):
            if assigned:
                peer.ask(set_irqs(wire.INTX, ASSIGN), fds)
            for action in (MASK, UNMASK, UNMASK):
                peer.ask(set_irqs(wire.INTX, DATA_NONE | action))


@point(
    "P62",
    source="SET_IRQS: with EVENTFD and UNMASK the client hands over an eventfd by which it will unmask (KVM's"
    " resample descriptor: vfio_intx_enable_kvm). libvfio-user takes EVENTFD|UNMASK and the fd is silently"
    " dropped (irqs_set_state)",
    matters="with KVM the guest hears the first INTx interrupt and no other: nobody listens to the"
    " descriptor",
    profiles=(SPEC, QEMU),
)
def resample(target: Target) -> None:
    """The resample descriptor of INTx is listened to."""
    target.facts.irqs(wire.INTX)
    peer = target.open()
    with eventfds(2) as (line, unmask):
        peer.ask(set_irqs(wire.INTX, ASSIGN), (line,))
        body = set_irqs(wire.INTX, DATA_EVENTFD | UNMASK)
        if peer.answer(body, peer.command(body, (unmask,))).is_error:
            return  # QEMU falls back to unmasking by message
        os.eventfd_write(unmask, 1)
        end = time.monotonic() + peer.timeout
        while time.monotonic() < end:
            if not ready(unmask):
                return
            time.sleep(0.001)
    raise Wrong(
        "the server to take what the client writes to the unmask descriptor, or to refuse it",
        "that EVENTFD|UNMASK succeeds and the fd is silently dropped: what is written stays in it",
    )


unseen(
    "P63",
    "INTx masks itself with every signal",
    "only the device raises its own line; the loopback of SET_IRQS does not have to obey the mask",
)


@point(
    "P64",
    source="VFIO: the interrupt kinds are separate, each with its own descriptors. libvfio-user keeps INTx,"
    " MSI and MSI-X in one array",
    matters="QEMU assigns INTx before MSI-X: the guest's first queue rings the wrong bell",
    profiles=(SPEC, QEMU),
)
def kinds_are_separate(target: Target) -> None:
    """INTx, MSI and MSI-X keep separate descriptors."""
    kinds = [index for index in (wire.INTX, wire.MSI, wire.MSIX) if target.facts.vectors[index]]
    if len(kinds) < 2:
        raise NotApplicable("the device has one kind of interrupt only")
    peer = target.open()
    with eventfds(len(kinds)) as fds:
        for index, fd in zip(kinds, fds, strict=True):
            peer.ask(set_irqs(index, ASSIGN), (fd,))
        for number, index in enumerate(kinds):
            peer.ask(set_irqs(index, FIRE))
            wanted = [int(other == number) for other in range(len(kinds))]
            expect(fds, wanted, f"{wire.INDEXES[index]} was fired")


@point(
    "P65",
    source="An eventfd is the client's: its counter may be full, its reader gone, or it may be a pipe",
    matters="the device stops in a write that never ends",
    profiles=(ROBUST,),
)
def foreign_descriptors(target: Target) -> None:
    """A full or foreign descriptor neither blocks nor crashes."""
    index, _ = target.facts.busiest()
    peer = target.open()
    full = os.eventfd(0)  # in its blocking form, as clients that wait in a read have it
    try:
        os.write(full, struct.pack("=Q", 2**64 - 2))
        peer.ask(set_irqs(index, ASSIGN), (full,))
        for _ in range(2):
            body = set_irqs(index, FIRE)
            peer.answer(body, peer.command(body))
    finally:
        os.eventfd_read(full)  # frees a server that is caught in its write
        os.close(full)
    with Witness() as witness:  # the end of a pipe, whose reader goes with it
        body = set_irqs(index, ASSIGN)
        if not peer.answer(body, peer.command(body, (witness.fd,))).is_error:
            fire = set_irqs(index, FIRE)
            peer.answer(fire, peer.command(fire))
    in_step(peer, "descriptors that are full or no eventfd")


@point(
    "P66",
    source="QEMU assigns ERR where there is one (vfio_register_err_notifier)",
    matters="QEMU warns that it cannot recover from errors",
    profiles=(SPEC, QEMU),
)
def err_is_assigned(target: Target) -> None:
    """ERR and REQ can be assigned and taken away."""
    peer, judged = target.open(), False
    for index in (wire.ERR, wire.REQ):
        if index < len(target.facts.vectors) and target.facts.vectors[index]:
            judged = True
            with eventfds(1) as fds:
                peer.ask(set_irqs(index, ASSIGN), fds)
                peer.ask(set_irqs(index, ASSIGN))
                peer.ask(set_irqs(index, DISABLE, 0, 0))
    if not judged:
        raise NotApplicable("the device has neither ERR nor REQ")
