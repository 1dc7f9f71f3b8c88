"""What is known of namespaces after a restart, and the pools they come from."""

import shutil
from pathlib import Path

import pytest

from outboard.devices.nvme import Namespace, Store, Subsystem
from outboard.devices.nvme.management.pool import FolderPool, Pool, RamPool
from outboard.devices.nvme.spec import AdminOpcode, Cns, FeatureId
from outboard.devices.nvme.status import Status
from outboard.errors import DefinitionError, SetupError, StorageError
from outboard.storage import RamStorage, open_file
from tests.devices.nvme.driver import ended
from tests.devices.nvme.management.conftest import MakeHosts
from tests.devices.nvme.management.host import MIB, Held, Host


def stop(*hosts: Host) -> None:
    """The end of a process: controllers and storages are gone."""
    for host in hosts:
        host.bench.device.disconnected()
    for space in hosts[0].bench.device.subsystem.namespaces.values():
        space.storage.close()
    for host in hosts:
        host.bench.device.on_connect()


@pytest.mark.point("M01", "N04", "I05")
def test_what_was_created_in_a_folder_is_there_after_a_restart(make_hosts: MakeHosts, tmp_path: Path) -> None:
    def start() -> list[Host]:
        pool = FolderPool(tmp_path / "spaces", 16 * MIB)
        return make_hosts(2, RamStorage(MIB), pool=pool, store=Store(tmp_path / "state.json"))

    host, other = start()
    host.create(2048, nmic=1)
    host.create(16, flbas=1)
    host.create(16, flbas=0x13)
    host.attach(2, 1, 2)
    host.attach(3, 2)
    host.write(b"k" * 512, 2, 2047)
    other.write(b"p" * 4096, 3)
    other.driver.set_feature(FeatureId.NAMESPACE_WRITE_PROTECTION, 1, nsid=3)
    names = host.identify(Cns.NAMESPACE_DESCRIPTORS, 2)
    unallocated = host.controller()["unvmcap"]
    stop(host, other)
    host, other = start()
    assert host.listed(Cns.ALLOCATED_NAMESPACES) == [1, 2, 3, 4]
    assert host.listed(Cns.ACTIVE_NAMESPACES) == [1, 2]
    assert other.listed(Cns.ACTIVE_NAMESPACES) == [1, 2, 3]
    assert host.read(2, 2047) == b"k" * 512
    assert other.read(3, 0, 4096) == b"p" * 4096
    assert other.write(bytes(4096), 3) == Status.NAMESPACE_WRITE_PROTECTED
    assert host.identify(Cns.NAMESPACE_DESCRIPTORS, 2) == names
    assert host.controller()["unvmcap"] == unallocated
    host.attach(4)
    assert host.namespace(4)["flbas"] == 0x13
    assert host.delete(2) == Status.SUCCESS
    assert not (tmp_path / "spaces" / "namespace2.img").exists()
    stop(host, other)
    host, other = start()
    assert host.listed(Cns.ALLOCATED_NAMESPACES) == [1, 3, 4]
    assert host.create(8).result == 2
    host.attach(2)
    assert host.identify(Cns.NAMESPACE_DESCRIPTORS, 2) != names


@pytest.mark.point("M02", "M01")
def test_a_namespace_of_the_configuration_keeps_what_hosts_made_of_it(make_hosts: MakeHosts) -> None:
    store, storage = Store(), RamStorage(MIB)
    host, _ = make_hosts(2, storage, store=store)
    assert ended(host.admin(AdminOpcode.FORMAT_NVM, 1, cdw10=1)) == Status.SUCCESS
    host.detach(1, 2)
    host.write(b"k" * 4096)
    again, second = make_hosts(2, storage, store=store)
    assert again.namespace(1)["flbas"] == 1
    assert again.read(1, 0, 4096) == b"k" * 4096
    assert second.try_read() == Status.INVALID_NAMESPACE
    assert second.attach(1) == Status.SUCCESS
    assert second.read(1, 0, 4096) == b"k" * 4096
    again.bench.device.subsystem.remove(1)
    assert Subsystem(storage, store=store).namespaces[1].block_size == 512, "taken out, and put in again"


@pytest.mark.point("M02", "S04")
def test_a_format_cut_off_by_a_power_cycle_is_done_again(make_hosts: MakeHosts) -> None:
    held, kept = Held(MIB, "discard"), Store()
    (host,) = make_hosts(1, held)
    held.gate.clear()
    cid = host.submit(AdminOpcode.FORMAT_NVM, 1, cdw10=1)
    assert held.entered.wait(60)
    kept.document = host.bench.device.subsystem.store.document
    held.gate.set()
    assert ended(host.driver.admin.wait(cid)) == Status.SUCCESS
    again = RamStorage(MIB)
    again.write(0, b"x" * MIB)
    (after,) = make_hosts(1, again, store=kept)
    after.until(lambda: after.try_read(1, 0, 4096) == Status.SUCCESS)
    assert after.namespace(1)["flbas"] == 1
    assert again.read(0, MIB) == bytes(MIB)


@pytest.mark.point("M01")
def test_a_disk_that_is_configured_later_takes_no_identifier_that_was_created(
    make_hosts: MakeHosts, tmp_path: Path
) -> None:
    store, pool = Store(), FolderPool(tmp_path, MIB)
    (host,) = make_hosts(1, RamStorage(MIB), pool=pool, store=store)
    host.create(8)
    stop(host)
    pool = FolderPool(tmp_path, MIB)
    with pytest.raises(DefinitionError, match="there already"):
        Subsystem(store=store).add(RamStorage(MIB), 2)
    (again,) = make_hosts(1, RamStorage(MIB), RamStorage(2 * MIB), pool=pool, store=store)
    assert again.listed(Cns.ALLOCATED_NAMESPACES) == [1, 2, 3]
    assert again.namespace(3)["nsze"] == 4096


@pytest.mark.point("M01")
def test_what_is_lost_is_left_out_and_its_identifier_stays_taken(
    make_hosts: MakeHosts, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store, pool = Store(), FolderPool(tmp_path, MIB)
    (host,) = make_hosts(1, pool=pool, store=store)
    host.create(8)
    host.create(8)
    stop(host)
    (tmp_path / "namespace1.img").unlink()
    (again,) = make_hosts(1, pool=FolderPool(tmp_path, MIB), store=store)
    assert again.listed(Cns.ALLOCATED_NAMESPACES) == [2]
    assert again.create(8).result == 3
    Subsystem(store=store)
    lost, nowhere = [record.message for record in caplog.records if "namespace 1" in record.message]
    assert f"namespace 1 is not there: {tmp_path}/namespace1.img does not exist" in lost
    assert nowhere == "namespace 1 was created from a pool, and there is none"


@pytest.fixture(params=["ram", "folder"])
def pool(request: pytest.FixtureRequest, tmp_path: Path) -> Pool:
    return RamPool(MIB) if request.param == "ram" else FolderPool(tmp_path / "deep" / "spaces", MIB)


def test_a_pool_gives_no_more_than_it_has(pool: Pool) -> None:
    storage = pool.create(1, MIB // 2)
    assert (storage.size, pool.capacity, pool.free) == (MIB // 2, MIB, MIB // 2)
    assert storage.read(0, storage.size) == bytes(storage.size)
    with pytest.raises(StorageError, match="not free"):
        pool.create(2, MIB // 2 + 1)
    storage.write(0, b"x")
    pool.delete(1)
    assert pool.free == MIB
    assert pool.create(1, MIB).read(0, 1) == b"\0"
    for _ in range(2):
        pool.close()


def test_a_file_nobody_knows_of_is_replaced(tmp_path: Path) -> None:
    pool = FolderPool(tmp_path, MIB)
    pool.path(1).write_bytes(b"left over")
    storage = pool.create(1, 4096)
    assert storage.read(0, 4096) == bytes(4096)
    pool.close()
    again = FolderPool(tmp_path, MIB)
    assert again.reopen(1, 4096).size == 4096
    assert again.free == MIB - 4096
    again.close()


def test_a_folder_that_cannot_be_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match="cannot hold namespaces"):
        FolderPool(tmp_path / "file", MIB)
    pool = FolderPool(tmp_path / "spaces", MIB)
    pool.path(1).mkdir()
    with pytest.raises(StorageError, match="cannot replace"):
        pool.create(1, 4096)
    (tmp_path / "spaces" / "namespace1.img").rmdir()
    (tmp_path / "spaces").rmdir()
    with pytest.raises(StorageError, match="does not exist"):
        pool.create(1, 4096)
    assert pool.free == MIB


def test_memory_there_is_not_is_not_given() -> None:
    pool = RamPool(1 << 62)
    with pytest.raises(StorageError):
        pool.create(1, 1 << 61)
    assert pool.free == 1 << 62


@pytest.mark.point("M01")
def test_a_pool_that_cannot_is_insufficient_capacity(make_hosts: MakeHosts, tmp_path: Path) -> None:
    (host,) = make_hosts(1, pool=RamPool(1 << 62))
    assert ended(host.create(1 << 52)) == Status.NAMESPACE_INSUFFICIENT_CAPACITY
    assert host.listed(Cns.ALLOCATED_NAMESPACES) == []


def test_the_state_names_what_is_known(make_hosts: MakeHosts) -> None:
    store = Store()
    (host,) = make_hosts(1, Namespace(RamStorage(MIB), shared=False), pool=RamPool(MIB), store=store)
    assert store.get("namespaces") is None, "a host has decided nothing"
    host.create(8)
    each = store.get("namespaces")["each"]
    assert list(each) == ["2"]
    assert (each["2"]["size"], each["2"]["attached"]) == (4096, [])


def test_a_file_of_a_pool_is_a_disk_like_any_other(make_hosts: MakeHosts, tmp_path: Path) -> None:
    (host,) = make_hosts(1, pool=FolderPool(tmp_path, MIB))
    host.create(8)
    host.attach(1)
    host.write(b"k" * 512)
    stop(host)
    disk = open_file(tmp_path / "namespace1.img")
    assert disk.read(0, 512) == b"k" * 512
    disk.close()


def test_what_cannot_be_kept_is_said_and_goes_on(
    make_hosts: MakeHosts, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    (host,) = make_hosts(1, pool=RamPool(MIB), store=Store(folder / "state.json"))
    shutil.rmtree(folder)
    assert host.create(8).result == 1
    assert host.attach(1) == Status.SUCCESS
    assert ended(host.admin(AdminOpcode.FORMAT_NVM, 1, cdw10=1)) == Status.SUCCESS
    assert host.read(1, 0, 4096) == bytes(4096)
    assert "namespaces will not outlive a power cycle" in caplog.text
    assert "format will not outlive a power cycle" in caplog.text
