"""What the data plane counts: of queues, of namespaces, in the loop and in Python."""

from pathlib import Path

import pytest

from outboard.devices.nvme import Namespace
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.datapath.plane import DataPlane
from outboard.devices.nvme.spec import BROADCAST, IoOpcode
from outboard.devices.nvme.status import Status
from outboard.storage import NullStorage, RamStorage, open_file
from tests.devices.nvme.bench import Bench
from tests.devices.nvme.conftest import MakeBench, MakePaths
from tests.devices.nvme.datapath.test_files import MakeFileBench, make_file_bench  # noqa: F401
from tests.devices.nvme.datapath.test_qos import leave_to_python, read, write
from tests.devices.nvme.driver import QueuePair, ended

FLUSH = Command(IoOpcode.FLUSH, nsid=1)
MOVED = ("reads", "writes", "bytes_read", "bytes_written")


@pytest.fixture
def plane(bench: Bench) -> DataPlane:
    return bench.device.plane


def batch(bench: Bench, pair: QueuePair, *commands: Command) -> None:
    """Have these executed together, with success."""
    cids = [pair.submit(command) for command in commands]
    pair.ring()
    assert {ended(pair.wait(cid)) for cid in cids} == {Status.SUCCESS}


def moved(plane: DataPlane, nsid: int) -> list[int]:
    counters = plane.namespace_statistics()[nsid]
    return [counters[name] for name in MOVED]


@pytest.mark.parametrize("in_python", [False, True], ids=["loop", "Python"])
def test_reads_and_writes_are_counted_for_their_namespace(
    bench: Bench, plane: DataPlane, in_python: bool
) -> None:
    pair = bench.driver.enable().create_queue_pair(1)
    if in_python:
        leave_to_python(plane)
    assert moved(plane, 1) == moved(plane, 2) == [0, 0, 0, 0]
    commands = [read(pair), read(pair, 8), FLUSH, read(pair, nsid=2), write(pair, 2), write(pair, nsid=2)]
    batch(bench, pair, *commands)
    assert moved(plane, 1) == [2, 1, 9 * 512, 2 * 512]
    assert moved(plane, 2) == [1, 1, 4096, 4096]
    assert 0 not in plane.namespace_statistics()
    assert plane.statistics["reads"] == (0 if in_python else 3)


def test_what_is_no_single_namespaces_is_counted_for_none(bench: Bench, plane: DataPlane) -> None:
    pair = bench.driver.enable().create_queue_pair(1)
    batch(bench, pair, Command(IoOpcode.FLUSH, nsid=BROADCAST))
    assert not any(counters["measured"] for counters in plane.namespace_statistics().values())
    assert plane.statistics["busy_ns"] > 0


def test_commands_that_fail_have_moved_nothing(bench: Bench, plane: DataPlane) -> None:
    pair = bench.driver.enable().create_queue_pair(1)
    beyond = Command(IoOpcode.READ, nsid=1, prp1=bench.driver.data, cdw10=1 << 30)
    assert ended(pair.execute(beyond)) == Status.LBA_OUT_OF_RANGE
    assert ended(pair.execute(Command(IoOpcode.READ, nsid=9))) == Status.INVALID_NAMESPACE
    assert moved(plane, 1) == [0, 0, 0, 0]


def test_counters_only_grow_whatever_happens_to_the_controller(bench: Bench, plane: DataPlane) -> None:
    driver = bench.driver.enable()
    batch(bench, driver.create_queue_pair(1), read(driver.create_queue_pair(2)))
    driver.disable()
    driver.enable()
    batch(bench, pair := driver.create_queue_pair(1), read(pair, 8))
    bench.device.subsystem.remove(1).storage.close()
    assert moved(plane, 1) == [2, 0, 9 * 512, 0]


def test_some_commands_are_timed(bench: Bench, plane: DataPlane) -> None:
    pair = bench.driver.enable().create_queue_pair(1)
    for _ in range(65):
        batch(bench, pair, read(pair))
    batch(bench, pair, Command(IoOpcode.COMPARE, nsid=2, prp1=bench.driver.data))
    first, second = (plane.namespace_statistics()[nsid] for nsid in (1, 2))
    assert first["measured"] == 2, "one batch in 64"
    assert second["measured"] == 1, "all that Python executes"
    for counters in (first, second):
        assert 0 < counters["longest_ns"] <= counters["latency_ns"]
    assert plane.statistics["busy_ns"] >= 64 * first["latency_ns"] + second["latency_ns"]


def test_commands_with_metadata_are_timed_like_others(make_bench: MakeBench) -> None:
    bench = make_bench(Namespace(RamStorage(1 << 20), metadata=8, extended=True))
    batch(bench, pair := bench.driver.enable().create_queue_pair(1), read(pair))
    assert bench.device.plane.namespace_statistics()[1]["measured"] == 1


@pytest.mark.parametrize("opcode", [IoOpcode.READ, IoOpcode.WRITE])
def test_commands_of_shared_memory_are_timed_and_counted_like_others(
    make_paths: MakePaths, opcode: IoOpcode
) -> None:
    first, _ = make_paths(RamStorage(1 << 20))
    pair = first.driver.enable().create_queue_pair(1)
    batch(first, pair, Command(opcode, nsid=1, prp1=first.driver.data))
    assert first.device.plane.namespace_statistics()[1]["measured"] == 1
    assert sum(moved(first.device.plane, 1)) == 1 + 512
    assert first.device.statistics["diverted"] == 0


@pytest.mark.usefixtures("files")
def test_commands_of_files_are_all_timed(make_file_bench: MakeFileBench, tmp_path: Path) -> None:  # noqa: F811
    bench = make_file_bench(open_file(tmp_path / "timed", 1 << 20))
    pair = bench.driver.enable().create_queue_pair(1)
    batch(bench, pair, read(pair, 8), write(pair), FLUSH)
    counters = bench.device.plane.namespace_statistics()[1]
    assert [counters[name] for name in (*MOVED, "measured")] == [1, 1, 4096, 512, 3]
    assert bench.device.statistics["busy_ns"] >= counters["longest_ns"] > 0


@pytest.mark.parametrize("in_python", [False, True], ids=["loop", "Python"])
def test_queues_count_what_they_had(make_bench: MakeBench, in_python: bool) -> None:
    bench = make_bench(Namespace(RamStorage(1 << 20)), NullStorage(1 << 20))
    driver = bench.driver.enable()
    pair, other = (driver.create_queue_pair(qid, entries=4, vector=1) for qid in (1, 2))
    plane = bench.device.plane
    if in_python:
        leave_to_python(plane)
    for _ in range(3):
        batch(bench, pair, read(pair, 2), FLUSH)
    counters = plane.queue_statistics()
    assert sorted(counters) == [0, 1, 2]
    assert counters[1] == {
        "commands": 6,
        "bytes": 0 if in_python else 3 * 1024,
        "depth": 0,
        "completions": 6,
        "interrupts": 3,
    }
    assert counters[2] == dict.fromkeys(counters[1], 0)
    assert counters[0]["commands"] == counters[0]["completions"] >= 4
    bench.device.controller.stop()
    other.submit(FLUSH)
    bench.device.state.submission[2].ring(other.tail)
    bench.device.state.submission[2].look()
    assert plane.queue_statistics()[2]["depth"] == 1
