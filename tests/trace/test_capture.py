"""Captures: what is written is read, by anybody's pcapng; damage is an error, and never more."""

import os
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outboard.errors import CaptureError
from outboard.protocol import Direction
from outboard.trace import Captured, CaptureReader, CaptureWriter, read_capture
from outboard.trace.capture import PIECE

RESET = bytes.fromhex("01000d00100000000000000000000000")

messages = st.builds(
    Captured,
    time=st.integers(0, 2**64 - 1),
    direction=st.sampled_from(Direction),
    data=st.binary(max_size=100) | st.integers(PIECE - 2, 2 * PIECE + 2).map(bytes),
    fds=st.integers(0, 253),
    socket=st.integers(0, 1),
    remark=st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    connection=st.integers(0, 1),
)


def written(*messages: Captured, snaplen: int | None = None) -> bytes:
    file = BytesIO()
    writer = CaptureWriter(file, snaplen=snaplen)
    for name in ("/run/a.sock", "/run/b.sock"):
        writer.connection(name)
    for message in messages:
        writer.write(message)
    return file.getvalue()


@given(st.lists(messages, max_size=6))
def test_what_is_written_is_read_again(captured: list[Captured]) -> None:
    reader = CaptureReader(BytesIO(written(*captured)))
    assert list(reader) == captured
    assert reader.connections == ["/run/a.sock", "/run/b.sock"]
    assert not reader.cut_short


def test_a_file_is_closed_after_its_last_message(tmp_path: Path) -> None:
    path = tmp_path / "boot.pcapng"
    path.write_bytes(written(Captured(7, Direction.TO_CLIENT, RESET)))
    before = len(os.listdir("/proc/self/fd"))
    assert [captured.time for captured in read_capture(path)] == [7]
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_display_capture_keeps_the_start_of_each_message_and_says_what_is_missing() -> None:
    [captured] = CaptureReader(BytesIO(written(Captured(0, Direction.TO_SERVER, bytes(100)), snaplen=24)))
    assert (len(captured.data), captured.missing) == (24, 76)


def test_a_message_is_in_the_file_before_the_next_one_comes() -> None:
    reading, writing = os.pipe()
    with open(reading, "rb") as pipe, open(writing, "wb") as file:
        writer = CaptureWriter(file)
        writer.connection("/run/a.sock")
        reader = CaptureReader(pipe)
        for time in range(3):
            writer.write(Captured(time, Direction.TO_SERVER, RESET))
            assert next(reader).time == time


def test_a_message_of_a_connection_nobody_added_is_refused() -> None:
    with pytest.raises(ValueError, match="connection 2"):
        written(Captured(0, Direction.TO_SERVER, RESET, connection=2))


@given(st.data())
def test_a_capture_cut_anywhere_gives_what_is_whole(data: st.DataObject) -> None:
    messages = [Captured(time, Direction.TO_SERVER, RESET) for time in range(3)]
    whole = written(*messages)
    cut = data.draw(st.integers(0, len(whole)))
    reader = CaptureReader(BytesIO(whole[:cut]))
    found = list(reader)
    assert found == messages[: len(found)]
    assert reader.cut_short == (cut not in block_ends(whole))


def block_ends(file: bytes) -> set[int]:
    ends, at = {0}, 0
    while at < len(file):
        at += int.from_bytes(file[at + 4 : at + 8], "little")
        ends.add(at)
    return ends


@given(st.integers(0, 400), st.binary(min_size=1, max_size=8))
def test_a_damaged_capture_gives_messages_or_a_capture_error(position: int, damage: bytes) -> None:
    """Any bytes over a capture: messages, and at most one CaptureError at the end."""
    file = bytearray(
        written(
            Captured(1, Direction.TO_SERVER, bytes(40), remark="late"),
            *[Captured(2, Direction.TO_CLIENT, RESET)] * 2,
        )
    )
    file[position : position + len(damage)] = damage
    with suppress(CaptureError):
        list(CaptureReader(BytesIO(bytes(file))))


@given(st.binary(max_size=200))
def test_any_bytes_are_no_capture(data: bytes) -> None:
    with suppress(CaptureError):
        assert list(CaptureReader(BytesIO(data))) == []


def test_another_file_is_named_as_what_it_is_not() -> None:
    with pytest.raises(CaptureError, match="no pcapng file"):
        list(CaptureReader(BytesIO(b"\xd4\xc3\xb2\xa1" + bytes(20))))


def test_a_length_the_file_chose_is_not_allocated() -> None:
    with pytest.raises(CaptureError, match="claims 4294967292 bytes"):
        list(CaptureReader(BytesIO(written() + pack("<II", 6, 0xFFFF_FFFC))))


def test_what_others_write_is_read() -> None:
    """Big-endian, microseconds by default, an interface of another kind, unknown blocks, two sections."""

    def block(kind: int, body: bytes) -> bytes:
        return pack(">II", kind, len(body) + 12) + body + pack(">I", len(body) + 12)

    section = block(0x0A0D0D0A, pack(">IHHq", 0x1A2B3C4D, 1, 0, -1))
    ethernet, user0 = (block(1, pack(">HHI", link_type, 0, 0)) for link_type in (1, 147))
    statistics = block(5, bytes(12))
    message = bytes([1, 1, 0, 0, 2, 0, 0, 0]) + RESET
    ours = block(6, pack(">IIIII", 1, 0, 5, len(message), len(message)) + message)
    foreign = block(6, pack(">IIIII", 0, 0, 5, 4, 4) + b"ping")
    file = written(Captured(1, Direction.TO_SERVER, RESET)) + section + ethernet + user0 + statistics
    reader = CaptureReader(BytesIO(file + foreign + ours))
    assert list(reader) == [
        Captured(1, Direction.TO_SERVER, RESET),
        Captured(5000, Direction.TO_CLIENT, RESET, fds=2, connection=3),
    ]
