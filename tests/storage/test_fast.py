"""What compiled code is offered, and that it and the methods see the same bytes."""

import ctypes
import errno
import mmap
import os
from pathlib import Path

import pytest

from outboard.errors import StorageError
from outboard.native.memory import load64, store64
from outboard.storage import (
    Descriptor,
    Fast,
    FileStorage,
    Memory,
    Nothing,
    NullStorage,
    RamStorage,
    fast_of,
    open_storage,
)
from outboard.storage.direct import alignment_of
from tests.storage.kinds import allocated, open_direct

HUGE = 2 << 20


def memory_of(disk: RamStorage) -> Memory:
    assert disk.fast
    return disk.fast


def test_a_storage_of_somebody_else_has_no_fast_lane() -> None:
    class Plugin:
        size = 4096

    class Odd(Plugin):
        fast = "very"

    assert fast_of(Plugin()) is None
    assert fast_of(Odd()) is None


def test_a_storage_that_does_more_than_its_base_takes_the_offer_back() -> None:
    class Counting(RamStorage):
        fast = None

    disk = Counting(4096)
    disk.write(0, b"data")
    assert fast_of(disk) is None
    assert disk.read(0, 4) == b"data"
    disk.close()


def test_the_null_disk_offers_nothing() -> None:
    assert fast_of(NullStorage(1 << 40)) == Nothing()


def test_a_ram_disk_offers_the_memory_that_its_methods_access() -> None:
    disk = RamStorage(12345)
    memory = memory_of(disk)
    assert memory.size == 12345
    assert memory.address % mmap.PAGESIZE == 0
    disk.write(4096, (77).to_bytes(8, "little"))
    assert load64(memory.address + 4096) == 77
    store64(memory.address + 8, 78)
    assert disk.read(8, 8) == (78).to_bytes(8, "little")
    disk.discard(0, 12345)
    assert load64(memory.address + 4096) == 0
    disk.close()


def test_a_closed_storage_offers_nothing_to_compiled_code(tmp_path: Path) -> None:
    for spec in ("ram:1M", f"{tmp_path}/disk.img,size=1M"):
        disk = open_storage(spec)
        assert fast_of(disk)
        disk.close()
        assert fast_of(disk) is None


def test_a_closed_ram_disk_is_an_error_and_not_a_crash() -> None:
    disk = RamStorage(4096)
    disk.close()
    with pytest.raises(StorageError, match="is closed") as caught:
        disk.write_zeroes(0, 4096)
    assert caught.value.errno == errno.EBADF


def test_a_ram_disk_can_shrink_and_not_grow() -> None:
    disk = RamStorage(8192)
    disk.size = 4096
    with pytest.raises(StorageError, match="outside"):
        disk.read(4096, 1)
    disk.size = 16384
    with pytest.raises(StorageError, match="cannot grow"):
        disk.discard(0, 16384)
    disk.close()


@pytest.mark.parametrize("size", [1 << 50, 1 << 62, (1 << 63) - 1, 1 << 63, 1 << 80])
def test_a_ram_disk_larger_than_any_memory_is_refused(size: int) -> None:
    with pytest.raises(StorageError, match="cannot make a RAM disk") as caught:
        RamStorage(size)
    assert caught.value.errno == errno.ENOMEM


def test_zeroing_part_of_a_huge_page_does_not_give_it_back() -> None:
    disk = RamStorage(3 * HUGE)
    disk.write(0, b"\xff" * (3 * HUGE))
    full = allocated(disk)
    assert full == 3 * HUGE
    disk.write_zeroes(HUGE + 4096, 8192)
    assert allocated(disk) == full
    disk.write_zeroes(4096, 3 * HUGE - 8192)
    assert allocated(disk) == full - HUGE
    assert disk.read(0, 3 * HUGE) == b"\xff" * 4096 + bytes(3 * HUGE - 8192) + b"\xff" * 4096
    disk.close()


def test_memory_that_is_locked_is_zeroed_where_it_is() -> None:
    disk = RamStorage(64 << 10)
    disk.write(0, b"\xff" * (64 << 10))
    libc = ctypes.CDLL(None)
    locked = ctypes.c_void_p(memory_of(disk).address), ctypes.c_size_t(64 << 10)
    if libc.mlock(*locked) != 0:
        pytest.skip("no memory may be locked here (ulimit -l)")
    disk.discard(0, 64 << 10)
    assert disk.read(0, 64 << 10) == bytes(64 << 10)
    assert allocated(disk) == 64 << 10
    disk.close()


def test_a_file_offers_its_descriptor(tmp_path: Path) -> None:
    disk = open_storage(f"{tmp_path}/disk.img,size=1M")
    assert isinstance(disk, FileStorage)
    assert disk.fast == Descriptor(disk.fd, direct=False, alignment=1)
    os.pwrite(disk.fd, b"compiled", 4096)
    assert disk.read(4096, 8) == b"compiled"
    disk.close()


def test_a_direct_file_says_what_alignment_it_needs(tmp_path: Path) -> None:
    disk = open_direct(tmp_path / "disk.img", 1 << 20)
    offer: Fast | None = fast_of(disk)
    assert isinstance(offer, Descriptor)
    assert offer.direct
    assert offer.alignment in (512, 4096)
    assert os.get_blocking(offer.fd)
    memory = memoryview(mmap.mmap(-1, 4096))
    memory[:8] = b"compiled"
    at = offer.alignment
    assert os.pwritev(offer.fd, [memory[:at]], at) == at
    assert disk.read(at, 8) == b"compiled"
    disk.close()


def test_a_direct_file_reads_and_writes_any_range(tmp_path: Path) -> None:
    disk = open_direct(tmp_path / "disk.img", 1 << 20)
    data = os.urandom(600_000)
    disk.write(12_345, data)
    disk.write(12_350, b"unaligned")
    expected = bytes(12_345) + data[:5] + b"unaligned" + data[14:]
    assert disk.read(0, len(expected) + 100) == expected + bytes(100)
    assert (tmp_path / "disk.img").read_bytes() == expected.ljust(1 << 20, b"\0")
    disk.close()


def test_a_direct_file_holds_whole_blocks(tmp_path: Path) -> None:
    open_direct(tmp_path / "whole.img", 4096).close()
    with pytest.raises(StorageError, match=r"multiple of .*truncate -s %"):
        open_storage(f"{tmp_path}/disk.img,size=1000,direct=on")
    open_storage(f"{tmp_path}/disk.img").close()


def test_a_file_system_without_direct_access_is_named() -> None:
    # What the kernel makes up, as in /proc, has no O_DIRECT anywhere.
    with pytest.raises(StorageError, match=r"no direct access.*leave direct=on away"):
        open_storage("/proc/self/oom_score_adj,direct=on")


def test_what_does_not_tell_its_alignment_is_given_one_that_always_does() -> None:
    fd = os.memfd_create("memory")
    assert alignment_of(fd) == 4096
    os.close(fd)
    assert alignment_of(-1) == 4096
