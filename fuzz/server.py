"""Whatever a client says, each answer is well formed, none is missing, and nothing of the client stays.

No exception leaves the session, no descriptor, map, view or eventfd outlives it, and nothing takes long.
"""

import struct
from collections.abc import Callable, Sequence
from typing import Any

from fuzz.choices import Choices
from fuzz.descriptors import KINDS, none_left
from fuzz.messages import command, mistaken, version
from outboard import DeviceContract
from outboard.devices.nvme import Namespace, Nvme, Tuning
from outboard.loop import Loop
from outboard.server import Session
from outboard.storage import RamStorage
from tests import raw
from tests.server.gadgets import Gadget, Handmade

MOST_STEPS = 40
PUMPS = 64
"""How often a device that waits for its client's memory hears something before the client leaves."""


def run(data: bytes) -> None:
    """One client's life with one of three devices."""
    c = Choices(data)
    device = c.pick(DEVICES)()
    with none_left():
        life = Life(device, c)
        try:
            life.live()
        finally:
            life.end()


def controller() -> DeviceContract:
    """An NVMe controller without pollers: what it does is done in the loop."""
    return Nvme(Namespace(RamStorage(1 << 16)), tuning=Tuning(pollers=0, native=False))


DEVICES: tuple[Callable[[], DeviceContract], ...] = (Gadget, Gadget, Handmade, controller)


class Life:
    """A session of `device`, and the client that `c` plays."""

    def __init__(self, device: DeviceContract, c: Choices) -> None:
        self.device: Any = device
        self.c = c
        self.loop = Loop()
        self.loop.report = self.report
        self.session = Session(device, self.loop, self.receive, self.pump)
        self.asked = b""
        self.expected = self.answered = self.pumped = 0
        self.countable = True

    def live(self) -> None:
        """From VERSION to the end of what was chosen."""
        self.feed(raw.version() if self.c.chance(0.9) else version(self.c))
        if isinstance(self.device, Nvme) and self.c.chance(0.8):
            self.enable_controller()
        steps = 0
        while self.c.more and not self.session.closed and steps < MOST_STEPS:
            steps += 1
            if isinstance(self.device, Nvme) and self.c.chance(0.3):
                self.nvme_command()
            else:
                self.feed(b"".join(command(self.c) for _ in range(self.c.pick((1, 1, 1, 2, 5)))))
            self.loop.run_once(0)
        while self.loop.run_once(0) and steps < 2 * MOST_STEPS:
            steps += 1
        if self.countable and not self.session.closed:
            assert self.answered == self.expected, f"{self.answered} answers to {self.expected} commands"

    def feed(self, data: bytes) -> None:
        """Messages, in the pieces a socket might deliver, each with some descriptors."""
        self.count(data)
        for piece in self.c.pieces(data):
            self.session.feed(piece, KINDS.some(self.c))
            if self.session.closed:
                return

    def count(self, data: bytes) -> None:
        """How many answers are due; unknown from the first message on that may be no command."""
        while data and self.countable:
            _, _, size, flags, _ = raw.HEADER.unpack_from(data) if len(data) >= 16 else (0, 0, 0, 1, 0)
            self.countable = flags in (0, raw.NO_REPLY) and 16 <= size <= len(data)
            self.expected += flags == 0
            data = data[size:]

    def enable_controller(self) -> None:
        """What a driver does first: memory, bus mastering, admin queues, the enable bit."""
        self.session.feed(raw.dma_map(0, 8 * 4096), [KINDS.copy_of_memory()])
        self.expected += 1
        fields = [(0x24, 0x0007_0007), (0x28, 0), (0x2C, 0), (0x30, 4096), (0x34, 0), (0x14, 0x0046_0001)]
        for message in (
            raw.write(7, 4, b"\x07\x00"),
            *(raw.write(0, at, _u32(value)) for at, value in fields),
        ):
            self.feed_whole(message)
        self.loop.run_once(0)

    def nvme_command(self) -> None:
        """A submission queue entry, mostly an admin command the controller knows, and its doorbell."""
        c = self.c
        opcode = c.number((6, 0, 1, 2, 4, 5, 8, 9, 10, 12, 13, 15, 16, 17, 20, 124, 128, 129, 130, 132), 16)
        words = [c.number((0, 1, 2, 3, 7, 0x10001, 4096, 8192, 3 << 12)) for _ in range(c.below(16))]
        entry = _u32(opcode & 0xFF | c.below(256) << 16) + b"".join(map(_u32, words))
        KINDS.store(c.below(8) * 64, entry[:64].ljust(64, b"\0"))
        self.feed_whole(raw.write(0, 0x1000 + 4 * c.number((0, 1, 2, 3)), _u32(c.number(range(8)))))

    def feed_whole(self, message: bytes) -> None:
        """One right message."""
        self.count(message)
        self.session.feed(message)

    def receive(self, data: bytes, fds: Sequence[int]) -> bool:
        """An answer has its true size and the flags of its kind, and an errno only if it is an error."""
        _, code, size, flags, error = raw.HEADER.unpack_from(data)
        assert size == len(data)
        if flags == 0:
            assert code in (raw.DMA_READ, raw.DMA_WRITE)
            self.asked = data
            return True
        assert flags in (raw.REPLY, raw.REPLY | raw.ERROR)
        assert (flags == raw.REPLY) == (error == 0)
        assert not error or (size, len(fds)) == (16, 0)
        self.answered += 1
        return True

    def pump(self, seconds: float) -> None:
        """The device waits for memory: it gets it, mostly; or something else, or the client leaves."""
        self.pumped += 1
        if self.pumped > PUMPS or not self.c.chance(0.95):
            self.session.closed = True
            return
        if self.c.chance(0.2):
            self.feed(command(self.c))
            return
        id, code, _, _, _ = raw.HEADER.unpack_from(self.asked)
        count = struct.unpack_from("=Q", self.asked, 24)[0] if code == raw.DMA_READ else 0
        answer = raw.message(code, self.asked[16:32] + bytes(count), id=id, flags=raw.REPLY)
        if not self.c.chance(0.7):
            self.countable = False
            answer = mistaken(self.c, answer)
        self.session.feed(answer, KINDS.some(self.c))

    def report(self, error: Exception, doing: str) -> None:
        """The device's code fails only where the test's gadget is made to."""
        if "the author's bug" not in str(error):
            raise AssertionError(f"the device failed: {doing}") from error

    def end(self) -> None:
        """The client goes, and with it all that was its."""
        self.session.close()
        if hasattr(self.device, "dma"):
            assert self.device.dma.maps == ()
            assert self.device.dma.live_views == 0
        self.loop.close()


def _u32(value: int) -> bytes:
    return struct.pack("<I", value & 0xFFFF_FFFF)
