"""io_uring does what pread and pwrite do: called from Python, and compiled."""

import ctypes
import errno
import mmap
import os
import resource
import select
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from outboard.errors import SetupError
from outboard.native import jit, uring
from outboard.native.jit import entry
from outboard.native.memory import address_of, store64

SIZE = 1 << 16
MISSING = uring.available()
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)


@entry
def prepare(ring: int, op: int, fd: int, at: int, size: int, offset: int, rw: int, sqe: int, tag: int) -> int:
    return uring.uring_prepare(ring, op, fd, at, size, offset, rw, sqe, tag)


@entry
def submit(ring: int) -> int:
    return uring.uring_submit(ring)


@entry
def reap(ring: int, out: int) -> int:
    return uring.uring_reap(ring, out)


@entry
def counts(ring: int) -> int:
    return uring.uring_unsubmitted(ring) << 16 | uring.uring_in_flight(ring)


class Queue:
    """A ring, a file, and memory; every call goes through one lane."""

    def __init__(self, lane: str, entries: int, fd: int) -> None:
        calls = (prepare, submit, reap, counts)
        self.prepare, self.submit, self.reap, self.counts = (
            call.plain if lane == "plain" else call.native for call in calls
        )
        self.ring = uring.Ring(entries)
        self.fd = fd
        self.memory = mmap.mmap(-1, SIZE)
        self.base = address_of(self.memory)
        self.out = bytearray(16)

    def ask(self, op: int, at: int = 0, size: int = 0, offset: int = 0, tag: int = 0, **more: int) -> int:
        fd, rw, sqe = more.get("fd", self.fd), more.get("rw", 0), more.get("sqe", 0)
        return self.prepare(self.ring.address, op, fd, self.base + at, size, offset, rw, sqe, tag)

    def send(self) -> int:
        return self.submit(self.ring.address)

    def take(self) -> tuple[int, int] | None:
        """What has completed, if anything: what it was tagged with, and its result."""
        if not self.reap(self.ring.address, address_of(self.out)):
            return None
        return int.from_bytes(self.out[:8], "little"), int.from_bytes(self.out[8:], "little", signed=True)

    def wait(self, count: int = 1) -> dict[int, int]:
        """Results by tag, once there are so many."""
        results: dict[int, int] = {}
        poll = select.poll()
        poll.register(self.ring.fd, select.POLLIN)
        while len(results) < count:
            if completion := self.take():
                results[completion[0]] = completion[1]
            else:
                assert poll.poll(10_000), "nothing completes"
        return results

    def vector(self, *segments: tuple[int, int]) -> int:
        """An iovec array at the end of memory; its place."""
        at = SIZE - 16 * len(segments)
        for number, (start, size) in enumerate(segments):
            store64(self.base + at + 16 * number, self.base + start)
            store64(self.base + at + 16 * number + 8, size)
        return at


@pytest.fixture(params=["plain", "native"])
def lane(request: pytest.FixtureRequest) -> str:
    if request.param == "native" and not jit.available():
        pytest.skip("Numba is not installed")
    return str(request.param)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


@pytest.fixture
def queue(lane: str, file: int) -> Iterator[Queue]:
    queue = Queue(lane, 8, file)
    yield queue
    queue.ring.close()


def test_a_read_gives_what_pwrite_wrote(queue: Queue) -> None:
    os.pwrite(queue.fd, b"outboard", 4096)
    assert queue.ask(uring.OP_READ, 100, 8, 4096, tag=7) == 1
    assert queue.take() is None
    assert queue.send() == 1
    assert queue.wait() == {7: 8}
    assert queue.memory[100:108] == b"outboard"


def test_pread_gives_what_a_write_wrote(queue: Queue) -> None:
    queue.memory[:8] = b"outboard"
    queue.ask(uring.OP_WRITE, 0, 8, 1 << 33, tag=1)
    queue.ask(uring.OP_WRITE, 0, 3, 0, tag=2, rw=uring.RWF_DSYNC)
    assert queue.send() == 2
    assert queue.wait(2) == {1: 8, 2: 3}
    assert os.pread(queue.fd, 9, 1 << 33) == b"outboard"
    assert os.pread(queue.fd, 3, 0) == b"out"


def test_vectors_scatter_and_gather(queue: Queue) -> None:
    queue.memory[:9] = b"abcdefghi"
    vector = queue.vector((6, 3), (0, 3), (3, 3))
    queue.ask(uring.OP_WRITEV, vector, 3, 10)
    queue.send()
    assert queue.wait() == {0: 9}
    assert os.pread(queue.fd, 9, 10) == b"ghiabcdef"
    vector = queue.vector((1000, 4), (2000, 5))
    queue.ask(uring.OP_READV, vector, 2, 10)
    queue.send()
    assert queue.wait() == {0: 9}
    assert (queue.memory[1000:1004], queue.memory[2000:2005]) == (b"ghia", b"bcdef")


def test_a_vector_may_be_reused_once_it_is_submitted(queue: Queue) -> None:
    os.pwrite(queue.fd, b"ab", 0)
    for number in range(2):
        vector = queue.vector((number, 1))
        queue.ask(uring.OP_READV, vector, 1, number, tag=number)
        queue.send()
    assert queue.wait(2) == {0: 1, 1: 1}
    assert queue.memory[:2] == b"ab"


def test_a_read_at_the_end_of_the_file_is_short(queue: Queue) -> None:
    os.pwrite(queue.fd, b"end", 0)
    queue.ask(uring.OP_READ, 0, 512, 1, tag=1)
    queue.ask(uring.OP_READ, 0, 512, 3, tag=2)
    queue.send()
    assert queue.wait(2) == {1: 2, 2: 0}


def test_failures_are_the_request_s_and_carry_the_errno(queue: Queue) -> None:
    os.pwrite(queue.fd, b"good", 0)
    queue.ask(uring.OP_READ, 0, 4, tag=1, fd=-1)
    queue.ask(255, tag=2)
    queue.ask(uring.OP_READ, 1 << 50, 4, tag=3)
    queue.ask(uring.OP_READ, 0, 4, tag=4)
    assert queue.send() == 4
    assert queue.wait(4) == {1: -errno.EBADF, 2: -errno.EINVAL, 3: -errno.EFAULT, 4: 4}


def test_a_ring_takes_no_more_than_it_can_complete(queue: Queue) -> None:
    for tag in range(8):
        assert queue.ask(uring.OP_NOP, tag=tag) == 1
    assert queue.ask(uring.OP_NOP) == 0
    assert queue.counts(queue.ring.address) == 8 << 16
    assert queue.send() == 8
    assert queue.counts(queue.ring.address) == 8
    assert queue.ask(uring.OP_NOP) == 0, "none has been reaped"
    assert queue.take() == (0, 0)
    assert queue.ask(uring.OP_NOP, tag=8) == 1
    assert queue.ask(uring.OP_NOP) == 0
    queue.send()
    assert queue.wait(8) == dict.fromkeys(range(1, 9), 0)
    assert queue.counts(queue.ring.address) == 0


def test_a_ring_takes_as_many_as_it_was_made_for_and_not_the_next_power_of_two(file: int, lane: str) -> None:
    queue = Queue(lane, 5, file)
    assert [queue.ask(uring.OP_NOP) for _ in range(6)] == [1, 1, 1, 1, 1, 0]
    queue.ring.close()


def test_nothing_to_submit_is_nothing(queue: Queue) -> None:
    assert queue.send() == 0
    assert queue.take() is None


def test_fsync_completes(queue: Queue) -> None:
    os.pwrite(queue.fd, b"data", 0)
    queue.ask(uring.OP_FSYNC, -queue.base, rw=uring.FSYNC_DATASYNC, tag=9)
    queue.send()
    assert queue.wait() == {9: 0}


def test_a_request_under_way_can_be_cancelled(queue: Queue) -> None:
    reader, writer = os.pipe()
    queue.ask(uring.OP_READ, 0, 1, fd=reader, tag=77)
    queue.send()
    assert queue.take() is None
    queue.ask(uring.OP_ASYNC_CANCEL, 77 - queue.base, fd=-1, tag=1)
    queue.send()
    assert queue.wait(2) == {77: -errno.ECANCELED, 1: 0}
    queue.ask(uring.OP_ASYNC_CANCEL, 77 - queue.base, fd=-1, tag=1)
    queue.send()
    assert queue.wait() == {1: -errno.ENOENT}
    os.close(reader)
    os.close(writer)


def test_files_are_named_by_index_once_registered(queue: Queue, tmp_path: Path) -> None:
    other = os.open(tmp_path / "other", os.O_RDWR | os.O_CREAT)
    os.pwrite(queue.fd, b"1", 0)
    os.pwrite(other, b"2", 0)

    def read(index: int) -> int | bytes:
        queue.ask(uring.OP_READ, 0, 1, fd=index, sqe=uring.FIXED_FILE)
        queue.send()
        result = queue.wait()[0]
        return queue.memory[:1] if result == 1 else result

    assert read(0) == -errno.EBADF
    queue.ring.register_files([queue.fd, -1, other])
    os.close(other)
    assert [read(index) for index in range(4)] == [b"1", -errno.EBADF, b"2", -errno.EBADF]
    queue.ring.register_files([queue.fd])
    assert [read(0), read(2)] == [b"1", -errno.EBADF]
    queue.ring.register_files([])
    assert read(0) == -errno.EBADF
    with pytest.raises(OSError, match="descriptor"):
        queue.ring.register_files([1 << 30])


def test_one_thread_may_submit_and_another_reap(queue: Queue) -> None:
    reader, writer = os.pipe()
    queue.ask(uring.OP_READ, 0, 1, fd=reader, tag=5)
    submitted, done = threading.Event(), threading.Event()

    def poller() -> None:
        queue.send()
        submitted.set()
        done.wait()

    thread = threading.Thread(target=poller)
    thread.start()
    submitted.wait()
    os.write(writer, b"x")
    assert queue.wait() == {5: 1}
    done.set()
    thread.join()
    os.close(reader)
    os.close(writer)


def test_a_ring_goes_round_and_round(queue: Queue) -> None:
    for _ in range(1000):
        for tag in range(8):
            queue.ask(uring.OP_NOP, tag=tag)
        assert queue.send() == 8
        assert [queue.take() for _ in range(8)] == [(tag, 0) for tag in range(8)]


def test_a_closed_ring_has_ended_what_was_under_way(file: int, lane: str) -> None:
    reader, writer = os.pipe()
    before = set(os.listdir("/proc/self/fd"))
    queue = Queue(lane, 1, file)
    queue.ask(uring.OP_READ, 0, 1, fd=reader)
    queue.send()
    assert queue.take() is None
    queue.ring.close()
    queue.ring.close()
    os.write(writer, b"x")
    assert os.read(reader, 1) == b"x", "no one else has read it"
    assert queue.memory[:1] == b"\0"
    assert set(os.listdir("/proc/self/fd")) == before
    os.close(reader)
    os.close(writer)


def test_what_was_not_submitted_is_forgotten_when_the_ring_is_closed(file: int, lane: str) -> None:
    queue = Queue(lane, 2, file)
    queue.memory[:4] = b"data"
    queue.ask(uring.OP_WRITE, 0, 4)
    queue.ring.close()
    assert os.fstat(file).st_size == 0


@pytest.mark.parametrize("entries", [0, -1, 32769])
def test_a_ring_of_no_possible_size_is_refused(entries: int) -> None:
    with pytest.raises(SetupError, match="entries cannot be"):
        uring.Ring(entries)


def test_a_ring_that_cannot_be_made_leaves_no_descriptor_behind() -> None:
    # A ring takes three descriptors: its own, and one for each of the two mappings.
    before = os.listdir("/proc/self/fd")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, before)) + 8, limits[1]))
    spare: list[int] = []
    try:
        with suppress(OSError):
            while True:
                spare.append(os.dup(0))
        for _ in range(3):
            with pytest.raises((SetupError, OSError), match="Too many open files"):
                uring.Ring(8)
            os.close(spare.pop())
        uring.Ring(8).close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for fd in spare:
            os.close(fd)
    assert len(os.listdir("/proc/self/fd")) == len(before)


def where_refused(call: int, code: int, function: Callable[[], object]) -> object:
    """What ``function`` returns or raises in a thread whose system call ``call`` fails with ``code``."""
    # seccomp(2): load the number of the call; if it is this one, the errno; otherwise allow.
    steps = [(0x20, 0, 0, 0), (0x15, 0, 1, call), (0x06, 0, 0, 0x50000 | code), (0x06, 0, 0, 0x7FFF0000)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    results: list[object] = []

    def run() -> None:
        libc = ctypes.CDLL(None)
        filters = struct.pack("@HP", len(steps), ctypes.addressof(program))
        assert libc.prctl(38, 1, 0, 0, 0) == 0
        assert libc.prctl(22, 2, filters) == 0
        try:
            results.append(function())
        except OSError as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return results[0]


@pytest.mark.parametrize(
    ("call", "code", "setting", "sentence"),
    [
        (425, errno.EPERM, "0", "seccomp profile"),
        (425, errno.EPERM, "2", "sysctl kernel.io_uring_disabled=0"),
        (425, errno.ENOSYS, "0", "Linux 5.6 or newer"),
        (425, errno.ENOMEM, "0", "ulimit -l"),
        (425, errno.EMFILE, "0", "Too many open files"),
        (426, errno.EACCES, "0", "seccomp profile"),
    ],
)
def test_where_there_is_no_io_uring_the_reason_is_said(
    call: int, code: int, setting: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "disabled").write_text(f"{setting}\n")
    monkeypatch.setattr(uring, "_DISABLED", tmp_path / "disabled")
    assert sentence in str(where_refused(call, code, uring.available))


@pytest.mark.parametrize(
    ("code", "result"),
    [(errno.EAGAIN, 0), (errno.EBUSY, 0), (errno.EINTR, 0), (errno.ENXIO, -errno.ENXIO)],
)
def test_what_could_not_be_submitted_stays_for_the_next_time(queue: Queue, code: int, result: int) -> None:
    queue.ask(uring.OP_NOP, tag=1)
    assert where_refused(426, code, queue.send) == result
    assert queue.counts(queue.ring.address) == 1 << 16
    queue.ask(uring.OP_NOP, tag=2)
    assert queue.send() == 2
    assert queue.wait(2) == {1: 0, 2: 0}


def test_a_ring_that_cannot_be_waited_for_is_closed_all_the_same(file: int, lane: str) -> None:
    before = os.listdir("/proc/self/fd")
    queue = Queue(lane, 4, file)
    reader, writer = os.pipe()
    queue.ask(uring.OP_NOP)
    queue.ask(uring.OP_READ, 0, 1, fd=reader)
    queue.send()
    error = where_refused(426, errno.EPERM, queue.ring.close)
    assert isinstance(error, OSError)
    os.close(reader)
    os.close(writer)
    assert os.listdir("/proc/self/fd") == before


def test_a_write_under_way_has_happened_or_not_once_the_ring_is_closed(file: int, lane: str) -> None:
    queue = Queue(lane, 1, file)
    in_a_worker = 16
    queue.ask(uring.OP_WRITE, 0, SIZE, rw=uring.RWF_DSYNC, sqe=in_a_worker)
    queue.send()
    queue.ring.close()
    assert os.fstat(file).st_size in (0, SIZE)


Step = tuple[bool, int, int, bool]
STEPS = st.tuples(st.booleans(), st.integers(0, 6000), st.integers(1, 3000), st.booleans())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=50)
@given(batches=st.lists(st.lists(STEPS, max_size=8), max_size=6))
def test_batches_do_what_pread_and_pwrite_do(queue: Queue, batches: list[list[Step]]) -> None:
    """Any batches of reads and writes, vectored or not, leave and return what pread and pwrite do.

    Within a batch requests run in any order, so its ranges are kept apart.
    """
    os.ftruncate(queue.fd, 0)
    model = bytearray()
    stamp = 0
    for batch in batches:
        taken: list[range] = []
        expected: dict[int, bytes] = {}
        pending: list[tuple[int, bytes]] = []
        for tag, (write, offset, size, vectored) in enumerate(batch):
            if any(offset < other.stop and other.start < offset + size for other in taken):
                continue
            taken.append(range(offset, offset + size))
            at = tag * 4096
            stamp += 1
            data = bytes([stamp % 255 + 1]) * size if write else bytes(size)
            queue.memory[at : at + size] = data
            op, place, count = (uring.OP_WRITE if write else uring.OP_READ), at, size
            if vectored:
                op, count = (uring.OP_WRITEV if write else uring.OP_READV), 2
                place = SIZE - 32 * (tag + 1)
                for number, (start, length) in enumerate(
                    [(at, size // 2), (at + size // 2, size - size // 2)]
                ):
                    store64(queue.base + place + 16 * number, queue.base + start)
                    store64(queue.base + place + 16 * number + 8, length)
            assert queue.ask(op, place, count, offset, tag=tag) == 1
            if write:
                pending.append((offset, data))
            else:
                expected[tag] = b""
        queue.send()
        ends = len(model)
        results = queue.wait(len(taken)) if taken else {}
        for offset, data in pending:
            model.extend(bytes(max(0, offset + len(data) - len(model))))
            model[offset : offset + len(data)] = data
        for tag in expected:
            _, offset, size, _ = batch[tag]
            # A write further back in the same batch moves the end of the file before or after this read.
            got = bytes(queue.memory[tag * 4096 : tag * 4096 + max(results[tag], 0)])
            assert max(0, min(size, ends - offset)) <= len(got) <= max(0, min(size, len(model) - offset))
            assert got == model[offset : offset + len(got)]
        assert all(results[tag] == batch[tag][2] for tag in results if tag not in expected)
    assert os.pread(queue.fd, SIZE, 0) == model
