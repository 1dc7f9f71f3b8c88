"""A hostile guest, as a program: what it touches outside of its maps kills the process it runs in.

``python -m tests.devices.nvme.datapath.hostile {plain|native} {repeat|race} COUNT SEED``

Before and behind each range that the guest maps lies a page without any access; what it maps read-only is
write-protected here, too. ``repeat`` sends COUNT random commands through the loop in the device's own
thread and prints a digest of every completion, of the guest's memory and of the disk: it depends on COUNT
and SEED alone. ``race`` has a poller serve the queue while another thread writes to lists and entries.
"""

import ctypes
import hashlib
import os
import random
import struct
import sys
import time
from collections.abc import Iterator

from outboard import Mapping
from outboard.devices.nvme import Namespace, Nvme
from outboard.devices.nvme.command import Command, Completion
from outboard.devices.nvme.datapath.tuning import Tuning
from outboard.devices.nvme.spec import IoOpcode
from outboard.devices.nvme.status import Status
from outboard.native.jit import entry
from outboard.native.memory import load64, store64
from outboard.native.poller import Poller, stopping
from outboard.native.translation import READ, translate
from outboard.native.words import Block
from outboard.storage import NullStorage, RamStorage
from tests.devices.nvme.bench import Bench
from tests.devices.nvme.driver import FATAL, PAGE, READY

MAPS = [
    (0x1000_0000, 64, True),
    (0x1000_0000 + 64 * PAGE, 16, True),
    (0x3000_0000, 1, True),
    (0x3000_2000, 3, False),
    ((1 << 63) - 4 * PAGE, 3, True),
    ((1 << 63), 2, True),
    ((1 << 64) - 2 * PAGE, 2, True),
]
"""Address, pages, and whether it may be written to; the first holds lists, the second is sometimes gone."""

LISTS = 32
"""Pages of the first map that hold lists; behind them is data."""

POOL = 512
ENTRIES = 64
STATE, PLACES, PLACE_COUNT, WORDS, WORD_COUNT, QUEUE = 0, 8, 16, 24, 32, 40

_mprotect = ctypes.CDLL(None, use_errno=True).mprotect
_mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


@entry
def mutate(control: int, words: int) -> int:
    """Write words that hurt to lists and to entries, as fast as can be."""
    state = load64(words + STATE)
    while not stopping(control):
        state ^= (state << 13) & 0x7FFFFFFFFFFFFFFF
        state ^= state >> 7
        state ^= (state << 17) & 0x7FFFFFFFFFFFFFFF
        word = load64(load64(words + WORDS) + (state >> 8) % load64(words + WORD_COUNT) * 8)
        place = (state >> 24) % load64(words + PLACE_COUNT)
        store64(load64(words + PLACES) + place * 8, word)
        if state & 7 == 0:
            # Pointers and counts; opcodes and identifiers stay, so that there is something to do.
            slot = (state >> 40) % ENTRIES
            store64(load64(words + QUEUE) + slot * 64 + 24 + (state >> 32) % 4 * 8, word)
    return 0


class Guest:
    """Guarded memory, a controller, and commands that are wrong in every way."""

    def __init__(self, lane: str, pollers: int, seed: int) -> None:
        self.random = random.Random(seed)
        self.disk = RamStorage(1 << 20)
        tuning = Tuning(pollers=pollers, native=lane == "native", spin=5)
        self.device = Nvme(
            Namespace(self.disk), Namespace(RamStorage(1 << 20), 4096), NullStorage(1 << 20), tuning=tuning
        )
        self.bench = Bench(self.device)
        self.files = [self._make(pages) for _, pages, _ in MAPS]
        for number in range(len(MAPS)):
            self.map(number)
        self.edges = [
            (address + at + delta) & (1 << 64) - 1
            for address, pages, _ in MAPS
            for at in (0, pages * PAGE)
            for delta in (-PAGE, -512, -8, -4, 0, 2, 4, 8, 16, 512, PAGE)
        ]
        base = MAPS[0][0]
        self.good = [base + page * PAGE for page in range(LISTS, 64)]
        driver = self.bench.driver.enable()
        self.driver = driver
        self.pair = driver.create_queue_pair(1, entries=ENTRIES)
        self.fill_lists()
        self.pool = [self.command() for _ in range(POOL)]

    def _make(self, pages: int) -> int:
        fd = os.memfd_create("hostile")
        os.truncate(fd, (pages + 2) * PAGE)
        return fd

    def map(self, number: int) -> None:
        """Map a range, and take the pages around it away from this process."""
        address, pages, writable = MAPS[number]
        fd = os.dup(self.files[number])
        self.device.dma_map(Mapping(address, pages * PAGE, writable=writable, fd=fd, offset=PAGE))
        host = translate(self.device.dma.translation.address, address, pages * PAGE, READ)
        if host:
            for at in (host - PAGE, host + pages * PAGE):
                assert _mprotect(at, PAGE, 0) == 0, os.strerror(ctypes.get_errno())
            if not writable:
                assert _mprotect(host, pages * PAGE, 1) == 0

    def unmap(self, number: int) -> None:
        address, pages, _ = MAPS[number]
        self.device.dma_unmap(address, pages * PAGE)

    def address(self) -> int:
        chance = self.random.random()
        if chance < 0.5:
            return self.random.choice(self.good)
        if chance < 0.9:
            return self.random.choice(self.edges)
        return self.random.getrandbits(64)

    def list_address(self) -> int:
        at = MAPS[0][0] + self.random.randrange(LISTS) * PAGE
        return at + self.random.choice([0, 0, 8, 16, PAGE - 64, PAGE - 16, PAGE - 8])

    def descriptor(self) -> int:
        size = self.random.choice([0, 4, 16, 32, 256, 512, 4096, 16 * 300, 1 << 16, 1 << 31, 0xFFFFFFFF])
        return size | self.random.choice([0x00, 0x00, 0x10, 0x20, 0x30, 0x30, 0x41]) << 56

    def word(self) -> int:
        chance = self.random.random()
        if chance < 0.5:
            return self.address()
        return self.list_address() if chance < 0.75 else self.descriptor()

    def fill_lists(self) -> None:
        words = [self.random.choice(self.good) for _ in range(8)]
        words += [self.word() for _ in range(LISTS * PAGE // 8 - 8)]
        os.pwrite(self.files[0], struct.pack(f"<{len(words)}Q", *words), PAGE)

    def command(self) -> bytes:
        choice = self.random.choice
        if self.random.random() < 0.4:
            return self.harmless()
        sgl = self.random.random() < 0.4
        opcode = choice([IoOpcode.READ, IoOpcode.WRITE] * 8 + [0, 5, 8, 9, self.random.randrange(256)])
        return Command(
            opcode,
            flags=choice([0x40, 0x80]) if sgl else choice([0] * 20 + [0xC0, 1, 4]),
            nsid=choice([1, 1, 1, 2, 2, 3, 0, 4, 0xFFFFFFFF]),
            prp1=choice([self.list_address, self.address])() if sgl else self.address(),
            prp2=self.descriptor() if sgl else choice([self.list_address, self.address])(),
            cdw10=choice([0, 1, 100, 255, 2047, 2048, 0xFFFFFFFF]),
            cdw11=choice([0] * 12 + [1, 0x80000000]),
            cdw12=choice([0, 0, 7, 8, 15, 63, 255, 256, 1023, 0xFFFF]) | choice([0, 0, 0, 1 << 30]),
        ).encode()

    def harmless(self) -> bytes:
        """A command that succeeds, as long as nobody interferes; half of them over a list."""
        choice = self.random.choice
        opcode, lba = choice([IoOpcode.READ, IoOpcode.WRITE]), self.random.randrange(64)
        blocks = choice([0, 1, 7, 15, 63])
        list_or_page = MAPS[0][0] if blocks > 15 else choice(self.good)
        return Command(
            opcode, nsid=1, prp1=choice(self.good), prp2=list_or_page, cdw10=lba, cdw12=blocks
        ).encode()

    def batches(self, count: int) -> Iterator[int]:
        """Submit ``count`` commands, a queue at most at a time."""
        pair, pool = self.pair, self.pool
        while count > 0:
            size = min(count, self.random.randrange(1, ENTRIES))
            for _ in range(size):
                entry = bytearray(pool[self.random.getrandbits(9)])
                entry[2:4] = pair.tail.to_bytes(2, "little")
                self.driver.ram.write(pair.sq + pair.tail * 64, bytes(entry))
                pair.tail = (pair.tail + 1) % ENTRIES
            pair.ring()
            count -= size
            yield size

    def stray(self) -> None:
        """Ring where nobody lives, and with values that cannot be; never with one that could."""
        number = self.random.choice([2, 3, 4, 5, 66, 1023])
        self.bench.bar.write32(0x1000 + 4 * number, self.random.choice([ENTRIES, 0xFFFF, 0xFFFFFFFF]))

    def check(self, completions: list[Completion]) -> None:
        for completion in completions:
            Status(completion.status & 0x7FF)
        assert self.bench.driver.status & (READY | FATAL) == READY


def repeat(lane: str, count: int, seed: int) -> str:
    """Send commands, and return a digest of all that came of it."""
    guest = Guest(lane, 0, seed)
    digest = hashlib.sha256()
    gone = False
    for number, size in enumerate(guest.batches(count)):
        guest.bench.settle()
        start = guest.pair.head
        found = guest.pair.poll()
        assert len(found) == size
        guest.check(found)
        for completion in found:
            digest.update(completion.encode())
        assert guest.pair.head == (start + size) % ENTRIES
        if number % 16 == 0:
            guest.stray()
            gone = not gone
            guest.unmap(1) if gone else guest.map(1)
        if number % 64 == 0:
            guest.fill_lists()
    for file in guest.files:
        digest.update(os.pread(file, 1 << 20, 0))
    for space in guest.device.namespaces.values():
        digest.update(bytes(space.storage.read(0, 1 << 20)))
    statistics = guest.device.statistics
    served = statistics["reads"] + statistics["writes"]
    guest.bench.close()
    return f"{digest.hexdigest()} {served} {statistics['diverted']}"


def race(lane: str, count: int, seed: int) -> str:
    """Send commands while lists and entries are written to, and maps come and go."""
    guest = Guest(lane, 1, seed)
    table = guest.device.dma.translation.address
    words = Block(PAGE * 2)
    hurtful = [guest.word() for _ in range(256)]
    words.bytes[PAGE:] = struct.pack("<256Q", *hurtful) * 2
    words[STATE] = seed + 12345
    words[PLACES] = translate(table, MAPS[0][0], LISTS * PAGE, READ)
    words[PLACE_COUNT], words[WORDS], words[WORD_COUNT] = LISTS * PAGE // 8, words.address + PAGE, 256
    words[QUEUE] = translate(table, guest.pair.sq, ENTRIES * 64, READ)
    gone = False
    with Poller(mutate, words.address, name="mutator", native=lane == "native"):
        for number, size in enumerate(guest.batches(count)):
            left, end = size, time.monotonic() + 60
            while left:
                guest.bench.loop.run_once(timeout=0.001)
                found = guest.pair.poll()
                guest.check(found)
                left -= len(found)
                assert time.monotonic() < end, f"{left} commands never completed"
            if number % 8 == 0:
                guest.stray()
                gone = not gone
                guest.unmap(1) if gone else guest.map(1)
    statistics = guest.device.statistics
    guest.bench.close()
    return f"{statistics['reads'] + statistics['writes']} {statistics['diverted']}"


if __name__ == "__main__":
    what = {"repeat": repeat, "race": race}[sys.argv[2]]
    print(what(sys.argv[1], int(sys.argv[3]), int(sys.argv[4])))
