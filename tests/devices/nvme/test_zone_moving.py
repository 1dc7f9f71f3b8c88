"""A controller with zones goes on in another place, and they with it (Z01)."""

from collections.abc import Callable, Iterator

import pytest

from outboard.devices.nvme import Namespace, Nvme, ZoneLayout
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.datapath.tuning import Tuning
from outboard.devices.nvme.spec import AdminOpcode, FeatureId, IoOpcode
from outboard.devices.nvme.status import Status
from outboard.devices.nvme.zone import ZoneState
from outboard.devices.nvme.zone_commands import Send
from outboard.errors import StateError
from outboard.storage import RamStorage
from tests.devices.nvme.bench import Bench
from tests.devices.nvme.conftest import MakeBench
from tests.devices.nvme.driver import CC_ENABLE, ended
from tests.devices.nvme.test_moving import move
from tests.devices.nvme.test_workers import Slow
from tests.devices.nvme.zoned import BLOCK, FUA, SIZE, ZONES, Host, zoned

OK = Status.SUCCESS
BYTES = ZONES * SIZE * BLOCK

pytestmark = pytest.mark.point("Z01", "P114")

Go = Callable[..., Bench]


@pytest.fixture
def go(lane: str) -> Iterator[Go]:
    """Moves a bench's controller to a new one with these namespaces."""
    benches: list[Bench] = []

    def moved(source: Bench, *namespaces: Namespace) -> Bench:
        device = Nvme(*namespaces, tuning=Tuning(pollers=0, native=lane == "native"))
        benches.append(move(source, device))
        return benches[-1]

    yield moved
    for bench in benches:
        bench.close()


def test_zones_are_the_same_after_a_move(make_bench: MakeBench, go: Go) -> None:
    source = make_bench(zoned(extension=64, most_open=2))
    host = Host(source.driver)
    assert host.write(0, 3) == OK
    assert host.send(Send.OPEN, 1) == OK
    assert host.send(Send.SET_EXTENSION, 2) == OK
    zones = source.device.namespaces[1].zones
    assert zones is not None
    zones.set_state(3, ZoneState.OFFLINE)
    assert ended(host.driver.set_feature(FeatureId.ASYNC_EVENT_CONFIGURATION, 1 << 27)) == OK
    zones.set_state(4, ZoneState.READ_ONLY)
    before = host.report(64)
    target = go(source, zoned(extension=64, most_open=2))
    assert host.report(64) == before
    assert host.write(3, 1) == OK
    assert host.send(Send.OPEN, 5) == OK
    assert host.states()[0] is ZoneState.CLOSED
    event = host.driver.admin.execute(Command(AdminOpcode.ASYNC_EVENT_REQUEST))
    assert event.result == 2 | 0xEF << 8 | 0xBF << 16 | 1 << 32
    assert target.device.state.changed_zones == {1: {3 * SIZE: None, 4 * SIZE: None}}


@pytest.mark.parametrize("cdw12", [0, FUA])
def test_appends_that_wait_are_begun_anew_where_the_controller_goes_on(
    make_bench: MakeBench, go: Go, cdw12: int
) -> None:
    slow = Slow()
    source = make_bench(zoned(slow))
    host = Host(source.driver)
    command = Command(IoOpcode.ZONE_APPEND, nsid=1, prp1=host.buffer, cdw12=cdw12)
    slow.gate.clear()
    cids = [host.pair.submit(command) for _ in range(3)]
    host.pair.ring()
    source.loop.run_once(timeout=0)
    assert len(source.device.state.outstanding) == 3
    slow.gate.set()
    go(source, zoned(Slow()))
    assert [host.pair.wait(cid).result for cid in cids] == [0, 1, 2]
    assert host.zone(0).pointer == 3


def test_zones_that_cannot_be_those_are_refused(make_bench: MakeBench, go: Go) -> None:
    source = make_bench(zoned())
    Host(source.driver)
    source.device.stop_device()
    saved = source.device.save_state()
    for space in (
        Namespace(RamStorage(BYTES)),
        Namespace(RamStorage(BYTES), zoned=ZoneLayout(size=2 * SIZE * BLOCK)),
    ):
        target = Bench(Nvme(space, tuning=Tuning(pollers=0)))
        target.device.stop_device()
        with pytest.raises(StateError):
            target.device.restore_state(saved)
        target.close()


def test_a_zoned_namespace_moves_with_a_host_that_does_not_see_it(make_bench: MakeBench, go: Go) -> None:
    source = make_bench(zoned(), RamStorage(1 << 20))
    zones = source.device.namespaces[1].zones
    assert zones is not None
    with zones.writing(0, 2):
        pass
    source.driver.enable(cc=CC_ENABLE)
    target = go(source, zoned(), Namespace(RamStorage(1 << 20)))
    assert list(target.device.namespaces) == [2]
    host = Host(target.driver)
    assert host.zone(0).pointer == 2
