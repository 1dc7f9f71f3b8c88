"""Descriptors a peer may send: of every kind there is, and what is left of them afterwards."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from fuzz.choices import Choices
from tests import raw

SIZE = 8 * 4096


class Kinds:
    """One descriptor of each kind, made once; what a peer sends are copies."""

    def __init__(self) -> None:
        self.memory = raw.memory_file(SIZE)
        read_only = os.open(f"/proc/self/fd/{self.memory}", os.O_RDONLY)
        self._ends = os.pipe()
        self._all = (
            self.memory,
            os.eventfd(0, os.EFD_NONBLOCK),
            read_only,
            self._ends[0],
            os.open("/dev/null", os.O_RDWR),
            os.open("/", os.O_RDONLY | os.O_DIRECTORY),
            raw.memory_file(100),
        )

    def some(self, c: Choices) -> Sequence[int]:
        """Copies of some; mostly none, or one that fits."""
        count = c.pick((0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 3, 64))
        kinds = [c.below(len(self._all)) for _ in range(min(count, 3))]
        return [os.dup(self._all[kinds[number % len(kinds)]]) for number in range(count)]

    def copy_of_memory(self) -> int:
        """The memory that a device may take for the guest's."""
        return os.dup(self.memory)

    def store(self, offset: int, data: bytes) -> None:
        """Puts bytes into that memory."""
        os.pwrite(self.memory, data, offset)

    def restore(self) -> None:
        """Memory as it was, for the next input."""
        os.pwrite(self.memory, bytes(SIZE), 0)


KINDS = Kinds()


@contextmanager
def none_left() -> Iterator[None]:
    """Fails if a descriptor opened inside stays open."""
    KINDS.restore()
    before = set(os.listdir("/proc/self/fd"))
    yield
    left = set(os.listdir("/proc/self/fd")) - before
    assert not left, f"descriptors are left: {[os.readlink(f'/proc/self/fd/{fd}') for fd in left]}"
