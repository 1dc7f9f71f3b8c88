"""Storages as the tests here want them, and how much the system has given for them."""

import ctypes
import mmap
import os
from pathlib import Path

import pytest

from outboard.errors import StorageError
from outboard.storage import FileStorage, RamStorage, open_file


def open_direct(path: Path, size: int) -> FileStorage:
    """A file past the page cache; the test is skipped where the file system has no such access."""
    try:
        return open_file(path, size, direct=True)
    except StorageError as error:
        if "no direct access" in error.sentence:
            pytest.skip(f"O_DIRECT is not tested: {error.sentence}")
        raise


def allocated(storage: RamStorage | FileStorage) -> int:
    """The bytes the system has given; of memory, a page that was only read counts, though it is shared."""
    if isinstance(storage, FileStorage):
        return os.fstat(storage.fd).st_blocks * 512
    assert storage.fast
    pages = ctypes.create_string_buffer(-(-storage.size // mmap.PAGESIZE))
    address, size = ctypes.c_void_p(storage.fast.address), ctypes.c_size_t(storage.size)
    assert ctypes.CDLL(None).mincore(address, size, pages) == 0
    return mmap.PAGESIZE * sum(byte & 1 for byte in pages.raw)
