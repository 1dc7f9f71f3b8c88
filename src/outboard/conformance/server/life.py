"""Points 108a to 110 and 117 to 121: reset, disconnect, the next client, and the end.

vfio-user specification, "VFIO_USER_DEVICE_RESET", "Socket Disconnection Behavior", and QEMU's "Backend
program conventions".
"""

import os
import signal
import subprocess

from outboard.conformance import facts, wire
from outboard.conformance.facts import INFO
from outboard.conformance.points import QEMU, ROBUST, SPEC, Group, NotApplicable, PeerLost, Wrong
from outboard.conformance.server.config import BARS, COMMAND, LINE, MASTER, MEMORY, borrow, get, put
from outboard.conformance.server.framing import in_step
from outboard.conformance.server.interrupts import ASSIGN, eventfds
from outboard.conformance.server.memory import BASE, file, map_one
from outboard.conformance.target import Target
from outboard.conformance.wire import PAGE, dma_unmap, set_irqs

life = Group[Target]("Server: reset, features, migration, disconnect")
point, unseen = life.point, life.unseen

CYCLES = 50


def stays(target: Target) -> None:
    """Raises NotApplicable for a server that ends when its client goes."""
    if target.ends_with_client:
        raise NotApplicable("the server ends with its client, see P118a")


@point(
    "P108a",
    source="cloud-hypervisor resets exactly those devices that do not announce it (its test is inverted)",
    matters="cloud-hypervisor does not start the guest",
    profiles=(ROBUST,),
)
def reset_is_taken(target: Target) -> None:
    """DEVICE_RESET is taken even if not announced."""
    target.open().ask(wire.Body(wire.RESET))


@point(
    "P108b",
    source="cloud-hypervisor asks for every index below the counts and cannot take an error reply",
    matters="cloud-hypervisor waits for the rest of the reply for ever",
    profiles=(SPEC, ROBUST),
)
def every_index(target: Target) -> None:
    """Every announced index is described in full."""
    peer = target.open()
    for index in range(len(target.facts.regions)):
        answer = peer.ask(wire.region_info(index))
        wire.close_all(answer.fds)
        if len(answer.payload) != INFO.size:
            raise Wrong(f"32 bytes for region {index}", str(answer))
    for index in range(len(target.facts.vectors)):
        if len((answer := peer.ask(wire.irq_info(index))).payload) != 16:
            raise Wrong(f"16 bytes for interrupt index {index}", str(answer))


unseen("P108c", "A failing read may, by policy, answer all ones", "it takes a device that fails")


@point(
    "P109a",
    source="DEVICE_RESET: header only, both ways; guest memory stays mapped, QEMU does not map it again",
    matters="after a reboot the device reaches no memory",
    profiles=(SPEC, QEMU),
)
def reset_keeps_maps(target: Target) -> None:
    """Reset is answered by a header and keeps the maps."""
    peer = target.open()
    with file(4 * PAGE) as fd:
        map_one(peer, BASE, 4 * PAGE, fd)
    if (answer := peer.ask(wire.Body(wire.RESET))).payload:
        raise Wrong("a reply of only the header", str(answer))
    peer.ask(dma_unmap(BASE, 4 * PAGE))


@point(
    "P109b",
    source="PCI: after a reset COMMAND is 0 and the BARs have no address; QEMU relies on the server for it",
    matters="after a reboot the firmware finds a device that is switched on already",
    profiles=(SPEC, QEMU),
)
def reset_restores_config(target: Target) -> None:
    """Reset restores configuration space."""
    peer = target.open()
    peer.ask(wire.Body(wire.RESET))
    fresh = facts.read(peer, wire.CONFIG, 0, 0x40)
    borrow(target, COMMAND, 2)
    put(peer, COMMAND, 2, MEMORY | MASTER)
    for at in range(BARS, BARS + 24, 4):
        borrow(target, at, 4)
        put(peer, at, 4, 0xFE00_0000)
    peer.ask(wire.Body(wire.RESET))
    if command := get(peer, COMMAND, 2) & (MEMORY | MASTER):
        raise Wrong("memory and bus mastering to be off after a reset", f"COMMAND {command:#06x}")
    after = facts.read(peer, wire.CONFIG, 0, 0x40)
    if after[BARS : BARS + 24] != fresh[BARS : BARS + 24]:
        raise Wrong(f"BARs {fresh[BARS : BARS + 24].hex()} after a reset", after[BARS : BARS + 24].hex())


@point(
    "P110",
    source="QEMU resets at boot, before the guest ran",
    matters="QEMU reports a failed reset, or the server an exception",
    profiles=(SPEC, QEMU),
)
def reset_first_and_often(target: Target) -> None:
    """Reset may come first, and often."""
    peer = target.open()
    for _ in range(20):
        peer.ask(wire.Body(wire.RESET))
    in_step(peer, "twenty resets")


@point(
    "P117a",
    source="Socket disconnection: the server unmaps all of the client's memory",
    matters="the device writes to memory of a VMM that has gone",
    profiles=(SPEC,),
)
def disconnect_unmaps(target: Target) -> None:
    """A disconnect drops the maps."""
    stays(target)
    peer = target.open()
    with file(4 * PAGE) as fd:
        map_one(peer, BASE, 4 * PAGE, fd)
        peer.close()
        peer = target.open()
        peer.refused(dma_unmap(BASE, 4 * PAGE), what="the unmap of what the client before had mapped")
        map_one(peer, BASE, 4 * PAGE, fd)


@point(
    "P117b",
    source="Socket disconnection: the device keeps its state. libvfio-user calls the reset callback with"
    " LOST_CONN instead",
    matters="a VMM that restarts finds another device than the guest left",
    profiles=(SPEC,),
)
def disconnect_keeps_state(target: Target) -> None:
    """A disconnect keeps the device's state."""
    stays(target)
    peer = target.open()
    borrow(target, LINE, 1)
    put(peer, LINE, 1, 0x5A)
    peer.close()
    if (seen := get(target.open(), LINE, 1)) != 0x5A:
        raise Wrong("Interrupt Line 0x5a, as the client before left it", f"{seen:#x}")


@point(
    "P117c",
    source="Socket disconnection: descriptors of the client are closed",
    matters="a server runs out of descriptors after some reboots",
    profiles=(SPEC, ROBUST),
)
def disconnect_closes(target: Target) -> None:
    """A disconnect closes the client's descriptors."""
    stays(target)
    peer = target.open()
    before = target.descriptors(peer)
    vectors = target.facts.vectors
    index = max(range(min(3, len(vectors))), key=lambda index: vectors[index], default=0)
    for _ in range(10):
        with file(4 * PAGE) as fd, eventfds(min(vectors[index], 8)) as fds:
            map_one(peer, BASE, 4 * PAGE, fd)
            if fds:
                peer.ask(set_irqs(index, ASSIGN, 0, len(fds)), fds)
        peer.close()
        peer = target.open()
    if (after := target.descriptors(peer)) > before + 2:
        raise Wrong(f"{before} descriptors in the server, as before", f"{after} after 10 clients")


@point(
    "P118a",
    source="Socket disconnection: a server may take the next client; QEMU's restart needs it",
    matters="every end of a VMM costs the device: someone has to start the server again",
    profiles=(SPEC, ROBUST),
)
def next_clients(target: Target) -> None:
    """The next client is served by the same process, and the one after it."""
    process = None
    for number in range(CYCLES):
        try:
            peer = target.open()
        except PeerLost as error:
            raise Wrong(f"client {number + 1} to be served", str(error)) from error
        if number and target.process is not process:
            raise Wrong(
                "the server to take the next client", "that it ends when its client goes; it was started anew"
            )
        process = target.process
        in_step(peer, f"client {number}")
        peer.close()


@point(
    "P118b",
    source="A connection that has ended leaves nothing behind",
    matters="a server runs out of descriptors after some reboots",
    profiles=(ROBUST,),
)
def clients_do_not_leak(target: Target) -> None:
    """Clients that come and go leak nothing."""
    stays(target)
    peer = target.open()
    before = target.descriptors(peer)
    for _ in range(CYCLES):
        peer.close()
        peer = target.open()
    if (after := target.descriptors(peer)) > before + 2:
        raise Wrong(f"{before} descriptors in the server, as before", f"{after} after {CYCLES} clients")


@point(
    "P119",
    source="Backend program conventions: a back end ends cleanly on SIGTERM",
    matters="the manager of the machine waits, then kills; the socket's file stays",
    profiles=(SPEC, QEMU),
)
def ends_on_sigterm(target: Target) -> None:
    """SIGTERM ends the server within a second, and its socket goes."""
    if target.command is None:
        raise NotApplicable("only a server that is started by --command can be ended")
    peer = target.open()
    peer.close()
    target.open().close()
    process = target.process
    assert process is not None
    process.send_signal(signal.SIGTERM)
    try:
        status = process.wait(1.0)
    except subprocess.TimeoutExpired:
        target.stop()
        raise Wrong("the end within a second after SIGTERM", "the server runs on") from None
    target.process = None
    if status not in (0, -signal.SIGTERM):
        raise Wrong("exit status 0, or the end by SIGTERM", f"exit status {status}")
    if os.path.exists(target.path):
        raise Wrong("the socket's file to be removed", "that it is still there")


unseen("P120", "Several devices live in one process", "one socket shows one device")
unseen(
    "P121", "A server fits into somebody else's event loop", "it is about the server's programming interface"
)
