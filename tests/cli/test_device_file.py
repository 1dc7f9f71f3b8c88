"""Devices named as FILE.py:Class."""

from pathlib import Path

import pytest

from outboard.cli.device_file import load_device
from outboard.errors import DefinitionError

SOURCE = """
from outboard import Bar, Device
from helper_of_the_test import SIZE

class Small(Device):
    vendor_id = 0x1AAA
    mmio = Bar(0, size=SIZE)

class Other(Small):
    vendor_id = 0x1BBB

ready = Other()

def make():
    return Small()

number = 5
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "helper_of_the_test.py").write_text("SIZE = 4096\n")
    path = tmp_path / "lab.py"
    path.write_text(SOURCE)
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    return path


@pytest.mark.parametrize(("name", "vendor"), [("Small", 0x1AAA), ("ready", 0x1BBB), ("make", 0x1AAA)])
def test_a_class_an_object_and_a_function_name_a_device(file: Path, name: str, vendor: int) -> None:
    device = load_device(f"{file}:{name}")
    assert int.from_bytes(device.region_read(7, 0, 2), "little") == vendor


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (":Smal", "it has Small, Other"),
        ("", "defines 2 device classes"),
        (":number", "is no device: it lacks region_read"),
    ],
)
def test_what_is_no_device_is_refused_with_what_there_is(file: Path, name: str, sentence: str) -> None:
    with pytest.raises(DefinitionError, match=sentence):
        load_device(f"{file}{name}")


@pytest.mark.parametrize("place", ["nowhere.py:Edu", "no_such_package.module:Edu"])
def test_a_place_that_is_not_there_is_refused(place: str) -> None:
    with pytest.raises(DefinitionError, match="there is no"):
        load_device(place)


def test_a_module_is_named_with_dots() -> None:
    with pytest.raises(DefinitionError, match="it has Device"):
        load_device("outboard.device:Nothing")
