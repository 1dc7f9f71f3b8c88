"""How a drive is: its temperature, its wear, its warnings; what a host is told when they change.

NVMe Base 2.0, 5.16.1.3 (critical warnings), 5.27.1.3 (temperature thresholds). A virtual drive is well until
whoever runs it says otherwise (`Subsystem.set_vitals`). Wear is kept in the store, the temperature is not.
"""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from outboard.devices.nvme import layouts
from outboard.devices.nvme.admission import WRITES, Access, Condition
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.events import health_event
from outboard.devices.nvme.feature_values import OVER, UNDER
from outboard.devices.nvme.namespace import Namespace
from outboard.devices.nvme.spec import FeatureId, HealthEvent, PersistentEvent
from outboard.devices.nvme.status import CommandFailed, Status
from outboard.devices.nvme.store import Store
from outboard.errors import DefinitionError

if TYPE_CHECKING:
    from outboard.devices.nvme.state import State

SECTION = "vitals"

SPARE, TEMPERATURE, RELIABILITY, READ_ONLY, BACKUP, PERSISTENT_MEMORY = (1 << bit for bit in range(6))
"""Critical warnings, as bits of the SMART / Health page and of Asynchronous Event Configuration."""

DATA_UNIT = 512_000
"""Bytes that SMART counts as one."""

_LIMITS = {"temperature": 0xFFFF, "spare": 100, "spare_threshold": 100, "percentage_used": 255}


@dataclass(frozen=True, slots=True)
class Vitals:
    """Temperature in kelvins; spare blocks left and the least there should be, and wear, in percent.

    The rest are critical warnings: the media cannot be relied on, can only be read (writes fail then), the
    backup of volatile memory has failed, persistent memory can only be read or is unreliable.

    Raises `DefinitionError` for what cannot be.

    >>> Vitals(temperature=353).spare
    100
    """

    temperature: int = 310
    spare: int = 100
    spare_threshold: int = 10
    percentage_used: int = 0
    unreliable: bool = False
    read_only: bool = False
    backup_failed: bool = False
    persistent_memory_failed: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value, most = getattr(self, field.name), _LIMITS.get(field.name, 1)
            if not isinstance(value, int) or not 0 <= value <= most:
                raise DefinitionError(f"{field.name} is {value!r}: it is 0 to {most}")

    @property
    def warnings(self) -> int:
        """The critical warnings, but the one about the temperature, which depends on thresholds."""
        return (
            (self.spare < self.spare_threshold) * SPARE
            | self.unreliable * RELIABILITY
            | self.read_only * READ_ONLY
            | self.backup_failed * BACKUP
            | self.persistent_memory_failed * PERSISTENT_MEMORY
        )


def load(store: Store) -> Vitals:
    """The vitals of a drive that was switched on: as it was, at its usual temperature."""
    known = {field.name for field in fields(Vitals)} - {"temperature"}
    return Vitals(**{name: value for name, value in store.section(SECTION).items() if name in known})


def keep(store: Store, vitals: Vitals) -> None:
    """Make durable what outlives a power cycle. Raises `SetupError`."""
    store.put(SECTION, {f.name: getattr(vitals, f.name) for f in fields(Vitals) if f.name != "temperature"})


def warnings(state: "State") -> int:
    """The critical warnings of a controller now."""
    vitals, features = state.subsystem.vitals, state.features
    too_warm = vitals.temperature >= features.threshold(OVER)
    too_cold = vitals.temperature <= features.threshold(UNDER)
    return vitals.warnings | (too_warm or too_cold) * TEMPERATURE


def account(state: "State") -> None:
    """Add the time that went by to the counters; to be called before what they depend on changes."""
    light, heavy = _throttling(state)
    state.health.account(
        state.subsystem.vitals.temperature,
        state.limits.warning_temperature,
        state.limits.critical_temperature,
        light,
        heavy,
    )


def page(state: "State") -> bytes:
    """The SMART / Health page."""
    account(state)
    drive, health, counters = state.subsystem.vitals, state.health, state.health.counters
    reads, writes, bytes_read, bytes_written = health.totals
    return layouts.HEALTH_LOG.encode(
        critical_warning=warnings(state),
        temperature=drive.temperature,
        available_spare=drive.spare,
        spare_threshold=drive.spare_threshold,
        percentage_used=drive.percentage_used,
        data_units_read=-(-bytes_read // DATA_UNIT),
        data_units_written=-(-bytes_written // DATA_UNIT),
        host_read_commands=reads,
        host_write_commands=writes,
        busy_minutes=int(counters.busy) // 60,
        power_cycles=counters.power_cycles,
        power_on_hours=int(counters.power_on) // 3600,
        unsafe_shutdowns=counters.unsafe_shutdowns,
        media_errors=health.media_errors,
        error_log_entries=state.errors.count,
        warning_temperature_minutes=int(counters.warm) // 60,
        critical_temperature_minutes=int(counters.hot) // 60,
        light_throttlings=counters.light_throttlings,
        heavy_throttlings=counters.heavy_throttlings,
        light_throttling_seconds=int(counters.throttled_lightly),
        heavy_throttling_seconds=int(counters.throttled_heavily),
    )


def check(state: "State") -> None:
    """Tell the host of critical warnings that are new, or that it wants to hear of only now."""
    now = warnings(state)
    wanted = now & state.features.wanted_events
    new = wanted & ~state.health.warnings
    state.health.warnings = wanted
    for warning in (bit for bit in (SPARE, TEMPERATURE) if new & bit):
        info = HealthEvent.SPARE if warning == SPARE else HealthEvent.TEMPERATURE
        state.report(health_event(info, warning))
    if others := new & ~(SPARE | TEMPERATURE):
        state.report(health_event(HealthEvent.RELIABILITY, others))


def changed(state: "State", before: Vitals) -> None:
    """The vitals of a controller's subsystem are not as they were."""
    now = state.subsystem.vitals
    counters = state.health.counters
    light, heavy = _throttling(state)
    counters.light_throttlings += _passed(light, before, now)
    counters.heavy_throttlings += _passed(heavy, before, now)
    if new := now.warnings & ~before.warnings:
        state.telemetry.capture(state, f"critical warning {new:#x}")
    for number, limit in enumerate((state.limits.warning_temperature, state.limits.critical_temperature)):
        if _passed(limit, before, now):
            over = min(now.temperature - limit, 0xFF)
            state.remember(PersistentEvent.THERMAL_EXCURSION, bytes([over, number]))
    check(state)


def _throttling(state: "State") -> tuple[int, int]:
    """The temperatures at which the host wants the controller to throttle lightly and heavily; 0: none."""
    value = state.features.get(FeatureId.HOST_THERMAL_MANAGEMENT)
    return value >> 16, value & 0xFFFF


def _passed(limit: int, before: Vitals, now: Vitals) -> bool:
    return bool(limit) and before.temperature < limit <= now.temperature


def _check_media(state: "State", space: Namespace, command: Command, access: Access) -> None:
    if access is Access.WRITE and state.subsystem.vitals.read_only:
        raise CommandFailed(Status.WRITE_TO_READ_ONLY_RANGE, "the media can only be read")


READ_ONLY_MEDIA = Condition(
    _check_media, lambda state, space: WRITES if state.subsystem.vitals.read_only else 0
)
"""What is in the way of a write to media that can only be read."""


def changes(vitals: Vitals, values: dict[str, Any]) -> dict[str, Any]:
    """Which of ``values`` are not so already. Raises `DefinitionError` for a name that is none."""
    known = {field.name for field in fields(Vitals)}
    if unknown := set(values) - known:
        raise DefinitionError(
            f"a drive has no {', '.join(sorted(unknown))}: it has {', '.join(sorted(known))}"
        )
    return {name: value for name, value in values.items() if getattr(vitals, name) != value}
