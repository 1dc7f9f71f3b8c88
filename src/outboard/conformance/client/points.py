"""Points 122 to 129: how a client agrees, listens, and serves the device's own commands.

vfio-user specification, "VFIO_USER_VERSION", "Message IDs", "VFIO_USER_DMA_READ", "..._WRITE", seen
from the other side.
"""

import json
import struct

from outboard.conformance import wire
from outboard.conformance.client.device import Heard
from outboard.conformance.client.scenarios import PATTERN
from outboard.conformance.points import LIBVFIO_USER, QEMU, ROBUST, SPEC, Group, NotApplicable, Wrong

client = Group[Heard]("Client")
point, unseen = client.point, client.unseen

CAPABILITIES = {"max_msg_fds": int, "max_data_xfer_size": int, "max_dma_maps": int, "write_multiple": bool}


def words(faults: list[str]) -> str:
    """The first few of several faults."""
    rest = f", and {len(faults) - 3} more" if len(faults) > 3 else ""
    return "; ".join(faults[:3]) + rest


def without(heard: Heard, id: str, expected: str) -> None:
    """Nothing was noted against a point."""
    if faults := heard.faults.get(id):
        raise Wrong(expected, words(faults))


def sent(heard: Heard, command: int) -> None:
    """Raises NotApplicable if the client never sent a command."""
    if command not in heard.commands:
        raise NotApplicable(f"the client sent no {wire.name(command)}")


def names(heard: Heard, start: int = 0) -> str:
    """The commands from one of them on, for a sentence."""
    said = [wire.name(command) for command in heard.commands[start : start + 4]]
    return ", ".join(said) or "nothing"


@point(
    "P122a",
    source="VERSION is the first command; its JSON ends in a NUL and has an object of capabilities",
    matters="libvfio-user refuses the client",
    profiles=(SPEC, QEMU, LIBVFIO_USER),
    scenario="plain",
)
def version_first(heard: Heard) -> None:
    """VERSION goes first, with JSON that ends in a NUL."""
    if heard.commands[:1] != [wire.VERSION] or heard.commands.count(wire.VERSION) != 1:
        raise Wrong("VERSION first, and once", names(heard))
    payload = heard.messages[0].payload
    major, _ = struct.unpack_from("=HH", payload.ljust(4, b"\0"))
    text = payload[4:]
    if major:
        raise Wrong("major version 0", str(major))
    if not text:
        return  # the JSON is optional
    try:
        found = json.loads(text[:-1])["capabilities"] if text[-1:] == b"\0" else None
    except (ValueError, KeyError, TypeError):
        found = None
    if not isinstance(found, dict):
        raise Wrong("JSON with an object 'capabilities' and a NUL", repr(text[:80]))
    for key, kind in CAPABILITIES.items():
        if key in found and type(found[key]) is not kind:
            raise Wrong(f"{key} as {kind.__name__}", repr(found[key]))


def stops(heard: Heard, after: str) -> None:
    """The client says nothing more after VERSION."""
    if len(heard.messages) > 1:
        raise Wrong(f"no command after {after}", names(heard, 1))


@point(
    "P122b",
    source="VERSION: the server answers with the same major version",
    matters="two that do not speak the same language go on talking",
    profiles=(SPEC, QEMU),
    scenario="foreign version",
)
def foreign_major(heard: Heard) -> None:
    """An answer of a foreign major version is refused."""
    stops(heard, "version 1.0")


@point(
    "P122c",
    source="VERSION: the server answers with no higher minor version",
    matters="the server uses what the client does not know",
    profiles=(SPEC, QEMU),
    scenario="newer version",
)
def newer_minor(heard: Heard) -> None:
    """An answer of a minor version above the client's is refused."""
    if struct.unpack_from("=HH", heard.messages[0].payload)[1] == 0xFFFF:
        raise NotApplicable("the client itself proposed 0.65535")
    stops(heard, "version 0.65535")


@point(
    "P122d",
    source="VERSION: the text is JSON",
    matters="limits that were never said are kept to",
    profiles=(SPEC, QEMU, LIBVFIO_USER),
    scenario="broken JSON",
)
def broken_json(heard: Heard) -> None:
    """An answer with broken JSON is refused."""
    stops(heard, "broken JSON")


@point(
    "P122e",
    source="VERSION: limits are numbers that are not negative",
    matters="a limit that is no number is whatever the client's language makes of it",
    profiles=(SPEC, QEMU, LIBVFIO_USER),
    scenario="absurd limits",
)
def absurd_limits(heard: Heard) -> None:
    """An answer with absurd limits is refused."""
    stops(heard, "limits 'many' and -1")


@point(
    "P123a",
    source="VERSION: the JSON is optional in the answer too; each capability has its default",
    matters="the client cannot use a minimal server",
    scenario="no JSON",
)
def without_json(heard: Heard) -> None:
    """A server without JSON is served."""
    if len(heard.messages) < 2:
        raise Wrong("the client to go on, with the default limits", "that it leaves")


@point(
    "P123b",
    source="VERSION: max_msg_fds, 1 if nothing was said, is the most descriptors in one message",
    matters="descriptors are lost on the way",
    profiles=(SPEC, QEMU, LIBVFIO_USER),
    scenario="small limits",
)
def few_descriptors(heard: Heard) -> None:
    """No message has more descriptors than the server takes."""
    most = max((len(message.fds) for message in heard.messages), default=0)
    if most > 1:
        raise Wrong("one descriptor a message, as max_msg_fds says", f"{most}")


@point(
    "P123c",
    source="VERSION: max_data_xfer_size is the most data in one message",
    matters="the server refuses the access: the guest reads all ones",
    profiles=(SPEC, QEMU, LIBVFIO_USER),
    scenario="small limits",
)
def small_accesses(heard: Heard) -> None:
    """No access moves more than the server takes."""
    if wire.REGION_READ not in heard.commands:
        raise NotApplicable("the client read no region")
    without(heard, "P123c", "accesses of at most 4096 bytes, as max_data_xfer_size says")


@point(
    "P124a",
    source="Message IDs: a reply belongs to the command whose id it has",
    matters="one command's result is taken for another's",
    scenario="unknown id",
)
def unknown_id(heard: Heard) -> None:
    """A reply with an unknown id is no answer."""
    sent(heard, wire.DEVICE_INFO)
    after = heard.commands[heard.commands.index(wire.DEVICE_INFO) + 1 :]
    if after and after != [wire.DEVICE_INFO]:
        raise Wrong("the client to wait, or to leave", f"that it goes on with {wire.name(after[0])}")


@point(
    "P124b",
    source="Message IDs: replies are matched by id, so they may come in any order",
    matters="a server that answers quick commands first loses this client",
    profiles=(SPEC, ROBUST),
    scenario="out of order",
)
def any_order(heard: Heard) -> None:
    """Replies in another order than their commands are understood."""
    if "pipelined" not in heard.facts:
        raise NotApplicable("the client has no two commands under way at a time")
    if heard.commands[-1] == wire.DMA_MAP and heard.left:
        raise Wrong("the client to go on", "that it leaves")


def dma(heard: Heard) -> None:
    """Raises NotApplicable for a client with no memory to read, or that does not answer."""
    if "interleaved" not in heard.facts:
        raise NotApplicable("the client mapped no memory for reading and writing")


def answered(heard: Heard, name: str, expected: str) -> wire.Message:
    """The answer of one attempt. Raises NotApplicable, or Wrong if none came."""
    dma(heard)
    message = heard.facts.get(name)
    if not isinstance(message, wire.Message):
        raise Wrong(expected, "no answer")
    return message


def allowed(heard: Heard) -> None:
    """Raises NotApplicable if the client lets the device read nothing."""
    message = answered(heard, "read", "an answer to DMA_READ")
    if message.is_error:
        raise NotApplicable(
            f"the client refuses the device its memory ({wire.errno_name(message.error)}):"
            " QEMU does so until the guest switches bus mastering on"
        )


@point(
    "P125",
    source="Full duplex: the server's commands come at any time, also between a command and its reply",
    matters="client and server wait for each other. QEMU does not serve while a vCPU waits",
    profiles=(SPEC, LIBVFIO_USER),
    scenario="DMA by message",
)
def served_meanwhile(heard: Heard) -> None:
    """The server's commands are served while the client waits for a reply."""
    dma(heard)
    if not heard.facts["interleaved"]:
        raise Wrong("DMA_READ to be answered while the client waits for its own reply", "no answer in 1 s")


@point(
    "P126a",
    source="DMA_READ: the reply is address, count and the data",
    matters="a device cannot reach memory without a descriptor",
    profiles=(SPEC, QEMU, LIBVFIO_USER),
    scenario="DMA by message",
)
def dma_read(heard: Heard) -> None:
    """DMA_READ of mapped memory is answered with its data."""
    allowed(heard)
    message = answered(heard, "read", "an answer to DMA_READ")
    count = struct.unpack_from("=QQ", message.payload.ljust(16, b"\0"))[1]
    if len(message.payload) != 32 or count != 16:
        raise Wrong("32 bytes: address, a count of 16 in 64 bits, and the data", str(message))


def refused(heard: Heard, name: str, what: str) -> None:
    """One attempt was answered with an error."""
    message = answered(heard, name, f"an error reply to {what}")
    if not message.is_error:
        raise Wrong(f"an error reply to {what}", str(message))


@point(
    "P126b",
    source="DMA_READ and DMA_WRITE: only what is mapped",
    matters="a device reads what the guest did not give it",
    profiles=(SPEC, QEMU, LIBVFIO_USER),
    scenario="DMA by message",
)
def dma_outside(heard: Heard) -> None:
    """DMA outside of what is mapped is refused."""
    refused(heard, "outside", "DMA_READ where nothing is mapped")


@point(
    "P126c",
    source="VERSION: max_data_xfer_size of the client is the most the server may ask for",
    matters="a server makes its client allocate what it likes",
    profiles=(SPEC, QEMU, ROBUST),
    scenario="DMA by message",
)
def dma_too_much(heard: Heard) -> None:
    """DMA of more than the client takes is refused."""
    refused(heard, "too much", "DMA_READ of 64 MiB")


@point(
    "P126d",
    source="Error handling: a command that is not understood is answered by an error",
    matters="a newer server waits for ever",
    profiles=(SPEC, QEMU),
    scenario="DMA by message",
)
def unknown_command(heard: Heard) -> None:
    """An unknown command of the server is refused."""
    refused(heard, "unknown", "command 999")


@point(
    "P126e",
    source="Header: with No_reply there is no answer",
    matters="the server takes it for the answer to something else",
    profiles=(SPEC, QEMU),
    scenario="DMA by message",
)
def dma_no_reply(heard: Heard) -> None:
    """A command of the server with No_reply gets no answer."""
    dma(heard)
    without(heard, "P126e", "no answer to DMA_READ with No_reply")
    answered(heard, "after no reply", "the command after it to be answered")


@point(
    "P126f",
    source="DMA_WRITE: address, count in 64 bits, data. QEMU 10.1 has the count in 32 bits, the data four"
    " bytes"
    " early, and answers with only a header",
    matters="everything the device writes by message is shifted by four bytes",
    profiles=(SPEC, LIBVFIO_USER),
    scenario="DMA by message",
)
def dma_layout(heard: Heard) -> None:
    """What DMA_WRITE wrote is what DMA_READ reads, and its reply repeats address and count."""
    allowed(heard)
    write = answered(heard, "write", "an answer to DMA_WRITE")
    read = answered(heard, "read back", "an answer to DMA_READ")
    if read.payload[16:] != PATTERN:
        shifted = " (shifted: the layout of QEMU 10.1)" if PATTERN[:8] in read.payload else ""
        raise Wrong(f"{PATTERN.hex()} in memory", read.payload[16:].hex() + shifted)
    if write.is_error or len(write.payload) != 16:
        raise Wrong("16 bytes that repeat address and count", str(write))


def goes_on(heard: Heard, what: str) -> None:
    """The client says something more, or leaves; it does not hang."""
    sent(heard, wire.REGION_INFO)
    without(heard, "stream", f"the stream to be in step after {what}")
    if len(heard.messages) == heard.facts["refused"] and not heard.left:
        raise Wrong(f"the client to go on after {what}, or to leave", "that it waits for more")


@point(
    "P127",
    source="Error handling: an error reply is only a header",
    matters="cloud-hypervisor waits for the rest of the reply, and its VM stops",
    profiles=(SPEC, QEMU, LIBVFIO_USER),
    scenario="an error reply",
)
def error_reply(heard: Heard) -> None:
    """An error reply of only a header is understood."""
    goes_on(heard, "an error reply")


@point(
    "P128a",
    source="libvfio-user's error replies may have the payload of the success",
    matters="the payload is taken for the next message",
    profiles=(LIBVFIO_USER, ROBUST),
    scenario="an error reply with payload",
)
def error_with_payload(heard: Heard) -> None:
    """An error reply with a payload is understood."""
    goes_on(heard, "an error reply with payload")


@point(
    "P128b",
    source="The Rust crate's server sets Error in its error replies and leaves the type a command's",
    matters="the client serves its own command",
    profiles=(ROBUST,),
    scenario="an error reply without type",
)
def error_without_type(heard: Heard) -> None:
    """An error reply without the type bit is understood, or ends the connection."""
    goes_on(heard, "an error reply without type")


@point(
    "P129a",
    source="Transport is a stream: a read may end anywhere. QEMU takes a short header for fatal",
    matters="a server whose socket is full for a moment loses its client",
    profiles=(ROBUST,),
    scenario="replies in pieces",
)
def in_pieces(heard: Heard) -> None:
    """Replies that arrive in pieces are put together."""
    if "cut" not in heard.facts:
        raise NotApplicable("the client asked nothing after VERSION")
    if len(heard.messages) < 3:
        raise Wrong("the client to go on", "that it leaves after the first reply in pieces")


@point(
    "P129b",
    source="A server may hang. QEMU waits five seconds, the Rust crate for ever",
    matters="the VMM hangs with its device",
    profiles=(QEMU, ROBUST),
    scenario="silence",
)
def silence(heard: Heard) -> None:
    """A server that does not answer is given up in time."""
    sent(heard, wire.DEVICE_INFO)
    if not heard.left:
        raise Wrong("the client to leave", "that it waits after 8 seconds and more")
