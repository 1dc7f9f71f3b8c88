"""A controller's state in a form that another process can go on from: queues, features, events, logs.

For migration (vfio-user's MIG_DEVICE_STATE); the registers are saved by `outboard.device_state`. What is
saved is a controller that is frozen: nothing of it is under way in a thread or below, only commands that it
has taken and not begun. What it has is JSON.
"""

import base64
import struct
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from outboard.devices.nvme.command import Command, Completion
from outboard.devices.nvme.events import Event
from outboard.devices.nvme.namespace import Namespace
from outboard.devices.nvme.queues import CompletionQueue, SubmissionQueue
from outboard.devices.nvme.reservation import Reservation
from outboard.devices.nvme.spec import EventType, LogId, WriteProtection
from outboard.devices.nvme.state import State
from outboard.devices.nvme.status import CommandFailed, Status
from outboard.devices.nvme.vitals import Vitals
from outboard.devices.nvme.zone_table import decode, encode
from outboard.errors import DefinitionError, StateError
from outboard.native.memory import load32, store32

Saved = dict[str, Any]


def save(state: State) -> Saved:
    """Everything ``state`` remembers. Only while the controller is frozen.

    Operations in the background stand still from now on, until a controller goes on here.
    """
    state.subsystem.away = True
    state.subsystem.uncorrectable.keep_all()
    return {
        "identity": _identity(state),
        "subsystem": state.subsystem.store.document,
        "write_protection": {str(nsid): space.write_protection for nsid, space in state.namespaces.items()},
        "granted": state.granted,
        "entry_sizes_set": state.entry_sizes_set,
        "completion": [_save_cq(cq) for cq in state.completion.values()],
        "submission": [_save_sq(sq) for sq in state.submission.values()],
        "weighted": state.plane.weighted,
        "taken": [[sq.id, entry.hex()] for sq, entry in _taken(state)],
        "waiting": [[sq.id, entry.hex()] for sq, entry in state.plane.waiting.each()],
        "shadow": state.plane.shadow,
        "features": state.features.save(),
        "host_identifier": state.host_identifier.hex(),
        "reservation_log": state.reservation_log.save(),
        "reservations": {str(nsid): space.reservation.save() for nsid, space in state.namespaces.items()},
        "events": _save_events(state),
        "changed_namespaces": sorted(state.changed_namespaces),
        "health": state.health.save(state.errors.count),
        "telemetry": state.telemetry.save(),
        "vitals": asdict(state.subsystem.vitals),
        "event_context": state.event_context.hex() if state.event_context is not None else None,
        "zones": {
            str(nsid): zones for nsid, space in state.attached.items() if (zones := _save_zones(space))
        },
        "placement": state.subsystem.placement.save() if state.subsystem.placement is not None else None,
        "lba_status": state.lba_status.save(),
        "uncorrectable": {str(nsid): list(space.uncorrectable) for nsid, space in state.attached.items()},
        "changed_zones": {str(nsid): list(changed) for nsid, changed in state.changed_zones.items()},
        "errors": {"count": state.errors.count, "entries": [entry.hex() for entry in state.errors.entries]},
    }


def restore(state: State, saved: Mapping[str, Any]) -> None:
    """Take back what `save` gave, into a controller that was reset, of a device that is stopped.

    Raises StateError, ValueError, KeyError, TypeError for what cannot be its state.
    """
    try:
        _restore(state, saved)
    except (struct.error, zlib.error, CommandFailed) as error:
        raise StateError(f"the state is damaged: {error!r}") from error


def _restore(state: State, saved: Mapping[str, Any]) -> None:
    if saved["identity"] != _identity(state):
        raise StateError(
            f"the state is that of {saved['identity']}, this is {_identity(state)}: start the destination"
            " with the same serial number, the same namespaces, and the controllers in the same order"
        )
    state.subsystem.become(saved["subsystem"])
    for nsid, protection in saved["write_protection"].items():
        state.namespace(int(nsid)).write_protection = WriteProtection(protection)
    with state.plane.paused():
        state.granted = _within(saved["granted"], 1, state.limits.io_queues)
        state.entry_sizes_set = bool(saved["entry_sizes_set"])
        for each in saved["completion"]:
            _restore_cq(state, each)
        for each in saved["submission"]:
            _restore_sq(state, each)
        if (0 in state.completion) != (0 in state.submission):
            raise StateError("the state has one of the two admin queues")
        state.plane.shadow = tuple(saved["shadow"]) if saved["shadow"] else None
        state.plane.weighted = bool(saved["weighted"])
        state.features.restore(saved["features"])
        _restore_reservations(state, saved)
        state.plane.configure()
        state.plane.place()
        for qid, entry in saved["taken"]:
            sq = state.submission[qid]
            sq.cq.pending += 1
            if not state.plane.keep_slow(sq, Command.decode(bytes.fromhex(entry)).encode()):
                raise StateError(
                    f"the state has {len(saved['taken'])} commands taken and not begun: too many"
                )
        for qid, entry in saved["waiting"]:
            sq = state.submission[qid]
            sq.cq.pending = _within(sq.cq.pending + 1, 1, sq.cq.size - 1)
            state.plane.waiting.put(sq, Command.decode(bytes.fromhex(entry)).encode())
    _restore_events(state, saved["events"])
    state.changed_namespaces |= {int(nsid) for nsid in saved["changed_namespaces"]}
    try:
        state.subsystem.vitals = Vitals(**saved["vitals"])
    except DefinitionError as error:
        raise StateError(f"the state is that of no drive: {error}") from error
    state.health.restore(saved["health"])
    state.telemetry.restore(bytes.fromhex(saved["telemetry"]))
    context = saved["event_context"]
    state.event_context = bytes.fromhex(context) if context is not None else None
    for nsid, zones in saved["zones"].items():
        _restore_zones(state.attached[int(nsid)], zones)
    if (placement := state.subsystem.placement) is not None and saved["placement"] is not None:
        placement.restore(saved["placement"])
    state.lba_status.restore(saved["lba_status"])
    for nsid, runs in saved["uncorrectable"].items():
        runs = [(int(start), int(end)) for start, end in runs]
        state.subsystem.uncorrectable.replace(state.attached[int(nsid)], runs)
    for nsid, changed in saved["changed_zones"].items():
        state.changed_zones[int(nsid)] = {int(slba): None for slba in changed}
    state.errors.count = int(saved["errors"]["count"])
    state.errors.entries.clear()
    state.errors.entries.extend(bytes.fromhex(entry)[:64].ljust(64) for entry in saved["errors"]["entries"])


def _restore_reservations(state: State, saved: Mapping[str, Any]) -> None:
    state.host_identifier = bytes.fromhex(saved["host_identifier"])
    if len(state.host_identifier) not in (0, 8, 16):
        raise StateError(f"the state has a host identifier of {len(state.host_identifier)} bytes")
    state.reservation_log.restore(saved["reservation_log"])
    for nsid, space in state.namespaces.items():
        space.reservation = Reservation.load(saved["reservations"][str(nsid)])
        state.subsystem.reconfigure(nsid)


def _identity(state: State) -> Saved:
    """What has to be the same on both sides, for the guest not to notice."""
    return {
        "serial": state.subsystem.serial,
        "model": state.subsystem.model,
        "cntlid": state.identity.cntlid,
        "namespaces": {
            str(nsid): [
                space.blocks,
                space.format,
                space.extended,
                space.protection.dps if space.protection else 0,
            ]
            for nsid, space in sorted(state.attached.items())
        },
    }


def _taken(state: State) -> list[tuple[SubmissionQueue, bytes]]:
    """The commands that wait for Python; they wait on."""
    taken = list(state.plane.slow_commands(1 << 32))
    for sq, entry in taken:
        state.plane.keep_slow(sq, entry)
    return taken


def _save_cq(cq: CompletionQueue) -> Saved:
    return {
        "id": cq.id,
        "address": cq.address,
        "size": cq.size,
        "vector": cq.vector,
        "interrupts": cq.interrupts,
        "head": cq.known_head,
        "tail": cq.tail,
        "phase": cq.phase,
        "doorbell": load32(cq.doorbell),
        "owed": [[c.result, c.sq_head, c.sq_id, c.cid, c.status] for c in cq.owed],
    }


def _restore_cq(state: State, saved: Saved) -> None:
    qid, size, address = _queue(state, saved, state.completion)
    cq = state.completion[qid] = CompletionQueue(
        *state.plane.record_of_cq(qid),
        id=qid,
        address=address,
        size=size,
        vector=_within(saved["vector"], 0, max(0, state.limits.vectors - 1)),
        interrupts=bool(saved["interrupts"]),
    )
    cq.go_on(_within(saved["head"], 0, size - 1), _within(saved["tail"], 0, size - 1), saved["phase"] & 1)
    store32(cq.doorbell, saved["doorbell"] & 0xFFFF_FFFF)
    for result, sq_head, sq_id, cid, status in saved["owed"]:
        completion = Completion(result, sq_head, sq_id, cid, status, phase=0)
        completion.encode()  # what cannot be is found out here
        cq.owed.append(completion)


def _save_sq(sq: SubmissionQueue) -> Saved:
    return {
        "id": sq.id,
        "address": sq.address,
        "size": sq.size,
        "cq": sq.cq.id,
        "head": sq.head,
        "tail": sq.tail,
        "doorbell": load32(sq.doorbell),
        "priority": sq.priority,
        "aborted": sorted(sq.aborted),
    }


def _restore_sq(state: State, saved: Saved) -> None:
    qid, size, address = _queue(state, saved, state.submission)
    cq = state.completion[saved["cq"]]
    cq.submitters += 1
    sq = state.submission[qid] = SubmissionQueue(
        *state.plane.record_of_sq(qid),
        id=qid,
        address=address,
        size=size,
        cq=cq,
        priority=_within(saved["priority"], 0, 3),
    )
    sq.go_on(_within(saved["head"], 0, size - 1), _within(saved["tail"], 0, size - 1))
    store32(sq.doorbell, saved["doorbell"] & 0xFFFF_FFFF)
    sq.aborted = frozenset(int(cid) for cid in saved["aborted"])


def _queue(state: State, saved: Saved, queues: Mapping[int, object]) -> tuple[int, int, int]:
    """A queue's identifier, which is free, its entries, and its address."""
    qid = _within(saved["id"], 0, state.limits.io_queues)
    if qid in queues:
        raise StateError(f"the state has two queues {qid}")
    most = state.limits.queue_entries if qid else 4096
    return qid, _within(saved["size"], 2, most), _within(saved["address"], 0, (1 << 64) - 1)


def _save_events(state: State) -> Saved:
    events = state.events
    return {
        "parked": list(events.parked),
        "waiting": [_save_event(event) for event in events.waiting],
        "masked": [_save_event(event) for event in events.masked.values()],
        "endings": [[cid, status, result] for cid, status, result in events.endings],
        "deferred": [[cid, operation] for cid, operation in events.deferred.items()],
    }


def _save_event(event: Event) -> list[int]:
    return [event.type, event.info, event.log, event.detail, event.wanted_by]


def _event(saved: list[int]) -> Event:
    kind, info, log, detail, wanted_by = saved
    return Event(
        EventType(kind),
        _within(info, 0, 0xFF),
        LogId(log),
        _within(detail, 0, 0xFFFF_FFFF),
        _within(wanted_by, 0, 0xFFFF_FFFF),
    )


def _restore_events(state: State, saved: Saved) -> None:
    events = state.events
    for cid in saved["parked"]:
        if len(events.parked) >= events.limit:
            raise StateError(f"the state has more than {events.limit} event requests")
        events.parked.append(_within(cid, 0, 0xFFFF))
    for each in saved["waiting"]:
        events.post(_event(each))
    for each in saved["masked"]:
        event = _event(each)
        events.masked[event.type] = event
    for cid, status, result in saved["endings"]:
        events.endings.append((_within(cid, 0, 0xFFFF), Status(status), int(result)))
    for cid, operation in saved["deferred"]:
        events.defer(_within(cid, 0, 0xFFFF), str(operation))


def _save_zones(space: Namespace) -> str:
    if space.zones is None:
        return ""
    return base64.b64encode(zlib.compress(encode(space.zones), 1)).decode()


def _restore_zones(space: Namespace, saved: str) -> None:
    if space.zones is None:
        raise StateError(f"the state has zones, and namespace {space.nsid} has none")
    # As much as there can be and no more: what is compressed may say it is anything.
    size = len(encode(space.zones))
    decode(space.zones, zlib.decompressobj().decompress(base64.b64decode(saved), size + 1))


def _within(value: int, low: int, high: int) -> int:
    if not low <= value <= high:
        raise StateError(f"the state has {value} where {low} to {high} can be")
    return value
