"""Reservations among hosts: three of them, and a second controller of the first."""

import struct
from dataclasses import replace

import pytest

from outboard.devices.nvme.command import Command
from outboard.devices.nvme.command_set import AdminCommand
from outboard.devices.nvme.io import IO_COMMANDS
from outboard.devices.nvme.layouts import IDENTIFY_CONTROLLER, IDENTIFY_NAMESPACE
from outboard.devices.nvme.spec import BROADCAST, AdminOpcode, Cns, FeatureId, IoOpcode, LogId
from outboard.devices.nvme.status import Status
from outboard.storage import RamStorage
from tests.devices.nvme.conftest import MakePaths
from tests.devices.nvme.driver import PAGE, ended
from tests.devices.nvme.hosts import (
    CLEAR,
    EA,
    EA_AR,
    EA_RO,
    EVENT,
    IGNORE_EXISTING_KEY,
    PREEMPT,
    PREEMPT_AND_ABORT,
    PTPL_ON,
    REPLACE,
    UNREGISTER,
    WE,
    WE_AR,
    WE_RO,
    A,
    B,
    C,
    Host,
)
from tests.devices.nvme.test_workers import Slow

TYPES = (WE, EA, WE_RO, EA_RO, WE_AR, EA_AR)
CONFLICT, SUCCESS = Status.RESERVATION_CONFLICT, Status.SUCCESS
REGISTRATION_PREEMPTED, RESERVATION_RELEASED, RESERVATION_PREEMPTED = 1, 2, 3

READS = (IoOpcode.READ, IoOpcode.COMPARE, IoOpcode.VERIFY, IoOpcode.ZONE_MANAGEMENT_RECEIVE)
WRITES = (
    IoOpcode.FLUSH,
    IoOpcode.WRITE,
    IoOpcode.WRITE_UNCORRECTABLE,
    IoOpcode.WRITE_ZEROES,
    IoOpcode.DATASET_MANAGEMENT,
    IoOpcode.COPY,
    IoOpcode.ZONE_MANAGEMENT_SEND,
    IoOpcode.ZONE_APPEND,
)

# The specification's figure: of a stranger and of a registrant, may it read, may it write.
FIGURE = {
    WE: ("r-", "r-"),
    EA: ("--", "--"),
    WE_RO: ("r-", "rw"),
    EA_RO: ("--", "rw"),
    WE_AR: ("r-", "rw"),
    EA_AR: ("--", "rw"),
}


def may(host: Host, opcode: IoOpcode) -> bool:
    """Whether a reservation lets a host do this; what comes of it besides does not matter."""
    return ended(host.pair.execute(host.io(opcode))) != CONFLICT


@pytest.mark.point("N14")
@pytest.mark.parametrize("type", TYPES)
def test_who_may_do_what_is_as_the_figure_says(hosts: list[Host], type: int) -> None:
    holder, registrant, stranger, holder_again = hosts
    assert holder.register(1) == registrant.register(2) == SUCCESS
    assert holder.acquire(1, type) == SUCCESS
    for host, allowed in (
        (stranger, FIGURE[type][0]),
        (registrant, FIGURE[type][1]),
        (holder, "rw"),
        (holder_again, "rw"),
    ):
        for opcode in IO_COMMANDS:
            if opcode in READS:
                assert may(host, IoOpcode(opcode)) == ("r" in allowed), IoOpcode(opcode).name
            elif opcode in WRITES:
                assert may(host, IoOpcode(opcode)) == ("w" in allowed), IoOpcode(opcode).name
    other_namespace = Host.io(stranger, IoOpcode.WRITE)
    other_namespace.nsid = 2
    assert ended(stranger.pair.execute(other_namespace)) == SUCCESS
    assert holder.release(1, type) == SUCCESS
    assert stranger.write() == registrant.write() == SUCCESS


@pytest.mark.point("N14")
def test_admin_commands_that_change_a_namespace_are_for_who_may_write(hosts: list[Host]) -> None:
    holder, registrant, stranger, _ = hosts
    assert holder.register(1) == registrant.register(2) == SUCCESS
    assert holder.acquire(1, WE_RO) == SUCCESS
    opcodes = (
        AdminOpcode.FORMAT_NVM,
        AdminOpcode.NAMESPACE_ATTACHMENT,
        AdminOpcode.NAMESPACE_MANAGEMENT,
        AdminOpcode.SANITIZE,
        AdminOpcode.SECURITY_SEND,
    )
    for host in (registrant, stranger):
        state = host.bench.device.state
        anything = {int(opcode): AdminCommand(lambda state, command: 0) for opcode in opcodes}
        state.commands = replace(state.commands, admin={**state.commands.admin, **anything})
    for opcode in opcodes:
        for nsid in (1, BROADCAST):
            command = Command(opcode, nsid=nsid)
            assert ended(stranger.driver.admin.execute(command)) == CONFLICT
            assert ended(registrant.driver.admin.execute(command)) == SUCCESS
    assert ended(stranger.driver.admin.execute(Command(AdminOpcode.SANITIZE))) == CONFLICT, (
        "of all namespaces"
    )
    assert ended(stranger.driver.admin.execute(Command(AdminOpcode.FORMAT_NVM, nsid=2))) == SUCCESS
    assert ended(stranger.driver.identify(Cns.NAMESPACE, 1)) == SUCCESS


@pytest.mark.point("N14")
def test_keys_are_registered_replaced_and_taken_back(hosts: list[Host]) -> None:
    first, second, _, first_again = hosts
    assert first.register(7) == SUCCESS
    assert first_again.register(7) == SUCCESS, "once more"
    assert first_again.register(8) == CONFLICT
    assert second.register(7) == SUCCESS, "keys need not differ"
    assert first.register(9, old=1, action=REPLACE) == CONFLICT
    assert first.register(9, old=7, action=REPLACE) == SUCCESS
    assert first_again.register(10, old=1, action=REPLACE, options=IGNORE_EXISTING_KEY) == SUCCESS
    assert first.register(0, old=9, action=UNREGISTER) == CONFLICT
    assert first.register(0, old=10, action=UNREGISTER) == SUCCESS
    assert first.register(0, old=10, action=UNREGISTER) == CONFLICT
    assert first.register(1, action=REPLACE, options=IGNORE_EXISTING_KEY) == CONFLICT
    assert second.register(0, action=UNREGISTER, options=IGNORE_EXISTING_KEY) == SUCCESS
    report = first.report(extended=True)
    assert (report.generation, report.controllers) == (7, [])


@pytest.mark.point("N14")
@pytest.mark.parametrize("type", TYPES)
def test_a_reservation_is_acquired_once_and_released_by_who_holds_it(hosts: list[Host], type: int) -> None:
    first, second, third, first_again = hosts
    all_hold = type in (WE_AR, EA_AR)
    assert first.acquire(1, type) == CONFLICT, "it has not registered"
    assert first.register(1) == second.register(2) == SUCCESS
    assert first.acquire(2, type) == CONFLICT, "not its key"
    assert first.acquire(1, type) == SUCCESS
    assert first_again.acquire(1, type) == SUCCESS
    assert first.acquire(1, TYPES[type % 6]) == CONFLICT
    assert second.acquire(2, type) == (SUCCESS if all_hold else CONFLICT)
    assert second.release(1, type) == CONFLICT
    assert third.release(0, type) == CONFLICT
    assert first.release(1, TYPES[type % 6]) == Status.INVALID_FIELD
    assert second.release(2, type) == SUCCESS
    assert (first.report(extended=True).type == type) != all_hold, (
        "a registrant that holds nothing does nothing"
    )
    assert first.release(1, type) == SUCCESS
    assert first.report(extended=True).type == 0


@pytest.mark.point("N14")
def test_the_report_has_a_line_for_each_controller_of_a_registrant(hosts: list[Host]) -> None:
    first, second, _, first_again = hosts
    assert first.register(0x11) == second.register(0x22, options=PTPL_ON) == SUCCESS
    assert second.acquire(0x22, EA_RO) == SUCCESS
    report = second.report(extended=True)
    assert (report.generation, report.type, report.persistent) == (2, EA_RO, 1)
    assert report.controllers == [(1, A, 0x11, 0), (4, A, 0x11, 0), (2, B, 0x22, 1)]
    first_again.driver.disable()
    first.driver.disable()
    assert second.report(extended=True).controllers == [(0xFFFF, A, 0x11, 0), (2, B, 0x22, 1)]
    short = Command(IoOpcode.RESERVATION_REPORT, nsid=1, prp1=second.driver.data, cdw10=1, cdw11=1)
    second.driver.ram.write(second.driver.data, b"\xee" * 16)
    assert ended(second.pair.execute(short)) == SUCCESS
    assert (
        second.driver.ram.read(second.driver.data, 16)
        == struct.pack("<IBH", 2, EA_RO, 2) + b"\0" + b"\xee" * 8
    )
    short.cdw11 = 0
    assert ended(second.pair.execute(short)) == Status.HOST_IDENTIFIER_INCONSISTENT


@pytest.mark.point("N14")
def test_hosts_with_short_identifiers_are_reported_in_the_short_form(make_paths: MakePaths) -> None:
    first, second, third = (Host(bench) for bench in make_paths(count=3))
    assert first.identify(b"SHORTER1") == SUCCESS
    assert second.identify(A) == Status.HOST_IDENTIFIER_INCONSISTENT
    assert second.identify(b"SHORTER2") == SUCCESS
    assert first.register(1) == second.register(2) == third.register(3) == SUCCESS
    assert first.report().controllers == [
        (1, b"SHORTER1", 1, 0),
        (2, b"SHORTER2", 2, 0),
        (3, bytes(8), 3, 0),
    ]
    assert first.report(extended=True).controllers[0] == (1, b"SHORTER1".ljust(16, b"\0"), 1, 0)
    assert ended(first.driver.get_feature(FeatureId.HOST_IDENTIFIER)) == SUCCESS
    assert first.driver.ram.read(first.driver.data, 8) == b"SHORTER1"
    third.driver.disable()
    assert len(first.report().controllers) == 2, "a host without an identifier is another one after a reset"
    assert first.identify(bytes(8)) == second.identify(bytes(8)) == SUCCESS
    assert first.identify(A) == SUCCESS
    assert ended(first.driver.get_feature(FeatureId.HOST_IDENTIFIER)) == Status.HOST_IDENTIFIER_INCONSISTENT


@pytest.mark.point("N14")
@pytest.mark.parametrize("action", [PREEMPT, PREEMPT_AND_ABORT])
@pytest.mark.parametrize("held", TYPES)
def test_preempting_the_holder_takes_the_reservation_over(hosts: list[Host], held: int, action: int) -> None:
    first, second, third, _ = hosts
    for key, host in enumerate((first, second, third), 1):
        assert host.register(key) == SUCCESS
    assert first.acquire(1, held) == SUCCESS
    victim = 0 if held in (WE_AR, EA_AR) else 1
    assert second.acquire(7, EA, victim=victim, action=action) == CONFLICT
    assert second.acquire(2, EA, victim=victim, action=action) == SUCCESS
    report = second.report(extended=True)
    assert (report.type, report.generation) == (EA, 4)
    left = [(2, B, 2, 1)] if victim == 0 else [(2, B, 2, 1), (3, C, 3, 0)]
    assert report.controllers == left
    assert first.read() == third.read() == CONFLICT
    assert second.write() == SUCCESS


@pytest.mark.point("N14")
def test_preempting_others_unregisters_them_and_leaves_the_reservation(hosts: list[Host]) -> None:
    first, second, third, _ = hosts
    for key, host in ((1, first), (2, second), (2, third)):
        assert host.register(key) == SUCCESS
    assert first.acquire(1, WE_AR, victim=2, action=PREEMPT) == SUCCESS, "without a reservation"
    assert first.report(extended=True).type == 0
    assert second.register(2) == SUCCESS
    assert first.acquire(1, WE) == SUCCESS
    assert second.acquire(2, EA, victim=0, action=PREEMPT) == Status.INVALID_FIELD
    assert second.acquire(2, EA, victim=5, action=PREEMPT) == CONFLICT
    assert first.acquire(1, EA_RO, victim=2, action=PREEMPT) == SUCCESS
    assert first.report(extended=True).type == WE
    assert first.acquire(1, EA_RO, victim=1, action=PREEMPT) == SUCCESS, "its own: another type"
    assert first.report(extended=True).type == EA_RO


def notified(hosts: list[Host]) -> list[int]:
    """The type of the one notification that each host reads; 0 for none."""
    found = []
    for host in hosts:
        count, type, left, nsid = host.notification()
        assert left == 0
        assert (count > 0, nsid) == ((True, 1) if type else (False, 0))
        found.append(type)
    return found


@pytest.mark.point("N14", "E02", "L05")
@pytest.mark.parametrize("type", TYPES)
def test_hosts_hear_what_others_did_to_their_registrations(hosts: list[Host], type: int) -> None:
    first, second, third, _ = hosts
    listeners = [host.listen() for host in hosts]
    for key, host in enumerate((first, second, third), 1):
        assert host.register(key) == SUCCESS
    assert first.acquire(1, type) == SUCCESS
    assert [host.heard(cid) for host, cid in zip(hosts, listeners, strict=True)] == [None] * 4
    assert first.release(1, type) == SUCCESS
    released = RESERVATION_RELEASED if type not in (WE, EA) else 0
    events = [host.heard(cid) for host, cid in zip(hosts, listeners, strict=True)]
    assert [event.result if event else 0 for event in events] == [0, *[EVENT * bool(released)] * 2, 0]
    assert notified(hosts) == [0, released, released, 0]
    assert first.acquire(1, type) == SUCCESS
    assert second.acquire(2, type, victim=3, action=PREEMPT) == SUCCESS
    assert notified(hosts) == [0, 0, REGISTRATION_PREEMPTED, 0]
    assert second.release(2, action=CLEAR) == SUCCESS
    assert notified(hosts) == [RESERVATION_PREEMPTED, 0, 0, RESERVATION_PREEMPTED]
    assert first.report(extended=True).controllers == []


@pytest.mark.point("N14")
@pytest.mark.parametrize("type", TYPES)
def test_the_reservation_ends_when_its_last_holder_unregisters(hosts: list[Host], type: int) -> None:
    first, second, _, _ = hosts
    assert first.register(1) == second.register(2) == SUCCESS
    assert first.acquire(1, type) == SUCCESS
    assert first.register(0, old=1, action=UNREGISTER) == SUCCESS
    all_hold = type in (WE_AR, EA_AR)
    assert second.report(extended=True).type == (type if all_hold else 0)
    assert notified([second]) == [RESERVATION_RELEASED if type in (WE_RO, EA_RO) else 0]
    assert second.register(0, old=2, action=UNREGISTER) == SUCCESS
    assert second.report(extended=True).type == 0


@pytest.mark.point("N14", "L05")
def test_notifications_are_masked_and_the_oldest_of_too_many_are_lost(hosts: list[Host]) -> None:
    first, second, _, _ = hosts
    mask = FeatureId.RESERVATION_NOTIFICATION_MASK
    assert ended(second.driver.set_feature(mask, 1 << RESERVATION_PREEMPTED | 1, nsid=BROADCAST)) == SUCCESS
    assert second.driver.get_feature(mask, nsid=1).result == 1 << RESERVATION_PREEMPTED
    assert second.driver.get_feature(mask, nsid=2).result == 1 << RESERVATION_PREEMPTED
    assert ended(second.driver.get_feature(mask, nsid=BROADCAST)) == Status.INVALID_NAMESPACE
    assert first.register(1) == second.register(2) == SUCCESS
    assert first.release(1, action=CLEAR) == SUCCESS
    assert second.notification() == (0, 0, 0, 0)
    assert ended(second.driver.set_feature(mask, 0, nsid=1)) == SUCCESS
    for _ in range(300):
        assert first.register(1) == second.register(2) == SUCCESS
        assert first.release(1, action=CLEAR) == SUCCESS
    assert ended(second.driver.get_log(LogId.RESERVATION_NOTIFICATION, 64, retain=True)) == SUCCESS
    assert second.notification() == (45, RESERVATION_PREEMPTED, 255, 1)
    assert second.notification() == (46, RESERVATION_PREEMPTED, 254, 1)
    second.driver.disable()
    second.driver.enable()
    assert second.notification() == (0, 0, 0, 0)


@pytest.mark.point("N14")
def test_hosts_that_are_not_concerned_are_not_disturbed(make_paths: MakePaths) -> None:
    benches = make_paths(RamStorage(1 << 20), pollers=1, count=3)
    first, second, third = (Host(bench, name) for bench, name in zip(benches, (A, B, C), strict=True))
    assert first.register(1) == second.register(2) == SUCCESS

    def pauses() -> list[int]:
        return [bench.device.statistics["pauses"] for bench in benches]

    before = pauses()
    assert second.register(3, old=2, action=REPLACE) == second.register(3) == SUCCESS
    assert pauses() == before
    assert first.acquire(1, WE_RO) == SUCCESS
    assert pauses()[:2] == before[:2], "only the third one may do less now"
    assert (second.write(), third.write(), third.read()) == (SUCCESS, CONFLICT, SUCCESS)


def by_two_hosts(make_paths: MakePaths) -> tuple[Slow, Host, Host]:
    """A slow storage that the first host has reserved, and the second has registered for."""
    slow = Slow()
    first, second = (Host(bench, name) for bench, name in zip(make_paths(slow), (A, B), strict=True))
    assert first.register(1) == second.register(2) == SUCCESS
    assert first.acquire(1, WE_RO) == SUCCESS
    return slow, first, second


def preempt_and_abort(slow: Slow, first: Host, second: Host, writes: int) -> tuple[list[int], int]:
    """The first host preempts the second, whose writes hang; the identifiers of those, and of that."""
    slow.gate.clear()
    slow.entered.clear()
    stuck = [second.pair.submit(second.io(IoOpcode.WRITE)) for _ in range(writes)]
    second.pair.ring()
    second.bench.settle()
    assert slow.entered.wait(60)
    cdw10 = PREEMPT_AND_ABORT | WE << 8
    preempting = first.pair.submit(first.command(IoOpcode.RESERVATION_ACQUIRE, 1, 2, cdw10=cdw10))
    first.pair.ring()
    first.bench.settle()
    return stuck, preempting


@pytest.mark.point("N14")
def test_preempt_and_abort_ends_what_waits_for_a_slow_storage(make_paths: MakePaths) -> None:
    slow, first, second = by_two_hosts(make_paths)
    stuck, preempting = preempt_and_abort(slow, first, second, writes=10)
    assert {ended(second.pair.wait(cid)) for cid in stuck} == {Status.ABORTED_PREEMPTED}
    assert not first.pair.poll(), "one of them is at work below"
    slow.gate.set()
    assert ended(first.pair.wait(preempting)) == SUCCESS
    assert len(slow.done) == 1, "none of the others was begun"
    assert second.write() == CONFLICT
    assert len(slow.done) == 1


@pytest.mark.point("N14")
def test_a_stop_does_not_preempt_once_more(make_paths: MakePaths) -> None:
    slow, first, second = by_two_hosts(make_paths)
    _, preempting = preempt_and_abort(slow, first, second, writes=1)
    slow.gate.set()
    first.bench.device.stop_device()
    first.bench.device.run_device()
    assert ended(first.pair.wait(preempting)) == SUCCESS


@pytest.mark.point("N14", "I01")
def test_identify_offers_all_of_it(hosts: list[Host]) -> None:
    driver = hosts[0].driver
    assert ended(driver.identify(Cns.CONTROLLER)) == SUCCESS
    about = IDENTIFY_CONTROLLER.decode(driver.ram.read(driver.data, PAGE))
    assert int(about["oncs"]) & 1 << 5
    assert int(about["ctratt"]) & 1
    assert ended(driver.identify(Cns.NAMESPACE, 1)) == SUCCESS
    assert IDENTIFY_NAMESPACE.decode(driver.ram.read(driver.data, PAGE))["rescap"] == 0xFF


@pytest.mark.point("N14")
@pytest.mark.parametrize(
    ("opcode", "cdw10"),
    [
        (IoOpcode.RESERVATION_REGISTER, 3),
        (IoOpcode.RESERVATION_ACQUIRE, 3 | WE << 8),
        (IoOpcode.RESERVATION_ACQUIRE, 0),
        (IoOpcode.RESERVATION_ACQUIRE, 7 << 8),
        (IoOpcode.RESERVATION_ACQUIRE, IGNORE_EXISTING_KEY | WE << 8),
        (IoOpcode.RESERVATION_RELEASE, 2),
        (IoOpcode.RESERVATION_RELEASE, IGNORE_EXISTING_KEY),
        (IoOpcode.RESERVATION_REPORT, 0xFFFF_FFFF),
    ],
)
def test_what_the_specification_has_not_is_an_invalid_field(
    hosts: list[Host], opcode: IoOpcode, cdw10: int
) -> None:
    assert hosts[0].register(1) == SUCCESS
    assert hosts[0].run(opcode, 1, 1, cdw10=cdw10) == Status.INVALID_FIELD
