"""Log pages, read whole, in pieces and past their end."""

import struct

import pytest

from outboard.devices.nvme import placement_reports
from outboard.devices.nvme.admin import ADMIN_COMMANDS
from outboard.devices.nvme.command import Command, Completion
from outboard.devices.nvme.io import IO_COMMANDS
from outboard.devices.nvme.layouts import ERROR_ENTRY, FIRMWARE_LOG, HEALTH_LOG, Value
from outboard.devices.nvme.logs import LOG_PAGES
from outboard.devices.nvme.spec import BROADCAST, AdminOpcode, Csi, FeatureId, IoOpcode, LogId, Select
from outboard.devices.nvme.status import Status
from tests.devices.nvme.bench import Bench
from tests.devices.nvme.driver import PAGE, Driver, do_not_retry, ended


def get(driver: Driver, log: int, size: int = PAGE, offset: int = 0) -> bytes:
    driver.ram.write(driver.data, b"\xee" * PAGE)
    assert ended(driver.get_log(log, size, offset)) == Status.SUCCESS
    return driver.ram.read(driver.data, size)


def get_log(driver: Driver, log: int, size: int, **more: int) -> Completion:
    """Get Log Page with what the driver has no argument for."""
    cdw10 = more.pop("cdw10", 0) | log | (size // 4 - 1) << 16
    return driver.admin.execute(Command(AdminOpcode.GET_LOG_PAGE, prp1=driver.data, cdw10=cdw10, **more))


@pytest.mark.point("L01")
def test_the_supported_pages_are_those_that_can_be_read(driver: Driver) -> None:
    supported = struct.unpack("<256I", get(driver, LogId.SUPPORTED, 1024))
    for log in set(range(256)) - {LogId.CHANGED_ZONES}:  # which is a zoned namespace's
        # With the actions and the group that some pages have to be told.
        completion = get_log(driver, log, 512, cdw10=1 << 8, cdw11=1 << 16)
        assert ended(completion) == (Status.SUCCESS if supported[log] else Status.INVALID_LOG_PAGE)
        assert do_not_retry(completion) != bool(supported[log])
    found = [log for log in range(256) if supported[log]]
    assert found == sorted(LOG_PAGES.keys() - placement_reports.LOG_PAGES.keys())
    assert {0, 1, 2, 3, 4, 5, 7, 8, 9, 0xD, 0x12, 0x13} <= set(found)
    for log in set(found) - {LogId.CHANGED_ZONES}:
        indexed = ended(get_log(driver, log, 4, cdw10=2 << 8, cdw11=1 << 16, cdw14=1 << 23))
        assert indexed == (Status.SUCCESS if supported[log] & 2 else Status.INVALID_FIELD)


@pytest.mark.point("L01", "L05")
def test_the_feature_effects_name_the_features_there_are(driver: Driver) -> None:
    effects = struct.unpack("<256I", get(driver, LogId.FEATURE_EFFECTS, 1024))
    for fid in range(256):
        there = ended(driver.get_feature(fid, Select.CAPABILITIES)) == Status.SUCCESS
        assert effects[fid] & 1 == there
        if there:
            specific = driver.get_feature(fid, Select.CAPABILITIES).result & 2
            assert effects[fid] >> 20 == (1 if specific else 2), "of a namespace, of a controller"
    assert get(driver, LogId.MANAGEMENT_EFFECTS) == bytes(PAGE)


@pytest.mark.point("L01")
def test_the_effects_log_names_the_commands_that_are_executed(driver: Driver) -> None:
    effects = struct.unpack("<1024I", get(driver, LogId.COMMANDS_EFFECTS))
    assert [opcode for opcode in range(256) if effects[opcode] & 1] == sorted(ADMIN_COMMANDS)
    executed = sorted(opcode for opcode, io in IO_COMMANDS.items() if io.csi in (None, Csi.NVM))
    assert [opcode for opcode in range(256) if effects[256 + opcode] & 1] == executed
    changing = [opcode for opcode in range(256) if effects[256 + opcode] & 2]
    assert changing == [
        IoOpcode.WRITE,
        IoOpcode.WRITE_UNCORRECTABLE,
        IoOpcode.WRITE_ZEROES,
        IoOpcode.DATASET_MANAGEMENT,
        IoOpcode.COPY,
    ]
    other_set = Command(AdminOpcode.GET_LOG_PAGE, prp1=driver.data, cdw10=5 | 1023 << 16, cdw14=1 << 24)
    assert ended(driver.admin.execute(other_set)) == Status.INVALID_FIELD


@pytest.mark.point("L02")
def test_errors_are_logged_newest_first(driver: Driver) -> None:
    pair = driver.create_queue_pair(1)
    for slba in (16384, 20000):
        completion = pair.execute(driver.rw(IoOpcode.READ, slba, 1, driver.data, 512))
        assert completion.status >> 13 & 1, "More: there is a log entry"
    log = get(driver, LogId.ERROR_INFORMATION, 192)
    newest, oldest, none = (ERROR_ENTRY.decode(log[at : at + 64]) for at in (0, 64, 128))
    assert (newest["error_count"], oldest["error_count"], none["error_count"]) == (2, 1, 0)
    assert (newest["lba"], oldest["lba"]) == (20000, 16384)
    assert (newest["sqid"], newest["cid"], newest["nsid"]) == (1, 1, 1)
    assert newest["parameter_location"] == 40
    assert newest["status"] == (Status.LBA_OUT_OF_RANGE | 1 << 14 | 1 << 13) << 1
    assert (newest["opcode"], newest["version"], newest["csi"]) == (IoOpcode.READ, 1, 0)


def entries(driver: Driver, count: int) -> list[dict[str, Value]]:
    log = get(driver, LogId.ERROR_INFORMATION, count * 64)
    return [ERROR_ENTRY.decode(log[at : at + 64]) for at in range(0, count * 64, 64)]


@pytest.mark.point("L02")
def test_an_error_points_at_the_bit_that_is_wrong(driver: Driver) -> None:
    driver.set_feature(FeatureId.TIMESTAMP, save=True)
    newest, none = entries(driver, 2)
    assert newest["parameter_location"] == 43 | 7 << 8, "Save"
    assert (newest["lba"], newest["sqid"], newest["nsid"], none["error_count"]) == (0, 0, 0, 0)


@pytest.mark.point("L02")
def test_only_blocks_have_an_address(driver: Driver) -> None:
    pair = driver.create_queue_pair(1)
    pair.execute(Command(IoOpcode.DATASET_MANAGEMENT, nsid=9, cdw10=5, cdw11=4))
    assert entries(driver, 1)[0]["lba"] == 0
    assert entries(driver, 1)[0]["nsid"] == 9


@pytest.mark.point("L02", "Q13")
def test_a_doorbell_error_is_in_the_log_and_no_commands(bench: Bench, driver: Driver) -> None:
    driver.bar.write32(0x1FF8, 0)
    bench.settle()
    entry = entries(driver, 1)[0]
    assert (entry["sqid"], entry["cid"], entry["parameter_location"]) == (0xFFFF, 0xFFFF, 0xFFFF)
    assert int(entry["status"]) >> 1 & 0x7FF == Status.INVALID_QUEUE_ID


@pytest.mark.point("L02")
def test_what_the_host_aborts_is_no_error(bench: Bench, driver: Driver) -> None:
    driver.admin.submit(Command(AdminOpcode.ABORT, cdw10=6 << 16), cid=5)
    driver.admin.submit(Command(AdminOpcode.KEEP_ALIVE), cid=6)
    driver.admin.ring()
    victim = driver.admin.wait(6)
    assert ended(victim) == Status.ABORT_REQUESTED
    assert not victim.status >> 13 & 1, "no More: there is no entry"
    assert entries(driver, 1)[0]["error_count"] == 0


@pytest.mark.point("L02")
def test_a_reset_empties_the_error_log_and_counting_goes_on(driver: Driver) -> None:
    driver.admin.execute(Command(0xFF))
    driver.disable()
    driver.enable()
    assert entries(driver, 1)[0]["error_count"] == 0
    driver.admin.execute(Command(0xFF))
    assert [entry["error_count"] for entry in entries(driver, 2)] == [2, 0]


@pytest.mark.point("L06")
def test_a_list_is_read_from_an_entry_on(driver: Driver) -> None:
    for _ in range(5):
        driver.admin.execute(Command(0xFF))
    whole = get(driver, LogId.ERROR_INFORMATION, 512)
    assert ended(get_log(driver, LogId.ERROR_INFORMATION, 128, cdw12=2, cdw14=1 << 23)) == Status.SUCCESS
    assert driver.ram.read(driver.data, 128) == whole[128:256]
    last = get_log(driver, LogId.ERROR_INFORMATION, 128, cdw12=65, cdw14=1 << 23)
    assert ended(last) == Status.INVALID_FIELD


@pytest.mark.point("L02")
def test_the_error_log_keeps_64_entries(driver: Driver) -> None:
    for _ in range(70):
        driver.admin.execute(Command(0xFF))
    log = get(driver, LogId.ERROR_INFORMATION, PAGE)
    counts = [ERROR_ENTRY.decode(log[at : at + 64])["error_count"] for at in range(0, PAGE, 64)]
    assert counts == list(range(70, 6, -1))


@pytest.mark.point("L03")
def test_health_counts_what_was_moved(driver: Driver) -> None:
    pair = driver.create_queue_pair(1)
    for _ in range(3):
        pair.execute(driver.rw(IoOpcode.READ, 0, 8, driver.data, PAGE))
    for _ in range(126):
        pair.execute(driver.rw(IoOpcode.WRITE, 0, 8, driver.data, PAGE))
    health = HEALTH_LOG.decode(get(driver, LogId.HEALTH, 512))
    assert (health["host_read_commands"], health["host_write_commands"]) == (3, 126)
    assert (health["data_units_read"], health["data_units_written"]) == (1, 2)
    assert (health["critical_warning"], health["available_spare"], health["media_errors"]) == (0, 100, 0)
    assert 273 < int(health["temperature"]) < 343


@pytest.mark.point("L03")
@pytest.mark.parametrize(
    ("nsid", "status"), [(0, Status.SUCCESS), (BROADCAST, Status.SUCCESS), (1, Status.INVALID_FIELD)]
)
def test_health_is_the_controllers(driver: Driver, nsid: int, status: Status) -> None:
    assert ended(driver.get_log(LogId.HEALTH, 512, nsid=nsid)) == status


@pytest.mark.point("L04")
def test_the_firmware_log_names_the_running_slot(driver: Driver) -> None:
    log = FIRMWARE_LOG.decode(get(driver, LogId.FIRMWARE_SLOT, 512))
    assert (log["active"], log["slot1"]) == (1, b"1.0     ")


@pytest.mark.point("L04")
def test_more_changes_than_the_list_holds_are_all_of_them(bench: Bench, driver: Driver) -> None:
    bench.device.state.changed_namespaces.update(range(1, 1026))
    assert get(driver, LogId.CHANGED_NAMESPACES) == b"\xff" * 4 + bytes(PAGE - 4)


@pytest.mark.point("L04", "L06")
def test_changed_namespaces_stay_in_their_list_while_the_host_retains_them(
    bench: Bench, driver: Driver
) -> None:
    bench.device.refresh(2)
    for retain in (True, True, False):
        assert ended(driver.get_log(LogId.CHANGED_NAMESPACES, retain=retain)) == Status.SUCCESS
        assert driver.ram.read(driver.data, PAGE) == b"\2".ljust(PAGE, b"\0")
    assert get(driver, LogId.CHANGED_NAMESPACES) == bytes(PAGE)


@pytest.mark.point("L06")
def test_more_dwords_of_a_log_than_the_lower_half_of_their_number_can_say(driver: Driver) -> None:
    size = 512 << 10
    whole = get(driver, LogId.COMMANDS_EFFECTS)
    data = driver.ram.allocate(size)
    driver.ram.write(data, b"\xee" * size)
    prp1, prp2 = driver.prps(data, size)
    dwords = size // 4 - 1
    assert dwords >> 16, "NUMDU"
    command = Command(
        AdminOpcode.GET_LOG_PAGE,
        prp1=prp1,
        prp2=prp2,
        cdw10=LogId.COMMANDS_EFFECTS | (dwords & 0xFFFF) << 16,
        cdw11=dwords >> 16,
    )
    assert ended(driver.admin.execute(command)) == Status.SUCCESS
    assert driver.ram.read(data, size) == whole.ljust(size, b"\0")


@pytest.mark.point("L06")
def test_a_log_is_read_in_pieces_and_zeros_follow_its_end(driver: Driver) -> None:
    whole = get(driver, LogId.COMMANDS_EFFECTS)
    for offset in (0, 4, 1024, 4092, 4096):
        size = 512
        assert get(driver, LogId.COMMANDS_EFFECTS, size, offset) == whole[offset : offset + size].ljust(
            size, b"\0"
        )


@pytest.mark.point("L06")
@pytest.mark.parametrize(
    ("size", "offset"),
    [
        pytest.param(512, 2, id="unaligned"),
        pytest.param(512, 4100, id="behind the end"),
        pytest.param(512, 1 << 40, id="far behind the end"),
        pytest.param((1 << 20) + 4, 0, id="more than MDTS"),
        pytest.param(4 << 32, 0, id="16 GiB"),
    ],
)
def test_impossible_pieces_are_invalid_fields(driver: Driver, size: int, offset: int) -> None:
    completion = driver.get_log(LogId.COMMANDS_EFFECTS, size, offset)
    assert ended(completion) == Status.INVALID_FIELD
    assert do_not_retry(completion)
