"""Migration over the wire: features, states, the stream, dirty pages; a device that has to become quiet."""

import errno
import struct
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outboard import Bar, Client, Device, MsiX
from outboard.client import migrate
from outboard.errors import RemoteError, StateError
from outboard.protocol.messages import FeatureFlag, MigrationFlag, MigrationState
from outboard.server.migration import ARCS, SAVING, path
from tests import raw
from tests.raw import RawPeer
from tests.server.conftest import Connect, Serve
from tests.server.gadgets import Gadget, Handmade

GET, SET, PROBE = raw.FEATURE_GET, raw.FEATURE_SET, raw.FEATURE_PROBE
MIGRATION, STATE = raw.MIGRATION, raw.MIG_DEVICE_STATE
START = raw.LOG_START
S = MigrationState
PAGE = 4096


class Counter(Device):
    """A register that counts, memory, and something of its own to save."""

    state_version = 2

    regs = Bar(0, size=0x1000)
    value = regs.reg(0x00)
    memory = regs.ram(0x100, size=0x100)
    big = Bar(2, size=0x40000, mmap=True)
    msix = MsiX(vectors=4)

    def __init__(self) -> None:
        super().__init__()
        self.total = 0
        self.log: list[str] = []

    @value.on_write
    def add(self, value: int) -> None:
        self.total += value

    def on_save(self) -> dict[str, object]:
        return {"total": self.total, "raw": b"\0\1\2"}

    def on_restore(self, saved: object, version: int) -> None:
        assert isinstance(saved, dict)
        self.total = saved["total"]
        self.log.append(f"restored {version} {saved['raw'].hex()}")

    def on_reset(self) -> None:
        self.total = 0

    def on_stop(self) -> None:
        self.log.append("stop")

    def on_run(self) -> None:
        self.log.append("run")


@pytest.fixture
def served(serve: Serve) -> Callable[[Device], Client]:
    def start(device: Device) -> Client:
        path = serve(device).path
        assert path is not None
        return Client(path)

    return start


@pytest.mark.point("P111")
def test_features_can_be_probed_and_read(client: RawPeer) -> None:
    for flags in (PROBE | MIGRATION, PROBE | GET | MIGRATION, PROBE | GET | SET | STATE, PROBE | SET | START):
        assert client.ask(raw.feature(flags)).payload == struct.pack("=II", 8, flags)
    answer = client.ask(raw.feature(GET | MIGRATION, argsz=16))
    assert struct.unpack("=IIQ", answer.payload) == (16, GET | MIGRATION, 0b111)
    answer = client.ask(raw.feature(GET | STATE, argsz=16))
    assert struct.unpack("=IIIi", answer.payload) == (16, GET | STATE, S.RUNNING, -1)


@pytest.mark.point("P111")
@pytest.mark.parametrize(
    "message",
    [
        raw.feature(PROBE | 999),
        raw.feature(PROBE | SET | MIGRATION),
        raw.feature(GET | 999, argsz=64),
        raw.feature(SET | MIGRATION, bytes(8)),
        raw.feature(GET | SET | STATE, bytes(8)),
        raw.feature(STATE, bytes(8)),
        raw.feature(GET | 1 << 19 | MIGRATION, argsz=64),
        raw.feature(GET | MIGRATION, argsz=15),
        raw.feature(GET | MIGRATION, argsz=7),
        raw.feature(SET | STATE, bytes(7)),
        raw.set_state(8),
        raw.set_state(0),
        raw.set_state(0xFFFF_FFFF),
    ],
)
def test_features_that_are_not_there_and_bad_requests_are_refused(client: RawPeer, message: bytes) -> None:
    assert client.refused(message) == errno.EINVAL
    assert client.ask(raw.feature(GET | STATE, argsz=16)).payload[8] == S.RUNNING


def test_a_device_without_state_has_no_features(serve: Serve, connect: Connect) -> None:
    client = connect(serve(Handmade()))
    for message in (
        raw.feature(GET | MIGRATION, argsz=16),
        raw.feature(PROBE | START),
        raw.set_state(S.STOP),
    ):
        assert client.refused(message) == errno.EINVAL
    assert client.refused(raw.mig_read(8)) == errno.EOPNOTSUPP
    assert client.refused(raw.mig_write(b"x")) == errno.EOPNOTSUPP


@pytest.mark.point("P112")
def test_each_pair_of_states_takes_the_shortest_path_or_is_refused() -> None:
    for start, goal in product(S, S):
        steps = path(start, goal)
        if start is goal:
            assert steps == ([] if start is not S.ERROR else None)
            continue
        if S.ERROR in (start, goal) or (start is S.STOP_COPY and goal in (S.PRE_COPY, S.PRE_COPY_P2P)):
            assert steps is None
            continue
        assert steps is not None, (start, goal)
        assert steps[-1] is goal
        assert not SAVING.intersection(steps[:-1])
        for before, after in pairwise([start, *steps]):
            assert after in ARCS[before]


@pytest.mark.point("P112")
def test_a_device_is_stopped_and_run_on_its_way(served: Callable[[Device], Client]) -> None:
    device = Counter()
    with served(device) as client:
        reach = {
            state: {goal for goal in S if goal is not state and path(state, goal)} for state in S if state
        }
        for start, goals in reach.items():
            for goal in sorted(goals):
                client.reset()
                if start is S.RESUMING or (path(S.RUNNING, start) and start is not S.RUNNING):
                    client.migration.state = start
                if start is S.RESUMING:
                    client.migration.write(device.save_state())
                client.migration.state = goal
                assert client.migration.state is goal
                assert device.stopped is (goal not in (S.RUNNING, S.PRE_COPY))
        client.reset()
        client.migration.state = S.STOP_COPY
        with pytest.raises(RemoteError):
            client.migration.state = S.PRE_COPY
        assert client.migration.state is S.STOP_COPY


@pytest.mark.point("P113")
def test_the_stream_comes_in_pieces_of_any_size_and_ends(served: Callable[[Device], Client]) -> None:
    device = Counter()
    with served(device):
        pass
    peer = device.save_state()
    with served(device) as client:
        client.migration.state = S.STOP_COPY
        stream = b"".join(client.migration.read())
        assert stream == peer
        assert list(client.migration.read()) == []


@pytest.mark.point("P113")
def test_migration_data_has_its_states_and_sizes(client: RawPeer) -> None:
    assert client.refused(raw.mig_read(8)) == errno.EINVAL
    assert client.refused(raw.mig_write(b"x")) == errno.EINVAL
    client.ask(raw.set_state(S.STOP_COPY))
    assert client.refused(raw.mig_read(8, argsz=8)) == errno.EINVAL
    assert client.refused(raw.mig_read((1 << 20) + 1)) == errno.EINVAL
    assert client.refused(raw.mig_write(b"x")) == errno.EINVAL
    answer = client.ask(raw.mig_read(1 << 20))
    argsz, size = struct.unpack("=II", answer.payload[:8])
    assert argsz == 8 + size == len(answer.payload)
    assert size < 1 << 20
    assert client.ask(raw.mig_read(100)).payload == struct.pack("=II", 8, 0)
    client.ask(raw.set_state(S.STOP))
    assert client.refused(raw.mig_read(8)) == errno.EINVAL
    client.ask(raw.set_state(S.RESUMING))
    assert client.refused(raw.mig_read(8)) == errno.EINVAL
    assert client.ask(raw.mig_write(b"")).payload == b""


@pytest.mark.point("P114")
def test_a_device_goes_on_elsewhere(served: Callable[[Device], Client]) -> None:
    source, destination = Counter(), Counter()
    with served(source) as here, served(destination) as there:
        here.bus_master()
        bar = here.bar(0)
        bar.write32(0, 5)
        bar.write32(0, 7)
        bar.write(0x100, b"remember")
        with here.map_bar(2) as big:
            big.write(0x12345, b"me too")
        here.enable_msix()
        source.msix.guest_mask = -1
        source.msix[3].trigger()
        migrate(here, there)
        assert (there.migration.state, here.migration.state) == (S.RUNNING, S.STOP)
        assert there.bar(0).read32(0) == 7
        assert there.bar(0).read(0x100, 8) == b"remember"
        with there.map_bar(2) as big:
            assert big.read(0x12345, 6) == b"me too"
        assert destination.total == 12
        assert there.config.read(0, 256) == here.config.read(0, 256)
        assert destination.msix.pending == 1 << 3
    assert destination.log == ["stop", "restored 2 000102", "run"]


def test_a_destination_that_cannot_run_leaves_the_source_running(served: Callable[[Device], Client]) -> None:
    class Lame(Counter):
        def on_run(self) -> None:
            raise RuntimeError("the author's bug, going on")

    source = Counter()
    with served(source) as here, served(Lame()) as there:
        with pytest.raises(RemoteError):
            migrate(here, there)
        assert here.migration.state is S.RUNNING
        assert not source.stopped


def test_what_changes_during_pre_copy_arrives_too(served: Callable[[Device], Client]) -> None:
    source, destination = Counter(), Counter()
    source.big.memory[:3] = b"old"
    source.big.memory[0x20000:0x20003] = b"two"
    with served(source) as here, served(destination) as there:
        there.migration.state = S.RESUMING
        here.migration.state = S.PRE_COPY
        early = list(here.migration.read())
        assert sum(map(len, early)) < 3 * 65536
        assert list(here.migration.read()) == []
        source.big.memory[:3] = b"new"
        source.big.memory[0x20000:0x20003] = bytes(3)
        for piece in early:
            there.migration.write(piece)
        here.migration.state = S.STOP_COPY
        for piece in here.migration.read():
            there.migration.write(piece)
        there.migration.state = S.RUNNING
    assert bytes(destination.big.memory) == bytes(source.big.memory)
    assert bytes(destination.big.memory[:3]) == b"new"


@pytest.mark.point("P115")
def test_a_bad_stream_is_an_error_that_a_reset_ends(served: Callable[[Device], Client]) -> None:
    device = Counter()
    good = device.save_state()
    with served(device) as client:
        for bad in (
            b"nonsense",
            good[:-1],
            good + b"x",
            good.replace(b"registers/regs", b"registers/none"),
        ):
            client.migration.state = S.RESUMING
            client.migration.write(bad)
            with pytest.raises(RemoteError):
                client.migration.state = S.RUNNING
            assert client.migration.state is S.ERROR
            with pytest.raises(RemoteError):
                client.migration.state = S.RUNNING
            client.reset()
            assert client.migration.state is S.RUNNING
        client.migration.state = S.RESUMING
        client.migration.write(good)
        client.migration.state = S.RUNNING


@pytest.mark.point("P115")
def test_a_device_that_cannot_stop_stays_where_it_is(serve: Serve, connect: Connect) -> None:
    class Stubborn(Device):
        regs = Bar(0, size=0x1000)

        def on_stop(self) -> None:
            raise RuntimeError("the author's bug, stopping")

    client = connect(serve(Stubborn()))
    assert client.refused(raw.set_state(S.STOP_COPY)) == errno.EIO
    assert client.ask(raw.feature(GET | STATE, argsz=16)).payload[8] == S.RUNNING


@given(data=st.data())
def test_a_damaged_state_never_harms_a_device(data: st.DataObject) -> None:
    device = Counter()
    good = bytearray(device.save_state())
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    with suppress(StateError):
        device.restore_state(good)
    assert device.region_read(0, 0, 4) is not None
    device.restore_state(Counter().save_state())


def test_a_state_of_a_newer_class_or_another_device_is_refused() -> None:
    class Newer(Counter):
        state_version = 3

    class Other(Counter):
        device_id = 0x77

    for other in (Newer(), Other(), Gadget()):
        with pytest.raises(StateError):
            Counter().restore_state(other.save_state())


def test_a_stopped_device_reaches_no_memory_and_its_timers_wait(served: Callable[[Device], Client]) -> None:
    gadget = Gadget()
    with served(gadget) as client:
        client.bus_master()
        ram = client.memory(PAGE)
        client.bar(0).write64(0x20, ram.address)
        client.bar(0).write32(0x28, 8)
        client.migration.state = S.STOP
        client.bar(0).write32(0x34, 0x55)  # it would write soon
        assert client.migration.state is S.STOP
        assert ram.read(0, 8) == bytes(8)
        client.migration.state = S.RUNNING
        for _ in range(2):  # the first may have come before what waited had its turn
            client.bar(0).read32(0)
        assert ram.read(0, 8) == b"\x55" * 8


def test_a_client_that_leaves_a_stopped_device_leaves_one_that_is_reset(
    serve: Serve, connect: Connect
) -> None:
    device = Counter()
    server = serve(device)
    client = connect(server)
    client.write(0, 0, b"\5\0\0\0")
    client.ask(raw.set_state(S.STOP_COPY))
    client.close()
    client = connect(server)
    assert client.ask(raw.feature(GET | STATE, argsz=16)).payload[8] == S.RUNNING
    assert client.read(0, 0, 4) == bytes(4)
    assert device.total == 0
    assert not device.stopped


def test_the_client_can_ask_what_a_device_can(served: Callable[[Device], Client]) -> None:
    with served(Counter()) as client:
        assert client.migration.supported == (
            MigrationFlag.STOP_COPY | MigrationFlag.P2P | MigrationFlag.PRE_COPY
        )
        assert client.migration.probe(MIGRATION, FeatureFlag.GET)
        assert not client.migration.probe(MIGRATION, FeatureFlag.SET)
        assert not client.migration.probe(999)


class Faulty(Counter):
    """A counter whose author has not thought of everything: what ``breaks`` names divides by 0."""

    breaks = ""

    def on_save(self) -> dict[str, object]:
        self._break("save")
        return super().on_save()

    def on_restore(self, saved: object, version: int) -> None:
        self._break("restore")
        super().on_restore(saved, version)

    def on_run(self) -> None:
        self._break("run")

    def _break(self, name: str) -> None:
        if self.breaks == name:
            raise ZeroDivisionError(name)


def test_a_device_that_cannot_be_saved_runs_on_and_the_next_try_moves_all_of_it(
    served: Callable[[Device], Client],
) -> None:
    source, target = Faulty(), Faulty()
    with served(source) as here, served(target) as there:
        here.migration.state = S.PRE_COPY
        source.memory[0:4] = b"late"
        source.breaks = "save"
        with pytest.raises(RemoteError):
            here.migration.state = S.STOP_COPY
        assert (here.migration.state, source.stopped) == (S.PRE_COPY, False)
        source.breaks = ""
        migrate(here, there)
    assert bytes(target.memory[0:4]) == b"late"


def test_a_device_that_fails_to_restore_is_in_error_and_not_taken_for_moved(
    served: Callable[[Device], Client],
) -> None:
    target = Faulty()
    target.breaks = "restore"
    with served(Faulty()) as here, served(target) as there:
        with pytest.raises(RemoteError):
            migrate(here, there)
        assert there.migration.state is S.ERROR
        assert here.migration.state is S.RUNNING


def test_a_device_that_fails_to_go_on_can_be_stopped_again(served: Callable[[Device], Client]) -> None:
    device = Faulty()
    with served(device) as client:
        client.migration.state = S.STOP
        device.breaks = "run"
        with pytest.raises(RemoteError):
            client.migration.state = S.RUNNING
        client.migration.state = S.STOP
        assert device.stopped
