"""SMART: what is counted over the life of a drive, what it says of itself, what a host is told."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from outboard.devices.nvme import Store, Subsystem, Tuning
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.layouts import ENDURANCE_GROUP_LOG, HEALTH_LOG
from outboard.devices.nvme.spec import AdminOpcode, FeatureId, IoOpcode, LogId
from outboard.devices.nvme.status import Status
from outboard.errors import DefinitionError
from outboard.native.jit import available
from outboard.storage import NullStorage, RamStorage
from tests.devices.nvme.bench import Bench
from tests.devices.nvme.conftest import MakeBench
from tests.devices.nvme.driver import CC, CC_ENABLE, CSTS, PAGE, Driver, ended

EVENT = Command(AdminOpcode.ASYNC_EVENT_REQUEST)
SPARE_EVENT, TEMPERATURE_EVENT, RELIABILITY_EVENT = 0x02_0201, 0x02_0101, 0x02_0001
NORMAL, ABRUPT = 1 << 14, 2 << 14


@pytest.fixture
def lane() -> str:
    """Counting is the same in both; `test_logs` looks at that."""
    return "plain"


def health(driver: Driver, *, retain: bool = False) -> dict[str, int]:
    assert ended(driver.get_log(LogId.HEALTH, 512, retain=retain)) == Status.SUCCESS
    found = HEALTH_LOG.decode(driver.ram.read(driver.data, 512))
    return {name: int(value) for name, value in found.items()}


def drive(path: Path) -> Subsystem:
    return Subsystem(RamStorage(1 << 20), store=Store(path))


def shut_down(bench: Bench, how: int) -> None:
    bench.driver.bar.write32(CC, CC_ENABLE | how)
    bench.settle()
    assert bench.driver.bar.read32(CSTS) >> 2 & 3 == 2


@pytest.mark.point("L03")
def test_counters_go_on_after_a_restart(make_bench: MakeBench, tmp_path: Path) -> None:
    path = tmp_path / "state"
    for start in (1, 2, 3):
        bench = make_bench(subsystem=drive(path))
        driver = bench.driver.enable()
        pair = driver.create_queue_pair(1)
        for _ in range(10):
            pair.execute(driver.rw(IoOpcode.READ, 0, 8, driver.data, PAGE))
        pair.execute(driver.rw(IoOpcode.WRITE, 0, 8, driver.data, PAGE))
        pair.execute(driver.rw(IoOpcode.READ, 1 << 20, 1, driver.data, 512))
        found = health(driver)
        assert found["power_cycles"] == start
        assert (found["host_read_commands"], found["host_write_commands"]) == (10 * start, start)
        assert (found["data_units_read"], found["data_units_written"]) == (1, 1), "rounded up"
        assert found["error_log_entries"] == start
        assert found["unsafe_shutdowns"] == 0
        bench.device.disconnected()


@pytest.mark.point("L03", "S06")
@pytest.mark.parametrize("how", [NORMAL, ABRUPT])
def test_a_shutdown_that_was_announced_is_safe(make_bench: MakeBench, tmp_path: Path, how: int) -> None:
    bench = make_bench(subsystem=drive(tmp_path / "state"))
    bench.driver.enable()
    shut_down(bench, how)
    assert health(make_bench(subsystem=drive(tmp_path / "state")).driver.enable())["unsafe_shutdowns"] == 0


@pytest.mark.point("L03", "S06")
def test_power_that_goes_without_notice_is_an_unsafe_shutdown(make_bench: MakeBench, tmp_path: Path) -> None:
    bench = make_bench(subsystem=drive(tmp_path / "state"))
    bench.driver.enable()
    bench.settle()
    # Nothing tells the first of its end: the second begins with what is on the disk.
    found = health(make_bench(subsystem=drive(tmp_path / "state")).driver.enable())
    assert (found["power_cycles"], found["unsafe_shutdowns"]) == (2, 1)


@pytest.mark.point("S06")
def test_a_host_that_goes_on_after_a_shutdown_can_be_cut_off_again(
    make_bench: MakeBench, tmp_path: Path
) -> None:
    bench = make_bench(subsystem=drive(tmp_path / "state"))
    bench.driver.enable()
    shut_down(bench, NORMAL)
    bench.driver.disable()
    bench.driver.enable()
    bench.settle()
    assert health(make_bench(subsystem=drive(tmp_path / "state")).driver.enable())["unsafe_shutdowns"] == 1


@pytest.mark.point("S06")
def test_resets_are_no_power_cycles(driver: Driver) -> None:
    for _ in range(3):
        driver.disable()
        driver.enable()
    found = health(driver)
    assert (found["power_cycles"], found["unsafe_shutdowns"]) == (1, 0)


KILLED = """
import sys
from pathlib import Path
from outboard.devices.nvme import Nvme, Store, Subsystem, Tuning
from outboard.storage import RamStorage
from tests.devices.nvme.bench import Bench
disks = Subsystem(RamStorage(1 << 20), store=Store(Path(sys.argv[1])))
bench = Bench(Nvme(subsystem=disks, tuning=Tuning(pollers=0, native=False)))
bench.driver.enable()
bench.settle()
print("running", flush=True)
sys.stdin.read()
"""


@pytest.mark.point("L03", "S06")
def test_a_process_that_is_killed_counts_at_the_next_start(make_bench: MakeBench, tmp_path: Path) -> None:
    path = tmp_path / "state"
    for _ in range(2):
        with subprocess.Popen(
            [sys.executable, "-c", KILLED, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"running\n"
            os.kill(process.pid, signal.SIGKILL)
    found = health(make_bench(subsystem=drive(path)).driver.enable())
    assert (found["power_cycles"], found["unsafe_shutdowns"]) == (3, 2)


@pytest.mark.point("L03")
def test_times_are_counted_in_their_units(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr("time.monotonic", lambda: now)
    driver, disks = bench.driver.enable(), bench.device.subsystem
    driver.set_feature(FeatureId.HOST_THERMAL_MANAGEMENT, 320 << 16 | 348)
    pair = driver.create_queue_pair(1)
    for temperature, minutes in ((310, 120), (330, 1), (345, 7), (349, 2), (360, 3), (310, 1)):
        disks.set_vitals(temperature=temperature)
        for _ in range(100):
            pair.execute(driver.rw(IoOpcode.READ, 0, 1, driver.data, 512))
        now += minutes * 60
    found = health(driver)
    assert found["power_on_hours"] == 134 // 60
    assert found["warning_temperature_minutes"] == 9
    assert found["critical_temperature_minutes"] == 3
    assert (found["light_throttlings"], found["heavy_throttlings"]) == (1, 1)
    assert (found["light_throttling_seconds"], found["heavy_throttling_seconds"]) == (480, 300)
    assert found["busy_minutes"] == 8, "as many seconds as commands, at most"


@pytest.mark.point("E01")
@pytest.mark.parametrize(
    ("vitals", "warning", "event"),
    [
        ({"spare": 9}, 0x01, SPARE_EVENT),
        ({"temperature": 343}, 0x02, TEMPERATURE_EVENT),
        ({"unreliable": True}, 0x04, RELIABILITY_EVENT),
        ({"read_only": True}, 0x08, RELIABILITY_EVENT),
        ({"backup_failed": True}, 0x10, RELIABILITY_EVENT),
        ({"persistent_memory_failed": True}, 0x20, RELIABILITY_EVENT),
    ],
)
def test_a_critical_warning_is_told_once_and_again_when_it_comes_again(
    bench: Bench, vitals: dict[str, int], warning: int, event: int
) -> None:
    driver, disks = bench.driver.enable(), bench.device.subsystem
    well = {name: getattr(disks.vitals, name) for name in vitals}
    driver.set_feature(FeatureId.ASYNC_EVENT_CONFIGURATION, 0xFF)
    for cid in (100, 101):
        driver.admin.submit(EVENT, cid=cid)
    driver.admin.ring()
    disks.set_vitals(**vitals)
    assert driver.admin.wait(100).result == event
    disks.set_vitals(**well)
    disks.set_vitals(**vitals)
    assert health(driver, retain=True)["critical_warning"] == warning
    bench.settle()
    assert driver.admin.poll() == [], "retained"
    health(driver)
    bench.settle()
    assert driver.admin.poll() == [], "it was read of"
    disks.set_vitals(**well)
    assert health(driver)["critical_warning"] == 0
    disks.set_vitals(**vitals)
    assert driver.admin.wait(101).result == event


@pytest.mark.point("E01")
def test_warnings_nobody_wants_are_told_when_they_are_wanted(bench: Bench) -> None:
    driver, disks = bench.driver.enable(), bench.device.subsystem
    driver.admin.submit(EVENT, cid=100)
    driver.admin.ring()
    disks.set_vitals(spare=1, temperature=400)
    bench.settle()
    assert driver.admin.poll() == []
    assert health(driver)["critical_warning"] == 3
    driver.set_feature(FeatureId.ASYNC_EVENT_CONFIGURATION, 0x02)
    assert driver.admin.wait(100).result == TEMPERATURE_EVENT


@pytest.mark.point("E01", "F03")
def test_thresholds_are_where_the_host_sets_them(bench: Bench) -> None:
    driver = bench.driver.enable()
    driver.set_feature(FeatureId.ASYNC_EVENT_CONFIGURATION, 0x02)
    for cid in (100, 101):
        driver.admin.submit(EVENT, cid=cid)
    driver.admin.ring()
    driver.set_feature(FeatureId.TEMPERATURE_THRESHOLD, 310)
    assert driver.admin.wait(100).result == TEMPERATURE_EVENT
    driver.set_feature(FeatureId.TEMPERATURE_THRESHOLD, 311)
    assert health(driver)["critical_warning"] == 0
    driver.set_feature(FeatureId.TEMPERATURE_THRESHOLD, 1 << 20 | 310)
    assert driver.admin.wait(101).result == TEMPERATURE_EVENT


@pytest.mark.point("E01")
def test_a_warning_that_stays_is_told_after_each_reset(bench: Bench) -> None:
    driver = bench.driver.enable()
    bench.device.subsystem.set_vitals(spare=0)
    for _ in range(2):
        driver.set_feature(FeatureId.ASYNC_EVENT_CONFIGURATION, 0x01)
        driver.admin.submit(EVENT, cid=100)
        driver.admin.ring()
        assert driver.admin.wait(100).result == SPARE_EVENT
        driver.disable()
        driver.enable()


@pytest.mark.parametrize("native", [False, True])
def test_media_that_can_only_be_read_refuses_writes(make_bench: MakeBench, native: bool) -> None:
    bench = make_bench(RamStorage(1 << 20), tuning=Tuning(pollers=0, native=native and available()))
    driver = bench.driver.enable()
    pair = driver.create_queue_pair(1)
    write, read = (driver.rw(opcode, 0, 1, driver.data, 512) for opcode in (IoOpcode.WRITE, IoOpcode.READ))
    for read_only, status in ((True, Status.WRITE_TO_READ_ONLY_RANGE), (False, Status.SUCCESS)):
        bench.device.subsystem.set_vitals(read_only=read_only)
        assert ended(pair.execute(write)) == status
        assert ended(pair.execute(read)) == Status.SUCCESS


@pytest.mark.point("L03")
def test_wear_outlives_a_restart_and_the_temperature_does_not(make_bench: MakeBench, tmp_path: Path) -> None:
    disks = drive(tmp_path / "state")
    disks.set_vitals(percentage_used=120, spare=40, spare_threshold=50, unreliable=True, temperature=350)
    found = health(make_bench(subsystem=drive(tmp_path / "state")).driver.enable())
    assert (found["percentage_used"], found["available_spare"], found["spare_threshold"]) == (120, 40, 50)
    assert (found["critical_warning"], found["temperature"]) == (0x05, 310)


@pytest.mark.parametrize(
    ("vitals", "complaint"),
    [
        ({"spare": 101}, "spare is 101: it is 0 to 100"),
        ({"temperature": -1}, "temperature is -1: it is 0 to 65535"),
        ({"read_only": "yes"}, "read_only is 'yes': it is 0 to 1"),
        ({"mood": 1}, "a drive has no mood"),
    ],
)
def test_what_a_drive_cannot_be_is_refused(vitals: dict[str, object], complaint: str) -> None:
    disks = Subsystem(NullStorage(1 << 20))
    with pytest.raises(DefinitionError, match=complaint):
        disks.set_vitals(**vitals)


@pytest.mark.point("L05")
def test_the_endurance_group_is_all_controllers_together(make_bench: MakeBench) -> None:
    disks = Subsystem(RamStorage(1 << 20))
    drivers = [make_bench(subsystem=disks).driver.enable() for _ in range(2)]
    for driver in drivers:
        driver.create_queue_pair(1).execute(driver.rw(IoOpcode.WRITE, 0, 8, driver.data, PAGE))
    disks.set_vitals(spare=5, percentage_used=7)
    driver = drivers[0]
    group = Command(AdminOpcode.GET_LOG_PAGE, prp1=driver.data, cdw10=9 | 127 << 16, cdw11=1 << 16)
    assert ended(driver.admin.execute(group)) == Status.SUCCESS
    log = ENDURANCE_GROUP_LOG.decode(driver.ram.read(driver.data, 512))
    assert (log["host_write_commands"], log["data_units_written"]) == (2, 1)
    assert (log["critical_warning"], log["available_spare"], log["percentage_used"]) == (1, 5, 7)
    assert log["total_capacity"] == 1 << 20
    assert ended(driver.get_log(LogId.ENDURANCE_GROUP, 512)) == Status.INVALID_FIELD, "there is no group 0"


def test_a_store_that_cannot_be_written_any_more_harms_no_host(
    make_bench: MakeBench, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    bench = make_bench(subsystem=drive(folder / "state"))
    driver = bench.driver.enable()
    bench.settle()
    shutil.rmtree(folder)
    completion = driver.set_feature(FeatureId.INTERRUPT_COALESCING, 5, save=True)
    assert ended(completion) == Status.INTERNAL_ERROR
    bench.device.fail()
    driver.disable()
    driver.enable()
    shut_down(bench, NORMAL)
    assert driver.enable().get_feature(FeatureId.ARBITRATION).status == 0
    assert "is not kept" in caplog.text or "are not kept" in caplog.text
