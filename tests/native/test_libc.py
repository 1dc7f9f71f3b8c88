"""System calls, the clock and eventfds, plain and compiled."""

import errno
import os
import time
from collections.abc import Iterator

import pytest

from outboard.native import libc
from outboard.native.jit import entry
from outboard.native.words import Block, Record, offsets
from tests.native.conftest import Call


@entry
def system_call(number: int, a: int, b: int, c: int, d: int, e: int, f: int) -> int:
    return libc.system_call(number, a, b, c, d, e, f)


@entry
def clock() -> int:
    return libc.monotonic_ns()


@entry
def write_eventfd(fd: int, scratch: int) -> int:
    return libc.write_eventfd(fd, scratch)


@entry
def drain_eventfd(fd: int, scratch: int) -> int:
    return libc.drain_eventfd(fd, scratch)


@entry
def poll_in(first: int, second: int, timeout: int, scratch: int) -> int:
    libc.sched_yield()
    return libc.poll_in(first, second, timeout, scratch)


@pytest.fixture
def eventfd() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    yield fd
    os.close(fd)


def test_a_system_call_gives_its_result_or_minus_its_errno(call: Call) -> None:
    assert call(system_call)(libc.SYS_GETPID, 0, 0, 0, 0, 0, 0) == os.getpid()
    assert call(system_call)(libc.SYS_READ, -1, 0, 0, 0, 0, 0) == -errno.EBADF


def test_the_clock_is_the_monotonic_clock(call: Call) -> None:
    before = time.monotonic_ns()
    now = call(clock)()
    assert before <= now <= time.monotonic_ns()


def test_an_eventfd_is_written_and_drained(call: Call, eventfd: int) -> None:
    scratch = Block(64)
    assert call(drain_eventfd)(eventfd, scratch.address) == 0
    assert call(write_eventfd)(eventfd, scratch.address) == 8
    assert call(write_eventfd)(eventfd, scratch.address) == 8
    assert call(drain_eventfd)(eventfd, scratch.address) == 2
    assert call(drain_eventfd)(eventfd, scratch.address) == 0


@pytest.mark.parametrize("timeout", [0, 1, 1_000_000, 1_500_000_000 // 1000])
def test_waiting_ends_when_the_time_is_over(call: Call, eventfd: int, timeout: int) -> None:
    assert call(poll_in)(eventfd, -1, timeout, Block(64).address) == 0


@pytest.mark.parametrize("timeout", [-1, 0, 3_000_000_000])
@pytest.mark.parametrize("place", [0, 1])
def test_waiting_ends_when_one_of_two_is_readable(call: Call, eventfd: int, timeout: int, place: int) -> None:
    os.eventfd_write(eventfd, 1)
    first, second = (eventfd, -1) if place == 0 else (-1, eventfd)
    assert call(poll_in)(first, second, timeout, Block(64).address) == 1


def test_a_block_is_zeroed_words_that_do_not_move() -> None:
    block = Block(4096)
    assert bytes(block.bytes) == bytes(4096)
    block[8] = -(1 << 63)
    assert (block[8], block.words[1], block.bytes[15]) == (-(1 << 63), -(1 << 63), 0x80)
    with pytest.raises(ValueError, match="invalid value"):
        block[0] = 1 << 63
    with pytest.raises(IndexError):
        block[4096] = 1


def test_a_record_is_a_part_of_its_block() -> None:
    block = Block(128)
    record = Record(block, 64)
    record[8] = 7
    assert block[72] == 7
    assert record.address == block.address + 64
    assert offsets(3, start=64) == (64, 72, 80)


def test_a_forked_process_has_blocks_of_its_own() -> None:
    block = Block(64)
    child = os.fork()
    if not child:
        block[0] = 1
        os._exit(0)
    os.waitpid(child, 0)
    assert block[0] == 0
