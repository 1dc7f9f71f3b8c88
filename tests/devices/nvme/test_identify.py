"""Identify: what a controller says it is, checked against what it does."""

import struct
import uuid

import pytest

from outboard.devices.nvme import Namespace
from outboard.devices.nvme.identify import STRUCTURES
from outboard.devices.nvme.layouts import (
    IDENTIFY_CONTROLLER,
    IDENTIFY_INDEPENDENT_NAMESPACE,
    IDENTIFY_NAMESPACE,
)
from outboard.devices.nvme.spec import BROADCAST, Cns
from outboard.devices.nvme.status import Status
from outboard.storage import NullStorage, RamStorage
from tests.devices.nvme.bench import Bench
from tests.devices.nvme.conftest import MakeBench, MakePaths
from tests.devices.nvme.driver import PAGE, VS, Driver, do_not_retry, ended


def identify(driver: Driver, cns: int, nsid: int = 0, cdw11: int = 0) -> bytes:
    driver.ram.write(driver.data, b"\xee" * PAGE)
    assert ended(driver.identify(cns, nsid, cdw11)) == Status.SUCCESS
    return driver.ram.read(driver.data, PAGE)


@pytest.mark.point("I01", "R02")
def test_the_controller_says_what_drivers_look_at(driver: Driver) -> None:
    data = IDENTIFY_CONTROLLER.decode(identify(driver, Cns.CONTROLLER))
    assert data["vid"] == data["ssvid"] == 0x4F42
    assert data["ver"] == driver.bar.read32(VS) == 0x20000
    assert (data["sqes"], data["cqes"], data["nn"]) == (0x66, 0x44, 32)
    assert (data["mdts"], data["cntlid"], data["cntrltype"]) == (8, 1, 1)
    assert (data["acl"], data["aerl"], data["elpe"]) == (3, 3, 63)
    assert data["vwc"] == 7
    assert data["oncs"] == 0b1_1111_1111
    assert (data["oacs"], data["fuses"]) == (0x33F, 1), (
        "doorbell buffers, directives, management, LBA status; fused pairs"
    )
    assert data["sgls"] == 0xF_0001, "any bytes, bit buckets, lists longer than the data; metadata anywhere"
    assert 0 < int(data["wctemp"]) < int(data["cctemp"])
    assert data["tnvmcap"] == 12 << 20
    assert bytes(data["ieee"])[2] & 3 == 2, "locally administered"
    assert (data["lpa"], data["pels"]) == (0b11_1110, 1)
    assert (data["crdt1"], data["crdt2"], data["crdt3"]) == (1, 10, 50)
    assert (data["ctratt"], data["endgidmax"]) == (1 | 1 << 4 | 1 << 9 | 1 << 15, 1)
    assert (data["hctma"], data["mntmt"], data["mxtmt"]) == (1, 273, 353)
    assert (data["maxcmd"], data["kas"], data["awun"], data["awupf"]) == (4096, 10, 0, 0)
    assert 0 < int(data["rtd3r"]) < int(data["rtd3e"])


@pytest.mark.point("I01", "F03")
def test_power_states_can_be_told_apart(driver: Driver) -> None:
    data = IDENTIFY_CONTROLLER.decode(identify(driver, Cns.CONTROLLER))
    descriptors = b"".join(bytes(data[f"psd{number}"]) for number in range(int(data["npss"]) + 1))
    states = list(struct.iter_unpack("<HBBII16xB3x", descriptors))
    watts = [power / (10_000 if flags & 1 else 100) for power, _, flags, _, _, _ in states]
    assert watts == [25, 12, 0.05, 0.005]
    assert [flags >> 1 & 1 for _, _, flags, _, _, _ in states] == [0, 0, 1, 1], "without I/O"
    assert [entry + leave for _, _, _, entry, leave, _ in states] == [0, 0, 3_000, 12_000]
    assert data["apsta"] == 1


@pytest.mark.point("I01")
@pytest.mark.parametrize(("block_size", "blocks"), [(512, 8), (4096, 1)])
def test_a_namespace_says_what_is_written_well(make_bench: MakeBench, block_size: int, blocks: int) -> None:
    driver = make_bench(Namespace(RamStorage(1 << 20), block_size)).driver.enable()
    data = IDENTIFY_NAMESPACE.decode(identify(driver, Cns.NAMESPACE, 1))
    assert int(data["nsfeat"]) >> 4 & 1
    assert {data[field] for field in ("npwg", "npwa", "npdg", "npda", "nows")} == {blocks - 1}
    performance = [each & 3 for _, _, each in struct.iter_unpack("<HBB", bytes(data["lbafs"])[:8])]
    assert performance == [1, 0], "whole pages are best"


@pytest.mark.point("I03", "Z05")
def test_the_lists_of_groups_uuids_and_command_sets(driver: Driver) -> None:
    assert identify(driver, Cns.ENDURANCE_GROUPS) == struct.pack("<HH", 1, 1).ljust(PAGE, b"\0")
    assert identify(driver, Cns.ENDURANCE_GROUPS, cdw11=2) == bytes(PAGE)
    uuids = identify(driver, Cns.UUIDS)
    assert uuids[:32] == uuids[64:96] == bytes(32)
    assert uuid.UUID(bytes=uuids[48:64]).version == 5
    for controller in (1, 0xFFFF):
        sets = identify(driver, Cns.COMMAND_SETS | controller << 16)
        assert sets == b"\5" + bytes(PAGE - 1), "one combination, of both command sets"
    assert identify(driver, Cns.CSI_INDEPENDENT_NAMESPACE, 1)[12] == 1, "the endurance group"


@pytest.mark.point("I05")
def test_names_are_padded_ascii_and_the_nqn_is_valid(make_bench: MakeBench) -> None:
    driver = make_bench(serial="SN 1", model="A model").driver.enable()
    data = IDENTIFY_CONTROLLER.decode(identify(driver, Cns.CONTROLLER))
    assert data["sn"] == b"SN 1".ljust(20)
    assert data["mn"] == b"A model".ljust(40)
    assert data["fr"] == b"1.0".ljust(8)
    nqn = bytes(data["subnqn"]).rstrip(b"\0").decode()
    assert nqn.startswith("nqn.2014-08.org.nvmexpress:uuid:")
    assert uuid.UUID(nqn[-36:]).version == 5


@pytest.mark.point("I05")
def test_two_subsystems_have_two_names_and_each_keeps_its_own(make_bench: MakeBench) -> None:
    def nqn(serial: str) -> bytes:
        driver = make_bench(serial=serial).driver.enable()
        return bytes(IDENTIFY_CONTROLLER.decode(identify(driver, Cns.CONTROLLER))["subnqn"])

    assert nqn("one") == nqn("one") != nqn("two")


@pytest.mark.point("I05")
def test_identifiers_survive_a_restart_and_differ_between_namespaces_and_serials(
    make_bench: MakeBench,
) -> None:
    def names(serial: str) -> list[tuple[object, object]]:
        driver = make_bench(serial=serial).driver.enable()
        found = [IDENTIFY_NAMESPACE.decode(identify(driver, Cns.NAMESPACE, nsid)) for nsid in (1, 2)]
        return [(data["nguid"], data["eui64"]) for data in found]

    first = names("one")
    assert first == names("one")
    assert len({*first, *names("two")}) == 4
    assert all(any(bytes(value)) for pair in first for value in pair)  # type: ignore[call-overload]


@pytest.mark.point("I01")
def test_a_namespace_says_its_size_and_format(driver: Driver) -> None:
    small, large = (IDENTIFY_NAMESPACE.decode(identify(driver, Cns.NAMESPACE, nsid)) for nsid in (1, 2))
    assert small["nsze"] == small["ncap"] == small["nuse"] == 16384
    formats = [(ms, 1 << shift) for ms, shift, _ in struct.iter_unpack("<HBB", bytes(small["lbafs"])[:32])]
    assert formats == [
        (0, 512),
        (0, 4096),
        (8, 512),
        (8, 4096),
        (16, 512),
        (16, 4096),
        (64, 4096),
        (64, 4096),
    ]
    assert (small["flbas"], small["nlbaf"]) == (0, 7)
    assert (small["mc"], small["dpc"], small["dps"]) == (0b11, 0b11111, 0)
    assert (large["nsze"], large["flbas"]) == (1024, 1)
    assert small["nvmcap"] == 8 << 20
    assert small["dlfeat"] == 0b1001


def test_what_does_not_fill_a_block_is_left_out(make_bench: MakeBench) -> None:
    driver = make_bench(Namespace(NullStorage(10000), 4096)).driver.enable()
    assert IDENTIFY_NAMESPACE.decode(identify(driver, Cns.NAMESPACE, 1))["nsze"] == 2


@pytest.mark.point("I01")
@pytest.mark.parametrize(
    ("cns", "nsid"),
    [
        (cns, nsid)
        for cns in (
            Cns.NAMESPACE,
            Cns.NAMESPACE_DESCRIPTORS,
            Cns.CSI_NAMESPACE,
            Cns.CSI_INDEPENDENT_NAMESPACE,
            Cns.ALLOCATED_NAMESPACE,
            Cns.CSI_ALLOCATED_NAMESPACE,
            Cns.NAMESPACE_CONTROLLERS,
        )
        for nsid in (0, 33, BROADCAST - 1, BROADCAST)
        # What all namespaces have in common has a structure of its own.
        if (cns, nsid) != (Cns.NAMESPACE, BROADCAST)
    ],
)
def test_a_namespace_that_is_not_there_is_an_invalid_namespace(driver: Driver, cns: Cns, nsid: int) -> None:
    completion = driver.identify(cns, nsid)
    assert ended(completion) == Status.INVALID_NAMESPACE
    assert do_not_retry(completion)


@pytest.mark.point("I01")
def test_a_namespace_that_could_be_and_is_not_is_all_zeros(driver: Driver) -> None:
    assert identify(driver, Cns.NAMESPACE, 3) == bytes(PAGE)
    assert ended(driver.identify(Cns.NAMESPACE_DESCRIPTORS, 3)) == Status.INVALID_NAMESPACE


@pytest.mark.point("I01", "I03")
@pytest.mark.parametrize(
    "cns",
    [
        Cns.ACTIVE_NAMESPACES,
        Cns.CSI_ACTIVE_NAMESPACES,
        Cns.ALLOCATED_NAMESPACES,
        Cns.CSI_ALLOCATED_NAMESPACES,
    ],
)
@pytest.mark.parametrize(("after", "found"), [(0, (1, 2)), (1, (2,)), (2, ()), (BROADCAST - 2, ())])
def test_the_list_of_namespaces_begins_after_the_given_one(
    driver: Driver, cns: Cns, after: int, found: tuple[int, ...]
) -> None:
    assert identify(driver, cns, after) == struct.pack(f"<{len(found)}I", *found).ljust(PAGE, b"\0")


@pytest.mark.point("I01")
@pytest.mark.parametrize("after", [BROADCAST - 1, BROADCAST])
def test_no_namespace_can_be_above_the_last_identifier(driver: Driver, after: int) -> None:
    assert ended(driver.identify(Cns.ACTIVE_NAMESPACES, after)) == Status.INVALID_NAMESPACE


@pytest.mark.point("I02")
def test_descriptors_name_what_the_namespace_structure_names(driver: Driver) -> None:
    data = identify(driver, Cns.NAMESPACE_DESCRIPTORS, 1)
    found, at = {}, 0
    while data[at]:
        kind, length = data[at], data[at + 1]
        found[kind] = data[at + 4 : at + 4 + length]
        at += 4 + length
    space = IDENTIFY_NAMESPACE.decode(identify(driver, Cns.NAMESPACE, 1))
    assert set(found) == {1, 2, 3, 4}
    assert (found[1], found[2]) == (space["eui64"], space["nguid"])
    assert uuid.UUID(bytes=found[3]).version == 5
    assert found[4] == b"\0"


@pytest.mark.point("I03")
def test_the_nvm_command_set_structures_are_there(driver: Driver) -> None:
    formats = struct.unpack("<12x8I", identify(driver, Cns.CSI_NAMESPACE, 1)[:44])
    assert formats == (0, 0, 0, 0, 2 << 7, 2 << 7, 0, 2 << 7), "guards of 64 bits"
    assert identify(driver, Cns.CSI_CONTROLLER) == bytes(PAGE)
    ready = IDENTIFY_INDEPENDENT_NAMESPACE.decode(identify(driver, Cns.CSI_INDEPENDENT_NAMESPACE, 1))
    assert ready["nstat"] == 1


@pytest.mark.point("I03", "I04")
@pytest.mark.parametrize(
    ("cns", "cdw11"),
    [
        *((cns, 0) for cns in range(256) if cns not in STRUCTURES),
        (Cns.CSI_NAMESPACE, 2 << 24),
        (Cns.CSI_CONTROLLER, 1 << 24),
        (Cns.CSI_ACTIVE_NAMESPACES, 1 << 24),
        (Cns.CSI_FORMAT_NAMESPACE, 1 << 24),
        (Cns.CSI_FORMAT_NAMESPACE, 2 << 24),
    ],
)
def test_unknown_structures_and_command_sets_are_invalid_fields(driver: Driver, cns: int, cdw11: int) -> None:
    completion = driver.identify(cns, 1, cdw11)
    assert ended(completion) == Status.INVALID_FIELD
    assert do_not_retry(completion)


@pytest.mark.point("I03", "I04")
def test_a_controller_tells_of_its_own_capabilities_only(make_paths: MakePaths) -> None:
    first, second = make_paths()
    own, other = first.device.cntlid, second.device.cntlid
    driver = first.driver.enable()
    for named in (own, 0):
        capabilities = identify(driver, Cns.PRIMARY_CAPABILITIES | named << 16)
        assert capabilities == struct.pack("<H", own).ljust(PAGE, b"\0")
    for named in (other, 0xFFFF):
        completion = driver.identify(Cns.PRIMARY_CAPABILITIES | named << 16)
        assert ended(completion) == Status.INVALID_FIELD
        assert do_not_retry(completion)


@pytest.mark.point("I03", "I04")
@pytest.mark.parametrize("first", [0, 1, 2, 0xFFFF])
def test_there_is_no_secondary_controller_from_any_identifier_on(driver: Driver, first: int) -> None:
    assert identify(driver, Cns.SECONDARY_CONTROLLERS | first << 16) == bytes(PAGE)


def test_a_storage_that_cannot_discard_says_nothing_of_what_is_read_afterwards(bench: Bench) -> None:
    storage = bench.device.namespaces[1].storage
    assert isinstance(storage, RamStorage)
    storage.discard_zeroes = False
    data = IDENTIFY_NAMESPACE.decode(identify(bench.driver.enable(), Cns.NAMESPACE, 1))
    assert data["dlfeat"] == 0
