"""The client's memory, as a guest's RAM: shared with the server by descriptor, or served by messages."""

import mmap
import os
from collections.abc import Callable
from contextlib import suppress
from fcntl import F_ADD_SEALS, F_SEAL_GROW, F_SEAL_SEAL, F_SEAL_SHRINK, fcntl

from outboard.errors import DmaForbidden, DmaUnmapped
from outboard.native.memory import address_of


class GuestRam:
    """`size` bytes of zeroed memory that the device reaches at IOVA `address`.

    ``view`` is the memory itself. Made by `Client.memory`. With ``shared`` the server maps it; without, the
    server has to ask for every byte by message.
    """

    def __init__(
        self,
        address: int,
        size: int,
        *,
        shared: bool,
        readable: bool,
        writable: bool,
        unmap: Callable[[], None],
    ) -> None:
        self.address = address
        self.size = size
        self.shared = shared
        self.readable = readable
        self.writable = writable
        self.fd = os.memfd_create("outboard-guest-ram", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.truncate(self.fd, size)
            # A server that shrank it would end us by SIGBUS.
            fcntl(self.fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)
            self._map = mmap.mmap(self.fd, size)
        except BaseException:
            os.close(self.fd)
            raise
        self.view = memoryview(self._map)
        self._unmap = unmap

    def read(self, offset: int, size: int) -> bytes:
        """A copy of the `size` bytes at byte `offset` of this memory."""
        return bytes(self.view[offset : offset + size])

    def write(self, offset: int, data: bytes) -> None:
        """Stores `data` at byte `offset` of this memory."""
        self.view[offset : offset + len(data)] = data

    def address_here(self, offset: int = 0) -> int:
        """Where in this process the byte at `offset` is; valid until `close`."""
        return address_of(self._map) + offset

    def unmap(self) -> None:
        """Takes the memory away from the server (DMA_UNMAP) and frees it."""
        self._unmap()
        self.close()

    def close(self) -> None:
        """Frees the memory; the server is not told."""
        if self.fd < 0:
            return
        os.close(self.fd)
        self.fd = -1
        # A caller may hold a slice, or an array over it: then the mapping lives as long as that.
        with suppress(BufferError):
            self.view.release()
            self._map.close()


class AddressSpace:
    """The guest memory a client has mapped; finds it again for the server's DMA messages."""

    def __init__(self) -> None:
        self.blocks: dict[int, GuestRam] = {}

    def free_address(self, size: int) -> int:
        """An IOVA above all memory so far, aligned to 2 MiB."""
        top = max((block.address + block.size for block in self.blocks.values()), default=0x1000_0000)
        return (top + 0x1F_FFFF) & ~0x1F_FFFF

    def slice(self, address: int, size: int, *, write: bool) -> memoryview:
        """The bytes a DMA message names; raises DmaUnmapped and DmaForbidden."""
        for block in self.blocks.values():
            if block.fd >= 0 and block.address <= address and address + size <= block.address + block.size:
                if not (block.writable if write else block.readable):
                    raise DmaForbidden(
                        f"the device may not access {size:#x} bytes at {address:#x} in this direction"
                    )
                start = address - block.address
                return block.view[start : start + size]
        raise DmaUnmapped(f"nothing is mapped at {address:#x} ({size:#x} bytes)", address=address, size=size)
