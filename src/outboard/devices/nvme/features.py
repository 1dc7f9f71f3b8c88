"""Get Features and Set Features: what a host may set, and read back (NVMe Base 2.0, 5.15 and 5.27).

The values are those of `outboard.devices.nvme.feature_values`. What is accepted without effect: the time
limit of error recovery, atomicity, power states, and the Keep Alive timer, which never runs out: over PCIe
nobody is cut off who is only silent.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from outboard.devices.nvme import ana, placement_reports, power, vitals
from outboard.devices.nvme import reservation_features as held
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.feature_values import BEHAVIOR_SIZE, PLAIN, TRANSITIONS_SIZE
from outboard.devices.nvme.management import write_protection
from outboard.devices.nvme.power import COOLEST, HOTTEST, POWER_STATES
from outboard.devices.nvme.spec import BROADCAST, FeatureId, PersistentEvent, Select
from outboard.devices.nvme.status import CommandFailed, Status
from outboard.devices.nvme.transfer import deliver, fetch
from outboard.devices.nvme.work import Work, flush_of

if TYPE_CHECKING:
    from outboard.devices.nvme.state import State

COMPOSITE, ALL_SENSORS = 0x0, 0xF

CHANGEABLE, NAMESPACE_SPECIFIC, SAVEABLE = 1 << 2, 1 << 1, 1 << 0
"""Capabilities of a feature, as Get Features has them."""

BEHAVIORS: dict[int, int] = {0: 0b1, 2: 0b1, 4: 0b1100, 5: 0}
"""Bytes of Host Behavior Support and the bits that can be set in them: advanced command retry, extended LBA
formats, and copy descriptors of formats 2 and 3. Others are not kept."""


def _always(state: "State") -> bool:
    return True


def _places(state: "State") -> bool:
    return state.subsystem.placement is not None


@dataclass(frozen=True, slots=True)
class Feature:
    """How a feature is read and set: both return dword 0 of the completion, and move data themselves.

    A controller has it if it is ``offered``. ``get`` is not called for capabilities. Set Features has been
    checked against the rest: for a feature that is ``saveable``, ``set`` looks at `saves`.
    """

    get: "Callable[[State, Command, Select], int]"
    set: "Callable[[State, Command], int | Work]"
    namespace_specific: bool = False
    saveable: bool = False
    changeable: bool = True
    offered: "Callable[[State], bool]" = _always

    @property
    def capabilities(self) -> int:
        """What Get Features says of it."""
        return (
            self.changeable * CHANGEABLE
            | self.namespace_specific * NAMESPACE_SPECIFIC
            | self.saveable * SAVEABLE
        )


def saves(command: Command) -> bool:
    """Whether Set Features has Save set."""
    return bool(command.cdw10 >> 31)


def get_features(state: "State", command: Command) -> int:
    """Execute Get Features."""
    select = command.cdw10 >> 8 & 7
    feature = _feature(state, command)
    if select > Select.CAPABILITIES:
        raise CommandFailed(Status.INVALID_FIELD, f"Select {select} is reserved", location=41)
    if select == Select.CAPABILITIES:
        return feature.capabilities
    if feature.namespace_specific:
        if command.nsid == BROADCAST:
            raise CommandFailed(Status.INVALID_NAMESPACE, "each namespace has a value of its own", location=4)
        _check_namespace(state, command.nsid)
    return feature.get(state, command, Select(select))


def set_features(state: "State", command: Command) -> int | Work:
    """Execute Set Features. To end the write cache takes time."""
    feature = _feature(state, command)
    fid = command.cdw10 & 0xFF
    if not feature.changeable:
        raise CommandFailed(Status.FEATURE_NOT_CHANGEABLE, f"feature {fid:#x} is what it is", location=40)
    if saves(command) and not feature.saveable:
        raise CommandFailed(
            Status.FEATURE_NOT_SAVEABLE, f"feature {fid:#x} is not saveable", location=43, bit=7
        )
    _check_namespace(state, command.nsid)
    if not feature.namespace_specific and command.nsid not in (0, BROADCAST):
        raise CommandFailed(
            Status.FEATURE_NOT_NAMESPACE_SPECIFIC, f"feature {fid:#x} is the controller's", location=4
        )
    return feature.set(state, command)


def _feature(state: "State", command: Command) -> Feature:
    fid = command.cdw10 & 0xFF
    if fid not in FEATURES or not FEATURES[fid].offered(state):
        raise CommandFailed(Status.INVALID_FIELD, f"there is no feature {fid:#x}", location=40)
    return FEATURES[fid]


def _check_namespace(state: "State", nsid: int) -> None:
    """Of a namespace that cannot be reached by this controller no features are known."""
    if nsid not in (0, BROADCAST):
        ana.require_access(state, state.namespace(nsid))


def _get_plain(state: "State", command: Command, select: Select) -> int:
    return state.features.get(command.cdw10 & 0xFF, select=select)


def _set_plain(state: "State", command: Command) -> int:
    return _set_each(state, command, (0,))


def _set_each(state: "State", command: Command, indices: Iterable[int]) -> int:
    for index in indices:
        state.features.set(command.cdw10 & 0xFF, command.cdw11, index, save=saves(command))
    return 0


def _get_power(state: "State", command: Command, select: Select) -> int:
    if select == Select.CURRENT:
        power.wake(state)
    return _get_plain(state, command, select)


def _set_power(state: "State", command: Command) -> int:
    wanted = command.cdw11 & 0x1F
    if wanted >= len(POWER_STATES):
        raise CommandFailed(Status.INVALID_FIELD, f"there is no power state {wanted}", location=44)
    power.enter(state, wanted)
    return _set_plain(state, command)


def _get_transitions(state: "State", command: Command, select: Select) -> int:
    features = state.features
    tables = {
        Select.CURRENT: features.transitions,
        Select.DEFAULT: bytes(TRANSITIONS_SIZE),
        Select.SAVED: features.saved_transitions,
    }
    deliver(state.bus, command, tables[select])
    return _get_plain(state, command, select)


def _set_transitions(state: "State", command: Command) -> int:
    table = fetch(state.bus, command, TRANSITIONS_SIZE)
    for number in range(len(POWER_STATES)):
        target = table[number * 8] >> 3
        if target >= len(POWER_STATES):
            raise CommandFailed(
                Status.INVALID_FIELD, f"state {number} cannot end in power state {target}", location=24
            )
    state.features.set_transitions(table, save=saves(command))
    return _set_plain(state, command)


def _get_error_recovery(state: "State", command: Command, select: Select) -> int:
    return state.features.get(FeatureId.ERROR_RECOVERY, command.nsid, select)


def _set_error_recovery(state: "State", command: Command) -> int:
    every = command.nsid in (0, BROADCAST)
    named = state.namespaces.values() if every else [state.namespace(command.nsid)]
    if command.cdw11 >> 16 & 1 and all(space.deallocated is None for space in named):
        raise CommandFailed(Status.INVALID_FIELD, "reads of deallocated blocks are no errors", location=46)
    _set_each(state, command, (0, *state.namespaces) if every else (command.nsid,))
    state.plane.configure()
    return 0


def _set_write_cache(state: "State", command: Command) -> int | Work:
    had_cache = state.features.write_cache
    _set_plain(state, command)
    return _flush_all(state) if had_cache and not state.features.write_cache else 0


def _flush_all(state: "State") -> Work:
    """Make durable what was written before; what is written from now on is already."""
    for space in list(state.namespaces.values()):
        yield flush_of(space.storage)
    return 0


def _get_threshold(state: "State", command: Command, select: Select) -> int:
    sensor, side = _threshold(command)
    if sensor != COMPOSITE:
        raise CommandFailed(Status.INVALID_FIELD, "there is one temperature only", location=46)
    return state.features.get(FeatureId.TEMPERATURE_THRESHOLD, side, select)


def _set_threshold(state: "State", command: Command) -> int:
    sensor, side = _threshold(command)
    if sensor not in (COMPOSITE, ALL_SENSORS):
        raise CommandFailed(Status.INVALID_FIELD, "there is one temperature only", location=46)
    _set_each(state, command, (side,))
    vitals.check(state)
    return 0


def _threshold(command: Command) -> tuple[int, int]:
    sensor, side = command.cdw11 >> 16 & 0xF, command.cdw11 >> 20 & 3
    if side > 1:
        raise CommandFailed(Status.INVALID_FIELD, f"threshold type {side} is reserved", location=46, bit=4)
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
    return vector | state.features.get(FeatureId.INTERRUPT_VECTOR_CONFIGURATION, vector, select)


def _set_vector(state: "State", command: Command) -> int:
    return _set_each(state, command, (_vector(state, command),))


def _vector(state: "State", command: Command) -> int:
    vector = command.cdw11 & 0xFFFF
    if vector >= state.limits.vectors:
        raise CommandFailed(Status.INVALID_FIELD, f"there is no interrupt vector {vector}", location=44)
    return vector


def _set_events(state: "State", command: Command) -> int:
    _set_plain(state, command)
    state.events.configured(state.features.wanted_events)
    vitals.check(state)
    return 0


def _set_thermal_management(state: "State", command: Command) -> int:
    heavy, light = command.cdw11 & 0xFFFF, command.cdw11 >> 16
    for temperature in (heavy, light):
        if temperature and not COOLEST <= temperature <= HOTTEST:
            raise CommandFailed(
                Status.INVALID_FIELD, f"{temperature} K is not {COOLEST} to {HOTTEST} K", location=44
            )
    if heavy and light >= heavy:
        raise CommandFailed(Status.INVALID_FIELD, f"TMT1 ({light} K) is not below TMT2", location=46)
    _set_plain(state, command)
    vitals.check(state)
    return 0


def _set_profile(state: "State", command: Command) -> int:
    if command.cdw11 & 0x1FF:
        raise CommandFailed(
            Status.COMMAND_SET_REJECTED, f"there is no combination {command.cdw11 & 0x1FF}", location=44
        )
    return _set_plain(state, command)


def _get_timestamp(state: "State", command: Command, select: Select) -> int:
    deliver(state.bus, command, state.features.timestamp if select == Select.CURRENT else bytes(8))
    return 0


def _set_timestamp(state: "State", command: Command) -> int:
    data = fetch(state.bus, command, 8)
    features = state.features
    before = features.timestamp + features.since_reset.to_bytes(8, "little")
    features.timestamp = data
    state.remember(PersistentEvent.TIMESTAMP_CHANGE, before)
    return 0


def _get_behavior(state: "State", command: Command, select: Select) -> int:
    current = select == Select.CURRENT
    deliver(state.bus, command, state.features.behavior if current else bytes(BEHAVIOR_SIZE))
    return 0


def _set_behavior(state: "State", command: Command) -> int:
    behavior = fetch(state.bus, command, BEHAVIOR_SIZE)
    kept = bytearray(BEHAVIOR_SIZE)
    for at, bits in BEHAVIORS.items():
        if behavior[at] & ~bits:
            raise CommandFailed(
                Status.INVALID_FIELD, f"bits {bits:#x} of byte {at} can be set, not {behavior[at]:#x}"
            )
        kept[at] = behavior[at]
    state.features.behavior = bytes(kept)
    return 0


FEATURES: dict[int, Feature] = {
    **{fid: Feature(_get_plain, _set_plain, saveable=plain.saveable) for fid, plain in PLAIN.items()},
    FeatureId.POWER_MANAGEMENT: Feature(_get_power, _set_power, saveable=True),
    FeatureId.TEMPERATURE_THRESHOLD: Feature(_get_threshold, _set_threshold, saveable=True),
    FeatureId.ERROR_RECOVERY: Feature(
        _get_error_recovery, _set_error_recovery, namespace_specific=True, saveable=True
    ),
    FeatureId.VOLATILE_WRITE_CACHE: Feature(_get_plain, _set_write_cache, saveable=True),
    FeatureId.NUMBER_OF_QUEUES: Feature(_get_number_of_queues, _set_number_of_queues),
    FeatureId.INTERRUPT_VECTOR_CONFIGURATION: Feature(_get_vector, _set_vector, saveable=True),
    FeatureId.ASYNC_EVENT_CONFIGURATION: Feature(_get_plain, _set_events, saveable=True),
    FeatureId.AUTONOMOUS_POWER_STATES: Feature(_get_transitions, _set_transitions, saveable=True),
    FeatureId.TIMESTAMP: Feature(_get_timestamp, _set_timestamp),
    FeatureId.HOST_THERMAL_MANAGEMENT: Feature(_get_plain, _set_thermal_management, saveable=True),
    FeatureId.HOST_BEHAVIOR_SUPPORT: Feature(_get_behavior, _set_behavior),
    FeatureId.NAMESPACE_WRITE_PROTECTION: Feature(
        write_protection.get, write_protection.put, namespace_specific=True
    ),
    FeatureId.HOST_IDENTIFIER: Feature(held.get_identifier, held.set_identifier),
    FeatureId.RESERVATION_NOTIFICATION_MASK: Feature(held.get_mask, held.set_mask, namespace_specific=True),
    FeatureId.RESERVATION_PERSISTENCE: Feature(
        held.get_persistence, held.set_persistence, namespace_specific=True
    ),
    FeatureId.COMMAND_SET_PROFILE: Feature(_get_plain, _set_profile, saveable=True),
    FeatureId.FLEXIBLE_DATA_PLACEMENT: Feature(
        placement_reports.get_enabled, placement_reports.set_enabled, offered=_places
    ),
    FeatureId.PLACEMENT_EVENTS: Feature(
        placement_reports.get_noted, placement_reports.set_noted, namespace_specific=True, offered=_places
    ),
}
