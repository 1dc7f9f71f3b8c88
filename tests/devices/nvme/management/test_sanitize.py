"""Sanitize: every way of it, what is in the way meanwhile, failures, and that nothing stops it."""

import pytest

from outboard.devices.nvme import Namespace, Store
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.management.pool import RamPool
from outboard.devices.nvme.spec import AdminOpcode, FeatureId, IoOpcode, LogId
from outboard.devices.nvme.status import Status
from outboard.errors import StorageError
from outboard.storage import NullStorage, RamStorage
from tests.devices.nvme.driver import do_not_retry, ended
from tests.devices.nvme.management.conftest import MakeHosts
from tests.devices.nvme.management.host import MIB, SANITIZE_COMPLETED, Held, Host

SANITIZE = AdminOpcode.SANITIZE
EXIT, BLOCK_ERASE, OVERWRITE, CRYPTO_ERASE = 1, 2, 3, 4
UNRESTRICTED, INVERT, KEEP = 1 << 3, 1 << 8, 1 << 9
COMPLETED, IN_PROGRESS, FAILED = 1, 2, 3
ERASED = 1 << 8


def finish(host: Host) -> int:
    """Wait until nothing is under way; the status of the operation."""
    host.until(lambda: int(host.sanitize_log()["sstat"]) & 7 != IN_PROGRESS)
    return int(host.sanitize_log()["sstat"])


@pytest.mark.point("M03", "L05")
@pytest.mark.parametrize(
    ("dword", "pattern", "after", "passes"),
    [
        pytest.param(BLOCK_ERASE, 0, 0, 0, id="block erase"),
        pytest.param(BLOCK_ERASE | KEEP, 0, 0, 0, id="block erase, allocated"),
        pytest.param(CRYPTO_ERASE, 0, 0, 0, id="crypto erase"),
        pytest.param(OVERWRITE | 1 << 4 | KEEP, 0x12345678, 0x12345678, 1, id="one pass"),
        pytest.param(OVERWRITE | 1 << 4 | KEEP | INVERT, 0x0F0F0F0F, 0x0F0F0F0F, 1, id="one pass, inverting"),
        pytest.param(OVERWRITE | 4 << 4 | KEEP | INVERT, 0x0F0F0F0F, 0x0F0F0F0F, 4, id="four passes"),
        pytest.param(OVERWRITE | KEEP, 0xFFFFFFFF, 0xFFFFFFFF, 16, id="sixteen passes"),
        pytest.param(OVERWRITE | 2 << 4, 0x12345678, 0, 2, id="two passes, deallocated"),
    ],
)
def test_nothing_is_left_of_any_namespace(
    make_hosts: MakeHosts, dword: int, pattern: int, after: int, passes: int
) -> None:
    (host,) = make_hosts(1, RamStorage(MIB), Namespace(RamStorage(MIB), 4096), pool=RamPool(MIB))
    host.create(64)
    storages = [space.storage for space in host.bench.device.subsystem.namespaces.values()]
    for storage in storages:
        storage.write(storage.size - 512, b"secret" * 80)
    host.listen()
    assert ended(host.admin(SANITIZE, cdw10=dword, cdw11=pattern)) == Status.SUCCESS
    assert finish(host) == COMPLETED | passes << 3 | ERASED
    log = host.sanitize_log()
    assert (log["sprog"], log["scdw10"]) == (0xFFFF, dword)
    for storage in storages:
        assert storage.read(0, storage.size) == after.to_bytes(4, "little") * (storage.size // 4)
    assert host.read() == after.to_bytes(4, "little") * 128
    assert host.heard() == [SANITIZE_COMPLETED]


@pytest.mark.point("M03")
def test_each_pass_writes_the_other_pattern(make_hosts: MakeHosts) -> None:
    class Noting(RamStorage):
        fast = None
        seen: list[bytes] = []

        def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
            if offset == 0:
                self.seen.append(bytes(data[:4]))
            super().write(offset, data)

    storage = Noting(MIB)
    (host,) = make_hosts(1, storage)
    host.admin(SANITIZE, cdw10=OVERWRITE | 3 << 4 | INVERT | KEEP, cdw11=0x01020304)
    finish(host)
    assert [seen.hex() for seen in storage.seen] == ["04030201", "fbfcfdfe", "04030201"]


@pytest.mark.point("M03")
def test_the_first_write_afterwards_ends_that_everything_is_erased(make_hosts: MakeHosts) -> None:
    host, other = make_hosts(2, RamStorage(MIB))
    assert host.sanitize_log()["sstat"] == 0, "never sanitized"
    host.admin(SANITIZE, cdw10=BLOCK_ERASE)
    assert finish(host) == COMPLETED | ERASED
    host.read()
    assert other.sanitize_log()["sstat"] == COMPLETED | ERASED
    assert [other.write(b"x" * 512) for _ in range(3)] == [Status.SUCCESS] * 3
    assert host.sanitize_log()["sstat"] == other.sanitize_log()["sstat"] == COMPLETED
    assert host.read() == b"x" * 512


@pytest.mark.point("M03")
@pytest.mark.parametrize("action", [0, 5, 6, 7])
def test_reserved_actions_are_invalid_fields(make_hosts: MakeHosts, action: int) -> None:
    (host,) = make_hosts(1, RamStorage(MIB))
    completion = host.admin(SANITIZE, cdw10=action)
    assert ended(completion) == Status.INVALID_FIELD
    assert do_not_retry(completion)


@pytest.mark.point("M03")
def test_meanwhile_only_what_the_specification_lists_is_executed(make_hosts: MakeHosts) -> None:
    held = Held(128 * MIB, "discard")
    host, other = make_hosts(2, held, RamStorage(MIB), pool=RamPool(MIB))
    held.gate.clear()
    assert ended(host.admin(SANITIZE, cdw10=BLOCK_ERASE)) == Status.SUCCESS
    assert held.entered.wait(60)
    for each in (host, other):
        for nsid in (1, 2):
            assert each.try_read(nsid) == each.write(bytes(512), nsid) == Status.SANITIZE_IN_PROGRESS
        flush = each.pair.execute(Command(IoOpcode.FLUSH, nsid=0xFFFF_FFFF))
        assert ended(flush) == Status.SANITIZE_IN_PROGRESS
        assert not do_not_retry(flush)
        for opcode in (
            SANITIZE,
            AdminOpcode.FORMAT_NVM,
            AdminOpcode.NAMESPACE_MANAGEMENT,
            AdminOpcode.NAMESPACE_ATTACHMENT,
            AdminOpcode.DEVICE_SELF_TEST,
            AdminOpcode.FIRMWARE_DOWNLOAD,
            AdminOpcode.FIRMWARE_COMMIT,
            AdminOpcode.SECURITY_RECEIVE,
        ):
            assert ended(each.admin(opcode, 1, cdw10=2)) == Status.SANITIZE_IN_PROGRESS
        for log in LogId.ERROR_INFORMATION, LogId.HEALTH, LogId.CHANGED_NAMESPACES, LogId.SANITIZE_STATUS:
            assert ended(each.driver.get_log(log, 512)) == Status.SUCCESS
        for log in LogId.FIRMWARE_SLOT, LogId.SELF_TEST:
            assert ended(each.driver.get_log(log, 512)) == Status.SANITIZE_IN_PROGRESS
        assert ended(each.driver.set_feature(FeatureId.VOLATILE_WRITE_CACHE, 1)) == Status.SUCCESS
        assert each.namespace(1)["nsze"]
        assert each.sanitize_log()["sstat"] == IN_PROGRESS
        assert int(each.sanitize_log()["sprog"]) < 0xFFFF
    held.gate.set()
    assert finish(other) == COMPLETED | ERASED
    assert host.read(2) == other.read() == bytes(512)


@pytest.mark.point("M03", "S01")
def test_it_goes_on_through_a_reset(make_hosts: MakeHosts) -> None:
    held = Held(128 * MIB, "discard")
    (host,) = make_hosts(1, held)
    host.write(b"secret" * 85 + b"ab")
    held.gate.clear()
    host.admin(SANITIZE, cdw10=BLOCK_ERASE)
    assert held.entered.wait(60)
    host.restart()
    host.listen()
    assert host.try_read() == Status.SANITIZE_IN_PROGRESS
    held.gate.set()
    assert finish(host) == COMPLETED | ERASED
    assert host.heard() == [SANITIZE_COMPLETED]
    assert host.read() == bytes(512)


@pytest.mark.point("M03", "S04")
def test_it_goes_on_after_a_power_cycle(make_hosts: MakeHosts) -> None:
    """The first subsystem is cut off in the middle, and another one begins with what was kept."""
    held, store = Held(128 * MIB, "discard"), Store()
    (host,) = make_hosts(1, held, store=store)
    held.gate.clear()
    host.admin(SANITIZE, cdw10=BLOCK_ERASE)
    assert held.entered.wait(60)
    again, kept = RamStorage(MIB), Store()
    kept.document = store.document
    again.write(0, b"secret")
    held.gate.set()
    finish(host)
    (after,) = make_hosts(1, again, store=kept)
    assert finish(after) == COMPLETED | ERASED
    assert again.read(0, 512) == bytes(512)
    assert after.sanitize_log()["scdw10"] == BLOCK_ERASE


@pytest.mark.point("M03")
@pytest.mark.parametrize("unrestricted", [False, True])
def test_a_failure_is_left_only_as_it_may_be(make_hosts: MakeHosts, unrestricted: bool) -> None:
    held, store = Held(MIB, "discard"), Store()
    (host,) = make_hosts(1, held, store=store)
    host.listen()
    held.failure = StorageError("the medium is broken")
    mode = UNRESTRICTED if unrestricted else 0
    assert ended(host.admin(SANITIZE, cdw10=BLOCK_ERASE | mode)) == Status.SUCCESS
    assert finish(host) == FAILED
    assert host.heard() == [SANITIZE_COMPLETED]
    completion = host.admin(AdminOpcode.FORMAT_NVM, 1)
    assert ended(completion) == host.try_read() == Status.SANITIZE_FAILED
    assert do_not_retry(completion)
    host.restart()
    assert host.try_read() == Status.SANITIZE_FAILED
    left = host.admin(SANITIZE, cdw10=EXIT)
    again = host.admin(SANITIZE, cdw10=BLOCK_ERASE | UNRESTRICTED) if not unrestricted else left
    expected = Status.SUCCESS if unrestricted else Status.SANITIZE_FAILED
    assert ended(left) == ended(again) == expected
    assert host.try_read() == expected
    held.failure = None
    assert ended(host.admin(SANITIZE, cdw10=BLOCK_ERASE)) == Status.SUCCESS
    assert finish(host) == COMPLETED | ERASED
    assert host.read() == bytes(512)


@pytest.mark.point("M03")
def test_exit_failure_mode_without_a_failure_changes_nothing(make_hosts: MakeHosts) -> None:
    (host,) = make_hosts(1, RamStorage(MIB))
    assert ended(host.admin(SANITIZE, cdw10=EXIT)) == Status.SUCCESS
    assert host.sanitize_log()["sstat"] == 0


@pytest.mark.point("M03")
def test_a_write_protected_namespace_is_not_sanitized(make_hosts: MakeHosts) -> None:
    (host,) = make_hosts(1, RamStorage(MIB), RamStorage(MIB))
    host.driver.set_feature(FeatureId.NAMESPACE_WRITE_PROTECTION, 1, nsid=2)
    assert ended(host.admin(SANITIZE, cdw10=BLOCK_ERASE)) == Status.NAMESPACE_WRITE_PROTECTED


@pytest.mark.point("M03")
def test_namespaces_come_and_go_meanwhile(make_hosts: MakeHosts) -> None:
    held = Held(128 * MIB, "discard")
    (host,) = make_hosts(1, held, RamStorage(MIB))
    subsystem = host.bench.device.subsystem
    held.gate.clear()
    host.admin(SANITIZE, cdw10=BLOCK_ERASE)
    assert held.entered.wait(60)
    subsystem.add(RamStorage(MIB))
    assert host.try_read(3) == Status.SANITIZE_IN_PROGRESS
    subsystem.remove(2).storage.close()
    held.gate.set()
    subsystem.remove(1).storage.close()
    assert finish(host) == COMPLETED | ERASED
    assert host.read(3) == bytes(512)


@pytest.mark.point("M03", "L05")
def test_identify_and_the_log_say_what_it_can_and_how_long_it_takes(make_hosts: MakeHosts) -> None:
    (host,) = make_hosts(1, RamStorage(MIB))
    assert host.controller()["sanicap"] == 0x4000_0007
    log = host.sanitize_log()
    assert log["sprog"] == 0xFFFF
    assert (log["overwrite_time"], log["block_erase_time"], log["crypto_erase_time"]) == (16, 1, 1)
    assert host.driver.set_feature(FeatureId.SANITIZE_CONFIGURATION, 1).status == 0
    assert host.driver.get_feature(FeatureId.SANITIZE_CONFIGURATION).result == 1


@pytest.mark.point("L05")
def test_estimates_of_a_huge_drive_fit_where_they_stand(make_hosts: MakeHosts) -> None:
    (host,) = make_hosts(1, NullStorage(1 << 62))
    assert host.sanitize_log()["overwrite_time"] == 0xFFFF_FFFE
