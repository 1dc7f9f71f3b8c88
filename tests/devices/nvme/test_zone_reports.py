"""What a host is told of zones: reports, Identify, the event and the log of those that changed (Z01)."""

import struct

import pytest

from outboard.devices.nvme.command import Command
from outboard.devices.nvme.layouts import IDENTIFY_CONTROLLER, IDENTIFY_NAMESPACE
from outboard.devices.nvme.spec import BROADCAST, AdminOpcode, Cns, FeatureId, IoOpcode, LogId
from outboard.devices.nvme.status import Status
from outboard.devices.nvme.zone import RESET_RECOMMENDED, ZoneState
from outboard.devices.nvme.zone_commands import Receive, Send
from outboard.devices.nvme.zone_identify import IDENTIFY_ZONED_CONTROLLER, IDENTIFY_ZONED_NAMESPACE
from outboard.storage import RamStorage
from tests.devices.nvme.bench import Bench
from tests.devices.nvme.conftest import MakeBench
from tests.devices.nvme.driver import PAGE, ended
from tests.devices.nvme.zoned import CAPACITY, PARTIAL, SIZE, ZONES, Host, zoned

OK = Status.SUCCESS
ZONED_SET = 2 << 24

pytestmark = pytest.mark.point("Z01")


@pytest.fixture
def bench(make_bench: MakeBench) -> Bench:
    return make_bench(zoned(most_active=5, most_open=3, extension=64), RamStorage(1 << 20))


@pytest.fixture
def host(bench: Bench) -> Host:
    return Host(bench.driver)


def count(report: tuple[Status, bytes]) -> int:
    assert report[0] == OK
    return int(struct.unpack_from("<Q", report[1])[0])


def test_a_report_begins_with_the_zone_of_a_block(host: Host) -> None:
    assert [zone.start for zone in host.report()] == [number * SIZE for number in range(ZONES)]
    assert {zone.capacity for zone in host.report()} == {CAPACITY}
    assert [zone.start for zone in host.report(slba=6 * SIZE + 3)] == [6 * SIZE, 7 * SIZE]
    assert host.receive(slba=ZONES * SIZE)[0] == Status.LBA_OUT_OF_RANGE


def test_a_report_counts_what_there_is_or_what_it_has_room_for(host: Host) -> None:
    assert count(host.receive(64)) == ZONES
    assert count(host.receive(64, flags=PARTIAL)) == 0
    assert count(host.receive(64 + 3 * 64 + 60, flags=PARTIAL)) == 3
    assert count(host.receive(4096, flags=PARTIAL)) == ZONES
    assert count(host.receive(64 + 3 * 128, action=Receive.EXTENDED_REPORT, flags=PARTIAL)) == 3
    # What is not filled with a whole descriptor stays zero.
    assert host.receive(64 + 32, flags=PARTIAL)[1] == bytes(96)
    assert count(host.receive(8)) == ZONES


def test_a_report_lists_the_zones_of_one_state(bench: Bench, host: Host) -> None:
    zones = bench.device.subsystem.namespaces[1].zones
    assert zones is not None
    assert host.write(SIZE, 1) == OK
    assert host.send(Send.OPEN, 2) == OK
    assert host.write(3 * SIZE, 1) == OK
    assert host.send(Send.CLOSE, 3) == OK
    assert host.send(Send.FINISH, 4) == OK
    zones.set_state(5, ZoneState.READ_ONLY)
    zones.set_state(6, ZoneState.OFFLINE)
    listed = [[zone.start // SIZE for zone in host.report(listed=kind)] for kind in range(8)]
    assert listed == [[*range(8)], [0, 7], [1], [2], [3], [4], [5], [6]]
    assert host.report(listed=5, slba=5 * SIZE) == []
    assert host.receive(listed=8)[0] == Status.INVALID_FIELD


def test_a_report_that_cannot_be_is_refused(make_bench: MakeBench) -> None:
    host = Host(make_bench(zoned(), mdts=1).driver)
    assert host.receive(action=2)[0] == Status.INVALID_FIELD
    assert host.receive(action=Receive.EXTENDED_REPORT)[0] == Status.INVALID_FIELD
    assert host.receive(8192)[0] == OK
    assert host.receive(8196)[0] == Status.INVALID_FIELD


def test_identify_describes_the_zones(host: Host) -> None:
    driver = host.driver
    assert ended(driver.identify(Cns.CSI_NAMESPACE, 1, ZONED_SET)) == OK
    data = driver.ram.read(driver.data, PAGE)
    found = IDENTIFY_ZONED_NAMESPACE.decode(data)
    assert (found["zoc"], found["ozcs"], found["mar"], found["mor"]) == (0, 1, 4, 2)
    assert struct.unpack_from("<QB", data, 2816) == (SIZE, 1)
    assert struct.unpack_from("<QB", data, 2832) == (SIZE // 8, 1)
    assert ended(driver.identify(Cns.NAMESPACE, 1)) == OK
    found = IDENTIFY_NAMESPACE.decode(driver.ram.read(driver.data, PAGE))
    assert (found["nsze"], found["ncap"]) == (ZONES * SIZE, ZONES * SIZE)
    assert ended(driver.identify(Cns.CSI_NAMESPACE, 1)) == OK
    assert ended(driver.identify(Cns.CSI_NAMESPACE, 2, ZONED_SET)) == Status.INVALID_FIELD
    assert ended(driver.identify(Cns.CSI_NAMESPACE, 3, ZONED_SET)) == Status.INVALID_NAMESPACE
    assert ended(driver.identify(Cns.NAMESPACE_DESCRIPTORS, 1)) == OK
    assert driver.ram.read(driver.data, PAGE).endswith(
        bytes([4, 1, 0, 0, 2]) + bytes(PAGE - 4 * 4 - 8 - 16 - 16 - 1)
    )


def test_limits_that_are_none_are_all_ones(make_bench: MakeBench) -> None:
    driver = Host(make_bench(zoned(cross_read=False, zrwa_blocks=4), zasl=3).driver).driver
    assert ended(driver.identify(Cns.CSI_NAMESPACE, 1, ZONED_SET)) == OK
    found = IDENTIFY_ZONED_NAMESPACE.decode(driver.ram.read(driver.data, PAGE))
    assert (found["ozcs"], found["mar"], found["mor"]) == (2, 0xFFFF_FFFF, 0xFFFF_FFFF)
    assert (found["numzrwa"], found["zrwafg"], found["zrwas"], found["zrwacap"]) == (ZONES, 1, 4, 1)
    assert ended(driver.identify(Cns.CSI_CONTROLLER, 0, ZONED_SET)) == OK
    assert IDENTIFY_ZONED_CONTROLLER.decode(driver.ram.read(driver.data, PAGE))["zasl"] == 3


@pytest.mark.parametrize("cns", [Cns.CSI_ACTIVE_NAMESPACES, Cns.CSI_ALLOCATED_NAMESPACES])
def test_namespaces_are_listed_by_their_command_set(host: Host, cns: Cns) -> None:
    for csi, expected in ((0, 2), (2, 1)):
        assert ended(host.driver.identify(cns, 0, csi << 24)) == OK
        assert struct.unpack("<2I", host.driver.ram.read(host.driver.data, 8)) == (expected, 0)


def test_an_allocated_namespace_is_described_to_whom_it_is_not_attached(bench: Bench, host: Host) -> None:
    bench.device.subsystem.detach(1, 1)
    driver = host.driver
    assert ended(driver.identify(Cns.CSI_NAMESPACE, 1, ZONED_SET)) == Status.INVALID_NAMESPACE
    assert ended(driver.identify(Cns.CSI_ALLOCATED_NAMESPACE, 1, ZONED_SET)) == OK
    assert IDENTIFY_ZONED_NAMESPACE.decode(driver.ram.read(driver.data, PAGE))["mar"] == 4
    assert ended(driver.identify(Cns.CSI_ALLOCATED_NAMESPACE, 2, ZONED_SET)) == Status.INVALID_FIELD
    assert ended(driver.identify(Cns.CSI_ALLOCATED_NAMESPACE, 9, ZONED_SET)) == Status.INVALID_NAMESPACE


def test_there_is_one_combination_of_command_sets(host: Host) -> None:
    driver = host.driver
    assert ended(driver.identify(Cns.COMMAND_SETS | 0xFFFF << 16)) == OK
    assert struct.unpack("<2Q", driver.ram.read(driver.data, 16)) == (0b101, 0)
    assert ended(driver.identify(Cns.COMMAND_SETS | 7 << 16)) == Status.INVALID_FIELD
    assert driver.get_feature(FeatureId.COMMAND_SET_PROFILE).result == 0
    assert ended(driver.set_feature(FeatureId.COMMAND_SET_PROFILE, 0)) == OK
    assert ended(driver.set_feature(FeatureId.COMMAND_SET_PROFILE, 1)) == Status.COMMAND_SET_REJECTED


def test_the_effects_log_of_the_zoned_set_has_its_commands(host: Host) -> None:
    effects = {}
    for csi in (0, 2):
        log = Command(
            AdminOpcode.GET_LOG_PAGE,
            prp1=host.driver.data,
            cdw10=LogId.COMMANDS_EFFECTS | 1023 << 16,
            cdw14=csi << 24,
        )
        assert ended(host.driver.admin.execute(log)) == OK
        effects[csi] = struct.unpack("<1024I", host.driver.ram.read(host.driver.data, PAGE))[256:]
    zoned_only = {opcode for opcode in range(256) if effects[2][opcode] and not effects[0][opcode]}
    assert zoned_only == {0x79, 0x7A, 0x7D}
    # Linux writes only if it sees these two bits.
    assert effects[2][IoOpcode.ZONE_APPEND] & 0b11 == 0b11
    assert effects[2][IoOpcode.ZONE_MANAGEMENT_RECEIVE] & 0b11 == 0b01
    nvm_only = {opcode for opcode in range(0x79) if effects[2][opcode] != effects[0][opcode]}
    assert nvm_only == {IoOpcode.IO_MANAGEMENT_RECEIVE, IoOpcode.IO_MANAGEMENT_SEND}


def changed(host: Host, nsid: int = 1) -> list[int]:
    assert ended(host.driver.get_log(LogId.CHANGED_ZONES, nsid=nsid)) == OK
    found = struct.unpack("<H6x511Q", host.driver.ram.read(host.driver.data, PAGE))
    assert found[0] == 0xFFFF or not any(found[1 + found[0] :])
    return [0xFFFF] if found[0] == 0xFFFF else list(found[1 : 1 + found[0]])


def test_a_host_hears_of_zones_that_fail(bench: Bench, host: Host) -> None:
    zones = bench.device.subsystem.namespaces[1].zones
    assert zones is not None
    driver = host.driver
    assert ended(driver.identify(Cns.CONTROLLER)) == OK
    assert int(IDENTIFY_CONTROLLER.decode(driver.ram.read(driver.data, PAGE))["oaes"]) >> 27 & 1
    zones.set_state(6, ZoneState.READ_ONLY)
    assert ended(driver.set_feature(FeatureId.ASYNC_EVENT_CONFIGURATION, 1 << 27)) == OK
    waiting = driver.admin.submit(Command(AdminOpcode.ASYNC_EVENT_REQUEST))
    driver.admin.ring()
    bench.settle()
    zones.set_state(2, ZoneState.OFFLINE)
    event = driver.admin.wait(waiting)
    assert event.result == 2 | 0xEF << 8 | 0xBF << 16 | 1 << 32
    assert changed(host) == [2 * SIZE, 6 * SIZE]
    assert changed(host) == []
    assert host.send(Send.FINISH, 3) == OK
    assert changed(host) == []
    zones.recommend_reset(3)
    assert host.zone(3).attributes == RESET_RECOMMENDED
    assert changed(host) == [3 * SIZE]
    assert host.send(Send.RESET, 3) == OK
    assert host.zone(3).attributes == 0
    assert ended(driver.get_log(LogId.CHANGED_ZONES, nsid=2)) == Status.INVALID_FIELD
    assert ended(driver.get_log(LogId.CHANGED_ZONES, nsid=BROADCAST)) == Status.INVALID_NAMESPACE


def test_more_zones_than_a_log_lists_are_told_as_such(make_bench: MakeBench) -> None:
    bench = make_bench(zoned(RamStorage(600 * 512), size=1, capacity=1))
    host = Host(bench.driver)
    zones = bench.device.subsystem.namespaces[1].zones
    assert zones is not None
    for number in range(511):
        zones.set_state(number, ZoneState.OFFLINE)
    assert ended(host.driver.get_log(LogId.CHANGED_ZONES, nsid=1, retain=True)) == OK
    assert host.driver.ram.read(host.driver.data, 2) == struct.pack("<H", 511)
    assert changed(host) == list(range(511))
    for number in range(512):
        zones.set_state(number, ZoneState.OFFLINE)
    assert changed(host) == [0xFFFF]
