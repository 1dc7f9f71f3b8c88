"""Log pages, read whole, in pieces and past their end."""

import struct

import pytest

from outboard.devices.nvme.admin import ADMIN_COMMANDS
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.io import IO_COMMANDS
from outboard.devices.nvme.layouts import ERROR_ENTRY, FIRMWARE_LOG, HEALTH_LOG
from outboard.devices.nvme.spec import BROADCAST, AdminOpcode, Csi, IoOpcode, LogId
from outboard.devices.nvme.status import Status
from tests.devices.nvme.bench import Bench
from tests.devices.nvme.driver import PAGE, Driver, do_not_retry, ended


def get(driver: Driver, log: int, size: int = PAGE, offset: int = 0) -> bytes:
    driver.ram.write(driver.data, b"\xee" * PAGE)
    assert ended(driver.get_log(log, size, offset)) == Status.SUCCESS
    return driver.ram.read(driver.data, size)


@pytest.mark.point("L01")
def test_the_supported_pages_are_those_that_can_be_read(driver: Driver) -> None:
    supported = struct.unpack("<256I", get(driver, LogId.SUPPORTED, 1024))
    for log in set(range(256)) - {LogId.CHANGED_ZONES}:  # which is a zoned namespace's
        completion = driver.get_log(log, 512)
        assert ended(completion) == (Status.SUCCESS if supported[log] else Status.INVALID_LOG_PAGE)
        assert do_not_retry(completion) != bool(supported[log])
    assert [log for log in range(256) if supported[log]] == [0, 1, 2, 3, 4, 5, 0xC, 0x80, 0xBF]


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
        pytest.param((512 << 10) + 4, 0, id="more than MDTS"),
        pytest.param(4 << 32, 0, id="16 GiB"),
    ],
)
def test_impossible_pieces_are_invalid_fields(driver: Driver, size: int, offset: int) -> None:
    completion = driver.get_log(LogId.COMMANDS_EFFECTS, size, offset)
    assert ended(completion) == Status.INVALID_FIELD
    assert do_not_retry(completion)


def test_logs_are_not_indexed_by_entry(driver: Driver) -> None:
    command = Command(AdminOpcode.GET_LOG_PAGE, prp1=driver.data, cdw10=1 | 15 << 16, cdw14=1 << 23)
    assert ended(driver.admin.execute(command)) == Status.INVALID_FIELD
