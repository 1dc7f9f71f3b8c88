"""The measuring driver against a controller of each kind, good ones and bad ones; compiled and not."""

import threading
from pathlib import Path
from typing import Literal

import pytest

from outboard.client import Client
from outboard.devices.nvme import Namespace, Nvme, Protection
from outboard.devices.nvme.datapath.tuning import Tuning
from outboard.drivers.nvme_measure import PATTERNS, Doorbells, Result, Workload, measurement, measuring
from outboard.errors import ConnectionLost, PeerTimeout, RemoteProtocolError, SetupError
from outboard.server import Server
from outboard.storage import open_storage
from tests.drivers.conftest import Connect
from tests.drivers.controllers import SmallNvme

SHORT = 0.05
BLOCKS = 8192


def measure(client: Client, native: bool, doorbells: Doorbells = Doorbells.AUTO, **asked: object) -> Result:
    """Measure for a short time."""
    workload = Workload(**{"seconds": SHORT, "warm_up": 0.0, "qd": 4} | asked)  # type: ignore[arg-type]
    with measuring(client, workload, doorbells=doorbells, native=native) as running:
        running.run()
        return running.result()


@pytest.mark.parametrize("rw", PATTERNS)
def test_every_pattern_is_measured_with_every_kind_of_doorbells(
    connect: Connect, doorbells: Doorbells, native: bool, rw: str
) -> None:
    result = measure(connect(SmallNvme(BLOCKS, doorbells)), native, rw=rw)
    assert result.doorbells is doorbells
    assert result.operations > 0
    assert result.errors == 0
    assert 0 < result.latency.p50 <= result.latency.p99 <= result.latency.p999 <= result.latency.max
    assert SHORT <= result.seconds < 100 * SHORT
    assert result.bytes_per_second == pytest.approx(result.iops * 4096)


@pytest.mark.parametrize(
    ("bs", "qd", "queues"), [(512, 1, 1), (8192, 3, 2), (16384, 7, 3), (131072, 2, 1), (4096, 255, 1)]
)
def test_what_was_written_comes_back_whatever_the_size_depth_and_queues(
    connect: Connect, doorbells: Doorbells, native: bool, bs: int, qd: int, queues: int
) -> None:
    result = measure(
        connect(SmallNvme(BLOCKS, doorbells)),
        native,
        rw="randwrite",
        bs=bs,
        qd=qd,
        queues=queues,
        verify=True,
    )
    assert result.errors == 0
    assert result.compared > 0


@pytest.mark.parametrize("rw", ["write", "randrw"])
def test_verifying_compares_reads_as_they_come_and_all_in_the_end(
    connect: Connect, native: bool, rw: str
) -> None:
    device = SmallNvme(512, Doorbells.TRAPPED)
    result = measure(connect(device), native, rw=rw, qd=8, verify=True, seconds=0.3)
    written = sum(any(device.disk[at : at + 4096]) for at in range(0, len(device.disk), 4096))
    assert result.errors == 0
    assert result.compared >= written > 0


def test_lost_writes_are_corruption_with_their_block(connect: Connect, native: bool) -> None:
    device = SmallNvme(BLOCKS, Doorbells.TRAPPED)
    device.faults.lose_writes = True
    result = measure(connect(device), native, rw="randwrite", verify=True)
    assert result.corrupt > 0
    assert result.errors == result.corrupt
    assert result.corruption is not None
    assert result.corruption.found == 0
    assert f"LBA {result.corruption.lba}" in str(result.corruption)


def test_failed_commands_are_counted_by_status_and_the_first_is_kept(connect: Connect, native: bool) -> None:
    device = SmallNvme(64, Doorbells.SHADOW)
    device.faults.fail = {8}
    result = measure(connect(device), native, rw="read", qd=2)
    assert list(result.failures) == [(2, 0x81)]
    assert result.errors == result.failures[2, 0x81]
    assert str(result.first_failure) == "Read at LBA 8 failed with status type 2, code 0x81"
    assert result.operations > result.errors


def test_a_completion_that_belongs_to_no_command_ends_the_measurement(connect: Connect, native: bool) -> None:
    device = SmallNvme(BLOCKS, Doorbells.TRAPPED)
    device.faults.complete_unknown = True
    with pytest.raises(RemoteProtocolError, match=r"completed command 409\d, which it was not given"):
        measure(connect(device), native)


def test_a_controller_that_completes_nothing_is_given_up(
    connect: Connect, doorbells: Doorbells, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measurement, "PATIENCE", 0.3)
    device = SmallNvme(BLOCKS, doorbells)
    device.faults.silent_from = 10
    with pytest.raises(PeerTimeout, match=r"completed none of 4 commands for 0\.3 s"):
        measure(connect(device), native, seconds=60.0)


def test_a_server_that_goes_away_ends_the_measurement(tmp_path: Path, native: bool) -> None:
    device = SmallNvme(BLOCKS, Doorbells.MAPPED)
    path = tmp_path / "device.sock"
    with Server(device, path).start() as server, Client(path) as client:
        ending = threading.Timer(0.2, server.close)
        ending.start()
        with pytest.raises(ConnectionLost):
            measure(client, native, seconds=60.0)
        ending.join()


def test_stopping_keeps_the_result_so_far(connect: Connect, doorbells: Doorbells, native: bool) -> None:
    workload = Workload(seconds=60.0, warm_up=0.0)
    with measuring(connect(SmallNvme(BLOCKS, doorbells)), workload, native=native) as running:
        stopping = threading.Timer(0.1, running.stop)
        stopping.start()
        running.run()
        stopping.join()
        result = running.result()
    assert result.operations > 0
    assert 0.05 < result.seconds < 30


def test_warming_up_does_not_count(connect: Connect, native: bool) -> None:
    device = SmallNvme(BLOCKS, Doorbells.TRAPPED)
    result = measure(connect(device), native, warm_up=0.2)
    assert result.operations < device.done - 10


def test_shadow_doorbells_ring_only_when_the_event_index_was_passed(connect: Connect, native: bool) -> None:
    device = SmallNvme(BLOCKS, Doorbells.SHADOW)
    shadow = measure(connect(device), native, qd=16, seconds=0.2)
    assert shadow.operations > 0
    assert device.rung < device.done


def test_trapped_doorbells_are_there_for_every_server(connect: Connect, native: bool) -> None:
    result = measure(connect(SmallNvme(BLOCKS, Doorbells.SHADOW)), native, Doorbells.TRAPPED)
    assert result.doorbells is Doorbells.TRAPPED
    assert result.operations > 0


@pytest.mark.parametrize(
    ("served", "used"), [("auto", "shadow"), ("mmap", "mapped"), ("shadow", "shadow"), ("trapped", "trapped")]
)
def test_the_real_controller_is_measured_and_verified(
    connect: Connect, native: bool, served: Literal["auto", "mmap", "shadow", "trapped"], used: str
) -> None:
    device = Nvme(open_storage("ram:8M"), doorbells=served, tuning=Tuning(pollers=1, native=native))
    client = connect(device)
    result = measure(client, native, rw="randrw", qd=16, queues=2, verify=True, seconds=0.2)
    assert result.doorbells == used
    assert result.errors == 0
    assert result.compared > 0
    assert client.bar(0).read32(0x14) & 1 == 0


@pytest.mark.parametrize(
    ("size", "metadata", "guard", "extended"),
    [(512, 8, 16, False), (4096, 8, 16, True), (4096, 16, 64, False)],
)
def test_protected_blocks_are_measured_their_guards_checked(
    connect: Connect, native: bool, size: int, metadata: int, guard: int, extended: bool
) -> None:
    storage = open_storage("ram:8M")
    space = Namespace(storage, size, metadata, extended, protection=Protection(guard=guard))
    client = connect(Nvme(space, tuning=Tuning(pollers=1, native=native)))
    result = measure(client, native, rw="randrw", qd=16, verify=True, seconds=0.2)
    assert result.errors == 0
    assert result.compared > 0
    storage.write_zeroes(0, space.metadata_offset)
    spoiled = measure(client, native, rw="read", seconds=0.2)
    assert spoiled.errors > 0
    assert spoiled.first_failure is not None
    assert (spoiled.first_failure.status_type, spoiled.first_failure.status_code) == (2, 0x82)


@pytest.mark.parametrize(("metadata", "protection"), [(8, None), (64, Protection())])
def test_metadata_that_is_more_than_protection_is_refused(
    connect: Connect, metadata: int, protection: Protection | None
) -> None:
    client = connect(Nvme(Namespace(open_storage("ram:8M"), 4096, metadata, protection=protection)))
    with pytest.raises(SetupError, match=f"{metadata} bytes of metadata"):
        measure(client, False)


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"rw": "trim"}, "no pattern"),
        ({"bs": 2 << 20}, "512 bytes to 1 MiB"),
        ({"qd": 0}, "at least one"),
        ({"seconds": 0.0}, "takes some time"),
        ({"mix": 101.0}, "0 to 100"),
        ({"verify": True}, "writes nothing"),
        ({"bs": 1000}, "blocks of 512 bytes"),
        ({"bs": 1 << 20}, "takes 131072 bytes at most"),
        ({"qd": 256}, "queues take 255"),
        ({"queues": 5}, "the controller has 4"),
        ({"rw": "write", "verify": True, "bs": 131072, "qd": 64}, "room for 32 commands"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(
    connect: Connect, asked: dict[str, object], reason: str
) -> None:
    client = connect(SmallNvme(BLOCKS, Doorbells.TRAPPED))
    with pytest.raises(SetupError, match=reason):
        measure(client, False, **asked)  # type: ignore[arg-type]
    with pytest.raises(SetupError, match="--doorbells auto"):
        measure(client, False, Doorbells.MAPPED)
    with pytest.raises(SetupError, match="--doorbells auto"):
        measure(client, False, Doorbells.SHADOW)
