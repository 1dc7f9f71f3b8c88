"""Messages in words: what each says, which command a reply answers; and any bytes at all."""

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from outboard.devices.nvme import Nvme
from outboard.protocol import Command, Direction, Header
from outboard.protocol.messages import (
    Empty,
    IoFdsLayout,
    IoSubRegion,
    Message,
    RegionIoFds,
    RegionRead,
    RegionReadReply,
    RegionWrite,
    SetIrqs,
    SetIrqsFlag,
)
from outboard.protocol.states import RULE_OF_REQUEST
from outboard.trace import Captured, Described, Describer, Kind, as_json, describe, read_capture
from tests.protocol.strategies import MESSAGES, TO_SERVER_REQUESTS

CAPTURES = Path(__file__).parent / "captures"
REPLY, NO_REPLY, ERROR = 0x01, 0x10, 0x20
TO_SERVER, TO_CLIENT = Direction


def captured(
    command: int,
    payload: bytes | Message = b"",
    *,
    id: int = 1,
    flags: int = 0,
    error: int = 0,
    time: int = 0,
    fds: int = 0,
    connection: int = 0,
    socket: int = 0,
    direction: Direction | None = None,
) -> Captured:
    body = payload.encode() if isinstance(payload, Message) else payload
    header = Header(id, command, 16 + len(body), flags, error).encode()
    there = direction or (TO_CLIENT if flags & (REPLY | ERROR) else TO_SERVER)
    return Captured(time, there, header + body, fds, socket, connection=connection)


def described(*messages: Captured, device: type | None = None) -> list[Described]:
    return list(describe(messages, device))


def test_a_reply_is_matched_with_its_command_and_has_a_latency() -> None:
    messages = described(
        captured(Command.DEVICE_RESET, id=7, time=1000),
        captured(Command.DEVICE_RESET, id=8, time=1500),
        captured(Command.DEVICE_RESET, id=8, flags=REPLY, time=2500),
        captured(Command.DEVICE_RESET, id=7, flags=REPLY, time=4000),
    )
    assert [(each.answers, each.latency) for each in messages[2:]] == [(2, 1000), (1, 3000)]


def test_commands_that_all_have_one_id_are_answered_in_their_order() -> None:
    """SPDK's driver numbers all of its commands 0."""
    read, info = Command.REGION_READ, Command.DEVICE_RESET
    messages = described(
        captured(info, id=0),
        captured(info, id=0),
        captured(info, id=0, flags=REPLY),
        captured(info, id=0, flags=REPLY),
        captured(read, RegionRead(0, 0, 4), id=0),
    )
    assert [each.answers for each in messages] == [None, None, 1, 2, None]


def test_ids_of_other_connections_sockets_and_sides_are_other_ids() -> None:
    reset = Command.DEVICE_RESET
    messages = described(
        captured(reset),
        captured(reset, connection=1),
        captured(reset, socket=1),
        captured(reset, direction=TO_CLIENT),
        captured(reset, flags=REPLY, direction=TO_SERVER),
        captured(reset, flags=REPLY, socket=1),
        captured(reset, flags=REPLY, connection=1),
        captured(reset, flags=REPLY),
    )
    assert [each.answers for each in messages[4:]] == [4, 3, 2, 1]


def test_a_posted_command_waits_for_no_reply() -> None:
    write = RegionWrite(0x1000, 0, 4, b"\1\0\0\0")
    posted, reply = described(
        captured(Command.REGION_WRITE, write, flags=NO_REPLY), captured(Command.REGION_WRITE, flags=REPLY)
    )
    assert posted.kind is Kind.POSTED
    assert reply.problem == "no command with this id is waiting"


def test_an_error_is_told_by_its_name() -> None:
    _, error = described(
        captured(Command.DMA_MAP, bytes(32)), captured(Command.DMA_MAP, flags=REPLY | ERROR, error=17)
    )
    assert (error.kind, error.text) == (Kind.ERROR, "EEXIST: File exists")


def test_an_error_reply_that_calls_itself_a_command_is_one() -> None:
    """rust-vmm's server sets the Error flag and leaves the type bits 0."""
    _, error = described(
        captured(Command.DEVICE_RESET), captured(Command.DEVICE_RESET, flags=ERROR, error=22)
    )
    assert (error.kind, error.answers) == (Kind.ERROR, 1)


def test_registers_of_a_device_and_their_bits_have_names() -> None:
    write, read = described(
        captured(Command.REGION_WRITE, RegionWrite(0x14, 0, 4, bytes.fromhex("01004600"))),
        captured(Command.REGION_READ, RegionRead(0x1004, 0, 4)),
        device=Nvme,
    )
    assert write.text.startswith("BAR0 cc [0x14] = 0x00460001 (enable=1 ")
    assert write.fields["register"] == "cc"
    assert read.text == "BAR0 doorbells[1] [0x1004], 4 bytes"


def test_where_a_shadow_lies_is_told() -> None:
    sub = IoSubRegion(0x1000, 4, 0, 2, 0, 0, shadow_fd_index=1, shadow_offset=0x40)
    reply = RegionIoFds(64, 0, 0, 1, (sub,), IoFdsLayout.LIBVFIO_USER)
    [told] = described(captured(Command.DEVICE_GET_REGION_IO_FDS, reply, flags=REPLY))
    assert told.text.endswith("shadow ioeventfd in descriptor 0, writes to 0x40 of descriptor 1")
    assert told.fields["sub_regions"][0]["shadow_offset"] == 0x40


def test_extended_configuration_space_is_no_part_of_the_last_capability_below() -> None:
    config = bytearray(256)
    config[0x34] = 0xA4
    config[0xA4] = 0x05  # MSI
    *_, known, extended = described(
        *config_read(0, bytes(config)),
        captured(Command.REGION_READ, RegionRead(0xF0, 7, 4)),
        captured(Command.REGION_READ, RegionRead(0x100, 7, 4)),
    )
    assert known.text == "config MSI+0x4c [0xf0], 4 bytes"
    assert extended.text == "config [0x100], 4 bytes"


def config_read(offset: int, data: bytes) -> Iterable[Captured]:
    yield captured(Command.REGION_READ, RegionRead(offset, 7, len(data)))
    yield captured(Command.REGION_READ, RegionReadReply(offset, 7, len(data), data), flags=REPLY)


def test_capabilities_have_names_once_they_were_read() -> None:
    config = bytearray(256)
    config[0x34] = 0x40
    config[0x40:0x4C] = bytes.fromhex("11 60 07 00 00 20 00 00 01 30 00 00")  # MSI-X, 8 vectors, BAR0
    config[0x60:0x64] = bytes.fromhex("09 00 08 00")
    enable = captured(Command.REGION_WRITE, RegionWrite(0x42, 7, 2, b"\x00\xc0"))
    table = captured(Command.REGION_WRITE, RegionWrite(0x201C, 0, 4, bytes(4)))
    pending = captured(Command.REGION_READ, RegionRead(0x3000, 1, 8))
    vendor = captured(Command.REGION_READ, RegionRead(0x64, 7, 4))
    [before] = described(enable)
    assert before.fields.get("register") is None
    *_, named, entry, pba, own = described(*config_read(0, bytes(config)), enable, table, pending, vendor)
    assert named.text == "config MSIX.CONTROL [0x42] = 0xc000 (enable=1 masked=1 last=0)"
    assert entry.fields["register"] == "MSIX_CONTROL[1]"
    assert pba.fields["register"] == "MSIX_PBA[0]"
    assert own.fields["register"] == "VENDOR+0x4"


def test_a_controller_is_known_by_its_class() -> None:
    asked: list[int] = []

    def nvme() -> type:
        asked.append(1)
        return Nvme

    messages = [
        *config_read(0x08, bytes.fromhex("01 02 08 01")),
        captured(Command.REGION_READ, RegionRead(0x1C, 0, 4)),
        captured(Command.REGION_READ, RegionRead(0x14, 0, 4)),
    ]
    *_, status, configuration = describe(messages, known={0x010802: nvme})
    assert (status.fields["register"], configuration.fields["register"]) == ("csts", "cc")
    assert asked == [1]


@pytest.mark.parametrize(
    ("flags", "start", "count", "data", "fds", "words"),
    [
        ("DATA_EVENTFD TRIGGER", 0, 4, b"", 4, "MSI-X vectors 0 to 3: 4 eventfds"),
        ("DATA_EVENTFD TRIGGER", 2, 1, b"", 0, "MSI-X vector 2: no eventfds"),
        ("DATA_NONE TRIGGER", 0, 0, b"", 0, "MSI-X disable"),
        ("DATA_NONE TRIGGER", 3, 1, b"", 0, "MSI-X fire vector 3"),
        ("DATA_BOOL TRIGGER", 4, 3, b"\1\0\1", 0, "MSI-X fire vectors 4, 6"),
        ("DATA_NONE UNMASK", 0, 1, b"", 0, "MSI-X unmask vector 0"),
        ("DATA_EVENTFD UNMASK", 0, 1, b"", 1, "MSI-X unmask vector 0 whenever the eventfd is signalled"),
        ("DATA_NONE DATA_BOOL", 0, 1, b"", 0, "MSI-X vector 0: DATA_NONE|DATA_BOOL"),
    ],
)
def test_set_irqs_says_what_it_asks_for(
    flags: str, start: int, count: int, data: bytes, fds: int, words: str
) -> None:
    number = sum(SetIrqsFlag[name] for name in flags.split())
    message = SetIrqs(20 + len(data), number, 2, start, count, data)
    [said] = described(captured(Command.DEVICE_SET_IRQS, message, fds=fds))
    assert said.text == words


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"\1\0\2", "a header has 16 bytes, here are 3"),
        (Header(1, 13, 64, 0).encode(), "the header announces 64 bytes, the message has 16"),
        (Header(1, 13, 16, 2).encode(), "the flags 0x2 are neither a command's nor a reply's"),
        (Header(1, 19, 16, 0).encode(), "there is no command 19"),
        (
            Header(1, 9, 20, 0).encode() + bytes(4),
            "REGION_READ has 4 bytes of payload, exactly 16 are needed",
        ),
        (Header(1, 11, 32, 0).encode() + bytes(16), "DMA_READ goes from server to client only"),
    ],
)
def test_what_is_wrong_with_a_message_is_said(data: bytes, problem: str) -> None:
    [said] = described(Captured(0, TO_SERVER, data))
    assert said.problem == problem


def test_a_message_cut_when_it_was_captured_is_described_without_its_end() -> None:
    write = captured(Command.REGION_WRITE, RegionWrite(0, 2, 64, bytes(range(64)))).data
    [said] = described(Captured(0, TO_SERVER, write[:48], missing=len(write) - 48))
    assert said.problem == ""
    assert said.text.endswith("(48 bytes at the end were not captured)")
    assert said.region == 2


def test_regions_of_many_writes_are_all_named() -> None:
    [multi] = [
        each
        for each in describe(read_capture(CAPTURES / "every-command.pcapng"))
        if each.command == "REGION_WRITE_MULTI" and each.kind is Kind.COMMAND
    ]
    assert multi.regions == {0, 7}


def test_every_message_of_the_captures_has_words_and_json() -> None:
    for path in CAPTURES.glob("*.pcapng"):
        for each in describe(read_capture(path)):
            again = json.loads(json.dumps(as_json(each)))
            assert again["number"] == each.number
            assert each.text or each.problem or each.command == "DEVICE_RESET"


@given(st.data())
def test_every_request_that_can_be_sent_is_described_without_a_problem(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(TO_SERVER_REQUESTS))
    message = data.draw(MESSAGES[kind])
    [said] = described(captured(RULE_OF_REQUEST[kind].command, message))
    assert said.problem == ""
    json.dumps(as_json(said))


headers = st.builds(
    Header,
    st.integers(0, 3),
    st.integers(0, 20),
    st.integers(0, 80),
    st.sampled_from((0, 1, 0x10, 0x21, 0x20, 2)),
    st.integers(0, 200),
)
anything = st.binary(max_size=80) | st.tuples(headers, st.binary(max_size=80)).map(
    lambda parts: (
        Header(
            parts[0].message_id, parts[0].command, 16 + len(parts[1]), parts[0].flags, parts[0].error
        ).encode()
        + parts[1]
    )
)


@given(st.lists(st.tuples(anything, st.sampled_from(Direction), st.integers(0, 2**32)), max_size=8))
@example([(captured(Command.VERSION, b"\0\0\0\0" + b"[" * 50_000).data, TO_SERVER, 0)])
def test_any_bytes_are_described(messages: list[tuple[bytes, Direction, int]]) -> None:
    """Whatever the bytes, each message is described once, as JSON too, and nothing is raised."""
    describer = Describer(Nvme)
    for data, direction, missing in messages:
        json.dumps(as_json(describer.describe(Captured(0, direction, data, missing=missing))))


def test_bare_replies_are_done() -> None:
    *_, reply = described(
        captured(Command.DMA_UNMAP, bytes.fromhex("18") + bytes(23)),
        captured(Command.DMA_UNMAP, Empty(), flags=REPLY),
    )
    assert reply.text == "done"
