"""The rules of reservations, of any number of hosts in any order, without a controller."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outboard.devices.nvme.reservation import (
    ALL_REGISTRANTS,
    MOST_REGISTRANTS,
    Group,
    Host,
    Notification,
    Reservation,
    Type,
    keep,
    kept,
)
from outboard.devices.nvme.status import CommandFailed, Status
from outboard.devices.nvme.store import Store
from outboard.errors import SetupError

A, B, C = (Host(name * 16) for name in (b"A", b"B", b"C"))
NOBODY = Host(b"", 4)
HOSTS = (A, B, C, NOBODY)

KEYS = st.sampled_from([0, 1, 2, 3])
ACTIONS = st.one_of(
    st.tuples(st.just("register"), KEYS),
    st.tuples(st.just("unregister"), st.none() | KEYS),
    st.tuples(st.just("replace_key"), st.none() | KEYS, KEYS),
    st.tuples(st.just("acquire"), KEYS, st.sampled_from(Type)),
    st.tuples(st.just("preempt"), KEYS, KEYS, st.sampled_from(Type)),
    st.tuples(st.just("release"), KEYS, st.sampled_from(Type)),
    st.tuples(st.just("clear"), KEYS),
)


def check(reservation: Reservation) -> None:
    """What is always so."""
    holders = {host for host in HOSTS if reservation.holds(host)}
    assert holders <= set(reservation.keys)
    assert bool(holders) == (reservation.type is not None)
    if reservation.type not in ALL_REGISTRANTS:
        assert len(holders) <= 1
    for host in HOSTS:
        assert not reservation.conflicts(host, Group.OTHER)
        if host in holders or reservation.type is None:
            assert not reservation.conflicts(host, Group.READ)
            assert not reservation.conflicts(host, Group.WRITE)
        elif host not in reservation.keys:
            assert reservation.conflicts(host, Group.WRITE)
    assert Reservation.load(reservation.save()) == reservation


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(HOSTS), ACTIONS), max_size=40))
@pytest.mark.point("N14")
def test_whatever_hosts_do_the_reservation_has_its_holder_among_the_registrants(
    actions: list[tuple[Host, Any]],
) -> None:
    reservation = Reservation()
    for host, (name, *arguments) in actions:
        before = reservation.copy()
        try:
            outcome = getattr(reservation, name)(host, *arguments)
        except CommandFailed:
            assert reservation == before
            continue
        check(reservation)
        victims, notices = outcome if name == "preempt" else (set(), outcome)
        assert host not in [who for who, _ in notices]
        lost = set(before.keys) - set(reservation.keys)
        assert victims == (lost if name == "preempt" else set())
        told = {who for who, what in notices if what != Notification.RESERVATION_RELEASED}
        assert told == (lost - {host})
        assert (reservation.generation != before.generation) == (name not in ("acquire", "release"))


def test_a_reservation_outlives_a_power_cycle_if_it_is_to(tmp_path: Any) -> None:
    store = Store(tmp_path / "state")
    reservation = Reservation()
    reservation.register(A, 5)
    reservation.register(NOBODY, 6)
    reservation.acquire(A, 5, Type.EXCLUSIVE_ACCESS)
    keep(store, 3, reservation)
    assert kept(Store(store.path), 3) == Reservation()
    reservation.persistent = True
    keep(store, 3, reservation)
    again = kept(Store(store.path), 3)
    assert again.keys == {A: 5}, "a host without an identifier is another one after a reset"
    assert again.holds(A)
    assert (again.generation, again.persistent) == (0, True), "the generation counts from the power cycle on"
    assert kept(Store(store.path), 4) == Reservation()


@pytest.mark.parametrize(
    "section", [[], {"1": 5}, {"1": {"keys": [["zz", 0, 1]]}}, {"1": {"keys": [], "type": 1, "holder": None}}]
)
def test_a_store_with_nonsense_for_a_reservation_is_named(section: object) -> None:
    store = Store()
    store.put("reservations", section)
    with pytest.raises(SetupError, match="namespace 1"):
        kept(store, 1)


def test_there_is_an_end_to_registrants() -> None:
    reservation = Reservation()
    for number in range(MOST_REGISTRANTS):
        reservation.register(Host(number.to_bytes(8, "big")), 1)
    with pytest.raises(CommandFailed) as refused:
        reservation.register(A, 1)
    assert refused.value.status == Status.RESERVATION_CONFLICT
    assert len(reservation.keys) == MOST_REGISTRANTS
