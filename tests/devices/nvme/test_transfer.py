"""Data between guest memory and storage, by whatever way the guest memory can be reached (D01 to D06)."""

import os
import random
from collections.abc import Callable

import pytest

from outboard import Mapping
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.spec import PAGE, IoOpcode
from outboard.devices.nvme.status import Status
from outboard.errors import ConnectionLost, DmaError, RemoteError
from tests.devices.nvme.bench import RAM_ADDRESS, RAM_SIZE, Bench
from tests.devices.nvme.conftest import MakeBench
from tests.devices.nvme.driver import CC, CC_ENABLE, READY, Driver, QueuePair, do_not_retry, ended

FOUR_GIB = 1 << 32
NOWHERE = 0x9_0000_0000


@pytest.fixture
def pair(driver: Driver) -> QueuePair:
    return driver.create_queue_pair(1)


def pattern(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def write(pair: QueuePair, slba: int, address: int, data: bytes, **more: int) -> Status:
    pair.driver.ram.write(address, data)
    return ended(
        pair.execute(pair.driver.rw(IoOpcode.WRITE, slba, len(data) // 512, address, len(data), **more))
    )


def read(pair: QueuePair, slba: int, address: int, size: int) -> bytes:
    pair.driver.ram.write(address, b"\xee" * size)
    completion = pair.execute(pair.driver.rw(IoOpcode.READ, slba, size // 512, address, size))
    assert ended(completion) == Status.SUCCESS
    return pair.driver.ram.read(address, size)


@pytest.mark.point("D01")
@pytest.mark.parametrize("size", [512, PAGE, 2 * PAGE, 3 * PAGE])
@pytest.mark.parametrize("offset", [0, 4, 508, 2048, 3584, 4092])
def test_data_at_any_offset_of_a_page_arrives(pair: QueuePair, offset: int, size: int) -> None:
    there = pair.driver.ram.allocate(size, offset=offset)
    back = pair.driver.ram.allocate(size, offset=(offset + 1200) % PAGE & ~3)
    data = pattern(size)
    assert write(pair, 8, there, data) == Status.SUCCESS
    assert read(pair, 8, back, size) == data


@pytest.mark.point("D01")
def test_a_read_touches_nothing_outside_its_buffer(pair: QueuePair) -> None:
    buffer = pair.driver.ram.allocate(3 * PAGE)
    pair.driver.ram.write(buffer, b"\xaa" * 3 * PAGE)
    pair.execute(pair.driver.rw(IoOpcode.READ, 0, 8, buffer + 1024, PAGE))
    around = pair.driver.ram.read(buffer, 3 * PAGE)
    assert around == b"\xaa" * 1024 + bytes(PAGE) + b"\xaa" * (2 * PAGE - 1024)


@pytest.mark.point("D03")
@pytest.mark.parametrize("list_offset", [0, 8, 2048, 4080, 4088])
def test_lists_that_begin_anywhere_and_chain_carry_the_data(make_bench: MakeBench, list_offset: int) -> None:
    driver = make_bench(mdts=10).driver.enable()
    pair = driver.create_queue_pair(1)
    size = 3 << 20
    buffer = driver.ram.allocate(size)
    pages = list(range(buffer, buffer + size, PAGE))
    random.Random(2).shuffle(pages)
    data = pattern(size)
    for number, page in enumerate(pages):
        driver.ram.write(page, data[number * PAGE : (number + 1) * PAGE])
    prp2 = driver.prp_list(pages[1:], offset=list_offset)
    command = Command(IoOpcode.WRITE, nsid=1, prp1=pages[0], prp2=prp2, cdw12=size // 512 - 1)
    assert ended(pair.execute(command)) == Status.SUCCESS
    assert driver_storage_holds(pair, data)


def driver_storage_holds(pair: QueuePair, data: bytes) -> bool:
    """Read back in pieces, through one aligned buffer."""
    piece = 512 << 10
    buffer = pair.driver.ram.allocate(piece)
    return all(
        read(pair, at // 512, buffer, piece) == data[at : at + piece] for at in range(0, len(data), piece)
    )


@pytest.mark.point("D02", "D03")
@pytest.mark.parametrize(
    ("prp1", "prp2", "pages"),
    [(1, 0, 1), (0, 0x1004, 2), (0, 0x1004, 3)],
)
def test_misaligned_prps_are_refused_with_do_not_retry(
    pair: QueuePair, prp1: int, prp2: int, pages: int
) -> None:
    base = pair.driver.ram.allocate(8 * PAGE)
    completion = pair.execute(
        Command(IoOpcode.READ, nsid=1, prp1=base + prp1, prp2=base + prp2, cdw12=8 * pages - 1)
    )
    assert ended(completion) == Status.PRP_OFFSET_INVALID
    assert do_not_retry(completion)
    assert read(pair, 0, base, 512) == bytes(512)


@pytest.mark.point("D04")
@pytest.mark.parametrize("opcode", [IoOpcode.READ, IoOpcode.WRITE, IoOpcode.COMPARE])
@pytest.mark.parametrize("which", ["first", "second", "list", "entry"])
def test_unmapped_memory_is_a_data_transfer_error(pair: QueuePair, opcode: IoOpcode, which: str) -> None:
    base = pair.driver.ram.allocate(PAGE)
    prps = {
        "first": (NOWHERE, 0, 8),
        "second": (base, NOWHERE, 16),
        "list": (base, NOWHERE, 24),
        "entry": (base, pair.driver.prp_list([base, NOWHERE]), 24),
    }
    prp1, prp2, blocks = prps[which]
    completion = pair.execute(Command(opcode, nsid=1, prp1=prp1, prp2=prp2, cdw12=blocks - 1))
    assert ended(completion) == Status.DATA_TRANSFER_ERROR
    assert not do_not_retry(completion)
    assert read(pair, 0, base, PAGE) == bytes(PAGE), "nothing of a failed write was stored"


@pytest.mark.point("D04")
def test_memory_that_is_unmapped_between_commands_fails_them_and_no_others(
    bench: Bench, pair: QueuePair
) -> None:
    extra = NOWHERE
    bench.device.dma_map(Mapping(extra, PAGE, fd=os.dup(bench.fd)))
    command = Command(IoOpcode.READ, nsid=1, prp1=extra, cdw12=7)
    assert ended(pair.execute(command)) == Status.SUCCESS
    bench.device.dma_unmap(extra, PAGE)
    assert ended(pair.execute(command)) == Status.DATA_TRANSFER_ERROR
    assert read(pair, 0, pair.driver.data, 512) == bytes(512)


@pytest.mark.point("D04")
def test_memory_the_device_may_not_write_is_a_data_transfer_error(bench: Bench, pair: QueuePair) -> None:
    bench.device.dma_map(Mapping(NOWHERE, PAGE, writable=False, fd=os.dup(bench.fd)))
    reading = Command(IoOpcode.READ, nsid=1, prp1=NOWHERE, cdw12=7)
    writing = Command(IoOpcode.WRITE, nsid=1, prp1=NOWHERE, cdw12=7)
    assert ended(pair.execute(reading)) == Status.DATA_TRANSFER_ERROR
    assert ended(pair.execute(writing)) == Status.SUCCESS


@pytest.mark.point("D05")
@pytest.mark.parametrize("before", [4, 512, PAGE, 5 * PAGE + 4])
def test_data_may_cross_mappings_and_four_gib(pair: QueuePair, before: int) -> None:
    data = pattern(8 * PAGE)
    address = FOUR_GIB - before
    assert RAM_ADDRESS < address < FOUR_GIB < address + len(data)
    assert write(pair, 0, address, data) == Status.SUCCESS
    back = pair.driver.ram.allocate(len(data))
    assert read(pair, 0, back, len(data)) == data
    assert read(pair, 0, address, len(data)) == data


@pytest.mark.point("D05")
def test_the_last_bytes_of_a_mapping_can_be_used_and_not_one_more(pair: QueuePair) -> None:
    last = RAM_ADDRESS + RAM_SIZE - 512
    data = pattern(512)
    assert write(pair, 0, last, data) == Status.SUCCESS
    beyond = Command(IoOpcode.READ, nsid=1, prp1=last + 4, prp2=RAM_ADDRESS + RAM_SIZE, cdw12=0)
    assert ended(pair.execute(beyond)) == Status.DATA_TRANSFER_ERROR


@pytest.mark.point("D06")
@pytest.mark.parametrize("opcode", [IoOpcode.READ, IoOpcode.WRITE, IoOpcode.COMPARE])
def test_a_transfer_has_at_most_mdts_bytes(make_bench: MakeBench, opcode: IoOpcode) -> None:
    driver = make_bench(mdts=5).driver.enable()
    pair = driver.create_queue_pair(1)
    size = 128 << 10
    buffer = driver.ram.allocate(size + 512)
    assert ended(pair.execute(driver.rw(opcode, 0, size // 512, buffer, size))) == Status.SUCCESS
    completion = pair.execute(driver.rw(opcode, 0, size // 512 + 1, buffer, size + 512))
    assert ended(completion) == Status.INVALID_FIELD
    assert do_not_retry(completion)


class Messages:
    """The client's end of DMA by message: another memory, and what the client does meanwhile."""

    def __init__(self) -> None:
        self.bytes = bytearray(1 << 20)
        self.base = 0xA_0000_0000
        self.refuse = False
        self.meanwhile: Callable[[], None] = lambda: None

    def read(self, address: int, count: int) -> bytes:
        self._serve()
        start = address - self.base
        return bytes(self.bytes[start : start + count])

    def write(self, address: int, data: bytes) -> None:
        self._serve()
        start = address - self.base
        self.bytes[start : start + len(data)] = data

    def _serve(self) -> None:
        if self.refuse:
            raise RemoteError("the client refused", command="DMA_READ", errno=5)
        meanwhile, self.meanwhile = self.meanwhile, lambda: None
        meanwhile()


@pytest.fixture
def messages(bench: Bench) -> Messages:
    messages = Messages()
    bench.device.connected(messages)
    bench.device.dma_map(Mapping(messages.base, len(messages.bytes)))
    return messages


@pytest.mark.point("PCI02")
def test_data_and_lists_may_be_reached_by_message(messages: Messages, pair: QueuePair) -> None:
    base, data = messages.base, pattern(3 * PAGE)
    messages.bytes[PAGE : 4 * PAGE] = data
    messages.bytes[: 2 * 8] = (base + 2 * PAGE).to_bytes(8, "little") + (base + 3 * PAGE).to_bytes(
        8, "little"
    )
    for opcode in (IoOpcode.WRITE, IoOpcode.COMPARE):
        command = Command(opcode, nsid=1, prp1=base + PAGE, prp2=base, cdw12=23)
        assert ended(pair.execute(command)) == Status.SUCCESS
    back = Command(IoOpcode.READ, nsid=1, prp1=base + 8 * PAGE, prp2=base + 0x800, cdw12=23)
    messages.bytes[0x800:0x810] = b"".join((base + n * PAGE).to_bytes(8, "little") for n in (9, 10))
    assert ended(pair.execute(back)) == Status.SUCCESS
    assert messages.bytes[8 * PAGE : 11 * PAGE] == data


@pytest.mark.point("D04")
def test_a_refused_message_is_a_data_transfer_error(messages: Messages, pair: QueuePair) -> None:
    messages.refuse = True
    command = Command(IoOpcode.READ, nsid=1, prp1=messages.base, cdw12=7)
    assert ended(pair.execute(command)) == Status.DATA_TRANSFER_ERROR
    messages.refuse = False
    assert ended(pair.execute(command)) == Status.SUCCESS


@pytest.mark.point("S01", "S03")
def test_a_reset_while_a_message_is_awaited_ends_everything(
    bench: Bench, messages: Messages, pair: QueuePair
) -> None:
    driver = pair.driver
    for cid in range(3):
        pair.submit(Command(IoOpcode.READ, nsid=1, prp1=messages.base, cdw12=7), cid=cid)
    messages.meanwhile = driver.disable
    pair.ring()
    bench.settle()
    assert driver.status == 0
    assert pair.poll(acknowledge=False) == []


@pytest.mark.point("S03")
def test_a_controller_that_is_reset_and_enabled_while_a_message_is_awaited_starts_afresh(
    bench: Bench, messages: Messages, pair: QueuePair
) -> None:
    driver = pair.driver

    def restart() -> None:
        driver.disable()
        driver.enable()
        driver.admin.submit(Command(0x18), cid=77)
        driver.admin.ring()

    messages.meanwhile = restart
    pair.submit(Command(IoOpcode.READ, nsid=1, prp1=messages.base, cdw12=7))
    pair.ring()
    bench.settle()
    assert pair.poll(acknowledge=False) == []
    assert [c.cid for c in driver.admin.poll()] == [77]


@pytest.mark.point("R14")
def test_a_shutdown_while_a_message_is_awaited_ends_the_batch(
    bench: Bench, messages: Messages, pair: QueuePair
) -> None:
    messages.meanwhile = lambda: bench.bar.write32(CC, CC_ENABLE | 1 << 14)
    for cid in range(3):
        pair.submit(Command(IoOpcode.READ, nsid=1, prp1=messages.base, cdw12=7), cid=cid)
    pair.ring()
    bench.settle()
    assert pair.driver.status == READY | 2 << 2
    assert [c.cid for c in pair.poll()] == [0], "what was under way is finished, nothing else is begun"


def test_commands_that_come_while_a_message_is_awaited_are_taken_afterwards(
    bench: Bench, messages: Messages, pair: QueuePair
) -> None:
    def more() -> None:
        pair.submit(Command(IoOpcode.FLUSH, nsid=1), cid=9)
        pair.ring()
        bench.settle()

    messages.meanwhile = more
    pair.submit(Command(IoOpcode.READ, nsid=1, prp1=messages.base, cdw12=7), cid=8)
    pair.ring()
    bench.settle()
    assert [c.cid for c in pair.poll()] == [8, 9]


def test_a_client_that_vanishes_while_a_message_is_awaited_harms_nothing(
    bench: Bench, messages: Messages, pair: QueuePair
) -> None:
    def vanish() -> None:
        bench.device.disconnected()
        raise DmaError("connection lost")

    messages.meanwhile = vanish
    pair.submit(Command(IoOpcode.READ, nsid=1, prp1=messages.base, cdw12=7), cid=8)
    pair.ring()
    bench.settle()
    bench.map()
    bench.device.connected(None)
    bench.settle()
    (completion,) = pair.poll()
    assert ended(completion) == Status.DATA_TRANSFER_ERROR
    assert ended(pair.execute(Command(IoOpcode.FLUSH, nsid=1))) == Status.SUCCESS


def test_nothing_is_retried_for_a_client_that_left_while_its_memory_was_awaited(
    bench: Bench, messages: Messages, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outboard.devices.nvme.patience.RETRY", 0.0)
    driver.enable()
    driver.disable()
    driver.bar.write64(0x28, messages.base)
    driver.bar.write32(0x14, 0x460001)

    def leave() -> None:
        bench.device.disconnected()
        messages.refuse = True
        raise ConnectionLost("the client left")

    messages.meanwhile = leave
    driver.bar.write32(0x1000, 1)
    bench.step()
    assert not bench.loop.run_once(timeout=0), "it would use up the patience the next client is due"
