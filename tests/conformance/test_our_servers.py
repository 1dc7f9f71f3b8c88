"""Our own servers hold every point that can be judged of them."""

import runpy
import sys
from pathlib import Path
from typing import Literal

import pytest

from outboard import Device, DeviceContract, Server
from outboard.conformance import Outcome, Report, judge_server
from outboard.devices.nvme import Nvme
from outboard.storage import open_storage
from tests.server.gadgets import Gadget

EXAMPLES = Path(__file__).parents[2] / "examples"
MOVES = {"P111b", "P112a", "P112b", "P112c", "P113a", "P113b", "P113c", "P114a", "P116a", "P116b"}
"""Migration and the log of pages: every device of ours has them."""
OUTBOARD = Path(sys.executable).with_name("outboard")
PROGRAMS = {
    f"serve {EXAMPLES / '01_edu.py'}": (0, 0x80),
    f"serve {EXAMPLES / '03_doorbell.py'}": (0, 0),
    "nvme --namespace ram:1M": (0, 0x2C),
}
"""Our servers as commands, and a place each where four bytes may be written."""


def example(name: str, kind: str) -> Device:
    device = runpy.run_path(str(EXAMPLES / name))[kind]()
    assert isinstance(device, Device)
    return device


def judged(
    device: DeviceContract,
    folder: Path,
    *,
    writable: tuple[int, int] | None = None,
    profile: Literal["auto", "libvfio-user"] = "auto",
) -> Report:
    """``profile`` is both what the server takes its clients for and whose points are judged."""
    with Server(device, folder / "device.sock", profile=profile).start() as server:
        assert server.path is not None
        report = judge_server(server.path, writable=writable, profile=None if profile == "auto" else profile)
    assert {verdict.point.id: f"{verdict.expected}; saw {verdict.saw}" for verdict in report.failures} == {}
    assert report.ok
    return report


def not_judged(report: Report) -> set[str]:
    return {
        verdict.point.id
        for verdict in report
        if verdict.outcome is Outcome.NOT_APPLICABLE and verdict.point.judge is not None
    }


@pytest.mark.point("P1", "P37", "P67", "P118")
def test_the_edu_example_holds_every_point(folder: Path) -> None:
    report = judged(example("01_edu.py", "Edu"), folder, writable=(0, 0x80))
    assert (MOVES | {"P30", "P35b", "P77"}).isdisjoint(not_judged(report))


@pytest.mark.point("P37", "P48", "P55", "P59", "P64", "P118")
def test_the_nvme_controller_holds_every_point(folder: Path) -> None:
    report = judged(Nvme(open_storage("ram:1M")), folder, writable=(0, 0x2C))
    assert (MOVES | {"P30", "P35b", "P56b", "P64", "P77", "P85"}).isdisjoint(not_judged(report))


@pytest.mark.point("P34", "P47")
@pytest.mark.parametrize("profile", ["auto", "libvfio-user"])
def test_a_doorbell_device_holds_every_point(folder: Path, profile: Literal["auto", "libvfio-user"]) -> None:
    report = judged(example("03_doorbell.py", "Summer"), folder, writable=(0, 0), profile=profile)
    assert {"P34", "P35b", "P47a", "P47b", "P47c", "P47d", "P77", "P114a"}.isdisjoint(not_judged(report))


def test_the_examples_move_to_a_new_process(folder: Path) -> None:
    for number, (words, place) in enumerate(PROGRAMS.items()):
        command = f"{OUTBOARD} {words} --socket {{socket}}"
        report = judge_server(folder / f"{number}.sock", command=command, only=["P114b"], writable=place)
        assert report.ok, report["P114b"].saw


@pytest.mark.point("P41", "P43", "P44", "P45", "P62", "P68", "P69", "P74", "P75", "P77", "P88")
def test_a_device_with_a_bit_of_everything_leaves_little_unjudged(folder: Path) -> None:
    report = judged(Gadget(), folder, writable=(2, 0x1000))
    assert {"P41a", "P43", "P44b", "P64", "P75", "P77", "P88"}.isdisjoint(not_judged(report))
