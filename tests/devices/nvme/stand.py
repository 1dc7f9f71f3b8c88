"""A running controller with an I/O queue, and what tests of faults ask of it."""

from outboard.devices.nvme.command import Command, Completion
from outboard.devices.nvme.spec import IoOpcode
from tests.devices.nvme.bench import Bench
from tests.devices.nvme.driver import PAGE, QueuePair

FLUSH = Command(IoOpcode.FLUSH, nsid=1)
BLOCK = 512


class Stand:
    """A running controller with one I/O queue, and a page of data at ``buffer``."""

    def __init__(self, bench: Bench, entries: int = 64) -> None:
        self.bench, self.device = bench, bench.device
        self.faults = bench.device.faults
        self.driver = bench.driver.enable()
        self.pair = self.driver.create_queue_pair(1, entries=entries)
        self.buffer = self.driver.ram.allocate(2 * PAGE)

    def rw(self, opcode: IoOpcode, slba: int, blocks: int = 8, **more: int) -> Command:
        return self.driver.rw(opcode, slba, blocks, self.buffer, blocks * BLOCK, **more)

    def write(self, slba: int, data: bytes, **more: int) -> Completion:
        self.driver.ram.write(self.buffer, data)
        return self.pair.execute(self.rw(IoOpcode.WRITE, slba, len(data) // BLOCK, **more))

    def read(self, slba: int, blocks: int = 8, **more: int) -> bytes:
        self.driver.ram.write(self.buffer, bytes(blocks * BLOCK))
        assert self.pair.execute(self.rw(IoOpcode.READ, slba, blocks, **more)).status == 0
        return self.driver.ram.read(self.buffer, blocks * BLOCK)

    def begin(self, command: Command, pair: QueuePair | None = None) -> int:
        """Submit a command, and let the device do what it does at once."""
        cid = (pair or self.pair).submit(command)
        (pair or self.pair).ring()
        self.bench.settle()
        return cid

    def struck(self) -> list[int]:
        return [each.struck for each in self.faults.list()]

    def diverted(self) -> int:
        """Commands that the data plane left to Python."""
        return self.device.statistics["diverted"]
