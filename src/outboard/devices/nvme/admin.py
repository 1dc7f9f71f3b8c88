"""The admin commands (NVMe Base 2.0, 5): which opcode is executed by whom, and the small ones."""

from outboard.devices.nvme.command import Command
from outboard.devices.nvme.features import get_features, set_features
from outboard.devices.nvme.identify import identify
from outboard.devices.nvme.logs import get_log_page
from outboard.devices.nvme.queue_commands import create_io_cq, create_io_sq, delete_io_cq, delete_io_sq
from outboard.devices.nvme.spec import PAGE, AdminOpcode
from outboard.devices.nvme.state import Handler, State
from outboard.devices.nvme.status import CommandFailed, Status
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


ADMIN_COMMANDS: dict[int, Handler] = {
    AdminOpcode.DELETE_IO_SQ: delete_io_sq,
    AdminOpcode.CREATE_IO_SQ: create_io_sq,
    AdminOpcode.GET_LOG_PAGE: get_log_page,
    AdminOpcode.DELETE_IO_CQ: delete_io_cq,
    AdminOpcode.CREATE_IO_CQ: create_io_cq,
    AdminOpcode.IDENTIFY: identify,
    AdminOpcode.ABORT: abort,
    AdminOpcode.SET_FEATURES: set_features,
    AdminOpcode.GET_FEATURES: get_features,
    AdminOpcode.ASYNC_EVENT_REQUEST: async_event_request,
    AdminOpcode.KEEP_ALIVE: keep_alive,
    AdminOpcode.DOORBELL_BUFFER_CONFIG: doorbell_buffer_config,
}

PAUSING = frozenset(
    {
        AdminOpcode.DELETE_IO_SQ,
        AdminOpcode.CREATE_IO_SQ,
        AdminOpcode.DELETE_IO_CQ,
        AdminOpcode.CREATE_IO_CQ,
        AdminOpcode.ABORT,
        AdminOpcode.DOORBELL_BUFFER_CONFIG,
    }
)
"""Commands that need the data plane to stand still."""
