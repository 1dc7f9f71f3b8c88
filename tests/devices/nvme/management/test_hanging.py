"""A storage that hangs holds up what needs it, and nothing else: not the drive, not another controller."""

from collections.abc import Callable
from threading import Thread

import pytest

from outboard.devices.nvme.command import Command
from outboard.devices.nvme.spec import BROADCAST, AdminOpcode, Cns, FeatureId, IoOpcode, SelfTestResult
from outboard.devices.nvme.status import Status
from outboard.storage import RamStorage
from tests.devices.nvme.driver import ended
from tests.devices.nvme.management.conftest import MakeHosts
from tests.devices.nvme.management.host import DETACH, MIB, Held, Host

BLOCK_ERASE = 2
WRITTEN = b"w" * 512


class Stand:
    """Two controllers with namespaces 1, whose storage hangs in a write of the second one, and 2."""

    def __init__(self, make_hosts: MakeHosts) -> None:
        self.held = Held(MIB, "write")
        self.host, self.other = make_hosts(2, self.held, RamStorage(MIB))
        self.held.gate.clear()
        driver = self.other.driver
        driver.ram.write(driver.data, WRITTEN)
        write = driver.rw(IoOpcode.WRITE, 0, 1, driver.data, 512)
        self.writes = [self.other.pair.submit(write) for _ in range(5)]
        self.other.pair.ring()
        self.other.bench.settle()
        assert self.held.entered.wait(60)

    def writes_end(self) -> set[Status]:
        """How the writes end."""
        return {ended(self.other.pair.wait(cid)) for cid in self.writes}

    def everything_else_works(self) -> None:
        assert not self.held.gate.is_set()
        for each in (self.host, self.other):
            assert ended(each.driver.identify(Cns.CONTROLLER)) == Status.SUCCESS
            assert each.write(b"2" * 512, nsid=2) == Status.SUCCESS
            assert each.read(2) == b"2" * 512

    def stored(self) -> bytes:
        return self.held.read(0, 512)


@pytest.fixture
def stand(make_hosts: MakeHosts) -> Stand:
    return Stand(make_hosts)


@pytest.mark.point("M03")
def test_sanitize_ends_commands_that_wait_and_erases_what_still_comes_of_them(stand: Stand) -> None:
    host = stand.host
    assert ended(host.admin(AdminOpcode.SANITIZE, cdw10=BLOCK_ERASE)) == Status.SUCCESS
    assert stand.writes_end() == {Status.SANITIZE_IN_PROGRESS}
    for each in (host, stand.other):
        assert ended(each.driver.identify(Cns.CONTROLLER)) == Status.SUCCESS
        assert each.sanitize_log()["sstat"] == 2
        assert each.try_read(1) == each.try_read(2) == Status.SANITIZE_IN_PROGRESS
    stand.held.gate.set()
    host.until(lambda: host.sanitize_log()["sstat"] != 2)
    assert host.read() == stand.stored() == bytes(512)


@pytest.mark.point("M02")
def test_format_ends_commands_that_wait_and_erases_what_still_comes_of_them(stand: Stand) -> None:
    cid = stand.host.submit(AdminOpcode.FORMAT_NVM, 1)
    assert stand.writes_end() == {Status.FORMAT_IN_PROGRESS}
    stand.everything_else_works()
    assert cid not in stand.host.driver.admin.done
    stand.held.gate.set()
    assert ended(stand.host.driver.admin.wait(cid)) == Status.SUCCESS
    assert stand.host.read() == stand.stored() == bytes(512)


@pytest.mark.point("M02", "M03")
@pytest.mark.parametrize(
    ("opcode", "nsid", "status"),
    [
        (AdminOpcode.SANITIZE, 0, Status.SANITIZE_IN_PROGRESS),
        (AdminOpcode.FORMAT_NVM, 1, Status.FORMAT_IN_PROGRESS),
    ],
)
def test_a_flush_of_all_namespaces_that_waits_ends_with_them(
    stand: Stand, opcode: AdminOpcode, nsid: int, status: Status
) -> None:
    flush = stand.other.pair.submit(Command(IoOpcode.FLUSH, nsid=BROADCAST))
    stand.other.pair.ring()
    stand.other.bench.settle()
    stand.host.submit(opcode, nsid, cdw10=BLOCK_ERASE if opcode == AdminOpcode.SANITIZE else 0)
    assert ended(stand.other.pair.wait(flush)) == status
    stand.held.gate.set()


def protect(host: Host) -> int:
    feature = FeatureId.NAMESPACE_WRITE_PROTECTION
    return host.submit(AdminOpcode.SET_FEATURES, 1, cdw10=feature, cdw11=1)


def take_from_second(host: Host) -> int:
    host.driver.ram.write(host.driver.data, b"\1\0\2\0".ljust(4096, b"\0"))
    return host.submit(AdminOpcode.NAMESPACE_ATTACHMENT, 1, cdw10=DETACH)


@pytest.mark.point("M01", "N06")
@pytest.mark.parametrize(
    ("forbid", "status"),
    [(protect, Status.COMMAND_INTERRUPTED), (take_from_second, Status.INVALID_NAMESPACE)],
)
def test_what_forbids_writes_completes_when_the_last_one_has_ended(
    stand: Stand, forbid: Callable[[Host], int], status: Status
) -> None:
    cid = forbid(stand.host)
    assert stand.writes_end() == {status}
    stand.everything_else_works()
    assert cid not in stand.host.driver.admin.done
    stand.held.gate.set()
    assert ended(stand.host.driver.admin.wait(cid)) == Status.SUCCESS
    assert stand.stored() == WRITTEN


@pytest.mark.point("M04")
@pytest.mark.parametrize(
    ("opcode", "nsid", "dword", "result"),
    [
        pytest.param(AdminOpcode.DEVICE_SELF_TEST, 1, 0xF, SelfTestResult.ABORTED, id="aborted"),
        pytest.param(AdminOpcode.SANITIZE, 0, BLOCK_ERASE, SelfTestResult.SANITIZED, id="sanitized"),
        pytest.param(AdminOpcode.FORMAT_NVM, 1, 0, SelfTestResult.FORMATTED, id="formatted"),
    ],
)
def test_a_self_test_ends_although_its_read_does_not(
    make_hosts: MakeHosts, opcode: AdminOpcode, nsid: int, dword: int, result: SelfTestResult
) -> None:
    held = Held(MIB, "read")
    host, other = make_hosts(2, held, RamStorage(MIB))
    held.gate.clear()
    assert ended(host.admin(AdminOpcode.DEVICE_SELF_TEST, 1, cdw10=2)) == Status.SUCCESS
    assert held.entered.wait(60)
    cid = other.submit(opcode, nsid, cdw10=dword)
    assert ended(other.driver.admin.wait(cid)) == Status.SUCCESS
    assert not held.gate.is_set()
    background = host.bench.device.subsystem.background
    host.until(lambda: not background.operations)
    operation, _, results = host.self_test_log()
    assert (operation, len(results), int(results[0]["status"]) & 0xF) == (0, 1, result)
    held.gate.set()


@pytest.mark.point("M05")
def test_a_resize_waits_for_what_a_controller_does_that_was_just_detached(stand: Stand) -> None:
    subsystem, order = stand.host.bench.device.subsystem, list[str]()
    grow = stand.held.resize

    def noted(size: int) -> None:
        order.append("resize")
        grow(size)

    stand.held.resize = noted  # type: ignore[method-assign]
    subsystem.detach(1, stand.other.bench.device.cntlid)
    growing = Thread(target=lambda: subsystem.resize(1, 2 * MIB))
    growing.start()
    growing.join(0.1)
    order.append("write ends")
    stand.held.gate.set()
    growing.join(60)
    assert order == ["write ends", "resize"]
