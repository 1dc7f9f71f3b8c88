"""A recorded client speaks again: the same device answers the same, another one's differences are told."""

import json
import os
import runpy
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from outboard import Bar, Client, Device, Intx, Msi, Server
from outboard.client.transport import SocketTransport
from outboard.devices.nvme import Nvme
from outboard.errors import CaptureError, RemoteError
from outboard.protocol import Direction
from outboard.storage import open_storage
from outboard.testing import replay
from outboard.trace.capture import Captured, CaptureWriter, read_capture
from outboard.trace.fault_spec import parse_fault
from outboard.trace.proxy import Proxy
from outboard.trace.replay import Difference, Player, Volatile, connections
from tests import raw

CAPTURES = Path(__file__).parent / "captures"
EXAMPLES = Path(__file__).parents[2] / "examples"


class Lab(Device):
    """Registers of all tempers: plain, counting, busy for a while, and a copy engine."""

    vendor_id, device_id, class_code = 0x1234, 0x5678, 0xFF0000
    mmio = Bar(0, size=0x1000)
    msi = Msi()
    intx = Intx()
    plain = mmio.reg(0x00, reset=0xCAFE)
    reads = mmio.reg(0x04, access="ro")
    busy = mmio.reg(0x08)
    address = mmio.reg(0x10, size=8)
    copy = mmio.reg(0x18)

    slowness = 0.0

    @reads.on_read
    def count(self) -> int:
        self.reads += 1
        return self.reads

    @busy.on_write
    def work(self, _: int) -> None:
        self.after(self.slowness, self.done)

    def done(self) -> None:
        self.busy = 0

    @copy.on_write
    def start(self, count: int) -> None:
        self.call_soon(lambda: self.move(count))

    def move(self, count: int) -> None:
        self.dma.write(self.address + count, self.dma.read(self.address, count)[::-1])
        self.copy = 0


class Other(Lab):
    """Another value in one register."""

    plain = Lab.mmio.reg(0x00, reset=0xBEEF)


def slow(device: Lab, seconds: float) -> Lab:
    device.slowness = seconds
    return device


Record = Callable[..., list[Captured]]


@pytest.fixture
def record(folder: Path) -> Record:
    """``record(device, actions)``: what a client, doing that, and the device say to each other."""

    def run(
        device: Any, *actions: Callable[[Client], object], faults: tuple[str, ...] = ()
    ) -> list[Captured]:
        seen: list[Captured] = []
        specs = [parse_fault(fault) for fault in faults]
        with (
            Server(device, folder / "s").start(),
            Proxy(folder / "c", folder / "s", observer=seen.append, faults=specs).start() as proxy,
            Client(proxy.path) as client,
        ):
            for action in actions:
                action(client)
        return seen

    return run


@pytest.fixture
def replay_at(folder: Path) -> Callable[..., list[Difference]]:
    """``replay_at(capture, device)``: a replay to a server on a socket."""

    def run(capture: list[Captured], device: Any, **options: Any) -> list[Difference]:
        with Server(device, folder / "replay.sock").start():
            [messages] = connections(capture)
            return Player(messages, SocketTransport.connect(folder / "replay.sock"), **options).play()

    return run


def look(client: Client) -> None:
    client.config.read(0, 256)
    client.bar(0).read32(0x00)
    client.enable_msi()
    client.memory(0x1000)


def copy_by_message(client: Client) -> None:
    client.bus_master()
    ram = client.memory(0x1000, 0x1_0000_0000, shared=False)
    ram.write(0, b"abcd")
    client.bar(0).write64(0x10, ram.address)
    client.bar(0).write32(0x18, 4)
    while client.bar(0).read32(0x18):
        pass


def test_the_same_device_answers_the_same(record: Record, replay_at: Any) -> None:
    capture = record(Lab(), look)
    assert replay(capture, Lab()) == []
    assert replay_at(capture, Lab()) == []


def test_a_difference_is_told_in_words(record: Record, replay_at: Any) -> None:
    capture = record(Lab(), look)
    for differences in (replay(capture, Other(), patience=0.01), replay_at(capture, Other(), patience=0.01)):
        [difference] = differences
        told = str(difference)
        assert f"message {difference.number}: REGION_READ BAR0" in told
        assert "0x0000cafe" in told.split("recorded")[1].split("got")[0]
        assert "0x0000beef" in told.split("got")[1]


def example() -> Any:
    return runpy.run_path(str(EXAMPLES / "01_edu.py"))["Edu"]()


@pytest.mark.parametrize(
    ("capture", "make", "ignore_dma"),
    [
        ("edu-start", example, False),
        (
            "nvme-identify",
            lambda: Nvme(open_storage("ram:1M"), serial="CAPTURE-1", doorbells="trapped"),
            False,
        ),
        ("linux-edu", example, False),
        ("linux-nvme", lambda: Nvme(open_storage("ram:16M"), serial="RECORDED"), True),
    ],
)
def test_a_recording_replays_without_its_client(
    capture: str, make: Callable[[], Any], ignore_dma: bool
) -> None:
    # The last two are boots of Linux in QEMU, recorded by tests/guest/boots.py.
    assert replay(CAPTURES / f"{capture}.pcapng", make(), ignore_dma=ignore_dma) == []


def test_of_a_long_read_the_first_difference_is_shown(record: Record) -> None:
    class Newer(Lab):
        revision_id = 7

    [difference] = replay(record(Lab(), lambda client: client.config.read(0, 64)), Newer(), patience=0)
    assert str(difference).endswith("first at byte 0x8: 0x00, 0x07")


def test_the_registers_of_one_device_are_not_anothers() -> None:
    assert replay(CAPTURES / "edu-start.pcapng", Lab(), patience=0) != []


@pytest.mark.parametrize(("recorded", "replayed"), [(0.0, 0.1), (0.1, 0.0), (0.1, 0.1)])
def test_a_poll_may_take_more_or_fewer_reads(
    record: Record, replay_at: Any, recorded: float, replayed: float
) -> None:
    def poll(client: Client) -> None:
        client.bar(0).write32(0x08, 1)
        while client.bar(0).read32(0x08):
            pass
        client.bar(0).read32(0x00)

    capture = record(slow(Lab(), recorded), poll)
    assert replay(capture, slow(Lab(), replayed)) == []
    assert replay_at(capture, slow(Lab(), replayed)) == []


def test_a_register_that_never_shows_what_it_showed_is_a_difference(record: Record) -> None:
    def poll(client: Client) -> None:
        client.bar(0).write32(0x08, 1)
        while client.bar(0).read32(0x08):
            pass

    capture = record(Lab(), poll)
    assert len(replay(capture, slow(Lab(), 60), patience=0.05)) == 1


def test_reads_of_a_queue_are_compared_one_by_one(record: Record) -> None:
    capture = record(Lab(), *[lambda client: client.bar(0).read32(0x04)] * 4)
    ahead = Lab()
    ahead.reads = 1
    assert replay(capture, Lab()) == []
    assert len(replay(capture, ahead, patience=0)) == 1


def test_volatile_bytes_are_not_compared(record: Record) -> None:
    capture = record(Lab(), look)
    assert replay(capture, Other(), ignore=[Volatile(0, range(2))], patience=0) == []
    assert len(replay(capture, Other(), ignore=[Volatile(0, range(1, 8))], patience=0)) == 1
    assert len(replay(capture, Other(), ignore=[Volatile(1, range(8))], patience=0)) == 1


def test_dma_by_message_is_answered_as_recorded(record: Record, replay_at: Any) -> None:
    capture = record(Lab(), copy_by_message)
    assert replay(capture, Lab()) == []
    assert replay_at(capture, Lab()) == []


def test_other_dma_is_a_difference_and_finds_what_was_written(
    record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outboard.trace.replay.REPLY_TIMEOUT", 0.1)

    class Lazy(Lab):
        def move(self, count: int) -> None:
            self.dma.write(self.address + 64, b"wxyz")
            assert self.dma.read(self.address + 64, 8) == b"wxyz\0\0\0\0"
            self.copy = 0

    told = [str(difference) for difference in replay(record(Lab(), copy_by_message), Lazy(), patience=0.1)]
    assert any("DMA_WRITE" in line and "which the recorded server did not send" in line for line in told)
    assert any("DMA_READ" in line and "which the recorded server did not send" in line for line in told)


def test_dma_in_other_pieces_finds_the_recorded_memory(record: Record) -> None:
    class Piecemeal(Lab):
        def move(self, count: int) -> None:
            data = b"".join(self.dma.read(self.address + at, 1) for at in range(count))
            assert data == b"abcd"
            for at in range(count):
                self.dma.write(self.address + count + at, data[::-1][at : at + 1])
            self.copy = 0

    capture = record(Lab(), copy_by_message)
    assert replay(capture, Piecemeal(), ignore_dma=True) == []
    assert replay(capture, Piecemeal()) != []


def test_a_command_of_the_server_that_does_not_come_is_a_difference(
    record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outboard.trace.replay.REPLY_TIMEOUT", 0.1)

    class Idle(Lab):
        def move(self, count: int) -> None:
            self.copy = 0

    told = [str(difference) for difference in replay(record(Lab(), copy_by_message), Idle(), patience=0.1)]
    assert told
    assert all("DMA_" in line and "the server did not send it" in line for line in told)


def test_each_connection_is_played_after_the_other(folder: Path) -> None:
    path = folder / "two.pcapng"
    with (
        path.open("wb") as file,
        Server(Lab(), folder / "s").start(),
        Proxy(folder / "c", folder / "s", capture=CaptureWriter(file)).start() as proxy,
    ):
        for _ in range(2):
            with Client(proxy.path) as client:
                client.bar(0).read32(0x04)
    assert {captured.connection for captured in read_capture(path)} == {0, 1}
    assert replay(path, Lab()) == []


def test_what_a_proxy_broke_is_left_out(record: Record) -> None:
    def reads(client: Client) -> None:
        for _ in range(6):
            with suppress(RemoteError):
                client.bar(0).read32(0x04)

    faults = (
        "error:region=bar0,nth=2",
        "flip:region=bar0,nth=1",
        "error:direction=to-client,region=bar0,nth=5",
    )
    capture = record(Lab(), reads, faults=faults)
    assert len([captured for captured in capture if captured.remark]) == 4
    assert replay(capture, Lab()) == []


def test_a_server_that_closes_ends_the_replay_with_a_difference(record: Record, folder: Path) -> None:
    capture = record(Lab(), look)
    ours, theirs = socket.socketpair()
    with raw.RawPeer(theirs) as server:
        server.send(raw.reply(raw.Message(1, raw.VERSION, 0, 0, 0, b""), b""))
        server.socket.shutdown(socket.SHUT_WR)
        [messages] = connections(capture)
        [*_, last] = Player(messages, SocketTransport(ours)).play()
    assert "the replay ends here" in str(last)


def test_a_capture_that_kept_only_the_start_of_messages_is_refused(record: Record) -> None:
    first, *others = record(Lab(), look)
    cut = Captured(first.time, first.direction, first.data[:20], missing=len(first.data) - 20)
    with pytest.raises(CaptureError, match="lacks its last"):
        replay([cut, *others], Lab())


def test_memory_of_an_impossible_size_is_refused() -> None:
    huge = raw.dma_map(0, 1 << 63, offset=1 << 63)
    hello = Captured(0, Direction.TO_SERVER, raw.version())
    with pytest.raises(CaptureError, match="no memory"):
        replay([hello, Captured(0, Direction.TO_SERVER, huge, fds=1)], Lab())


def test_a_command_on_the_twin_socket_is_answered_there() -> None:
    twin_json = {"capabilities": {"twin_socket": {"supported": True, "fd_index": 0}}}
    agreed = struct.pack("=HH", 0, 0) + json.dumps(twin_json).encode() + b"\0"
    asked = raw.message(raw.DMA_READ, struct.pack("=QQ", 0x1000, 4), id=5)
    answer = raw.message(raw.DMA_READ, struct.pack("=QQ", 0x1000, 4) + b"data", id=5, flags=raw.REPLY)
    capture = [
        Captured(0, Direction.TO_SERVER, raw.version()),
        Captured(0, Direction.TO_CLIENT, raw.message(raw.VERSION, agreed, flags=raw.REPLY), fds=1),
        Captured(0, Direction.TO_CLIENT, asked, socket=1),
        Captured(0, Direction.TO_SERVER, answer, socket=1),
        Captured(0, Direction.TO_SERVER, raw.reset(id=2)),
        Captured(0, Direction.TO_CLIENT, raw.message(raw.RESET, id=2, flags=raw.REPLY)),
    ]
    ours, theirs = socket.socketpair()
    heard: list[bytes] = []

    def serve() -> None:
        with raw.RawPeer(theirs) as server:
            mine, twin = socket.socketpair()
            with twin:
                server.send(raw.reply(server.receive(), agreed), [twin.fileno()])
            with raw.RawPeer(mine) as peer:
                peer.send(asked)
                heard.append(peer.receive().payload)
                server.send(raw.reply(server.receive()))

    thread = threading.Thread(target=serve)
    thread.start()
    [messages] = connections(capture)
    assert Player(messages, SocketTransport(ours)).play() == []
    thread.join()
    assert heard == [struct.pack("=QQ", 0x1000, 4) + b"data"]


def test_a_reply_that_the_recorded_server_did_not_send_is_a_difference() -> None:
    posted = raw.write(0, 0x10, bytes(4), id=2, flags=raw.NO_REPLY)
    asked = raw.reset(id=3)
    done = raw.message(raw.RESET, id=3, flags=raw.REPLY)
    written = raw.message(raw.REGION_WRITE, posted[16:32], id=2, flags=raw.REPLY)
    quiet = [
        Captured(0, Direction.TO_SERVER, posted),
        Captured(0, Direction.TO_SERVER, asked),
        Captured(0, Direction.TO_CLIENT, done),
    ]
    talkative = [quiet[0], Captured(0, Direction.TO_CLIENT, written), *quiet[1:]]
    for script, count in ((quiet, 1), (talkative, 0)):
        ours, theirs = socket.socketpair()
        with raw.RawPeer(theirs) as server:
            server.send(written + done)
            [messages] = connections(script)
            assert len(Player(messages, SocketTransport(ours)).play()) == count


def test_a_twin_socket_that_is_none_does_no_harm() -> None:
    twin_json = {"capabilities": {"twin_socket": {"supported": True, "fd_index": 0}}}
    agreed = struct.pack("=HH", 0, 0) + json.dumps(twin_json).encode() + b"\0"
    answer = raw.message(raw.VERSION, agreed, flags=raw.REPLY)
    capture = [
        Captured(0, Direction.TO_SERVER, raw.version()),
        Captured(0, Direction.TO_CLIENT, answer, fds=1),
    ]
    before = raw.open_descriptors()
    ours, theirs = socket.socketpair()
    with raw.RawPeer(theirs) as server:
        fd = raw.memory_file(4096)
        server.send(answer, [fd])
        os.close(fd)
        [messages] = connections(capture)
        assert Player(messages, SocketTransport(ours)).play() == []
    assert raw.open_descriptors() == before


def test_a_replay_leaves_no_descriptor(record: Record) -> None:
    capture = record(Lab(), look, copy_by_message)
    replay(capture, Lab())
    before = raw.open_descriptors()
    for _ in range(5):
        replay(capture, Lab())
    assert raw.open_descriptors() == before
