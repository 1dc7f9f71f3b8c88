"""Every kind of storage keeps the same promises; a file keeps them on disk."""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import outboard.storage.file as file_module
from outboard.errors import StorageError
from outboard.storage import FileStorage, NullStorage, RamStorage, Storage, open_file, open_storage
from tests.storage.kinds import allocated, open_direct

SIZE = 1 << 20


@pytest.fixture(params=["ram", "file", "direct"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RamStorage | FileStorage]:
    if request.param == "ram":
        storage: RamStorage | FileStorage = RamStorage(SIZE)
    elif request.param == "file":
        storage = open_file(tmp_path / "disk.img", SIZE)
    else:
        storage = open_direct(tmp_path / "disk.img", SIZE)
    yield storage
    storage.close()


@pytest.fixture(params=["file", "direct"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FileStorage]:
    opened = (open_file if request.param == "file" else open_direct)(tmp_path / "disk.img", SIZE)
    yield opened
    opened.close()


def test_what_is_written_is_read_back(storage: RamStorage | FileStorage) -> None:
    storage.write(1000, b"outboard")
    assert storage.read(998, 12) == b"\0\0outboard\0\0"


def test_readinto_fills_the_callers_buffer(storage: RamStorage | FileStorage) -> None:
    storage.write(0, bytes(range(256)))
    buffer = bytearray(256)
    storage.readinto(0, memoryview(buffer))
    assert buffer == bytes(range(256))


def test_a_new_disk_reads_as_zeros_and_takes_no_space(storage: RamStorage | FileStorage) -> None:
    assert allocated(storage) == 0
    assert storage.read(SIZE - 4096, 4096) == bytes(4096)


def test_discard_gives_space_back_and_reads_as_zeros(storage: RamStorage | FileStorage) -> None:
    storage.write(0, b"\xff" * 65536)
    storage.discard(0, 65536)
    assert storage.discard_zeroes
    assert allocated(storage) == 0
    assert storage.read(0, 65536) == bytes(65536)


def test_write_zeroes_touches_only_its_range(storage: RamStorage | FileStorage) -> None:
    storage.write(0, b"\xff" * 16384)
    storage.write_zeroes(100, 9000)
    assert storage.read(0, 16384) == b"\xff" * 100 + bytes(9000) + b"\xff" * (16384 - 9100)


def test_write_zeroes_writes_them_where_the_file_system_knows_no_better_way(
    file: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_module, "fallocate", lambda *_: False)
    monkeypatch.setattr(file_module, "ZEROES_AT_ONCE", 1000)
    file.write(0, b"\xff" * 16384)
    file.write_zeroes(100, 9000)
    assert file.read(0, 16384) == b"\xff" * 100 + bytes(9000) + b"\xff" * (16384 - 9100)


def test_discard_does_nothing_where_holes_cannot_be_punched(
    file: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_module, "fallocate", lambda *_: False)
    file.write(0, b"kept")
    file.discard(0, 4096)
    assert file.read(0, 4) == b"kept"


def test_empty_discards_and_zeroes_are_harmless(storage: RamStorage | FileStorage) -> None:
    storage.write(0, b"kept")
    storage.discard(0, 0)
    storage.write_zeroes(0, 0)
    assert storage.read(0, 4) == b"kept"


OUTSIDE: list[Callable[[Storage], object]] = [
    lambda s: s.read(SIZE - 1, 2),
    lambda s: s.read(-1, 1),
    lambda s: s.read(0, -1),
    lambda s: s.readinto(SIZE, memoryview(bytearray(1))),
    lambda s: s.write(SIZE - 1, b"ab"),
    lambda s: s.discard(1 << 63, 1),
    lambda s: s.write_zeroes(0, SIZE + 1),
]


@pytest.mark.parametrize("access", OUTSIDE)
def test_an_access_outside_is_refused(
    storage: RamStorage | FileStorage, access: Callable[[Storage], object]
) -> None:
    for disk in (storage, NullStorage(SIZE)):
        with pytest.raises(StorageError, match="outside a storage"):
            access(disk)


def test_a_closed_storage_may_be_closed_again(storage: RamStorage | FileStorage) -> None:
    storage.close()
    storage.close()


def test_the_null_disk_forgets() -> None:
    disk = open_storage("null:1T")
    disk.write(1 << 39, b"data")
    buffer = bytearray(b"\xff" * 4)
    disk.readinto(1 << 39, memoryview(buffer))
    disk.flush()
    disk.discard(0, 4096)
    disk.write_zeroes(0, 1 << 40)
    assert disk.read(1 << 39, 4) == buffer == bytes(4)
    assert disk.size == 1 << 40
    disk.close()


def test_a_file_is_found_again_when_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    disk = open_storage(f"{path},size=64K")
    disk.write(4096, b"persistent")
    disk.flush()
    disk.close()
    disk = open_storage(str(path))
    assert (disk.size, disk.read(4096, 10)) == (65536, b"persistent")
    disk.close()


def test_flush_reaches_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    disk = open_file(tmp_path / "disk.img", SIZE)
    disk.flush()
    assert synced == [disk.fd]
    disk.close()


def test_a_failure_below_is_a_storage_error_with_its_errno(file: FileStorage) -> None:
    os.close(file.fd)
    actions: list[Callable[[], object]] = [
        lambda: file.read(0, 1),
        lambda: file.write(0, b"x"),
        lambda: file.discard(0, 1),
        lambda: file.write_zeroes(0, 1),
        file.flush,
    ]
    for action in actions:
        with pytest.raises(StorageError) as caught:
            action()
        assert caught.value.errno == errno.EBADF
        assert file.name in caught.value.sentence
    file._closed = True


def test_a_file_truncated_while_in_use_is_an_error_and_not_zeros(tmp_path: Path) -> None:
    disk = open_file(tmp_path / "disk.img", SIZE)
    os.truncate(tmp_path / "disk.img", 4096)
    with pytest.raises(StorageError, match="truncated while in use"):
        disk.read(0, 8192)
    disk.close()


@pytest.mark.parametrize("kind", ["ram", "direct"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    steps=st.lists(st.tuples(st.sampled_from("wzd"), st.integers(0, 8191), st.integers(0, 4096)), max_size=20)
)
def test_writes_zeroes_and_discards_in_any_order_match_a_bytearray(
    kind: str, tmp_path: Path, steps: list[tuple[str, int, int]]
) -> None:
    """Any sequence of writes, zeroes and discards leaves the same bytes as on a bytearray."""
    (tmp_path / "disk.img").unlink(missing_ok=True)
    disk = RamStorage(12288) if kind == "ram" else open_direct(tmp_path / "disk.img", 12288)
    model = bytearray(12288)
    for number, (step, offset, size) in enumerate(steps):
        data = bytes([number + 1]) * size if step == "w" else bytes(size)
        if step == "d" and not disk.discard_zeroes:
            continue
        model[offset : offset + size] = data
        if step == "w":
            disk.write(offset, data)
        elif step == "z":
            disk.write_zeroes(offset, size)
        else:
            disk.discard(offset, size)
    assert disk.read(0, 12288) == model
    disk.close()
