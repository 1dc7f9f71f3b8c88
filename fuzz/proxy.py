"""Whatever two peers say to each other, a proxy passes on what it was not told to break, and nothing stays.

Without faults each end hears exactly the bytes the other said, in their order. What was captured can be read
again, and described. No descriptor outlives the conversation.
"""

import array
import socket
from collections.abc import Sequence
from contextlib import suppress
from io import BytesIO

from fuzz.choices import Choices
from fuzz.codec import to_client
from fuzz.descriptors import KINDS, none_left
from fuzz.messages import command, version
from outboard.descriptors import ANCILLARY, close_all, received
from outboard.loop import Loop
from outboard.trace import Captured, CaptureReader, CaptureWriter, describe
from outboard.trace.fault_spec import parse_fault
from outboard.trace.faults import Fault, Faults
from outboard.trace.proxy import Conversation
from tests import raw

MOST_STEPS, MOST_TURNS = 20, 50
FAULTS = (
    "delay:ms=0.1",
    "error:command=REGION_READ",
    "error:direction=to-client,every=2,errno=EINVAL",
    "flip:bits=3",
    "flip:direction=to-server,probability=0.5",
    "disconnect:nth=5",
    "drop-interrupt:index=MSIX",
    "error:command=DMA_MAP,region=bar0,offset=0+4",
)
TWIN = b'{"capabilities":{"max_msg_fds":8,"twin_socket":{"supported":true,"fd_index":0}}}\0'


def run(data: bytes) -> None:
    """One conversation between two ends that say anything, through a proxy with some faults."""
    c = Choices(data)
    faults = [parse_fault(c.pick(FAULTS)) for _ in range(c.pick((0, 0, 1, 2)))]
    with none_left():
        stage = Stage(c, faults)
        try:
            stage.play()
        finally:
            stage.end()
        stage.check()


class Stage:
    """A conversation between two sockets that `c` plays, with `faults` between them."""

    def __init__(self, c: Choices, faults: Sequence[Fault]) -> None:
        self.c = c
        self.is_faithful = not faults
        self.loop = Loop()
        self.loop.report = self.report
        self.file = BytesIO()
        self.writer = CaptureWriter(self.file)
        self.writer.connection("server")
        self.captured: list[Captured] = []
        self.closed = ""
        (self.client, ours), (self.server, theirs) = socket.socketpair(), socket.socketpair()
        self.ends = (self.client, self.server)
        self.said = [b"", b""]
        self.heard = [b"", b""]
        for end in self.ends:
            end.setblocking(False)
        self.conversation = Conversation(
            self.loop,
            ours,
            theirs,
            Faults(faults, "0"),
            self.observe,
            0,
            self.on_close,
            share_memory=c.chance(0.8),
        )

    def play(self) -> None:
        """VERSION first, mostly; then what either end likes to say."""
        if self.c.chance(0.9):
            self.greet()
        steps = 0
        while self.c.more and not self.closed and steps < MOST_STEPS:
            steps += 1
            if self.c.chance(0.6):
                self.say(0, b"".join(command(self.c) for _ in range(self.c.pick((1, 1, 2, 5)))))
            elif self.c.chance(0.97):
                self.say(1, to_client(self.c))
            else:
                self.c.pick(self.ends).shutdown(socket.SHUT_WR)
        self.turn()

    def greet(self) -> None:
        """Both ends introduce themselves; the server may offer a twin socket."""
        self.say(0, version(self.c) if self.c.chance(0.3) else raw.version(text=TWIN))
        answer = raw.message(raw.VERSION, bytes(4) + TWIN, flags=raw.REPLY)
        if self.c.chance(0.7):
            ours, theirs = socket.socketpair()
            with ours, theirs:
                self.send(1, answer, [theirs.fileno()])
        else:
            self.say(1, answer)

    def say(self, end: int, data: bytes) -> None:
        """Some bytes, in the pieces a socket might deliver, with some descriptors."""
        for piece in self.c.pieces(data):
            if piece:
                fds = KINDS.some(self.c)
                try:
                    self.send(end, piece, fds)
                finally:
                    close_all(fds)

    def send(self, end: int, piece: bytes, fds: Sequence[int]) -> None:
        """One sendmsg, and what follows from it."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        with suppress(OSError):  # the proxy has closed, or lets us wait
            sent = self.ends[end].sendmsg([piece], rights, socket.MSG_NOSIGNAL)
            self.said[end] += piece[:sent]
        self.turn()

    def turn(self) -> None:
        """The proxy works until it has nothing to do; each end hears what comes."""
        for _ in range(MOST_TURNS):
            worked = self.loop.run_once(0)
            for number, end in enumerate(self.ends):
                with suppress(OSError):
                    data, ancillary, _, _ = end.recvmsg(1 << 16, ANCILLARY)
                    close_all(received(ancillary))
                    self.heard[number] += data
                    worked |= bool(data)
            if not worked:
                return

    def observe(self, captured: Captured) -> None:
        """What the proxy has seen."""
        self.captured.append(captured)
        self.writer.write(captured)

    def on_close(self, why: str) -> None:
        """The conversation is over."""
        self.closed = why

    def report(self, error: Exception, doing: str) -> None:
        """A proxy never fails by itself."""
        raise AssertionError(f"the proxy failed: {doing}") from error

    def end(self) -> None:
        """Everything is let go."""
        self.conversation.close("the input is used up")
        for end in self.ends:
            end.close()
        self.loop.close()

    def check(self) -> None:
        """Nothing was changed, and what was captured can be read."""
        if self.is_faithful:
            assert self.said[0].startswith(self.heard[1])
            assert self.said[1].startswith(self.heard[0])
        self.file.seek(0)
        with CaptureReader(self.file) as reader:
            read = list(reader)
        assert read == self.captured
        for described in describe(read):
            assert str(described)
