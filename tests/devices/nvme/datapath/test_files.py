"""Namespaces on files: io_uring below the loop, Python for what goes wrong."""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from outboard.devices.nvme import Namespace, Nvme
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.datapath.records import IN_FLIGHT, PL_FREE, PL_URING, PL_VECTOR
from outboard.devices.nvme.datapath.tuning import Tuning
from outboard.devices.nvme.spec import FeatureId, IoOpcode
from outboard.devices.nvme.status import Status
from outboard.errors import SetupError
from outboard.native import uring
from outboard.native.libc import SYS_IO_URING_ENTER, system_call
from outboard.storage import FileStorage, open_file
from tests.devices.nvme.datapath.live import LiveBench, complete, tuning
from tests.devices.nvme.driver import PAGE, Driver, QueuePair, ended
from tests.devices.nvme.test_sgl import BLOCK, BUCKET, straight
from tests.devices.nvme.test_sgl import command as sgl_command
from tests.storage.kinds import open_direct

pytestmark = pytest.mark.usefixtures("files")

SIZE = 4 << 20
FUA = 1 << 30
FLUSH = Command(IoOpcode.FLUSH, nsid=1)

MakeFileBench = Callable[..., LiveBench]


@pytest.fixture
def make_file_bench(lane: str, tmp_path: Path) -> Iterator[MakeFileBench]:
    benches: list[LiveBench] = []

    def make(storage: FileStorage | None = None, pollers: int = 0, **options: object) -> LiveBench:
        storage = storage or open_file(tmp_path / "disk", SIZE)
        options.setdefault("tuning", tuning(lane, pollers) if pollers else Tuning(0, lane == "native"))
        benches.append(LiveBench(Nvme(Namespace(storage), **options)))  # type: ignore[arg-type]
        return benches[-1]

    yield make
    for bench in benches:
        bench.close()


def in_fast_lane(bench: LiveBench) -> int:
    statistics = bench.device.statistics
    return statistics["reads"] + statistics["writes"]


def round_trip(bench: LiveBench, driver: Driver, pair: QueuePair, size: int, offset: int = 0) -> None:
    """Write, flush, read back."""
    data = os.urandom(size)
    source, target = (driver.ram.allocate(size, offset=offset) for _ in range(2))
    driver.ram.write(source, data)
    blocks = size // 512
    assert ended(pair.execute(driver.rw(IoOpcode.WRITE, 3, blocks, source, size))) == Status.SUCCESS
    assert ended(pair.execute(FLUSH)) == Status.SUCCESS
    assert ended(pair.execute(driver.rw(IoOpcode.READ, 3, blocks, target, size))) == Status.SUCCESS
    assert driver.ram.read(target, size) == data


@pytest.mark.parametrize("pollers", [0, 1])
@pytest.mark.parametrize(("size", "offset"), [(512, 0), (PAGE, 256), (64 << 10, 0), (128 << 10, 512)])
def test_what_is_written_is_read(
    make_file_bench: MakeFileBench, pollers: int, size: int, offset: int
) -> None:
    bench = make_file_bench(pollers=pollers)
    driver = bench.driver.enable()
    round_trip(bench, driver, driver.create_queue_pair(1), size, offset)
    assert in_fast_lane(bench) == 2
    assert bench.device.statistics["diverted"] == 0


def test_pages_all_over_memory_are_one_command_to_the_kernel(make_file_bench: MakeFileBench) -> None:
    bench = make_file_bench()
    driver = bench.driver.enable()
    pair = driver.create_queue_pair(1)
    pages = [driver.ram.allocate(PAGE) for _ in range(16)][::2]
    for number, page in enumerate(pages):
        driver.ram.write(page, bytes([number + 1]) * PAGE)
    command = Command(IoOpcode.WRITE, nsid=1, prp1=pages[0], prp2=driver.prp_list(pages[1:]), cdw12=63)
    assert ended(pair.execute(command)) == Status.SUCCESS
    command.opcode, command.prp1 = IoOpcode.READ, pages[7]
    command.prp2 = driver.prp_list(pages[6::-1])
    assert ended(pair.execute(command)) == Status.SUCCESS
    assert [driver.ram.read(page, 1)[0] for page in pages] == [8, 7, 6, 5, 4, 3, 2, 1]
    assert in_fast_lane(bench) == 2


def test_a_write_can_be_asked_to_be_durable(make_file_bench: MakeFileBench) -> None:
    bench = make_file_bench()
    driver = bench.driver.enable()
    pair = driver.create_queue_pair(1)
    driver.ram.write(driver.data, b"durable!" * 64)
    write = driver.rw(IoOpcode.WRITE, 1, 1, driver.data, 512, cdw12=FUA)
    assert ended(pair.execute(write)) == Status.SUCCESS
    assert in_fast_lane(bench) == 1
    assert bench.device.namespaces[1].storage.read(512, 8) == b"durable!"
    # With the cache switched off every write is.
    assert ended(driver.set_feature(FeatureId.VOLATILE_WRITE_CACHE, 0)) == Status.SUCCESS
    assert ended(pair.execute(driver.rw(IoOpcode.WRITE, 2, 1, driver.data, 512))) == Status.SUCCESS
    assert in_fast_lane(bench) == 2


def test_a_read_of_what_is_durable_flushes_before_in_python(make_file_bench: MakeFileBench) -> None:
    bench = make_file_bench()
    driver = bench.driver.enable()
    pair = driver.create_queue_pair(1)
    read = driver.rw(IoOpcode.READ, 1, 1, driver.data, 512, cdw12=FUA)
    assert ended(pair.execute(read)) == Status.SUCCESS
    assert bench.device.statistics["diverted"] == 1


def test_a_bit_bucket_is_for_python(make_file_bench: MakeFileBench) -> None:
    bench = make_file_bench()
    driver = bench.driver.enable()
    pair = driver.create_queue_pair(1)
    first = straight(driver, (BLOCK, driver.data, 512), (BUCKET, 0, 512))
    command = sgl_command(IoOpcode.READ, 1024, first)
    assert ended(pair.execute(command)) == Status.SUCCESS
    assert bench.device.statistics["diverted"] == 1


def test_more_pieces_than_a_system_call_takes_are_for_python(make_file_bench: MakeFileBench) -> None:
    bench = make_file_bench()
    driver = bench.driver.enable()
    pair = driver.create_queue_pair(1)
    pages = [driver.ram.allocate(PAGE) for _ in range(4)][::-1]
    bench.device.plane.workspaces[0].record[PL_VECTOR] = 3
    command = Command(IoOpcode.READ, nsid=1, prp1=pages[0], prp2=driver.prp_list(pages[1:]), cdw12=31)
    assert ended(pair.execute(command)) == Status.SUCCESS
    assert bench.device.statistics["diverted"] == 1


@pytest.mark.parametrize("opcode", [IoOpcode.READ, IoOpcode.WRITE])
def test_a_file_that_was_cut_short_is_found_out_by_python(
    make_file_bench: MakeFileBench, tmp_path: Path, opcode: IoOpcode
) -> None:
    bench = make_file_bench()
    driver = bench.driver.enable()
    pair = driver.create_queue_pair(1)
    os.truncate(tmp_path / "disk", 1024)
    completion = pair.execute(driver.rw(opcode, 1, 8, driver.data, PAGE))
    if opcode == IoOpcode.READ:
        assert bench.device.statistics["diverted"] == 1, "the kernel read less than was asked for"
        assert ended(completion) != Status.SUCCESS or driver.ram.read(driver.data, 512) == bytes(512)
    else:
        assert ended(completion) == Status.SUCCESS
        assert (tmp_path / "disk").stat().st_size == 512 + PAGE
    assert ended(pair.execute(FLUSH)) == Status.SUCCESS


@pytest.mark.parametrize("pollers", [0, 1])
def test_an_error_below_is_done_again_in_python_and_has_its_status(
    make_file_bench: MakeFileBench, tmp_path: Path, pollers: int
) -> None:
    path = tmp_path / "read only"
    path.write_bytes(bytes(SIZE))
    storage = open_file(path, SIZE)
    reading = os.open(path, os.O_RDONLY)
    os.dup2(reading, storage.fd)
    os.close(reading)
    bench = make_file_bench(storage, pollers=pollers)
    driver = bench.driver.enable()
    pair = driver.create_queue_pair(1)
    command = driver.rw(IoOpcode.WRITE, 0, 1, driver.data, 512)
    assert ended(pair.execute(command)) not in (Status.SUCCESS, Status.INTERNAL_ERROR)
    assert bench.device.statistics["diverted"] == 1
    assert ended(pair.execute(driver.rw(IoOpcode.READ, 0, 1, driver.data, 512))) == Status.SUCCESS
    assert bench.device.statistics["writes"] == 0


@pytest.mark.parametrize("pollers", [0, 1])
def test_more_commands_than_can_be_in_flight_wait_and_are_all_done(
    make_file_bench: MakeFileBench, pollers: int
) -> None:
    bench = make_file_bench(pollers=pollers)
    driver = bench.driver.enable()
    pair = driver.create_queue_pair(1, entries=1024)
    data = driver.ram.allocate(8 * PAGE)
    count = 3 * IN_FLIGHT
    for number in range(8):
        driver.ram.write(data + number * PAGE, bytes([number + 1]) * PAGE)
    writes = [
        driver.rw(IoOpcode.WRITE, 8 * number, 8, data + number % 8 * PAGE, PAGE) for number in range(count)
    ]
    done = complete(bench, pair, writes)
    assert {ended(completion) for completion in done} == {Status.SUCCESS}
    storage = bench.device.namespaces[1].storage
    assert [storage.read(number * PAGE, 1)[0] for number in range(count)] == [
        number % 8 + 1 for number in range(count)
    ]
    assert in_fast_lane(bench) == count


def test_commands_wait_while_no_slot_is_free(make_file_bench: MakeFileBench) -> None:
    bench = make_file_bench()
    driver = bench.driver.enable()
    pair = driver.create_queue_pair(1, entries=32)
    workspace = bench.device.plane.workspaces[0]
    assert workspace.uring
    kept = uring.Ring(1)
    workspace.uring, original = kept, workspace.uring
    address, workspace.record[PL_URING] = workspace.record[PL_URING], kept.address
    reads = [driver.rw(IoOpcode.READ, number, 1, driver.data, 512) for number in range(20)]
    done = complete(bench, pair, reads)
    assert {ended(completion) for completion in done} == {Status.SUCCESS}
    assert bench.device.statistics["backed_up"] > 0
    workspace.uring, workspace.record[PL_URING] = original, address
    kept.close()


@pytest.mark.parametrize("pollers", [0, 1])
def test_past_the_page_cache_only_what_is_aligned_goes_below(
    make_file_bench: MakeFileBench, tmp_path: Path, pollers: int
) -> None:
    storage = open_direct(tmp_path / "direct", SIZE)
    bench = make_file_bench(storage, pollers=pollers)
    driver = bench.driver.enable()
    pair = driver.create_queue_pair(1)
    assert storage.fast
    alignment = storage.fast.alignment
    round_trip(bench, driver, pair, PAGE)
    aligned = in_fast_lane(bench)
    assert aligned == (2 if 3 * 512 % alignment == 0 else 0)
    round_trip(bench, driver, pair, PAGE, offset=4)
    assert in_fast_lane(bench) == aligned, "Python has an aligned buffer of its own"


def test_deleting_a_queue_waits_for_what_is_in_flight(make_file_bench: MakeFileBench) -> None:
    bench = make_file_bench(pollers=1)
    driver = bench.driver.enable()
    for _ in range(5):
        pair = driver.create_queue_pair(1, entries=64)
        for number in range(40):
            pair.submit(driver.rw(IoOpcode.WRITE, 8 * number, 8, driver.data, PAGE))
        pair.ring()
        assert ended(driver.admin.execute(Command(0x00, cdw10=1))) == Status.SUCCESS
        found = pair.poll(acknowledge=False)
        assert len({completion.cid for completion in found}) == len(found) == 40
        assert {ended(completion) for completion in found} <= {Status.SUCCESS, Status.ABORTED_SQ_DELETION}
        assert ended(driver.admin.execute(Command(0x04, cdw10=1))) == Status.SUCCESS
        assert not bench.device.plane.workspaces[0].busy


@pytest.mark.parametrize("pollers", [0, 1])
def test_a_reset_waits_for_what_is_in_flight(make_file_bench: MakeFileBench, pollers: int) -> None:
    bench = make_file_bench(pollers=pollers)
    for _ in range(3):
        driver = bench.driver.enable()
        pair = driver.create_queue_pair(1, entries=64)
        for number in range(60):
            pair.submit(driver.rw(IoOpcode.WRITE, 8 * number, 8, driver.data, PAGE, cdw12=FUA))
        pair.ring()
        bench.step()
        driver.disable()
        assert not bench.device.plane.workspaces[0].busy
        before = driver.ram.read(pair.cq, 16 * 64)
        for _ in range(5):
            bench.step()
        assert driver.ram.read(pair.cq, 16 * 64) == before, "nothing is posted after a reset"
    assert ended(bench.driver.enable().create_queue_pair(1).execute(FLUSH)) == Status.SUCCESS


def test_without_io_uring_files_are_served_in_threads(
    make_file_bench: MakeFileBench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(entries: int) -> uring.Ring:
        raise SetupError("there is none here")

    monkeypatch.setattr(uring, "Ring", refuse)
    bench = make_file_bench()
    driver = bench.driver.enable()
    round_trip(bench, driver, driver.create_queue_pair(1), PAGE)
    assert in_fast_lane(bench) == 0
    assert "files are served by threads, more slowly: there is none here" in caplog.text


def test_requests_the_kernel_could_not_take_at_once_are_handed_over_again(
    make_file_bench: MakeFileBench, monkeypatch: pytest.MonkeyPatch, lane: str
) -> None:
    if lane == "native":
        pytest.skip("the kernel is stood in for in Python")
    bench = make_file_bench()
    driver = bench.driver.enable()
    pair = driver.create_queue_pair(1)
    call, refused = system_call, [errno.EAGAIN, errno.EBUSY, errno.EINTR]

    def short_of_memory(number: int, *arguments: int) -> int:
        if refused and arguments[1] and number == SYS_IO_URING_ENTER:
            return -refused.pop()
        return call(number, *arguments)

    monkeypatch.setattr(uring, "system_call", short_of_memory)
    assert ended(pair.execute(driver.rw(IoOpcode.READ, 0, 1, driver.data, 512))) == Status.SUCCESS
    assert refused == []


def test_commands_wait_while_every_slot_is_taken(make_file_bench: MakeFileBench) -> None:
    bench = make_file_bench()
    driver = bench.driver.enable()
    pair = driver.create_queue_pair(1)
    record = bench.device.plane.workspaces[0].record
    free, record[PL_FREE] = record[PL_FREE], 0
    cid = pair.submit(driver.rw(IoOpcode.READ, 0, 1, driver.data, 512))
    pair.ring()
    bench.step()
    assert pair.poll() == []
    record[PL_FREE] = free
    pair.ring()
    assert ended(pair.wait(cid)) == Status.SUCCESS


def test_a_poller_tries_again_what_the_kernel_could_not_take(
    make_file_bench: MakeFileBench, monkeypatch: pytest.MonkeyPatch, lane: str
) -> None:
    if lane == "native":
        pytest.skip("the kernel is stood in for in Python")
    bench = make_file_bench(pollers=1)
    driver = bench.driver.enable()
    pair = driver.create_queue_pair(1)
    call, refused = system_call, [errno.EAGAIN] * 300

    def short_of_memory(number: int, *arguments: int) -> int:
        if refused and arguments[1] and number == SYS_IO_URING_ENTER:
            return -refused.pop()
        return call(number, *arguments)

    monkeypatch.setattr(uring, "system_call", short_of_memory)
    assert ended(pair.execute(driver.rw(IoOpcode.READ, 0, 1, driver.data, 512))) == Status.SUCCESS
    assert refused == []
    refused += [errno.EAGAIN] * 5000
    pair.submit(driver.rw(IoOpcode.READ, 0, 1, driver.data, 512))
    pair.ring()
    bench.until(lambda: bench.device.plane.workspaces[0].busy)
    driver.disable()
    assert not bench.device.plane.workspaces[0].busy
