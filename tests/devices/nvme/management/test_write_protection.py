"""Namespace write protection: what it is in the way of, and how it ends or does not."""

import pytest

from outboard.devices.nvme import Store
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.layouts import IDENTIFY_INDEPENDENT_NAMESPACE
from outboard.devices.nvme.management.pool import RamPool
from outboard.devices.nvme.spec import BROADCAST, AdminOpcode, Cns, FeatureId, IoOpcode, Select
from outboard.devices.nvme.status import Status
from outboard.errors import StorageError
from outboard.storage import RamStorage
from tests.devices.nvme.driver import do_not_retry, ended
from tests.devices.nvme.management.conftest import MakeHosts
from tests.devices.nvme.management.host import MIB, NAMESPACE_CHANGED, Held, Host

PROTECTION = FeatureId.NAMESPACE_WRITE_PROTECTION
NONE, PROTECT, UNTIL_POWER_CYCLE, PERMANENT = 0, 1, 2, 3


def protect(host: Host, state: int, nsid: int = 1) -> Status:
    return ended(host.driver.set_feature(PROTECTION, state, nsid))


def protection(host: Host, nsid: int = 1, select: int = Select.CURRENT) -> int:
    return host.driver.get_feature(PROTECTION, select, nsid=nsid).result


@pytest.mark.point("F03", "F04")
@pytest.mark.parametrize("state", [PROTECT, UNTIL_POWER_CYCLE, PERMANENT])
def test_nothing_changes_a_protected_namespace_and_everything_reads_it(
    make_hosts: MakeHosts, state: int
) -> None:
    (host,) = make_hosts(1, RamStorage(MIB), RamStorage(MIB), pool=RamPool(MIB))
    host.write(b"k" * 512)
    assert protect(host, state) == Status.SUCCESS
    assert (protection(host), protection(host, 2)) == (state, NONE)
    writing = (IoOpcode.WRITE, IoOpcode.WRITE_ZEROES, IoOpcode.DATASET_MANAGEMENT)
    for opcode in writing:
        completion = host.pair.execute(Command(opcode, nsid=1, prp1=host.driver.data, cdw11=4))
        assert ended(completion) == Status.NAMESPACE_WRITE_PROTECTED
        assert do_not_retry(completion)
    assert host.read() == b"k" * 512
    assert ended(host.pair.execute(host.driver.rw(IoOpcode.COMPARE, 0, 1, host.driver.data, 512))) == 0
    assert ended(host.pair.execute(Command(IoOpcode.FLUSH, nsid=1))) == Status.SUCCESS
    for nsid in (1, BROADCAST):
        assert ended(host.admin(AdminOpcode.FORMAT_NVM, nsid)) == Status.NAMESPACE_WRITE_PROTECTED
    assert host.write(b"w" * 512, 2) == Status.SUCCESS
    assert host.namespace(1)["nsattr"] == 1
    independent = host.identify(Cns.CSI_INDEPENDENT_NAMESPACE, 1)
    assert IDENTIFY_INDEPENDENT_NAMESPACE.decode(independent)["nsattr"] == 1
    assert host.namespace(2)["nsattr"] == 0


@pytest.mark.point("F03")
def test_protection_is_taken_back_where_it_may_be(make_hosts: MakeHosts) -> None:
    (host,) = make_hosts(1, RamStorage(MIB))
    assert protect(host, PROTECT) == protect(host, PROTECT) == protect(host, NONE) == Status.SUCCESS
    assert host.write(b"x" * 512) == Status.SUCCESS
    assert protect(host, PROTECT) == protect(host, PERMANENT) == Status.SUCCESS
    for state in (NONE, PROTECT, UNTIL_POWER_CYCLE, PERMANENT):
        assert protect(host, state) == Status.FEATURE_NOT_CHANGEABLE
    host.restart()
    assert protection(host) == PERMANENT


@pytest.mark.point("F02", "F03")
@pytest.mark.parametrize(
    ("state", "after"), [(PROTECT, PROTECT), (UNTIL_POWER_CYCLE, NONE), (PERMANENT, PERMANENT)]
)
def test_a_power_cycle_ends_what_lasts_until_then(make_hosts: MakeHosts, state: int, after: int) -> None:
    store = Store()
    (host,) = make_hosts(1, RamStorage(MIB), store=store)
    protect(host, state)
    host.restart()
    assert protection(host) == state, "a reset is no power cycle"
    assert (protection(host, select=Select.SAVED), protection(host, select=Select.DEFAULT)) == (after, NONE)
    (again,) = make_hosts(1, RamStorage(MIB), store=store)
    assert protection(again) == after
    assert (again.write(bytes(512)) == Status.SUCCESS) == (after == NONE)


@pytest.mark.point("E02", "Z04")
def test_every_controller_keeps_to_it_and_the_others_hosts_are_told(make_hosts: MakeHosts) -> None:
    host, other = make_hosts(2, RamStorage(MIB))
    for each in (host, other):
        each.listen()
    protect(host, PROTECT)
    assert (host.heard(), other.heard(), other.changed()) == ([], [NAMESPACE_CHANGED], [1])
    assert other.write(bytes(512)) == Status.NAMESPACE_WRITE_PROTECTED
    assert protect(other, NONE) == Status.SUCCESS
    assert host.write(bytes(512)) == Status.SUCCESS


@pytest.mark.point("F04")
@pytest.mark.parametrize("nsid", [0, 2, BROADCAST])
def test_it_is_set_of_one_namespace(make_hosts: MakeHosts, nsid: int) -> None:
    (host,) = make_hosts(1, RamStorage(MIB))
    assert protect(host, PROTECT, nsid) == Status.INVALID_NAMESPACE
    assert ended(host.driver.get_feature(PROTECTION, nsid=nsid)) == Status.INVALID_NAMESPACE


def test_reserved_states_are_invalid_fields(make_hosts: MakeHosts) -> None:
    (host,) = make_hosts(1, RamStorage(MIB))
    for state in (4, 7):
        assert protect(host, state) == Status.INVALID_FIELD
    assert host.controller()["nwpc"] == 0b111


def test_a_protected_namespace_is_not_deleted(make_hosts: MakeHosts) -> None:
    (host,) = make_hosts(1, pool=RamPool(MIB))
    host.create(8)
    host.attach(1)
    protect(host, PROTECT)
    assert host.delete(1) == host.delete(BROADCAST) == Status.NAMESPACE_WRITE_PROTECTED
    assert host.detach(1) == Status.SUCCESS


def test_what_was_written_before_is_durable(make_hosts: MakeHosts) -> None:
    class Flushing(RamStorage):
        fast = None
        flushed = 0
        failure: StorageError | None = None

        def flush(self) -> None:
            self.flushed += 1
            if self.failure:
                raise self.failure

    storage = Flushing(MIB)
    (host,) = make_hosts(1, storage)
    protect(host, PROTECT)
    assert storage.flushed == 1
    storage.failure = StorageError("the medium is broken")
    protect(host, NONE)
    assert protect(host, PROTECT) == Status.WRITE_FAULT


def test_a_write_under_way_ends_before_protection_begins(make_hosts: MakeHosts) -> None:
    held = Held(MIB, "write")
    (host,) = make_hosts(1, held)
    held.gate.clear()
    host.driver.ram.write(host.driver.data, b"w" * 512)
    cid = host.pair.submit(host.driver.rw(IoOpcode.WRITE, 0, 1, host.driver.data, 512))
    host.pair.ring()
    host.bench.settle()
    assert held.entered.wait(60)
    held.gate.set()
    assert protect(host, PROTECT) == Status.SUCCESS
    assert held.read(0, 512) == b"w" * 512
    assert ended(host.pair.wait(cid)) in (Status.SUCCESS, Status.COMMAND_INTERRUPTED)
