"""Device self-test: what is read, what is found, what ends it, what the log keeps."""

import pytest

from outboard.devices.nvme import Store
from outboard.devices.nvme.spec import BROADCAST, AdminOpcode, SelfTestResult
from outboard.devices.nvme.status import Status
from outboard.storage import NullStorage, RamStorage
from tests.devices.nvme.driver import ended
from tests.devices.nvme.management.conftest import MakeHosts
from tests.devices.nvme.management.host import MIB, Held, Host

SELF_TEST = AdminOpcode.DEVICE_SELF_TEST
SHORT, EXTENDED, VENDOR, ABORT = 1, 2, 0xE, 0xF


def finish(host: Host) -> dict[str, int | bytes]:
    """Wait until nothing is under way; the newest result."""
    host.until(lambda: host.self_test_log()[0] == 0)
    return host.self_test_log()[2][0]


def outcome(result: dict[str, int | bytes]) -> tuple[int, int]:
    """Which test it was, and how it ended."""
    return int(result["status"]) >> 4, int(result["status"]) & 0xF


@pytest.mark.point("M04", "L05")
@pytest.mark.parametrize("code", [SHORT, EXTENDED])
@pytest.mark.parametrize("nsid", [0, 1, BROADCAST])
def test_a_drive_that_can_be_read_passes(make_hosts: MakeHosts, nsid: int, code: int) -> None:
    (host,) = make_hosts(1, RamStorage(3 * MIB), NullStorage(MIB + 512))
    assert host.self_test_log() == (0, 0, [])
    assert ended(host.admin(SELF_TEST, nsid, cdw10=code)) == Status.SUCCESS
    result = finish(host)
    assert outcome(result) == (code, SelfTestResult.PASSED)
    assert (int(result["valid"]) & 1, result["nsid"]) == (int(nsid != 0), nsid)


@pytest.mark.point("M04")
def test_an_extended_test_reads_everything_and_a_short_one_a_sample(make_hosts: MakeHosts) -> None:
    class Noting(RamStorage):
        def __init__(self, size: int) -> None:
            super().__init__(size)
            self.seen: list[tuple[int, int]] = []

        def read(self, offset: int, size: int) -> bytes:
            self.seen.append((offset, size))
            return super().read(offset, size)

    storage = Noting(64 * MIB + 4096)
    (host,) = make_hosts(1, storage)
    host.admin(SELF_TEST, 1, cdw10=SHORT)
    finish(host)
    assert len(storage.seen) == 64
    assert 0 < sum(size for _, size in storage.seen) <= 4 * MIB
    assert max(offset for offset, _ in storage.seen) > 60 * MIB
    storage.seen.clear()
    host.admin(SELF_TEST, 1, cdw10=EXTENDED)
    finish(host)
    assert storage.seen[0][0] == 0
    assert [sum(piece) for piece in storage.seen[:-1]] == [offset for offset, _ in storage.seen[1:]]
    assert sum(storage.seen[-1]) == storage.size


@pytest.mark.point("M04")
@pytest.mark.parametrize("code", [SHORT, EXTENDED])
def test_a_block_that_cannot_be_read_is_named(make_hosts: MakeHosts, code: int) -> None:
    held = Held(8 * MIB)
    held.broken_at = 4 * MIB + 1000
    (host,) = make_hosts(1, RamStorage(MIB), held)
    host.admin(SELF_TEST, BROADCAST, cdw10=code)
    result = finish(host)
    assert outcome(result) == (code, SelfTestResult.FAILED_SEGMENT)
    assert (result["segment"], result["valid"], result["nsid"]) == (2, 0b1111, 2)
    assert result["failing_lba"] == 8192 + 1
    assert (result["status_code_type"], result["status_code"]) == (2, 0x81)


@pytest.mark.point("M04")
def test_one_test_is_under_way_at_a_time_and_can_be_aborted(make_hosts: MakeHosts) -> None:
    held = Held(4 * MIB, "read")
    host, other = make_hosts(2, held)
    assert ended(host.admin(SELF_TEST, 1, cdw10=ABORT)) == Status.SUCCESS, "nothing to abort"
    held.gate.clear()
    host.admin(SELF_TEST, 1, cdw10=EXTENDED)
    assert held.entered.wait(60)
    for each in (host, other):
        assert ended(each.admin(SELF_TEST, 0, cdw10=SHORT)) == Status.SELF_TEST_IN_PROGRESS
    assert host.self_test_log()[:2] == (EXTENDED, 0)
    assert other.self_test_log() == (0, 0, []), "it is the other controller's"
    assert ended(other.admin(SELF_TEST, 0, cdw10=ABORT)) == Status.SUCCESS
    held.gate.set()
    operation, _, results = host.self_test_log()
    assert (operation, len(results), outcome(results[0])) == (0, 1, (EXTENDED, SelfTestResult.ABORTED))
    assert ended(host.admin(SELF_TEST, 1, cdw10=SHORT)) == Status.SUCCESS
    assert outcome(finish(host)) == (SHORT, SelfTestResult.PASSED)
    assert len(host.self_test_log()[2]) == 2, "nothing came of what was aborted"


@pytest.mark.point("M04")
def test_progress_is_told_in_percent(make_hosts: MakeHosts) -> None:
    held = Held(4 * MIB, "read")
    (host,) = make_hosts(1, RamStorage(MIB), held)
    held.gate.clear()
    host.admin(SELF_TEST, BROADCAST, cdw10=EXTENDED)
    assert held.entered.wait(60)
    assert host.self_test_log()[:2] == (EXTENDED, 50)
    held.gate.set()
    finish(host)


@pytest.mark.point("M04")
@pytest.mark.parametrize(
    ("what", "result"),
    [
        ("reset", SelfTestResult.RESET),
        ("format", SelfTestResult.FORMATTED),
        ("sanitize", SelfTestResult.SANITIZED),
        ("remove", SelfTestResult.NAMESPACE_REMOVED),
        ("resize", SelfTestResult.ABORTED_UNKNOWN),
    ],
)
def test_what_ends_a_short_test(make_hosts: MakeHosts, what: str, result: SelfTestResult) -> None:
    held = Held(4 * MIB, "read")
    (host,) = make_hosts(1, held)
    subsystem = host.bench.device.subsystem
    host.admin(SELF_TEST, 1, cdw10=SHORT)
    finish(host)
    with subsystem.turn:  # nothing goes on in the background meanwhile
        host.submit(SELF_TEST, 1, cdw10=SHORT)
        if what == "reset":
            host.driver.disable()
        elif what == "format":
            host.submit(AdminOpcode.FORMAT_NVM, 1)
        elif what == "sanitize":
            host.submit(AdminOpcode.SANITIZE, cdw10=2)
        elif what == "remove":
            subsystem.remove(1).storage.close()
        else:
            subsystem.resize(1, 8 * MIB)
    host.restart()
    host.until(lambda: not subsystem.background.operations)
    results = host.self_test_log()[2]
    assert outcome(results[0]) == (SHORT, result)
    assert outcome(results[1]) == (SHORT, SelfTestResult.PASSED)


@pytest.mark.point("M04", "S01")
def test_an_extended_test_goes_on_through_a_reset_and_a_power_cycle(make_hosts: MakeHosts) -> None:
    store, kept, cut = Store(), Store(), Store()
    held = Held(4 * MIB, "read")
    (host,) = make_hosts(1, held, store=store)
    held.gate.clear()
    host.submit(SELF_TEST, 1, cdw10=EXTENDED)
    host.restart()
    assert host.self_test_log()[0] == EXTENDED
    kept.document = store.document
    held.gate.set()
    assert outcome(finish(host)) == (EXTENDED, SelfTestResult.PASSED)
    (again,) = make_hosts(1, RamStorage(4 * MIB), store=kept)
    assert outcome(finish(again)) == (EXTENDED, SelfTestResult.PASSED)
    with again.bench.device.subsystem.turn:
        again.submit(SELF_TEST, 1, cdw10=SHORT)
        cut.document = kept.document
    (third,) = make_hosts(1, RamStorage(4 * MIB), store=cut)
    results = [outcome(result) for result in third.self_test_log()[2]]
    assert results == [(SHORT, SelfTestResult.RESET), (EXTENDED, SelfTestResult.PASSED)]


@pytest.mark.point("M04")
def test_a_format_of_another_namespace_does_not_end_it(make_hosts: MakeHosts) -> None:
    (host,) = make_hosts(1, RamStorage(MIB), RamStorage(MIB))
    with host.bench.device.subsystem.turn:
        host.submit(SELF_TEST, 1, cdw10=SHORT)
        host.submit(AdminOpcode.FORMAT_NVM, 2)
    assert outcome(finish(host)) == (SHORT, SelfTestResult.PASSED)


@pytest.mark.point("M04", "L05")
def test_the_log_keeps_the_twenty_newest(make_hosts: MakeHosts) -> None:
    (host,) = make_hosts(1, RamStorage(MIB))
    for nsid in [1] * 3 + [0] * 20:
        host.admin(SELF_TEST, nsid, cdw10=SHORT)
        finish(host)
    results = host.self_test_log()[2]
    assert [result["nsid"] for result in results] == [0] * 20


@pytest.mark.point("M04")
@pytest.mark.parametrize(
    ("nsid", "code", "status"),
    [
        (1, 0, Status.INVALID_FIELD),
        (1, 3, Status.INVALID_FIELD),
        (1, VENDOR, Status.INVALID_FIELD),
        (2, SHORT, Status.INVALID_NAMESPACE),
        (BROADCAST - 1, EXTENDED, Status.INVALID_NAMESPACE),
    ],
)
def test_a_test_there_is_not_is_refused(make_hosts: MakeHosts, nsid: int, code: int, status: Status) -> None:
    (host,) = make_hosts(1, RamStorage(MIB))
    assert ended(host.admin(SELF_TEST, nsid, cdw10=code)) == status
    assert host.self_test_log() == (0, 0, [])


def test_identify_says_how_long_it_takes(make_hosts: MakeHosts) -> None:
    (host,) = make_hosts(1, NullStorage(64 << 30))
    data = host.controller()
    assert (data["edstt"], data["dsto"]) == (5, 1)
