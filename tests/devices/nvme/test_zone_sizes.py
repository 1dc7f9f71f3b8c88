"""A zoned namespace grows and shrinks by whole zones (Z01)."""

import pytest

from outboard.devices.nvme.status import Status
from outboard.devices.nvme.zone import ZoneState
from outboard.storage import NullStorage
from tests.devices.nvme.bench import Bench
from tests.devices.nvme.conftest import MakeBench
from tests.devices.nvme.driver import PAGE
from tests.devices.nvme.zoned import BLOCK, SIZE, ZONES, Host, zoned

pytestmark = pytest.mark.point("Z01")

OK = Status.SUCCESS


@pytest.fixture
def bench(make_bench: MakeBench) -> Bench:
    return make_bench(zoned())


@pytest.fixture
def host(bench: Bench) -> Host:
    return Host(bench.driver)


def test_a_namespace_that_grows_has_more_zones(bench: Bench, host: Host) -> None:
    space = bench.device.subsystem.namespaces[1]
    space.storage.size = (ZONES - 1) * SIZE * BLOCK
    before = host.report()
    assert len(before) == ZONES
    grown = NullStorage((ZONES + 2) * SIZE * BLOCK + PAGE)
    space.storage.close()
    space.storage = grown
    bench.device.refresh(1)
    assert host.report() == [*before, *host.report()[ZONES:]]
    assert host.states() == [ZoneState.EMPTY] * (ZONES + 2)


def test_zones_in_memory_shrink_and_grow_with_it(bench: Bench) -> None:
    host = Host(bench.driver)
    assert host.write((ZONES - 1) * SIZE, 2) == OK
    subsystem = bench.device.subsystem
    subsystem.resize(1, (ZONES - 2) * SIZE * BLOCK)
    assert len(host.report()) == ZONES - 2
    assert host.write((ZONES - 1) * SIZE, 1) == Status.LBA_OUT_OF_RANGE
    subsystem.resize(1, ZONES * SIZE * BLOCK)
    assert host.states() == [ZoneState.EMPTY] * ZONES
    assert host.write((ZONES - 1) * SIZE, 1) == OK
