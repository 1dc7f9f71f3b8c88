"""Get Log Page, and the pages about errors, health and what is supported (NVMe Base 2.0, 5.16)."""

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from outboard.devices.nvme import ana, layouts, lba_status, placement_reports, reservation_log, vitals
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.error_log import ENTRY_SIZE
from outboard.devices.nvme.features import FEATURES
from outboard.devices.nvme.persistent_events import persistent_event_log
from outboard.devices.nvme.placement import ENDURANCE_GROUP
from outboard.devices.nvme.spec import BROADCAST, Csi, LogId
from outboard.devices.nvme.status import CommandFailed, Status
from outboard.devices.nvme.transfer import deliver
from outboard.devices.nvme.zone_events import changed_zones

if TYPE_CHECKING:
    from outboard.devices.nvme.state import State

ENDURANCE_UNIT = 1_000_000_000
"""Bytes that the endurance group log counts as one."""

"""All there is belongs to this one."""

_SUPPORTED, _INDEXED = 1 << 0, 1 << 1
_NAMESPACE_SCOPE, _CONTROLLER_SCOPE = 1 << 20, 1 << 21

LogPage = Callable[["State", Command], bytes]
"""Gives the whole of a page, of which a host reads what it likes."""


def get_log_page(state: "State", command: Command) -> int:
    """Execute Get Log Page. What lies behind the end of a page reads as zeros."""
    log = command.cdw10 & 0xFF
    retain = bool(command.cdw10 >> 15 & 1)
    size = ((command.cdw10 >> 16 | (command.cdw11 & 0xFFFF) << 16) + 1) * 4
    page = LOG_PAGES.get(log)
    if page is None or not _offered(state, log):
        raise CommandFailed(Status.INVALID_LOG_PAGE, f"there is no log page {log:#x}", location=40)
    if size > state.limits.transfer:
        raise CommandFailed(
            Status.INVALID_FIELD, f"{size} bytes of log are more than MDTS allows", location=42
        )
    offset = _offset(command, log)
    data = page(state, command)
    if offset & 3 or offset > len(data):
        raise CommandFailed(
            Status.INVALID_FIELD, f"offset {offset:#x} is not in a log of {len(data):#x} bytes", location=48
        )
    deliver(state.bus, command, data[offset : offset + size].ljust(size, b"\0"))
    if not retain:
        state.events.log_was_read(LogId(log), command.nsid)
        if log in WHEN_READ:
            WHEN_READ[log](state, command)
    return 0


def _offered(state: "State", log: int) -> bool:
    if log in placement_reports.LOG_PAGES:
        return state.subsystem.placement is not None
    return log in LOG_PAGES


def _offset(command: Command, log: int) -> int:
    """Where to begin, in bytes: the host gives that, or the number of an entry."""
    offset = command.cdw12 | command.cdw13 << 32
    if not command.cdw14 >> 23 & 1:
        return offset
    if log not in ENTRIES:
        raise CommandFailed(
            Status.INVALID_FIELD, f"log page {log:#x} is not indexed by entry", location=58, bit=7
        )
    return offset * ENTRIES[log]


def _supported(state: "State", command: Command) -> bytes:
    return struct.pack("<256I", *(_support(log) if _offered(state, log) else 0 for log in range(256)))


def _support(log: int) -> int:
    return _SUPPORTED | (log in ENTRIES) * _INDEXED | PARAMETERS.get(log, 0) << 16


def _errors(state: "State", command: Command) -> bytes:
    return b"".join(state.errors.entries).ljust(ENTRY_SIZE * state.limits.error_entries, b"\0")


def _health(state: "State", command: Command) -> bytes:
    if command.nsid not in (0, BROADCAST):
        raise CommandFailed(Status.INVALID_FIELD, "health is the controller's, not a namespace's", location=4)
    return vitals.page(state)


def _firmware(state: "State", command: Command) -> bytes:
    return state.subsystem.firmware.log(state.identity.firmware)


def _changed_namespaces(state: "State", command: Command) -> bytes:
    changed = sorted(state.changed_namespaces)
    if len(changed) > 1024:
        changed = [BROADCAST]
    return struct.pack(f"<{len(changed)}I", *changed).ljust(4096, b"\0")


def _effects(state: "State", command: Command) -> bytes:
    csi = command.cdw14 >> 24
    if csi not in (Csi.NVM, Csi.ZONED):
        raise CommandFailed(Status.INVALID_FIELD, f"there is no command set {csi:#x}", location=59)
    effects = [0] * 1024
    for opcode, admin in state.commands.admin.items():
        effects[opcode] = _SUPPORTED | admin.effects
    for opcode, io in state.commands.io.items():
        if io.csi in (None, csi):
            effects[256 + opcode] = _SUPPORTED | io.effects
    return struct.pack("<1024I", *effects)


def _endurance_group(state: "State", command: Command) -> bytes:
    if command.cdw11 >> 16 != ENDURANCE_GROUP:
        raise CommandFailed(
            Status.INVALID_FIELD, f"there is no endurance group {command.cdw11 >> 16}", location=46
        )
    subsystem, drive = state.subsystem, state.subsystem.vitals
    everybody = list(subsystem.controllers.values())
    reads, writes, bytes_read, bytes_written = map(
        sum, zip(*(each.health.totals for each in everybody), strict=True)
    )
    written = -(-bytes_written // ENDURANCE_UNIT)
    media = subsystem.placement.media_bytes if subsystem.placement is not None else bytes_written
    return layouts.ENDURANCE_GROUP_LOG.encode(
        critical_warning=drive.warnings & (vitals.SPARE | vitals.RELIABILITY | vitals.READ_ONLY),
        available_spare=drive.spare,
        spare_threshold=drive.spare_threshold,
        percentage_used=drive.percentage_used,
        data_units_read=-(-bytes_read // ENDURANCE_UNIT),
        data_units_written=written,
        media_units_written=-(-media // ENDURANCE_UNIT),
        host_read_commands=reads,
        host_write_commands=writes,
        media_errors=sum(each.health.media_errors for each in everybody),
        error_log_entries=sum(each.errors.count for each in everybody),
        total_capacity=sum(space.storage.size for space in subsystem.namespaces.values()),
    )


def _feature_effects(state: "State", command: Command) -> bytes:
    effects = [0] * 256
    for fid, feature in FEATURES.items():
        scope = _NAMESPACE_SCOPE if feature.namespace_specific else _CONTROLLER_SCOPE
        effects[fid] = _SUPPORTED | scope if feature.offered(state) else 0
    return struct.pack("<256I", *effects)


def _management_effects(state: "State", command: Command) -> bytes:
    """All zero: no command of the management interface can be sent by way of a controller."""
    return bytes(4096)


def _forget_changes(state: "State", command: Command) -> None:
    state.changed_namespaces.clear()


def _forget_zones(state: "State", command: Command) -> None:
    state.changed_zones.pop(command.nsid, None)


LOG_PAGES: dict[int, LogPage] = {
    LogId.SUPPORTED: _supported,
    LogId.ERROR_INFORMATION: _errors,
    LogId.HEALTH: _health,
    LogId.FIRMWARE_SLOT: _firmware,
    LogId.CHANGED_NAMESPACES: _changed_namespaces,
    LogId.COMMANDS_EFFECTS: _effects,
    LogId.SELF_TEST: lambda state, command: state.subsystem.self_tests.log(state.identity.cntlid),
    LogId.SANITIZE_STATUS: lambda state, command: state.subsystem.sanitizing.log(),
    **placement_reports.LOG_PAGES,
    LogId.NAMESPACE_ACCESS: ana.log,
    LogId.RESERVATION_NOTIFICATION: reservation_log.log,
    LogId.HOST_TELEMETRY: lambda state, command: state.telemetry.host_log(state, command),
    LogId.CONTROLLER_TELEMETRY: lambda state, command: state.telemetry.controller_log(state, command),
    LogId.ENDURANCE_GROUP: _endurance_group,
    LogId.PERSISTENT_EVENTS: persistent_event_log,
    LogId.LBA_STATUS: lba_status.log,
    LogId.FEATURE_EFFECTS: _feature_effects,
    LogId.MANAGEMENT_EFFECTS: _management_effects,
    LogId.CHANGED_ZONES: changed_zones,
}

ENTRIES: dict[int, int] = {LogId.ERROR_INFORMATION: ENTRY_SIZE, LogId.CHANGED_NAMESPACES: 4}
"""The pages that are lists, of which a host may name an entry to begin with; and the bytes of an entry."""

PARAMETERS: dict[int, int] = {LogId.PERSISTENT_EVENTS: 1}
"""What the list of supported pages says beside: a context can be established while its header is read."""

WHEN_READ: dict[int, Callable[["State", Command], None]] = {
    LogId.CHANGED_NAMESPACES: _forget_changes,
    LogId.CONTROLLER_TELEMETRY: lambda state, command: state.telemetry.controller_log_was_read(),
    LogId.RESERVATION_NOTIFICATION: lambda state, command: state.reservation_log.was_read(),
    LogId.CHANGED_ZONES: _forget_zones,
}
"""What else happens when a host has read a page and does not ask to retain its event."""
