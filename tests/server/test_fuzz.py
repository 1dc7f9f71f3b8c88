"""Broken messages by the thousand, with real descriptors: a session keeps to the rules and loses nothing."""

import gc
import logging
import os
import resource
import struct
import sys
from collections.abc import Iterator, Sequence
from random import Random

import pytest

from outboard.loop import Loop
from outboard.server import Session
from tests import raw
from tests.server.gadgets import Gadget

PAGE = 4096
INTERESTING = (0, 1, 2, 4, 15, 16, 24, 32, 64, PAGE, 1 << 20, (1 << 31), (1 << 32) - 1)
CORPUS = [
    raw.version(),
    raw.device_info(),
    *(raw.region_info(index, argsz) for index in (0, 2, 3, 7) for argsz in (32, 4096)),
    raw.region_io_fds(0),
    *(raw.irq_info(index) for index in range(5)),
    *(raw.set_irqs(index, flags, 0, 1) for index in range(5) for flags in (0x24, 0x21, 0x09, 0x11, 0x14)),
    raw.set_irqs(raw.MSIX, raw.BOOL | raw.TRIGGER, 0, 4, b"\1\0\1\1"),
    *(raw.read(region, 0, count) for region in (0, 1, 2, 3, 4, 6, 7) for count in (1, 4, 8, 256)),
    *(raw.write(region, offset, b"\xff" * 4) for region in (0, 1, 2, 4, 7) for offset in (0, 4, 0x20, 0x40)),
    raw.write_multi((0, 0, b"abcd"), (7, 4, b"\x07\x04")),
    *(raw.dma_map(address, PAGE) for address in range(0, 8 * PAGE, PAGE)),
    *(raw.dma_unmap(address, PAGE) for address in range(0, 8 * PAGE, PAGE)),
    raw.dma_unmap(0, 0, flags=2),
    raw.reset(),
    raw.message(raw.FEATURE, struct.pack("=II", 64, 0x10001) + bytes(56)),
    raw.message(raw.DMA_READ, bytes(16), flags=raw.REPLY),
    raw.message(raw.DMA_WRITE, flags=raw.REPLY | raw.ERROR, error=14),
]


def mutated(random: Random) -> bytes:
    """A message of the corpus with some of its fields changed; mostly its header stays true to its size."""
    data = bytearray(random.choice(CORPUS))
    for _ in range(random.choice((0, 1, 1, 2, 4))):
        match random.randrange(5):
            case 0:
                data[random.randrange(len(data))] ^= 1 << random.randrange(8)
            case 1 if len(data) >= 20:
                struct.pack_into("=I", data, random.randrange(16, len(data) - 3), random.choice(INTERESTING))
            case 2 if len(data) > 16:
                del data[random.randrange(16, len(data) + 1) :]
            case 3:
                data += random.randbytes(random.choice((1, 4, 24)))
            case 4:
                struct.pack_into("=I", data, 8, random.choice((0x00, 0x01, 0x10, 0x20, 0x21, 0x40)))
    if random.random() < 0.98:
        struct.pack_into("=I", data, 4, len(data))
    return bytes(data)


class Fuzzer:
    """Sessions of one gadget, one after the other, and what they may hand us: descriptors, answers, time."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.loop = Loop()
        self.loop.report = self.report
        self.gadget = Gadget()
        self.file = raw.memory_file(PAGE)
        self.event = os.eventfd(0, os.EFD_NONBLOCK)
        self.session: Session | None = None
        self.answered = self.sessions = 0
        self.asked = b""

    def run(self, messages: int) -> None:
        """Feeds that many messages: whole, glued together, or byte by byte."""
        fed = 0
        while fed < messages:
            session = self.open_session()
            glued = [mutated(self.random) for _ in range(self.random.choice((1, 1, 1, 2, 5)))]
            fed += len(glued)
            for chunk in self.chunks(b"".join(glued)):
                session.feed(chunk, self.descriptors())
                if session.closed:
                    break
            self.loop.run_once(0)
            if session.closed or self.random.random() < 0.005:
                self.end_session()

    def open_session(self) -> Session:
        if self.session is None:
            self.sessions += 1
            self.session = Session(self.gadget, self.loop, self.receive, self.pump)
            self.session.feed(raw.version())
        return self.session

    def chunks(self, data: bytes) -> Iterator[bytes]:
        match self.random.randrange(8):
            case 0:
                yield from (bytes([byte]) for byte in data)
            case 1 if len(data) > 1:
                cut = self.random.randrange(1, len(data))
                yield from (data[:cut], data[cut:])
            case _:
                yield data

    def descriptors(self) -> Sequence[int]:
        count = self.random.choice((0, 0, 0, 1, 1, 2, 4))
        return [os.dup(self.random.choice((self.file, self.event, self.event))) for _ in range(count)]

    def receive(self, data: bytes, fds: Sequence[int]) -> bool:
        """Every message has its true size and the flags of its kind, and an errno only if it is an error."""
        _, command, size, flags, error = raw.HEADER.unpack_from(data)
        assert size == len(data)
        if flags == 0:
            assert command in (raw.DMA_READ, raw.DMA_WRITE)
            self.asked = data
            return True
        assert flags in (raw.REPLY, raw.REPLY | raw.ERROR)
        assert (flags == raw.REPLY) == (error == 0)
        if error:
            assert (size, len(fds)) == (16, 0)
        assert all(os.fstat(fd) for fd in fds)
        self.answered += 1
        return True

    def pump(self, seconds: float) -> None:
        """The device waits for memory: what it gets is mostly right; else the client leaves."""
        assert self.session is not None
        id, command, _, _, _ = raw.HEADER.unpack_from(self.asked)
        count = struct.unpack_from("=Q", self.asked, 24)[0] if command == raw.DMA_READ else 0
        answer = bytearray(raw.message(command, self.asked[16:32] + bytes(count), id=id, flags=raw.REPLY))
        if self.random.random() < 0.3:
            answer[self.random.randrange(len(answer))] ^= 1 << self.random.randrange(8)
        self.session.feed(bytes(answer), self.descriptors())
        self.session.closed |= self.random.random() < 0.1

    def report(self, error: Exception, doing: str) -> None:
        assert "the author's bug" in str(error), (doing, error)

    def end_session(self) -> None:
        if self.session is not None:
            self.session.close()
            self.session = None
            self.gadget.log.clear()

    def close(self) -> None:
        self.loop.close()
        os.close(self.file)
        os.close(self.event)


def fuzz(seed: int, messages: int) -> Fuzzer:
    fuzzer = Fuzzer(seed)
    before = raw.open_descriptors()
    fuzzer.run(messages)
    fuzzer.end_session()
    assert raw.open_descriptors() == before
    fuzzer.close()
    return fuzzer


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.point("P19", "P24", "PCI04")
@pytest.mark.parametrize("seed", range(5))
def test_thousands_of_broken_messages_are_answered_by_the_rules_and_leak_nothing(seed: int) -> None:
    """Whatever is fed, every answer is well formed, no exception leaves the session, no descriptor stays."""
    fuzzer = fuzz(seed, 2000)
    assert fuzzer.answered > 300
    assert fuzzer.sessions > 3


def peak_memory() -> int:
    """The most bytes of memory this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


@pytest.mark.soak
@pytest.mark.point("P24", "PCI04")
def test_a_million_broken_messages_are_answered_by_the_rules_and_leak_nothing() -> None:
    """As above; and after the first tenth the memory in use grows no more."""
    fuzzer = Fuzzer(20)
    before = raw.open_descriptors()
    fuzzer.run(100_000)
    gc.collect()
    blocks, most = sys.getallocatedblocks(), peak_memory()
    fuzzer.run(900_000)
    gc.collect()
    assert sys.getallocatedblocks() - blocks < 1000
    assert peak_memory() - most < 32 << 20
    fuzzer.end_session()
    assert raw.open_descriptors() == before
    fuzzer.close()
