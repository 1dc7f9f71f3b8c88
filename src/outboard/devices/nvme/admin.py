"""The admin commands (NVMe Base 2.0, 5): which opcode is executed by whom, and the small ones."""

from outboard.devices.nvme import placement_commands
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.command_set import CHANGES_CONTROLLER, AdminCommand
from outboard.devices.nvme.features import get_features, set_features
from outboard.devices.nvme.identify import identify
from outboard.devices.nvme.lba_status import get_lba_status
from outboard.devices.nvme.logs import get_log_page
from outboard.devices.nvme.management import drive_commands, firmware_commands, namespace_commands
from outboard.devices.nvme.queue_commands import create_io_cq, create_io_sq, delete_io_cq, delete_io_sq
from outboard.devices.nvme.spec import PAGE, AdminOpcode
from outboard.devices.nvme.state import State
from outboard.devices.nvme.status import CommandFailed, Status, status_field
from outboard.errors import DmaError

NOT_ABORTED = 1
"""Dword 0 of Abort: the command was not found, or it was too late."""


def abort(state: State, command: Command) -> int:
    """Execute Abort.

    Commands are executed one at a time, so what can be aborted is what waits: an Asynchronous Event
    Request, or a command that was submitted but not fetched.
    """
    sqid, cid = command.cdw10 & 0xFFFF, command.cdw10 >> 16
    sq = state.submission.get(sqid)
    if sq is None:
        raise CommandFailed(Status.INVALID_FIELD, f"there is no submission queue {sqid}", location=40)
    if sqid == 0 and state.events.abort(cid):
        return 0
    if state.abort_held(sq, cid):
        return 0
    if held := state.plane.withdraw_held(sq, lambda entry: Command.decode(entry).cid == cid):
        sq.cq.pending -= len(held)
        for _ in held:
            sq.cq.post(state.bus, sq, cid, status_field(Status.ABORT_REQUESTED), 0)
        return 0
    sq.look()
    try:
        waiting = sq.waiting_ids(state.bus)
    except DmaError:
        return NOT_ABORTED
    if cid not in waiting:
        return NOT_ABORTED
    sq.aborted = sq.aborted & waiting | {cid}
    return 0


def async_event_request(state: State, command: Command) -> None:
    """Execute Asynchronous Event Request: wait."""
    state.events.park(command.cid)


def doorbell_buffer_config(state: State, command: Command) -> int:
    """Execute Doorbell Buffer Config: from now on tails and heads are in guest memory."""
    for prp, location in ((command.prp1, 24), (command.prp2, 32)):
        if prp % PAGE:
            raise CommandFailed(
                Status.INVALID_FIELD, f"a doorbell buffer is a page, not at {prp:#x}", location=location
            )
    if command.prp1 == command.prp2:
        raise CommandFailed(Status.INVALID_FIELD, "both doorbell buffers are the same page", location=32)
    if not state.plane.shadowable:
        raise CommandFailed(Status.INVALID_OPCODE, "doorbell buffers are not offered", location=0)
    if not state.plane.set_shadow(command.prp1, command.prp2):
        raise CommandFailed(
            Status.INVALID_FIELD, "the doorbell buffers are not in memory that is shared", location=24
        )
    state.plane.place()
    return 0


def keep_alive(state: State, command: Command) -> int:
    """Execute Keep Alive: the timer never runs out, so there is nothing to wind up."""
    return 0


ADMIN_COMMANDS: dict[int, AdminCommand] = {
    AdminOpcode.DELETE_IO_SQ: AdminCommand(delete_io_sq, pausing=True),
    AdminOpcode.CREATE_IO_SQ: AdminCommand(create_io_sq, pausing=True),
    AdminOpcode.GET_LOG_PAGE: AdminCommand(get_log_page),
    AdminOpcode.DELETE_IO_CQ: AdminCommand(delete_io_cq, pausing=True),
    AdminOpcode.CREATE_IO_CQ: AdminCommand(create_io_cq, pausing=True),
    AdminOpcode.IDENTIFY: AdminCommand(identify),
    AdminOpcode.ABORT: AdminCommand(abort, pausing=True),
    AdminOpcode.SET_FEATURES: AdminCommand(set_features, effects=CHANGES_CONTROLLER),
    AdminOpcode.GET_FEATURES: AdminCommand(get_features),
    AdminOpcode.ASYNC_EVENT_REQUEST: AdminCommand(async_event_request),
    AdminOpcode.KEEP_ALIVE: AdminCommand(keep_alive),
    AdminOpcode.DOORBELL_BUFFER_CONFIG: AdminCommand(doorbell_buffer_config, pausing=True),
    **namespace_commands.COMMANDS,
    **drive_commands.COMMANDS,
    **firmware_commands.COMMANDS,
    AdminOpcode.GET_LBA_STATUS: AdminCommand(get_lba_status),
    **placement_commands.ADMIN_COMMANDS,
}
