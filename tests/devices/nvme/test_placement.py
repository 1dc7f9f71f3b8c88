"""Flexible data placement: what a host may say, what is counted, and what it is worth (Z02)."""

import random
import struct
from pathlib import Path

import pytest

from outboard.devices.nvme import Namespace, Nvme, PlacementLayout, Store, Subsystem
from outboard.devices.nvme.command import Command, Completion
from outboard.devices.nvme.datapath.tuning import Tuning
from outboard.devices.nvme.layouts import IDENTIFY_CONTROLLER, IDENTIFY_NAMESPACE, NAMESPACE_MANAGEMENT
from outboard.devices.nvme.management.pool import RamPool
from outboard.devices.nvme.placement import PlacementEvent
from outboard.devices.nvme.placement_reports import CONFIGURATION, STATISTICS
from outboard.devices.nvme.reclaim import Group, Place
from outboard.devices.nvme.spec import BROADCAST, AdminOpcode, Cns, FeatureId, IoOpcode, LogId
from outboard.devices.nvme.status import Status
from outboard.errors import DefinitionError
from outboard.storage import NullStorage, RamStorage
from tests.devices.nvme.bench import Bench
from tests.devices.nvme.conftest import MakeBench
from tests.devices.nvme.driver import PAGE, Driver, QueuePair, ended
from tests.devices.nvme.test_moving import move
from tests.devices.nvme.zoned import zoned

OK = Status.SUCCESS
UNIT = 64 << 10
BLOCK = 4096
PLACING = 2 << 20
LAYOUT = PlacementLayout(handles=4, groups=2, unit=UNIT)
RUH_STATUS = RUH_UPDATE = 1

pytestmark = pytest.mark.point("Z02")


def disks(layout: PlacementLayout = LAYOUT) -> Subsystem:
    return Subsystem(
        Namespace(RamStorage(1 << 20), BLOCK, placement_handles=(2, 0)),
        Namespace(RamStorage(1 << 20), BLOCK),
        placement=layout,
    )


@pytest.fixture
def bench(make_bench: MakeBench) -> Bench:
    return make_bench(subsystem=disks())


@pytest.fixture
def pair(bench: Bench) -> QueuePair:
    return bench.driver.enable().create_queue_pair(1)


def write(
    pair: QueuePair, slba: int, blocks: int = 1, identifier: int | None = None, nsid: int = 1
) -> Status:
    driver = pair.driver
    placed = {} if identifier is None else {"cdw12": PLACING, "cdw13": identifier << 16}
    address = driver.data if blocks == 1 else driver.ram.allocate(blocks * BLOCK)
    return ended(
        pair.execute(driver.rw(IoOpcode.WRITE, slba, blocks, address, blocks * BLOCK, nsid=nsid, **placed))
    )


def handles(pair: QueuePair, nsid: int = 1) -> list[tuple[int, int, int]]:
    """Identifier, handle, and blocks left in its unit, of each placement identifier."""
    receive = Command(
        IoOpcode.IO_MANAGEMENT_RECEIVE, nsid=nsid, prp1=pair.driver.data, cdw10=RUH_STATUS, cdw11=1023
    )
    assert ended(pair.execute(receive)) == OK
    data = pair.driver.ram.read(pair.driver.data, PAGE)
    count = struct.unpack_from("<H", data, 14)[0]
    found = [struct.unpack_from("<HHIQ", data, 16 + 32 * number) for number in range(count)]
    assert all(reset == 0 for _, _, reset, _ in found)
    return [(identifier, handle, left) for identifier, handle, _, left in found]


def update(pair: QueuePair, *identifiers: int) -> Status:
    pair.driver.ram.write(pair.driver.data, struct.pack(f"<{len(identifiers)}H", *identifiers))
    cdw10 = RUH_UPDATE | len(identifiers) - 1 << 16
    send = Command(IoOpcode.IO_MANAGEMENT_SEND, nsid=1, prp1=pair.driver.data, cdw10=cdw10)
    return ended(pair.execute(send))


def log(driver: Driver, lid: LogId, size: int = PAGE, flags: int = 0, group: int = 1) -> tuple[Status, bytes]:
    completion = driver.admin.execute(
        Command(
            AdminOpcode.GET_LOG_PAGE,
            prp1=driver.data,
            cdw10=lid | flags | (size // 4 - 1) << 16,
            cdw11=group << 16,
        )
    )
    return ended(completion), driver.ram.read(driver.data, size)


def counted(driver: Driver) -> tuple[int, int, int]:
    """Bytes that hosts wrote, that the medium wrote, that it erased."""
    found = STATISTICS.decode(log(driver, LogId.PLACEMENT_STATISTICS, 64)[1])
    return int(found["host_bytes"]), int(found["media_bytes"]), int(found["erased_bytes"])


def events(driver: Driver, flags: int = 1 << 8) -> list[tuple[int, int, int, int, int, int]]:
    """Type, flags, identifier, namespace, group and handle of each event."""
    status, data = log(driver, LogId.PLACEMENT_EVENTS, flags=flags)
    assert status == OK
    count = struct.unpack_from("<I", data)[0]
    raw = [struct.unpack_from("<BBHQI16sHB", data, 64 + 64 * number) for number in range(count)]
    return [
        (kind, bits, identifier, nsid, group, handle)
        for kind, bits, identifier, _, nsid, _, group, handle in raw
    ]


def note(driver: Driver, *wanted: int, handle: int = 0, enable: bool = True, nsid: int = 1) -> Completion:
    driver.ram.write(driver.data, bytes(wanted))
    return driver.admin.execute(
        Command(
            AdminOpcode.SET_FEATURES,
            nsid=nsid,
            prp1=driver.data,
            cdw10=FeatureId.PLACEMENT_EVENTS,
            cdw11=handle | len(wanted) << 16,
            cdw12=int(enable),
        )
    )


def test_identify_says_that_data_can_be_placed(pair: QueuePair) -> None:
    driver = pair.driver
    assert ended(driver.identify(Cns.CONTROLLER)) == OK
    found = IDENTIFY_CONTROLLER.decode(driver.ram.read(driver.data, PAGE))
    assert (found["ctratt"], found["endgidmax"]) == (1 << 19 | 1 << 15 | 1 << 9 | 1 << 4 | 1 << 0, 1)
    assert ended(driver.identify(Cns.NAMESPACE, 1)) == OK
    assert IDENTIFY_NAMESPACE.decode(driver.ram.read(driver.data, PAGE))["endgid"] == 1
    assert ended(driver.identify(Cns.ENDURANCE_GROUPS)) == OK
    assert driver.ram.read(driver.data, 6) == struct.pack("<3H", 1, 1, 0)
    assert ended(driver.identify(Cns.ENDURANCE_GROUPS, cdw11=2)) == OK
    assert driver.ram.read(driver.data, 4) == bytes(4)


def test_the_logs_describe_the_configuration_and_who_uses_the_handles(pair: QueuePair) -> None:
    status, data = log(pair.driver, LogId.PLACEMENT_CONFIGURATIONS)
    assert status == OK
    assert struct.unpack_from("<HBxI", data) == (0, 0, 16 + 80)
    found = CONFIGURATION.decode(data[16:])
    assert (found["length"], found["attributes"], found["groups"], found["handles"]) == (80, 0x81, 2, 4)
    assert (found["most_identifiers"], found["most_namespaces"], found["unit_size"]) == (127, 32, UNIT)
    assert data[80:96] == bytes([1, 0, 0, 0] * 4)
    usage = log(pair.driver, LogId.RECLAIM_UNIT_HANDLES)[1]
    assert (usage[0], [usage[8 + 8 * number] for number in range(4)]) == (4, [1, 0, 1, 2])


def test_writes_go_to_the_units_of_the_handles_they_name(pair: QueuePair) -> None:
    full = UNIT // BLOCK
    assert handles(pair) == [(0, 2, full), (0x8000, 2, full), (1, 0, full), (0x8001, 0, full)]
    assert handles(pair, 2) == [(0, 3, full), (0x8000, 3, full)]
    assert write(pair, 0) == OK
    assert write(pair, 1, 2, 0x8000) == OK
    assert write(pair, 3, 3, 1) == OK
    assert write(pair, 0, 4, nsid=2) == OK
    assert [left for _, _, left in handles(pair)] == [full - 1, full - 2, full - 3, full]
    assert [left for _, _, left in handles(pair, 2)] == [full - 4, full]
    assert counted(pair.driver) == (10 * BLOCK, 10 * BLOCK, 0)


def test_a_unit_that_is_full_is_followed_by_another(pair: QueuePair) -> None:
    full = UNIT // BLOCK
    assert write(pair, 0, full + 3, 1) == OK
    assert handles(pair)[2] == (1, 0, full - 3)


def test_a_host_may_begin_a_new_unit(pair: QueuePair) -> None:
    full = UNIT // BLOCK
    assert ended(note(pair.driver, PlacementEvent.UNIT_NOT_FULLY_WRITTEN)) == OK
    assert write(pair, 0, 5, 0) == OK
    assert update(pair, 0, 0x8000) == OK
    assert handles(pair)[0] == (0, 2, full)
    # The other group's unit was untouched: nothing was given up there.
    assert events(pair.driver) == [(0, 0b111, 0, 1, 0, 2)]
    assert update(pair, 0, 2) == Status.INVALID_FIELD
    assert update(pair, *[0] * 129) == Status.INVALID_FIELD
    assert len(events(pair.driver)) == 1


def test_identifiers_may_come_by_a_list_of_two_bytes_anywhere(pair: QueuePair) -> None:
    assert write(pair, 0, 5, 0) == OK
    pair.driver.ram.write(pair.driver.data, b"\xff\xff\xff\0\0\xff")
    send = Command(IoOpcode.IO_MANAGEMENT_SEND, flags=1 << 6, nsid=1, cdw10=RUH_UPDATE)
    send.prp1, send.prp2 = pair.driver.data + 3, 2
    assert ended(pair.execute(send)) == OK
    assert handles(pair)[0] == (0, 2, UNIT // BLOCK)


def test_an_identifier_that_is_none_is_noted_and_the_data_stored(pair: QueuePair) -> None:
    assert ended(note(pair.driver, PlacementEvent.INVALID_IDENTIFIER)) == OK
    for identifier in (2, 0x7FFF, 0xFFFF):
        assert write(pair, 0, 1, identifier) == OK
    assert [event[:4] for event in events(pair.driver)] == [
        (3, 0b011, identifier, 1) for identifier in (2, 0x7FFF, 0xFFFF)
    ]
    assert ended(note(pair.driver, PlacementEvent.INVALID_IDENTIFIER, enable=False)) == OK
    assert write(pair, 0, 1, 9) == OK
    assert len(events(pair.driver)) == 3


def test_no_more_events_are_kept_than_there_is_room_for(pair: QueuePair) -> None:
    assert ended(note(pair.driver, PlacementEvent.INVALID_IDENTIFIER)) == OK
    for number in range(70):
        assert write(pair, 0, 1, 100 + number) == OK
    found = events(pair.driver)
    assert [event[2] for event in found] == [100 + number for number in range(7, 70)]


def test_another_directive_is_refused(pair: QueuePair) -> None:
    driver = pair.driver
    streams = driver.rw(IoOpcode.WRITE, 0, 1, driver.data, BLOCK, cdw12=1 << 20)
    assert ended(pair.execute(streams)) == Status.INVALID_FIELD


def test_events_are_enabled_for_a_handle(pair: QueuePair) -> None:
    driver = pair.driver
    assert ended(note(driver, 0, 0x80, handle=1)) == OK
    get = Command(AdminOpcode.GET_FEATURES, nsid=1, prp1=driver.data, cdw10=FeatureId.PLACEMENT_EVENTS)
    get.cdw11 = 1 | 16 << 16
    completion = driver.admin.execute(get)
    assert (ended(completion), completion.result) == (OK, 6)
    assert driver.ram.read(driver.data, 14) == bytes([0, 1, 1, 0, 2, 0, 3, 0, 0x80, 1, 0x81, 0, 0, 0])
    get.cdw11 = 2 << 16
    assert driver.admin.execute(get).result == 2
    get.cdw11 = 0
    assert ended(driver.admin.execute(get)) == Status.INVALID_FIELD
    assert ended(note(driver, 0x44)) == Status.INVALID_FIELD
    assert ended(note(driver, 0, handle=2)) == Status.INVALID_FIELD
    assert ended(note(driver, 0, nsid=BROADCAST)) == Status.INVALID_NAMESPACE
    assert ended(note(driver, 0, nsid=9)) == Status.INVALID_NAMESPACE


def test_placement_is_enabled_and_only_an_empty_group_can_change_that(make_bench: MakeBench) -> None:
    bench = make_bench(subsystem=disks())
    driver = bench.driver.enable()
    get = {"cdw11": 1, "cdw10": FeatureId.FLEXIBLE_DATA_PLACEMENT}
    assert driver.admin.execute(Command(AdminOpcode.GET_FEATURES, **get)).result == 1
    get["cdw11"] = 2
    assert ended(driver.admin.execute(Command(AdminOpcode.GET_FEATURES, **get))) == Status.INVALID_FIELD
    disable = Command(AdminOpcode.SET_FEATURES, cdw10=FeatureId.FLEXIBLE_DATA_PLACEMENT, cdw11=1)
    assert ended(driver.admin.execute(disable)) == Status.COMMAND_SEQUENCE_ERROR
    for nsid in (1, 2):
        bench.device.subsystem.remove(nsid)
    other = Command(AdminOpcode.SET_FEATURES, cdw10=FeatureId.FLEXIBLE_DATA_PLACEMENT, cdw11=1, cdw12=1 << 8)
    assert ended(driver.admin.execute(other)) == Status.INVALID_FIELD
    assert ended(driver.admin.execute(disable)) == OK
    for lid in (LogId.RECLAIM_UNIT_HANDLES, LogId.PLACEMENT_STATISTICS, LogId.PLACEMENT_EVENTS):
        assert log(driver, lid)[0] == Status.FDP_DISABLED
    assert log(driver, LogId.PLACEMENT_CONFIGURATIONS)[0] == OK
    bench.device.subsystem.add(NullStorage(1 << 20))
    pair = driver.create_queue_pair(1)
    receive = Command(IoOpcode.IO_MANAGEMENT_RECEIVE, nsid=1, prp1=driver.data, cdw10=RUH_STATUS)
    assert ended(pair.execute(receive)) == Status.FDP_DISABLED
    assert ended(note(driver, 0)) == Status.FDP_DISABLED


def test_management_does_nothing_if_it_is_told_nothing_and_no_more_than_there_is(pair: QueuePair) -> None:
    for opcode in (IoOpcode.IO_MANAGEMENT_RECEIVE, IoOpcode.IO_MANAGEMENT_SEND):
        assert ended(pair.execute(Command(opcode, nsid=1))) == OK
        assert ended(pair.execute(Command(opcode, nsid=1, cdw10=2))) == Status.INVALID_FIELD
        assert ended(pair.execute(Command(opcode, nsid=9))) == Status.INVALID_NAMESPACE
    large = Command(IoOpcode.IO_MANAGEMENT_RECEIVE, nsid=1, cdw10=RUH_STATUS, cdw11=0xFFFF_FFFF)
    assert ended(pair.execute(large)) == Status.INVALID_FIELD


def test_directives_are_told(make_bench: MakeBench) -> None:
    for bench, bits in ((make_bench(subsystem=disks()), 0b101), (make_bench(), 0b001)):
        driver = bench.driver.enable()
        receive = Command(AdminOpcode.DIRECTIVE_RECEIVE, nsid=1, prp1=driver.data, cdw10=1023, cdw11=1)
        assert ended(driver.admin.execute(receive)) == OK
        found = driver.ram.read(driver.data, PAGE)
        assert (found[0], found[32], found[64]) == (bits, bits, bits & 0b100)
        receive.nsid = BROADCAST
        assert ended(driver.admin.execute(receive)) == OK
        receive.nsid, receive.cdw10 = 1, 0xFFFF_FFFF
        assert ended(driver.admin.execute(receive)) == Status.INVALID_FIELD
        receive.cdw11 = 1 | 1 << 8
        assert ended(driver.admin.execute(receive)) == Status.INVALID_FIELD
        for cdw11, cdw12, status in (
            (1, 2 << 8 | 1, OK if bits & 0b100 else Status.INVALID_FIELD),
            (1, 2 << 8, Status.INVALID_FIELD),
            (1, 1 << 8 | 1, Status.INVALID_FIELD),
            (2, 2 << 8 | 1, Status.INVALID_FIELD),
        ):
            send = Command(AdminOpcode.DIRECTIVE_SEND, nsid=1, cdw11=cdw11, cdw12=cdw12)
            assert ended(driver.admin.execute(send)) == status


def test_a_subsystem_without_placement_has_nothing_of_it(make_bench: MakeBench) -> None:
    driver = make_bench().driver.enable()
    assert log(driver, LogId.PLACEMENT_CONFIGURATIONS)[0] == Status.INVALID_LOG_PAGE
    pair = driver.create_queue_pair(1)
    receive = Command(IoOpcode.IO_MANAGEMENT_RECEIVE, nsid=1, prp1=driver.data, cdw10=RUH_STATUS)
    assert ended(pair.execute(receive)) == Status.FDP_DISABLED
    assert ended(note(driver, 0)) == Status.INVALID_FIELD
    assert ended(driver.get_feature(FeatureId.FLEXIBLE_DATA_PLACEMENT, cdw11=1)) == Status.INVALID_FIELD


@pytest.mark.parametrize("apart", [True, False])
def test_data_of_one_life_in_units_of_its_own_is_not_moved(make_bench: MakeBench, apart: bool) -> None:
    space = Namespace(RamStorage(4 << 20), BLOCK, placement_handles=(0, 1))
    bench = make_bench(subsystem=Subsystem(space, placement=PlacementLayout(handles=2, unit=UNIT)))
    driver = bench.driver.enable()
    pair = driver.create_queue_pair(1)
    assert ended(note(driver, PlacementEvent.MEDIA_REALLOCATED)) == OK
    noise = random.Random(1)
    hot, cold = 64, 960
    for slba in range(hot, hot + cold):  # what stays is written once, in between what goes
        assert write(pair, slba, 1, 1 if apart else 0) == OK
        assert write(pair, noise.randrange(hot), 1, 0) == OK
    for _ in range(2000):
        assert write(pair, noise.randrange(hot), 1, 0) == OK
    host, media, erased = counted(driver)
    assert host == (2 * cold + 2000) * BLOCK
    assert erased > 0
    amplification = media / host
    assert amplification < 1.05 if apart else amplification > 1.2
    assert bool(events(driver, flags=0)) is (media > host)


def test_what_is_deallocated_need_not_be_moved() -> None:
    moved: list[int] = []
    group = Group(UNIT, 1, lambda owner, size: moved.append(size))
    place = Place(1, 16 * UNIT)
    group.hold(place, place.size)
    for _ in range(10):
        group.write(0, place, 0, place.size)
        group.discard(place, 0, place.size)
    assert moved == []
    assert group.media_bytes == 10 * place.size
    assert group.erased_bytes >= 7 * place.size


def test_the_medium_never_holds_more_than_it_has() -> None:
    """Whatever is written, what counts is what the namespace holds, and every chunk is in one unit."""
    group = Group(UNIT, 3, lambda owner, size: None)
    place = Place(1, 8 * UNIT)
    group.hold(place, place.size)
    noise = random.Random(2)
    for _ in range(3000):
        offset = noise.randrange(place.size // BLOCK) * BLOCK
        size = min(noise.randrange(1, 9) * BLOCK, place.size - offset)
        group.write(noise.randrange(3), place, offset, size)
    assert sum(unit.valid for unit in group._units.values()) == place.size
    assert len(group._units) <= group._most


def test_counters_and_what_is_noted_move_with_the_controller(
    bench: Bench, pair: QueuePair, lane: str
) -> None:
    assert ended(note(pair.driver, 0, handle=1)) == OK
    assert write(pair, 0, 4, 1) == OK
    tuning = Tuning(pollers=0, native=lane == "native")
    target = move(bench, Nvme(subsystem=disks(), tuning=tuning))
    assert counted(pair.driver)[0] == 4 * BLOCK
    assert update(pair, 1) == OK
    target.close()


@pytest.mark.parametrize(
    ("layout", "complaint"),
    [
        ({"handles": 0}, "0 handles and 1 reclaim groups"),
        ({"handles": 129}, "129 handles"),
        ({"groups": 257}, "257 reclaim groups"),
        ({"unit": 4096}, "4096 is none"),
    ],
)
def test_a_placement_that_cannot_be_is_refused(layout: dict[str, int], complaint: str) -> None:
    with pytest.raises(DefinitionError, match=complaint):
        PlacementLayout(**layout)


def test_namespaces_that_do_not_fit_are_refused() -> None:
    def add(space: Namespace, placement: PlacementLayout | None = LAYOUT) -> None:
        subsystem = Subsystem(placement=placement)
        subsystem.add(Namespace(NullStorage(1 << 20), BLOCK, placement_handles=(0, 1) if placement else ()))
        subsystem.add(space)

    disk = NullStorage(1 << 20)
    for space, complaint in (
        (zoned(), "zoned namespace has no part"),
        (Namespace(disk, BLOCK, placement_handles=(4,)), "0 to 3, not 4"),
        (Namespace(disk, BLOCK, placement_handles=(2, 2)), "each at most once"),
        (Namespace(disk, 512, placement_handles=(1,)), "for blocks of 4096 bytes"),
    ):
        with pytest.raises(DefinitionError, match=complaint):
            add(space)
    with pytest.raises(DefinitionError, match="no reclaim unit handle is left"):
        add(Namespace(disk, BLOCK), PlacementLayout(handles=2))
    with pytest.raises(DefinitionError, match="has data placement enabled"):
        add(Namespace(disk, BLOCK, placement_handles=(0,)), None)


def test_a_namespace_that_grows_or_is_formatted_is_placed_over_its_whole_length(bench: Bench) -> None:
    pair = bench.driver.enable().create_queue_pair(1)
    bench.device.subsystem.resize(1, 2 << 20)
    assert write(pair, 511, identifier=1) == OK
    bench.device.subsystem.resize(1, 1 << 20)
    assert write(pair, 255, identifier=1) == OK


def format_nvm(bench: Bench, nsid: int, number: int) -> Status:
    return ended(bench.driver.admin.execute(Command(AdminOpcode.FORMAT_NVM, nsid=nsid, cdw10=number)))


def test_a_format_takes_the_handles_along_unless_they_are_shared(make_bench: MakeBench) -> None:
    def space(*placement_handles: int) -> Namespace:
        return Namespace(RamStorage(1 << 20), 4096, 64, placement_handles=placement_handles)

    layout = PlacementLayout(handles=2, groups=2, unit=UNIT)
    bench = make_bench(subsystem=Subsystem(space(0), space(), space(), placement=layout))
    pair = bench.driver.enable().create_queue_pair(1)
    assert format_nvm(bench, 1, 1) == OK
    assert bench.device.namespaces[1].blocks == 256
    assert write(pair, 255) == OK
    assert format_nvm(bench, 1, 0) == OK
    placement = bench.device.subsystem.placement
    assert placement is not None
    assert placement.handles[0].block_size == 512
    assert format_nvm(bench, 2, 0) == Status.INVALID_FORMAT
    assert format_nvm(bench, 2, 1) == OK


def test_created_namespaces_leave_nothing_behind_in_the_reclaim_groups(make_bench: MakeBench) -> None:
    subsystem = Subsystem(
        Namespace(RamStorage(1 << 20), BLOCK, placement_handles=(0, 1, 2)),
        placement=LAYOUT,
        pool=RamPool(1 << 20),
    )
    bench = make_bench(subsystem=subsystem)
    driver = bench.driver.enable()
    placement = subsystem.placement
    assert placement is not None
    before = [len(group._places) for group in placement.groups]

    def manage(select: int, nsid: int = 0, flbas: int = 0) -> Completion:
        data = NAMESPACE_MANAGEMENT.encode(nsze=16, ncap=16, flbas=flbas)
        driver.ram.write(driver.data, data)
        command = Command(AdminOpcode.NAMESPACE_MANAGEMENT, nsid=nsid, prp1=driver.data, cdw10=select)
        return driver.admin.execute(command)

    for flbas in (0, 1, 0):
        assert ended(completion := manage(0, flbas=flbas)) == OK
        assert completion.result == 2
        assert placement.handles[3].block_size == (BLOCK if flbas else 512)
        assert ended(manage(0, flbas=1 - flbas)) == Status.INVALID_PLACEMENT_HANDLE_LIST
        assert ended(manage(1, 2)) == OK
        assert [len(group._places) for group in placement.groups] == before
        assert placement.handles[3].use == 0
    assert subsystem.pool is not None
    assert subsystem.pool.free == 1 << 20
    assert subsystem.free_identifier == 2


def test_what_a_namespace_leaves_behind_is_reclaimed_without_being_moved() -> None:
    group = Group(UNIT, 1, lambda owner, size: None)
    gone, stays = Place(1, 4 * UNIT), Place(2, 4 * UNIT)
    group.hold(gone, gone.size)
    group.write(0, gone, 0, gone.size)
    group.drop(gone, gone.size)
    group.hold(stays, stays.size)
    for _ in range(8):
        group.write(0, stays, 0, stays.size)
    assert group.media_bytes == gone.size + 8 * stays.size
    assert group.erased_bytes > 0


def test_what_was_counted_and_what_is_noted_outlives_a_power_cycle(
    make_bench: MakeBench, tmp_path: Path
) -> None:
    def on(layout: PlacementLayout = LAYOUT) -> Bench:
        space = Namespace(RamStorage(1 << 20), BLOCK, placement_handles=(2, 0))
        return make_bench(subsystem=Subsystem(space, placement=layout, store=Store(tmp_path / "state")))

    bench = on()
    pair = bench.driver.enable().create_queue_pair(1)
    assert write(pair, 0, 8, identifier=1) == OK
    assert ended(note(bench.driver, PlacementEvent.INVALID_IDENTIFIER)) == OK
    before = counted(bench.driver)
    assert before == (8 * BLOCK, 8 * BLOCK, 0)
    bench.device.disconnected()
    bench = on()
    pair = bench.driver.enable().create_queue_pair(1)
    assert counted(bench.driver) == before
    assert write(pair, 0, identifier=7) == OK
    assert len(events(bench.driver)) == 1
    bench = on(PlacementLayout(handles=3, groups=1, unit=UNIT))
    assert counted(bench.driver.enable()) == (0, 0, 0)
