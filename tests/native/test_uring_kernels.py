"""Kernels that are older, or busier, than the one at hand."""

import ctypes
import errno
import os

import pytest

from outboard.errors import SetupError
from outboard.native import uring
from outboard.native.libc import SYS_IO_URING_ENTER, SYS_IO_URING_SETUP, system_call
from outboard.native.memory import address_of, load_acquire32
from outboard.native.translation import Translation

MISSING = uring.available()
needs_uring = pytest.mark.skipif(bool(MISSING), reason=MISSING)
FLAGS_AT, FEATURES_AT = 8, 20


@needs_uring
def test_a_kernel_without_cooperative_completion_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def older(number: int, *arguments: int) -> int:
        if number == SYS_IO_URING_SETUP:
            asked.append(ctypes.c_uint32.from_address(arguments[1] + FLAGS_AT).value)
            if asked[-1]:
                return -errno.EINVAL
        return system_call(number, *arguments)

    monkeypatch.setattr(uring, "system_call", older)
    with uring.Ring(4) as ring:
        assert ring.fd >= 0
    assert len(asked) == 2
    assert asked[1] == 0
    monkeypatch.setattr(uring, "system_call", lambda *_: -errno.EINVAL)
    with pytest.raises(SetupError, match="cannot be made"):
        uring.Ring(4)


@needs_uring
def test_a_kernel_that_is_too_old_is_refused_and_nothing_leaks(monkeypatch: pytest.MonkeyPatch) -> None:
    def much_older(number: int, *arguments: int) -> int:
        result = system_call(number, *arguments)
        ctypes.c_uint32.from_address(arguments[1] + FEATURES_AT).value = 1
        return result

    monkeypatch.setattr(uring, "system_call", much_older)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(SetupError, match="too old"):
        uring.Ring(4)
    assert len(os.listdir("/proc/self/fd")) == len(before)


@needs_uring
@pytest.mark.parametrize("failure", [errno.EINTR, errno.EBADF])
def test_closing_waits_on_when_interrupted_and_says_what_else_is_wrong(
    monkeypatch: pytest.MonkeyPatch, failure: int
) -> None:
    ring = uring.Ring(4)
    readable, writable = os.pipe()
    buffer = bytearray(8)
    uring.uring_prepare(ring.address, uring.OP_READ, readable, address_of(buffer), 8, 0, 0, 0, 1)
    assert uring.uring_submit(ring.address) == 1
    failures = [failure]

    def interrupted(number: int, *arguments: int) -> int:
        waits = number == SYS_IO_URING_ENTER and arguments[2] == 1
        if waits and failures:
            return -failures.pop()
        if number == SYS_IO_URING_ENTER and failures and not arguments[1]:
            return 0
        return system_call(number, *arguments)

    reap = uring.uring_reap

    def reap_later(address: int, out: int) -> int:
        return 0 if failures else reap(address, out)

    monkeypatch.setattr(uring, "system_call", interrupted)
    monkeypatch.setattr(uring, "uring_reap", reap_later)
    if failure == errno.EINTR:
        ring.close()
    else:
        with pytest.raises(OSError, match="Bad file"):
            ring.close()
    assert ring.fd == -1
    os.close(writable)
    os.close(readable)


def test_a_translation_says_whether_it_finds_anything_at_all() -> None:
    table = Translation()
    assert table.enabled
    table.enabled = False
    assert not table.enabled


@needs_uring
def test_a_completion_that_the_kernel_holds_back_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    with uring.Ring(4) as ring:
        uring.uring_prepare(ring.address, uring.OP_NOP, -1, 0, 0, 0, 0, 0, 7)
        assert uring.uring_submit(ring.address) == 1
        out, tails = bytearray(16), [0]
        with monkeypatch.context() as patch:
            patch.setattr(uring, "load32", lambda address: uring._SQ_OVERFLOW_OR_TASKRUN)
            patch.setattr(
                uring, "load_acquire32", lambda address: tails.pop() if tails else load_acquire32(address)
            )
            assert uring.uring_reap(ring.address, address_of(out)) == 1
        assert out[0] == 7
