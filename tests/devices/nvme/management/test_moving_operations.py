"""A drive moves to another process in the middle of something: that goes on there, and only there."""

import pytest

from outboard.devices.nvme import Nvme, Subsystem
from outboard.devices.nvme.datapath.tuning import Tuning
from outboard.devices.nvme.spec import AdminOpcode, FeatureId
from outboard.devices.nvme.status import Status
from outboard.storage import NullStorage, RamStorage
from tests.devices.nvme.conftest import MakeBench
from tests.devices.nvme.driver import ended
from tests.devices.nvme.management.conftest import MakeHosts
from tests.devices.nvme.management.host import MIB, Held, Host
from tests.devices.nvme.test_moving import move


@pytest.fixture
def source(make_hosts: MakeHosts) -> Host:
    """A host whose drive is held up when it erases; the second step of it never is made."""
    return make_hosts(1, Held(128 * MIB, "discard", "read"))[0]


def held(host: Host) -> Held:
    storage = host.bench.device.namespaces[1].storage
    assert isinstance(storage, Held)
    return storage


def begin(host: Host, opcode: AdminOpcode, nsid: int, dword: int) -> int:
    """Begin something, and let its first step end only when the device has come to rest."""
    with host.bench.device.subsystem.turn:
        return host.submit(opcode, nsid, cdw10=dword)


@pytest.mark.point("M02", "P114")
def test_a_format_ends_where_the_drive_has_gone(
    source: Host, lane: str, request: pytest.FixtureRequest
) -> None:
    with source.bench.device.subsystem.turn:
        cid = begin(source, AdminOpcode.FORMAT_NVM, 1, 1)
        target = move(
            source.bench, Nvme(RamStorage(128 * MIB), tuning=Tuning(pollers=0, native=lane == "native"))
        )
    request.addfinalizer(target.close)
    assert ended(source.driver.admin.wait(cid)) == Status.SUCCESS
    assert target.device.namespaces[1].block_size == 4096
    assert source.bench.device.namespaces[1].block_size == 512
    source.bench.device.forget_stop()
    assert not held(source).entered.is_set(), "nothing is done to a storage that is another's now"


@pytest.mark.point("M03", "M04", "P114")
@pytest.mark.parametrize(("opcode", "dword"), [(AdminOpcode.SANITIZE, 2), (AdminOpcode.DEVICE_SELF_TEST, 2)])
def test_what_is_under_way_goes_on_where_the_drive_has_gone(
    source: Host, lane: str, request: pytest.FixtureRequest, opcode: AdminOpcode, dword: int
) -> None:
    with source.bench.device.subsystem.turn:
        begin(source, opcode, 1, dword)
        target = move(
            source.bench, Nvme(NullStorage(128 * MIB), tuning=Tuning(pollers=0, native=lane == "native"))
        )
    request.addfinalizer(target.close)
    host = Host.__new__(Host)
    host.bench, host.driver, host.pair = target, source.driver, source.pair
    if opcode == AdminOpcode.SANITIZE:
        host.until(lambda: int(host.sanitize_log()["sstat"]) & 7 == 1)
        assert host.sanitize_log()["scdw10"] == 2
    else:
        host.until(lambda: host.self_test_log()[0] == 0)
        assert host.self_test_log()[2][0]["status"] == 0x20
    assert not held(source).entered.is_set()


@pytest.mark.point("M02", "P114")
def test_a_drive_that_does_not_go_after_all_goes_on(source: Host) -> None:
    device = source.bench.device
    with device.subsystem.turn:
        cid = begin(source, AdminOpcode.FORMAT_NVM, 1, 1)
        device.stop_device()
        device.save_state()
    assert not held(source).entered.is_set()
    device.run_device()
    assert ended(source.driver.admin.wait(cid)) == Status.SUCCESS
    assert source.namespace(1)["flbas"] == 1


@pytest.mark.point("P114")
def test_a_drive_at_rest_touches_nothing(source: Host) -> None:
    """A step that has begun ends before the drive is at rest; no other one is begun."""
    device, storage = source.bench.device, held(source)
    storage.gate.clear()
    source.submit(AdminOpcode.FORMAT_NVM, 1)
    assert storage.entered.wait(60)
    storage.gate.set()
    device.stop_device()
    storage.entered.clear()
    with device.subsystem.turn.released():
        assert not storage.entered.wait(0.05)
    device.run_device()
    source.until(lambda: device.namespaces[1].barred is None)


@pytest.mark.point("F03", "P114")
def test_write_protection_goes_along(
    make_bench: MakeBench, lane: str, request: pytest.FixtureRequest
) -> None:
    host = Host(make_bench(subsystem=Subsystem(RamStorage(MIB))))
    host.driver.set_feature(FeatureId.NAMESPACE_WRITE_PROTECTION, 2, nsid=1)
    target = move(host.bench, Nvme(RamStorage(MIB), tuning=Tuning(pollers=0, native=lane == "native")))
    request.addfinalizer(target.close)
    assert host.write(bytes(512)) == Status.NAMESPACE_WRITE_PROTECTED
