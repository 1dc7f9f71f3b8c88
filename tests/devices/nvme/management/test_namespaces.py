"""Namespace Management and Attachment: what is made, taken and given, and every way it is refused."""

import struct

import pytest

from outboard.devices.nvme import Namespace
from outboard.devices.nvme.management.pool import RamPool
from outboard.devices.nvme.spec import BROADCAST, AdminOpcode, Cns
from outboard.devices.nvme.status import Status
from outboard.storage import RamStorage
from tests.devices.nvme.driver import PAGE, do_not_retry, ended
from tests.devices.nvme.management.conftest import MakeHosts
from tests.devices.nvme.management.host import DETACH, MIB, NAMESPACE_CHANGED, Host


@pytest.fixture
def host(make_hosts: MakeHosts) -> Host:
    """One controller with a disk of 1 MiB, and 16 MiB to create more from."""
    return make_hosts(1, RamStorage(MIB), pool=RamPool(16 * MIB))[0]


@pytest.mark.point("M01", "I03")
def test_a_namespace_is_created_attached_used_detached_and_deleted(host: Host) -> None:
    created = host.create(2048)
    assert (ended(created), created.result) == (Status.SUCCESS, 2)
    assert host.listed(Cns.ALLOCATED_NAMESPACES) == [1, 2]
    assert host.listed(Cns.ACTIVE_NAMESPACES) == [1]
    assert host.namespace(2)["nsze"] == 0, "not active"
    allocated = host.identify(Cns.ALLOCATED_NAMESPACE, 2)
    assert allocated[:16] == struct.pack("<QQ", 2048, 2048)
    assert host.try_read(2) == Status.INVALID_NAMESPACE
    assert host.attach(2) == Status.SUCCESS
    assert host.identify(Cns.NAMESPACE, 2) == allocated
    assert host.read(2, 2047) == bytes(512)
    assert host.write(b"x" * 512, 2) == Status.SUCCESS
    assert host.try_read(2, 2048) == Status.LBA_OUT_OF_RANGE
    assert host.detach(2) == Status.SUCCESS
    assert host.try_read(2) == Status.INVALID_NAMESPACE
    assert host.attach(2) == Status.SUCCESS
    assert host.read(2) == b"x" * 512, "detaching loses nothing"
    assert host.delete(2) == Status.SUCCESS
    assert host.listed(Cns.ALLOCATED_NAMESPACES) == [1]
    assert host.try_read(2) == Status.INVALID_NAMESPACE


@pytest.mark.point("M01", "I04")
def test_capacity_is_accounted_for(host: Host) -> None:
    def capacities() -> tuple[object, ...]:
        data = host.controller()
        return data["tnvmcap"], data["unvmcap"], data["nn"], data["mnan"]

    assert capacities() == (17 * MIB, 16 * MIB, 32, 32)
    host.create(2048, flbas=3, endgid=1)
    assert capacities() == (17 * MIB, 16 * MIB - 2048 * 4104, 32, 32)
    assert ended(host.create(4096, flbas=3)) == Status.NAMESPACE_INSUFFICIENT_CAPACITY
    host.delete(2)
    assert capacities() == (17 * MIB, 16 * MIB, 32, 32)


@pytest.mark.point("M01")
@pytest.mark.parametrize(
    ("blocks", "capacity", "fields", "status"),
    [
        pytest.param(0, 0, {}, Status.INVALID_FIELD, id="nothing"),
        pytest.param(8, 9, {}, Status.INVALID_FIELD, id="more capacity than size"),
        pytest.param(8, 7, {}, Status.THIN_PROVISIONING_NOT_SUPPORTED, id="thin"),
        pytest.param(8, 0, {}, Status.THIN_PROVISIONING_NOT_SUPPORTED, id="as thin as can be"),
        pytest.param(8, None, {"flbas": 8}, Status.INVALID_FORMAT, id="no such format"),
        pytest.param(8, None, {"flbas": 0x20}, Status.INVALID_FORMAT, id="format 16"),
        pytest.param(8, None, {"flbas": 0x80}, Status.INVALID_FIELD, id="reserved in FLBAS"),
        pytest.param(8, None, {"dps": 0x10}, Status.INVALID_FIELD, id="reserved in DPS"),
        pytest.param(8, None, {"dps": 4}, Status.INVALID_FORMAT, id="protection of type 4"),
        pytest.param(8, None, {"dps": 1}, Status.INVALID_FORMAT, id="protection without metadata"),
        pytest.param(8, None, {"nmic": 2}, Status.INVALID_FIELD, id="reserved in NMIC"),
        pytest.param(8, None, {"anagrpid": 77}, Status.ANA_GROUP_INVALID, id="no such ANA group"),
        pytest.param(8, None, {"nvmsetid": 1}, Status.INVALID_FIELD, id="no NVM sets"),
        pytest.param(8, None, {"endgid": 9}, Status.INVALID_FIELD, id="no such endurance group"),
        pytest.param(8, None, {"csi": 1}, Status.COMMAND_SET_NOT_SUPPORTED, id="key value"),
        pytest.param(8, None, {"csi": 0xFF}, Status.COMMAND_SET_NOT_SUPPORTED, id="no such command set"),
        pytest.param(32769, None, {}, Status.NAMESPACE_INSUFFICIENT_CAPACITY, id="one block too many"),
        pytest.param((1 << 64) - 1, None, {}, Status.NAMESPACE_INSUFFICIENT_CAPACITY, id="huge"),
    ],
)
def test_what_cannot_be_created_is_refused_and_nothing_is_taken(
    host: Host, blocks: int, capacity: int | None, fields: dict[str, int], status: Status
) -> None:
    completion = host.create(blocks, capacity, **fields)
    assert ended(completion) == status
    assert do_not_retry(completion)
    assert host.listed(Cns.ALLOCATED_NAMESPACES) == [1]
    assert host.controller()["unvmcap"] == 16 * MIB


@pytest.mark.point("M01")
def test_all_identifiers_can_be_taken_and_no_more(make_hosts: MakeHosts) -> None:
    (host,) = make_hosts(1, pool=RamPool(16 * MIB), most_namespaces=3)
    assert [host.create(8).result for _ in range(3)] == [1, 2, 3]
    assert ended(host.create(8)) == Status.NAMESPACE_ID_UNAVAILABLE
    assert host.delete(2) == Status.SUCCESS
    assert host.create(8).result == 2


@pytest.mark.point("M01")
def test_without_a_pool_there_is_nothing_to_create_from(make_hosts: MakeHosts) -> None:
    (host,) = make_hosts(1, RamStorage(MIB))
    assert ended(host.create(1)) == Status.NAMESPACE_INSUFFICIENT_CAPACITY
    assert (host.controller()["tnvmcap"], host.controller()["unvmcap"]) == (MIB, 0)


@pytest.mark.point("M01", "N02")
@pytest.mark.parametrize("flbas", range(7))
def test_each_format_can_be_created(host: Host, flbas: int) -> None:
    assert ended(host.create(64, flbas=flbas | 0x10)) == Status.SUCCESS
    host.attach(2)
    data = host.namespace(2)
    extended = 0x10 if flbas >= 2 else 0
    assert (data["nsze"], data["flbas"]) == (64, flbas | extended)


@pytest.mark.point("M01", "I05")
def test_a_namespace_created_anew_is_not_taken_for_the_one_before(host: Host) -> None:
    names = []
    for _ in range(2):
        assert host.create(8).result == 2
        host.attach(2)
        data = host.namespace(2)
        names.append((data["nguid"], data["eui64"], host.identify(Cns.NAMESPACE_DESCRIPTORS, 2)))
        host.delete(2)
    assert not set(names[0]) & set(names[1])


@pytest.mark.point("M01")
def test_only_what_was_created_can_be_deleted(host: Host) -> None:
    host.create(8)
    assert host.delete(1) == Status.OPERATION_DENIED
    assert host.delete(BROADCAST) == Status.OPERATION_DENIED
    assert host.listed(Cns.ALLOCATED_NAMESPACES) == [1, 2]
    for nsid in (0, 3, 33, BROADCAST - 1):
        assert host.delete(nsid) == Status.INVALID_NAMESPACE


@pytest.mark.point("M01")
def test_all_that_were_created_are_deleted_at_once(make_hosts: MakeHosts) -> None:
    (host,) = make_hosts(1, pool=RamPool(MIB))
    for nsid in (1, 2, 3):
        host.create(8)
        host.attach(nsid)
    assert host.delete(BROADCAST) == Status.SUCCESS
    assert host.listed(Cns.ALLOCATED_NAMESPACES) == []
    assert host.controller()["unvmcap"] == MIB


@pytest.mark.point("M01")
def test_reserved_selects_are_invalid_fields(host: Host) -> None:
    for opcode in (AdminOpcode.NAMESPACE_MANAGEMENT, AdminOpcode.NAMESPACE_ATTACHMENT):
        for select in (2, 15):
            assert ended(host.admin(opcode, 1, cdw10=select)) == Status.INVALID_FIELD


@pytest.mark.point("M01")
@pytest.mark.parametrize(
    "cntlids",
    [
        pytest.param((), id="empty"),
        pytest.param((9,), id="unknown"),
        pytest.param((0,), id="zero"),
        pytest.param((0xFFFF,), id="all ones"),
        pytest.param((2, 1), id="descending"),
        pytest.param((1, 1), id="twice"),
        pytest.param((1, 2, 3), id="one too many"),
    ],
)
def test_a_controller_list_that_cannot_be_changes_nothing(
    make_hosts: MakeHosts, cntlids: tuple[int, ...]
) -> None:
    host, other = make_hosts(2, RamStorage(MIB))
    assert host.attachment(DETACH, 1, *cntlids) == Status.CONTROLLER_LIST_INVALID
    assert host.read() == other.read() == bytes(512)


@pytest.mark.point("M01")
@pytest.mark.parametrize("count", [2048, 0xFFFF])
def test_a_controller_list_cannot_be_longer_than_it_is(host: Host, count: int) -> None:
    assert host.attachment(DETACH, 1, 1, count=count) == Status.CONTROLLER_LIST_INVALID


@pytest.mark.point("M01", "Z04")
def test_a_shared_namespace_is_for_several_controllers(make_hosts: MakeHosts) -> None:
    host, other = make_hosts(2, pool=RamPool(MIB))
    host.create(8, nmic=1)
    assert host.attach(1, 1, 2) == Status.SUCCESS
    assert host.namespace(1)["nmic"] == 1
    host.write(b"s" * 512)
    assert other.read() == b"s" * 512
    assert other.attach(1, 1) == other.attach(1, 1, 2) == Status.NAMESPACE_ALREADY_ATTACHED
    assert other.detach(1, 1) == Status.SUCCESS
    assert host.try_read() == Status.INVALID_NAMESPACE
    assert other.read() == b"s" * 512
    assert other.detach(1, 1) == other.detach(1, 1, 2) == Status.NAMESPACE_NOT_ATTACHED
    assert other.read() == b"s" * 512, "nothing was done by half"


@pytest.mark.point("M01", "Z04")
def test_a_private_namespace_is_for_one_controller_at_a_time(make_hosts: MakeHosts) -> None:
    host, other = make_hosts(2, pool=RamPool(MIB))
    host.create(8)
    assert host.attach(1, 1, 2) == Status.NAMESPACE_IS_PRIVATE
    assert host.attach(1, 2) == Status.SUCCESS
    assert host.attach(1, 1) == Status.NAMESPACE_IS_PRIVATE
    assert host.detach(1, 2) == host.attach(1, 1) == Status.SUCCESS
    assert (host.read(), other.try_read()) == (bytes(512), Status.INVALID_NAMESPACE)


@pytest.mark.point("M01")
@pytest.mark.parametrize("nsid", [0, 2, 33, BROADCAST])
def test_only_what_is_allocated_can_be_attached(host: Host, nsid: int) -> None:
    assert host.attach(nsid) == host.detach(nsid) == Status.INVALID_NAMESPACE


@pytest.mark.point("M01", "E02", "L04")
def test_other_hosts_are_told_and_the_one_that_does_it_is_not(make_hosts: MakeHosts) -> None:
    host, other = make_hosts(2, pool=RamPool(MIB))
    steps = (
        (lambda: host.create(8, nmic=1), False),
        (lambda: host.attach(1, 1, 2), True),
        (lambda: host.detach(1, 2), True),
        (lambda: host.attach(1, 2), True),
        (lambda: host.detach(1, 1), False),
        (lambda: host.delete(1), True),
    )
    for step, told in steps:
        for each in (host, other):
            each.restart()
            each.listen()
        step()
        assert host.heard() == host.changed() == []
        assert other.heard() == [NAMESPACE_CHANGED] * told
        assert other.changed() == [1] * told


@pytest.mark.point("I03", "Z04")
def test_controllers_are_listed_all_or_those_that_have_a_namespace(make_hosts: MakeHosts) -> None:
    host, _, _ = make_hosts(3, RamStorage(MIB))
    host.detach(1, 2)

    def listed(cns: Cns, first: int = 0, nsid: int = 0) -> list[int]:
        data = host.identify(cns, nsid, cdw10=first << 16)
        (count,) = struct.unpack_from("<H", data)
        assert data[2 + 2 * count :] == bytes(PAGE - 2 - 2 * count)
        return list(struct.unpack_from(f"<{count}H", data, 2))

    assert listed(Cns.CONTROLLERS) == [1, 2, 3]
    assert listed(Cns.CONTROLLERS, 2) == [2, 3]
    assert listed(Cns.NAMESPACE_CONTROLLERS, nsid=1) == [1, 3]
    assert listed(Cns.NAMESPACE_CONTROLLERS, 2, nsid=1) == [3]
    assert listed(Cns.CONTROLLERS, 4) == listed(Cns.NAMESPACE_CONTROLLERS, nsid=2) == []


@pytest.mark.point("I01", "I03")
def test_what_all_namespaces_have_in_common_is_told_without_one(host: Host) -> None:
    common, mine = host.namespace(BROADCAST), host.namespace(1)
    assert common["nsze"] == common["flbas"] == 0
    for name in ("nlbaf", "mc", "dpc", "lbafs"):
        assert common[name] == mine[name]
    for index in range(8):
        assert host.identify(Cns.FORMAT_NAMESPACE, cdw11=index)[128:384] == mine["lbafs"]
        assert host.identify(Cns.CSI_FORMAT_NAMESPACE, cdw11=index) == host.identify(Cns.CSI_NAMESPACE, 1)
    for cns in (Cns.FORMAT_NAMESPACE, Cns.CSI_FORMAT_NAMESPACE):
        assert ended(host.driver.identify(cns, cdw11=8)) == Status.INVALID_FIELD
    assert ended(host.driver.identify(Cns.CSI_FORMAT_NAMESPACE, cdw11=1 << 24)) == Status.INVALID_FIELD


@pytest.mark.point("I03", "Z03")
def test_there_are_no_virtual_functions(host: Host) -> None:
    assert host.identify(Cns.PRIMARY_CAPABILITIES) == b"\1".ljust(PAGE, b"\0")
    assert host.identify(Cns.SECONDARY_CONTROLLERS) == bytes(PAGE)


@pytest.mark.point("M01")
def test_a_controller_that_comes_gets_what_may_be_shared(make_hosts: MakeHosts) -> None:
    first, second = make_hosts(2, RamStorage(MIB), Namespace(RamStorage(MIB), shared=False))
    assert first.listed(Cns.ACTIVE_NAMESPACES) == [1, 2]
    assert second.listed(Cns.ACTIVE_NAMESPACES) == [1]
