"""Small conversations between our client and a device, held when the documentation is built.

Each has one purpose: that a page can show the messages in it. `hold` gives all that passed. They are the
same messages a socket would carry, with neither socket nor clock: two runs give the same bytes.
"""

import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from outboard import Bar, Device, Intx, MsiX
from outboard.client import migrate
from outboard.client.transport import Transport
from outboard.descriptors import close_all
from outboard.errors import RemoteError
from outboard.protocol import ClientConnection, DmaLayout
from outboard.protocol.messages import Feature, FeatureFlag, IrqIndex, MigrationState, SetIrqsFlag
from outboard.protocol.states import Direction
from outboard.testing import TestClient
from outboard.trace import Captured

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

EVENTFD, NONE, BOOL = SetIrqsFlag.DATA_EVENTFD, SetIrqsFlag.DATA_NONE, SetIrqsFlag.DATA_BOOL
TRIGGER, MASK, UNMASK = SetIrqsFlag.TRIGGER, SetIrqsFlag.MASK, SetIrqsFlag.UNMASK


class Example(Device):
    """The device of the captures: some registers, a page to map, doorbells, every kind of interrupt."""

    vendor_id, device_id, class_code = 0x1234, 0x0001, 0x120000

    mmio = Bar(0, size=0x1000)
    control = mmio.reg(0x00, reset=0x10)
    status = mmio.reg(0x04, access="ro")
    fetch = mmio.reg(0x08, access="wo")
    tail = mmio.doorbell(0x100, count=2)
    window = Bar(2, size=0x4000, mmap=[(0x1000, 0x1000), (0x3000, 0x1000)])
    whole = Bar(3, size=0x1000, mmap=True)
    line = Intx()
    msix = MsiX(vectors=4)

    @fetch.on_write
    def start(self, address: int) -> None:
        self.call_soon(lambda: self.copy(address))

    def copy(self, address: int) -> None:
        """Copies 16 bytes of guest memory to behind themselves."""
        self.dma.write(address + 16, self.dma.read(address, 16))

    @tail.on_ring
    def rung(self, queue: int, value: int | None) -> None:
        pass


class InHandler(Example):
    """The same, but it reaches memory while the client waits, as a client with a twin socket allows."""

    def start(self, address: int) -> None:
        self.copy(address)


class Recorder:
    """A `Transport` around another that keeps what passes; each call carries one message."""

    def __init__(self, inner: Transport, messages: list[Captured], socket: int = 0) -> None:
        self._inner, self._messages, self._socket = inner, messages, socket

    def send(self, data: bytes, fds: Sequence[int] = (), timeout: float | None = None) -> None:
        self._note(Direction.TO_SERVER, data, fds)
        self._inner.send(data, fds, timeout)

    def receive(self, timeout: float | None) -> tuple[bytes, Sequence[int]]:
        data, fds = self._inner.receive(timeout)
        self._note(Direction.TO_CLIENT, data, fds)
        return data, fds

    def wait(self, fd: int, timeout: float) -> bool:
        return self._inner.wait(fd, timeout)

    def serve_beside(self, fd: int, serve: Callable[[], None]) -> None:
        self._inner.serve_beside(fd, serve)

    def close(self) -> None:
        self._inner.close()

    def _note(self, direction: Direction, data: bytes, fds: Sequence[int]) -> None:
        if data:
            self._messages.append(Captured(0, direction, bytes(data), len(fds), self._socket))


class Conversation(TestClient):
    """A client whose messages are kept; ``layout`` is how it takes DMA by message to lie on the wire."""

    def __init__(
        self, messages: list[Captured], device: Device, layout: DmaLayout = DmaLayout.SPEC, **options: Any
    ) -> None:
        self._messages, self._layout = messages, layout
        super().__init__(device, strict=False, **options)

    def _open(self, transport: Transport, timeout: float | None) -> None:
        super()._open(Recorder(transport, self._messages), timeout)

    def _new_connection(self) -> ClientConnection:
        connection = super()._new_connection()
        connection.dma_layout = self._layout
        return connection

    def _start(self) -> None:
        super()._start()
        if (twin := self._link._twin) is not None:
            twin._transport = Recorder(twin._transport, self._messages, 1)  # type: ignore[assignment]


Use = Callable[[list[Captured]], None]
CONVERSATIONS: dict[str, Use] = {}


def conversation(use: Use) -> Use:
    """Makes a function that holds a conversation known under its name."""
    CONVERSATIONS[use.__name__] = use
    return use


def hold(name: str) -> list[Captured]:
    """All messages of the conversation ``name``. Raises KeyError if there is none."""
    messages: list[Captured] = []
    logging.disable()  # what is refused here is meant to be
    try:
        CONVERSATIONS[name](messages)
    finally:
        logging.disable(logging.NOTSET)
    return messages


@conversation
def hello(messages: list[Captured]) -> None:
    """VERSION and DEVICE_GET_INFO, with which every connection of our client begins."""
    with Conversation(messages, Example()):
        pass


@conversation
def refusal(messages: list[Captured]) -> None:
    """A region that does not exist is asked for."""
    with Conversation(messages, Example()) as client, suppress(RemoteError):
        client.region_info(99)


@conversation
def regions(messages: list[Captured]) -> None:
    """All nine regions are described; those that can be mapped in two steps, or one."""
    with Conversation(messages, Example()) as client:
        assert client.regions


@conversation
def access(messages: list[Captured]) -> None:
    """A read, a write, the same write posted, and a read that fails."""
    with Conversation(messages, Example()) as client:
        mmio = client.bar(0)
        mmio.read32(0x00)
        mmio.write32(0x00, 0x11)
        client.post(0, 0x00, bytes([0x12, 0, 0, 0]))
        mmio.read32(0x00)
        with suppress(RemoteError):
            client.region(0).read(0xFFE, 4)


@conversation
def together(messages: list[Captured]) -> None:
    """Three writes in one message."""
    with Conversation(messages, Example()) as client:
        client.write_many(
            [(0, 0x00, bytes([1, 0, 0, 0])), (0, 0x100, bytes([7, 0, 0, 0])), (7, 0x3C, b"\x0a")]
        )


@conversation
def interrupts(messages: list[Captured]) -> None:
    """What interrupts there are; MSI-X assigned, a vector taken away, tried, disabled; the line."""
    with Conversation(messages, Example()) as client:
        for index in IrqIndex:
            client.irq_count(index)
        vectors = client.enable_msix()
        msix = IrqIndex.MSIX
        client.set_irqs(msix, EVENTFD | TRIGGER, start=2, count=1)
        client.set_irqs(msix, EVENTFD | TRIGGER, start=2, count=1, fds=[vectors[2].fd])
        client.set_irqs(msix, BOOL | TRIGGER, start=0, count=4, bools=bytes([1, 0, 0, 1]))
        client.set_irqs(msix, NONE | TRIGGER, start=1, count=2)
        client.disable_interrupts(msix)
        line = client.enable_intx()
        client.set_irqs(IrqIndex.INTX, EVENTFD | UNMASK, start=0, count=1, fds=[line.fd])
        client.set_irqs(IrqIndex.INTX, NONE | MASK, start=0, count=1)
        client.set_irqs(IrqIndex.INTX, NONE | UNMASK, start=0, count=1)


@conversation
def memory(messages: list[Captured]) -> None:
    """Memory comes and goes, in every way there is."""
    with Conversation(messages, Example()) as client:
        client.memory(0x10000, 0x10_0000)
        client.memory(0x1000, 0x20_0000, shared=False, writable=False)
        client.memory(0x1000, 0x30_0000, access="file")
        with suppress(RemoteError):
            client.memory(0x1000, 0x10_8000)
        client.dma_unmap(0x10_0000, 0x10000)
        with suppress(RemoteError):
            client.dma_unmap(0x50_0000, 0x1000)
        client.dma_unmap_all()


@conversation
def by_message(messages: list[Captured]) -> None:
    """A device reads 16 bytes of memory that has no descriptor, and writes them back behind."""
    fetch(messages, Example())


@conversation
def by_message_qemu_10_1(messages: list[Captured]) -> None:
    """The same with a client that lays these messages out as QEMU 10.1 does."""
    fetch(messages, Example(), layout=DmaLayout.QEMU10, profile="qemu")


@conversation
def twin_socket(messages: list[Captured]) -> None:
    """The same over a twin socket, while the client waits for the reply to its own write."""
    fetch(messages, InHandler(), twin_socket=True)


def fetch(messages: list[Captured], device: Device, **options: Any) -> None:
    """Has the device copy 16 bytes of memory that has no descriptor."""
    with Conversation(messages, device, **options) as client:
        client.bus_master(True)
        ram = client.memory(0x1000, 0x10_0000, shared=False)
        ram.write(0, bytes(range(0x40, 0x50)))
        client.bar(0).write32(0x08, ram.address)
        client.serve_dma()


@conversation
def doorbells(messages: list[Captured]) -> None:
    """The places of a BAR that ring by descriptor, in the specification's layout."""
    ask_for_doorbells(messages, Example())


@conversation
def shadows(messages: list[Captured]) -> None:
    """The same of a device whose doorbells have shadows, in libvfio-user's layout."""
    ask_for_doorbells(messages, __import__("03_doorbell").Summer(), profile="libvfio-user")


def ask_for_doorbells(messages: list[Captured], device: Device, **options: Any) -> None:
    """Asks for the doorbells of BAR 0."""
    with Conversation(messages, device, **options) as client:
        close_all(client.region_io_fds(0)[1])


@conversation
def reset(messages: list[Captured]) -> None:
    """A reset."""
    with Conversation(messages, Example()) as client:
        client.reset()


@conversation
def features(messages: list[Captured]) -> None:
    """What the device can do; what it cannot; states, one of them out of reach."""
    with Conversation(messages, Example()) as client:
        migration = client.migration
        assert migration.supported
        migration.probe(Feature.MIG_DEVICE_STATE, FeatureFlag.SET)
        migration.probe(0)
        assert migration.state is MigrationState.RUNNING
        migration.state = MigrationState.STOP_COPY
        with suppress(RemoteError):
            migration.state = MigrationState.PRE_COPY


@conversation
def dirty_pages(messages: list[Captured]) -> None:
    """The device writes into the second of four pages."""
    with Conversation(messages, Example()) as client:
        client.bus_master(True)
        ram = client.memory(0x4000, 0x10_0000)
        client.migration.start_dirty_log([(ram.address, 0x4000)])
        client.bar(0).write32(0x08, ram.address + 0x1000)
        client.step()
        client.migration.dirty_pages(ram.address, 0x4000)
        client.migration.dirty_pages(ram.address, 0x4000)
        client.migration.stop_dirty_log()


@conversation
def source(messages: list[Captured]) -> None:
    """A device is moved; what its source hears."""
    with Conversation(messages, Example()) as here, TestClient(Example(), strict=False) as there:
        migrate(here, there, chunk=0x100000)


@conversation
def destination(messages: list[Captured]) -> None:
    """The same; what its destination hears."""
    with TestClient(Example(), strict=False) as here, Conversation(messages, Example()) as there:
        migrate(here, there, chunk=0x100000)
