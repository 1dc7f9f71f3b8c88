"""Log pages: supported pages, errors, health, firmware slots, changed namespaces, command effects.

NVMe Base 2.0, 5.16. Health counters are those of this process; nothing is kept over a restart.
"""

import struct
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from outboard.devices.nvme import ana, layouts, placement_reports, reservation_log
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.spec import BROADCAST, Csi, LogId
from outboard.devices.nvme.status import CommandFailed, Status
from outboard.devices.nvme.transfer import deliver
from outboard.devices.nvme.zone_events import changed_zones

if TYPE_CHECKING:
    from outboard.devices.nvme.state import State

TEMPERATURE = 310
"""Kelvins: what a drive at rest says."""

DATA_UNIT = 512_000
"""Bytes that SMART counts as one."""

_SUPPORTED = 1 << 0

LogPage = Callable[["State", Command], bytes]
"""Gives the whole of a page, of which a host reads what it likes."""


def get_log_page(state: "State", command: Command) -> int:
    """Execute Get Log Page. What lies behind the end of a page reads as zeros."""
    log = command.cdw10 & 0xFF
    retain = bool(command.cdw10 >> 15 & 1)
    size = ((command.cdw10 >> 16 | (command.cdw11 & 0xFFFF) << 16) + 1) * 4
    offset = command.cdw12 | command.cdw13 << 32
    page = LOG_PAGES.get(log)
    if page is None or not _offered(state, log):
        raise CommandFailed(Status.INVALID_LOG_PAGE, f"there is no log page {log:#x}", location=40)
    if size > state.limits.transfer:
        raise CommandFailed(
            Status.INVALID_FIELD, f"{size} bytes of log are more than MDTS allows", location=42
        )
    if command.cdw14 >> 23 & 1:
        raise CommandFailed(Status.INVALID_FIELD, "logs are not indexed by entry here", location=58)
    data = page(state, command)
    if offset & 3 or offset > len(data):
        raise CommandFailed(
            Status.INVALID_FIELD, f"offset {offset:#x} is not in a log of {len(data):#x} bytes", location=48
        )
    deliver(state.bus, command, data[offset : offset + size].ljust(size, b"\0"))
    if not retain:
        state.events.log_was_read(LogId(log))
        if log == LogId.CHANGED_NAMESPACES:
            state.changed_namespaces.clear()
        elif log == LogId.RESERVATION_NOTIFICATION:
            state.reservation_log.was_read()
        elif log == LogId.CHANGED_ZONES:
            state.changed_zones.pop(command.nsid, None)
    return 0


def _offered(state: "State", log: int) -> bool:
    if log in placement_reports.LOG_PAGES:
        return state.subsystem.placement is not None
    return log in LOG_PAGES


def _supported(state: "State", command: Command) -> bytes:
    return struct.pack("<256I", *(_SUPPORTED * _offered(state, log) for log in range(256)))


def _errors(state: "State", command: Command) -> bytes:
    return b"".join(state.errors.entries).ljust(64 * state.limits.error_entries, b"\0")


def _health(state: "State", command: Command) -> bytes:
    if command.nsid not in (0, BROADCAST):
        raise CommandFailed(Status.INVALID_FIELD, "health is the controller's, not a namespace's", location=4)
    health = state.health
    reads, writes, bytes_read, bytes_written = health.totals
    return layouts.HEALTH_LOG.encode(
        temperature=TEMPERATURE,
        available_spare=100,
        spare_threshold=10,
        data_units_read=-(-bytes_read // DATA_UNIT),
        data_units_written=-(-bytes_written // DATA_UNIT),
        host_read_commands=reads,
        host_write_commands=writes,
        power_cycles=1,
        power_on_hours=int(time.monotonic() - health.since) // 3600,
        unsafe_shutdowns=health.unsafe_shutdowns,
        media_errors=health.media_errors,
        error_log_entries=state.errors.count,
    )


def _firmware(state: "State", command: Command) -> bytes:
    return layouts.FIRMWARE_LOG.encode(active=1, slot1=state.identity.firmware.encode().ljust(8))


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


LOG_PAGES: dict[int, LogPage] = {
    LogId.SUPPORTED: _supported,
    LogId.ERROR_INFORMATION: _errors,
    LogId.HEALTH: _health,
    LogId.FIRMWARE_SLOT: _firmware,
    LogId.CHANGED_NAMESPACES: _changed_namespaces,
    LogId.COMMANDS_EFFECTS: _effects,
    **placement_reports.LOG_PAGES,
    LogId.NAMESPACE_ACCESS: ana.log,
    LogId.RESERVATION_NOTIFICATION: reservation_log.log,
    LogId.CHANGED_ZONES: changed_zones,
}
