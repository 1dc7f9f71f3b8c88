"""Our own servers hold every point that can be judged of them."""

import importlib.util
from pathlib import Path

import pytest

from outboard import Device, DeviceContract, Server
from outboard.conformance import Outcome, Report, judge_server
from outboard.devices.nvme import Nvme
from outboard.storage import open_storage
from tests.server.gadgets import Gadget

EDU = Path(__file__).parents[2] / "examples" / "01_edu.py"


def edu() -> Device:
    spec = importlib.util.spec_from_file_location("edu", EDU)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    device = module.Edu()
    assert isinstance(device, Device)
    return device


def judged(device: DeviceContract, folder: Path, *, writable: tuple[int, int] | None = None) -> Report:
    with Server(device, folder / "device.sock").start() as server:
        assert server.path is not None
        report = judge_server(server.path, writable=writable)
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
    judged(edu(), folder)


@pytest.mark.point("P37", "P48", "P55", "P59", "P64", "P118")
def test_the_nvme_controller_holds_every_point(folder: Path) -> None:
    judged(Nvme(open_storage("ram:16M")), folder)


@pytest.mark.point("P41", "P43", "P44", "P45", "P62", "P68", "P69", "P74", "P75", "P77", "P88")
def test_a_device_with_a_bit_of_everything_leaves_little_unjudged(folder: Path) -> None:
    report = judged(Gadget(), folder, writable=(2, 0x1000))
    assert {"P41a", "P43", "P44b", "P64", "P75", "P77", "P88"}.isdisjoint(not_judged(report))
