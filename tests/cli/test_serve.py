"""`outboard serve` and `outboard nvme`, as back-end programs."""

import fcntl
import json
import shlex
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from outboard.client import Client
from tests.cli.conftest import EDU, PROGRAM, Outboard, Serving


def test_a_device_of_a_file_is_served(serving: Serving, tmp_path: Path) -> None:
    path = tmp_path / "edu.sock"
    serving(path, "serve", f"{EDU}:Edu")
    with Client(path) as client:
        client.bar(0).write32(0x04, 1)
        assert client.bar(0).read32(0x04) == 0xFFFF_FFFE


@pytest.mark.parametrize(("options", "kept"), [((), True), (("--profile", "spdk"), False)])
def test_what_clients_are_taken_for_can_be_said(
    serving: Serving, tmp_path: Path, options: tuple[str, ...], kept: bool
) -> None:
    path = tmp_path / "edu.sock"
    serving(path, "serve", f"{EDU}:Edu", *options)
    with Client(path) as client:
        client.bar(0).write32(0x04, 1)
    with Client(path, patience=5) as client:  # SPDK's driver goes without a reset: it is done for it
        assert client.bar(0).read32(0x04) == (0xFFFF_FFFE if kept else 0)


@pytest.mark.point("P119")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(serving: Serving, tmp_path: Path, number: signal.Signals) -> None:
    path = tmp_path / "edu.sock"
    process = serving(path, "serve", EDU)
    with Client(path):
        process.send_signal(number)
        assert process.wait(5) == 0
    assert not path.exists()


def test_a_log_that_nobody_reads_holds_up_neither_a_client_nor_the_end(
    serving: Serving, tmp_path: Path
) -> None:
    path = tmp_path / "edu.sock"
    process = serving(path, "serve", EDU)
    assert process.stderr is not None
    room = fcntl.fcntl(process.stderr, fcntl.F_SETPIPE_SZ, 4096)
    for _ in range(room // 100):  # Of each client there is more to say than that.
        with Client(path, timeout=20) as client:
            assert client.config.read16(0) == 0x1234
    process.terminate()
    assert process.wait(5) == 0
    said = process.stderr.read()
    assert said.startswith("outboard: a client has connected")
    assert said.endswith("\n")


@pytest.mark.point("P2")
def test_an_inherited_listening_descriptor_is_served(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "given.sock"))
        listener.listen()
        command = [str(PROGRAM), "serve", str(EDU), "--fd", str(listener.fileno())]
        with subprocess.Popen(command, pass_fds=[listener.fileno()], stdout=subprocess.PIPE) as process:
            with Client(tmp_path / "given.sock", timeout=20) as client:
                assert client.config.read32(0) == 0x11E8_1234
            process.terminate()
            assert process.wait(5) == 0


@pytest.mark.point("P3")
def test_a_live_servers_socket_is_refused(serving: Serving, outboard: Outboard, tmp_path: Path) -> None:
    path = tmp_path / "edu.sock"
    serving(path, "serve", EDU)
    refused = outboard("serve", EDU, "--socket-path", path)
    assert refused.returncode == 1
    assert "another server listens" in refused.stderr
    with Client(path) as client:
        assert client.config.read16(0) == 0x1234


def test_the_printed_arguments_name_the_socket(serving: Serving, tmp_path: Path) -> None:
    path = tmp_path / "disk.sock"
    process = serving(path, "nvme", "--namespace", "ram:16M")
    process.terminate()
    assert process.stdout is not None
    words = shlex.split(process.stdout.read().partition("\n")[2])
    device = json.loads(words[-1])
    assert device["driver"] == "vfio-user-pci"
    assert device["socket"] == {"type": "unix", "path": str(path)}
    assert f"pcie-root-port,id={device['bus']}" in words


def test_neither_socket_nor_descriptor_is_refused(outboard: Outboard) -> None:
    refused = outboard("serve", EDU)
    assert refused.returncode == 1
    assert "--socket" in refused.stderr


@pytest.mark.parametrize(
    ("backend", "sentence"),
    [
        ("ram:many", "'many' is not a size"),
        ("ram:1M,block_size=1000", "block size of 1000"),
        ("ram:1M,metadata=8,pi=4", "pi"),
        ("ram:1M,pi=1", "blocks of 512+0 have 0 bytes of metadata"),
        ("ram:1M,metadata=16,pi=1", "512+16 (guard of 64)"),
        ("ram:1M,metadata=8,pi=1,guard=32", "use 16 or 64"),
        ("nbdx:disk", "no storage of kind 'nbdx'"),
        ("ram:1M,zoned=perhaps", "zoned is 'perhaps'"),
        ("ram:1M,zone_size=64K,max_open=2", "zone_size, max_open: that is said of zones"),
        ("ram:1M,zoned=on,zone_size=64K,max_open=some", "max_open is 'some'"),
        ("ram:1M,zoned=on", "make the storage larger"),
    ],
)
def test_a_back_end_that_cannot_be_is_refused(outboard: Outboard, backend: str, sentence: str) -> None:
    refused = outboard("nvme", "--namespace", backend, "--socket", "unused.sock")
    assert refused.returncode == 1
    assert sentence in refused.stderr
