"""Telemetry and persistent events: what is to be found out afterwards."""

import json
import struct
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from outboard.devices.nvme import Store, Subsystem
from outboard.devices.nvme.command import Command, Completion
from outboard.devices.nvme.layouts import (
    CHANGE_NAMESPACE_EVENT,
    HEALTH_LOG,
    NAMESPACE_MANAGEMENT,
    PERSISTENT_EVENT,
    PERSISTENT_EVENT_HEADER,
    POWER_ON_EVENT,
    TELEMETRY_HEADER,
    Value,
)
from outboard.devices.nvme.management.pool import RamPool
from outboard.devices.nvme.persistent_events import SUPPORTED, PersistentEvents
from outboard.devices.nvme.spec import AdminOpcode, FeatureId, IoOpcode, LogId, PersistentEvent
from outboard.devices.nvme.status import Status
from outboard.storage import RamStorage
from tests.devices.nvme.bench import Bench
from tests.devices.nvme.conftest import MakeBench
from tests.devices.nvme.driver import Driver, ended

READ, ESTABLISH, RELEASE, ESTABLISH_FOR_HEADER = (action << 8 for action in range(4))
CREATE = 1 << 8
CHUNK = 4096


@pytest.fixture
def lane() -> str:
    """The data plane has no part in this."""
    return "plain"


def ask(
    driver: Driver, log: LogId, action: int = 0, size: int = 512, offset: int = 0, retain: bool = False
) -> Completion:
    cdw10 = log | action | retain << 15 | (size // 4 - 1) << 16
    return driver.admin.execute(
        Command(AdminOpcode.GET_LOG_PAGE, prp1=driver.data, cdw10=cdw10, cdw12=offset)
    )


def get(
    driver: Driver, log: LogId, action: int = 0, size: int = 512, offset: int = 0, retain: bool = False
) -> bytes:
    assert ended(ask(driver, log, action, size, offset, retain)) == Status.SUCCESS
    return driver.ram.read(driver.data, size)


def whole(driver: Driver, log: LogId, size: int, action: int = 0) -> bytes:
    """A log in pieces, without being done with it."""
    return b"".join(
        get(driver, log, action, min(CHUNK, size - at), at, retain=True) for at in range(0, size, CHUNK)
    )


def telemetry(driver: Driver, log: LogId, action: int = 0) -> tuple[dict[str, Value], list[Any]]:
    """A snapshot: its header, and the content of its areas."""
    header = TELEMETRY_HEADER.decode(get(driver, log, action, retain=True))
    lasts = [0] + [int(header[f"last_block_{area}"]) for area in (1, 2, 3)]
    data = whole(driver, log, 512 * (lasts[-1] + 1))
    areas = [data[512 * (a + 1) : 512 * (b + 1)] for a, b in pairwise(lasts)]
    return header, [json.loads(area) for area in areas if area]


@pytest.mark.point("L05")
def test_the_host_takes_a_snapshot_when_it_likes(driver: Driver) -> None:
    header, areas = telemetry(driver, LogId.HOST_TELEMETRY)
    assert (header["last_block_3"], areas, header["lid"]) == (0, [], 7)
    assert header["ieee"] == bytes.fromhex("626f02")
    driver.create_queue_pair(1, entries=16)
    driver.admin.execute(Command(0xFF))
    header, (summary, subject, queues) = telemetry(driver, LogId.HOST_TELEMETRY, CREATE)
    assert header["host_generation"] == 1
    assert (summary["controller"], summary["serial"], summary["errors"]) == (1, "OUTBOARD0001", 1)
    assert subject["namespaces"]["2"] == {"blocks": 1024, "block_size": 4096, "metadata": 0}
    assert [(sq["id"], sq["size"]) for sq in queues["submission"]] == [(0, 32), (1, 16)]
    again, areas = telemetry(driver, LogId.HOST_TELEMETRY)
    assert (again["host_generation"], areas[0]) == (1, summary), "as it was"
    assert telemetry(driver, LogId.HOST_TELEMETRY, CREATE)[0]["host_generation"] == 2


@pytest.mark.point("L05", "L06")
@pytest.mark.parametrize("log", [LogId.HOST_TELEMETRY, LogId.CONTROLLER_TELEMETRY])
def test_telemetry_is_read_by_blocks(driver: Driver, log: LogId) -> None:
    assert ended(ask(driver, log, CREATE, offset=256)) == Status.INVALID_FIELD
    assert ended(ask(driver, log, offset=1 << 20)) == Status.INVALID_FIELD


@pytest.mark.point("L05")
def test_the_controllers_snapshot_waits_for_a_host_over_restarts(
    make_bench: MakeBench, tmp_path: Path
) -> None:
    path = tmp_path / "state"
    bench = make_bench(subsystem=Subsystem(RamStorage(1 << 20), store=Store(path)))
    bench.driver.enable()
    bench.device.fail("the head has crashed")
    bench.device.fail("and so has the other")
    driver = make_bench(subsystem=Subsystem(RamStorage(1 << 20), store=Store(path))).driver.enable()
    for _ in range(2):
        header, areas = telemetry(driver, LogId.CONTROLLER_TELEMETRY)
        assert bytes(header["reason"]).rstrip() == b"the head has crashed"
        assert (header["available"], header["generation"], len(areas)) == (1, 1, 3)
        assert TELEMETRY_HEADER.decode(get(driver, LogId.HOST_TELEMETRY))["available"] == 1
    get(driver, LogId.CONTROLLER_TELEMETRY)
    header, areas = telemetry(driver, LogId.CONTROLLER_TELEMETRY)
    assert (header["available"], len(areas)) == (0, 3), "there still, and to be replaced"


def history(driver: Driver) -> tuple[dict[str, Value], list[tuple[dict[str, Value], bytes]]]:
    """The persistent event log, newest first: its header, and the events with their data."""
    header = PERSISTENT_EVENT_HEADER.decode(get(driver, LogId.PERSISTENT_EVENTS, ESTABLISH))
    log = whole(driver, LogId.PERSISTENT_EVENTS, int(header["length"]))
    get(driver, LogId.PERSISTENT_EVENTS, RELEASE)
    found, at = [], 512
    while at < len(log):
        event = PERSISTENT_EVENT.decode(log[at : at + 24])
        at += 24 + int(event["length"])
        found.append((event, log[at - int(event["length"]) : at]))
    assert len(found) == header["events"]
    return header, found


def kinds(driver: Driver) -> list[int]:
    return [int(event["type"]) for event, _ in history(driver)[1]]


@pytest.mark.point("L05")
def test_a_drive_remembers_what_happened_over_its_power_cycles(make_bench: MakeBench, tmp_path: Path) -> None:
    path = tmp_path / "state"
    bench = make_bench(subsystem=Subsystem(RamStorage(1 << 20), store=Store(path)))
    driver = bench.driver.enable()
    bench.settle()
    bench.device.subsystem.set_vitals(temperature=350)
    driver.ram.write(driver.data, (1_700_000_000_000).to_bytes(8, "little"))
    driver.set_feature(FeatureId.TIMESTAMP)
    assert kinds(driver) == [
        PersistentEvent.TIMESTAMP_CHANGE,
        PersistentEvent.THERMAL_EXCURSION,
        PersistentEvent.HEALTH_SNAPSHOT,
        PersistentEvent.POWER_ON_OR_RESET,
    ]
    driver.disable()
    driver.enable()
    bench.settle()
    driver = make_bench(subsystem=Subsystem(RamStorage(1 << 20), store=Store(path))).driver.enable()
    header, events = history(driver)
    assert [int(event["type"]) for event, _ in events][:4] == [
        PersistentEvent.HEALTH_SNAPSHOT,
        PersistentEvent.POWER_ON_OR_RESET,
        PersistentEvent.HARDWARE_ERROR,
        PersistentEvent.POWER_ON_OR_RESET,
    ]
    (_, snapshot), (_, power), (_, error), *_ = events
    assert HEALTH_LOG.decode(snapshot)["unsafe_shutdowns"] == 1
    assert POWER_ON_EVENT.decode(power)["power_cycles"] == header["power_cycles"] == 2
    assert error[0] == 8, "an unsafe shutdown"
    before, excursion = events[4], events[5]
    assert int.from_bytes(before[1][8:], "little") < 60_000, "milliseconds after the reset"
    assert excursion[1] == bytes([7, 0]), "seven kelvins over the first limit"
    assert (header["sn"], header["header_length"]) == (b"OUTBOARD0001".ljust(20), 492)
    supported = int.from_bytes(bytes(header["supported"]), "little")
    assert supported == sum(1 << kind for kind in SUPPORTED)
    assert {event["type"] for event, _ in events} < SUPPORTED


@pytest.mark.point("L05")
def test_a_context_is_a_copy_that_new_events_do_not_change(bench: Bench, driver: Driver) -> None:
    log = LogId.PERSISTENT_EVENTS
    assert ended(ask(driver, log, READ)) == Status.COMMAND_SEQUENCE_ERROR
    header = get(driver, log, ESTABLISH_FOR_HEADER)
    assert ended(ask(driver, log, ESTABLISH)) == Status.COMMAND_SEQUENCE_ERROR
    bench.device.subsystem.set_vitals(temperature=350)
    assert get(driver, log, READ)[:512] == header
    get(driver, log, RELEASE)
    get(driver, log, RELEASE)
    assert ended(ask(driver, log, READ)) == Status.COMMAND_SEQUENCE_ERROR
    newer = PERSISTENT_EVENT_HEADER.decode(get(driver, log, ESTABLISH))
    before = PERSISTENT_EVENT_HEADER.decode(header)
    assert newer["events"] == int(before["events"]) + 1
    assert newer["generation"] == int(before["generation"]) + 1
    driver.disable()
    driver.enable()
    assert ended(ask(driver, log, READ)) == Status.COMMAND_SEQUENCE_ERROR


@pytest.mark.point("L05")
def test_the_oldest_events_go_when_the_log_is_full() -> None:
    events = PersistentEvents(Store())
    for number in range(200):
        events.add(PersistentEvent.HEALTH_SNAPSHOT, number.to_bytes(512, "little"))
    assert len(events) == (65536 - 512) // 536
    assert int.from_bytes(events.encoded[24:536], "little") == 199, "the newest comes first"
    assert events.generation == 200


@pytest.mark.point("S07")
def test_a_failed_controller_does_nothing_until_it_is_reset(bench: Bench) -> None:
    bench.device.fail()
    assert bench.driver.status == 0, "it is not enabled"
    driver = bench.driver.enable()
    pair = driver.create_queue_pair(1)
    bench.device.fail()
    assert driver.status & 2
    pair.submit(driver.rw(IoOpcode.READ, 0, 1, driver.data, 512))
    pair.ring()
    bench.settle()
    assert pair.poll() == []
    driver.disable()
    assert driver.status == 0
    pair = driver.enable().create_queue_pair(1)
    assert ended(pair.execute(driver.rw(IoOpcode.READ, 0, 1, driver.data, 512))) == Status.SUCCESS
    assert history(driver)[1][1][1][0] == 9, "controller fatal status"


@pytest.mark.point("L05")
def test_what_hosts_do_to_the_drive_is_remembered(make_bench: MakeBench) -> None:
    subsystem = Subsystem(RamStorage(1 << 20), pool=RamPool(1 << 20))
    driver = make_bench(subsystem=subsystem).driver.enable()

    def admin(opcode: AdminOpcode, nsid: int = 0, **dwords: int) -> Status:
        return ended(driver.admin.execute(Command(opcode, nsid=nsid, prp1=driver.data, **dwords)))

    before = len(history(driver)[1])
    driver.ram.write(driver.data, NAMESPACE_MANAGEMENT.encode(nsze=8, ncap=8, flbas=1, nmic=1))
    assert admin(AdminOpcode.NAMESPACE_MANAGEMENT) == Status.SUCCESS
    assert admin(AdminOpcode.NAMESPACE_MANAGEMENT, 2, cdw10=1) == Status.SUCCESS
    assert admin(AdminOpcode.FORMAT_NVM, 1, cdw10=1) == Status.SUCCESS
    assert admin(AdminOpcode.SANITIZE, cdw10=2, cdw11=5) == Status.SUCCESS
    while subsystem.sanitizing.barrier:
        time.sleep(0)
    driver.ram.write(driver.data, b"outboard-firmware 1.1\n".ljust(4096))
    assert admin(AdminOpcode.FIRMWARE_DOWNLOAD, cdw10=1023) == Status.SUCCESS
    assert admin(AdminOpcode.FIRMWARE_COMMIT, cdw10=2) == Status.SUCCESS
    assert admin(AdminOpcode.FIRMWARE_COMMIT, cdw10=3 | 2 << 3) == Status.INVALID_FIRMWARE_IMAGE
    events = [(int(event["type"]), data) for event, data in reversed(history(driver)[1])]
    created, deleted, *rest = events[before:]
    kind, data = created
    change = CHANGE_NAMESPACE_EVENT.decode(data)
    assert (kind, len(data)) == (PersistentEvent.CHANGE_NAMESPACE, 48)
    assert [change[name] for name in ("cdw10", "nsze", "ncap", "flbas", "nmic", "nsid")] == [0, 8, 8, 1, 1, 2]
    assert CHANGE_NAMESPACE_EVENT.decode(deleted[1])["cdw10"] == 1
    assert rest == [
        (PersistentEvent.FORMAT_START, struct.pack("<III", 1, 0b0100, 1)),
        (PersistentEvent.FORMAT_COMPLETION, struct.pack("<III", 1, 0, 0)),
        (PersistentEvent.SANITIZE_START, struct.pack("<III", 0b111 | 1 << 30, 2, 5)),
        (PersistentEvent.SANITIZE_COMPLETION, struct.pack("<HHI", 0xFFFF, 1 | 1 << 8, 0)),
        (PersistentEvent.FIRMWARE_COMMIT, b"1.0     1.1     " + bytes([0, 2, 0, 0, 0, 0])),
        (PersistentEvent.FIRMWARE_COMMIT, b"1.0             " + bytes([2, 3, 1, 7, 0, 0])),
    ]
