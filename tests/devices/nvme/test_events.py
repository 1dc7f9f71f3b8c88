"""Asynchronous events: what is told, when, how often, and that it is never a storm."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outboard.devices.nvme import events as known
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.events import Event, Events
from outboard.devices.nvme.layouts import IDENTIFY_CONTROLLER
from outboard.devices.nvme.spec import AdminOpcode, Cns, EventType, FeatureId, LogId
from outboard.devices.nvme.status import CommandFailed, Status
from outboard.storage import RamStorage
from tests.devices.nvme.bench import Bench
from tests.devices.nvme.driver import Driver, ended

REQUEST = Command(AdminOpcode.ASYNC_EVENT_REQUEST)
EVENTS = [each for each in vars(known).values() if isinstance(each, Event)]
LIMIT = 4


@pytest.fixture
def lane() -> str:
    """Events are of the admin queue."""
    return "plain"


def results(events: Events) -> list[int]:
    """What is told now."""
    found = []
    while events.due:
        ending = events.next_ending()
        assert ending is not None
        found.append(ending[2])
    return found


def test_there_is_an_event_for_each_thing_to_tell() -> None:
    assert len(EVENTS) == 10
    assert len({event.result for event in EVENTS}) == 10


@pytest.mark.point("E03")
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("post"), st.sampled_from(EVENTS)),
            st.tuples(st.just("park"), st.integers(0, 5)),
            st.tuples(st.just("read"), st.sampled_from([event.log for event in EVENTS])),
            st.tuples(st.just("abort"), st.integers(0, 5)),
            st.tuples(st.just("want"), st.integers(0, (1 << 32) - 1)),
        )
    )
)
def test_no_type_is_told_twice_without_its_log_being_read(steps: list[tuple[str, object]]) -> None:
    events = Events(LIMIT)
    parked: list[int] = []
    unread: dict[EventType, LogId] = {}
    posted: set[Event] = set()
    for step, value in steps:
        if step == "post":
            assert isinstance(value, Event)
            events.post(value)
            posted.add(value)
        elif step == "read":
            assert isinstance(value, LogId)
            events.log_was_read(value)
            unread = {kind: log for kind, log in unread.items() if log != value}
            posted = {event for event in posted if event.log != value}
        elif step == "want":
            assert isinstance(value, int)
            events.configured(value)
            posted = {event for event in posted if not event.wanted_by or event.wanted_by & value}
        elif step == "abort":
            assert isinstance(value, int)
            assert events.abort(value) == (value in parked)
            if value in parked:
                parked.remove(value)
                assert events.next_ending() == (value, Status.ABORT_REQUESTED, 0)
        else:
            assert isinstance(value, int)
            if len(parked) == LIMIT:
                with pytest.raises(CommandFailed) as refused:
                    events.park(value)
                assert refused.value.status == Status.EVENT_REQUEST_LIMIT_EXCEEDED
            else:
                events.park(value)
                parked.append(value)
        while events.due:
            ending = events.next_ending()
            assert ending is not None
            cid, status, result = ending
            assert cid == parked.pop(0), "in the order of the requests"
            assert status == Status.SUCCESS
            event = next(each for each in EVENTS if each.result == result)
            assert event in posted
            posted.remove(event)
            assert event.type not in unread
            unread[event.type] = event.log
        held = {event for event in posted if event.type not in unread}
        assert not (parked and held), "nothing is held back that could be told"
    assert set(events.waiting) == posted, "and nothing is lost"


@pytest.mark.point("E02")
def test_notices_are_told_in_their_order_each_when_the_log_of_the_last_was_read() -> None:
    events = Events(LIMIT)
    for cid in range(4):
        events.park(cid)
    for event in (known.ACCESS_CHANGED, known.NAMESPACE_CHANGED, known.TELEMETRY_CHANGED):
        events.post(event)
    assert results(events) == [known.ACCESS_CHANGED.result]
    events.log_was_read(LogId.FIRMWARE_SLOT)
    assert results(events) == []
    events.log_was_read(LogId.NAMESPACE_ACCESS)
    assert results(events) == [known.NAMESPACE_CHANGED.result]
    events.log_was_read(LogId.NAMESPACE_ACCESS)
    assert results(events) == [], "that is not its log"
    events.log_was_read(LogId.CHANGED_NAMESPACES)
    assert results(events) == [known.TELEMETRY_CHANGED.result]


@pytest.mark.point("E02")
def test_types_do_not_wait_for_each_other() -> None:
    events = Events(LIMIT)
    for cid in range(4):
        events.park(cid)
    told = (known.NAMESPACE_CHANGED, known.INVALID_DOORBELL_VALUE, known.SANITIZE_COMPLETED)
    for event in told:
        events.post(event)
    assert results(events) == [event.result for event in told]


@pytest.mark.point("E02")
def test_the_log_of_one_namespace_does_not_clear_the_event_of_another() -> None:
    events = Events(LIMIT)
    for cid in range(4):
        events.park(cid)
    first, second, third = (replace(known.ZONE_CHANGED, detail=nsid) for nsid in (1, 2, 3))
    for event in (first, second, third):
        events.post(event)
    assert results(events) == [first.result]
    events.log_was_read(LogId.CHANGED_ZONES, 2)
    assert results(events) == [], "it is the first that was told"
    events.log_was_read(LogId.CHANGED_ZONES, 1)
    assert results(events) == [third.result], "the second was read of"


Happen = Callable[[Bench], None]


def add(bench: Bench) -> None:
    bench.device.subsystem.add(RamStorage(1 << 20))


def remove(bench: Bench) -> None:
    bench.device.subsystem.remove(2).storage.close()


def resize(bench: Bench) -> None:
    storage = bench.device.namespaces[1].storage
    storage.size = 1 << 20
    bench.device.refresh(1)


def ring_for_no_queue(bench: Bench) -> None:
    bench.bar.write32(0x1FF8, 0)


def wear_out(bench: Bench) -> None:
    bench.device.subsystem.set_vitals(spare=0)


@pytest.mark.point("E02", "E03")
@pytest.mark.parametrize(
    ("happens", "event", "bit"),
    [
        (add, known.NAMESPACE_CHANGED, 1 << 8),
        (remove, known.NAMESPACE_CHANGED, 1 << 8),
        (resize, known.NAMESPACE_CHANGED, 1 << 8),
        (wear_out, known.TELEMETRY_CHANGED, 1 << 10),
        (ring_for_no_queue, known.INVALID_DOORBELL_REGISTER, 0),
    ],
)
@pytest.mark.parametrize("first", ["request", "event"])
def test_what_happens_is_told_once_to_a_host_that_wants_to_know(
    bench: Bench, happens: Happen, event: Event, bit: int, first: str
) -> None:
    driver = bench.driver.enable()
    driver.set_feature(FeatureId.ASYNC_EVENT_CONFIGURATION, bit)
    if first == "event":
        happens(bench)
        bench.settle()
        assert driver.admin.poll() == [], "it waits for a request"
    for cid in range(100, 104):
        driver.admin.submit(REQUEST, cid=cid)
    driver.admin.ring()
    if first == "request":
        happens(bench)
    assert driver.admin.wait(100).result == event.result
    bench.settle()
    assert driver.admin.poll() == [], "one is enough"


@pytest.mark.point("E02")
@pytest.mark.parametrize("happens", [add, wear_out])
def test_what_a_host_does_not_want_to_know_is_not_kept_for_it(bench: Bench, happens: Happen) -> None:
    driver = bench.driver.enable()
    driver.set_feature(FeatureId.ASYNC_EVENT_CONFIGURATION, 0)
    happens(bench)
    driver.set_feature(FeatureId.ASYNC_EVENT_CONFIGURATION, 0x500)
    driver.admin.submit(REQUEST, cid=100)
    driver.admin.ring()
    bench.settle()
    assert driver.admin.poll() == []


@pytest.mark.point("E03")
def test_nothing_of_it_survives_a_reset(bench: Bench) -> None:
    driver = bench.driver.enable()
    driver.set_feature(FeatureId.ASYNC_EVENT_CONFIGURATION, 0x100)
    add(bench)
    driver.disable()
    driver.enable()
    driver.admin.submit(REQUEST, cid=100)
    driver.admin.ring()
    bench.settle()
    assert driver.admin.poll() == []
    driver.get_log(LogId.CHANGED_NAMESPACES)
    assert driver.ram.read(driver.data, 4) == bytes(4)


@pytest.mark.point("I04", "E02")
def test_the_notices_that_are_offered_are_those_that_can_be_set(driver: Driver) -> None:
    assert ended(driver.identify(Cns.CONTROLLER)) == Status.SUCCESS
    oaes = IDENTIFY_CONTROLLER.decode(driver.ram.read(driver.data, 4096))["oaes"]
    driver.set_feature(FeatureId.ASYNC_EVENT_CONFIGURATION, 0xFFFF_FFFF)
    wanted = driver.get_feature(FeatureId.ASYNC_EVENT_CONFIGURATION).result
    implied = known.TELEMETRY_NOTICES | known.ACCESS_NOTICES
    assert wanted == int(oaes) | 0xFF | implied, "which the support of telemetry, and of ANA, goes with"
