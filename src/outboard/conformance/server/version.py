"""Points 25 to 36: VERSION and the JSON in it.

vfio-user specification, "VFIO_USER_VERSION" and the table of its capabilities.
"""

import json
import socket
import struct
from typing import Any

from outboard.conformance import wire
from outboard.conformance.facts import RegionFacts
from outboard.conformance.peer import Closed, Peer
from outboard.conformance.points import LIBVFIO_USER, QEMU, ROBUST, SPEC, Group, NotApplicable, Wrong
from outboard.conformance.server.framing import in_step, next_client
from outboard.conformance.target import Target

version = Group[Target]("Server: version")
point, unseen = version.point, version.unseen

QEMU_MESSAGE = 16 + 4 + len(wire.QEMU_JSON)
LIMITS = {"max_msg_fds": 16, "max_data_xfer_size": 64 << 20, "max_dma_maps": 65535}
"""The most QEMU believes (proxy.c, caps_parse); above it the connection ends as malformed."""


def offered(target: Target, text: bytes = wire.QEMU_JSON) -> tuple[Peer, wire.Message, dict[str, Any]]:
    """A new connection, the answer to VERSION on it, and the capabilities in that."""
    peer = target.connect()
    answer = peer.ask(wire.version(text=text))
    wire.close_all(answer.fds) if not text.count(b"twin_socket") else None
    return peer, answer, capabilities(answer)


def capabilities(answer: wire.Message) -> dict[str, Any]:
    """What the answer to VERSION says. Raises Wrong unless it is JSON that ends in a NUL."""
    text = answer.payload[4:]
    if not text:
        raise Wrong("JSON in the answer to VERSION", "none")
    if text[-1:] != b"\0":
        raise Wrong("JSON that ends in a NUL", f"text that ends in {text[-8:]!r}")
    try:
        found = json.loads(text[:-1])["capabilities"]
    except (ValueError, KeyError, TypeError) as error:
        raise Wrong("a JSON object with 'capabilities'", f"{text[:100]!r}: {error}") from error
    if not isinstance(found, dict):
        raise Wrong("'capabilities' to be an object", f"{found!r}")
    return found


def refused(target: Target, body: wire.Body, what: str) -> None:
    """VERSION that cannot be agreed to: refused and closed, or closed."""
    peer = target.connect()
    if peer.refused_or_closed(body.message(1), f"{what} to be refused"):
        peer.expect_closed(f"the connection to be closed after {what}")
    peer.close()


@point(
    "P25",
    source="VERSION: it is the first command; any other before it is an error",
    matters="without limits agreed the two sides do not know what to send",
    profiles=(SPEC, LIBVFIO_USER),
)
def version_first(target: Target) -> None:
    """Nothing but VERSION is served before VERSION."""
    for body in (wire.device_info(), wire.region_read(wire.CONFIG, 0, 4), wire.Body(wire.RESET)):
        peer = target.connect()
        peer.refused_or_closed(body.message(1), f"{wire.name(body.command)} before VERSION to be refused")
        peer.close()
    next_client(target, "commands before VERSION")


def answered_minor(target: Target, minor: int) -> int:
    """What the server answers to version 0.`minor`."""
    peer = target.connect()
    major, answer = struct.unpack_from("=HH", peer.ask(wire.version(0, minor)).payload)
    peer.close()
    if major:
        raise Wrong("major version 0", f"{major}")
    return int(answer)


@point(
    "P26a",
    source="VERSION: the answer has the same major and no higher minor. QEMU asks for 0.0 and takes 0.0 only"
    " (proxy.c, vfio_user_validate_version)",
    matters="QEMU ends with 'incompatible server version'",
    profiles=(SPEC, QEMU),
)
def minor_of_qemu(target: Target) -> None:
    """Version 0.0 is answered by 0.0."""
    if minor := answered_minor(target, 0):
        raise Wrong("version 0.0", f"0.{minor}")


@point(
    "P26b",
    source="VERSION: the answered minor is no higher than the one proposed",
    matters="clients of 0.1 (SPDK, cloud-hypervisor) and of versions to come cannot connect",
    profiles=(SPEC, LIBVFIO_USER),
)
def lower_minor(target: Target) -> None:
    """The answered minor version is never higher than the one proposed."""
    for minor in (1, 2, 9, 0xFFFF):
        if (answer := answered_minor(target, minor)) > minor:
            raise Wrong(f"at most 0.{minor}", f"0.{answer}")


@point(
    "P27",
    source="VERSION: without agreement the server closes the connection",
    matters="a client of another major version would be misunderstood",
    profiles=(SPEC, LIBVFIO_USER),
)
def foreign_major(target: Target) -> None:
    """A foreign major version is refused, then the connection closed."""
    refused(target, wire.version(1, 0), "version 1.0")
    next_client(target, "a foreign version")


@point(
    "P28",
    source="VERSION: the answer has JSON that ends in a NUL. QEMU 10.1 takes an answer without for its own"
    " question; the Rust crate panics on it",
    matters="QEMU believes the server takes everything it offered itself; cloud-hypervisor dies",
    profiles=(SPEC, QEMU),
)
def always_json(target: Target) -> None:
    """The answer always carries JSON that ends in a NUL."""
    offered(target)[0].close()
    offered(target, b"")


@point(
    "P29a",
    source="QEMU receives the answer into the buffer of its question (proxy.c, vfio_user_validate_version)",
    matters="QEMU ends with 'reply larger than recv buffer'",
    profiles=(QEMU,),
)
def fits_qemus_buffer(target: Target) -> None:
    """The answer is no longer than QEMU's question, and without descriptors."""
    _, answer, _ = offered(target)
    if answer.size > QEMU_MESSAGE or answer.fds:
        raise Wrong(
            f"at most {QEMU_MESSAGE} bytes, no descriptor", f"{answer.size} bytes, {len(answer.fds)} fds"
        )


@point(
    "P29b",
    source="QEMU checks type and range of each value (proxy.c, caps_parse); pgsizes 0 even aborts QEMU 10.1",
    matters="QEMU ends with 'malformed ...'",
    profiles=(QEMU,),
)
def values_qemu_takes(target: Target) -> None:
    """The answer has no value QEMU calls malformed."""
    _, _, found = offered(target)
    for key, most in LIMITS.items():
        value = found.get(key, 0)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
            raise Wrong(f"{key} from 0 to {most}", f"{value!r}")
    sizes = found.get("pgsizes", wire.PAGE)
    if not isinstance(sizes, int) or sizes <= 0 or sizes % wire.PAGE:
        raise Wrong("pgsizes to be a multiple of 4096, not 0", f"{sizes!r}")
    if not isinstance(found.get("write_multiple", False), bool):
        raise Wrong("write_multiple to be true or false", f"{found['write_multiple']!r}")


@point(
    "P29c",
    source="In QEMU 10.1 the flag for write_multiple overlaps the one that queues every send (proxy.h)",
    matters="agreeing makes every message of QEMU 10.1 wait in a queue",
    profiles=(QEMU,),
)
def no_write_multiple(target: Target) -> None:
    """REGION_WRITE_MULTI is not agreed on with a client that speaks as QEMU 10.1 does."""
    _, _, found = offered(target)
    if found.get("write_multiple"):
        raise Wrong("write_multiple to be absent or false", "true")


@point(
    "P30",
    source="VERSION: the JSON is optional; without it each capability has its default",
    matters="SPDK's initiator sends none",
    profiles=(SPEC, LIBVFIO_USER),
)
def without_json(target: Target) -> None:
    """A client without JSON gets the default limits."""
    peer = target.open(b"")
    in_step(peer, "VERSION without JSON")
    for region in target.facts.present():
        answer = peer.ask(wire.region_info(region.index, region.needed))
        wire.close_all(answer.fds)
        if len(answer.fds) > 1:
            raise Wrong("one descriptor at most: the default of max_msg_fds", f"{len(answer.fds)}")


@point(
    "P31",
    source="VERSION: keys that a receiver does not know are passed over",
    matters="a newer client could not talk to an older server",
    profiles=(SPEC, LIBVFIO_USER),
)
def unknown_keys(target: Target) -> None:
    """Empty capabilities and unknown keys are welcome."""
    for text in (
        b"{}",
        b'{"capabilities":{}}',
        b'{"capabilities":{"x_new":[1,{"a":null}]},"other":"text"}',
    ):
        peer = target.connect()
        answer = peer.answer(body := wire.version(text=text + b"\0"), peer.command(body))
        if answer.is_error:
            raise Wrong(f"{text.decode()} to be welcome", str(answer))
        in_step(peer, text.decode())
        peer.close()


BROKEN = (
    b'{"capabilities":{}}',
    b'{"capabilities":\0',
    b"hello\0",
    b'{"capabilities":[]}\0',
    b'{"capabilities":7}\0',
)
WRONG_VALUES = (
    '"max_msg_fds":"8"',
    '"max_msg_fds":-1',
    '"max_msg_fds":1025',
    '"max_data_xfer_size":"1M"',
)


@point(
    "P32a",
    source="VERSION: the text is JSON, 'capabilities' is an object, a NUL ends it",
    matters="a text without its NUL is read beyond its end",
    profiles=(SPEC, LIBVFIO_USER, ROBUST),
)
def broken_json(target: Target) -> None:
    """A text that is not JSON, has no NUL or no object is refused."""
    for text in BROKEN:
        refused(target, wire.version(text=text), repr(text))
    next_client(target, "broken JSON")


@point(
    "P32b",
    source="VERSION: each capability has a type and a range. libvfio-user refuses these",
    matters="a limit misread is kept to for the whole connection",
    profiles=(LIBVFIO_USER,),
)
def wrong_values(target: Target) -> None:
    """Capabilities of the wrong type or range are refused."""
    for value in WRONG_VALUES:
        text = b'{"capabilities":{' + value.encode() + b"}}\0"
        refused(target, wire.version(text=text), value)
    next_client(target, "wrong values")


@point(
    "P33",
    source="The text comes from a stranger, before anything is agreed",
    matters="deep nesting ends a parser that calls itself; a long text fills the memory",
    profiles=(ROBUST,),
)
def vicious_json(target: Target) -> None:
    """Huge, deep or broken JSON is survived."""
    texts = {
        "a JSON text of a mebibyte": b'{"capabilities":{"x":"' + b"x" * ((1 << 20) - 64) + b'"}}\0',
        "JSON 100000 deep": b'{"capabilities":' + b'{"a":' * 100_000 + b"\0",
        "invalid UTF-8": b'{"capabilities":{"\xff\xfe":1}}\0',
        "a key twice": b'{"capabilities":{"max_msg_fds":1,"max_msg_fds":2}}\0',
        "a NUL inside": b'{"capabilities":{}}\0{"capabilities":{}}\0',
        "a number of 5000 digits": b'{"capabilities":{"max_msg_fds":' + b"9" * 5000 + b"}}\0",
    }
    for what, text in texts.items():
        peer = target.connect()
        try:
            peer.send(wire.version(text=text).message(1))
            peer.receive(f"an answer to {what}")
        except Closed:
            pass
        peer.close()
        next_client(target, what)


def with_descriptors(target: Target) -> list[tuple[RegionFacts, wire.Body]]:
    """What a client with room for sixteen is answered with descriptors. Raises NotApplicable for nothing."""
    peer, found = target.open(), []
    for region in target.facts.present():
        for body in (
            wire.region_info(region.index, region.needed),
            wire.region_io_fds(region.index, wire.PAGE),
        ):
            answer = peer.answer(body, peer.command(body))
            wire.close_all(answer.fds)
            if answer.fds:
                found.append((region, body))
    peer.close()
    if not found:
        raise NotApplicable("no region of the device comes with descriptors")
    return found


@point(
    "P34",
    source="VERSION: max_msg_fds is how many descriptors its sender takes in one message",
    matters="descriptors beyond it are lost, or cut the message's list short",
)
def peers_limits(target: Target) -> None:
    """No more descriptors come than the client takes."""
    questions = with_descriptors(target)
    for most in (0, 1):
        peer = target.open(b'{"capabilities":{"max_msg_fds":%d}}\0' % most)
        for region, body in questions:
            answer = peer.answer(body, peer.command(body))
            wire.close_all(answer.fds)
            if len(answer.fds) > most:
                raise Wrong(
                    f"at most {most} descriptors with {wire.name(body.command)} of region {region.index}",
                    f"{len(answer.fds)}",
                )
        peer.close()


TWIN = b'{"capabilities":{"max_msg_fds":8,"twin_socket":{"supported":true}}}\0'


@point(
    "P35a",
    source="VERSION: a twin socket exists only for a client that says it supports one",
    matters="QEMU takes no descriptor with the answer to VERSION: it ends the connection",
    profiles=(SPEC, QEMU, LIBVFIO_USER),
)
def no_twin_unasked(target: Target) -> None:
    """A client that did not ask gets no twin socket."""
    for text in (wire.QEMU_JSON, b'{"capabilities":{"twin_socket":{"supported":false}}}\0'):
        peer, answer, found = offered(target, text)
        wire.close_all(answer.fds) if b"twin_socket" in text else None
        if answer.fds or found.get("twin_socket", {}).get("supported"):
            raise Wrong("no twin socket", f"{found.get('twin_socket')} and {len(answer.fds)} descriptors")
        peer.close()


@point(
    "P35b",
    source="VERSION: the twin socket comes as a descriptor of the answer; fd_index says which",
    matters="the client would wait for the server's commands on the wrong socket",
    profiles=(SPEC, LIBVFIO_USER),
)
def twin_when_asked(target: Target) -> None:
    """A client that asks gets a connected socket, and is told which descriptor it is."""
    peer, answer, found = offered(target, TWIN)
    try:
        twin = found.get("twin_socket", {})
        if not twin.get("supported"):
            raise NotApplicable("the server does not offer a twin socket")
        index = twin.get("fd_index")
        if not isinstance(index, int) or not 0 <= index < len(answer.fds):
            raise Wrong("fd_index to name a descriptor", f"{index!r} of {len(answer.fds)} descriptors")
        try:
            with socket.socket(fileno=answer.fds[index]) as connection:
                connection.getpeername()
                connection.detach()
        except OSError as error:
            raise Wrong("a connected socket", f"a descriptor for which {error.strerror}") from error
        in_step(peer, "a twin socket")
    finally:
        wire.close_all(answer.fds)


@point(
    "P36",
    source="VERSION: it is agreed on once, at the start",
    matters="limits that change under way leave the two sides with different ones",
    profiles=(SPEC, ROBUST),
)
def second_version(target: Target) -> None:
    """A second VERSION is refused and the connection kept."""
    peer = target.open()
    peer.refused(wire.version(), what="a second VERSION")
    in_step(peer, "a second VERSION")
