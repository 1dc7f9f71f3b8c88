"""The dissector, as tshark runs it, over every capture beside this file, and over garbage.

Beside each ``captures/NAME.pcapng`` is what tshark says of it: ``NAME.txt``, a line a message; where there
is a ``NAME.details.txt``, every field too. Make all of them anew, and read the difference, with::

    OUTBOARD_GOLDEN=write pytest tests/trace/test_dissector.py
"""

import os
import random
from pathlib import Path

import pytest

from outboard.errors import SetupError
from outboard.protocol import Command, Direction, Header
from outboard.testing.tshark import Tshark, debian_tshark, find_tshark
from outboard.trace import Captured, CaptureWriter, read_capture

CAPTURES = sorted(Path(__file__).parent.glob("captures/*.pcapng"))
EVERY_COMMAND = Path(__file__).parent / "captures" / "every-command.pcapng"
WRITE = os.environ.get("OUTBOARD_GOLDEN") == "write"


@pytest.fixture(scope="session")
def tshark(tmp_path_factory: pytest.TempPathFactory) -> Tshark:
    """A tshark with our dissector. Where none can be had tests are skipped; with ``CI=true`` they fail."""
    try:
        return find_tshark(tmp_path_factory.mktemp("tshark"))
    except SetupError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"no tshark: {error.sentence}")


def by_name(path: Path) -> str:
    return path.stem


@pytest.mark.parametrize("capture", CAPTURES, ids=by_name)
def test_tshark_says_of_a_capture_what_it_said(tshark: Tshark, capture: Path) -> None:
    compare(capture.with_suffix(".txt"), tshark.summary(capture))


@pytest.mark.parametrize(
    "capture", [path for path in CAPTURES if path.with_suffix(".details.txt").exists()], ids=by_name
)
def test_tshark_shows_the_fields_it_showed(tshark: Tshark, capture: Path) -> None:
    compare(capture.with_suffix(".details.txt"), tshark.details(capture))


def compare(path: Path, text: str) -> None:
    """Compare with a golden file, or write it."""
    if WRITE:
        path.write_text(text)
    assert path.exists(), "make it: OUTBOARD_GOLDEN=write pytest tests/trace/test_dissector.py"
    assert text == path.read_text()


def test_the_capture_of_every_command_has_every_command_both_ways() -> None:
    seen = set()
    for captured in read_capture(EVERY_COMMAND):
        if len(captured.data) >= 16:
            header = Header.decode(captured.data)
            seen.add((header.command, header.flags & 1))
    assert seen >= {(command, way) for command in Command for way in (0, 1)}


def test_messages_are_found_by_their_fields(tshark: Tshark) -> None:
    def found(what: str) -> list[str]:
        shown = tshark.run("-2", "-r", EVERY_COMMAND, "-Y", what, "-T", "fields", "-e", "frame.number")
        return shown.split()

    assert found("vfio_user.command == REGION_WRITE && vfio_user.region == config") == ["51", "52"]
    assert found("vfio_user.errno == EEXIST") == ["6"]
    assert found("vfio_user.request_in == 49") == ["50"]
    assert found("vfio_user.time > 0.000009 && vfio_user.value == 1 && !vfio_user.error_reply") == ["50"]
    assert found("vfio_user.socket == twin") == ["56", "57"]
    assert found("vfio_user.migration.state == STOP_COPY && vfio_user.fds == 0") == ["72", "73"]
    assert found("frame.comment contains held") == ["51"]


def test_commands_of_two_connections_are_kept_apart(tshark: Tshark, tmp_path: Path) -> None:
    command = Header(1, Command.DEVICE_RESET, 16, 0).encode()
    reply = Header(1, Command.DEVICE_RESET, 16, 1).encode()
    path = tmp_path / "two.pcapng"
    with path.open("wb") as file:
        writer = CaptureWriter(file)
        for name in ("/run/a.sock", "/run/b.sock"):
            writer.connection(name)
        for connection in (0, 1):
            writer.write(Captured(connection, Direction.TO_SERVER, command, connection=connection))
        for connection in (1, 0):
            writer.write(Captured(9 - connection, Direction.TO_CLIENT, reply, connection=connection))
    shown = tshark.run("-2", "-r", path, "-T", "fields", "-e", "vfio_user.request_in")
    assert shown.splitlines() == ["", "", "2", "1"]


def test_a_message_longer_than_wireshark_reads_is_shown_in_pieces(tshark: Tshark, tmp_path: Path) -> None:
    size = 1 << 20
    payload = bytes(12) + size.to_bytes(4, "little") + bytes(size)
    path = tmp_path / "long.pcapng"
    with path.open("wb") as file:
        writer = CaptureWriter(file)
        writer.connection("/run/a.sock")
        header = Header(1, Command.REGION_WRITE, 16 + len(payload), 0).encode()
        writer.write(Captured(0, Direction.TO_SERVER, header + payload))
        writer.write(Captured(1, Direction.TO_CLIENT, Header(1, Command.REGION_WRITE, 16, 1).encode()))
    lines = tshark.summary(path).splitlines()
    assert "REGION_WRITE BAR0+0x0" in lines[0]
    assert all("continued" in line for line in lines[1:5])
    assert "REGION_WRITE reply" in lines[-1]
    assert tshark.run("-r", path, "-Y", "vfio_user.malformed") == ""


def test_a_message_cut_when_it_was_captured_is_not_called_malformed(tshark: Tshark, tmp_path: Path) -> None:
    path = tmp_path / "cut.pcapng"
    with path.open("wb") as file:
        writer = CaptureWriter(file, snaplen=40)
        writer.connection("/run/a.sock")
        for captured in read_capture(EVERY_COMMAND):
            if captured.remark or captured.fds:
                writer.write(captured)
    assert tshark.run("-r", path, "-Y", "vfio_user.cut") != ""
    assert tshark.run("-r", path, "-Y", "vfio_user.malformed") == ""


def test_garbage_is_shown_as_that_and_never_ends_the_dissector(tshark: Tshark, tmp_path: Path) -> None:
    """Any bytes after a header, and any damage to a good message: no error of Lua's."""
    chance = random.Random(4)
    good = [captured.data for captured in read_capture(EVERY_COMMAND) if len(captured.data) > 16]
    path = tmp_path / "garbage.pcapng"
    with path.open("wb") as file:
        writer = CaptureWriter(file)
        writer.connection("/run/a.sock")
        for time in range(4000):
            data = bytearray(chance.choice(good))
            for _ in range(chance.choice((0, 1, 4))):
                data[chance.randrange(16, len(data))] = chance.choice((0, 1, 8, 0x20, 0x7F, 0x80, 0xFF))
            if chance.random() < 0.5:
                del data[chance.randrange(16, len(data) + 1) :]
                data[4:8] = len(data).to_bytes(4, "little")
            if chance.random() < 0.2:
                data[2] = chance.randrange(20)
            if chance.random() < 0.1:
                data = bytearray(chance.randbytes(chance.randrange(80)))
            writer.write(Captured(time, chance.choice(list(Direction)), bytes(data)))
    shown = tshark.details(path)
    assert shown.count("\nFrame ") + 1 >= 4000
    assert "Lua Error" not in shown
    assert "Expert Info (Error/Malformed)" in shown


def test_debians_tshark_reads_the_dissector_also_for_root(tshark: Tshark, tmp_path: Path) -> None:
    """The one from the cache, which machines without a tshark use, says the same as the machine's."""
    fetched = debian_tshark(tmp_path)
    assert fetched.details(EVERY_COMMAND) == tshark.details(EVERY_COMMAND)
