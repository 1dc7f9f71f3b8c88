"""Where the namespaces come from that a host creates: so much memory, or a folder for their files.

The capacity is the drive's unallocated one (UNVMCAP of NVMe Base 2.0, 5.17.2.1) while nothing is created.
"""

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from outboard.devices.nvme.claims import Claim, claim
from outboard.errors import SetupError, StorageError
from outboard.storage import FileStorage, RamStorage, Storage, open_file, parse_size


class Pool(Protocol):
    """Makes storages of any size (bytes), known by the identifiers of their namespaces."""

    @property
    def capacity(self) -> int:
        """Bytes that all storages together may have."""

    @property
    def free(self) -> int:
        """Bytes that are not given to any."""

    def create(self, nsid: int, size: int) -> Storage:
        """A storage of zeros. Raises `StorageError` if there is not so much left."""

    def reopen(self, nsid: int, size: int) -> Storage:
        """The storage that was created in another process. Raises `StorageError`."""

    def resized(self, nsid: int, size: int) -> None:
        """Account for a storage that is about to have another size. Raises `StorageError`, as `create`."""

    def delete(self, nsid: int) -> None:
        """Close a storage, and forget what it holds."""

    def close(self) -> None:
        """Close all storages; what lasts stays. Closing twice is harmless."""


class _Accounts:
    """Who has how much of ``capacity`` bytes."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._given: dict[int, int] = {}
        self._storages: dict[int, Storage] = {}

    @property
    def free(self) -> int:
        """Bytes that are not given to any."""
        return max(0, self.capacity - sum(self._given.values()))

    def resized(self, nsid: int, size: int) -> None:
        """Account for a storage that is about to have another size. Raises `StorageError`."""
        others = sum(given for other, given in self._given.items() if other != nsid)
        if others + size > self.capacity:
            raise StorageError(
                f"{size} bytes are not free: {self.capacity - others} of {self.capacity} are",
                errno=errno.ENOSPC,
            )
        self._given[nsid] = size

    def close(self) -> None:
        """Close all storages."""
        for storage in self._storages.values():
            storage.close()

    def _adopt(self, nsid: int, storage: Storage) -> Storage:
        self._given[nsid], self._storages[nsid] = storage.size, storage
        return storage

    def _forget(self, nsid: int) -> None:
        self._storages.pop(nsid).close()
        del self._given[nsid]


class RamPool(_Accounts):
    """``capacity`` bytes of memory, used as they are written; contents are gone with the process.

    >>> pool = RamPool(1 << 30)
    >>> disk = pool.create(1, 256 << 20)
    >>> pool.free >> 20
    768
    >>> pool.delete(1)
    >>> pool.free == pool.capacity
    True
    """

    def create(self, nsid: int, size: int) -> Storage:
        """A disk in memory. Raises `StorageError` if there is not so much left."""
        self.resized(nsid, size)
        try:
            return self._adopt(nsid, RamStorage(size))
        except StorageError:
            del self._given[nsid]
            raise

    def reopen(self, nsid: int, size: int) -> Storage:
        """A disk as it was, but empty. Raises `StorageError` if the pool has become too small."""
        return self.create(nsid, size)

    def delete(self, nsid: int) -> None:
        """Give the memory back."""
        self._forget(nsid)


class FolderPool(_Accounts):
    """Sparse files in ``folder``, which is made if need be: ``capacity`` bytes are promised, not reserved.

    No other process may have a pool there until it is closed. Raises `SetupError` if another one has, or
    there can be no such folder.
    """

    def __init__(self, folder: str | Path, capacity: int) -> None:
        super().__init__(capacity)
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SetupError(f"{folder} cannot hold namespaces: {error.strerror}") from error
        self._claim: Claim | None = claim(self.folder)

    def close(self) -> None:
        """Close all storages; their files stay."""
        super().close()
        self._claim = None

    def path(self, nsid: int) -> Path:
        """The file of a namespace."""
        return self.folder / f"namespace{nsid}.img"

    def create(self, nsid: int, size: int) -> Storage:
        """A file of zeros; one that nobody knows of any more is replaced. Raises `StorageError`."""
        self.resized(nsid, size)
        try:
            self.path(nsid).unlink(missing_ok=True)
            return self._adopt(nsid, open_file(self.path(nsid), size))
        except OSError as error:
            del self._given[nsid]
            raise StorageError(
                f"cannot replace {self.path(nsid)}: {error.strerror}", errno=error.errno
            ) from error
        except StorageError:
            del self._given[nsid]
            with suppress(OSError):
                self.path(nsid).unlink(missing_ok=True)
            raise

    def reopen(self, nsid: int, size: int) -> FileStorage:
        """The file as it is now. Raises `StorageError`."""
        storage = open_file(self.path(nsid))
        self._adopt(nsid, storage)
        return storage

    def delete(self, nsid: int) -> None:
        """Remove the file. One that cannot be removed is replaced when its identifier is used again."""
        self._forget(nsid)
        with suppress(OSError):
            os.unlink(self.path(nsid))


def open_pool(spec: str) -> RamPool | FolderPool:
    """The pool that ``ram:SIZE``, or ``FOLDER,size=SIZE``, names.

    Raises `StorageError` if it names none, `SetupError` if there can be no such folder.

    >>> open_pool("ram:1G").free >> 20
    1024
    """
    kind, _, size = spec.partition(":")
    if kind == "ram":
        return RamPool(parse_size(size))
    folder, option, size = spec.rpartition(",size=")
    if not (folder and option):
        raise StorageError(
            f"{spec!r} is no pool: write ram:8G, or a folder and a size, as /srv/pool,size=100G"
        )
    return FolderPool(folder, parse_size(size))
