"""Asymmetric namespace access: what a host sees of paths of different worth."""

import struct
from collections.abc import Sequence

import pytest

from outboard.devices.nvme import AnaState, Namespace
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.layouts import IDENTIFY_CONTROLLER, IDENTIFY_NAMESPACE
from outboard.devices.nvme.spec import AdminOpcode, Cns, FeatureId, IoOpcode, LogId
from outboard.devices.nvme.status import Status
from outboard.errors import DefinitionError
from outboard.storage import RamStorage
from tests.devices.nvme.bench import Bench
from tests.devices.nvme.conftest import MakeBench, MakePaths
from tests.devices.nvme.driver import PAGE, Driver, QueuePair, do_not_retry, ended

ACCESS_NOTICES = 1 << 11
ACCESS_CHANGED = 2 | 3 << 8 | LogId.NAMESPACE_ACCESS << 16
GROUPS_ONLY = 1 << 8

CLOSED = {
    AnaState.INACCESSIBLE: Status.ANA_INACCESSIBLE,
    AnaState.PERSISTENT_LOSS: Status.ANA_PERSISTENT_LOSS,
    AnaState.CHANGE: Status.ANA_TRANSITION,
}


def log(driver: Driver, options: int = 0) -> tuple[int, dict[int, tuple[AnaState, int, Sequence[int]]]]:
    """The change count, and by group its state, change count and namespaces."""
    cdw10 = LogId.NAMESPACE_ACCESS | options | 1023 << 16
    assert ended(driver.admin.execute(Command(AdminOpcode.GET_LOG_PAGE, prp1=driver.data, cdw10=cdw10))) == (
        Status.SUCCESS
    )
    page = driver.ram.read(driver.data, PAGE)
    changes, count = struct.unpack_from("<QH6x", page)
    groups: dict[int, tuple[AnaState, int, Sequence[int]]] = {}
    at = 16
    for _ in range(count):
        group, nsids, group_changes, state = struct.unpack_from("<IIQB15x", page, at)
        groups[group] = AnaState(state), group_changes, struct.unpack_from(f"<{nsids}I", page, at + 32)
        at += 32 + 4 * nsids
    assert not any(page[at:])
    return int(changes), groups


@pytest.fixture
def paths(make_paths: MakePaths) -> list[Bench]:
    """Two controllers of three namespaces in two groups."""
    disks = [Namespace(RamStorage(1 << 20), ana_group=group) for group in (1, 7, 1)]
    return make_paths(*disks)


def start(bench: Bench) -> QueuePair:
    return bench.driver.enable().create_queue_pair()


@pytest.mark.point("Z04", "L05")
def test_the_log_has_the_groups_their_states_and_what_is_in_them(paths: list[Bench]) -> None:
    first, second = (bench.driver.enable() for bench in paths)
    subsystem = paths[0].device.subsystem
    assert log(first) == log(second) == (0, {
        1: (AnaState.OPTIMIZED, 0, (1, 3)), 7: (AnaState.OPTIMIZED, 0, (2,))
    })  # fmt: skip
    subsystem.set_ana(2, 7, AnaState.NON_OPTIMIZED)
    subsystem.set_ana(2, 7, AnaState.NON_OPTIMIZED)
    subsystem.set_ana(2, 1, AnaState.INACCESSIBLE)
    subsystem.set_ana(2, 1, AnaState.CHANGE)
    assert log(first)[0] == 0
    assert log(second) == (3, {1: (AnaState.CHANGE, 2, (1, 3)), 7: (AnaState.NON_OPTIMIZED, 1, (2,))})
    assert log(second, GROUPS_ONLY)[1] == {1: (AnaState.CHANGE, 2, ()), 7: (AnaState.NON_OPTIMIZED, 1, ())}
    subsystem.detach(2, 2)
    assert log(second)[1] == {1: (AnaState.CHANGE, 2, (1, 3))}
    second.disable()
    assert log(second.enable())[0] == 0, "changes are counted from the reset on"


@pytest.mark.point("Z04", "I01")
def test_identify_says_what_there_is_and_which_group_a_namespace_is_in(paths: list[Bench]) -> None:
    driver = paths[0].driver.enable()
    assert ended(driver.identify(Cns.CONTROLLER)) == Status.SUCCESS
    about = IDENTIFY_CONTROLLER.decode(driver.ram.read(driver.data, PAGE))
    assert (about["cmic"], about["anacap"]) == (0b1011, 0b0101_1111)
    assert about["anagrpmax"] == about["nanagrpid"] == 32
    assert about["anatt"]
    assert int(about["oaes"]) & ACCESS_NOTICES

    def namespace(nsid: int) -> tuple[object, object]:
        assert ended(driver.identify(Cns.NAMESPACE, nsid)) == Status.SUCCESS
        data = IDENTIFY_NAMESPACE.decode(driver.ram.read(driver.data, PAGE))
        assert data["nsze"] == data["ncap"] == 2048
        return data["anagrpid"], data["nuse"]

    assert [namespace(nsid) for nsid in (1, 2, 3)] == [(1, 2048), (7, 2048), (1, 2048)]
    paths[0].device.subsystem.set_ana(1, 7, AnaState.PERSISTENT_LOSS)
    assert [namespace(nsid) for nsid in (1, 2, 3)] == [(1, 2048), (7, 0), (1, 2048)]


@pytest.mark.point("Z04")
@pytest.mark.parametrize("state", CLOSED)
def test_a_closed_path_refuses_commands_that_another_path_may_still_carry_out(
    paths: list[Bench], state: AnaState
) -> None:
    first, second = (start(bench) for bench in paths)
    paths[0].device.subsystem.set_ana(1, 1, state)

    def outcomes(pair: QueuePair, nsid: int) -> set[Status]:
        driver = pair.driver
        commands = [
            driver.rw(IoOpcode.READ, 0, 1, driver.data, 512, nsid=nsid),
            driver.rw(IoOpcode.WRITE, 0, 1, driver.data, 512, nsid=nsid),
            driver.rw(IoOpcode.WRITE_ZEROES, 0, 1, driver.data, 512, nsid=nsid),
            Command(IoOpcode.FLUSH, nsid=nsid),
        ]
        done = [pair.execute(command) for command in commands]
        assert not any(do_not_retry(completion) for completion in done)
        return {ended(completion) for completion in done}

    assert outcomes(first, 1) == outcomes(first, 3) == {CLOSED[state]}
    assert outcomes(first, 2) == outcomes(second, 1) == {Status.SUCCESS}
    assert ended(first.driver.get_feature(FeatureId.ERROR_RECOVERY, nsid=1)) == CLOSED[state]
    paths[0].device.subsystem.set_ana(1, 1, AnaState.NON_OPTIMIZED)
    assert outcomes(first, 1) == {Status.SUCCESS}


@pytest.mark.point("Z04", "E02")
def test_a_change_is_told_to_the_host_that_has_the_path_and_wants_to_know(paths: list[Bench]) -> None:
    first, second = (bench.driver.enable() for bench in paths)
    assert ended(first.set_feature(FeatureId.ASYNC_EVENT_CONFIGURATION, ACCESS_NOTICES)) == Status.SUCCESS
    waiting = [
        driver.admin.submit(Command(AdminOpcode.ASYNC_EVENT_REQUEST), cid=900) for driver in (first, second)
    ]
    first.admin.ring()
    second.admin.ring()
    for cntlid, group in ((1, 5), (2, 1), (1, 1)):
        for bench in paths:
            bench.settle()
        assert not first.admin.poll()
        paths[0].device.subsystem.set_ana(cntlid, group, AnaState.INACCESSIBLE)
    assert first.admin.wait(waiting[0]).result == ACCESS_CHANGED
    paths[1].settle()
    assert not second.admin.poll()
    assert log(first)[1][1][0] == AnaState.INACCESSIBLE


@pytest.mark.point("Z04")
def test_a_controller_alone_does_not_speak_of_paths(make_bench: MakeBench) -> None:
    driver = make_bench().driver.enable()
    assert ended(driver.identify(Cns.CONTROLLER)) == Status.SUCCESS
    about = IDENTIFY_CONTROLLER.decode(driver.ram.read(driver.data, PAGE))
    assert [about[name] for name in ("cmic", "anacap", "anagrpmax", "nanagrpid", "anatt")] == [0] * 5
    assert not int(about["oaes"]) & ACCESS_NOTICES
    assert ended(driver.identify(Cns.NAMESPACE, 1)) == Status.SUCCESS
    assert IDENTIFY_NAMESPACE.decode(driver.ram.read(driver.data, PAGE))["anagrpid"] == 0


def test_groups_and_controllers_that_there_are_not_are_refused(paths: list[Bench]) -> None:
    subsystem = paths[0].device.subsystem
    for cntlid, group in ((3, 1), (1, 0), (1, 33)):
        with pytest.raises(DefinitionError):
            subsystem.set_ana(cntlid, group, AnaState.CHANGE)
    with pytest.raises(DefinitionError, match="1 to 32"):
        Namespace(RamStorage(4096), ana_group=33)
