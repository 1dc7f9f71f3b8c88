"""Features: what a host may set, and read back (NVMe Base 2.0, 5.27).

Nothing is saveable: Save in Set Features is refused, and the saved value is the default one. A reset
of the controller brings the defaults back. What is accepted without effect: error recovery, atomicity,
and the Keep Alive timer, which never expires.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from outboard.devices.nvme import ana, placement_reports
from outboard.devices.nvme import reservation_features as held
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.spec import BROADCAST, FeatureId, Select
from outboard.devices.nvme.status import CommandFailed, Status
from outboard.devices.nvme.transfer import deliver, fetch
from outboard.devices.nvme.work import Call, Work

if TYPE_CHECKING:
    from outboard.devices.nvme.state import State

BEHAVIOR_SIZE = 512
_COPY_FORMATS = 0b1100
COMPOSITE, ALL_SENSORS = 0x0, 0xF
_CHANGEABLE, _NAMESPACE_SPECIFIC = 1 << 2, 1 << 1


@dataclass(frozen=True, slots=True)
class Plain:
    """A value of one dword, of which a host may set the bits in ``mask``."""

    default: int
    mask: int


PLAIN: dict[int, Plain] = {
    FeatureId.ARBITRATION: Plain(default=4, mask=0xFFFF_FF07),
    FeatureId.POWER_MANAGEMENT: Plain(default=0, mask=0xE0),
    FeatureId.ERROR_RECOVERY: Plain(default=0, mask=0x1_FFFF),
    FeatureId.VOLATILE_WRITE_CACHE: Plain(default=1, mask=1),
    FeatureId.INTERRUPT_COALESCING: Plain(default=0, mask=0xFFFF),
    FeatureId.WRITE_ATOMICITY: Plain(default=0, mask=1),
    FeatureId.ASYNC_EVENT_CONFIGURATION: Plain(default=0, mask=1 << 27 | 1 << 11 | 0x1FF),
    FeatureId.KEEP_ALIVE_TIMER: Plain(default=0, mask=0xFFFF_FFFF),
}

_OF_THE_DATA_PATH = frozenset(
    {
        FeatureId.ARBITRATION,
        FeatureId.VOLATILE_WRITE_CACHE,
        FeatureId.INTERRUPT_COALESCING,
        FeatureId.INTERRUPT_VECTOR_CONFIGURATION,
    }
)

_COALESCING_TICK = 100_000
"""Nanoseconds in which an aggregation time is counted."""


class Features:
    """The current values of one controller.

    ``on_change`` is called when one changes that commands and interrupts depend on: `burst`,
    `write_cache`, `coalescing` or `coalesced`.
    """

    def __init__(self, warning_temperature: int) -> None:
        self.on_change: Callable[[], None] | None = None
        self._warning_temperature = warning_temperature
        self.reset()

    def reset(self) -> None:
        """Bring the defaults back."""
        self.plain: dict[int, int] = {fid: feature.default for fid, feature in PLAIN.items()}
        self.thresholds: list[int] = [self._warning_temperature, 0]
        self.uncoalesced: dict[int, bool] = {}
        self.behavior = bytes(BEHAVIOR_SIZE)
        self._timestamp = 0
        self._set_at: float | None = None
        self._changed()

    def save(self) -> dict[str, Any]:
        """The current values, as JSON."""
        return {
            "plain": {str(int(fid)): value for fid, value in self.plain.items()},
            "thresholds": self.thresholds,
            "uncoalesced": [vector for vector, off in self.uncoalesced.items() if off],
            "behavior": self.behavior.hex(),
            "timestamp": self.timestamp.hex() if self._set_at is not None else None,
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Take back what `save` gave. Raises KeyError, ValueError, TypeError."""
        self.plain = {
            fid: int(saved["plain"][str(int(fid))]) & feature.mask for fid, feature in PLAIN.items()
        }
        over, under = saved["thresholds"]
        self.thresholds = [int(over) & 0xFFFF, int(under) & 0xFFFF]
        self.uncoalesced = {int(vector): True for vector in saved["uncoalesced"]}
        self.behavior = bytes.fromhex(saved["behavior"])[:5].ljust(BEHAVIOR_SIZE, b"\0")
        if saved["timestamp"] is not None:
            self.timestamp = bytes.fromhex(saved["timestamp"])
        self._changed()

    def set_plain(self, fid: int, value: int) -> None:
        """Set a feature of one dword, as far as a host may."""
        self.plain[fid] = value & PLAIN[fid].mask
        if fid in _OF_THE_DATA_PATH:
            self._changed()

    def set_coalesced(self, vector: int, coalesced: bool) -> None:
        """Say whether `coalescing` is for ``vector``."""
        self.uncoalesced[vector] = not coalesced
        self._changed()

    def _changed(self) -> None:
        if self.on_change:
            self.on_change()

    @property
    def burst(self) -> int:
        """Commands taken from one queue before its neighbour's turn, as the host recommends."""
        exponent = self.plain[FeatureId.ARBITRATION] & 7
        return 1 << exponent

    @property
    def write_cache(self) -> bool:
        """Whether a write may be completed before it is durable."""
        return bool(self.plain[FeatureId.VOLATILE_WRITE_CACHE])

    @property
    def coalescing(self) -> tuple[int, int]:
        """Completions to gather before an interrupt (1: none), and nanoseconds to wait at most (0: none).

        For I/O queues only.
        """
        value = self.plain[FeatureId.INTERRUPT_COALESCING]
        return (value & 0xFF) + 1, (value >> 8 & 0xFF) * _COALESCING_TICK

    def coalesced(self, vector: int) -> bool:
        """Whether the host leaves `coalescing` on for this vector."""
        return not self.uncoalesced.get(vector, False)

    def reports_deallocated(self, nsid: int) -> bool:
        """Whether the host wants an error when it reads deallocated blocks of a namespace (DULBE)."""
        return bool(self.plain[FeatureId.ERROR_RECOVERY] & 1 << 16)

    def copies_across(self, kind: int) -> bool:
        """Whether the host has enabled copy descriptors of format ``kind`` (2 or 3)."""
        return bool(self.behavior[4] >> kind & 1)

    def tells(self, notice: int) -> bool:
        """Whether the host wants events of this bit of Asynchronous Event Configuration."""
        return bool(self.plain[FeatureId.ASYNC_EVENT_CONFIGURATION] & notice)

    @property
    def default_thresholds(self) -> list[int]:
        """Temperatures (kelvins) over and under which a drive complains."""
        return [self._warning_temperature, 0]

    @property
    def timestamp(self) -> bytes:
        """The clock the host set, as Get Features gives it: milliseconds, and where they come from."""
        if self._set_at is None:
            return bytes(8)
        now = self._timestamp + int((time.monotonic() - self._set_at) * 1000)
        host_set = 0b001 << 1
        return (now & (1 << 48) - 1).to_bytes(6, "little") + bytes([host_set, 0])

    @timestamp.setter
    def timestamp(self, data: bytes) -> None:
        self._timestamp = int.from_bytes(data[:6], "little")
        self._set_at = time.monotonic()


@dataclass(frozen=True, slots=True)
class Feature:
    """How a feature is read and set: both return dword 0 of the completion, and move data themselves.

    ``get`` is not called for capabilities. Set Features has been checked against ``namespace_specific``.
    """

    get: "Callable[[State, Command, Select], int]"
    set: "Callable[[State, Command], int | Work]"
    namespace_specific: bool = False


def get_features(state: "State", command: Command) -> int:
    """Execute Get Features."""
    select = command.cdw10 >> 8 & 7
    feature = _feature(command)
    if select > Select.CAPABILITIES:
        raise CommandFailed(Status.INVALID_FIELD, f"Select {select} is reserved", location=41)
    if feature.namespace_specific:
        _check_namespace(state, command.nsid)
    if select == Select.CAPABILITIES:
        return _CHANGEABLE | (_NAMESPACE_SPECIFIC if feature.namespace_specific else 0)
    return feature.get(state, command, Select(select))


def set_features(state: "State", command: Command) -> int | Work:
    """Execute Set Features. To end the write cache takes time."""
    feature = _feature(command)
    fid = command.cdw10 & 0xFF
    if command.cdw10 >> 31:
        raise CommandFailed(Status.FEATURE_NOT_SAVEABLE, f"feature {fid:#x} is not saveable", location=43)
    _check_namespace(state, command.nsid)
    if not feature.namespace_specific and command.nsid not in (0, BROADCAST):
        raise CommandFailed(
            Status.FEATURE_NOT_NAMESPACE_SPECIFIC, f"feature {fid:#x} is the controller's", location=4
        )
    return feature.set(state, command)


def _feature(command: Command) -> Feature:
    fid = command.cdw10 & 0xFF
    if fid not in FEATURES:
        raise CommandFailed(Status.INVALID_FIELD, f"there is no feature {fid:#x}", location=40)
    return FEATURES[fid]


def _check_namespace(state: "State", nsid: int) -> None:
    """Of a namespace that cannot be reached by this controller no features are known."""
    if nsid not in (0, BROADCAST):
        ana.require_access(state, state.namespace(nsid))


def _get_plain(state: "State", command: Command, select: Select) -> int:
    fid = command.cdw10 & 0xFF
    return state.features.plain[fid] if select == Select.CURRENT else PLAIN[fid].default


def _set_plain(state: "State", command: Command) -> int:
    state.features.set_plain(command.cdw10 & 0xFF, command.cdw11)
    return 0


def _set_power(state: "State", command: Command) -> int:
    if command.cdw11 & 0x1F:
        raise CommandFailed(
            Status.INVALID_FIELD, f"there is no power state {command.cdw11 & 0x1F}", location=44
        )
    return _set_plain(state, command)


def _set_error_recovery(state: "State", command: Command) -> int:
    every = command.nsid in (0, BROADCAST)
    named = state.namespaces.values() if every else [state.namespace(command.nsid)]
    if command.cdw11 >> 16 & 1 and all(space.deallocated is None for space in named):
        raise CommandFailed(Status.INVALID_FIELD, "reads of deallocated blocks are no errors", location=46)
    _set_plain(state, command)
    state.plane.configure()
    return 0


def _set_write_cache(state: "State", command: Command) -> int | Work:
    had_cache = state.features.write_cache
    _set_plain(state, command)
    return _flush_all(state) if had_cache and not state.features.write_cache else 0


def _flush_all(state: "State") -> Work:
    """Make durable what was written before; what is written from now on is already."""
    for space in list(state.namespaces.values()):
        yield Call(space.storage, space.storage.flush)
    return 0


def _get_threshold(state: "State", command: Command, select: Select) -> int:
    sensor, side = _threshold(command)
    if sensor != COMPOSITE:
        raise CommandFailed(Status.INVALID_FIELD, "there is one temperature only", location=46)
    features = state.features
    return (features.thresholds if select == Select.CURRENT else features.default_thresholds)[side]


def _set_threshold(state: "State", command: Command) -> int:
    sensor, side = _threshold(command)
    if sensor not in (COMPOSITE, ALL_SENSORS):
        raise CommandFailed(Status.INVALID_FIELD, "there is one temperature only", location=46)
    state.features.thresholds[side] = command.cdw11 & 0xFFFF
    return 0


def _threshold(command: Command) -> tuple[int, int]:
    sensor, side = command.cdw11 >> 16 & 0xF, command.cdw11 >> 20 & 3
    if side > 1:
        raise CommandFailed(Status.INVALID_FIELD, f"threshold type {side} is reserved", location=46)
    return sensor, side


def _get_number_of_queues(state: "State", command: Command, select: Select) -> int:
    granted = (state.granted if select == Select.CURRENT else state.limits.io_queues) - 1
    return granted | granted << 16


def _set_number_of_queues(state: "State", command: Command) -> int:
    submission, completion = command.cdw11 & 0xFFFF, command.cdw11 >> 16
    if 0xFFFF in (submission, completion):
        raise CommandFailed(Status.INVALID_FIELD, "65536 queues cannot be asked for", location=44)
    if len(state.submission) > 1 or len(state.completion) > 1:
        raise CommandFailed(Status.COMMAND_SEQUENCE_ERROR, "I/O queues exist already")
    state.granted = min(max(submission, completion) + 1, state.limits.io_queues)
    return _get_number_of_queues(state, command, Select.CURRENT)


def _get_vector(state: "State", command: Command, select: Select) -> int:
    vector = _vector(state, command)
    return vector | (select == Select.CURRENT and not state.features.coalesced(vector)) << 16


def _set_vector(state: "State", command: Command) -> int:
    state.features.set_coalesced(_vector(state, command), not command.cdw11 >> 16 & 1)
    return 0


def _vector(state: "State", command: Command) -> int:
    vector = command.cdw11 & 0xFFFF
    if vector >= state.limits.vectors:
        raise CommandFailed(Status.INVALID_FIELD, f"there is no interrupt vector {vector}", location=44)
    return vector


def _get_timestamp(state: "State", command: Command, select: Select) -> int:
    deliver(state.bus, command, state.features.timestamp if select == Select.CURRENT else bytes(8))
    return 0


def _set_timestamp(state: "State", command: Command) -> int:
    state.features.timestamp = fetch(state.bus, command, 8)
    return 0


def _get_behavior(state: "State", command: Command, select: Select) -> int:
    current = select == Select.CURRENT
    deliver(state.bus, command, state.features.behavior if current else bytes(BEHAVIOR_SIZE))
    return 0


def _set_behavior(state: "State", command: Command) -> int:
    behavior = fetch(state.bus, command, BEHAVIOR_SIZE)
    if behavior[0] > 1:
        raise CommandFailed(Status.INVALID_FIELD, f"ACRE is 0 or 1, not {behavior[0]}")
    if behavior[4] & ~_COPY_FORMATS or behavior[5]:
        raise CommandFailed(Status.INVALID_FIELD, "copy descriptor formats 2 and 3 can be enabled")
    state.features.behavior = bytes([behavior[0], 0, 0, 0, behavior[4]]).ljust(BEHAVIOR_SIZE, b"\0")
    return 0


def _get_command_sets(state: "State", command: Command, select: Select) -> int:
    return 0  # the place of the combination in Identify's list


def _set_command_sets(state: "State", command: Command) -> int:
    if command.cdw11 & 0x1FF:
        raise CommandFailed(
            Status.COMMAND_SET_REJECTED,
            f"there is no combination of command sets {command.cdw11 & 0x1FF}",
            location=44,
        )
    return 0


FEATURES: dict[int, Feature] = {
    **{fid: Feature(_get_plain, _set_plain) for fid in PLAIN},
    FeatureId.POWER_MANAGEMENT: Feature(_get_plain, _set_power),
    FeatureId.TEMPERATURE_THRESHOLD: Feature(_get_threshold, _set_threshold),
    FeatureId.ERROR_RECOVERY: Feature(_get_plain, _set_error_recovery, namespace_specific=True),
    FeatureId.VOLATILE_WRITE_CACHE: Feature(_get_plain, _set_write_cache),
    FeatureId.NUMBER_OF_QUEUES: Feature(_get_number_of_queues, _set_number_of_queues),
    FeatureId.INTERRUPT_VECTOR_CONFIGURATION: Feature(_get_vector, _set_vector),
    FeatureId.TIMESTAMP: Feature(_get_timestamp, _set_timestamp),
    FeatureId.HOST_BEHAVIOR_SUPPORT: Feature(_get_behavior, _set_behavior),
    FeatureId.HOST_IDENTIFIER: Feature(held.get_identifier, held.set_identifier),
    FeatureId.RESERVATION_NOTIFICATION_MASK: Feature(held.get_mask, held.set_mask, namespace_specific=True),
    FeatureId.RESERVATION_PERSISTENCE: Feature(
        held.get_persistence, held.set_persistence, namespace_specific=True
    ),
    FeatureId.COMMAND_SET_PROFILE: Feature(_get_command_sets, _set_command_sets),
    FeatureId.FLEXIBLE_DATA_PLACEMENT: Feature(placement_reports.get_enabled, placement_reports.set_enabled),
    FeatureId.PLACEMENT_EVENTS: Feature(
        placement_reports.get_noted, placement_reports.set_noted, namespace_specific=True
    ),
}
