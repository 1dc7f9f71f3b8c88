"""Broken messages by the thousand: whatever comes, both ends answer by the rules and lose nothing."""

import gc
import tracemalloc
from collections.abc import Iterator
from random import Random

import pytest

from outboard.errors import RemoteProtocolError
from outboard.protocol import (
    RULES,
    Capabilities,
    ClientConnection,
    Command,
    DmaLayout,
    ErrorReply,
    Event,
    Fatal,
    Header,
    Malformed,
    Reply,
    Request,
    ServerConnection,
)
from outboard.protocol.connection import Connection
from outboard.protocol.messages import (
    Area,
    DeviceInfo,
    DeviceReset,
    DmaMap,
    DmaRead,
    DmaReadReply,
    DmaUnmap,
    DmaWrite,
    DmaWriteReply,
    IrqInfo,
    Message,
    MigDataRead,
    MultiWrite,
    RegionInfo,
    RegionIoFds,
    RegionRead,
    RegionReadReply,
    RegionWrite,
    RegionWriteMulti,
    SetIrqs,
    Version,
)

LIMIT = 8192
OFFER = Capabilities(max_msg_fds=16, max_data_xfer_size=LIMIT)

SAMPLES: list[tuple[Command, Message]] = [
    (Command.VERSION, Version(0, 1, Capabilities())),
    (Command.VERSION, Version(0, 0, None)),
    (Command.DMA_MAP, DmaMap(32, 3, 0, 0x1000, 0x1000)),
    (Command.DMA_UNMAP, DmaUnmap(24, 0, 0x1000, 0x1000)),
    (Command.DEVICE_GET_INFO, DeviceInfo(16, 3, 9, 5)),
    (Command.DEVICE_GET_REGION_INFO, RegionInfo(64, 15, 0, 32, 0x2000, 0, (Area(0x1000, 0x1000),))),
    (Command.DEVICE_GET_REGION_IO_FDS, RegionIoFds(16, 0, 1, 0)),
    (Command.DEVICE_GET_IRQ_INFO, IrqInfo(16, 1, 2, 32)),
    (Command.DEVICE_SET_IRQS, SetIrqs(20, 36, 2, 0, 4)),
    (Command.REGION_READ, RegionRead(0, 7, 256)),
    (Command.REGION_READ, RegionReadReply(0, 7, 4, b"data")),
    (Command.REGION_WRITE, RegionWrite(4, 7, 2, b"\x04\x04")),
    (Command.DMA_READ, DmaRead(0x1000, 64)),
    (Command.DMA_READ, DmaReadReply(0x1000, 4, b"data")),
    (Command.DMA_WRITE, DmaWrite(0x1000, 4, b"data")),
    (Command.DMA_WRITE, DmaWriteReply(0x1000, 4)),
    (Command.DEVICE_RESET, DeviceReset()),
    (Command.REGION_WRITE_MULTI, RegionWriteMulti((MultiWrite(0, 0, b"abcd"),) * 2)),
    (Command.MIG_DATA_READ, MigDataRead(64, 56)),
]
CORPUS = [
    Header(number % 4, command, 16 + len(body.encode()), flags).encode() + body.encode()
    for number, (command, body) in enumerate(SAMPLES)
    for flags in (0x00, 0x01, 0x10, 0x20, 0x21)
]
INTERESTING = (0, 1, 2, 7, 15, 16, 17, 32, 4096, LIMIT, LIMIT + 1, 2**31, 2**32 - 1)


def mutated(random: Random) -> bytes:
    """One message, left whole or broken in one of the ways peers and attackers break them."""
    message = bytearray(random.choice(CORPUS))
    match random.randrange(8):
        case 0:
            message[random.randrange(len(message))] ^= 1 << random.randrange(8)
        case 1:
            at = random.randrange(0, len(message) - 3, 4)
            message[at : at + 4] = random.choice(INTERESTING).to_bytes(4, "little")
        case 2:
            del message[random.randrange(len(message)) :]
        case 3:
            message += random.randbytes(random.randrange(40))
        case 4:
            body = message[16:] + random.randbytes(random.randrange(40))
            message[4:8] = (16 + len(body)).to_bytes(4, "little")
            message[16:] = body
        case 5:
            message[16:] = random.randbytes(len(message) - 16)
    return bytes(message)


def chunks(random: Random, stream: bytes) -> Iterator[bytes]:
    """The stream as a socket might deliver it: often whole, sometimes in crumbs."""
    largest = random.choice((len(stream) + 1, len(stream) + 1, 40, 3))
    at = 0
    while at < len(stream):
        size = random.randrange(largest) + 1
        yield stream[at : at + size]
        at += size


def new_end(random: Random) -> Connection:
    """A server or client, mostly with its version agreed and some commands in flight."""
    end: Connection
    if random.random() < 0.5:
        end, hello = ServerConnection(OFFER), Header(0, 1, 20, 0)
        requests: list[Message] = [DmaRead(0x1000, 4), DmaWrite(0x1000, 4, b"data")]
    else:
        end, hello = ClientConnection(OFFER), Header(0, 1, 20, 1)
        end.version_command()
        requests = [body for command, body in SAMPLES if RULES[command].request is type(body)]
        requests = [body for body in requests if not isinstance(body, Version | DmaRead | DmaWrite)]
    end.dma_layout = random.choice(tuple(DmaLayout))
    if random.random() < 0.9:
        end.feed(hello.encode() + bytes(4))
        for body in random.sample(requests, 2):
            end.command(body)
    return end


def check(end: Connection, event: Event) -> None:
    """An event is one the rules know, and what it is answered with is well formed."""
    match event:
        case Request():
            rule = RULES[event.command]
            assert type(event.body) is rule.request
            assert rule.direction is end.receives
            assert event.body.transfer <= LIMIT
            assert len(end.refuse(event, 5)) == (0 if event.no_reply else 16)
        case Reply() | ErrorReply():
            assert RULES[event.command].direction is not end.receives or event.command is Command.VERSION
        case Malformed():
            assert isinstance(event.error, RemoteProtocolError)
            assert len(end.refuse(event, event.error.errno)) == (0 if event.no_reply else 16)
        case Fatal():
            assert len(event.answer) in (0, 16)


def fuzz(cases: int, seed: int) -> None:
    """Feeds ``cases`` broken messages to one end after the other; asserts what must hold after each."""
    random, next_fd = Random(seed), 0
    end, given, taken = new_end(random), list[int](), list[int]()
    for _ in range(cases):
        ended = False
        for chunk in chunks(random, mutated(random)):
            fds = range(next_fd, next_fd + random.choice((0, 0, 0, 1, 3)))
            next_fd += len(fds)
            given += fds
            for event in end.feed(chunk, fds):
                assert not ended
                check(end, event)
                taken += event.fds
                ended = isinstance(event, Fatal)
        if ended or random.random() < 0.1:
            assert sorted([*taken, *end.pending_fds]) == given
            end, given, taken = new_end(random), [], []


@pytest.mark.point("P24", "P138")
def test_no_broken_message_breaks_an_end() -> None:
    """Any mutated stream, cut anywhere, gives only events; each descriptor comes out exactly once."""
    fuzz(20_000, seed=1)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.point("P24", "P138")
def test_a_million_broken_messages_leave_no_memory_behind() -> None:
    """The same for 10^6 messages, with memory as flat after them as before."""
    fuzz(2_000, seed=0)
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for seed in range(100):
        fuzz(10_000, seed)
    gc.collect()
    after, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 64 * 1024
    assert peak - before < 8 * 1024 * 1024  # the interpreter's free lists of tuples take up to 5 MB
