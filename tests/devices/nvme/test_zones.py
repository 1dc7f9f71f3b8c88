"""Zones: every state, every transition, every limit, and what each ends with that cannot be (Z01)."""

import struct
from typing import Any

import pytest

from outboard.devices.nvme import Namespace, ZoneLayout
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.spec import Csi, IoOpcode
from outboard.devices.nvme.status import Status
from outboard.devices.nvme.zone import ZoneState
from outboard.devices.nvme.zone_commands import Send
from outboard.devices.nvme.zones import Zones
from outboard.errors import DefinitionError
from outboard.storage import NullStorage, RamStorage
from tests.devices.nvme.bench import Bench
from tests.devices.nvme.conftest import MakeBench
from tests.devices.nvme.driver import CC_ENABLE, do_not_retry, ended
from tests.devices.nvme.zoned import (
    ALL,
    ALLOCATE,
    BLOCK,
    CAPACITY,
    FUA,
    NO_POINTER,
    SIZE,
    ZONES,
    Host,
    zoned,
)

E, IO, EO, C, F, RO, OFF = (
    ZoneState.EMPTY,
    ZoneState.IMPLICITLY_OPEN,
    ZoneState.EXPLICITLY_OPEN,
    ZoneState.CLOSED,
    ZoneState.FULL,
    ZoneState.READ_ONLY,
    ZoneState.OFFLINE,
)
OK, REFUSED = Status.SUCCESS, Status.INVALID_ZONE_STATE_TRANSITION

pytestmark = pytest.mark.point("Z01")


@pytest.fixture
def bench(make_bench: MakeBench) -> Bench:
    return make_bench(zoned())


@pytest.fixture
def host(bench: Bench) -> Host:
    return Host(bench.driver)


def zones_of(bench: Bench, nsid: int = 1) -> Zones:
    zones = bench.device.subsystem.namespaces[nsid].zones
    assert zones is not None
    return zones


def bring(bench: Bench, host: Host, zone: int, state: ZoneState) -> None:
    """Bring an empty zone into a state, with something written if it can be."""
    start = zone * SIZE
    if state in (IO, C, F):
        assert host.write(start, 2) == OK
    if state is C:
        assert host.send(Send.CLOSE, zone) == OK
    elif state is F:
        assert host.write(start + 2, CAPACITY - 2) == OK
    elif state is EO:
        assert host.send(Send.OPEN, zone) == OK
    elif state in (RO, OFF):
        zones_of(bench).set_state(zone, state)
    assert host.zone(zone).state is state


TRANSITIONS = {
    Send.OPEN: {E: EO, IO: EO, EO: EO, C: EO, F: None, RO: None, OFF: None},
    Send.CLOSE: {E: None, IO: C, EO: C, C: C, F: None, RO: None, OFF: None},
    Send.FINISH: {E: F, IO: F, EO: F, C: F, F: F, RO: None, OFF: None},
    Send.RESET: {E: E, IO: E, EO: E, C: E, F: E, RO: None, OFF: None},
    Send.OFFLINE: {E: None, IO: None, EO: None, C: None, F: None, RO: OFF, OFF: OFF},
}
"""What each action makes of each state, and None where it is refused."""

ALL_TRANSITIONS = {
    Send.OPEN: {C: EO},
    Send.CLOSE: {IO: C, EO: C},
    Send.FINISH: {IO: F, EO: F, C: F},
    Send.RESET: {IO: E, EO: E, C: E, F: E},
    Send.OFFLINE: {RO: OFF},
}
"""The same where it is for all zones: the others stay as they are."""


@pytest.mark.parametrize("action", TRANSITIONS)
def test_an_action_makes_of_every_state_what_the_specification_says(
    bench: Bench, host: Host, action: Send
) -> None:
    for number, (before, after) in enumerate(TRANSITIONS[action].items()):
        bring(bench, host, number, before)
        found = host.zone(number)
        assert host.send(action, number) == (OK if after else REFUSED)
        if after is None:
            assert host.zone(number) == found
        assert host.zone(number).state is (after or before)
        if after is E:
            assert host.zone(number).pointer == number * SIZE
        if after is F:
            assert host.zone(number).pointer == NO_POINTER


@pytest.mark.parametrize("action", ALL_TRANSITIONS)
def test_an_action_for_all_zones_changes_those_it_is_for(bench: Bench, host: Host, action: Send) -> None:
    states = list(ZoneState)
    for number, state in enumerate(states):
        bring(bench, host, number, state)
    # The zone that is named does not matter, not even whether there is one.
    assert host.send(action, flags=ALL, slba=1 << 40) == OK
    expected = [ALL_TRANSITIONS[action].get(state, state) for state in states]
    assert host.states()[: len(states)] == expected


@pytest.mark.parametrize(
    ("action", "flags", "slba", "status"),
    [
        (0x00, 0, 0, Status.INVALID_FIELD),
        (0x06, 0, 0, Status.INVALID_FIELD),
        (0xFF, ALL, 0, Status.INVALID_FIELD),
        (Send.SET_EXTENSION, ALL, 0, Status.INVALID_FIELD),
        (Send.COMMIT, ALL, 0, Status.INVALID_FIELD),
        (Send.OPEN, 0, 1, Status.INVALID_FIELD),
        (Send.RESET, 0, SIZE - 1, Status.INVALID_FIELD),
        (Send.RESET, 0, ZONES * SIZE, Status.LBA_OUT_OF_RANGE),
        (Send.FINISH, 0, 1 << 63, Status.LBA_OUT_OF_RANGE),
        (Send.SET_EXTENSION, 0, 0, Status.INVALID_FIELD),
        (Send.OPEN, ALLOCATE, 0, Status.INVALID_ZONE_OPERATION),
        (Send.COMMIT, 0, 0, Status.INVALID_ZONE_OPERATION),
    ],
)
def test_what_cannot_be_asked_of_zones_is_refused(
    host: Host, action: int, flags: int, slba: int, status: Status
) -> None:
    assert host.send(action, flags=flags, slba=slba) == status
    assert host.states() == [E] * ZONES


def test_writes_go_to_the_pointer_and_nowhere_else(host: Host) -> None:
    assert host.write(0, 3) == OK
    assert host.zone(0).state is IO
    assert host.zone(0).pointer == 3
    for slba in (0, 2, 4, CAPACITY - 1):
        assert host.write(slba, 1) == Status.ZONE_INVALID_WRITE
    assert host.write(SIZE + 1, 1) == Status.ZONE_INVALID_WRITE
    assert host.states() == [IO] + [E] * (ZONES - 1)
    assert host.write(3, CAPACITY - 3) == OK
    assert host.zone(0).state is F


def test_a_write_ends_with_the_capacity_of_its_zone(host: Host) -> None:
    assert host.write(0, CAPACITY + 1) == Status.ZONED_BOUNDARY_ERROR
    assert host.write(CAPACITY, 1) == Status.ZONED_BOUNDARY_ERROR
    assert host.write(0, SIZE + 1) == Status.ZONED_BOUNDARY_ERROR
    assert host.write(0, CAPACITY) == OK
    assert host.write(CAPACITY, 1) == Status.ZONE_IS_FULL
    assert host.write(0, 1) == Status.ZONE_IS_FULL
    assert host.write(ZONES * SIZE - 1, 2) == Status.LBA_OUT_OF_RANGE


@pytest.mark.parametrize("state", [RO, OFF])
def test_a_zone_that_has_failed_is_not_written(bench: Bench, host: Host, state: ZoneState) -> None:
    expected = Status.ZONE_IS_READ_ONLY if state is RO else Status.ZONE_IS_OFFLINE
    assert host.write(0, 2) == OK
    zones_of(bench).set_state(0, state)
    assert host.zone(0).pointer == NO_POINTER
    assert host.write(2, 1) == expected
    assert ended(host.append(0, 1)) == expected
    assert ended(host.execute(IoOpcode.WRITE_ZEROES, 2)) == expected
    assert ended(host.execute(IoOpcode.WRITE_UNCORRECTABLE, 2)) == expected
    host.driver.ram.write(host.buffer, struct.pack("<IIQ", 0, 1, 0))
    assert ended(host.execute(IoOpcode.DATASET_MANAGEMENT, 4 << 32)) == expected
    status, data = host.read(0, 2)
    if state is RO:
        assert (status, data) == (OK, b"\1" * BLOCK + b"\2" * BLOCK)
    else:
        assert status == Status.ZONE_IS_OFFLINE
        assert ended(host.execute(IoOpcode.VERIFY, 0)) == Status.ZONE_IS_OFFLINE
        assert ended(host.execute(IoOpcode.COMPARE, 0, size=BLOCK)) == Status.ZONE_IS_OFFLINE
        assert host.read(SIZE, 1)[0] == OK
        assert host.read(SIZE - 1, 2)[0] == Status.ZONE_IS_OFFLINE


def test_nothing_at_the_end_of_the_last_zone_can_be_deallocated(host: Host) -> None:
    last = SIZE * ZONES
    host.driver.ram.write(host.buffer, struct.pack("<IIQ", 0, 0, last))
    assert ended(host.execute(IoOpcode.DATASET_MANAGEMENT, 4 << 32)) == OK
    host.driver.ram.write(host.buffer, struct.pack("<IIQ", 0, 1, last))
    assert ended(host.execute(IoOpcode.DATASET_MANAGEMENT, 4 << 32)) == Status.LBA_OUT_OF_RANGE


def test_an_append_tells_where_it_went(host: Host) -> None:
    assert host.append(0, 2).result == 0
    assert host.append(0, 3).result == 2
    last = (ZONES - 1) * SIZE
    assert host.append(last, 1).result == last
    assert host.read(2, 3) == (OK, bytes(BLOCK * [1] + BLOCK * [2] + BLOCK * [3]))
    assert ended(host.append(1, 1)) == Status.INVALID_FIELD
    assert ended(host.append(ZONES * SIZE, 1)) == Status.LBA_OUT_OF_RANGE
    assert ended(host.append(0, CAPACITY - 4)) == Status.ZONED_BOUNDARY_ERROR
    assert host.append(0, CAPACITY - 5).result == 5
    assert host.zone(0).state is F
    assert ended(host.append(0, 1)) == Status.ZONE_IS_FULL


def test_where_an_append_went_has_64_bits(make_bench: MakeBench) -> None:
    bench = make_bench(Namespace(NullStorage(1 << 45), zoned=ZoneLayout(size=1 << 43)))
    host = Host(bench.driver)
    start = 3 << 34
    assert host.append(start, 2).result == start
    assert host.append(start, 2).result == start + 2


def test_an_append_is_no_larger_than_zasl(make_bench: MakeBench) -> None:
    host = Host(make_bench(zoned(size=64, capacity=64), zasl=1).driver)
    assert ended(host.append(0, 17)) == Status.INVALID_FIELD
    assert ended(host.append(0, 16)) == OK
    assert host.write(16, 17) == OK


def test_reads_cross_boundaries_and_give_zeros_where_nothing_was_written(host: Host) -> None:
    assert host.write(0, CAPACITY) == OK
    assert host.write(SIZE, 2) == OK
    status, data = host.read(0, 2 * SIZE)
    assert status == OK
    assert data[CAPACITY * BLOCK : SIZE * BLOCK] == bytes((SIZE - CAPACITY) * BLOCK)
    assert data[SIZE * BLOCK : (SIZE + 2) * BLOCK] == b"\1" * BLOCK + b"\2" * BLOCK
    assert data[(SIZE + 2) * BLOCK :] == bytes((SIZE - 2) * BLOCK)


def test_reads_stay_in_one_zone_where_they_cannot_cross(make_bench: MakeBench) -> None:
    host = Host(make_bench(zoned(cross_read=False)).driver)
    assert host.read(SIZE - 1, 1)[0] == OK
    assert host.read(SIZE - 1, 2)[0] == Status.ZONED_BOUNDARY_ERROR
    assert ended(host.execute(IoOpcode.VERIFY, 0, cdw12=SIZE)) == Status.ZONED_BOUNDARY_ERROR


def test_a_reset_zone_reads_as_zeros_and_is_written_anew(host: Host) -> None:
    assert host.write(0, CAPACITY) == OK
    assert host.send(Send.RESET) == OK
    assert host.read(0, SIZE) == (OK, bytes(SIZE * BLOCK))
    assert host.write(0, 1) == OK


def test_a_finished_zone_reads_as_zeros_where_it_was_not_written(host: Host) -> None:
    assert host.write(0, 2) == OK
    assert host.send(Send.FINISH) == OK
    assert host.read(0, 3) == (OK, b"\1" * BLOCK + b"\2" * BLOCK + bytes(BLOCK))


def test_write_zeroes_and_uncorrectable_move_the_pointer(host: Host) -> None:
    assert ended(host.execute(IoOpcode.WRITE_ZEROES, 0, cdw12=1 << 25 | 1)) == OK
    assert ended(host.execute(IoOpcode.WRITE_ZEROES, 4)) == Status.ZONE_INVALID_WRITE
    assert ended(host.execute(IoOpcode.WRITE_UNCORRECTABLE, 2, cdw12=1)) == OK
    assert ended(host.execute(IoOpcode.WRITE_UNCORRECTABLE, 2)) == Status.ZONE_INVALID_WRITE
    assert host.zone(0).pointer == 4
    assert host.read(3, 1)[0] == Status.UNRECOVERED_READ_ERROR
    assert host.send(Send.RESET) == OK
    assert host.read(3, 1) == (OK, bytes(BLOCK))


def copy(host: Host, target: int, *sources: tuple[int, int]) -> Status:
    ranges = b"".join(struct.pack("<8xQH14x", slba, count - 1) for slba, count in sources)
    host.driver.ram.write(host.buffer, ranges)
    return ended(host.execute(IoOpcode.COPY, target, cdw12=len(sources) - 1))


def test_a_copy_is_written_where_its_zone_is_next(host: Host) -> None:
    assert host.write(0, 8) == OK
    assert copy(host, SIZE + 1, (0, 2)) == Status.ZONE_INVALID_WRITE
    assert copy(host, SIZE, (0, 8), (0, 5)) == Status.ZONED_BOUNDARY_ERROR
    assert host.zone(1).state is E
    assert copy(host, SIZE, (4, 2), (0, 1)) == OK
    assert host.zone(1).pointer == SIZE + 3
    assert host.read(SIZE, 3) == (OK, bytes(BLOCK * [5] + BLOCK * [6] + BLOCK * [1]))


def test_a_fused_pair_writes_where_its_zone_is_next(host: Host) -> None:
    assert host.write(0, 1) == OK
    host.driver.ram.write(host.buffer, bytes(BLOCK))
    rw = {"nsid": 1, "prp1": host.buffer, "cdw10": 1}
    first = host.pair.submit(Command(IoOpcode.COMPARE, flags=1, **rw))
    second = host.pair.submit(Command(IoOpcode.WRITE, flags=2, **rw))
    host.pair.ring()
    assert [ended(host.pair.wait(cid)) for cid in (first, second)] == [OK, OK]
    assert host.zone(0).pointer == 2


def test_an_implicitly_open_zone_makes_room_and_an_explicitly_open_one_does_not(
    make_bench: MakeBench,
) -> None:
    host = Host(make_bench(zoned(most_open=2)).driver)
    for number in range(3):
        assert host.write(number * SIZE, 1) == OK
    assert host.states()[:3] == [C, IO, IO]
    assert host.send(Send.OPEN, 3) == OK
    assert host.states()[:4] == [C, C, IO, EO]
    assert host.send(Send.OPEN, 0) == OK
    assert host.states()[:4] == [EO, C, C, EO]
    assert host.write(SIZE + 1, 1) == Status.TOO_MANY_OPEN_ZONES
    assert host.write(4 * SIZE, 1) == Status.TOO_MANY_OPEN_ZONES
    assert ended(host.append(4 * SIZE, 1)) == Status.TOO_MANY_OPEN_ZONES
    assert host.send(Send.OPEN, 4) == Status.TOO_MANY_OPEN_ZONES
    assert host.send(Send.OPEN, flags=ALL) == Status.TOO_MANY_OPEN_ZONES
    assert host.states()[:5] == [EO, C, C, EO, E]
    assert host.send(Send.CLOSE, 0) == OK
    assert host.write(SIZE + 1, 1) == OK


def test_no_more_zones_are_active_than_may_be(make_bench: MakeBench) -> None:
    host = Host(make_bench(zoned(most_active=2, most_open=1, extension=64)).driver)
    assert host.write(0, 1) == OK
    assert host.write(SIZE, 1) == OK
    for status in (
        host.write(2 * SIZE, 1),
        host.send(Send.OPEN, 2),
        host.send(Send.SET_EXTENSION, 2),
        ended(host.append(2 * SIZE, 1)),
    ):
        assert status == Status.TOO_MANY_ACTIVE_ZONES
    assert host.states()[:3] == [C, IO, E]
    # A zone is finished without having been active.
    assert host.send(Send.FINISH, 2) == OK
    assert host.send(Send.RESET, 0) == OK
    assert host.write(3 * SIZE, CAPACITY) == OK
    assert host.write(4 * SIZE, 1) == OK


def test_a_descriptor_has_an_extension_until_the_zone_is_reset(make_bench: MakeBench) -> None:
    host = Host(make_bench(zoned(extension=128)).driver)
    extension = bytes(range(128))
    host.driver.ram.write(host.buffer, extension)
    assert host.send(Send.SET_EXTENSION, 1) == OK
    found = host.report(128)
    assert found[1].state is C
    assert (found[1].attributes, found[1].extension, found[1].pointer) == (0x80, extension, SIZE)
    assert (found[0].attributes, found[0].extension) == (0, bytes(128))
    assert host.send(Send.SET_EXTENSION, 1) == REFUSED
    assert host.write(SIZE, CAPACITY) == OK
    assert host.report(128)[1].extension == extension
    assert host.send(Send.RESET, 1) == OK
    assert host.report(128)[1].attributes == 0
    assert host.report(128)[1].extension == bytes(128)


def test_a_random_write_area_is_committed_as_it_is_written(make_bench: MakeBench) -> None:
    host = Host(make_bench(zoned(zrwa_blocks=4, zrwa_granularity_blocks=2, zrwa_resources=1)).driver)
    assert host.send(Send.OPEN, 0, ALLOCATE) == OK
    assert host.zone(0).attributes == 1 << 3
    assert host.send(Send.OPEN, 1, ALLOCATE) == Status.ZRWA_RESOURCES_UNAVAILABLE
    assert host.write(3, b"b" * BLOCK) == OK
    assert host.write(0, b"a" * BLOCK) == OK
    assert host.write(0, b"c" * BLOCK) == OK
    assert host.zone(0).pointer == 0
    assert host.read(0, 4) == (OK, b"c" * BLOCK + bytes(2 * BLOCK) + b"b" * BLOCK)
    assert host.write(4, 1) == OK
    assert host.zone(0).pointer == 2
    assert host.write(1, 1) == Status.ZONE_INVALID_WRITE
    assert host.write(10, 1) == Status.ZONE_INVALID_WRITE
    assert host.write(9, 1) == OK
    assert host.zone(0).pointer == 6
    assert ended(host.append(0, 1)) == Status.INVALID_ZONE_OPERATION
    assert host.send(Send.OPEN, 0, ALLOCATE) == Status.INVALID_ZONE_OPERATION
    assert host.write(CAPACITY, 1) == Status.ZONED_BOUNDARY_ERROR


def test_a_random_write_area_is_committed_by_command(make_bench: MakeBench) -> None:
    host = Host(make_bench(zoned(zrwa_blocks=4, zrwa_granularity_blocks=2, zrwa_resources=1)).driver)
    assert host.send(Send.COMMIT, slba=1) == Status.INVALID_ZONE_OPERATION
    assert host.send(Send.OPEN, 0, ALLOCATE) == OK
    for slba in (0, 2, 4, 5, CAPACITY):
        assert host.send(Send.COMMIT, slba=slba) == Status.INVALID_ZONE_OPERATION
    assert host.send(Send.COMMIT, slba=3) == OK
    assert host.zone(0).pointer == 4
    assert host.send(Send.CLOSE, 0) == OK
    assert host.send(Send.COMMIT, slba=7) == OK
    assert host.zone(0).state is IO
    assert host.send(Send.COMMIT, slba=CAPACITY - 1) == OK
    assert (host.zone(0).state, host.zone(0).attributes) == (F, 0)
    assert host.send(Send.OPEN, 1, ALLOCATE) == OK
    assert host.send(Send.RESET, 1) == OK
    assert host.send(Send.OPEN, 2, ALLOCATE) == OK
    assert host.send(Send.FINISH, 2) == OK
    assert host.send(Send.OPEN, 3, ALLOCATE) == OK


@pytest.mark.parametrize("opcode", [0x79, 0x7A, 0x7D])
def test_a_namespace_without_zones_has_no_commands_for_them(make_bench: MakeBench, opcode: IoOpcode) -> None:
    host = Host(make_bench(zoned(), RamStorage(1 << 20)).driver, nsid=2)
    completion = host.execute(opcode, 0)
    assert ended(completion) == Status.INVALID_OPCODE
    assert do_not_retry(completion)


def test_where_only_the_nvm_command_set_is_enabled_zoned_namespaces_are_not_there(
    make_bench: MakeBench,
) -> None:
    bench = make_bench(zoned(), RamStorage(1 << 20))
    driver = bench.driver.enable(cc=CC_ENABLE)
    assert ended(driver.identify(2)) == OK
    assert struct.unpack("<3I", driver.ram.read(driver.data, 12)) == (2, 0, 0)
    pair = driver.create_queue_pair(1)
    read = driver.rw(IoOpcode.READ, 0, 1, driver.data, BLOCK)
    assert ended(pair.execute(read)) == Status.INVALID_NAMESPACE
    driver.disable()
    host = Host(driver)
    assert host.write(0, 1) == OK


def test_a_flush_and_forced_writes_are_as_for_every_namespace(host: Host) -> None:
    assert host.write(0, 1, FUA) == OK
    assert ended(host.execute(IoOpcode.FLUSH, 0)) == OK
    assert host.read(0, 1) == (OK, b"\1" * BLOCK)


def test_no_zone_is_open_after_a_subsystem_reset(make_bench: MakeBench) -> None:
    bench = make_bench(zoned(zrwa_blocks=4, zrwa_granularity_blocks=2, extension=64))
    host = Host(bench.driver)
    assert host.send(Send.OPEN, 0) == OK
    assert host.write(SIZE, 2) == OK
    assert host.send(Send.SET_EXTENSION, 2) == OK
    assert host.send(Send.OPEN, 2) == OK
    assert host.send(Send.OPEN, 3, ALLOCATE) == OK
    assert host.write(3 * SIZE + 2, b"z" * BLOCK) == OK
    assert host.write(4 * SIZE, CAPACITY) == OK
    bench.bar.write32(0x20, 0x4E56_4D65)
    host = Host(bench.driver)
    assert host.states()[:5] == [E, C, C, C, F]
    area = host.zone(3)
    assert (area.attributes, area.pointer) == (0, 3 * SIZE + 4)
    assert host.read(3 * SIZE + 2, 1) == (OK, b"z" * BLOCK)


def test_zones_stay_as_they_are_over_a_controller_reset(host: Host) -> None:
    assert host.send(Send.OPEN, 0) == OK
    assert host.write(SIZE, 2) == OK
    found = host.report()
    host.driver.disable()
    assert Host(host.driver).report() == found


@pytest.mark.parametrize(
    ("layout", "complaint"),
    [
        ({"size": 0}, "size of a zone is 0"),
        ({"size": 8192, "capacity": 8193}, "no capacity of 8193"),
        ({"size": 8192, "most_active": 1, "most_open": 2}, "2 zones cannot be open where 1"),
        ({"size": 8192, "most_open": -1}, "most_open is -1"),
        ({"size": 8192, "extension": 65}, "65 is none"),
        ({"size": 8192, "extension": 64 << 8}, "16384 is none"),
        ({"size": 8192, "zrwa_resources": 2}, "needs their size"),
        ({"size": 1000}, "1000 is no multiple of 512"),
        ({"size": 8192, "zrwa": 16384}, "at most 16 blocks here, not 32"),
        ({"size": 8192, "zrwa": 2048, "zrwa_granularity": 1536}, "3 blocks do not divide"),
        ({"size": 1 << 30}, "make the storage larger"),
        ({"size": 512}, "more than 262144"),
    ],
)
def test_a_layout_that_cannot_be_is_refused_with_its_values(layout: dict[str, Any], complaint: str) -> None:
    with pytest.raises(DefinitionError, match=complaint):
        Namespace(NullStorage(1 << 28), zoned=ZoneLayout(**layout))


def test_a_zoned_namespace_has_a_layout() -> None:
    with pytest.raises(DefinitionError, match="give it one"):
        Namespace(NullStorage(1 << 20), csi=Csi.ZONED)


def test_what_an_operator_cannot_do_to_a_zone_is_refused(bench: Bench) -> None:
    zones = zones_of(bench)
    with pytest.raises(DefinitionError, match="not to FULL"):
        zones.set_state(0, F)
    with pytest.raises(DefinitionError, match=f"0 to {ZONES - 1}, not {ZONES}"):
        zones.set_state(ZONES, OFF)
    with pytest.raises(DefinitionError, match="nothing to reset"):
        zones.recommend_reset(0)
