"""Log pages: supported pages, errors, health, firmware slots, changed namespaces, command effects.

NVMe Base 2.0, 5.16. Health counters are those of this process; nothing is kept over a restart.
"""

import struct
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from outboard.devices.nvme import layouts
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.spec import BROADCAST, AdminOpcode, IoOpcode, LogId
from outboard.devices.nvme.status import CommandFailed, Status
from outboard.devices.nvme.transfer import deliver

if TYPE_CHECKING:
    from outboard.devices.nvme.state import State

TEMPERATURE = 310
"""Kelvins: what a drive at rest says."""

DATA_UNIT = 512_000
"""Bytes that SMART counts as one."""

_SUPPORTED, _CHANGES_BLOCKS = 1 << 0, 1 << 1


@dataclass(slots=True)
class Health:
    """Counters of the SMART / Health page, of the commands executed here.

    ``extra`` gives what was counted elsewhere: reads, writes, bytes read, bytes written.
    """

    bytes_read: int = 0
    bytes_written: int = 0
    reads: int = 0
    writes: int = 0
    media_errors: int = 0
    since: float = field(default_factory=time.monotonic)
    extra: Callable[[], tuple[int, int, int, int]] | None = None

    @property
    def totals(self) -> tuple[int, int, int, int]:
        """Reads, writes, bytes read, bytes written, wherever they were counted."""
        reads, writes, bytes_read, bytes_written = self.extra() if self.extra else (0, 0, 0, 0)
        return (
            self.reads + reads,
            self.writes + writes,
            self.bytes_read + bytes_read,
            self.bytes_written + bytes_written,
        )


class ErrorLog:
    """The last ``capacity`` commands that failed, newest first, and how many there ever were."""

    def __init__(self, capacity: int) -> None:
        self.count = 0
        self.entries: deque[bytes] = deque(maxlen=capacity)

    def add(self, sqid: int, command: Command, status: int, failure: CommandFailed, lba: int) -> None:
        """Remember a failed command; ``status`` is its 15-bit status field."""
        self.count += 1
        entry = layouts.ERROR_ENTRY.encode(
            error_count=self.count,
            sqid=sqid,
            cid=command.cid,
            status=status << 1,
            parameter_location=0xFFFF if failure.location is None else failure.location,
            lba=lba,
            nsid=command.nsid,
        )
        self.entries.appendleft(entry)


def get_log_page(state: "State", command: Command) -> int:
    """Execute Get Log Page. What lies behind the end of a page reads as zeros."""
    log = command.cdw10 & 0xFF
    retain = bool(command.cdw10 >> 15 & 1)
    size = ((command.cdw10 >> 16 | (command.cdw11 & 0xFFFF) << 16) + 1) * 4
    offset = command.cdw12 | command.cdw13 << 32
    page = _PAGES.get(log)
    if page is None:
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
    return 0


def _supported(state: "State", command: Command) -> bytes:
    return struct.pack("<256I", *(_SUPPORTED if log in _PAGES else 0 for log in range(256)))


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
    if command.cdw14 >> 24:
        raise CommandFailed(
            Status.INVALID_FIELD, f"there is no command set {command.cdw14 >> 24:#x}", location=59
        )
    changing = (IoOpcode.WRITE, IoOpcode.WRITE_ZEROES, IoOpcode.DATASET_MANAGEMENT)
    effects = [0] * 1024
    for admin in AdminOpcode:
        effects[admin] = _SUPPORTED
    for opcode in IoOpcode:
        effects[256 + opcode] = _SUPPORTED | (_CHANGES_BLOCKS if opcode in changing else 0)
    return struct.pack("<1024I", *effects)


_PAGES: dict[int, Callable[["State", Command], bytes]] = {
    LogId.SUPPORTED: _supported,
    LogId.ERROR_INFORMATION: _errors,
    LogId.HEALTH: _health,
    LogId.FIRMWARE_SLOT: _firmware,
    LogId.CHANGED_NAMESPACES: _changed_namespaces,
    LogId.COMMANDS_EFFECTS: _effects,
}
