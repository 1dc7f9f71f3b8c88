"""What is said to a guest and to QEMU: commands, console, QMP, command line, archive; no machine yet."""

import itertools
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outboard.errors import GuestError
from outboard.testing.guest import Attach, cpio
from outboard.testing.guest.bootsector import DISK, GREETING, SECTOR, bootable_disk
from outboard.testing.guest.command_line import Machine, accelerator
from outboard.testing.guest.commands import Command
from outboard.testing.guest.console import SerialLine
from outboard.testing.guest.qmp import LineReader, Qmp


def test_late_output_of_another_command_is_not_taken() -> None:
    command = Command("true", token="new")
    answer = command.answer(b"late\n\nend old 1\nbegin new\nfine\n\nend new 0\n")
    assert (answer.output, answer.status) == ("fine\n", 0)


def test_output_without_a_line_end_is_kept_as_it_is() -> None:
    assert Command("printf x", token="t").answer(b"begin t\nx\nend t 0\n").output == "x"


def test_a_command_that_has_not_ended_has_output_and_no_status() -> None:
    answer = Command("sleep 9", token="t").answer(b"begin t\nso far")
    assert (answer.output, answer.status) == ("so far", None)


@given(st.binary(max_size=200))
def test_any_output_comes_back_whole(output: bytes) -> None:
    """Whatever a command prints, the answer holds exactly that."""
    command = Command("anything")
    received = b"begin %b\n%b%b7\n" % (command.token.encode(), output, command.end)
    assert command.answer(received).output == output.decode(errors="replace")
    assert command.answer(received).status == 7


@pytest.fixture
def line() -> Iterator[tuple[SerialLine, socket.socket]]:
    ours, theirs = socket.socketpair()
    serial = SerialLine(ours, threading.Condition())
    with theirs:
        yield serial, theirs
        serial.close()


def test_a_serial_line_collects_until_the_other_end_goes(line: tuple[SerialLine, socket.socket]) -> None:
    serial, theirs = line
    theirs.sendall(b"one\r\ntwo\r\n")
    theirs.shutdown(socket.SHUT_WR)
    with serial.changed:
        assert serial.changed.wait_for(lambda: serial.closed, 10)
    assert serial.text() == "one\ntwo\n"
    assert serial.find(b"two") == 5
    assert serial.last_lines(1) == "two"


def test_a_serial_line_sends(line: tuple[SerialLine, socket.socket]) -> None:
    serial, theirs = line
    serial.send(b"hello")
    assert theirs.recv(100) == b"hello"


@given(st.lists(st.dictionaries(st.text(max_size=5), st.integers()), max_size=4), st.integers(1, 40))
def test_qmp_messages_come_out_however_they_are_cut(messages: list[dict[str, int]], size: int) -> None:
    """A stream of JSON lines, cut into pieces of any size, gives the objects that went in."""
    stream = b"".join(json.dumps(message).encode() + b"\r\n" for message in messages)
    pieces = [stream[start : start + size] for start in range(0, len(stream), size)]
    reader = LineReader()
    assert [message for piece in pieces for message in reader.feed(piece)] == messages


@pytest.fixture
def qemu() -> Iterator[tuple[Qmp, socket.socket]]:
    ours, theirs = socket.socketpair()
    theirs.sendall(b'{"QMP": {}}\n{"return": {}, "id": 1}\n')
    with theirs:
        yield (session := Qmp(ours)), theirs
        session.close()


def test_events_and_late_answers_among_the_answers_do_no_harm(qemu: tuple[Qmp, socket.socket]) -> None:
    session, theirs = qemu
    for number in (1, 2):
        theirs.sendall(b'{"event": "GONE", "data": {"device": "dev%d"}}\n' % number)
    theirs.sendall(b'{"return": {}, "id": 1}\n{"return": {"running": true}, "id": 2}\n')
    assert session.execute("query-status") == {"running": True}
    assert session.wait_event("GONE", device="dev2") == {"device": "dev2"}
    assert session.wait_event("GONE") == {"device": "dev1"}


def test_a_refusal_says_what_qemu_says(qemu: tuple[Qmp, socket.socket]) -> None:
    session, theirs = qemu
    theirs.sendall(b'{"error": {"class": "DeviceNotFound", "desc": "no dev9"}, "id": 2}\n')
    with pytest.raises(GuestError, match=r"device_del.*dev9.*no dev9"):
        session.execute("device_del", id="dev9")


def test_an_event_that_does_not_come_is_an_error(qemu: tuple[Qmp, socket.socket]) -> None:
    with pytest.raises(GuestError, match=r"the event RESET within 0\.01 s"):
        qemu[0].wait_event("RESET", 0.01)


def test_a_qemu_that_went_away_is_an_error(qemu: tuple[Qmp, socket.socket]) -> None:
    qemu[1].shutdown(socket.SHUT_RDWR)
    with pytest.raises(GuestError, match="QEMU"):
        qemu[0].execute("query-status")


def arguments(machine: Machine) -> str:
    return " ".join(machine.arguments(console=10, commands=11, qmp=12))


def test_each_device_gets_a_root_port_and_the_spares_come_after() -> None:
    machine = Machine(devices=[Attach("/a"), Attach("/b", id="disk", bootindex=1)], spare_ports=1)
    words = machine.arguments(console=10, commands=11, qmp=12)
    devices = [word for before, word in itertools.pairwise(words) if before == "-device"]
    ports, attached = devices[:3], [json.loads(device) for device in devices[3:]]
    assert ports[2] == "pcie-root-port,id=port2,chassis=3,slot=3"
    assert [(each["id"], each["bus"], each["socket"]["path"]) for each in attached] == [
        ("dev0", "port0", "/a"),
        ("disk", "port1", "/b"),
    ]
    assert "bootindex" not in attached[0]
    assert attached[1]["bootindex"] == 1


def test_a_device_without_port_sits_on_the_root_bus() -> None:
    assert Attach("/a", port=False, properties={"x-msg-timeout": 9}).port is False
    assert '"bus": "pcie.0"' in arguments(Machine(devices=[Attach("/a", port=False)]))


def test_memory_is_a_shared_memfd_unless_told_otherwise() -> None:
    assert "memory-backend-memfd,id=ram,size=1G,share=on" in arguments(Machine(memory="1G"))
    assert "memory-backend" not in arguments(Machine(shared=False))


def test_firmware_paths_with_commas_survive() -> None:
    assert "file=/a,,b" in arguments(Machine(pflash=(Path("/a,b"), Path("/c"))))


@pytest.mark.parametrize(
    ("flags", "expected"), [("fpu vmx", "kvm"), ("fpu svm", "kvm"), ("fpu hypervisor", "tcg")]
)
def test_kvm_is_used_only_where_the_processor_virtualizes(tmp_path: Path, flags: str, expected: str) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    (tmp_path / "kvm").touch()
    assert accelerator(tmp_path / "cpuinfo", tmp_path / "kvm") == expected
    assert accelerator(tmp_path / "cpuinfo", tmp_path / "none") == "tcg"


def unpack(archive: bytes) -> dict[str, tuple[int, bytes]]:
    found: dict[str, tuple[int, bytes]] = {}
    position = 0
    while True:
        header = archive[position : position + 110]
        assert header[:6] == b"070701"
        mode, size, name_size = (int(header[6 + 8 * field :][:8], 16) for field in (1, 6, 11))
        name = archive[position + 110 :][: name_size - 1].decode()
        start = position + (110 + name_size + 3) // 4 * 4
        if name == "TRAILER!!!":
            return found
        found[name] = (mode, archive[start : start + size])
        position = start + (size + 3) // 4 * 4


NAMES = st.text("abc.-", min_size=1, max_size=9).filter(lambda name: name not in (".", ".."))


@given(st.dictionaries(NAMES, st.binary(max_size=40)))
def test_an_archive_gives_back_what_went_in(files: dict[str, bytes]) -> None:
    """Any files, each unpacked as it was."""
    unpacked = unpack(cpio.archive({f"/{name}": cpio.file(content) for name, content in files.items()}))
    assert {name: content for name, (_, content) in unpacked.items()} == files


def test_an_archive_holds_the_folders_of_its_files_before_them() -> None:
    unpacked = unpack(cpio.archive({"/a/b/c": cpio.file(b"x", executable=True), "/a-link": cpio.link("a/b")}))
    assert list(unpacked) == ["a", "a-link", "a/b", "a/b/c"]
    assert [oct(mode) for mode, _ in unpacked.values()] == ["0o40755", "0o120777", "0o40755", "0o100755"]


def test_the_bootable_disk_is_a_disk_firmware_boots() -> None:
    disk = bootable_disk()
    assert len(disk) == DISK
    assert disk[SECTOR - 2 : SECTOR] == b"\x55\xaa"
    assert GREETING.encode() in disk[:SECTOR]


def test_a_text_that_does_not_fit_its_sector_is_refused() -> None:
    with pytest.raises(ValueError, match="bytes where 382 are free"):
        bootable_disk("x" * 400)
