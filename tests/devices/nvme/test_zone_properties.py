"""Whatever a host does with zones, they are what the specification's state machine says (Z01).

The model below is that state machine, written down anew: plain, of one zone at a time, without a thought of
how the controller does it.
"""

import random
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from outboard.devices.nvme import Nvme, Store, Subsystem
from outboard.devices.nvme.datapath.tuning import Tuning
from outboard.devices.nvme.spec import IoOpcode
from outboard.devices.nvme.status import Status
from outboard.devices.nvme.zone import ZoneState
from outboard.devices.nvme.zone_commands import Send
from outboard.storage import open_storage
from tests.devices.nvme.bench import Bench
from tests.devices.nvme.driver import ended
from tests.devices.nvme.zoned import ALL, ALLOCATE, BLOCK, CAPACITY, NO_POINTER, SIZE, ZONES, Host, zoned

E, IO, EO, C, F, RO, OFF = (
    ZoneState.EMPTY,
    ZoneState.IMPLICITLY_OPEN,
    ZoneState.EXPLICITLY_OPEN,
    ZoneState.CLOSED,
    ZoneState.FULL,
    ZoneState.READ_ONLY,
    ZoneState.OFFLINE,
)
ACTIVE, OPEN = (IO, EO, C), (IO, EO)
MOST_ACTIVE, MOST_OPEN, WINDOW, PIECE, WINDOWS = 5, 3, 4, 2, 2
EXTENSION = 64
SINGLY = (Send.OPEN, Send.CLOSE, Send.FINISH, Send.RESET, Send.OFFLINE)

pytestmark = pytest.mark.point("Z01")


@dataclass
class Model:
    """One zone: its state, blocks written in order, content (None: never written), window, extension."""

    state: ZoneState = E
    pointer: int = 0
    content: list[int] = field(default_factory=lambda: [0] * SIZE)
    window: bool = False
    extension: bytes = b""
    opened: int = 0

    @property
    def attributes(self) -> int:
        return self.window << 3 | bool(self.extension) << 7

    def become(self, state: ZoneState, clock: int = 0) -> None:
        self.state, self.opened = state, clock
        if state not in ACTIVE:
            self.window = False
        if state is E:
            self.pointer, self.extension, self.content = 0, b"", [0] * SIZE


class Zoo:
    """All zones of the model, and how each command ends."""

    def __init__(self) -> None:
        self.zones = [Model() for _ in range(ZONES)]
        self.clock = 0

    def among(self, *states: ZoneState) -> list[Model]:
        return [zone for zone in self.zones if zone.state in states]

    def open(self, zone: Model, state: ZoneState) -> Status:
        self.clock += 1
        if zone.state not in OPEN:
            if zone.state is E and len(self.among(*ACTIVE)) == MOST_ACTIVE:
                return Status.TOO_MANY_ACTIVE_ZONES
            if len(self.among(*OPEN)) == MOST_OPEN:
                implicit = self.among(IO)
                if not implicit:
                    return Status.TOO_MANY_OPEN_ZONES
                min(implicit, key=lambda each: each.opened).become(C)
            zone.become(state, self.clock)
        elif state is EO:
            zone.become(EO)
        return Status.SUCCESS

    def write(self, number: int, at: int, count: int, value: int) -> Status:
        zone = self.zones[number]
        dead = {F: Status.ZONE_IS_FULL, RO: Status.ZONE_IS_READ_ONLY, OFF: Status.ZONE_IS_OFFLINE}
        if zone.state in dead:
            return dead[zone.state]
        if at + count > CAPACITY:
            return Status.ZONED_BOUNDARY_ERROR
        reach = 2 * WINDOW if zone.window else count
        if not zone.pointer <= at <= zone.pointer + reach - count:
            return Status.ZONE_INVALID_WRITE
        status = self.open(zone, IO)
        if status == Status.SUCCESS:
            zone.content[at : at + count] = [value] * count
            if not zone.window:
                zone.pointer = at + count
            while zone.window and at + count > zone.pointer + WINDOW:
                zone.pointer += PIECE
            if zone.pointer == CAPACITY:
                zone.become(F)
        return status

    def append(self, number: int, count: int, value: int) -> Status:
        zone = self.zones[number]
        if zone.window:
            return Status.INVALID_ZONE_OPERATION
        return self.write(number, zone.pointer, count, value)

    def send(self, action: Send, number: int, *, allocate: bool = False, extension: bytes = b"") -> Status:
        zone = self.zones[number]
        refused = Status.INVALID_ZONE_STATE_TRANSITION
        if action is Send.OPEN:
            if allocate and zone.state is not E:
                return Status.INVALID_ZONE_OPERATION
            if allocate and sum(each.window for each in self.zones) == WINDOWS:
                return Status.ZRWA_RESOURCES_UNAVAILABLE
            if zone.state not in (E, *ACTIVE):
                return refused
            status = self.open(zone, EO)
            zone.window |= allocate and status == Status.SUCCESS
            return status
        if action is Send.SET_EXTENSION:
            if zone.state is not E:
                return refused
            if len(self.among(*ACTIVE)) == MOST_ACTIVE:
                return Status.TOO_MANY_ACTIVE_ZONES
            zone.become(C)
            zone.extension = extension
            return Status.SUCCESS
        after, before = {
            Send.CLOSE: (C, ACTIVE),
            Send.FINISH: (F, (E, *ACTIVE, F)),
            Send.RESET: (E, (E, *ACTIVE, F)),
            Send.OFFLINE: (OFF, (RO, OFF)),
        }[action]
        if zone.state not in before:
            return refused
        zone.become(after)
        return Status.SUCCESS

    def send_all(self, action: Send) -> Status:
        if action is Send.OPEN:
            closed = self.among(C)
            if len(self.among(EO)) + len(closed) > MOST_OPEN:
                return Status.TOO_MANY_OPEN_ZONES
            for zone in closed:
                assert self.open(zone, EO) == Status.SUCCESS
            return Status.SUCCESS
        states = {Send.CLOSE: OPEN, Send.FINISH: ACTIVE, Send.RESET: (*ACTIVE, F), Send.OFFLINE: (RO,)}
        for zone in self.among(*states[action]):
            assert self.send(action, self.zones.index(zone)) == Status.SUCCESS
        return Status.SUCCESS

    def commit(self, number: int, at: int) -> Status:
        zone = self.zones[number]
        count = at + 1 - zone.pointer
        if not zone.window or not 0 < count <= WINDOW or count % PIECE or at >= CAPACITY:
            return Status.INVALID_ZONE_OPERATION
        status = self.open(zone, IO)
        if status == Status.SUCCESS:
            zone.pointer = at + 1
            if zone.pointer == CAPACITY:
                zone.become(F)
        return status

    def power_cycle(self) -> None:
        for zone in self.among(*ACTIVE):
            if zone.window:
                written = max((at + 1 for at, value in enumerate(zone.content) if value), default=0)
                zone.pointer = max(zone.pointer, -(-written // PIECE) * PIECE)
            zone.window = False
            if zone.pointer == CAPACITY:
                zone.become(F)
            elif zone.pointer == 0 and not zone.extension:
                zone.become(E)
            else:
                zone.become(C)


class Twins:
    """A controller and the model, which are told the same things."""

    def __init__(self, folder: Path, lane: str, seed: int) -> None:
        self.folder, self.lane = folder, lane
        self.random = random.Random(seed)
        self.model = Zoo()
        self.value = 0
        self.power_on()

    def power_on(self) -> None:
        storage = open_storage(f"{self.folder / 'disk'},size={ZONES * SIZE * BLOCK}")
        space = zoned(
            storage,
            most_active=MOST_ACTIVE,
            most_open=MOST_OPEN,
            extension=EXTENSION,
            zrwa_blocks=WINDOW,
            zrwa_granularity_blocks=PIECE,
            zrwa_resources=WINDOWS,
        )
        subsystem = Subsystem(space, store=Store(self.folder / "state"))
        tuning = Tuning(pollers=0, native=self.lane == "native")
        self.bench = Bench(Nvme(subsystem=subsystem, tuning=tuning))
        self.host = Host(self.bench.driver)

    def power_cycle(self) -> None:
        self.bench.close()
        self.model.power_cycle()
        self.power_on()

    def step(self) -> None:
        """Do one thing, and see that both say the same of it."""
        host, model, chance = self.host, self.model, self.random.random()
        number = self.random.randrange(ZONES)
        zone, start = model.zones[number], number * SIZE
        self.value = self.value % 255 + 1
        count = self.random.choice((1, 1, 2, 3, 5, CAPACITY))
        data = bytes([self.value]) * BLOCK * count
        if chance < 0.35:
            near = zone.pointer + self.random.randrange(2 * WINDOW) if zone.window else zone.pointer
            at = near % SIZE if self.random.random() < 0.8 else self.random.randrange(SIZE)
            beyond = start + at + count > ZONES * SIZE
            expected = Status.LBA_OUT_OF_RANGE if beyond else model.write(number, at, count, self.value)
            assert host.write(start + at, data) == expected
        elif chance < 0.5:
            completion, pointer = host.append(start, data), zone.pointer
            expected = model.append(number, count, self.value)
            assert ended(completion) == expected
            assert expected != Status.SUCCESS or completion.result == start + pointer
        elif chance < 0.75:
            action = self.random.choice((Send.OPEN, *SINGLY))
            allocate = action is Send.OPEN and self.random.random() < 0.4
            expected = model.send(action, number, allocate=allocate)
            assert host.send(action, number, ALLOCATE if allocate else 0) == expected
        elif chance < 0.8:
            extension = bytes([self.value]) * EXTENSION
            host.driver.ram.write(host.buffer, extension)
            expected = model.send(Send.SET_EXTENSION, number, extension=extension)
            assert host.send(Send.SET_EXTENSION, number) == expected
        elif chance < 0.86:
            at = self.random.randrange(SIZE)
            assert host.send(Send.COMMIT, slba=start + at) == model.commit(number, at)
        elif chance < 0.9:
            action = self.random.choice(SINGLY)
            assert host.send(action, flags=ALL) == model.send_all(action)
        elif chance < 0.93:
            assert ended(host.execute(IoOpcode.FLUSH, 0)) == Status.SUCCESS
        elif chance < 0.935:
            self._fail(number)
        elif chance < 0.95:
            self.power_cycle()
        self.compare()

    def _fail(self, number: int) -> None:
        zones = self.bench.device.namespaces[1].zones
        assert zones is not None
        state = self.random.choice((RO, OFF))
        zones.set_state(number, state)
        self.model.zones[number].become(state)

    def compare(self) -> None:
        for number, (found, zone) in enumerate(
            zip(self.host.report(EXTENSION), self.model.zones, strict=True)
        ):
            unwritable = zone.state in (F, RO, OFF)
            assert found.state is zone.state
            assert found.pointer == (NO_POINTER if unwritable else number * SIZE + zone.pointer)
            assert found.attributes == zone.attributes
            assert found.extension == zone.extension.ljust(EXTENSION, b"\0")
        number = self.random.randrange(ZONES)
        status, data = self.host.read(number * SIZE, SIZE)
        if self.model.zones[number].state is OFF:
            assert status == Status.ZONE_IS_OFFLINE
        else:
            expected = b"".join(bytes([value]) * BLOCK for value in self.model.zones[number].content)
            assert (status, data) == (Status.SUCCESS, expected)


def run(lane: str, seed: int, steps: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        twins = Twins(Path(folder), lane, seed)
        try:
            for _ in range(steps):
                twins.step()
        finally:
            twins.bench.close()


@pytest.mark.parametrize("seed", range(3))
def test_zones_do_what_the_state_machine_says(lane: str, seed: int) -> None:
    run(lane, seed, 300)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(100, 140))
def test_zones_do_what_the_state_machine_says_for_long(seed: int) -> None:
    run("plain", seed, 5000)
