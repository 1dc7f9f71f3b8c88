"""What a subsystem remembers, where that cannot be written for a while, and who may not inherit it."""

from pathlib import Path

import pytest

from outboard.devices.nvme import Namespace, Nvme, Store, Subsystem
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.datapath.tuning import Tuning
from outboard.devices.nvme.management.pool import RamPool
from outboard.devices.nvme.spec import FeatureId, IoOpcode
from outboard.devices.nvme.status import Status
from outboard.errors import SetupError
from outboard.storage import RamStorage
from tests.devices.nvme.bench import Bench
from tests.devices.nvme.conftest import MakePaths
from tests.devices.nvme.driver import ended
from tests.devices.nvme.hosts import PTPL_ON, WE, A, B, Host
from tests.devices.nvme.management.conftest import MakeHosts
from tests.devices.nvme.zoned import zoned

MIB = 1 << 20


@pytest.fixture
def lane() -> str:
    """What is remembered is the same in both."""
    return "plain"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a store is, which can be moved away so that nothing can be written."""
    folder = tmp_path / "here"
    folder.mkdir()
    return folder


def take_away(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))


def bring_back(folder: Path) -> None:
    folder.with_name("elsewhere").rename(folder)


def test_what_could_not_be_kept_is_not_there_and_is_kept_when_it_is_put_again(folder: Path) -> None:
    store = Store(folder / "state")
    store.put("section", "old")
    take_away(folder)
    with pytest.raises(SetupError, match="cannot keep the state"):
        store.put("section", "new")
    assert store.get("section") == "old"
    bring_back(folder)
    store.put("other", 1)
    assert Store(folder / "state").get("section") == "old"
    store.put("section", "new")
    assert Store(folder / "state").get("section") == "new"


def test_what_lasts_until_the_next_power_cycle_outlives_it_if_anything_is_kept_before(folder: Path) -> None:
    disks = Subsystem(RamStorage(MIB), store=Store(folder / "state"))
    take_away(folder)
    disks.keep("section", "new")
    assert disks.store.get("section") == "new"
    bring_back(folder)
    disks.keep("section", "new")
    assert Store(folder / "state").get("section") == "new"


def test_a_reservation_that_was_refused_is_not_there_after_a_power_cycle(
    make_paths: MakePaths, folder: Path
) -> None:
    first, _ = make_paths(RamStorage(MIB), store=Store(folder / "state"))
    host = Host(first, A)
    take_away(folder)
    assert host.register(1, options=PTPL_ON) == Status.INTERNAL_ERROR
    assert host.report(extended=True).controllers == []
    bring_back(folder)
    host.driver.set_feature(FeatureId.TEMPERATURE_THRESHOLD, 300, save=True)
    assert Subsystem(RamStorage(MIB), store=Store(folder / "state")).namespaces[1].reservation.keys == {}


@pytest.mark.point("M01", "N14")
def test_a_namespace_that_a_host_creates_inherits_nothing(make_hosts: MakeHosts) -> None:
    store = Store()
    (before,) = make_hosts(1, RamStorage(MIB), RamStorage(MIB), store=store)
    driver = before.driver
    owner = Host(before.bench, A, nsid=2)
    assert owner.register(1, options=PTPL_ON) == Status.SUCCESS
    assert owner.acquire(1, WE) == Status.SUCCESS
    assert ended(owner.pair.execute(Command(IoOpcode.WRITE_UNCORRECTABLE, nsid=2))) == Status.SUCCESS
    assert ended(driver.set_feature(FeatureId.ERROR_RECOVERY, 77, nsid=2, save=True)) == Status.SUCCESS
    # The same drive, configured with one namespace less.
    (after,) = make_hosts(1, RamStorage(MIB), store=store, pool=RamPool(MIB))
    assert after.create(512).result == 2
    assert after.attach(2) == Status.SUCCESS
    other = Host(after.bench, B, nsid=2)
    assert other.report(extended=True).controllers == []
    assert (other.read(), other.write()) == (Status.SUCCESS, Status.SUCCESS)
    assert other.driver.get_feature(FeatureId.ERROR_RECOVERY, nsid=2).result == 0


@pytest.mark.point("N14")
def test_a_namespace_that_is_deleted_takes_the_notification_mask_along(make_hosts: MakeHosts) -> None:
    (host,) = make_hosts(1, pool=RamPool(MIB))
    for _ in range(2):
        assert host.create(512).result == 1
        assert host.attach(1) == Status.SUCCESS
        assert host.driver.get_feature(FeatureId.RESERVATION_NOTIFICATION_MASK, nsid=1).result == 0
        host.driver.set_feature(FeatureId.RESERVATION_NOTIFICATION_MASK, 0xE, nsid=1)
        assert host.delete(1) == Status.SUCCESS


def test_a_namespace_goes_though_nothing_can_be_kept(make_hosts: MakeHosts, folder: Path) -> None:
    (host,) = make_hosts(1, pool=RamPool(MIB), store=Store(folder / "state"))
    assert host.create(512).result == 1
    assert host.attach(1) == Status.SUCCESS
    owner = Host(host.bench, A)
    assert owner.register(1, options=PTPL_ON) == Status.SUCCESS
    host.pair, host.driver = owner.pair, owner.driver
    assert ended(host.driver.set_feature(FeatureId.ERROR_RECOVERY, 77, nsid=1, save=True)) == Status.SUCCESS
    take_away(folder)
    assert host.delete(1) == Status.SUCCESS
    assert host.create(1024).result == 1, "its room is free again"
    bring_back(folder)


def test_a_reset_is_a_whole_one_though_nothing_can_be_kept(make_paths: MakePaths, folder: Path) -> None:
    bench, _ = make_paths(RamStorage(MIB), store=Store(folder / "state"))
    nameless = Host(bench)
    assert nameless.register(1, options=PTPL_ON) == Status.SUCCESS
    take_away(folder)
    nameless.driver.set_feature(FeatureId.TEMPERATURE_THRESHOLD, 300)
    nameless.driver.disable()
    assert nameless.driver.status & 1 == 0
    bring_back(folder)
    again = Host(bench)
    assert again.report().controllers == []
    assert again.driver.get_feature(FeatureId.TEMPERATURE_THRESHOLD).result != 300


@pytest.mark.point("Z04")
def test_a_controller_that_goes_leaves_no_namespace_behind_that_its_host_could_not_see(lane: str) -> None:
    disks = Subsystem(zoned(), Namespace(RamStorage(MIB), shared=False))
    tuning = Tuning(pollers=0, native=False)
    bench = Bench(Nvme(subsystem=disks, tuning=tuning))
    bench.driver.enable()  # of the NVM command set alone
    bench.leave()
    assert [space.attached for space in disks.namespaces.values()] == [set(), set()]
    disks.announce(1)
    for space in disks.namespaces.values():
        space.storage.close()


@pytest.mark.point("N14")
def test_who_uses_the_next_controller_of_a_number_is_another_host(lane: str) -> None:
    disks = Subsystem(RamStorage(MIB))
    for _ in range(2):
        bench = Bench(Nvme(subsystem=disks, tuning=Tuning(pollers=0, native=False)))
        host = Host(bench)
        assert host.report().controllers == []
        assert host.register(1) == Status.SUCCESS
        assert host.acquire(1, WE) == Status.SUCCESS
        bench.leave()
    disks.namespaces[1].storage.close()
