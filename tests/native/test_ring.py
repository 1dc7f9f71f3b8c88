"""A ring loses nothing and keeps the order, whoever is at its ends."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outboard.native.jit import entry
from outboard.native.libc import sched_yield
from outboard.native.memory import load64, store64
from outboard.native.ring import Ring, give, next_free, next_given, take
from tests.native.conftest import Call


@entry
def produce(ring: int, count: int) -> int:
    sent = 0
    while sent < count:
        slot = next_free(ring)
        if slot == 0:
            sched_yield()
        else:
            store64(slot, sent)
            store64(slot + 8, sent * sent)
            give(ring)
            sent += 1
    return sent


@entry
def consume(ring: int, count: int) -> int:
    wrong = 0
    received = 0
    while received < count:
        slot = next_given(ring)
        if slot == 0:
            sched_yield()
        else:
            if load64(slot) != received or load64(slot + 8) != received * received:
                wrong += 1
            take(ring)
            received += 1
    return wrong


@pytest.mark.parametrize("capacity", [1, 3, 64])
def test_two_threads_lose_and_reorder_nothing(call: Call, capacity: int) -> None:
    ring = Ring(capacity, 16)
    count = 50_000 if call(produce) is not produce.plain else 1000
    producer = threading.Thread(target=call(produce), args=(ring.address, count))
    producer.start()
    wrong = call(consume)(ring.address, count)
    producer.join()
    assert (wrong, len(ring)) == (0, 0)


def test_python_reads_what_compiled_code_wrote_and_the_reverse(call: Call) -> None:
    ring = Ring(4, 16)
    assert call(produce)(ring.address, 3) == 3
    assert [ring.pop() for _ in range(4)] == [
        number.to_bytes(8, "little") + (number**2).to_bytes(8, "little") for number in range(3)
    ] + [None]
    for number in range(3):
        assert ring.push(number.to_bytes(8, "little") + (number**2).to_bytes(8, "little"))
    assert call(consume)(ring.address, 3) == 0


def test_a_full_ring_takes_no_more_and_forgets_nothing() -> None:
    ring = Ring(2, 8)
    assert [ring.push(bytes([number] * 8)) for number in range(3)] == [True, True, False]
    assert ring.pop() == bytes(8)
    assert ring.push(b"\2" * 8)
    assert [ring.pop(), ring.pop(), ring.pop()] == [b"\1" * 8, b"\2" * 8, None]


def test_a_message_larger_than_a_slot_is_refused() -> None:
    ring = Ring(2, 8)
    with pytest.raises(ValueError, match="9 bytes does not fit into a slot of 8"):
        ring.push(bytes(9))
    assert len(ring) == 0


def test_a_cleared_ring_is_empty_and_works() -> None:
    ring = Ring(2, 8)
    ring.push(b"obsolete")
    ring.clear()
    assert ring.pop() is None
    assert ring.push(b"the next")
    assert ring.pop() == b"the next"


@given(st.integers(1, 5), st.lists(st.one_of(st.none(), st.binary(min_size=16, max_size=16)), max_size=60))
def test_a_ring_equals_a_queue(capacity: int, steps: list[bytes | None]) -> None:
    """Pushing (bytes) and popping (None) in any order gives what a bounded queue gives."""
    ring, model = Ring(capacity, 16), list[bytes]()
    for step in steps:
        if step is None:
            assert ring.pop() == (model.pop(0) if model else None)
        else:
            assert ring.push(step) == (len(model) < capacity)
            model += [step] if len(model) < capacity else []
        assert len(ring) == len(model)
