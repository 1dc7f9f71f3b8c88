"""`outboard proxy` and `outboard replay`, as programs."""

import io
import json
import signal
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from outboard.client import Client
from outboard.errors import ConnectionLost, RemoteError
from outboard.trace.capture import CaptureReader, read_capture
from tests.cli.conftest import EDU, PROGRAM, Outboard, Serving

Between = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def between(serving: Serving, tmp_path: Path) -> Iterator[Between]:
    """``between("--print", ...)``: a proxy at vm.sock before the example device at edu.sock."""
    serving(tmp_path / "edu.sock", "serve", EDU)
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str | Path) -> "subprocess.Popen[str]":
        sockets: list[str | Path] = ["--listen", tmp_path / "vm.sock", "--connect", tmp_path / "edu.sock"]
        process = subprocess.Popen(
            [PROGRAM, "proxy", *sockets, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert "between" in process.stdout.readline()
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def end(process: "subprocess.Popen[str]") -> str:
    """Ends a proxy as a service manager does; what it printed."""
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=10)
    assert process.returncode == 0
    return printed


def test_a_proxy_has_the_socket_and_the_clients_it_is_told(between: Between, tmp_path: Path) -> None:
    process = between("--socket-mode", "600", "--allow-user", "54321")
    assert stat.S_IMODE((tmp_path / "vm.sock").stat().st_mode) == 0o600
    with pytest.raises(ConnectionLost):
        Client(tmp_path / "vm.sock")
    process.send_signal(signal.SIGTERM)
    assert "not allowed: process" in process.communicate(timeout=10)[1]


def test_a_recording_is_replayed_to_the_same_device_and_to_another(
    between: Between, serving: Serving, outboard: Outboard, tmp_path: Path
) -> None:
    process = between("--record", tmp_path / "boot.pcapng", "--timeline", tmp_path / "boot.json")
    with Client(tmp_path / "vm.sock") as client:
        assert client.bar(0).read32(0x00) == 0x0100_00ED
    end(process)
    assert not (tmp_path / "vm.sock").exists()
    json.loads((tmp_path / "boot.json").read_text())
    same = outboard("replay", tmp_path / "boot.pcapng", tmp_path / "edu.sock")
    assert same.returncode == 0
    assert "no differences" in same.stdout
    other = tmp_path / "other.py"
    source = EDU.read_text().replace("reset=0x0100_00ED", "reset=0x0200_00ED")
    other.write_text(source)
    serving(tmp_path / "other.sock", "serve", other)
    different = outboard("replay", tmp_path / "boot.pcapng", tmp_path / "other.sock", "--patience", "0")
    assert different.returncode == 1
    assert "0x010000ed" in different.stdout
    assert "1 difference\n" in different.stdout
    ignoring = outboard("replay", tmp_path / "boot.pcapng", tmp_path / "other.sock", "--ignore", "BAR0:3")
    assert ignoring.returncode == 0


def test_messages_are_printed_as_they_pass(between: Between, tmp_path: Path) -> None:
    process = between("--print")
    with Client(tmp_path / "vm.sock") as client:
        client.bar(0).read32(0x00)
    assert "REGION_READ              BAR0" in end(process)


def test_a_fault_is_told_in_the_capture_which_pcap_names_too(between: Between, tmp_path: Path) -> None:
    capture = tmp_path / "broken.pcapng"
    process = between("--pcap", capture, "--fault", "error:command=REGION_READ,region=BAR0,errno=ENXIO")
    with Client(tmp_path / "vm.sock") as client, pytest.raises(RemoteError):
        client.bar(0).read32(0x00)
    end(process)
    assert [message.remark for message in read_capture(capture) if message.remark] == [
        "answered with ENXIO, not forwarded",
        "made by the proxy",
    ]


def test_memory_is_kept_back_when_told_so(between: Between, tmp_path: Path) -> None:
    capture = tmp_path / "all.pcapng"
    process = between("--record", capture, "--memory-by-message")
    with Client(tmp_path / "vm.sock") as client:
        client.memory(0x1000)
    end(process)
    [remark] = [message.remark for message in read_capture(capture) if message.remark]
    assert remark == "its descriptor was kept back"


def test_a_capture_goes_to_standard_output(serving: Serving, tmp_path: Path) -> None:
    serving(tmp_path / "edu.sock", "serve", EDU)
    sockets: list[str | Path] = ["--listen", tmp_path / "vm.sock", "--connect", tmp_path / "edu.sock"]
    with subprocess.Popen(
        [PROGRAM, "proxy", *sockets, "--record", "-"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        assert b"between" in process.stderr.readline()
        with Client(tmp_path / "vm.sock"):
            pass
        process.terminate()
        assert len([*CaptureReader(io.BytesIO(process.stdout.read()))]) == 4


def test_a_fault_that_cannot_be_is_refused(outboard: Outboard) -> None:
    refused = outboard("proxy", "--listen", "a", "--connect", "b", "--fault", "explode")
    assert refused.returncode == 1
    assert "the kinds are delay, error, flip, disconnect, drop-interrupt" in refused.stderr
