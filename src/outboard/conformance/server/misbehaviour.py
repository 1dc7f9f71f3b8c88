"""Points 18 to 24: stray bytes and descriptors, clients that vanish, and bytes at random.

vfio-user specification, "Socket Disconnection Behavior"; the rest is what a server that others can reach
has to survive.
"""

import random
import struct

from outboard.conformance import wire
from outboard.conformance.peer import Closed
from outboard.conformance.points import ROBUST, SPEC, NotApplicable, Wrong
from outboard.conformance.server.framing import framing, in_step, next_client
from outboard.conformance.target import Target
from outboard.conformance.witness import Witness

point, unseen = framing.point, framing.unseen

SEED, ROUNDS = 20, 400
"""Every run sends the same messages."""


@point(
    "P18",
    source="argsz, not the message's size, says what is wanted; what stands behind the payload is either"
    " refused or passed over",
    matters="SPDK's client asks for region info in a message of 4 KiB",
    profiles=(SPEC, ROBUST),
)
def surplus_payload(target: Target) -> None:
    """A payload longer than its command's is handled the same way each time."""
    peer = target.open()
    for body in (wire.device_info(), wire.region_info(7, 4064), wire.irq_info(0)):
        longer = wire.Body(body.command, body.payload.ljust(4080, b"\0"))
        answers = [peer.answer(longer, peer.command(longer)) for _ in range(3)]
        wire.close_all(tuple(fd for answer in answers for fd in answer.fds))
        if len({answer.is_error for answer in answers}) > 1:
            raise Wrong(f"{wire.name(body.command)} to be treated alike each time", "now this, now that")
        in_step(peer, f"{wire.name(body.command)} with 4080 bytes of payload")


@point(
    "P19",
    source="Descriptors come with a few commands only; whoever receives others owns them",
    matters="a client can use up the server's descriptors with messages that are refused anyway",
    profiles=(ROBUST,),
)
def stray_descriptors(target: Target) -> None:
    """Descriptors a command does not take are closed."""
    peer = target.open()
    for body in (
        wire.device_info(),
        wire.region_read(wire.CONFIG, 0, 4),
        wire.dma_unmap(0xFFFF_0000_0000, wire.PAGE),
    ):
        with Witness() as witness:
            answer = peer.answer(body, peer.command(body, (witness.fd,)))
            wire.close_all(answer.fds)
            witness.expect_closed(f"{wire.name(body.command)}", peer.timeout)
    in_step(peer, "stray descriptors")


@point(
    "P20",
    source="cloud-hypervisor sends sixteen descriptors in one SET_IRQS whatever the server announced",
    matters="cloud-hypervisor's guests get no interrupts, or the descriptors leak",
    profiles=(ROBUST,),
)
def sixteen_descriptors(target: Target) -> None:
    """Sixteen descriptors are taken whatever was announced, or refused and closed."""
    peer = target.open()
    with Witness() as witness:
        body = wire.device_info()
        answer = peer.answer(body, peer.command(body, (witness.fd,) * 16))
        wire.close_all(answer.fds)
        witness.expect_closed("a message with 16 descriptors", peer.timeout)
    in_step(peer, "a message with 16 descriptors")


@point(
    "P21",
    source="Socket disconnection: the client may go at any moment",
    matters="a killed VMM would take the server, or the next VMM's device, with it",
    profiles=(SPEC, ROBUST),
)
def end_inside_a_message(target: Target) -> None:
    """An end of file inside a message is a clean disconnect."""
    data = wire.device_info().message(7)
    for cut in (1, 15, 16, 20):
        peer = target.open()
        peer.send(data[:cut])
        peer.close()
        next_client(target, f"a client that went after {cut} bytes of a message")


@point(
    "P22",
    source="Socket disconnection: replies to a client that has gone have nowhere to go",
    matters="SIGPIPE ends a server that does not expect it",
    profiles=(SPEC, ROBUST),
)
def gone_before_the_reply(target: Target) -> None:
    """A client gone before its replies is a disconnect, not a crash."""
    size = target.facts.region(wire.CONFIG).size
    for _ in range(5):
        peer = target.open()
        peer.send(wire.region_read(wire.CONFIG, 0, size).message(7) * 200)
        peer.close()
    next_client(target, "clients that did not wait for their replies")


unseen(
    "P23",
    "A silent client does not hold up the other devices of the process",
    "one socket shows one device; judge the other device's socket while this one's client is silent",
)


def random_message(chance: random.Random) -> wire.Body:
    """A command that may mean anything, except what could change the device: no write, no state."""
    command = chance.choice([*range(wire.DMA_MAP, wire.DMA_READ), wire.FEATURE, wire.WRITE_MULTI, 17, 19, 99])
    payload = bytearray(chance.randbytes(chance.choice([0, 4, 16, 20, 24, 32, 100])))
    if command in (wire.REGION_WRITE, wire.WRITE_MULTI, wire.SET_IRQS) and len(payload) >= 12:
        payload[8:12] = struct.pack("=I", 1 << 31 | chance.getrandbits(31))  # no region, no interrupt index
    if command == wire.WRITE_MULTI:
        payload[16:] = b""
    if command == wire.FEATURE and len(payload) >= 8:
        payload[6] &= ~0x02  # not SET
    return wire.Body(command, bytes(payload))


@point(
    "P24",
    source="Whoever can connect can send anything; each message has a proper size here, the rest is random",
    matters="a guest that breaks out of its VMM would go on through the device",
    profiles=(ROBUST,),
)
def random_messages(target: Target) -> None:
    """Random messages neither crash nor leak."""
    peer, chance = target.open(), random.Random(SEED)
    in_step(peer, "VERSION")
    try:
        before = target.descriptors(peer)
    except NotApplicable:
        before = None
    for _ in range(ROUNDS):
        body = random_message(chance)
        try:
            answer = peer.answer(body, peer.command(body))
        except Closed:
            peer.close()
            peer = target.open()
            continue
        wire.close_all(answer.fds)
    in_step(peer, "random messages")
    if before is not None and (after := target.descriptors(peer)) > before + 2:
        raise Wrong(
            f"about {before} descriptors in the server, as before", f"{after} after {ROUNDS} messages"
        )
