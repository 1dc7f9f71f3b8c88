"""The page on faults shows faults that there are, and names all of them."""

import re
from dataclasses import fields
from pathlib import Path

from outboard.devices.nvme import Fault

PAGE = (Path(__file__).parents[2] / "docs" / "howto" / "inject-faults.md").read_text()


def test_every_fault_of_the_page_is_one() -> None:
    shown = re.findall(r"`(Fault\([^`]*\))`", PAGE)
    assert len(shown) > 15
    for text in shown:
        assert isinstance(eval(text, {"Fault": Fault}), Fault)


def test_the_page_names_every_condition_and_effect() -> None:
    missing = [field.name for field in fields(Fault) if not re.search(rf"\b{field.name}\b=", PAGE)]
    assert missing == []
