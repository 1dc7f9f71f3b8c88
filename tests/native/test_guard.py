"""A client that shrinks its memory gets zeros and a line in the log; every other SIGBUS is what it was."""

import signal
import subprocess
import sys

import pytest

from outboard.native import jit

PRELUDE = """
import ctypes, logging, mmap, os, signal, sys, threading
from outboard import GuestMemory, Mapping
from outboard.native import guard, memory
from outboard.native.jit import entry
from outboard.native.translation import READ, WRITE, translate

PAGE = mmap.PAGESIZE
logging.basicConfig(stream=sys.stdout, format="%(levelname)s %(message)s")

def torn(size=16 * PAGE, keep=PAGE):
    "Guest memory of which all but the beginning is gone."
    guest = GuestMemory()
    fd = os.memfd_create("guest")
    os.truncate(fd, size)
    os.pwrite(fd, b"\\xaa" * size, 0)
    guest.map(Mapping(0x10000, size, fd=os.dup(fd)))
    os.truncate(fd, keep)
    os.close(fd)
    return guest

def lost():
    "Memory of the same kind that nobody guards."
    fd = os.memfd_create("lost")
    os.truncate(fd, PAGE)
    mapped = mmap.mmap(fd, PAGE)
    os.truncate(fd, 0)
    return mapped

def action():
    scratch = bytearray(64)
    guard.system_call(guard.SYS_RT_SIGACTION, signal.SIGBUS, 0, memory.address_of(scratch), 8, 0, 0)
    return bytes(scratch)
"""

COMPILED = "import llvmlite.binding\n"


def run(script: str, *, compiled: bool) -> subprocess.CompletedProcess[str]:
    source = (COMPILED if compiled else "") + PRELUDE + script
    return subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, timeout=120, check=False
    )


def output(script: str, *, compiled: bool) -> str:
    done = run(script, compiled=compiled)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(params=["plain", "native"])
def compiled(request: pytest.FixtureRequest) -> bool:
    if request.param == "native" and not jit.available():
        pytest.skip("there is no Numba here")
    return bool(request.param == "native")


def test_reads_of_what_a_client_took_away_give_zeros_and_what_is_left_stays(compiled: bool) -> None:
    printed = output(
        """
guest = torn()
assert guest.read(0x10000, 2 * PAGE) == b"\\xaa" * PAGE + bytes(PAGE)
view = guest.view(0x10000 + 5 * PAGE, 3 * PAGE)
assert bytes(view) == bytes(3 * PAGE)
guest.write(0x10000 + 15 * PAGE, b"lost")
assert guest.read(0x10000 + PAGE - 1, 2) == b"\\xaa\\0"
assert [str(each) for each in guest.torn] == ["0x10000 bytes at 0x10000 (rw)"]
del view
guest.unmap_all()
assert guest.torn == ()
assert "memfd:guest" not in open("/proc/self/maps").read()
print("alive")
""",
        compiled=compiled,
    )
    assert printed.count("ERROR") == 1
    assert "the client shrank the file it had mapped (0x10000 bytes at 0x10000 (rw)" in printed
    assert "alive" in printed


def test_every_thread_survives_what_a_client_took_away(compiled: bool) -> None:
    printed = output(
        """
import hashlib
guest = torn(256 * PAGE)
def work(first):
    for page in range(first, 256, 4):
        assert guest.read(0x10000 + page * PAGE, PAGE) == bytes(PAGE)
    view = guest.view(0x10000 + PAGE, 255 * PAGE)
    assert hashlib.sha256(view).digest() == hashlib.sha256(bytes(255 * PAGE)).digest()
    print("alive")
threads = [threading.Thread(target=work, args=(1 + number,)) for number in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
""",
        compiled=compiled,
    )
    assert printed.count("alive") == 4


def test_a_loop_without_the_gil_survives_what_a_client_took_away(compiled: bool) -> None:
    if not jit.available():
        pytest.skip("there is no Numba here")
    printed = output(
        """
@entry
def sweep(table: int, to: int, pages: int) -> int:
    moved = 0
    for page in range(pages):
        at = translate(table, 0x10000 + page * 4096, 4096, READ | WRITE)
        if at != 0:
            memory.copy(to, at, 4096)
            memory.store64(at, memory.load64(to))
            moved += 1
    return moved

sweep.native
guest = torn(64 * PAGE)
table, buffer = guest.translation.address, bytearray(b"x" * PAGE)
def work():
    print(sweep.native(table, memory.address_of(buffer), 64), bytes(buffer) == bytes(PAGE))
thread = threading.Thread(target=work)
thread.start()
thread.join()
assert guest.torn
""",
        compiled=compiled,
    )
    assert "64 True" in printed


def test_a_bus_error_elsewhere_ends_the_process_as_ever(compiled: bool) -> None:
    done = run("guest = torn(); guest.read(0x10000 + PAGE, 1); lost()[0]", compiled=compiled)
    assert done.returncode == -signal.SIGBUS


def test_a_bus_error_elsewhere_reaches_whoever_was_there_before_us(compiled: bool) -> None:
    done = run("import faulthandler; faulthandler.enable(); guest = torn(); lost()[0]", compiled=compiled)
    assert done.returncode == -signal.SIGBUS
    assert "Fatal Python error: Bus error" in done.stderr


def test_a_bus_error_that_somebody_sends_is_no_fault_of_a_client(compiled: bool) -> None:
    done = run("guest = torn(); os.kill(os.getpid(), signal.SIGBUS); print('alive')", compiled=compiled)
    assert done.returncode == -signal.SIGBUS
    assert "alive" not in done.stdout


def test_the_last_range_leaves_the_signal_as_it_was(compiled: bool) -> None:
    output(
        """
import faulthandler
faulthandler.enable()
before = action()
first, second = torn(), torn()
ours = action()
assert ours != before
first.unmap_all()
assert action() == ours
second.unmap_all()
assert action() == before
""",
        compiled=compiled,
    )


def test_who_takes_the_signal_after_us_keeps_it(compiled: bool) -> None:
    output(
        """
import faulthandler
guest = torn()
faulthandler.enable()
theirs = action()
guest.unmap_all()
assert action() == theirs
""",
        compiled=compiled,
    )


def test_a_slice_that_outlives_its_range_stays_guarded_until_it_is_dropped(compiled: bool) -> None:
    output(
        """
before = action()
guest = torn()
part = guest.view(0x10000, 2 * PAGE)[PAGE:]
guest.unmap_all()
assert bytes(part) == bytes(PAGE)
del part
assert action() == before
""",
        compiled=compiled,
    )


def test_a_guarded_slot_is_used_again(compiled: bool) -> None:
    output(
        """
kept = torn()
for number in range(300):
    guest = torn()
    assert guest.torn == ()
    guest.read(0x10000 + 2 * PAGE, 8)
    assert guest.torn
    guest.unmap_all()
assert guard._table[guard.COUNT] == 2
assert kept.torn == ()
""",
        compiled=compiled,
    )


def test_a_file_full_of_holes_does_not_use_up_the_processs_mappings(compiled: bool) -> None:
    printed = output(
        """
guard.HOLES
pages = 3 * guard.HOLES
guest = torn(size=pages * PAGE, keep=0)
def mappings():
    return len(open("/proc/self/maps").readlines())
before = mappings()
for page in range(0, pages, 2):  # neighbours would become one mapping
    guest.write(0x10000 + page * PAGE, b"lost")
    assert mappings() - before < 2 * guard.HOLES + 100 if page % 1000 == 0 else True
assert mappings() - before < 10
print("alive")
""",
        compiled=compiled,
    )
    assert "alive" in printed
