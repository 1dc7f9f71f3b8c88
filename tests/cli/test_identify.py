"""`outboard identify` against running servers; the golden files hold what it prints.

``OUTBOARD_GOLDEN=write pytest tests/cli`` writes them anew.
"""

import json
import os
from pathlib import Path

import pytest

from outboard.cli.identify import describe, to_text
from outboard.client import Client
from outboard.devices.nvme import Nvme
from outboard.server import Server
from outboard.storage import open_storage
from outboard.testing import TestClient
from outboard.testing.guest import Guest
from tests.cli.conftest import EDU, Outboard, Serving

GOLDEN = Path(__file__).parent / "golden"


def golden(name: str, text: str) -> None:
    """Compare with a golden file, or write it."""
    path = GOLDEN / name
    if os.environ.get("OUTBOARD_GOLDEN") == "write":
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.point("P135")
def test_an_nvme_controller_is_described_as_lspci_and_nvme_cli_do(
    serving: Serving, outboard: Outboard, tmp_path: Path
) -> None:
    path = tmp_path / "disk.sock"
    serving(
        path, "nvme", "--namespace", "ram:64M", "--namespace", "null:1T,block_size=4096", "--serial", "GOLD-1"
    )
    golden("nvme.txt", outboard("identify", path).stdout)
    golden("nvme.json", outboard("identify", path, "--json").stdout)


@pytest.mark.point("P135")
def test_any_device_is_described_as_lspci_does(serving: Serving, outboard: Outboard, tmp_path: Path) -> None:
    path = tmp_path / "edu.sock"
    serving(path, "serve", EDU)
    golden("edu.txt", outboard("identify", path).stdout)


def test_the_json_has_the_numbers_a_program_wants(
    serving: Serving, outboard: Outboard, tmp_path: Path
) -> None:
    path = tmp_path / "disk.sock"
    serving(path, "nvme", "--namespace", "ram:64M")
    found = json.loads(outboard("identify", path, "--json").stdout)
    assert found["pci"]["class"] == 0x010802
    assert found["nvme"]["namespaces"]["1"]["nsze"] == (64 << 20) // 512


def test_identifying_leaves_the_controller_as_it_was() -> None:
    with TestClient(Nvme(open_storage("ram:16M"))) as client:
        first = to_text(describe(client))
        assert to_text(describe(client)) == first
        assert client.config.read16(0x04) == 0


@pytest.mark.guest
def test_lspci_and_nvme_cli_say_the_same(tmp_path: Path) -> None:
    path = tmp_path / "disk.sock"
    with Server(Nvme(open_storage("ram:64M"), serial="SAME-1"), path).start():
        with Client(path) as client:
            ours = to_text(describe(client))
            config = client.config.read(0, client.config.size)
        with Guest([path], tools=["pciutils", "nvme-cli"]) as guest:
            guest.put("/tmp/dump", hexdump(config).encode())
            lspci = guest.run("lspci -vv -nn -F /tmp/dump").splitlines()
            controller = guest.run("nvme id-ctrl /dev/nvme0").splitlines()
            namespace = guest.run("nvme id-ns /dev/nvme0n1").splitlines()
    at, end = ours.index("NVME Identify Controller:"), ours.index("NVME Identify Namespace 1:")
    assert same(ours[at + 1 : end - 1], controller) == []
    assert same(ours[end + 1 :], namespace) == []
    capabilities = [line for line in ours[0].splitlines() if "Capabilities" in line or "Vector table" in line]
    assert [line for line in capabilities if not any(their.startswith(line) for their in lspci)] == []


def hexdump(config: bytes) -> str:
    """Configuration space as ``lspci -xxxx`` prints it and ``lspci -F`` reads it."""
    lines = [f"{at:02x}: {config[at : at + 16].hex(' ')}" for at in range(0, len(config), 16)]
    return "\n".join(["00:00.0 Class", *lines, ""])


def same(ours: list[str], theirs: list[str]) -> list[tuple[str, str]]:
    """The fields whose value is another there, by name; with what we and they say."""
    said = dict(map(field, theirs))
    pairs = [(name, value, said.get(name, value)) for name, value in map(field, ours)]
    return [(f"{name} is {value}", value_there) for name, value, value_there in pairs if value != value_there]


def field(line: str) -> tuple[str, str]:
    """Name and value of a line; blanks do not count."""
    name, _, value = line.partition(":")
    return "".join(name.split()), "".join(value.split())
