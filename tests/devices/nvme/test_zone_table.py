"""Zones over a power cycle, a crash of the process, a crash of the machine; and storage that fails (Z01)."""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from outboard.devices.nvme import Namespace, Nvme, Store, Subsystem
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.datapath.tuning import Tuning
from outboard.devices.nvme.spec import AdminOpcode, IoOpcode
from outboard.devices.nvme.status import Status
from outboard.devices.nvme.zone import ZoneState
from outboard.devices.nvme.zone_commands import Send
from outboard.devices.nvme.zone_storage import ZonedStorage
from outboard.errors import SetupError, StorageError
from outboard.storage import FileStorage, RamStorage, Storage, open_storage
from tests.devices.nvme.bench import Bench
from tests.devices.nvme.driver import ended
from tests.devices.nvme.zoned import ALLOCATE, BLOCK, CAPACITY, FUA, SIZE, ZONES, Host, zoned

E, IO, EO, C, F, RO, OFF = (
    ZoneState.EMPTY,
    ZoneState.IMPLICITLY_OPEN,
    ZoneState.EXPLICITLY_OPEN,
    ZoneState.CLOSED,
    ZoneState.FULL,
    ZoneState.READ_ONLY,
    ZoneState.OFFLINE,
)
OK = Status.SUCCESS
BOOT_AT = 40

pytestmark = pytest.mark.point("Z01")


class Machine:
    """A machine with a disk image and the state of its subsystem, that is switched on and off."""

    def __init__(self, folder: Path, lane: str) -> None:
        self.image, self.store = folder / "disk", folder / "state"
        self.table = folder / "state.zones1"
        self.lane = lane
        self.benches: list[Bench] = []
        self.opened: list[Storage] = []

    def on(self, *, size_of_file: int = ZONES * SIZE * BLOCK, **layout: int) -> Host:
        layout = {"extension": 64, "zrwa_blocks": 4, **layout}
        storage = open_storage(f"{self.image},size={size_of_file}" if size_of_file else str(self.image))
        self.opened.append(storage)
        subsystem = Subsystem(zoned(storage, **layout), store=Store(self.store))
        tuning = Tuning(pollers=0, native=self.lane == "native")
        self.benches.append(Bench(Nvme(subsystem=subsystem, tuning=tuning)))
        return Host(self.benches[-1].driver)

    def off(self) -> None:
        for bench in self.benches:
            bench.close()
        for storage in self.opened:
            storage.close()
        self.benches.clear()

    def crash(self) -> None:
        """The whole machine stops: it is not the same boot that reads the table."""
        self.off()
        table = bytearray(self.table.read_bytes())
        table[BOOT_AT] ^= 0xFF
        self.table.write_bytes(table)

    @property
    def in_fast_lane(self) -> int:
        return self.benches[-1].device.statistics["reads"]


@pytest.fixture
def machine(tmp_path: Path, lane: str) -> Iterator[Machine]:
    machine = Machine(tmp_path, lane)
    yield machine
    machine.off()


def test_zones_are_what_they_were_but_none_is_open(machine: Machine) -> None:
    host = machine.on()
    host.driver.ram.write(host.buffer, b"x" * 64)
    assert host.send(Send.SET_EXTENSION, 6) == OK
    assert host.write(0, 3) == OK
    assert host.send(Send.OPEN, 1) == OK
    assert host.write(2 * SIZE, CAPACITY) == OK
    assert host.write(3 * SIZE, 1) == OK
    assert host.send(Send.FINISH, 3) == OK
    zones = machine.benches[-1].device.namespaces[1].zones
    assert zones is not None
    zones.set_state(4, RO)
    zones.set_state(5, OFF)
    before = host.report(64)
    machine.off()
    host = machine.on()
    assert host.states() == [C, E, F, F, RO, OFF, C, E]
    after = host.report(64)
    for number in (2, 3, 4, 5, 6, 7):
        assert after[number] == before[number]
    assert after[6].extension == b"x" * 64
    assert after[0].pointer == 3
    assert host.read(0, 4) == (OK, bytes(BLOCK * [1] + BLOCK * [2] + BLOCK * [3]) + bytes(BLOCK))
    assert host.write(3, 1) == OK


def test_after_a_crash_of_the_machine_zones_end_where_they_were_flushed(machine: Machine) -> None:
    host = machine.on()
    assert host.write(0, 3) == OK
    assert host.write(SIZE, 2, FUA) == OK
    assert host.write(2 * SIZE, 2) == OK
    assert ended(host.execute(IoOpcode.FLUSH, 0)) == OK
    assert host.write(0, 1) == Status.ZONE_INVALID_WRITE
    assert host.write(3, 2) == OK
    assert host.write(2 * SIZE + 2, CAPACITY - 2) == OK
    assert host.write(3 * SIZE, 1) == OK
    machine.crash()
    host = machine.on()
    assert [zone.pointer - zone.start for zone in host.report()[:2]] == [3, 2]
    # Full zones stay full, open ones that had not been flushed are empty.
    assert host.states()[:4] == [C, C, F, E]
    assert host.read(0, 5)[1][3 * BLOCK :] == bytes(2 * BLOCK)
    assert host.read(2 * SIZE, 3)[1] == b"\1" * BLOCK + b"\2" * BLOCK + bytes(BLOCK)
    assert host.write(3, b"n" * BLOCK) == OK
    assert host.read(3, 2) == (OK, b"n" * BLOCK + bytes(BLOCK))


def test_a_reset_is_not_undone_by_a_crash_of_the_machine(machine: Machine) -> None:
    host = machine.on()
    assert host.write(0, 3, FUA) == OK
    assert host.send(Send.RESET) == OK
    assert host.write(0, 1) == OK
    machine.crash()
    host = machine.on()
    assert host.states()[0] is E
    assert host.read(0, 1) == (OK, bytes(BLOCK))


def test_a_crash_of_the_process_loses_nothing_that_was_written(machine: Machine) -> None:
    host = machine.on()
    assert host.write(0, 3) == OK
    # The table is a mapping: it has everything at once, whatever becomes of the process.
    kept = machine.table.read_bytes()
    machine.off()
    machine.table.write_bytes(kept)
    assert machine.on().zone(0).pointer == 3


def test_a_random_write_area_is_committed_by_a_power_cycle(machine: Machine) -> None:
    host = machine.on()
    assert host.send(Send.OPEN, 0, ALLOCATE) == OK
    assert host.write(2, b"z" * BLOCK, FUA) == OK
    assert ended(host.execute(IoOpcode.FLUSH, 0)) == OK
    machine.crash()
    host = machine.on()
    assert (host.zone(0).pointer, host.zone(0).state, host.zone(0).attributes) == (3, C, 0)
    assert host.read(0, 4) == (OK, bytes(2 * BLOCK) + b"z" * BLOCK + bytes(BLOCK))


def test_the_table_of_other_zones_is_refused(machine: Machine) -> None:
    machine.on()
    machine.off()
    with pytest.raises(SetupError, match="not the table of these zones"):
        machine.on(extension=128)
    machine.off()
    damaged = bytearray(machine.table.read_bytes())
    damaged[4096] = 9
    machine.table.write_bytes(damaged)
    with pytest.raises(SetupError, match="is damaged"):
        machine.on()
    machine.off()
    machine.table.unlink()
    machine.table.mkdir()
    with pytest.raises(SetupError, match="cannot keep zones in"):
        machine.on()


def test_what_a_file_held_before_it_had_zones_is_not_read(machine: Machine) -> None:
    machine.image.write_bytes(os.urandom(ZONES * SIZE * BLOCK))
    host = machine.on()
    for _ in range(2):
        assert host.write(0, 1) == OK
        assert host.read(0, 2 * SIZE) == (OK, b"\1" * BLOCK + bytes((2 * SIZE - 1) * BLOCK))
        assert machine.in_fast_lane == 0
        assert host.send(Send.FINISH) == OK
        assert host.read(0, SIZE) == (OK, b"\1" * BLOCK + bytes((SIZE - 1) * BLOCK))
        assert host.send(Send.RESET) == OK
    assert host.send(Send.OPEN, 1, ALLOCATE) == OK
    assert host.write(SIZE + 2, 1) == OK
    assert host.read(SIZE, 3) == (OK, bytes(2 * BLOCK) + b"\1" * BLOCK)
    # When nothing is left of it reads need no look at the zones any more.
    assert host.send(Send.RESET, flags=1 << 8) == OK
    assert host.read(0, 2 * SIZE) == (OK, bytes(2 * SIZE * BLOCK))
    assert machine.in_fast_lane == 1


def test_a_new_file_is_read_in_the_fast_lane(machine: Machine) -> None:
    host = machine.on()
    assert host.write(0, 2) == OK
    assert host.read(0, 3) == (OK, b"\1" * BLOCK + b"\2" * BLOCK + bytes(BLOCK))
    assert machine.in_fast_lane == 1


class Failing(RamStorage):
    """Memory whose methods fail when told to, and are not to be gone round."""

    fast = None

    def __init__(self, size: int = ZONES * SIZE * BLOCK) -> None:
        super().__init__(size)
        self.failing: set[str] = set()

    def _do(self, what: str) -> None:
        if what in self.failing:
            raise StorageError("the medium is broken", errno=errno.EIO)

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        super().write(offset, data)
        self._do("write")

    def flush(self) -> None:
        self._do("flush")

    def discard(self, offset: int, size: int) -> None:
        self._do("discard")
        super().discard(offset, size)


@pytest.fixture
def failing(make_bench: Callable[..., Bench]) -> tuple[Failing, Host]:
    storage = Failing()
    return storage, Host(make_bench(zoned(storage)).driver)


def test_a_write_that_fails_leaves_the_pointer_where_it_was(failing: tuple[Failing, Host]) -> None:
    storage, host = failing
    assert host.write(0, 2) == OK
    storage.failing.add("write")
    assert host.write(2, 2) == Status.WRITE_FAULT
    assert ended(host.append(0, 1)) == Status.WRITE_FAULT
    assert ended(host.append(SIZE, CAPACITY)) == Status.WRITE_FAULT
    assert host.zone(0).pointer == 2
    assert (host.zone(1).state, host.zone(1).pointer) == (IO, SIZE)
    # What came to the storage nevertheless is not to be seen.
    assert host.read(0, 4)[1][2 * BLOCK :] == bytes(2 * BLOCK)
    storage.failing.clear()
    assert host.append(0, 1).result == 2


def test_writes_behind_one_that_fails_fail_as_well(failing: tuple[Failing, Host]) -> None:
    storage, host = failing
    storage.failing.add("write")
    command = Command(IoOpcode.ZONE_APPEND, nsid=1, prp1=host.buffer)
    cids = [host.pair.submit(command) for _ in range(4)]
    host.pair.ring()
    assert {ended(host.pair.wait(cid)) for cid in cids} == {Status.WRITE_FAULT}
    assert host.zone(0).pointer == 0
    storage.failing.clear()
    cids = [host.pair.submit(command) for _ in range(4)]
    host.pair.ring()
    assert [host.pair.wait(cid).result for cid in cids] == [0, 1, 2, 3]


def test_writes_that_a_reset_of_the_controller_ends_did_not_happen(failing: tuple[Failing, Host]) -> None:
    _, host = failing
    command = Command(IoOpcode.ZONE_APPEND, nsid=1, prp1=host.buffer)
    for _ in range(4):
        host.pair.submit(command)
    host.pair.ring()
    host.driver.step()
    host.driver.disable()
    host = Host(host.driver)
    pointer = host.zone(0).pointer
    assert host.append(0, 1).result == pointer


def test_a_reset_that_fails_leaves_the_zone_as_it_was(failing: tuple[Failing, Host]) -> None:
    storage, host = failing
    assert host.write(0, 2) == OK
    storage.failing.add("discard")
    before = host.report()
    assert host.send(Send.RESET) == Status.WRITE_FAULT
    assert host.report() == before
    assert host.write(2, 1) == OK


def test_a_flush_that_fails_is_made_up_for(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    host = machine.on()
    assert host.write(0, 2) == OK
    storage = machine.benches[-1].device.namespaces[1].storage
    assert isinstance(storage, ZonedStorage)
    broken = StorageError("the medium is broken", errno=errno.EIO)
    with monkeypatch.context() as patched:
        patched.setattr(FileStorage, "flush", lambda self: (_ for _ in ()).throw(broken))
        assert ended(host.execute(IoOpcode.FLUSH, 0)) == Status.WRITE_FAULT
    assert ended(host.execute(IoOpcode.FLUSH, 0)) == OK
    machine.crash()
    assert machine.on().zone(0).pointer == 2


def test_a_storage_that_knows_no_holes_is_read_with_a_look_at_its_zones() -> None:
    storage = Failing()
    space = Namespace(storage)
    assert not isinstance(space.storage, ZonedStorage)
    storage.write(0, b"old" * 100)
    space = zoned(storage)
    assert space.storage.read(0, 300) == bytes(300)
    assert space.zones is not None
    assert not space.zones.readable_at_once


def test_zones_come_and_go_with_the_size_of_the_file_and_are_kept(machine: Machine) -> None:
    host = machine.on()
    assert host.write((ZONES - 1) * SIZE, 2) == OK
    subsystem = machine.benches[-1].device.subsystem
    subsystem.resize(1, (ZONES + 2) * SIZE * BLOCK)
    assert host.states() == [E] * (ZONES - 1) + [IO] + [E] * 2
    assert host.write((ZONES + 1) * SIZE, 2) == OK
    subsystem.resize(1, (ZONES - 1) * SIZE * BLOCK)
    assert host.states() == [E] * (ZONES - 1)
    assert host.write((ZONES - 1) * SIZE, 1) == Status.LBA_OUT_OF_RANGE
    subsystem.resize(1, (ZONES + 1) * SIZE * BLOCK)
    assert host.states() == [E] * (ZONES + 1)
    assert host.write(ZONES * SIZE, 3) == OK
    with pytest.raises(StorageError, match="no zone"):
        subsystem.resize(1, (SIZE - 1) * BLOCK)
    machine.off()
    host = machine.on(size_of_file=0)
    assert host.states() == [E] * ZONES + [C]
    assert host.read(ZONES * SIZE, 1) == (OK, bytes(BLOCK * [1]))


def test_zones_that_were_cut_off_while_nobody_looked_are_empty_when_they_come_back(machine: Machine) -> None:
    host = machine.on()
    assert host.write((ZONES - 1) * SIZE, 2) == OK
    machine.off()
    os.truncate(machine.image, (ZONES - 1) * SIZE * BLOCK)
    assert machine.on(size_of_file=0).states() == [E] * (ZONES - 1)
    machine.off()
    os.truncate(machine.image, ZONES * SIZE * BLOCK)
    assert machine.on().states() == [E] * ZONES


def test_a_namespace_that_is_removed_takes_its_table_along(machine: Machine) -> None:
    host = machine.on()
    assert host.write(0, 2) == OK
    subsystem = machine.benches[-1].device.subsystem
    gone = subsystem.remove(1)
    assert not machine.table.exists()
    assert gone.zones is not None
    gone.zones.set_state(3, RO)
    subsystem.add(zoned(gone.storage.below if isinstance(gone.storage, ZonedStorage) else gone.storage))
    assert host.states() == [E] * ZONES
    assert host.write(SIZE, 1) == OK
    machine.off()
    assert machine.on(extension=0, zrwa_blocks=0).states() == [E, C] + [E] * (ZONES - 2)


def test_random_write_areas_may_be_given_up(machine: Machine) -> None:
    host = machine.on()
    assert host.send(Send.OPEN, 0, ALLOCATE) == OK
    assert host.write(0, 2) == OK
    machine.off()
    host = machine.on(zrwa_blocks=0)
    assert host.states() == [C] + [E] * (ZONES - 1)
    assert host.report()[0].pointer == 2


def test_a_commit_that_was_flushed_outlives_a_crash_of_the_machine(machine: Machine) -> None:
    host = machine.on()
    assert host.send(Send.OPEN, 0, ALLOCATE) == OK
    assert host.write(0, 2) == OK
    assert ended(host.execute(IoOpcode.FLUSH, 0)) == OK
    assert ended(host.execute(IoOpcode.ZONE_MANAGEMENT_SEND, 3, cdw13=Send.COMMIT)) == OK
    assert ended(host.execute(IoOpcode.FLUSH, 0)) == OK
    machine.crash()
    assert machine.on().report()[0].pointer == 4


@pytest.mark.parametrize("in_memory", [False, True])
def test_zones_are_empty_after_a_sanitize_operation_whatever_it_was_to_leave(
    machine: Machine, make_bench: Callable[..., Bench], in_memory: bool
) -> None:
    host = Host(make_bench(zoned()).driver) if in_memory else machine.on()
    assert host.write(0, 2) == OK
    # An overwrite, once, of which nothing is deallocated.
    sanitize = Command(AdminOpcode.SANITIZE, cdw10=3 | 1 << 4 | 1 << 9, cdw11=0x55555555)
    assert ended(host.driver.admin.execute(sanitize)) == OK
    while host.read(0, 1)[0] == Status.SANITIZE_IN_PROGRESS:
        pass
    assert host.states() == [E] * ZONES
    assert host.read(0, 4) == (OK, bytes(4 * BLOCK))
    assert host.write(0, 1) == OK
