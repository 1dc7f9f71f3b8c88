"""Points 130 to 140: what a client asks of a device, and whether it makes sense.

vfio-user specification, all commands of the client.
"""

import struct

from outboard.conformance import wire
from outboard.conformance.client.device import Heard
from outboard.conformance.client.points import client, sent, without, words
from outboard.conformance.points import LIBVFIO_USER, QEMU, ROBUST, SPEC, NotApplicable, Wrong

point, unseen = client.point, client.unseen

KNOWN = {*range(wire.VERSION, wire.DMA_READ), wire.RESET, wire.WRITE_MULTI, wire.FEATURE, 17, 18}
MOST_QUESTIONS = 300


@point(
    "P130a",
    source="argsz: a reply that is cut tells the size to ask again with, which is at least 32",
    matters="capabilities, and with them the mappable areas, are not seen",
    profiles=(SPEC, QEMU, LIBVFIO_USER),
    scenario="plain",
)
def asks_again(heard: Heard) -> None:
    """Region information is asked for again where it did not fit."""
    sent(heard, wire.REGION_INFO)
    without(heard, "P130a", "an argsz of 32 or more")
    asked = [struct.unpack_from("=III", m.payload) for m in heard.of(wire.REGION_INFO)]
    if not any(argsz >= 64 for argsz, _, index in asked if index == 0):
        raise Wrong(
            "region 0 to be asked for with the argsz it needs, 64", f"argsz {[a for a, _, _ in asked]}"
        )


@point(
    "P130b",
    source="Capabilities point to each other; nobody says that they end",
    matters="a server hangs its client, or has it read beyond the reply",
    profiles=(SPEC, QEMU, ROBUST),
    scenario="a chain that loops",
)
def looping_chain(heard: Heard) -> None:
    """A chain of capabilities that loops does not hang the client."""
    if "told" not in heard.facts:
        raise NotApplicable("the client did not ask for the capabilities")
    if len(heard.messages) == heard.facts["told"] and not heard.left:
        raise Wrong("the client to go on, or to leave", "that it does neither")


@point(
    "P130c",
    source="Descriptors in a reply are the receiver's to close",
    matters="a server uses up the descriptors of its client",
    profiles=(ROBUST,),
    scenario="a stray descriptor",
)
def stray_descriptor(heard: Heard) -> None:
    """A descriptor that nobody asked for is closed."""
    witness = heard.facts.get("witness")
    if witness is None:
        raise NotApplicable("the client did not ask for the device")
    with witness:
        witness.expect_closed("the reply to DEVICE_GET_INFO", 2.0)


@point(
    "P131",
    source="REGION_READ and REGION_WRITE: offset and count lie inside the region",
    matters="the server refuses the access",
    profiles=(SPEC, QEMU, LIBVFIO_USER),
    scenario="plain",
)
def inside_regions(heard: Heard) -> None:
    """Accesses stay inside the regions as they were described."""
    if not {wire.REGION_READ, wire.REGION_WRITE} & {*heard.commands}:
        raise NotApplicable("the client accessed no region")
    without(heard, "P131", "accesses inside the regions")


@point(
    "P132a",
    source="SET_IRQS: one action, one kind of data, a range inside the vectors, a descriptor for each or"
    " none",
    matters="the server refuses it: no interrupts",
    profiles=(SPEC, QEMU, LIBVFIO_USER),
    scenario="plain",
)
def sensible_set_irqs(heard: Heard) -> None:
    """Every SET_IRQS makes sense."""
    sent(heard, wire.SET_IRQS)
    without(heard, "P132a", "SET_IRQS that a server can carry out")


@point(
    "P132b",
    source="SET_IRQS: more vectors than the server takes descriptors are assigned in several messages",
    matters="vectors beyond the first stay silent",
    profiles=(SPEC, QEMU, LIBVFIO_USER),
    scenario="small limits",
)
def set_irqs_in_chunks(heard: Heard) -> None:
    """Vectors are assigned in chunks the server takes."""
    sent(heard, wire.SET_IRQS)
    without(heard, "P132a", "SET_IRQS of one vector each")
    for message in heard.of(wire.SET_IRQS):
        if len(message.fds) > 1:
            raise Wrong("SET_IRQS with one descriptor each", str(message))


@point(
    "P133a",
    source="DMA_MAP: argsz 32, a direction, a size, one descriptor or none, inside its file, no overlap",
    matters="the server refuses it, or reads beyond the file",
    profiles=(SPEC, QEMU, LIBVFIO_USER),
    scenario="plain",
)
def sensible_maps(heard: Heard) -> None:
    """Every DMA_MAP makes sense."""
    sent(heard, wire.DMA_MAP)
    without(heard, "P133a", "maps that a server can carry out")


@point(
    "P133b",
    source="DMA_UNMAP: what was mapped before",
    matters="the server refuses it, and keeps the memory",
    profiles=(SPEC, QEMU, LIBVFIO_USER),
    scenario="plain",
)
def sensible_unmaps(heard: Heard) -> None:
    """Every DMA_UNMAP is of something that was mapped."""
    sent(heard, wire.DMA_UNMAP)
    without(heard, "P133b", "unmaps of what is mapped")


@point(
    "P134",
    source="Each command has its number and its payload",
    matters="the server refuses it",
    profiles=(SPEC, QEMU, LIBVFIO_USER),
    scenario="plain",
)
def sensible_commands(heard: Heard) -> None:
    """Every command is one that a server knows, with its whole payload."""
    without(heard, "P134", "commands with their payload")
    unknown = [str(message) for message in heard.messages if message.command not in KNOWN]
    bad = [str(m) for m in heard.messages if m.flags & ~wire.NO_REPLY or m.error]
    if unknown or bad:
        raise Wrong("known commands with no flag but No_reply", words(unknown + bad))


unseen(
    "P135",
    "Capabilities, BAR sizes, MSI-X and bus mastering have helpers",
    "it is about the client's interface",
)


@point(
    "P136",
    source="libvfio-user takes a body with one recv, and a short one for an error (its issue 306)",
    matters="libvfio-user answers EINVAL and loses the stream",
    profiles=(LIBVFIO_USER,),
    scenario="plain",
)
def in_one_piece(heard: Heard) -> None:
    """Each message is sent whole."""
    if heard.cut:
        raise Wrong("header and payload in one sendmsg", f"pieces of {words(heard.cut)}")


unseen("P137", "SPDK's NVMe target can be driven", "it takes SPDK's target")


@point(
    "P138",
    source="num_regions and num_irqs come from the server. QEMU believes 100 and 50",
    matters="the client allocates, or asks, four billion times",
    profiles=(QEMU, ROBUST),
    scenario="absurd counts",
)
def absurd_counts(heard: Heard) -> None:
    """Absurd counts are not believed."""
    if "told" not in heard.facts:
        raise NotApplicable("the client did not ask for the device")
    questions = len(heard.messages) - heard.facts["told"]
    if questions > MOST_QUESTIONS:
        raise Wrong("the client to leave, or to stop soon", f"{questions} commands after it was told")


unseen(
    "P139",
    "QEMU's start-up order and habits can be replayed without a VM",
    "QEMU's habits are no duty of others",
)
unseen("P140", "QEMU's buffer checks can be asserted", "it is about the client's interface")

POINTS = tuple(client.points)
"""All points of a client, those of the other file first."""
