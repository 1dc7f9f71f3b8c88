"""The configuration file: what it may say, and what is told of what it may not."""

import inspect
from pathlib import Path

import pytest

from outboard.devices.nvme import Nvme
from outboard.errors import SetupError
from outboard.operation import read_configuration
from outboard.operation.configuration import MetricsOptions, SubsystemOptions
from outboard.operation.declared import fields_of
from outboard.operation.options import ControllerOptions, NamespaceOptions, ServedController

WHOLE = """
[subsystem.main]
serial = "LAB-7"
state = "state.json"
most_namespaces = 8

[[subsystem.main.namespace]]
backend = "ram:64M"

[[subsystem.main.namespace]]
backend = "disk.img,size=8G"
nsid = 5
block_size = "4K"

[[subsystem.main.controller]]
socket = "a.sock"
vectors = 4
socket_mode = "660"
allow_user = ["root"]

[[subsystem.main.controller]]
socket = "b.sock"
doorbells = "trapped"

[control]
socket = "control.sock"

[metrics]
"""


def test_a_file_describes_everything(tmp_path: Path) -> None:
    (file := tmp_path / "disks.toml").write_text(WHOLE)
    found = read_configuration(file)
    main = found.subsystem["main"]
    assert main == SubsystemOptions(
        serial="LAB-7",
        state="state.json",
        most_namespaces=8,
        namespace=(
            NamespaceOptions(backend="ram:64M"),
            NamespaceOptions(backend="disk.img,size=8G", nsid=5, block_size=4096),
        ),
        controller=(
            ServedController(socket="a.sock", vectors=4, socket_mode="660", allow_user=("root",)),
            ServedController(socket="b.sock", doorbells="trapped"),
        ),
    )
    assert main.controller[0].access["mode"] == 0o660
    assert found.control is not None
    assert found.control.mode == 0o600, "whoever can connect can do everything"
    assert found.metrics == MetricsOptions(listen="127.0.0.1:9100")


CONTROLLER = '[[subsystem.main.controller]]\nsocket = "a.sock"\n'


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "there is no subsystem: begin with [subsystem.main]"),
        ("[subsystem.main", "is not TOML: "),
        (
            "[subsystem.main]",
            "subsystem.main has no controller: add [[subsystem.main.controller]] with a socket",
        ),
        (
            "[[subsystem.main.controller]]\nvectors = 2",
            "subsystem.main.controller[0] needs a place to listen on",
        ),
        (
            CONTROLLER + "vector = 2",
            "subsystem.main.controller[0].vector means nothing: did you mean vectors?",
        ),
        (CONTROLLER + "vectors = 2049", "subsystem.main.controller[0].vectors is 2049: it is 0 to 2048"),
        (CONTROLLER + CONTROLLER, "socket 'a.sock' is there 2 times: each one needs its own"),
        (CONTROLLER + '[control]\nsocket = "a.sock"', "socket 'a.sock' is there 2 times"),
        (
            '[subsystem.a]\nserial = "X"\ncontroller = [{socket = "a"}]\n'
            '[subsystem.b]\nserial = "X"\ncontroller = [{socket = "b"}]\n',
            "serial 'X' is there 2 times",
        ),
        (
            '[subsystem.a]\nstate = "/s.json"\ncontroller = [{socket = "a"}]\n'
            '[subsystem.b]\nstate = "/./s.json"\ncontroller = [{socket = "b"}]\n',
            "state '/s.json' is there 2 times",
        ),
        (
            CONTROLLER + "[[subsystem.main.namespace]]\nnsid = 1",
            "subsystem.main.namespace[0].backend is missing: ram:",
        ),
        (CONTROLLER + "[control]", "control.socket is missing: Where it is."),
        ("[subsystems.main]", "subsystems means nothing: did you mean subsystem?"),
        ("subsystem = 3", "subsystem is 3: it is a table"),
    ],
)
def test_what_is_wrong_is_told_with_file_key_value_and_what_there_may_be(
    tmp_path: Path, text: str, sentence: str
) -> None:
    (file := tmp_path / "disks.toml").write_text(text)
    with pytest.raises(SetupError) as told:
        read_configuration(file)
    assert str(told.value).startswith(str(file))
    assert sentence in str(told.value)


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="No such file"):
        read_configuration(tmp_path / "nowhere.toml")
    (binary := tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(SetupError, match="is not TOML"):
        read_configuration(binary)


@pytest.mark.parametrize(
    ("listen", "address"),
    [("127.0.0.1:0", ("127.0.0.1", 0)), (":9100", ("0.0.0.0", 9100)), ("[::]:1", ("::", 1))],
)
def test_metrics_have_an_address(listen: str, address: tuple[str, int]) -> None:
    assert MetricsOptions(listen=listen).address == address


@pytest.mark.parametrize("listen", ["9100", "here:", "here:70000", "::1:9100"])
def test_an_address_that_is_none_is_told(listen: str) -> None:
    with pytest.raises(SetupError, match="write HOST:PORT, as 127"):
        _ = MetricsOptions(listen=listen).address


def test_a_controller_has_the_defaults_that_it_has_in_python() -> None:
    given = inspect.signature(Nvme).parameters
    shared = [each for each in fields_of(ControllerOptions) if each.name in given]
    assert {each.name: each.default for each in shared} == {
        each.name: given[each.name].default for each in shared
    }
    assert "queue_entries" in [each.name for each in shared]


def test_a_namespace_in_one_line_says_the_same_as_in_a_file() -> None:
    assert NamespaceOptions.of_text("disk.img,size=1G,block_size=4K,shared=off,nsid=3") == NamespaceOptions(
        backend="disk.img,size=1G", block_size=4096, shared=False, nsid=3
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("ram:1M,shared=maybe", "shared is 'maybe': it is true or false"),
        ("ram:1M,nsid=-1", "nsid is -1: it is 0 to"),
    ],
)
def test_a_wrong_line_is_told(text: str, sentence: str) -> None:
    with pytest.raises(SetupError) as told:
        NamespaceOptions.of_text(text)
    assert sentence in str(told.value)
