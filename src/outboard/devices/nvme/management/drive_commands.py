"""Format NVM, Sanitize and Device Self-test (NVMe Base 2.0, 5.14, 5.24 and 5.9).

Format NVM completes when the namespaces are formatted. The other two begin something in the background.
"""

from typing import TYPE_CHECKING

from outboard.devices.nvme import layouts
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.command_set import (
    ALONE,
    ALONE_IN_NAMESPACE,
    CHANGES_BLOCKS,
    CHANGES_NAMESPACE,
    AdminCommand,
)
from outboard.devices.nvme.management.sanitizing import CAPABILITIES, Request
from outboard.devices.nvme.management.setting import Setting
from outboard.devices.nvme.namespace import Namespace
from outboard.devices.nvme.spec import (
    BROADCAST,
    AdminOpcode,
    PersistentEvent,
    SanitizeAction,
    SelfTest,
    SelfTestResult,
)
from outboard.devices.nvme.status import CommandFailed, Status

if TYPE_CHECKING:
    from outboard.devices.nvme.state import State

FORMAT_ATTRIBUTES = 0b0100
"""FNA: each namespace is formatted by itself, or all at once; cryptographic erase is offered."""

MOST_SECURE_ERASE = 2
"""SES: none, of user data, cryptographic."""


def format_nvm(state: "State", command: Command) -> None:
    """Execute Format NVM."""
    dword = command.cdw10
    if command.nsid == BROADCAST:
        spaces = list(state.namespaces.values())
    else:
        spaces = [state.namespace(command.nsid)]
    setting = Setting(
        format=dword & 0xF | (dword >> 12 & 3) << 4,
        extended=bool(dword >> 4 & 1),
        protection=dword >> 5 & 7,
        first=bool(dword >> 8 & 1),
    )
    erase = dword >> 9 & 7
    if erase > MOST_SECURE_ERASE:
        raise CommandFailed(Status.INVALID_FIELD, f"secure erase {erase} is reserved", location=41)
    for space in spaces:
        setting.check(space.csi, location=40)
        if space.zones is not None and setting != Setting.of(space):
            raise CommandFailed(
                Status.INVALID_FORMAT, f"the zones of namespace {space.nsid} need its format", location=40
            )
        if not setting.blocks(space.storage.size):
            raise CommandFailed(
                Status.INVALID_FORMAT, f"namespace {space.nsid} holds no block of that format", location=40
            )
        _check_free(space)
    if spaces:
        setting.check_placed(spaces, state.subsystem.placement, location=40)
    state.subsystem.self_tests.abort_for([space.nsid for space in spaces], SelfTestResult.FORMATTED)
    start = layouts.FORMAT_START_EVENT.encode(nsid=command.nsid, fna=FORMAT_ATTRIBUTES, cdw10=dword)
    state.remember(PersistentEvent.FORMAT_START, start)
    state.events.defer(command.cid, state.subsystem.formatting.begin(spaces, setting))


def sanitize(state: "State", command: Command) -> int:
    """Execute Sanitize."""
    subsystem, request = state.subsystem, Request(command.cdw10, command.cdw11)
    sanitizing = subsystem.sanitizing
    if request.action not in SanitizeAction.__members__.values():
        raise CommandFailed(Status.INVALID_FIELD, f"SANACT {request.action} is reserved", location=40)
    barrier = sanitizing.barrier
    if barrier == Status.SANITIZE_IN_PROGRESS:
        raise CommandFailed(barrier, "a sanitize operation is under way")
    leaves = request.action == SanitizeAction.EXIT_FAILURE_MODE
    restricted = barrier is not None and not sanitizing.request.unrestricted
    if restricted and (leaves or request.unrestricted):
        raise CommandFailed(
            Status.SANITIZE_FAILED, "what failed was restricted: only another of that kind ends this"
        )
    if leaves:
        sanitizing.leave_failure()
        return 0
    if subsystem.firmware.pending:
        raise CommandFailed(Status.FIRMWARE_NEEDS_CONTROLLER_RESET, "firmware waits to be activated")
    if barrier is None:
        for space in subsystem.namespaces.values():
            _check_free(space)
    subsystem.self_tests.abort(SelfTestResult.SANITIZED)
    start = layouts.SANITIZE_START_EVENT.encode(
        sanicap=CAPABILITIES, cdw10=command.cdw10, cdw11=command.cdw11
    )
    state.remember(PersistentEvent.SANITIZE_START, start)
    sanitizing.begin(request)
    return 0


def device_self_test(state: "State", command: Command) -> int:
    """Execute Device Self-test. NSID 0: of the controller alone; all ones: of every namespace it has."""
    code, tests = command.cdw10 & 0xF, state.subsystem.self_tests
    if code == SelfTest.ABORT:
        tests.abort(SelfTestResult.ABORTED)
        return 0
    if code not in (SelfTest.SHORT, SelfTest.EXTENDED):
        raise CommandFailed(Status.INVALID_FIELD, f"there is no self-test {code:#x}", location=40)
    if command.nsid == BROADCAST:
        spaces = list(state.namespaces.values())
    else:
        spaces = [state.namespace(command.nsid)] if command.nsid else []
    if tests.under_way:
        raise CommandFailed(Status.SELF_TEST_IN_PROGRESS, "a self-test is under way")
    for space in spaces:
        if space.barred is not None:
            raise CommandFailed(space.barred, f"namespace {space.nsid} is being formatted", location=4)
    tests.begin(state.identity.cntlid, code, command.nsid, spaces)
    return 0


def _check_free(space: Namespace) -> None:
    """Raise `CommandFailed` unless a namespace may be erased now."""
    if space.barred is not None:
        raise CommandFailed(space.barred, f"namespace {space.nsid} is being formatted", location=4)
    if space.write_protection:
        raise CommandFailed(
            Status.NAMESPACE_WRITE_PROTECTED, f"namespace {space.nsid} is write protected", location=4
        )


COMMANDS: dict[int, AdminCommand] = {
    AdminOpcode.FORMAT_NVM: AdminCommand(
        format_nvm, effects=CHANGES_BLOCKS | CHANGES_NAMESPACE | ALONE_IN_NAMESPACE
    ),
    AdminOpcode.SANITIZE: AdminCommand(sanitize, effects=CHANGES_BLOCKS | ALONE),
    AdminOpcode.DEVICE_SELF_TEST: AdminCommand(device_self_test),
}
