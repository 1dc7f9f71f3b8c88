"""Disks named in a word: what is accepted, and what the refusals tell the user to do."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outboard.errors import StorageError
from outboard.storage import FileStorage, NullStorage, RamStorage, format_size, open_storage, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512", 512),
        ("4K", 4096),
        ("4k", 4096),
        ("4KiB", 4096),
        ("4kB", 4096),
        ("1T", 1 << 40),
        ("0.5M", 1 << 19),
    ],
)
def test_sizes_are_powers_of_1024(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "K", "-1", "1X", "1 2", "99999P", "1e9", "٣K", "1" * 400])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(StorageError, match="size"):
        parse_size(text)


@given(st.integers(1, (1 << 63) - 1))
def test_a_formatted_size_parses_back(size: int) -> None:
    """parse_size undoes format_size for every size."""
    assert parse_size(format_size(size)) == size


@pytest.mark.parametrize(("spec", "kind"), [("ram:1M", RamStorage), ("null:1T", NullStorage)])
def test_kinds_without_a_file(spec: str, kind: type) -> None:
    disk = open_storage(spec)
    assert type(disk) is kind
    disk.close()


def test_a_path_opens_a_file_however_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for spec in ("disk.img,size=64K", "file:disk.img", f"{tmp_path}/disk.img", "./disk.img,size=64K"):
        disk = open_storage(spec)
        assert isinstance(disk, FileStorage)
        assert disk.size == 65536
        disk.close()
    assert (tmp_path / "disk.img").stat().st_blocks == 0


def test_an_option_that_is_there_twice_belongs_to_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    open_storage("disk,size=1M,size=64K,direct=off").close()
    assert (tmp_path / "disk,size=1M").stat().st_size == 65536


@pytest.mark.parametrize(
    ("spec", "what_to_do"),
    [
        ("missing.img", r"missing.img,size=1G"),
        ("empty.img", r"empty.img,size=1G"),
        ("full.img,size=2M", r"has 4096 bytes, not 2097152: leave the size away"),
        ("no/dir/disk.img,size=1M", "create it first"),
        (".", "cannot open"),
        ("/dev/null", "neither a file nor a block device"),
        ("floppy:disk", "use ram:SIZE, null:SIZE, volatile:SPEC or a path"),
        ("ram:", "write a number"),
        ("ram:lots", "write a number"),
        ("", "names no file"),
        (",size=1M,direct=off", "names no file"),
        ("full.img,direct=maybe", "direct=on or direct=off"),
        ("new.img,size=1,5G", "not a size"),
        ("huge.img,size=8000P", "cannot make"),
        ("file:", "names no file"),
        ("volatile:" * 5000 + "ram:1M", "one is enough"),
        ("/proc/self/mem", "has no size, so it is no disk"),
    ],
)
def test_a_refusal_says_what_to_do(
    spec: str, what_to_do: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.img").touch()
    Path("full.img").write_bytes(bytes(4096))
    with pytest.raises(StorageError, match=what_to_do):
        open_storage(spec)


def test_one_file_cannot_be_two_disks(tmp_path: Path) -> None:
    first = open_storage(f"{tmp_path}/disk.img,size=64K")
    with pytest.raises(StorageError, match="in use by another disk"):
        open_storage(f"{tmp_path}/disk.img")
    first.close()
    open_storage(f"{tmp_path}/disk.img").close()


def test_a_disk_is_shared_only_among_those_who_say_so(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(4096))
    first, second = open_storage(f"{path},share=on"), open_storage(f"{path},share=on")
    with pytest.raises(StorageError, match="in use"):
        open_storage(str(path))
    first.close()
    second.close()
    alone = open_storage(str(path))
    with pytest.raises(StorageError, match="share=on"):
        open_storage(f"{path},share=on")
    alone.close()
    with pytest.raises(StorageError, match="share=on or share=off"):
        open_storage(f"{path},share=perhaps")
