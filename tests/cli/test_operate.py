"""`outboard nvme --config` with `outboard ctl`, `bench` and metrics, as processes: how disks are operated."""

import json
import re
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from outboard.cli.ctl import commands
from outboard.client import Client
from outboard.drivers.nvme import NvmeDriver
from outboard.operation.control.methods import METHODS
from tests.cli.conftest import PROGRAM, Outboard

CONFIGURATION = """
[subsystem.main]
serial = "LAB-7"

[[subsystem.main.namespace]]
backend = "disk.img,size=64M"

[[subsystem.main.controller]]
socket = "a.sock"

[[subsystem.main.controller]]
socket = "b.sock"
pollers = 0
doorbells = "trapped"

[control]
socket = "control.sock"

[metrics]
listen = "127.0.0.1:0"
"""


class Operated:
    """A service that a file describes, in a folder of its own."""

    def __init__(self, folder: Path, *flags: str) -> None:
        self.folder = folder
        (folder / "disks.toml").write_text(CONFIGURATION)
        command = [str(PROGRAM), "nvme", "--config", "disks.toml", *flags]
        self.process = subprocess.Popen(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.said = ""
        while "metrics on port" not in self.said:
            line = self.process.stdout.readline()
            assert line, self.process.communicate()
            self.said += line

    def metrics(self) -> str:
        port = re.search("metrics on port ([0-9]+)", self.said)
        assert port is not None
        with urllib.request.urlopen(f"http://127.0.0.1:{port[1]}/metrics", timeout=60) as answer:
            return str(answer.read().decode())

    def ends(self, number: signal.Signals = signal.SIGTERM) -> str:
        """End it, cleanly; what it had to say on standard error."""
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, errors
        assert not list(self.folder.glob("*.sock"))
        return errors


@pytest.fixture
def operated(tmp_path: Path) -> Iterator[Operated]:
    with ExitStack() as stack:
        operated = Operated(tmp_path)
        stack.enter_context(operated.process)
        stack.callback(operated.process.kill)
        yield operated


def test_two_controllers_serve_one_disk_that_is_operated_meanwhile(
    operated: Operated, outboard: Outboard, tmp_path: Path
) -> None:
    control = {"OUTBOARD_CONTROL": str(tmp_path / "control.sock")}

    def asked(*words: str) -> Any:
        told = outboard("ctl", *words, "--json", **control)
        assert told.returncode == 0, told.stderr
        return json.loads(told.stdout)

    with Client(tmp_path / "a.sock") as client, NvmeDriver(client) as driver:
        driver.write(1, 0, b"shared".ljust(512))
        measured = outboard("bench", tmp_path / "b.sock", "--seconds", "0.2", "--warm-up", "0", "--json")
        assert measured.returncode == 0, measured.stderr
        assert json.loads(measured.stdout)["operations"] > 0

        assert asked("namespace", "add", "ram:8M", "--block-size", "4K")["nsid"] == 2
        assert driver.namespaces() == [1, 2]
        driver.write(2, 0, bytes(4096))
        assert asked("namespace", "resize", "2", "16M")["size"] == 16 << 20
        limits = asked("namespace", "set-qos", "2", "--iops", "5000", "--write-bytes-per-second", "100M")
        assert (limits["iops"], limits["write_bytes_per_second"]) == (5000, 100 << 20)
        assert asked("health", "set", "--spare", "5")["spare"] == 5
        assert asked("namespace", "detach", "2", "1")["attached"] == [2]
        assert driver.namespaces() == [1]
        assert asked("namespace", "remove", "2") is None

        assert asked("fault", "inject", '{"opcode": "read", "lba": 8, "status": [2, 129]}')["id"] == 1
        assert asked("fault", "remove", "1") is None

        (main,) = asked("stats")["subsystems"]
        first, second = main["controllers"]
        assert (first["writes"], first["connected"]) == (2, True)
        assert second["reads"] >= json.loads(measured.stdout)["operations"]
        metrics = operated.metrics()
    reads = re.search(r'commands_total\{controller="2",direction="read",subsystem="main"\} (\S+)', metrics)
    assert reads is not None
    assert float(reads[1]) == second["reads"]

    shown = outboard("ctl", "--socket", tmp_path / "control.sock", "show")
    assert "LAB-7" in shown.stdout
    assert "disk.img" in shown.stdout
    assert operated.said.count('"driver":"vfio-user-pci"') == 2
    operated.ends()
    assert (tmp_path / "disk.img").read_bytes()[:6] == b"shared"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_clients_there(
    operated: Operated, tmp_path: Path, number: signal.Signals
) -> None:
    with Client(tmp_path / "a.sock"), Client(tmp_path / "b.sock"):
        assert "Traceback" not in operated.ends(number)


def test_a_second_one_refuses_and_the_first_goes_on(
    operated: Operated, outboard: Outboard, tmp_path: Path
) -> None:
    (other := tmp_path / "other.toml").write_text(
        f'[[subsystem.x.controller]]\nsocket = "{tmp_path}/c.sock"\n'
        f'[control]\nsocket = "{tmp_path}/control.sock"\n'
    )
    refused = outboard("nvme", "--config", other)
    assert refused.returncode == 1
    assert "control: another server listens on" in refused.stderr
    assert not (tmp_path / "c.sock").exists()
    assert outboard("ctl", "show", OUTBOARD_CONTROL=str(tmp_path / "control.sock")).returncode == 0


def test_after_a_kill_its_sockets_are_taken_over(operated: Operated, tmp_path: Path) -> None:
    operated.process.kill()
    operated.process.communicate()
    assert len(list(tmp_path.glob("*.sock"))) == 3
    again = Operated(tmp_path)
    with again.process:
        again.ends()


def test_flags_have_a_control_socket_and_metrics_too(outboard: Outboard, tmp_path: Path) -> None:
    command = [str(PROGRAM), "nvme", "--namespace", "ram:1M,block_size=4K", "--pollers", "0"]
    command += ["--socket", str(tmp_path / "a.sock"), "--control", str(tmp_path / "control.sock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        (space,) = json.loads(
            outboard("ctl", "namespace", "list", "--json", OUTBOARD_CONTROL=f"{tmp_path}/control.sock").stdout
        )
        assert (space["storage"], space["block_size"]) == ("ram:1M", 4096)
        process.terminate()
        process.communicate(timeout=60)
        assert process.returncode == 0


def test_an_inherited_connection_ends_it_when_its_client_goes(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    command = [str(PROGRAM), "nvme", "--namespace", "ram:1M", "--pollers", "0", "--fd", str(theirs.fileno())]
    with ours, theirs, subprocess.Popen(command, pass_fds=[theirs.fileno()]) as process:
        theirs.close()
        ours.close()
        assert process.wait(60) == 0


def test_names_are_shown_as_they_are(operated: Operated, outboard: Outboard) -> None:
    control = {"OUTBOARD_CONTROL": str(operated.folder / "control.sock")}
    name = f"[bold][red]{'long' * 30}.img"
    assert outboard("ctl", "namespace", "add", f"./{name},size=1M", **control).returncode == 0
    assert name in outboard("ctl", "show", **control).stdout


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (
            ["--config", "disks.toml", "--namespace", "ram:1M"],
            "describes everything but",
        ),
        (["--config", "disks.toml", "--vectors", "2"], "describes everything but"),
        (["--socket", "a.sock"], "there is nothing to serve: give --namespace BACKEND, or --config FILE"),
        (["--namespace", "ram:1M"], "give one of --socket PATH and --fd N"),
        (
            ["--namespace", "ram:1M", "--socket", "a.sock", "--io-queues", "0"],
            "io_queues is 0: it is 1 to 511",
        ),
        (["--namespace", "ram:1M", "--socket", "a.sock", "--metrics", "x"], "write HOST:PORT"),
        (["--config", "nowhere.toml"], "cannot read nowhere.toml"),
    ],
)
def test_flags_that_cannot_be_are_told(outboard: Outboard, flags: list[str], sentence: str) -> None:
    failed = outboard("nvme", *flags)
    assert failed.returncode == 1
    assert sentence in failed.stderr
    assert "Traceback" not in failed.stderr


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["show"], "Give --socket PATH, or set OUTBOARD_CONTROL"),
        (["--socket", "/nowhere.sock", "show"], "nobody can be asked at /nowhere.sock"),
        (["call", "log.level", "{"], "is not JSON"),
        (["call", "log.level", "[1]"], "is no JSON object"),
    ],
)
def test_a_wrong_use_of_ctl_is_told(outboard: Outboard, words: list[str], sentence: str) -> None:
    failed = outboard("ctl", *words)
    assert failed.returncode == 1
    assert sentence in failed.stderr


def test_each_method_is_a_command_with_a_help(capsys: pytest.CaptureFixture[str]) -> None:
    for name, method in METHODS.items():
        noun, _, verb = name.partition(".")
        commands([noun, verb.replace("_", "-"), "--help"], result_action="return_value")
        printed = " ".join(capsys.readouterr().out.replace("│", " ").split())
        assert method.summary.split()[0] in printed
        for field in method.fields:
            shown = field.name.upper() if field.required else "--" + field.name.replace("_", "-")
            assert shown in printed, f"{name} takes {field.name}"


def test_any_method_can_be_called_and_wrong_words_are_a_wrong_use(
    operated: Operated, outboard: Outboard
) -> None:
    control = {"OUTBOARD_CONTROL": str(operated.folder / "control.sock")}
    called = outboard("ctl", "call", "log.level", '{"level": "debug"}', "--json", **control)
    assert json.loads(called.stdout) == {"level": "debug"}
    told = outboard("ctl", "rpc", "discover", **control)
    assert all(method in told.stdout for method in METHODS)
    assert outboard("ctl", "namespace", "ad", **control).returncode == 2
    refused = outboard("ctl", "namespace", "remove", "9", **control)
    assert refused.returncode == 1
    assert "there is no namespace 9 in main: there is 1 (the fault is the caller's)" in refused.stderr
