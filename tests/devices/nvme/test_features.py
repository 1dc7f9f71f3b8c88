"""Features that Linux, Windows and FreeBSD set and get while they start."""

import time
from dataclasses import replace
from pathlib import Path

import pytest

from outboard.devices.nvme import PlacementLayout, Store, Subsystem
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.feature_values import PLAIN
from outboard.devices.nvme.features import FEATURES
from outboard.devices.nvme.placement import PlacementEvent
from outboard.devices.nvme.spec import BROADCAST, AdminOpcode, FeatureId, IoOpcode, Select
from outboard.devices.nvme.status import Status
from outboard.storage import RamStorage
from tests.devices.nvme.bench import Bench
from tests.devices.nvme.conftest import MakeBench
from tests.devices.nvme.driver import Driver, do_not_retry, ended

OVER, UNDER = 0, 1 << 20

NOT_SAVEABLE = {
    FeatureId.NAMESPACE_WRITE_PROTECTION,
    FeatureId.NUMBER_OF_QUEUES,
    FeatureId.TIMESTAMP,
    FeatureId.KEEP_ALIVE_TIMER,
    FeatureId.HOST_BEHAVIOR_SUPPORT,
    FeatureId.HOST_IDENTIFIER,
    FeatureId.RESERVATION_NOTIFICATION_MASK,
    FeatureId.RESERVATION_PERSISTENCE,
}


@pytest.fixture
def lane() -> str:
    """The data plane has no part in this."""
    return "plain"


OF_PLACEMENT = {FeatureId.FLEXIBLE_DATA_PLACEMENT, FeatureId.PLACEMENT_EVENTS}
"""Only a subsystem with data placement has these."""
OF_NAMESPACES = {
    FeatureId.ERROR_RECOVERY,
    FeatureId.RESERVATION_NOTIFICATION_MASK,
    FeatureId.RESERVATION_PERSISTENCE,
    FeatureId.NAMESPACE_WRITE_PROTECTION,
}


@pytest.mark.point("F01")
@pytest.mark.parametrize("select", Select)
@pytest.mark.parametrize("fid", sorted(FEATURES.keys() - OF_PLACEMENT))
def test_every_feature_can_be_got_in_every_way(driver: Driver, fid: FeatureId, select: Select) -> None:
    completion = driver.get_feature(fid, select, nsid=int(fid in OF_NAMESPACES))
    assert ended(completion) == Status.SUCCESS
    if select == Select.CAPABILITIES:
        assert completion.result & 4, "changeable"
        assert bool(completion.result & 1) == (fid not in NOT_SAVEABLE)
        assert bool(completion.result & 2) == (fid in OF_NAMESPACES)


@pytest.mark.point("F01", "Z02")
def test_whether_data_is_placed_can_be_got_in_every_way(make_bench: MakeBench) -> None:
    disks = Subsystem(RamStorage(1 << 20), placement=PlacementLayout())
    disks.remove(1).storage.close()
    driver, fid, group = make_bench(subsystem=disks).driver.enable(), FeatureId.FLEXIBLE_DATA_PLACEMENT, 1
    assert ended(driver.set_feature(fid, group)) == Status.SUCCESS
    found = [driver.get_feature(fid, select, cdw11=group) for select in Select]
    assert [ended(completion) for completion in found] == [Status.SUCCESS] * 4
    assert [completion.result for completion in found] == [0, 1, 1, 4], "off; on by default; changeable"


@pytest.mark.point("F01", "Z02")
def test_the_events_of_placement_can_be_got_in_every_way(make_bench: MakeBench) -> None:
    disks = Subsystem(RamStorage(1 << 20), placement=PlacementLayout())
    driver, fid, count = make_bench(subsystem=disks).driver.enable(), FeatureId.PLACEMENT_EVENTS, 2
    driver.ram.write(driver.data, bytes([PlacementEvent.UNIT_NOT_FULLY_WRITTEN]))
    note = Command(AdminOpcode.SET_FEATURES, nsid=1, prp1=driver.data, cdw10=fid, cdw11=1 << 16, cdw12=1)
    assert ended(driver.admin.execute(note)) == Status.SUCCESS
    for select, noted in ((Select.CURRENT, 1), (Select.DEFAULT, 0), (Select.SAVED, 0)):
        completion = driver.get_feature(fid, select, cdw11=count << 16, nsid=1)
        assert (ended(completion), completion.result) == (Status.SUCCESS, count)
        assert driver.ram.read(driver.data, 4) == bytes([0, noted, 1, 0])
    assert driver.get_feature(fid, Select.CAPABILITIES, nsid=1).result == 6, "changeable, of a namespace"


@pytest.mark.point("F01", "F03")
@pytest.mark.parametrize(
    ("fid", "value", "kept"),
    [
        (FeatureId.ARBITRATION, 0x0302_0107, 0x0302_0107),
        (FeatureId.POWER_MANAGEMENT, 1 | 2 << 5, 1 | 2 << 5),
        (FeatureId.TEMPERATURE_THRESHOLD, 330, 330),
        (FeatureId.ERROR_RECOVERY, 0x00FF, 0x00FF),
        (FeatureId.VOLATILE_WRITE_CACHE, 0, 0),
        (FeatureId.INTERRUPT_COALESCING, 0x0A05, 0x0A05),
        (FeatureId.INTERRUPT_VECTOR_CONFIGURATION, 1 << 16, 1 << 16),
        (FeatureId.WRITE_ATOMICITY, 1, 1),
        (FeatureId.ASYNC_EVENT_CONFIGURATION, 0x11F, 0x11F),
        (FeatureId.ASYNC_EVENT_CONFIGURATION, 0xFFFF_FFFF, 0x800_2FFF),
        (FeatureId.AUTONOMOUS_POWER_STATES, 1, 1),
        (FeatureId.KEEP_ALIVE_TIMER, 10000, 10000),
        (FeatureId.HOST_THERMAL_MANAGEMENT, 345 << 16 | 350, 345 << 16 | 350),
        (FeatureId.HOST_THERMAL_MANAGEMENT, 345 << 16, 345 << 16),
        (FeatureId.LBA_STATUS_ATTRIBUTES, 50 | 7 << 16, 50),
        (FeatureId.COMMAND_SET_PROFILE, 0, 0),
    ],
)
def test_what_is_set_is_got_back_and_the_default_stays(
    driver: Driver, fid: FeatureId, value: int, kept: int
) -> None:
    default = driver.get_feature(fid, Select.DEFAULT).result
    assert driver.get_feature(fid).result == default
    assert ended(driver.set_feature(fid, value)) == Status.SUCCESS
    assert driver.get_feature(fid).result == kept
    assert driver.get_feature(fid, Select.DEFAULT).result == default
    assert driver.get_feature(fid, Select.SAVED).result == default


@pytest.mark.point("F03", "S01")
def test_a_reset_brings_the_defaults_back(driver: Driver) -> None:
    driver.set_feature(FeatureId.NUMBER_OF_QUEUES, 0)
    driver.set_feature(FeatureId.INTERRUPT_COALESCING, 0x0101)
    driver.disable()
    driver.enable()
    assert driver.get_feature(FeatureId.INTERRUPT_COALESCING).result == 0
    assert driver.get_feature(FeatureId.NUMBER_OF_QUEUES).result == 127 | 127 << 16


@pytest.mark.point("F01")
@pytest.mark.parametrize("fid", [0x00, 0x03, 0x0D, 0x11, 0x7F, 0x8F, 0xFF])
def test_an_unknown_feature_is_an_invalid_field(driver: Driver, fid: int) -> None:
    for completion in (driver.get_feature(fid), driver.set_feature(fid), driver.get_feature(fid, 3)):
        assert ended(completion) == Status.INVALID_FIELD
        assert do_not_retry(completion)


@pytest.mark.point("F01")
@pytest.mark.parametrize("select", [4, 5, 6, 7])
def test_reserved_selections_are_invalid_fields(driver: Driver, select: int) -> None:
    assert ended(driver.get_feature(FeatureId.ARBITRATION, select)) == Status.INVALID_FIELD


@pytest.mark.point("F02")
@pytest.mark.parametrize("fid", sorted(NOT_SAVEABLE))
def test_what_cannot_be_saved_is_not_set_either(driver: Driver, fid: FeatureId) -> None:
    before = driver.get_feature(fid).result
    completion = driver.set_feature(fid, 3, save=True)
    assert ended(completion) == Status.FEATURE_NOT_SAVEABLE
    assert do_not_retry(completion)
    assert driver.get_feature(fid).result == before


@pytest.mark.point("F02")
def test_what_cannot_be_changed_is_told_so(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    fid = FeatureId.WRITE_ATOMICITY
    monkeypatch.setitem(FEATURES, fid, replace(FEATURES[fid], changeable=False))
    completion = driver.set_feature(fid, 1)
    assert ended(completion) == Status.FEATURE_NOT_CHANGEABLE
    assert do_not_retry(completion)
    assert driver.get_feature(fid, Select.CAPABILITIES).result == 1


@pytest.mark.point("F04")
def test_only_one_feature_belongs_to_namespaces(driver: Driver) -> None:
    fid = FeatureId.VOLATILE_WRITE_CACHE
    assert ended(driver.set_feature(fid, 1, nsid=1)) == Status.FEATURE_NOT_NAMESPACE_SPECIFIC
    assert ended(driver.set_feature(fid, 1, nsid=3)) == Status.INVALID_NAMESPACE
    assert ended(driver.set_feature(fid, 1, nsid=BROADCAST)) == Status.SUCCESS
    assert ended(driver.get_feature(fid, nsid=1)) == Status.SUCCESS
    fid = FeatureId.ERROR_RECOVERY
    for nsid, status in ((0, Status.SUCCESS), (1, Status.SUCCESS), (3, Status.INVALID_NAMESPACE)):
        assert ended(driver.set_feature(fid, 5, nsid=nsid)) == status
        assert ended(driver.get_feature(fid, nsid=nsid)) == status
    assert ended(driver.get_feature(fid, nsid=BROADCAST)) == Status.INVALID_NAMESPACE


@pytest.mark.point("F04")
def test_each_namespace_has_a_value_of_its_own_and_the_broadcast_sets_all(driver: Driver) -> None:
    fid = FeatureId.ERROR_RECOVERY
    driver.set_feature(fid, 7, nsid=1)
    assert [driver.get_feature(fid, nsid=nsid).result for nsid in (1, 2)] == [7, 0]
    driver.set_feature(fid, 9, nsid=BROADCAST)
    assert [driver.get_feature(fid, nsid=nsid).result for nsid in (1, 2)] == [9, 9]
    driver.set_feature(fid, 3, nsid=2, save=True)
    assert [driver.get_feature(fid, Select.SAVED, nsid=nsid).result for nsid in (1, 2)] == [0, 3]


@pytest.mark.point("F03", "Q18")
@pytest.mark.parametrize(
    ("fid", "value"),
    [
        pytest.param(FeatureId.POWER_MANAGEMENT, 4, id="no such power state"),
        pytest.param(FeatureId.HOST_THERMAL_MANAGEMENT, 350 << 16 | 350, id="not below TMT2"),
        pytest.param(FeatureId.HOST_THERMAL_MANAGEMENT, 200, id="too cold"),
        pytest.param(FeatureId.HOST_THERMAL_MANAGEMENT, 400 << 16, id="too hot"),
        pytest.param(FeatureId.ERROR_RECOVERY, 1 << 16, id="DULBE"),
        pytest.param(FeatureId.TEMPERATURE_THRESHOLD, 1 << 16 | 300, id="no such sensor"),
        pytest.param(FeatureId.TEMPERATURE_THRESHOLD, 2 << 20 | 300, id="reserved threshold"),
        pytest.param(FeatureId.INTERRUPT_VECTOR_CONFIGURATION, 129, id="no such vector"),
        pytest.param(FeatureId.NUMBER_OF_QUEUES, 0xFFFF, id="65536 submission queues"),
        pytest.param(FeatureId.NUMBER_OF_QUEUES, 0xFFFF_0000, id="65536 completion queues"),
    ],
)
def test_values_that_cannot_be_are_invalid_fields(driver: Driver, fid: FeatureId, value: int) -> None:
    before = driver.get_feature(fid).result
    completion = driver.set_feature(fid, value)
    assert ended(completion) == Status.INVALID_FIELD
    assert do_not_retry(completion)
    assert driver.get_feature(fid).result == before


@pytest.mark.point("F03")
def test_temperature_thresholds_have_two_sides(driver: Driver) -> None:
    fid = FeatureId.TEMPERATURE_THRESHOLD
    all_sensors = 0xF << 16
    driver.set_feature(fid, OVER | all_sensors | 350)
    driver.set_feature(fid, UNDER | 280)
    assert driver.get_feature(fid, cdw11=OVER).result == 350
    assert driver.get_feature(fid, cdw11=UNDER).result == 280
    assert driver.get_feature(fid, Select.DEFAULT, cdw11=UNDER).result == 0
    assert ended(driver.get_feature(fid, cdw11=3 << 16)) == Status.INVALID_FIELD


@pytest.mark.point("Q18")
def test_queues_are_granted_up_to_what_there_is(driver: Driver) -> None:
    fid = FeatureId.NUMBER_OF_QUEUES
    assert driver.set_feature(fid, 3 | 3 << 16).result == 3 | 3 << 16
    assert driver.get_feature(fid).result == 3 | 3 << 16
    assert driver.set_feature(fid, 0x3FF | 0x3FF << 16).result == 127 | 127 << 16
    driver.create_queue_pair(1)
    completion = driver.set_feature(fid, 3 | 3 << 16)
    assert ended(completion) == Status.COMMAND_SEQUENCE_ERROR
    assert do_not_retry(completion)


@pytest.mark.point("F03")
def test_vectors_keep_their_own_configuration(driver: Driver) -> None:
    fid = FeatureId.INTERRUPT_VECTOR_CONFIGURATION
    driver.set_feature(fid, 5 | 1 << 16)
    assert driver.get_feature(fid, cdw11=5).result == 5 | 1 << 16
    assert driver.get_feature(fid, cdw11=6).result == 6
    assert driver.get_feature(fid, Select.DEFAULT, cdw11=5).result == 5


@pytest.mark.point("F03")
def test_interrupts_are_gathered_as_the_host_says(bench: Bench, driver: Driver) -> None:
    features = bench.device.state.features
    assert features.coalescing == (1, 0), "none"
    driver.set_feature(FeatureId.INTERRUPT_COALESCING, 7 | 5 << 8)
    driver.set_feature(FeatureId.INTERRUPT_VECTOR_CONFIGURATION, 3 | 1 << 16)
    assert features.coalescing == (8, 500_000)
    assert [features.coalesced(vector) for vector in (2, 3)] == [True, False]
    driver.set_feature(FeatureId.INTERRUPT_VECTOR_CONFIGURATION, 3)
    assert features.coalesced(3)


def test_whoever_depends_on_features_is_told_when_they_change(bench: Bench, driver: Driver) -> None:
    features, seen = bench.device.state.features, list[object]()
    features.on_change = lambda: seen.append((features.burst, features.write_cache, features.coalescing))
    driver.set_feature(FeatureId.ARBITRATION, 3)
    driver.set_feature(FeatureId.VOLATILE_WRITE_CACHE, 0)
    driver.set_feature(FeatureId.INTERRUPT_COALESCING, 1 << 8)
    driver.set_feature(FeatureId.KEEP_ALIVE_TIMER, 10)
    assert seen == [(8, True, (1, 0)), (8, False, (1, 0)), (8, False, (1, 100_000))]
    driver.set_feature(FeatureId.INTERRUPT_VECTOR_CONFIGURATION, 1 << 16)
    driver.disable()
    assert seen[3:] == [(8, False, (1, 100_000)), (16, True, (1, 0))]


@pytest.mark.point("F03")
def test_the_timestamp_advances_from_what_was_set(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr("time.monotonic", lambda: now)
    driver.disable()
    driver.enable()
    now += 1.5
    driver.get_feature(FeatureId.TIMESTAMP)
    assert driver.ram.read(driver.data, 8) == (1500).to_bytes(8, "little"), "since the reset"
    driver.ram.write(driver.data, (1_700_000_000_000).to_bytes(6, "little") + b"\0\0")
    driver.set_feature(FeatureId.TIMESTAMP)
    now += 2.5
    driver.get_feature(FeatureId.TIMESTAMP)
    data = driver.ram.read(driver.data, 8)
    assert int.from_bytes(data[:6], "little") == 1_700_000_002_500
    assert data[6:] == b"\2\0", "set by the host"


@pytest.mark.point("F03")
def test_host_behavior_keeps_what_is_offered(driver: Driver) -> None:
    fid = FeatureId.HOST_BEHAVIOR_SUPPORT
    driver.ram.write(driver.data, b"\1\1\1\1" + bytes(508))
    assert ended(driver.set_feature(fid)) == Status.SUCCESS
    driver.get_feature(fid)
    assert driver.ram.read(driver.data, 512) == b"\1\0\1" + bytes(509)
    for wrong in (b"\2", b"\1\0\2"):
        driver.ram.write(driver.data, wrong)
        assert ended(driver.set_feature(fid)) == Status.INVALID_FIELD


@pytest.mark.point("D04")
@pytest.mark.parametrize("fid", [FeatureId.TIMESTAMP, FeatureId.HOST_BEHAVIOR_SUPPORT])
def test_feature_data_out_of_reach_is_a_data_transfer_error(driver: Driver, fid: FeatureId) -> None:
    driver.data = 0x9_0000_0000
    assert ended(driver.get_feature(fid)) == ended(driver.set_feature(fid)) == Status.DATA_TRANSFER_ERROR


@pytest.mark.point("F02")
@pytest.mark.parametrize(
    ("fid", "value"),
    [
        (FeatureId.ARBITRATION, 0x0302_0107),
        (FeatureId.POWER_MANAGEMENT, 1),
        (FeatureId.TEMPERATURE_THRESHOLD, 330),
        (FeatureId.TEMPERATURE_THRESHOLD, UNDER | 280),
        (FeatureId.ERROR_RECOVERY, 0x00FF),
        (FeatureId.VOLATILE_WRITE_CACHE, 0),
        (FeatureId.INTERRUPT_COALESCING, 0x0A05),
        (FeatureId.INTERRUPT_VECTOR_CONFIGURATION, 1 << 16 | 3),
        (FeatureId.WRITE_ATOMICITY, 1),
        (FeatureId.ASYNC_EVENT_CONFIGURATION, 0x103),
        (FeatureId.AUTONOMOUS_POWER_STATES, 1),
        (FeatureId.HOST_THERMAL_MANAGEMENT, 300),
        (FeatureId.LBA_STATUS_ATTRIBUTES, 50),
        (FeatureId.SANITIZE_CONFIGURATION, 1),
    ],
)
def test_what_is_saved_outlives_resets_and_restarts(
    make_bench: MakeBench, tmp_path: Path, fid: FeatureId, value: int
) -> None:
    nsid = int(fid in OF_NAMESPACES)

    def get(driver: Driver, select: Select = Select.CURRENT) -> int:
        return driver.get_feature(fid, select, cdw11=value, nsid=nsid).result

    path = tmp_path / "state"
    driver = make_bench(subsystem=subsystem(path)).driver.enable()
    default = get(driver, Select.DEFAULT)
    driver.set_feature(fid, value, nsid)
    kept = get(driver)
    driver.disable()
    driver.enable()
    assert get(driver) == get(driver, Select.SAVED) == default
    assert ended(driver.set_feature(fid, value, nsid, save=True)) == Status.SUCCESS
    driver.disable()
    driver.enable()
    assert get(driver) == get(driver, Select.SAVED) == kept
    assert get(driver, Select.DEFAULT) == default
    driver = make_bench(subsystem=subsystem(path)).driver.enable()
    assert get(driver) == get(driver, Select.SAVED) == kept != default


def subsystem(path: Path) -> Subsystem:
    return Subsystem(RamStorage(1 << 20), store=Store(path))


@pytest.mark.point("F04")
def test_a_new_namespace_begins_with_the_defaults(bench: Bench) -> None:
    driver, disks = bench.driver.enable(), bench.device.subsystem
    for nsid in (1, 2):
        driver.set_feature(FeatureId.ERROR_RECOVERY, 7, nsid=nsid, save=True)
    disks.add(disks.remove(2).storage, 2)
    for select in (Select.CURRENT, Select.SAVED):
        found = [driver.get_feature(FeatureId.ERROR_RECOVERY, select, nsid=nsid).result for nsid in (1, 2)]
        assert found == [7, 0]


@pytest.mark.point("F02")
def test_each_controller_saves_for_itself(make_bench: MakeBench) -> None:
    disks = Subsystem(RamStorage(1 << 20))
    one, two = (make_bench(subsystem=disks).driver.enable() for _ in range(2))
    one.set_feature(FeatureId.INTERRUPT_COALESCING, 5, save=True)
    assert two.get_feature(FeatureId.INTERRUPT_COALESCING, Select.SAVED).result == 0


@pytest.mark.point("F03")
def test_the_software_progress_marker_lasts(make_bench: MakeBench, tmp_path: Path) -> None:
    fid = FeatureId.SOFTWARE_PROGRESS_MARKER
    make_bench(subsystem=subsystem(tmp_path / "state")).driver.enable().set_feature(fid, 0x105)
    driver = make_bench(subsystem=subsystem(tmp_path / "state")).driver.enable()
    assert driver.get_feature(fid).result == 5


@pytest.mark.point("F03")
def test_the_table_of_power_state_transitions_is_kept(driver: Driver) -> None:
    fid, table = FeatureId.AUTONOMOUS_POWER_STATES, bytes([2 << 3, 100, 0, 0]) + bytes(252)
    driver.ram.write(driver.data, table)
    assert ended(driver.set_feature(fid, 1, save=True)) == Status.SUCCESS
    driver.disable()
    driver.enable()
    for select, found in ((Select.CURRENT, table), (Select.SAVED, table), (Select.DEFAULT, bytes(256))):
        assert driver.get_feature(fid, select).result == any(found)
        assert driver.ram.read(driver.data, 256) == found
    driver.ram.write(driver.data, bytes([4 << 3]))
    assert ended(driver.set_feature(fid, 1)) == Status.INVALID_FIELD


@pytest.mark.point("F03")
def test_io_ends_a_power_state_without_io(driver: Driver) -> None:
    fid = FeatureId.POWER_MANAGEMENT
    pair = driver.create_queue_pair(1)
    driver.set_feature(fid, 1)
    driver.set_feature(fid, 2)
    driver.set_feature(fid, 3)
    assert driver.get_feature(fid).result == 3
    pair.execute(driver.rw(IoOpcode.READ, 0, 1, driver.data, 512))
    assert driver.get_feature(fid).result == 1
    assert driver.get_feature(fid).result == 1
    driver.set_feature(fid, 3)
    driver.set_feature(fid, 0)
    pair.execute(driver.rw(IoOpcode.READ, 0, 1, driver.data, 512))
    assert driver.get_feature(fid).result == 0


@pytest.mark.point("F03")
def test_io_ends_a_saved_power_state_without_io_that_a_reset_brings_back(bench: Bench) -> None:
    fid, driver = FeatureId.POWER_MANAGEMENT, bench.driver.enable()
    driver.set_feature(fid, 3, save=True)
    driver.disable()
    driver.enable()
    assert driver.get_feature(fid).result == 3
    driver.create_queue_pair(1).execute(driver.rw(IoOpcode.READ, 0, 1, driver.data, 512))
    assert driver.get_feature(fid).result == 0
    assert driver.get_feature(fid, Select.SAVED).result == 3


@pytest.mark.point("F03")
def test_there_is_one_combination_of_command_sets(driver: Driver) -> None:
    completion = driver.set_feature(FeatureId.COMMAND_SET_PROFILE, 1)
    assert ended(completion) == Status.COMMAND_SET_REJECTED
    assert do_not_retry(completion)


def test_the_number_of_vectors_and_queues_is_the_authors_choice(make_bench: MakeBench) -> None:
    bench: Bench = make_bench(vectors=3, io_queues=500)
    driver = bench.driver.enable()
    assert driver.get_feature(FeatureId.NUMBER_OF_QUEUES).result == 499 | 499 << 16
    assert ended(driver.set_feature(FeatureId.INTERRUPT_VECTOR_CONFIGURATION, 3)) == Status.INVALID_FIELD
    assert bench.device.interrupts[2] == 3


def test_a_controller_without_msi_x_has_one_vector(make_bench: MakeBench) -> None:
    bench: Bench = make_bench(vectors=0)
    driver = bench.driver.enable()
    assert bench.device.interrupts == (1, 1, 0, 1, 1)
    assert ended(driver.set_feature(FeatureId.INTERRUPT_VECTOR_CONFIGURATION, 0)) == Status.SUCCESS
    assert ended(driver.set_feature(FeatureId.INTERRUPT_VECTOR_CONFIGURATION, 1)) == Status.INVALID_FIELD


def test_defaults_lie_within_what_can_be_set() -> None:
    assert all(feature.default & ~feature.mask == 0 for feature in PLAIN.values())
