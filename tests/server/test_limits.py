"""What a client can make a server hold: each kind of thing has an end, and the refusal says which."""

import errno
import gc
import os
import resource
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import outboard.dma
import outboard.guest_files
import outboard.server.requests
import outboard.server.session
from outboard import Client, Device, DeviceContract, GuestMemory, Mapping, Server
from outboard.devices.nvme import Namespace, Nvme, Tuning
from outboard.dma import MAX_MAPS
from outboard.errors import RequestRefused
from outboard.loop import Loop
from outboard.native.jit import available
from outboard.protocol.capabilities import SERVER_DEFAULTS
from outboard.protocol.messages import DmaMap, Message
from outboard.server import Session
from outboard.storage import RamStorage
from tests import raw
from tests.raw import EVENTFD, MSIX, TRIGGER, memory_file, open_descriptors
from tests.server.conftest import Connect, Serve
from tests.server.gadgets import Gadget, Handmade

PAGE = 4096


def resident() -> int:
    """Bytes of memory this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def addresses() -> int:
    """Bytes of addresses this process has in use."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * PAGE


def nvme(pollers: int) -> Nvme:
    return Nvme(Namespace(RamStorage(1 << 20)), tuning=Tuning(pollers=pollers))


@pytest.fixture(params=["device", "controller", "controller and its poller"])
def device(request: pytest.FixtureRequest) -> DeviceContract:
    if request.param == "device":
        return Gadget()
    return nvme(int(request.param != "controller" and available()))


def test_what_is_announced_is_what_is_taken() -> None:
    assert SERVER_DEFAULTS.max_dma_maps == MAX_MAPS


@pytest.mark.parametrize("device", [Gadget(), Handmade()], ids=["declared", "six methods"])
def test_one_map_more_than_announced_is_refused_whatever_the_device(
    device: DeviceContract, serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outboard.server.requests, "MAX_MAPS", 100)
    client = connect(serve(device))
    for number in range(100):
        client.ask(raw.dma_map(number * PAGE, PAGE))
    before = open_descriptors()
    fd = memory_file(PAGE)
    assert client.refused(raw.dma_map(1 << 40, PAGE), [fd]) == errno.ENOSPC
    os.close(fd)
    assert open_descriptors() == before
    client.ask(raw.dma_unmap(0, PAGE))
    client.ask(raw.dma_map(1 << 40, PAGE))


def maps_and_unmaps(device: DeviceContract, folder: Path, count: int) -> None:
    """As many ranges of one file as that: found again, taken back one by one, all at once, and by leaving."""
    fd = memory_file(count * PAGE)
    messages: list[tuple[Message, tuple[int, ...]]] = [
        (DmaMap(32, 3, number * PAGE, number * 2 * PAGE, PAGE), (fd,)) for number in range(count)
    ]
    with Server(device, folder / "s").start() as server, Client(folder / "s", timeout=60) as client:
        before, memory = open_descriptors(), resident()
        client._link.pipeline(messages)
        assert open_descriptors() == before + 1, "that of the file"
        assert resident() - memory < 4096 * count, "a map costs less than a page"
        if isinstance(device, Device):
            assert len(device.dma.maps) == count
        for number in range(0, count, 2):
            client.dma_unmap(number * 2 * PAGE, PAGE)
        client.dma_unmap_all()
        client._link.pipeline(messages)
        client.close()
        with Client(server.path or "", timeout=60) as following:
            following.dma_map(0, PAGE, fd=fd)
            if isinstance(device, Device):
                assert len(device.dma.maps) == 1
    os.close(fd)


@pytest.mark.point("PCI02")
def test_two_thousand_maps_cost_one_descriptor_and_little_memory(
    device: DeviceContract, folder: Path
) -> None:
    maps_and_unmaps(device, folder, 2_000)


@pytest.mark.soak
def test_as_many_maps_as_announced_cost_one_descriptor_and_little_memory(
    device: DeviceContract, folder: Path
) -> None:
    maps_and_unmaps(device, folder, MAX_MAPS)


@pytest.fixture
def files() -> Iterator[Callable[..., int]]:
    made: list[int] = []

    def make(size: int) -> int:
        made.append(memory_file(size))
        return made[-1]

    yield make
    for fd in made:
        os.close(fd)


def test_files_behind_memory_are_limited_by_number(
    files: Callable[[int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outboard.guest_files, "MAX_FILES", 3)
    memory = GuestMemory()
    for number in range(3):
        memory.map(Mapping(number * PAGE, PAGE, fd=os.dup(files(PAGE))))
    before = open_descriptors()
    with pytest.raises(RequestRefused, match=r"3 files of 0x3000 bytes.*at most 3 files") as refused:
        memory.map(Mapping(1 << 20, PAGE, fd=os.dup(files(PAGE))))
    assert refused.value.errno == errno.ENOSPC
    assert open_descriptors() == before + 1
    memory.unmap(PAGE, PAGE)
    memory.map(Mapping(1 << 20, PAGE, fd=os.dup(files(PAGE))))
    memory.unmap_all()
    for number in range(3):
        memory.map(Mapping(number * PAGE, PAGE, fd=os.dup(files(PAGE))))
    memory.unmap_all()


def test_a_program_that_raises_its_limit_after_it_made_the_device_may_use_more_files(
    files: Callable[[int], int],
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = max(map(int, os.listdir("/proc/self/fd"))) + 4
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, hard))
    try:
        memory = GuestMemory()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    for number in range(few // 2 + 1):
        memory.map(Mapping(number * PAGE, PAGE, fd=os.dup(files(PAGE))))
    memory.unmap_all()


def test_files_that_are_read_in_place_count_too(
    files: Callable[[int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outboard.guest_files, "MAX_FILES", 3)
    memory = GuestMemory()
    for number in range(3):
        memory.map(Mapping(number * PAGE, PAGE, fd=os.dup(files(PAGE)), file_io=number > 0))
    before = open_descriptors()
    with pytest.raises(RequestRefused, match="at most 3 files"):
        memory.map(Mapping(1 << 20, PAGE, fd=os.dup(files(PAGE)), file_io=True))
    assert open_descriptors() == before + 1
    memory.unmap(PAGE, PAGE)
    memory.map(Mapping(1 << 20, PAGE, fd=os.dup(files(PAGE)), file_io=True))
    memory.unmap_all()


def test_a_file_that_is_grown_again_and_again_counts_each_time(
    files: Callable[[int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outboard.guest_files, "MAX_FILES", 3)
    memory, fd = GuestMemory(), files(PAGE)
    for number in range(3):
        os.truncate(fd, (number + 1) * PAGE)
        memory.map(Mapping(number * PAGE, PAGE, fd=os.dup(fd), offset=number * PAGE))
    os.truncate(fd, 4 * PAGE)
    with pytest.raises(RequestRefused, match="at most 3 files"):
        memory.map(Mapping(3 * PAGE, PAGE, fd=os.dup(fd), offset=3 * PAGE))
    memory.unmap_all()
    memory.map(Mapping(3 * PAGE, PAGE, fd=os.dup(fd), offset=3 * PAGE))
    memory.unmap_all()


def test_sparse_files_do_not_use_up_the_processs_addresses(files: Callable[[int], int]) -> None:
    memory = GuestMemory()
    memory.map(Mapping(0, PAGE, fd=os.dup(files(6 << 40))))
    with pytest.raises(RequestRefused, match=r"at most .* files of 0x80000000000 bytes"):
        memory.map(Mapping(PAGE, PAGE, fd=os.dup(files(6 << 40))))
    memory.map(Mapping(PAGE, PAGE, fd=os.dup(files(1 << 40))))
    memory.unmap_all()
    memory.map(Mapping(PAGE, PAGE, fd=os.dup(files(6 << 40))))
    memory.unmap_all()


def test_a_log_of_writes_that_does_not_fit_into_memory_is_refused_and_nothing_half_logged(
    files: Callable[[int], int],
) -> None:
    memory = GuestMemory()
    memory.map(Mapping(0, PAGE, fd=os.dup(files(PAGE))))
    memory.map(Mapping(1 << 40, 4 << 40, fd=os.dup(files(4 << 40))))
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (addresses() + (512 << 20), hard))
    try:
        with pytest.raises(RequestRefused, match="cannot log what is written") as refused:
            memory.start_log()
        assert refused.value.errno == errno.ENOMEM
        assert not memory.logging
        memory.unmap(1 << 40, 4 << 40)
        memory.start_log()
        with pytest.raises(RequestRefused, match="cannot log what is written"):
            memory.map(Mapping(1 << 40, 4 << 40, fd=os.dup(files(4 << 40))))
        assert len(memory.maps) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    memory.write(0, b"x")
    assert memory.take_dirty(0, PAGE) == b"\x01" + bytes(7)
    memory.unmap_all()


class Unquiet(Gadget):
    """Is never quiet: what has to wait for that waits for ever."""

    def on_quiesce(self) -> bool:
        return False


@pytest.mark.parametrize(
    ("limit", "message", "fds"),
    [
        ("MOST_HELD", raw.write(3, 0, bytes(PAGE)), 0),
        ("MOST_HELD_MESSAGES", raw.read(0, 0, 4), 0),
        ("MOST_HELD_FDS", raw.set_irqs(MSIX, EVENTFD | TRIGGER, 0, 8), 8),
    ],
)
def test_what_waits_for_a_device_to_become_quiet_is_limited(
    limit: str,
    message: bytes,
    fds: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    eventfds: Callable[[int], list[int]],
) -> None:
    monkeypatch.setattr(outboard.server.session, limit, {"MOST_HELD": 100_000}.get(limit, 50))
    loop, device, [event] = Loop(), Unquiet(), eventfds(1)
    before = open_descriptors()
    session = Session(device, loop, lambda data, fds: True, lambda seconds: None)
    session.feed(raw.version())
    session.feed(raw.reset())
    sent = 0
    while not session.closed and sent < 1000:
        session.feed(message, [os.dup(event) for _ in range(fds)])
        sent += 1
    assert sent == {"MOST_HELD": 100_000 // len(message) + 1}.get(limit, 51 if not fds else 7)
    assert "while its DEVICE_RESET waits for the device; the most are" in caplog.text
    session.close()
    assert open_descriptors() == before
    loop.close()


def test_descriptors_beyond_what_the_process_may_have_cost_the_client_its_connection_and_nothing_else(
    gadget: Gadget, serve: Serve, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve(gadget)
    client = connect(server)
    fds = [os.eventfd(0) for _ in range(64)]
    before = open_descriptors()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    caplog.set_level("INFO", "outboard")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(fds) + 10, hard))
    try:
        client.send(raw.set_irqs(MSIX, EVENTFD | TRIGGER, 0, 64), fds)
        client.expect_closed()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    connect(server).ask(raw.device_info())
    assert "than this process may open (ulimit -n)" in caplog.text
    assert open_descriptors() == before + 1
    for fd in fds:
        os.close(fd)


def lives(device: DeviceContract, folder: Path, count: int) -> None:
    """Clients that come, map memory, take interrupts and go: nothing of them stays."""
    fd = memory_file(64 * PAGE)

    def live() -> None:
        with Client(folder / "s", timeout=60) as client:
            client.memory(PAGE)
            client.dma_map(1 << 32, 64 * PAGE, fd=fd)
            client.enable_msix()
            client.config.write16(4, 7)

    with Server(device, folder / "s").start():
        for _ in range(20):
            live()
        gc.collect()
        with Client(folder / "s", timeout=60):
            before, memory = open_descriptors(), resident()
        tracemalloc.start()
        objects, _ = tracemalloc.get_traced_memory()
        for _ in range(count):
            live()
        with Client(folder / "s", timeout=60):
            assert open_descriptors() == before
            if isinstance(device, Gadget):
                device.log.clear()
            gc.collect()
            now, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert now - objects < 128 << 10
        assert resident() - memory < 16 << 20
    os.close(fd)


def test_thirty_lives_of_each_device_leave_nothing(device: DeviceContract, folder: Path) -> None:
    lives(device, folder, 30)


@pytest.mark.soak
def test_a_thousand_lives_of_each_device_leave_nothing(device: DeviceContract, folder: Path) -> None:
    lives(device, folder, 1000)
