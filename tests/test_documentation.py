"""What README and documentation tell people to type exists, and what they show runs."""

import re
from pathlib import Path
from typing import Any

import pytest

from outboard.cli import COMMANDS
from outboard.testing import TestClient

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMAND = re.compile(r"\boutboard (?:--debug )?([a-z]+) (?=-|[\w/]+\.|/)")
TARGET = re.compile(r"(?:`|\$ )make ([a-z]+)")
CODE = re.compile(r"```(?:python|\{code-block\} python)\n(.*?)```", re.DOTALL)
LINK = re.compile(r"\]\(([\w./-]+\.md)\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text()
    assert {*COMMAND.findall(text)} <= {*COMMANDS}
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {*TARGET.findall(text)} <= {*targets}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_page_leads_to_one(page: Path) -> None:
    missing = [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()]
    assert missing == []


def test_the_device_of_the_readme_works() -> None:
    code = CODE.findall((ROOT / "README.md").read_text())[0]
    names: dict[str, Any] = {}
    exec(code, names)
    exercise(names["Edu"]())


def test_the_device_of_the_tutorial_works() -> None:
    first, *_, dma = [
        code for code in CODE.findall((ROOT / "docs/tutorial.md").read_text()) if "TestClient" not in code
    ]
    names: dict[str, Any] = {}
    exec(first + dma, names)
    exercise(names["Edu"]())


def exercise(device: Any) -> None:
    """What tutorial and README say the device does."""
    with TestClient(device) as client:
        mmio = client.bar(0)
        mmio.write32(0x08, 5)
        assert mmio.read32(0x08) == 120
        assert device.msi[0].fired == 1
        mmio.write32(0x64, 1)
        assert mmio.read32(0x24) == 0
        client.bus_master(True)
        ram = client.memory(4096)
        ram.write(0, bytes([1, 2, 3]))
        mmio.write64(0x80, ram.address)
        mmio.write64(0x90, 3)
        mmio.write32(0x98, 1)
        assert mmio.read32(0x08) == 6
