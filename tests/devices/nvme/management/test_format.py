"""Format NVM: every format, what is in the way meanwhile, and what becomes of it when something happens."""

import struct

import pytest

from outboard.devices.nvme import Namespace
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.namespace import FORMATS
from outboard.devices.nvme.spec import BROADCAST, AdminOpcode, FeatureId, IoOpcode
from outboard.devices.nvme.status import Status
from outboard.errors import StorageError
from outboard.storage import NullStorage, RamStorage
from tests.devices.nvme.driver import do_not_retry, ended
from tests.devices.nvme.management.conftest import MakeHosts
from tests.devices.nvme.management.host import MIB, NAMESPACE_CHANGED, Held, Host

FORMAT = AdminOpcode.FORMAT_NVM


@pytest.fixture
def host(make_hosts: MakeHosts) -> Host:
    return make_hosts(1, RamStorage(MIB), RamStorage(MIB))[0]


@pytest.mark.point("M02", "N02")
@pytest.mark.parametrize("secure_erase", [0, 1, 2])
@pytest.mark.parametrize("lbaf", range(len(FORMATS)))
def test_a_namespace_is_empty_and_has_the_format_that_was_asked_for(
    host: Host, lbaf: int, secure_erase: int
) -> None:
    chosen = FORMATS[lbaf]
    host.write(b"secret" * 85 + b"12", slba=7)
    host.write(b"n" * 512, nsid=2)
    extended = bool(chosen.metadata)
    dword = lbaf | extended << 4 | secure_erase << 9
    assert ended(host.admin(FORMAT, 1, cdw10=dword)) == Status.SUCCESS
    data = host.namespace(1)
    assert (data["flbas"], data["fpi"]) == (lbaf | extended << 4, 0x80)
    assert data["nsze"] == data["ncap"] == data["nuse"] == MIB // (chosen.block_size + chosen.metadata)
    storage = host.bench.device.namespaces[1].storage
    assert storage.read(0, MIB) == bytes(MIB)
    assert host.read(2) == b"n" * 512
    if not chosen.metadata:
        assert host.read(1, MIB // chosen.block_size - 1, chosen.block_size) == bytes(chosen.block_size)
        assert host.try_read(1, MIB // chosen.block_size, chosen.block_size) == Status.LBA_OUT_OF_RANGE


@pytest.mark.point("M02")
def test_all_namespaces_of_a_controller_are_formatted_at_once(host: Host) -> None:
    for nsid in (1, 2):
        host.write(b"x" * 512, nsid)
    assert ended(host.admin(FORMAT, BROADCAST, cdw10=1)) == Status.SUCCESS
    for nsid in (1, 2):
        assert host.namespace(nsid)["flbas"] == 1
        assert host.read(nsid, 0, 4096) == bytes(4096)


@pytest.mark.point("M02")
@pytest.mark.parametrize(
    ("nsid", "dword", "status"),
    [
        pytest.param(1, 8, Status.INVALID_FORMAT, id="no such format"),
        pytest.param(1, 1 << 12, Status.INVALID_FORMAT, id="format 16"),
        pytest.param(1, 1 << 5, Status.INVALID_FORMAT, id="protection without metadata"),
        pytest.param(1, 2 | 7 << 5, Status.INVALID_FORMAT, id="protection of type 7"),
        pytest.param(1, 3 << 9, Status.INVALID_FIELD, id="reserved secure erase"),
        pytest.param(0, 0, Status.INVALID_NAMESPACE, id="namespace 0"),
        pytest.param(3, 0, Status.INVALID_NAMESPACE, id="not there"),
        pytest.param(BROADCAST - 1, 0, Status.INVALID_NAMESPACE, id="far away"),
    ],
)
def test_what_cannot_be_formatted_stays_as_it_is(host: Host, nsid: int, dword: int, status: Status) -> None:
    host.write(b"x" * 512)
    completion = host.admin(FORMAT, nsid, cdw10=dword)
    assert ended(completion) == status
    assert do_not_retry(completion)
    assert host.read() == b"x" * 512


@pytest.mark.point("M02")
def test_a_namespace_keeps_a_format_if_the_other_one_has_no_room(make_hosts: MakeHosts) -> None:
    (host,) = make_hosts(1, NullStorage(1024))
    assert ended(host.admin(FORMAT, 1, cdw10=1)) == Status.INVALID_FORMAT
    assert host.namespace(1)["nsze"] == 2


@pytest.mark.point("M02")
def test_while_a_namespace_is_formatted_only_the_others_answer(make_hosts: MakeHosts) -> None:
    held = Held(128 * MIB, "discard")
    host, other = make_hosts(2, held, RamStorage(MIB))
    held.gate.clear()
    cid = host.submit(FORMAT, 1, cdw10=1)
    assert held.entered.wait(60)
    for each in (host, other):
        assert each.try_read() == each.write(bytes(512)) == Status.FORMAT_IN_PROGRESS
        assert each.read(2) == bytes(512)
        for nsid in (1, BROADCAST):
            flush = each.pair.execute(Command(IoOpcode.FLUSH, nsid=nsid))
            assert ended(flush) == Status.FORMAT_IN_PROGRESS
            assert not do_not_retry(flush)
            assert ended(each.admin(FORMAT, nsid)) == Status.FORMAT_IN_PROGRESS
        assert ended(each.admin(AdminOpcode.SANITIZE, cdw10=2)) == Status.FORMAT_IN_PROGRESS
        assert ended(each.admin(AdminOpcode.DEVICE_SELF_TEST, 1, cdw10=1)) == Status.FORMAT_IN_PROGRESS
        protect = each.driver.set_feature(FeatureId.NAMESPACE_WRITE_PROTECTION, 1, nsid=1)
        assert ended(protect) == Status.FORMAT_IN_PROGRESS
        assert each.namespace(1)["fpi"] == 0x80 | 100
        assert each.namespace(1)["flbas"] == 0
    taken = host.driver.admin.submit(Command(AdminOpcode.IDENTIFY, prp1=host.driver.data, cdw10=1), cid=cid)
    host.driver.admin.ring()
    assert ended(host.driver.admin.wait(taken)) == Status.COMMAND_ID_CONFLICT
    held.gate.set()
    assert ended(host.driver.admin.wait(cid)) == Status.SUCCESS
    assert host.read(1, 0, 4096) == other.read(1, 0, 4096) == bytes(4096)


@pytest.mark.point("M02")
def test_progress_is_what_remains(make_hosts: MakeHosts) -> None:
    held = Held(128 * MIB, "discard")
    (host,) = make_hosts(1, held)
    held.gate.clear()
    cid = host.submit(FORMAT, 1)
    assert held.entered.wait(60)
    held.entered.clear()
    held.gate.set()
    seen = {100}
    while not held.entered.is_set() or int(host.namespace(1)["fpi"]) & 0x7F:
        seen.add(int(host.namespace(1)["fpi"]) & 0x7F)
    assert seen <= {100, 50, 0}
    assert ended(host.driver.admin.wait(cid)) == Status.SUCCESS


@pytest.mark.point("M02", "E02")
def test_other_hosts_hear_of_the_new_format(make_hosts: MakeHosts) -> None:
    host, other = make_hosts(2, RamStorage(MIB))
    for each in (host, other):
        each.listen()
    assert ended(host.admin(FORMAT, 1, cdw10=1)) == Status.SUCCESS
    assert (host.heard(), host.changed()) == ([], [])
    assert (other.heard(), other.changed()) == ([NAMESPACE_CHANGED], [1])
    assert other.read(1, 0, 4096) == bytes(4096)


@pytest.mark.point("M02", "S01")
def test_a_reset_in_the_middle_does_not_end_it(make_hosts: MakeHosts) -> None:
    held = Held(MIB, "discard")
    (host,) = make_hosts(1, held)
    held.gate.clear()
    host.submit(FORMAT, 1, cdw10=1)
    assert held.entered.wait(60)
    host.restart()
    host.listen()
    assert host.try_read() == Status.FORMAT_IN_PROGRESS
    held.gate.set()
    host.until(lambda: host.bench.device.namespaces[1].barred is None)
    assert host.heard() == [NAMESPACE_CHANGED], "its command was forgotten, so it is told"
    assert host.read(1, 0, 4096) == bytes(4096)
    assert host.driver.admin.done == {}


@pytest.mark.point("M02")
@pytest.mark.parametrize("failure", [StorageError("the medium is broken"), ValueError("a mistake")])
def test_a_storage_that_fails_keeps_its_format(make_hosts: MakeHosts, failure: Exception) -> None:
    held = Held(MIB, "discard")
    (host,) = make_hosts(1, held)
    held.failure = failure  # type: ignore[assignment]
    expected = Status.WRITE_FAULT if isinstance(failure, StorageError) else Status.INTERNAL_ERROR
    assert ended(host.admin(FORMAT, 1, cdw10=1)) == expected
    assert host.read() == bytes(512)


@pytest.mark.point("M02")
def test_a_namespace_that_is_removed_meanwhile_is_let_go_of(make_hosts: MakeHosts) -> None:
    held = Held(128 * MIB, "discard")
    (host,) = make_hosts(1, held)
    held.gate.clear()
    cid = host.submit(FORMAT, 1)
    assert held.entered.wait(60)
    held.gate.set()
    host.bench.device.subsystem.remove(1).storage.close()
    assert ended(host.driver.admin.wait(cid)) == Status.INVALID_NAMESPACE


@pytest.mark.point("M02", "N02")
def test_metadata_of_a_formatted_namespace_reads_as_ones(host: Host) -> None:
    assert ended(host.admin(FORMAT, 1, cdw10=2)) == Status.SUCCESS
    space = host.bench.device.namespaces[1]
    assert (space.metadata, space.extended) == (8, False)
    assert space.storage.read(space.metadata_offset, 8) == bytes(8), "which is kept inverted"


@pytest.mark.point("M02")
def test_a_storage_that_cannot_discard_is_zeroed(make_hosts: MakeHosts) -> None:
    storage = RamStorage(9 * MIB)
    storage.discard_zeroes = False
    (host,) = make_hosts(1, Namespace(storage))
    storage.write(8 * MIB, b"x" * MIB)
    assert ended(host.admin(FORMAT, 1)) == Status.SUCCESS
    assert storage.read(0, 9 * MIB) == bytes(9 * MIB)


@pytest.mark.point("M02")
def test_a_huge_namespace_is_formatted_in_few_steps(make_hosts: MakeHosts) -> None:
    (host,) = make_hosts(1, NullStorage(1 << 62))
    assert ended(host.admin(FORMAT, 1, cdw10=1)) == Status.SUCCESS
    assert host.namespace(1)["nsze"] == 1 << 50


def test_identify_says_what_format_does(host: Host) -> None:
    data = host.controller()
    assert data["fna"] == 0b100
    assert int(data["oacs"]) & 1 << 1
    lbafs = struct.unpack("<64I", host.namespace(1)["lbafs"])  # type: ignore[arg-type]
    assert [lbaf & 0xFFFF for lbaf in lbafs[: len(FORMATS)]] == [each.metadata for each in FORMATS]
