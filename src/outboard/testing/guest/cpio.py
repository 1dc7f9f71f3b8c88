"""The archive that an initramfs is: cpio, "newc" (Linux: driver-api/early-userspace/buffer-format.rst)."""

import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of the archive: ``mode`` with its type bits (see `stat`), ``data`` or a link's target."""

    mode: int
    data: bytes = b""


def file(data: bytes, *, executable: bool = False) -> Entry:
    """A plain file."""
    return Entry(stat.S_IFREG | (0o755 if executable else 0o644), data)


def link(target: str) -> Entry:
    """A symbolic link to ``target``."""
    return Entry(stat.S_IFLNK | 0o777, target.encode())


FOLDER = Entry(stat.S_IFDIR | 0o755)


def archive(entries: Mapping[str, Entry]) -> bytes:
    """The archive of ``entries`` (absolute path to entry), everything root's; missing folders are made.

    The result depends on nothing but ``entries``. Archives may follow one another: the kernel unpacks
    all, later files over earlier ones.
    """
    whole = {**dict.fromkeys(_folders(entries), FOLDER), **entries}
    parts: list[bytes] = []
    for number, path in enumerate(sorted(whole), 1):
        parts += _record(path.lstrip("/"), whole[path], number)
    parts += _record("TRAILER!!!", Entry(0), 0)
    return b"".join(parts)


def _folders(paths: Mapping[str, Entry]) -> Iterator[str]:
    for path in paths:
        yield from (str(parent) for parent in PurePosixPath(path).parents if parent.name)


def _record(name: str, entry: Entry, number: int) -> tuple[bytes, ...]:
    encoded = name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    owner, when, device, checksum = (0, 0), 0, (0, 0, 0, 0), 0
    numbers = (number, entry.mode, *owner, links, when, len(entry.data), *device, len(encoded), checksum)
    header = b"070701" + b"".join(b"%08X" % value for value in numbers)
    return header, encoded, bytes(-(len(header) + len(encoded)) % 4), entry.data, bytes(-len(entry.data) % 4)
