"""Guest memory that hostile commands aim at, and the ways to say where in it something is: PRPs and SGLs."""

import random
import struct

from tests.devices.nvme.bench import RAM_ADDRESS, RAM_SIZE
from tests.devices.nvme.driver import PAGE, Ram

START, PAGES = 7 << 20, 512
"""Where in guest memory the pages begin that commands use, and how many; in the middle lies 4 GiB."""

QUEUES = 11 << 20
"""Where queues are: no command moves so much that it reaches them."""

PRP, SGL, SGL_METADATA = 0, 1, 2
"""PSDT."""

DATA_BLOCK, BIT_BUCKET, SEGMENT, LAST_SEGMENT = 0x00, 0x10, 0x20, 0x30

ADDRESSES = (
    *(0, PAGE, RAM_ADDRESS - PAGE, RAM_ADDRESS - 1, RAM_ADDRESS + RAM_SIZE, RAM_ADDRESS + RAM_SIZE + 8),
    *((1 << 63) - 4, 1 << 63, (1 << 64) - PAGE, (1 << 64) - 8, (1 << 64) - 1),
)
"""Where nothing is."""


class Aim:
    """Finds places for the data of commands, as ``chance`` decides."""

    def __init__(self, chance: random.Random, ram: Ram) -> None:
        self.chance, self.ram = chance, ram

    def page(self) -> int:
        """A page's address."""
        return RAM_ADDRESS + START + PAGE * self.chance.randrange(PAGES)

    def run(self, size: int) -> int:
        """The address of pages that follow each other, for ``size`` bytes."""
        pages = -(-size // PAGE)
        return RAM_ADDRESS + START + PAGE * self.chance.randrange(max(1, PAGES - pages))

    def address(self) -> int:
        """Any address, that of a page mostly."""
        kind = self.chance.randrange(8)
        if kind < 4:
            return self.page()
        if kind < 6:
            return self.page() + self.chance.choice((1, 2, 4, 8, 512, 4080, 4092))
        return self.chance.choice(ADDRESSES)

    def put(self, data: bytes) -> int:
        """Write ``data`` into pages that follow each other; their address."""
        at = self.run(len(data))
        self.ram.write(at, data)
        return at

    def contiguous(self, size: int) -> dict[str, int]:
        """PRPs of pages that follow each other."""
        start = self.run(size)
        pages = [start + at for at in range(PAGE, size, PAGE)]
        return {"prp1": start, "prp2": self._second(pages)}

    def somewhere(self, size: int, psdt: int, *, reading: bool = True) -> dict[str, int]:
        """Flags and pointers for ``size`` bytes of data, right ones."""
        if psdt != PRP:
            return {"flags": psdt << 6} | self._sgl(size, reading)
        if self.chance.random() < 0.5:
            return self.contiguous(size)
        offset = self.chance.choice((0, 0, 4, 512, PAGE - 4))
        pages = [self.page() for _ in range(PAGE - offset, size, PAGE)]
        return {"prp1": self.page() + offset, "prp2": self._second(pages)}

    def _second(self, pages: list[int]) -> int:
        if len(pages) < 2:
            return pages[0] if pages else 0
        return self.put(struct.pack(f"<{len(pages)}Q", *pages))

    def _sgl(self, size: int, reading: bool) -> dict[str, int]:
        if self.chance.random() < 0.4:
            return _pointer(self.run(size), size, DATA_BLOCK)
        count = self.chance.randrange(1, 6)
        cuts = sorted(self.chance.randrange(size // 4 + 1) * 4 for _ in range(count - 1))
        sizes = [end - start for start, end in zip([0, *cuts], [*cuts, size], strict=True)]
        made = [self._block(part, reading) for part in sizes]
        if self.chance.random() < 0.5:
            return _pointer(self.put(b"".join(made)), 16 * count, LAST_SEGMENT)
        behind = _descriptor(self.put(made[-1]), 16, LAST_SEGMENT)
        return _pointer(self.put(b"".join([*made[:-1], behind])), 16 * count, SEGMENT)

    def _block(self, size: int, reading: bool) -> bytes:
        kind = self.chance.choice((DATA_BLOCK, DATA_BLOCK, BIT_BUCKET if reading else DATA_BLOCK))
        return _descriptor(self.run(size) if kind == DATA_BLOCK else 0, size, kind)

    def metadata(self, size: int, psdt: int) -> int:
        """A metadata pointer for ``size`` bytes."""
        if psdt == SGL_METADATA:
            return self.put(_descriptor(self.run(size), size, DATA_BLOCK))
        return self.run(size)


def _descriptor(address: int, size: int, kind: int) -> bytes:
    return struct.pack("<QI3xB", address, size, kind)


def _pointer(address: int, size: int, kind: int) -> dict[str, int]:
    return {"prp1": address, "prp2": size | kind << 56}
