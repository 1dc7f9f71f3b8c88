"""Firmware Image Download and Commit, Security Send and Receive (NVMe Base 2.0, 5.11, 5.12, 5.25, 5.26)."""

import struct
from typing import TYPE_CHECKING

from outboard.devices.nvme.command import Command
from outboard.devices.nvme.command_set import CHANGES_CONTROLLER, AdminCommand
from outboard.devices.nvme.layouts import FIRMWARE_COMMIT_EVENT
from outboard.devices.nvme.management.firmware import GRANULARITY, MOST_BYTES, OPERATION, SLOTS
from outboard.devices.nvme.spec import AdminOpcode, CommitAction, PersistentEvent
from outboard.devices.nvme.status import CommandFailed, Status
from outboard.devices.nvme.transfer import deliver, fetch

if TYPE_CHECKING:
    from outboard.devices.nvme.state import State

INFORMATION = 0x00
"""The security protocol that says which there are: itself alone (SPC-5)."""

SUPPORTED, CERTIFICATE = 0x0000, 0x0001
"""What it can be asked (SPSP)."""


def firmware_download(state: "State", command: Command) -> int:
    """Execute Firmware Image Download."""
    size, offset = (command.cdw10 + 1) * 4, command.cdw11 * 4
    if size > state.limits.transfer:
        raise CommandFailed(Status.INVALID_FIELD, f"{size} bytes are more than MDTS allows", location=40)
    for what, value, location in (("size", size, 40), ("offset", offset, 44)):
        if value % GRANULARITY:
            raise CommandFailed(
                Status.INVALID_FIELD, f"{what} {value} is no multiple of {GRANULARITY}", location=location
            )
    if offset + size > MOST_BYTES:
        raise CommandFailed(
            Status.INVALID_FIELD, f"an image has {MOST_BYTES} bytes at most, not {offset + size}", location=44
        )
    state.subsystem.firmware.download(state.identity.cntlid, offset, fetch(state.bus, command, size))
    return 0


def firmware_commit(state: "State", command: Command) -> int | None:
    """Execute Firmware Commit, and remember how it ended."""
    status = Status.SUCCESS
    try:
        return _commit(state, command)
    except CommandFailed as failure:
        status = failure.status
        raise
    finally:
        firmware, built_in, slot = state.subsystem.firmware, state.identity.firmware, command.cdw10 & 7
        event = FIRMWARE_COMMIT_EVENT.encode(
            old=firmware.revision(built_in).encode().ljust(8),
            new=firmware.revision_in(slot, built_in).encode().ljust(8),
            action=command.cdw10 >> 3 & 7,
            slot=slot,
            status_code_type=status >> 8,
            status_code=status & 0xFF,
        )
        state.remember(PersistentEvent.FIRMWARE_COMMIT, event)


def _commit(state: "State", command: Command) -> int | None:
    """What was downloaded goes into a slot, or what is there becomes active."""
    firmware, cntlid = state.subsystem.firmware, state.identity.cntlid
    slot, action = command.cdw10 & 7, command.cdw10 >> 3 & 7
    if action not in CommitAction.__members__.values():
        raise CommandFailed(Status.INVALID_FIELD, f"there is no commit action {action}", location=40)
    if slot > SLOTS:
        raise CommandFailed(Status.INVALID_FIRMWARE_SLOT, f"there are {SLOTS} slots, no {slot}", location=40)
    if firmware.activating:
        raise CommandFailed(Status.FIRMWARE_ACTIVATION_PROHIBITED, "other firmware is being activated")
    replaces = action in (CommitAction.REPLACE, CommitAction.REPLACE_AND_ACTIVATE)
    if replaces or (action == CommitAction.ACTIVATE_NOW and firmware.holds_download(cntlid)):
        slot = firmware.store_image(cntlid, slot)
    if action == CommitAction.REPLACE:
        return 0
    if slot == 0:
        raise CommandFailed(Status.INVALID_FIRMWARE_SLOT, "slot 0 holds no image to activate", location=40)
    firmware.check_slot(slot)
    if action == CommitAction.ACTIVATE_NOW:
        state.events.defer(command.cid, OPERATION)
        firmware.activate_now(slot)
        return None
    firmware.activate_at_reset(slot)
    # It went well: what is left to do is no failure.
    raise CommandFailed(
        Status.FIRMWARE_NEEDS_CONTROLLER_RESET,
        f"slot {slot} becomes active with the next reset",
        field=Status.FIRMWARE_NEEDS_CONTROLLER_RESET,
    )


def security_send(state: "State", command: Command) -> int:
    """Execute Security Send: no protocol takes anything."""
    protocol = command.cdw10 >> 24
    raise CommandFailed(Status.INVALID_FIELD, f"security protocol {protocol:#x} takes nothing", location=43)


def security_receive(state: "State", command: Command) -> int:
    """Execute Security Receive: which protocols there are, and that there is no certificate."""
    protocol, specific, size = command.cdw10 >> 24, command.cdw10 >> 8 & 0xFFFF, command.cdw11
    if protocol != INFORMATION:
        raise CommandFailed(
            Status.INVALID_FIELD, f"security protocol {protocol:#x} is not offered", location=43
        )
    if specific == SUPPORTED:
        answer = struct.pack(">6xHB", 1, INFORMATION)
    elif specific == CERTIFICATE:
        answer = struct.pack(">2xH", 0)
    else:
        raise CommandFailed(Status.INVALID_FIELD, f"SPSP {specific:#x} is reserved", location=41)
    if size > state.limits.transfer:
        raise CommandFailed(Status.INVALID_FIELD, f"{size} bytes are more than MDTS allows", location=44)
    if size:
        deliver(state.bus, command, answer[:size].ljust(size, b"\0"))
    return 0


COMMANDS: dict[int, AdminCommand] = {
    AdminOpcode.FIRMWARE_DOWNLOAD: AdminCommand(firmware_download),
    AdminOpcode.FIRMWARE_COMMIT: AdminCommand(firmware_commit, effects=CHANGES_CONTROLLER),
    AdminOpcode.SECURITY_SEND: AdminCommand(security_send),
    AdminOpcode.SECURITY_RECEIVE: AdminCommand(security_receive),
}
