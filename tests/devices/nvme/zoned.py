"""A driver of one zoned namespace, for tests: what a host does with zones, in blocks of 512 bytes."""

import struct
from dataclasses import dataclass
from typing import Any

from outboard.devices.nvme import Namespace, ZoneLayout
from outboard.devices.nvme.command import Command, Completion
from outboard.devices.nvme.spec import IoOpcode
from outboard.devices.nvme.status import Status
from outboard.devices.nvme.zone import ZoneState
from outboard.devices.nvme.zone_commands import Receive, Send
from outboard.storage import RamStorage, Storage
from tests.devices.nvme.driver import CC_ENABLE, Driver, QueuePair, ended

ALL_SETS = CC_ENABLE | 6 << 4
BLOCK = 512
SIZE, CAPACITY, ZONES = 16, 12, 8
"""Of the zones of these tests: blocks, blocks that can be written, how many there are."""

NO_POINTER = (1 << 64) - 1
PARTIAL, ALL, ALLOCATE, FUA = 1 << 16, 1 << 8, 1 << 9, 1 << 30


def zoned(
    storage: Storage | None = None, *, size: int = SIZE, capacity: int = CAPACITY, **more: Any
) -> Namespace:
    """A namespace with such zones; sizes in ``more`` that end with _blocks are in blocks."""
    layout = {
        name.removesuffix("_blocks"): value * (BLOCK if name.endswith("_blocks") else 1)
        for name, value in more.items()
    }
    storage = storage or RamStorage(ZONES * size * BLOCK)
    return Namespace(storage, zoned=ZoneLayout(size=size * BLOCK, capacity=capacity * BLOCK, **layout))


@dataclass(frozen=True)
class Descriptor:
    """What a report says of a zone."""

    state: ZoneState
    attributes: int
    capacity: int
    start: int
    pointer: int
    extension: bytes = b""


class Host:
    """Does things with the zones of namespace ``nsid`` by ``pair``."""

    def __init__(self, driver: Driver, nsid: int = 1, qid: int = 1) -> None:
        driver.enable(cc=ALL_SETS)
        self.driver, self.nsid = driver, nsid
        self.pair: QueuePair = driver.create_queue_pair(qid)
        self.buffer = driver.ram.allocate(64 << 10)

    def execute(self, opcode: IoOpcode, slba: int, **fields: int) -> Completion:
        prp1, prp2 = self.driver.prps(self.buffer, fields.pop("size", 4096))
        return self.pair.execute(
            Command(
                opcode,
                nsid=self.nsid,
                prp1=prp1,
                prp2=prp2,
                cdw10=slba & 0xFFFF_FFFF,
                cdw11=slba >> 32,
                **fields,
            )
        )

    def data(self, opcode: IoOpcode, slba: int, data: bytes, cdw12: int = 0) -> Completion:
        """A command that brings data along."""
        self.driver.ram.write(self.buffer, data)
        return self.execute(opcode, slba, cdw12=len(data) // BLOCK - 1 | cdw12, size=len(data))

    def write(self, slba: int, data: bytes | int, cdw12: int = 0) -> Status:
        """Write; a number stands for as many blocks of something."""
        return ended(self.data(IoOpcode.WRITE, slba, _filled(data), cdw12))

    def append(self, slba: int, data: bytes | int) -> Completion:
        return self.data(IoOpcode.ZONE_APPEND, slba, _filled(data))

    def read(self, slba: int, blocks: int) -> tuple[Status, bytes]:
        size = blocks * BLOCK
        self.driver.ram.write(self.buffer, b"?" * size)
        status = ended(self.execute(IoOpcode.READ, slba, cdw12=blocks - 1, size=size))
        return status, self.driver.ram.read(self.buffer, size)

    def send(self, action: Send | int, zone: int = 0, flags: int = 0, *, slba: int | None = None) -> Status:
        """Zone Management Send."""
        where = zone * SIZE if slba is None else slba
        return ended(self.execute(IoOpcode.ZONE_MANAGEMENT_SEND, where, cdw13=action | flags))

    def receive(
        self, size: int = 4096, slba: int = 0, action: Receive | int = 0, listed: int = 0, flags: int = 0
    ) -> tuple[Status, bytes]:
        """Zone Management Receive."""
        completion = self.execute(
            IoOpcode.ZONE_MANAGEMENT_RECEIVE,
            slba,
            cdw12=size // 4 - 1,
            cdw13=action | listed << 8 | flags,
            size=size,
        )
        return ended(completion), self.driver.ram.read(self.buffer, size)

    def report(self, extension: int = 0, listed: int = 0, slba: int = 0) -> list[Descriptor]:
        """The zones, as a report describes them."""
        action = Receive.EXTENDED_REPORT if extension else Receive.REPORT
        status, data = self.receive(32 << 10, slba, action, listed)
        assert status == Status.SUCCESS
        count = struct.unpack_from("<Q", data)[0]
        return [_descriptor(data, 64 + number * (64 + extension), extension) for number in range(count)]

    def zone(self, number: int) -> Descriptor:
        return self.report()[number]

    def states(self) -> list[ZoneState]:
        return [zone.state for zone in self.report()]


def _descriptor(data: bytes, at: int, extension: int) -> Descriptor:
    kind, state, attributes, capacity, start, pointer = struct.unpack_from("<BBB5xQQQ", data, at)
    assert kind == 2
    assert data[at + 32 : at + 64] == bytes(32)
    return Descriptor(
        ZoneState(state >> 4), attributes, capacity, start, pointer, data[at + 64 : at + 64 + extension]
    )


def _filled(data: bytes | int) -> bytes:
    return b"".join(bytes([1 + n % 255]) * BLOCK for n in range(data)) if isinstance(data, int) else data
