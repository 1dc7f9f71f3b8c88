"""The pages about the protocol: every message is there, and every byte of a capture is told truly."""

import re
from pathlib import Path

import capture
import conversations
import layout_table
import pytest
from wire_layouts import LAYOUTS, annotate, size_of

from outboard.protocol import Command
from outboard.protocol.messages import DmaMap, IoFdsLayout, RegionInfo, SetIrqs
from outboard.protocol.states import RULES, Direction
from outboard.trace import describe

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs/protocol").glob("*.md"))
CAPTURES = [f"tests/trace/captures/{name}.pcapng" for name in ("linux-edu", "nvme-identify")]
ROW = re.compile(r"^\| (\d+) \| (?:\[(\w+)\]\(([\w.]+)\.md#(\w+)\)|(\w+)) \| (\w*) \|", re.MULTILINE)


def test_the_table_of_messages_has_them_all_with_their_numbers_and_senders() -> None:
    rows = ROW.findall((ROOT / "docs/protocol/index.md").read_text())
    told = {int(number): (linked or plain, sender) for number, linked, _, _, plain, sender in rows}
    senders = {Direction.TO_SERVER: "client", Direction.TO_CLIENT: "server"}
    expected = {int(number): (rule.command.name, senders[rule.direction]) for number, rule in RULES.items()}
    assert told == expected


@pytest.mark.parametrize("command", [command for command in Command if command is not Command.DIRTY_PAGES])
def test_every_message_has_a_section_with_a_capture_of_its_bytes(command: Command) -> None:
    sections = [
        section
        for page in PAGES
        for section in re.split(r"^## ", page.read_text(), flags=re.MULTILINE)
        if section.startswith(f"{command.name}\n")
    ]
    assert len(sections) == 1
    assert re.search(rf"```{{capture}}[^`]*:only: [\w,]*{command.name}[^`]*:bytes:", sections[0])


@pytest.mark.parametrize("name", [*conversations.CONVERSATIONS, *CAPTURES])
def test_the_parts_of_a_message_are_all_of_its_bytes(name: str) -> None:
    for message in capture.messages_of(name):
        parts = annotate(message.data)
        assert b"".join(part.data for part in parts) == message.data
        payload = [part for part in parts if part.offset is not None]
        at = 0
        for part in payload:
            assert part.offset == at
            at += len(part.data)


@pytest.mark.parametrize("name", conversations.CONVERSATIONS)
def test_a_conversation_is_the_same_whenever_it_is_held(name: str) -> None:
    assert conversations.hold(name) == conversations.hold(name)


def test_a_conversation_has_no_message_that_is_wrong() -> None:
    for name in conversations.CONVERSATIONS:
        assert [message.problem for message in describe(conversations.hold(name)) if message.problem] == []


def test_a_layout_has_the_offsets_of_the_code() -> None:
    assert [(field.name, field.offset, field.size) for field in LAYOUTS["DmaMap"]] == [
        ("argsz", 0, 4),
        ("flags", 4, 4),
        ("offset", 8, 8),
        ("address", 16, 8),
        ("size", 24, 8),
    ]
    assert size_of("DmaMap") == DmaMap.LAYOUT.size
    assert size_of("SparseMmap") == RegionInfo.SPARSE_MMAP.size
    assert size_of("SetIrqs") == SetIrqs.LAYOUT.size
    assert [size_of(f"IoSubRegion{layout.value}") for layout in IoFdsLayout] == [40, 48]
    assert LAYOUTS["IoSubRegion40"][-2].name == "(padding)"


def test_a_field_without_a_meaning_is_an_error() -> None:
    fields = LAYOUTS["Version"]
    assert layout_table.described(fields, ["major: 0.", "minor: the lower", "  of the two"]) == [
        (0, "0."),
        (1, "the lower of the two"),
    ]
    with pytest.raises(ValueError, match=r"fields are major, minor; the page describes major$"):
        layout_table.described(fields, ["major: 0."])
    with pytest.raises(ValueError, match="describes major, minor, patch"):
        layout_table.described(fields, ["major: 0.", "minor: 1", "patch: 2"])


def test_a_capture_shows_the_line_of_outboard_trace_and_the_bytes_by_field() -> None:
    _, refused = list(describe(conversations.hold("refusal")))[-2:]
    assert list(capture.text_of([refused], bytes=True)) == [
        "←     2 DEVICE_GET_REGION_INFO   EINVAL: Invalid argument",
        "  header  02 00 05 00 10 00 00 00 21 00 00 00 16 00 00 00"
        "  id 2, 5 DEVICE_GET_REGION_INFO, 16 bytes, 0x21 reply, Error, errno 22",
    ]
    assert list(capture.text_of([refused], header=True))[1:] == [
        "  header  02 00                    message_id       2",
        "          05 00                    command          5 DEVICE_GET_REGION_INFO",
        "          10 00 00 00              size             16",
        "          21 00 00 00              flags            0x21 reply, Error",
        "          16 00 00 00              error            22",
    ]


def test_long_data_is_shown_with_its_beginning_and_its_end() -> None:
    messages = describe(conversations.hold("source"))
    [data] = [message for message in messages if message.fields.get("data")]
    lines = list(capture.text_of([data], bytes=True))
    assert lines[4] == "       8  6f 75 74 62 6f 61 72 64  data             outboard"
    assert lines[7] == "     ..."
    assert len(lines) == 9
