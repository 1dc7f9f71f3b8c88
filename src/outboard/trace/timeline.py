"""A capture as a timeline for Perfetto (ui.perfetto.dev) and Chrome: the Trace Event Format, in JSON.

Each connection is a process. Commands are slices from request to reply, in a track for each side;
commands that overlap get further tracks. Posted commands are instants, as is what a proxy's faults did to
messages. Interrupts are no messages: a timeline has none.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TextIO

from outboard.protocol.states import Direction
from outboard.trace.describe import Described, Kind

SIDES = {Direction.TO_SERVER: "client's commands", Direction.TO_CLIENT: "server's commands"}
REGISTER_COMMANDS = {"REGION_READ": "read", "REGION_WRITE": "write"}
LONGEST_TEXT = 1000
MOST_OPEN = 4096
"""How many commands may wait for their replies; of more, the oldest are written as without one."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A command whose reply has not come: what its slice needs, without its data."""

    time: int
    connection: int
    side: str
    lane: int
    name: str
    details: dict[str, str]


class TimelineWriter:
    """Writes a timeline into ``file`` as messages come; `close` completes it."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._start: int | None = None
        self._open: dict[int, _Waiting] = {}  # by number
        self._busy: dict[tuple[int, str], list[int]] = {}  # a track's lanes: the command in each, or 0
        self._threads: dict[tuple[int, str], int] = {}
        self._separator = ""
        file.write('{"displayTimeUnit": "ns", "traceEvents": [\n')

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def connection(self, number: int, name: str) -> None:
        """Names a connection's process."""
        self._event("M", number, 0, name="process_name", args={"name": name})

    def add(self, described: Described) -> None:
        """Adds a message: a reply completes its command's slice."""
        captured = described.captured
        side = SIDES[captured.direction]
        if captured.remark:
            self.instant(captured.time, captured.remark, captured.connection, track="remarks")
        if described.answers is not None and described.answers in self._open:
            self._slice(self._open.pop(described.answers), described)
        elif described.kind is Kind.COMMAND:
            lane = self._lane(captured.connection, side, described.number)
            self._open[described.number] = _Waiting(
                captured.time, captured.connection, side, lane, title(described), details(described)
            )
            if len(self._open) > MOST_OPEN:
                self._give_up(self._open.pop(next(iter(self._open))))
        else:
            self.instant(
                captured.time, title(described), captured.connection, track=side, args=details(described)
            )

    def instant(
        self,
        time: int,
        name: str,
        connection: int = 0,
        *,
        track: str,
        args: Mapping[str, Any] | None = None,
    ) -> None:
        """Adds a moment: ``time`` in nanoseconds since the epoch, in the ``track`` of that name."""
        thread = self._thread(connection, track)
        self._event("i", connection, thread, name=name, ts=self._microseconds(time), s="t", args=args or {})

    def close(self) -> None:
        """Completes the JSON: commands without a reply become instants. The file stays open."""
        for command in self._open.values():
            self._give_up(command)
        self._open.clear()
        self._file.write("\n]}\n")
        self._file.flush()

    def _give_up(self, command: _Waiting) -> None:
        """A command without a reply is an instant."""
        self._busy[command.connection, command.side][command.lane] = 0
        name = f"{command.name} (no reply)"
        self.instant(command.time, name, command.connection, track=command.side, args=command.details)

    def _slice(self, command: _Waiting, reply: Described) -> None:
        self._busy[command.connection, command.side][command.lane] = 0
        failed = reply.kind is Kind.ERROR
        track = f"{command.side} ({command.lane + 1})" if command.lane else command.side
        colour = {"cname": "terrible"} if failed else {}
        self._event(
            "X",
            command.connection,
            self._thread(command.connection, track),
            name=f"{command.name}: {reply.text}" if failed else command.name,
            ts=self._microseconds(command.time),
            dur=max(reply.captured.time - command.time, 0) / 1000,
            args=command.details | {f"reply {key}": text for key, text in details(reply).items()},
            **colour,
        )

    def _lane(self, connection: int, side: str, number: int) -> int:
        """The first free lane of a track: slices of one may not overlap."""
        lanes = self._busy.setdefault((connection, side), [])
        for lane, holder in enumerate(lanes):
            if not holder:
                lanes[lane] = number
                return lane
        lanes.append(number)
        return len(lanes) - 1

    def _thread(self, connection: int, track: str) -> int:
        key = connection, track
        if key not in self._threads:
            self._threads[key] = len(self._threads) + 1
            self._event("M", connection, self._threads[key], name="thread_name", args={"name": track})
        return self._threads[key]

    def _microseconds(self, time: int) -> float:
        if self._start is None:
            self._start = time
        return (time - self._start) / 1000

    def _event(self, phase: str, connection: int, thread: int, **values: Any) -> None:
        event = {"ph": phase, "pid": connection + 1, "tid": thread, **values}
        self._file.write(self._separator + json.dumps(event))
        self._separator = ",\n"


def write_timeline(messages: Iterable[Described], file: TextIO, connections: Iterable[str] = ()) -> None:
    """Writes the timeline of a whole capture into ``file``; ``connections`` names them, at the end."""
    with TimelineWriter(file) as timeline:
        for described in messages:
            timeline.add(described)
        for number, name in enumerate(connections):
            timeline.connection(number, name)


def title(described: Described) -> str:
    """A slice's name: of an access the register, else the command."""
    verb = REGISTER_COMMANDS.get(described.command)
    place = described.text.split(" [", 1)[0]
    if verb is None or described.region is None:
        return described.command or described.kind.value
    return (
        f"{verb} {place}"
        if described.fields.get("register")
        else f"{verb} {place}+{described.fields['offset']:#x}"
    )


def details(described: Described) -> dict[str, str]:
    """What is shown of a message when its slice is chosen."""
    shown = {"message": str(described.number), "text": described.text[:LONGEST_TEXT]}
    if described.captured.fds:
        shown["descriptors"] = str(described.captured.fds)
    if described.problem:
        shown["problem"] = described.problem
    return shown
