"""Telemetry: what a controller was like at one moment, as JSON (NVMe Base 2.0, 5.16.1.8 and 5.16.1.9).

A host has the one snapshot taken when it likes; the controller takes the other when something is wrong, and
keeps that over power cycles until a host has read it. Both have three data areas, each with more in it than
the one before; text ends with the area, spaces fill the rest.
"""

import json
import logging
from typing import TYPE_CHECKING, Any

from outboard.devices.nvme import layouts
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.events import TELEMETRY_CHANGED
from outboard.devices.nvme.namespace import OUI
from outboard.devices.nvme.spec import LogId, PersistentEvent
from outboard.devices.nvme.status import CommandFailed, Status
from outboard.devices.nvme.store import Document, Store
from outboard.errors import SetupError

if TYPE_CHECKING:
    from outboard.devices.nvme.state import State

log = logging.getLogger(__name__)

SECTION = "telemetry"
BLOCK = 512
CREATE = 1 << 8
"""A bit of Get Log Page: take the host's snapshot now."""


class Telemetry:
    """Both snapshots of the controller ``owner``: headers and blocks, as they are read."""

    def __init__(self, store: Store, owner: int) -> None:
        self._store, self._owner = store, str(owner)
        self._host = _page(LogId.HOST_TELEMETRY)

    def host_log(self, state: "State", command: Command) -> bytes:
        """Log page 07h."""
        _check_offset(command)
        if command.cdw10 & CREATE:
            generation = (self._host[381] + 1) % 256
            reason = "the host asked for it"
            self._host = _page(LogId.HOST_TELEMETRY, reason, _areas(state), host_generation=generation)
        # The other snapshot, of which this header tells, may be another by now.
        return self._host[:382] + self._controller[382:384] + self._host[384:]

    def controller_log(self, state: "State", command: Command) -> bytes:
        """Log page 08h."""
        _check_offset(command)
        return self._controller

    def controller_log_was_read(self) -> None:
        """The host has it: the next snapshot may take its place."""
        page = bytearray(self._controller)
        if page[382]:
            page[382] = 0
            self._keep(bytes(page))

    def save(self) -> str:
        """The host's snapshot; the controller's is in the store."""
        return self._host.hex()

    def restore(self, host: bytes) -> None:
        """Take back what `save` gave."""
        self._host = host.ljust(BLOCK, b"\0")

    def capture(self, state: "State", reason: str) -> None:
        """Something is wrong: take the controller's snapshot, unless one waits for the host already."""
        before = self._controller
        if before[382]:
            return
        page = _page(
            LogId.CONTROLLER_TELEMETRY,
            reason,
            _areas(state),
            available=1,
            generation=(before[383] + 1) % 256,
        )
        self._keep(page)
        state.remember(PersistentEvent.TELEMETRY_CREATED, page[:BLOCK])
        state.report(TELEMETRY_CHANGED)

    @property
    def _controller(self) -> bytes:
        kept = self._store.section(SECTION).get(self._owner)
        return bytes.fromhex(kept) if kept else _page(LogId.CONTROLLER_TELEMETRY)

    def _keep(self, page: bytes) -> None:
        try:
            self._store.change(SECTION, self._owner, page.hex(), anyway=True)
        except SetupError:
            log.exception("telemetry is kept for as long as this process runs only")


def _check_offset(command: Command) -> None:
    if command.cdw12 % BLOCK:
        raise CommandFailed(
            Status.INVALID_FIELD, f"telemetry is read by blocks of {BLOCK} bytes", location=48
        )


def _page(lid: LogId, reason: str = "", areas: tuple[bytes, ...] = (), **values: int) -> bytes:
    lasts, blocks = [0, 0, 0], 0
    for number, area in enumerate(areas):
        blocks += len(area) // BLOCK
        lasts[number] = blocks
    header = layouts.TELEMETRY_HEADER.encode(
        lid=lid,
        ieee=OUI,
        last_block_1=lasts[0],
        last_block_2=lasts[1],
        last_block_3=lasts[2],
        reason=reason.encode()[:128].ljust(128) if reason else bytes(128),
        **values,
    )
    return header + b"".join(areas)


def _areas(state: "State") -> tuple[bytes, ...]:
    counters = dict(zip(("reads", "writes", "bytes_read", "bytes_written"), state.health.totals, strict=True))
    summary: Document = {
        "controller": state.identity.cntlid,
        "serial": state.subsystem.serial,
        "firmware": state.identity.firmware,
        "timestamp": int.from_bytes(state.features.timestamp[:6], "little"),
        "counters": counters,
        "media_errors": state.health.media_errors,
        "errors": state.errors.count,
    }
    subject: Document = {
        "namespaces": {
            nsid: {"blocks": space.blocks, "block_size": space.block_size, "metadata": space.metadata}
            for nsid, space in sorted(state.namespaces.items())
        },
        "features": state.features.save()["current"],
        "data_plane": state.plane.statistics,
    }
    queues: Document = {
        "submission": [
            {"id": sq.id, "size": sq.size, "head": sq.head, "tail": sq.tail, "cq": sq.cq.id}
            for sq in state.submission.values()
        ],
        "completion": [
            {"id": cq.id, "size": cq.size, "head": cq.known_head, "tail": cq.tail, "pending": cq.pending}
            for cq in state.completion.values()
        ],
        "waiting": len(state.outstanding),
        "last_errors": [entry.hex() for entry in list(state.errors.entries)[:8]],
    }
    return tuple(_blocks(each) for each in (summary, subject, queues))


def _blocks(content: Any) -> bytes:
    text = json.dumps(content, indent=1).encode() + b"\n"
    return text.ljust(-(-len(text) // BLOCK) * BLOCK)
