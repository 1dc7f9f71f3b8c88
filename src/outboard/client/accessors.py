"""Reading and writing numbers in a region: by messages, or in a mapping shared with the server."""

import mmap
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from outboard.native.guard import Guarded
from outboard.native.memory import address_of

MAX_AREAS = 1024
"""Mappable areas of a region: a server that names more of them could use up the process's mappings."""


class Accessor(ABC):
    """A region's bytes as little-endian numbers of 8 to 64 bits, at byte offsets."""

    @abstractmethod
    def read(self, offset: int, size: int) -> bytes:
        """The `size` bytes at `offset`."""

    @abstractmethod
    def write(self, offset: int, data: bytes) -> None:
        """Stores `data` at `offset`."""

    def read8(self, offset: int) -> int:
        """The byte at `offset`."""
        return self.read(offset, 1)[0]

    def read16(self, offset: int) -> int:
        """The 16-bit number at `offset`."""
        return int.from_bytes(self.read(offset, 2), "little")

    def read32(self, offset: int) -> int:
        """The 32-bit number at `offset`."""
        return int.from_bytes(self.read(offset, 4), "little")

    def read64(self, offset: int) -> int:
        """The 64-bit number at `offset`, in one access."""
        return int.from_bytes(self.read(offset, 8), "little")

    def write8(self, offset: int, value: int) -> None:
        """Stores a byte."""
        self.write(offset, value.to_bytes(1, "little"))

    def write16(self, offset: int, value: int) -> None:
        """Stores a 16-bit number."""
        self.write(offset, value.to_bytes(2, "little"))

    def write32(self, offset: int, value: int) -> None:
        """Stores a 32-bit number."""
        self.write(offset, value.to_bytes(4, "little"))

    def write64(self, offset: int, value: int) -> None:
        """Stores a 64-bit number, in one access."""
        self.write(offset, value.to_bytes(8, "little"))


class RegionAccess(Accessor):
    """A region reached by messages: every access is seen by the device."""

    def __init__(
        self,
        read: Callable[[int, int, int], bytes],
        write: Callable[[int, int, bytes], None],
        index: int,
        size: int,
    ) -> None:
        self.index = index
        self.size = size
        self._read = read
        self._write = write

    def read(self, offset: int, size: int) -> bytes:
        """The `size` bytes at `offset`; raises RemoteError if the server refuses."""
        return self._read(self.index, offset, size)

    def write(self, offset: int, data: bytes) -> None:
        """Stores `data` at `offset`; raises RemoteError if the server refuses."""
        self._write(self.index, offset, data)


class MappedRegion(Accessor):
    """The areas of a region that the server lets its client map: memory shared with the device.

    ``areas`` are (offset, size) in the region. A context manager that unmaps. What the server takes away
    from its file later reads as zeros. Raises ValueError for more than `MAX_AREAS`, or one that the file does
    not have; OSError if it cannot be mapped.
    """

    def __init__(self, fds: Sequence[int], base: int, areas: Sequence[tuple[int, int]]) -> None:
        self.areas = tuple(areas)
        self.closed = False
        self._maps: list[tuple[int, int, mmap.mmap]] = []
        self._guards: list[Guarded] = []
        if len(self.areas) > MAX_AREAS:
            raise ValueError(f"{len(self.areas)} areas are to be mapped, {MAX_AREAS} at most")
        try:
            for number, (offset, size) in enumerate(self.areas):
                fd = fds[number] if len(fds) == len(self.areas) else fds[0]
                if size:  # mmap would take 0 for the whole file
                    memory = mmap.mmap(fd, size, offset=base + offset)
                    self._maps.append((offset, offset + size, memory))
                    self._guards.append(Guarded(address_of(memory), size))
        except BaseException:
            self.close()
            raise

    def read(self, offset: int, size: int) -> bytes:
        """The `size` bytes at `offset`; raises IndexError outside the mapped areas."""
        start, memory = self._find(offset, size)
        return memory[offset - start : offset - start + size]

    def write(self, offset: int, data: bytes) -> None:
        """Stores `data` at `offset`; raises IndexError outside the mapped areas."""
        start, memory = self._find(offset, len(data))
        memory[offset - start : offset - start + len(data)] = data

    def address(self, offset: int, size: int) -> int:
        """Where in this process the `size` bytes at `offset` are; raises IndexError outside the mapped areas.

        Valid until `close`.
        """
        start, memory = self._find(offset, size)
        return address_of(memory) + offset - start

    def close(self) -> None:
        """Unmaps the areas. Harmless to repeat."""
        self.closed = True
        for _, _, memory in self._maps:
            memory.close()
        for guard in self._guards:
            guard.release()
        self._maps.clear()
        self._guards.clear()

    def __enter__(self) -> "MappedRegion":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _find(self, offset: int, size: int) -> tuple[int, mmap.mmap]:
        for start, end, memory in self._maps:
            if start <= offset and offset + size <= end:
                return start, memory
        raise IndexError(f"{size} bytes at {offset:#x} are not in a mapped area: {self.areas}")
