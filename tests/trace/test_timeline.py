"""A capture as a timeline: what Perfetto is given."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from outboard.devices.nvme import Nvme
from outboard.protocol import Command, Direction
from outboard.protocol.messages import RegionRead, RegionReadReply, RegionWrite
from outboard.trace import Describer, TimelineWriter, describe, read_capture, write_timeline
from outboard.trace.timeline import MOST_OPEN
from tests.trace.test_describe import captured

CAPTURES = Path(__file__).parent / "captures"
REPLY, NO_REPLY = 0x01, 0x10


def events(text: str, phase: str) -> list[dict[str, Any]]:
    return [event for event in json.loads(text)["traceEvents"] if event["ph"] == phase]


def tracks(text: str) -> dict[int, str]:
    return {e["tid"]: e["args"]["name"] for e in events(text, "M") if e["name"] == "thread_name"}


def test_a_command_is_a_slice_until_its_reply_and_named_by_its_register() -> None:
    file = io.StringIO()
    with read_capture(CAPTURES / "nvme-identify.pcapng") as capture:
        write_timeline(describe(capture, Nvme), file, capture.connections)
    slices = events(file.getvalue(), "X")
    assert {"VERSION", "write BAR0 cc", "read BAR0 csts", "read config COMMAND"} <= {
        e["name"] for e in slices
    }
    assert all(event["dur"] == 10 for event in slices)
    [process] = [e for e in events(file.getvalue(), "M") if e["name"] == "process_name"]
    assert process["args"]["name"] == "/run/nvme-identify.sock"


def test_slices_of_one_track_never_overlap() -> None:
    file = io.StringIO()
    with read_capture(CAPTURES / "edu-start.pcapng") as capture:
        write_timeline(describe(capture), file)
    ends: dict[int, float] = {}
    slices = sorted(events(file.getvalue(), "X"), key=lambda event: event["ts"])
    assert any(tracks(file.getvalue())[event["tid"]] == "client's commands (3)" for event in slices)
    for event in slices:
        assert event["ts"] >= ends.get(event["tid"], 0)
        ends[event["tid"]] = event["ts"] + event["dur"]


def test_posted_writes_and_remarks_are_instants() -> None:
    file = io.StringIO()
    describer = Describer()
    with TimelineWriter(file) as timeline:
        write = captured(Command.REGION_WRITE, RegionWrite(0x10, 0, 4, bytes(4)), flags=NO_REPLY, time=1000)
        timeline.add(describer.describe(write))
        late = replace(captured(Command.DEVICE_RESET, time=5000), remark="delayed by 1 ms")
        timeline.add(describer.describe(late))
    instants = events(file.getvalue(), "i")
    named = [(event["name"], tracks(file.getvalue())[event["tid"]], event["ts"]) for event in instants]
    assert named == [
        ("write BAR0+0x10", "client's commands", 0),
        ("delayed by 1 ms", "remarks", 4),
        ("DEVICE_RESET (no reply)", "client's commands", 4),
    ]


def test_a_failed_command_says_so() -> None:
    file = io.StringIO()
    describer = Describer()
    with TimelineWriter(file) as timeline:
        for message in (
            captured(Command.REGION_READ, RegionRead(0x10, 1, 4)),
            captured(Command.REGION_READ, flags=0x21, error=22),
        ):
            timeline.add(describer.describe(message))
    [failed] = events(file.getvalue(), "X")
    assert failed["name"] == "read BAR1+0x10: EINVAL: Invalid argument"


def test_a_reply_without_its_command_is_an_instant() -> None:
    file = io.StringIO()
    reply = captured(Command.REGION_READ, RegionReadReply(0, 7, 2, b"\0\0"), flags=REPLY)
    with TimelineWriter(file) as timeline:
        timeline.add(Describer().describe(reply))
    assert [event["name"] for event in events(file.getvalue(), "i")] == ["read config VENDOR_ID"]
    assert reply.direction is Direction.TO_CLIENT


def test_a_timeline_of_nothing_is_json() -> None:
    file = io.StringIO()
    with TimelineWriter(file):
        pass
    assert json.loads(file.getvalue())["traceEvents"] == []


def test_commands_that_are_never_answered_are_not_kept() -> None:
    file = io.StringIO()
    describer = Describer()
    with TimelineWriter(file) as timeline:
        for number in range(MOST_OPEN + 1):
            timeline.add(describer.describe(captured(Command.DEVICE_RESET, id=number)))
        assert len(events(file.getvalue() + "]}", "i")) == 1
