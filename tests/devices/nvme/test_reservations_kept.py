"""Reservations over resets, power cycles, and moves to another place."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from outboard.devices.nvme import Nvme, Subsystem
from outboard.devices.nvme.datapath.tuning import Tuning
from outboard.devices.nvme.spec import BROADCAST, NSSR_KEY, FeatureId
from outboard.devices.nvme.status import Status
from outboard.devices.nvme.store import Store
from outboard.errors import StateError
from outboard.storage import RamStorage
from tests.devices.nvme.bench import Bench
from tests.devices.nvme.conftest import MakePaths
from tests.devices.nvme.driver import NSSR, ended
from tests.devices.nvme.hosts import (
    EA,
    EA_RO,
    PTPL_OFF,
    PTPL_ON,
    WE,
    A,
    B,
    Host,
)
from tests.devices.nvme.test_moving import move

CONFLICT, SUCCESS = Status.RESERVATION_CONFLICT, Status.SUCCESS
RESERVATION_RELEASED = 2


@pytest.mark.point("N14")
def test_persistence_is_switched_by_register_and_by_the_feature(hosts: list[Host]) -> None:
    first, second, _, _ = hosts
    feature = FeatureId.RESERVATION_PERSISTENCE
    assert first.driver.get_feature(feature, nsid=1).result == 0
    assert first.register(1, options=PTPL_ON) == SUCCESS
    assert second.driver.get_feature(feature, nsid=1).result == 1
    assert second.driver.get_feature(feature, nsid=2).result == 0
    assert first.register(1) == SUCCESS
    assert second.driver.get_feature(feature, nsid=1).result == 1
    assert first.register(1, options=PTPL_OFF) == SUCCESS
    assert second.driver.get_feature(feature, nsid=1).result == 0
    assert ended(second.driver.set_feature(feature, 1, nsid=BROADCAST)) == SUCCESS
    assert [first.report(extended=True).persistent, first.driver.get_feature(feature, nsid=2).result] == [
        1,
        1,
    ]
    assert first.register(1, options=1 << 30) == Status.INVALID_FIELD


@pytest.mark.point("N14")
def test_a_reservation_is_there_again_after_a_restart(lane: str, tmp_path: Path) -> None:
    @contextmanager
    def run() -> Iterator[list[Host]]:
        disks = Subsystem(RamStorage(1 << 20), multipath=True, store=Store(tmp_path / "state"))
        tuning = Tuning(pollers=0, native=lane == "native")
        benches = [Bench(Nvme(subsystem=disks, tuning=tuning)) for _ in range(2)]
        yield [Host(bench, name) for bench, name in zip(benches, (A, B), strict=True)]
        for bench in benches:
            bench.leave()
        disks.namespaces[1].storage.close()

    with run() as (first, second):
        assert first.register(1, options=PTPL_ON) == SUCCESS
        assert first.acquire(1, EA) == SUCCESS
        assert second.read() == CONFLICT
    with run() as (first, second):
        assert second.read() == CONFLICT
        assert first.read() == SUCCESS
        assert first.register(1, options=PTPL_OFF) == SUCCESS
        assert second.read() == CONFLICT
    with run() as (first, second):
        assert second.read() == SUCCESS
        assert second.report(extended=True).controllers == []


@pytest.mark.point("N14")
@pytest.mark.parametrize("identifier", [A, b""])
def test_a_reservation_moves_with_its_controller(
    make_paths: MakePaths, identifier: bytes, request: pytest.FixtureRequest
) -> None:
    source, beside = make_paths(RamStorage(1 << 20))
    first, second = Host(source, identifier), Host(beside, B)
    assert first.register(1, options=PTPL_ON) == second.register(2) == SUCCESS
    assert second.acquire(2, EA_RO) == SUCCESS
    assert second.release(2, EA_RO) == SUCCESS
    assert first.acquire(1, WE) == SUCCESS
    before = first.report(extended=True)
    there = Subsystem(RamStorage(1 << 20))
    devices = [Nvme(subsystem=there, tuning=source.device.plane.tuning) for _ in range(2)]
    target, other = move(source, devices[0]), Bench(devices[1])
    request.addfinalizer(target.close)
    request.addfinalizer(other.leave)
    before.controllers[1] = (0xFFFF, B, 2, 0)
    assert first.report(extended=True) == before
    assert first.notification() == (1, RESERVATION_RELEASED, 0, 1)
    assert first.write() == SUCCESS
    assert Host(other, B).write() == CONFLICT
    other.device.stop_device()
    target.device.stop_device()
    with pytest.raises(StateError, match="the same order"):
        other.device.restore_state(target.device.save_state())


@pytest.mark.point("N14")
def test_who_uses_a_controller_after_a_reset_is_a_stranger(hosts: list[Host]) -> None:
    holder, _, _, _ = hosts
    assert holder.register(1) == SUCCESS
    assert holder.acquire(1, EA) == SUCCESS
    holder.driver.disable()
    again = Host(holder.bench)
    assert again.read() == again.write() == CONFLICT
    assert again.identify(A) == SUCCESS
    assert again.read() == again.write() == SUCCESS


@pytest.mark.point("N14")
@pytest.mark.parametrize("persistent", [True, False])
def test_a_power_cut_ends_what_is_not_to_be_kept_and_a_subsystem_reset_ends_nothing(
    hosts: list[Host], persistent: bool
) -> None:
    first, second, _, _ = hosts
    assert first.register(1, options=PTPL_ON if persistent else 0) == SUCCESS
    assert first.acquire(1, EA) == SUCCESS
    first.bench.bar.write32(NSSR, NSSR_KEY)
    second.bench.settle()
    assert Host(second.bench, B).read() == CONFLICT
    first.bench.device.subsystem.power_cut()
    second.bench.bus_master(True)
    again = Host(second.bench, B)
    assert again.read() == (CONFLICT if persistent else SUCCESS)
    assert bool(again.report(extended=True).controllers) == persistent


@pytest.mark.point("N14")
def test_what_cannot_be_kept_is_not_done(make_paths: MakePaths, tmp_path: Path) -> None:
    (folder := tmp_path / "folder").mkdir()
    first, second = (
        Host(bench, name)
        for bench, name in zip(make_paths(store=Store(folder / "state")), (A, B), strict=True)
    )
    assert first.register(1, options=PTPL_ON) == SUCCESS
    folder.rename(tmp_path / "elsewhere")
    assert first.acquire(1, EA) == Status.INTERNAL_ERROR
    assert second.read() == SUCCESS
    assert first.report(extended=True).type == 0
