"""Which commands an injected fault strikes, and that nothing happens to the others (T04)."""

import random
import time
from collections.abc import Callable
from typing import Any

import pytest

from outboard.devices.nvme import Fault
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.spec import AdminOpcode, IoOpcode
from outboard.devices.nvme.status import Status
from outboard.errors import DefinitionError
from outboard.testing.faults import fail
from tests.devices.nvme.bench import Bench
from tests.devices.nvme.conftest import MakeBench
from tests.devices.nvme.driver import PAGE, ended
from tests.devices.nvme.stand import BLOCK, FLUSH, Stand


@pytest.fixture
def stand(bench: Bench) -> Stand:
    return Stand(bench)


@pytest.mark.point("T04")
@pytest.mark.parametrize("qid", [0, 1])
@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"status": (2, 0x81)}, 0x0281),
        ({"status": (2, 0x81), "dnr": True}, 0x4281),
        ({"status": (0, 0x82), "more": True, "crd": 2}, 0x3082),
        ({"status": (3, 0x02)}, 0x0302),
        ({"status": (7, 0xFF), "dnr": True, "more": True, "crd": 3}, 0x7FFF),
        ({"status": (0, 0)}, 0x0000),
    ],
)
def test_a_status_reaches_the_host_exactly(stand: Stand, qid: int, asked: dict[str, Any], field: int) -> None:
    pair, command = (
        (stand.pair, stand.rw(IoOpcode.READ, 0))
        if qid
        else (stand.driver.admin, Command(AdminOpcode.KEEP_ALIVE))
    )
    with fail(stand.device, qid=qid, **asked) as fault:
        completion = pair.execute(command)
    assert completion.status == field
    assert fault.struck == 1
    assert pair.execute(command).status == 0
    assert stand.device.state.errors.count == (field != 0)


def test_a_command_that_is_to_fail_is_not_executed(stand: Stand) -> None:
    with fail(stand.device, opcode="write", status=Status.WRITE_FAULT):
        assert ended(stand.write(0, b"x" * PAGE)) == Status.WRITE_FAULT
    assert stand.read(0) == bytes(PAGE)
    with fail(stand.device, opcode="read", status=Status.UNRECOVERED_READ_ERROR):
        stand.driver.ram.write(stand.buffer, b"mine" * 1024)
        stand.pair.execute(stand.rw(IoOpcode.READ, 0))
    assert stand.driver.ram.read(stand.buffer, PAGE) == b"mine" * 1024


@pytest.mark.parametrize(
    ("slba", "blocks", "hit"),
    [(0, 8, False), (0, 9, True), (8, 1, True), (15, 8, True), (16, 8, False), (0, 16, True)],
)
def test_a_range_of_blocks_is_met_by_whatever_touches_it(
    stand: Stand, slba: int, blocks: int, hit: bool
) -> None:
    with fail(stand.device, opcode=("read", "write_zeroes"), lba=(8, 15), status="internal_error"):
        for opcode in (IoOpcode.READ, IoOpcode.WRITE_ZEROES):
            completion = stand.pair.execute(stand.rw(opcode, slba, blocks))
            assert ended(completion) == (Status.INTERNAL_ERROR if hit else Status.SUCCESS)
        assert stand.pair.execute(stand.rw(IoOpcode.WRITE, 8)).status == 0
    assert stand.pair.execute(FLUSH).status == 0


@pytest.mark.parametrize(
    ("when", "failing"),
    [
        ({}, "xxxxxxxxxx"),
        ({"nth": 3}, "..x......."),
        ({"every": 3}, "..x..x..x."),
        ({"count": 4}, "xxxx......"),
        ({"every": 2, "count": 2}, ".x.x......"),
        ({"probability": 0.0}, ".........."),
    ],
)
def test_a_schedule_is_kept(stand: Stand, when: dict[str, Any], failing: str) -> None:
    stand.faults.inject(Fault(opcode="flush", status=(0, 6), **when))
    seen = ""
    for _ in failing:
        seen += "x" if stand.pair.execute(FLUSH).status else "."
        stand.pair.execute(stand.rw(IoOpcode.READ, 0))
    assert seen == failing
    assert stand.struck() == [failing.count("x")]


def test_chance_is_the_same_for_the_same_seed(make_bench: MakeBench) -> None:
    def run(seed: int) -> list[int]:
        stand = Stand(make_bench())
        stand.faults.inject(Fault(opcode="flush", status=(0, 6), probability=0.5, seed=seed))
        return [stand.pair.execute(FLUSH).status for _ in range(40)]

    assert run(1) == run(1)
    assert run(1) != run(2)
    assert 8 < run(1).count(0) < 32


def test_a_fault_is_of_the_queue_namespace_and_controller_it_names(stand: Stand) -> None:
    other = stand.driver.create_queue_pair(2)
    with fail(stand.device, qid=2, status=(0, 6)):
        assert stand.pair.execute(FLUSH).status == 0
        assert other.execute(FLUSH).status == 6
    with fail(stand.device, nsid=2, status=(0, 6)):
        assert stand.pair.execute(FLUSH).status == 0
        assert stand.pair.execute(Command(IoOpcode.FLUSH, nsid=2)).status == 6
        assert stand.pair.execute(Command(IoOpcode.FLUSH, nsid=0xFFFF_FFFF)).status == 6
    with fail(stand.device, controller=2, status=(0, 6)):
        assert stand.pair.execute(FLUSH).status == 0
    with fail(stand.device, controller=1, queue="io", status=(0, 6)):
        assert stand.pair.execute(FLUSH).status == 6
        assert stand.driver.admin.execute(Command(AdminOpcode.KEEP_ALIVE)).status == 0


def test_the_data_plane_is_slowed_down_only_while_it_has_to_be(stand: Stand) -> None:
    def diverted(*commands: Command) -> int:
        before = stand.diverted()
        for command in commands:
            stand.pair.execute(command)
        return stand.diverted() - before

    commands = [FLUSH, stand.rw(IoOpcode.READ, 0), stand.rw(IoOpcode.WRITE, 0)]
    assert diverted(*commands) == 0
    stand.faults.inject(Fault(queue="admin", delay=9))
    stand.faults.inject(Fault(opcode="compare", status=(0, 6)))
    stand.faults.inject(Fault(nsid=2, status=(0, 6)))
    stand.faults.inject(Fault(controller=7, status=(0, 6)))
    assert diverted(*commands) == 0
    stand.faults.inject(Fault(opcode="read", count=2, delay=0))
    assert diverted(*commands, *commands) == 2
    assert diverted(*commands) == 0, "it is spent"
    far = stand.faults.inject(Fault(lba=100, status=(0, 6)))
    assert diverted(*commands) == 2, "a flush has no blocks"
    stand.faults.remove(far)
    assert diverted(*commands) == 0
    stand.faults.inject(Fault(queue="io", status=(0, 6)))
    assert diverted(*commands) == 3
    stand.faults.clear()
    assert diverted(*commands) == 0


def test_faults_are_listed_counted_and_removed(stand: Stand) -> None:
    first = stand.faults.inject(Fault(opcode="flush", every=2, status=(0, 6)))
    second = stand.faults.inject(Fault(opcode="read", delay=0))
    for _ in range(5):
        stand.pair.execute(FLUSH)
    assert [each.to_json() for each in stand.faults.list()] == [
        {
            "id": first,
            "fault": {"queue": "io", "opcode": ["flush"], "every": 2, "status": [0, 6]},
            "matched": 5,
            "struck": 2,
        },
        {"id": second, "fault": {"queue": "io", "opcode": ["read"], "delay": 0.0}, "matched": 0, "struck": 0},
    ]
    stand.faults.remove(first)
    with pytest.raises(DefinitionError, match="no fault 1"):
        stand.faults.remove(first)
    stand.faults.clear()
    assert stand.faults.list() == []
    assert stand.faults.inject(Fault(delay=1)) == 3, "a number is not used again"


def test_several_faults_strike_one_command_together(stand: Stand) -> None:
    with (
        fail(stand.device, opcode="flush", delay=0.02) as slow,
        fail(stand.device, opcode="flush", status=(2, 0x80)) as first,
        fail(stand.device, opcode="flush", status=(0, 6), dnr=True) as second,
    ):
        begun = time.monotonic()
        assert stand.pair.execute(FLUSH).status == 0x280
        assert time.monotonic() - begun >= 0.02
    assert (slow.struck, first.struck, second.struck) == (1, 1, 1)


def everything_random(chance: random.Random) -> Fault:
    kinds: list[Callable[[], dict[str, Any]]] = [
        lambda: {"status": (chance.randrange(8), chance.randrange(1, 256)), "dnr": chance.random() < 0.5},
        lambda: {"delay": (0.0, 0.002)},
        lambda: {"delay": ("exponential", 0.0005), "status": (2, 0x81)},
    ]
    return Fault(
        opcode=chance.choice(["read", "write", "flush", "compare"]),
        probability=chance.choice([0.2, 1.0]),
        every=chance.choice([None, 2, 3]),
        seed=chance.getrandbits(32),
        **chance.choice(kinds)(),
    )


@pytest.mark.parametrize("seed", range(4))
def test_nothing_goes_wrong_but_what_was_asked_for(stand: Stand, seed: int) -> None:
    """Random commands under random faults: each ends once, with a status asked for; data is as that says."""
    chance = random.Random(seed)
    content = {slba: bytes(BLOCK) for slba in range(16)}
    allowed = {0}
    for _ in range(60):
        if chance.random() < 0.3:
            fault = everything_random(chance)
            stand.faults.inject(fault)
            allowed.add(fault.field or 0)
        if chance.random() < 0.2 and (injected := stand.faults.list()):
            stand.faults.remove(chance.choice(injected).id)
        slba, opcode = chance.randrange(16), chance.choice([IoOpcode.READ, IoOpcode.WRITE, IoOpcode.FLUSH])
        before = sum(stand.struck())
        if opcode == IoOpcode.WRITE:
            data = chance.randbytes(BLOCK)
            completion = stand.write(slba, data)
            if completion.status == 0:
                content[slba] = data
        elif opcode == IoOpcode.READ:
            completion = stand.pair.execute(stand.rw(opcode, slba, 1))
            if completion.status == 0:
                assert stand.driver.ram.read(stand.buffer, BLOCK) == content[slba]
        else:
            completion = stand.pair.execute(FLUSH)
        assert completion.status in allowed
        assert completion.status == 0 or sum(stand.struck()) > before
    stand.faults.clear()
    assert all(stand.read(slba, 1) == data for slba, data in content.items())
    assert not stand.device.state.outstanding
    assert stand.device.state.completion[1].pending == 0
