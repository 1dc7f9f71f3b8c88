"""MSI-X, MSI and INTx: who hears of a completion, and how often (Q17, R09)."""

import os
from collections.abc import Iterator

import pytest

from outboard import IrqAction, IrqData
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.layouts import IDENTIFY_CONTROLLER
from outboard.devices.nvme.spec import PAGE, AdminOpcode, Cns, IoOpcode
from outboard.devices.nvme.status import Status
from tests.devices.nvme.bench import Bench
from tests.devices.nvme.driver import INTMC, INTMS, Driver, QueuePair, ended

INTX, MSI, MSIX = 0, 1, 2
FLUSH = Command(IoOpcode.FLUSH, nsid=1)
CAPABILITY_POINTER = 0x34


class Listener:
    """The client's eventfds for the vectors of one index."""

    def __init__(self, bench: Bench, index: int, count: int) -> None:
        self.fds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(count)]
        bench.device.set_irqs(
            index, IrqAction.TRIGGER, IrqData.EVENTFD, 0, count, fds=[os.dup(fd) for fd in self.fds]
        )

    def heard(self, vector: int = 0) -> int:
        """How often the vector fired since last asked."""
        try:
            return os.eventfd_read(self.fds[vector])
        except BlockingIOError:
            return 0

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)


def find_capability(bench: Bench, identifier: int) -> int:
    at = bench.config.read(CAPABILITY_POINTER, 1)
    while bench.config.read(at, 1) != identifier:
        at = bench.config.read(at + 1, 1)
        assert at, f"no capability {identifier:#x}"
    return at


@pytest.fixture
def msix(bench: Bench) -> Iterator[Listener]:
    bench.config.write(find_capability(bench, 0x11) + 2, 2, 0x8000)
    listener = Listener(bench, MSIX, 129)
    yield listener
    listener.close()


@pytest.fixture
def msi(bench: Bench) -> Iterator[Listener]:
    bench.config.write(find_capability(bench, 0x05) + 2, 2, 1)
    listener = Listener(bench, MSI, 1)
    yield listener
    listener.close()


@pytest.fixture
def line(bench: Bench) -> Iterator[Listener]:
    listener = Listener(bench, INTX, 1)
    yield listener
    listener.close()


def batch(bench: Bench, pair: QueuePair, count: int = 5) -> None:
    """Complete some commands, and consume nothing."""
    for _ in range(count):
        pair.submit(FLUSH)
    pair.ring()
    bench.settle()


@pytest.mark.point("Q17")
def test_each_completion_queue_has_its_vector_and_a_batch_one_interrupt(bench: Bench, msix: Listener) -> None:
    driver = bench.driver.enable()
    first, second = driver.create_queue_pair(1, vector=1), driver.create_queue_pair(2, vector=32)
    assert msix.heard(0) == 4, "one for each admin command"
    batch(bench, first)
    assert (msix.heard(1), msix.heard(32), msix.heard(0)) == (1, 0, 0)
    batch(bench, second)
    assert (msix.heard(1), msix.heard(32), msix.heard(0)) == (0, 1, 0)


@pytest.mark.point("Q17")
def test_queues_may_share_a_vector(bench: Bench, msix: Listener) -> None:
    driver = bench.driver.enable()
    pairs = [driver.create_queue_pair(qid, vector=3) for qid in (1, 2)]
    for pair in pairs:
        pair.submit(FLUSH)
        pair.ring()
    bench.settle()
    assert msix.heard(3) == 2
    assert [len(pair.poll()) for pair in pairs] == [1, 1]


@pytest.mark.point("Q17")
def test_a_masked_vector_is_pending_until_it_is_unmasked(bench: Bench, msix: Listener) -> None:
    driver = bench.driver.enable()
    pair = driver.create_queue_pair(1, vector=1)
    mask = 0x2000 + 16 * 1 + 12
    bench.bar.write32(mask, 1)
    batch(bench, pair)
    assert msix.heard(1) == 0
    assert bench.bar.read64(0x3000) == 1 << 1
    bench.bar.write32(mask, 0)
    assert msix.heard(1) == 1
    assert bench.bar.read64(0x3000) == 0


@pytest.mark.point("Q05")
def test_a_queue_without_interrupts_has_none(bench: Bench, msix: Listener, line: Listener) -> None:
    driver = bench.driver.enable()
    pair = driver.create_queue_pair(1)
    msix.heard(0)
    batch(bench, pair)
    assert not any(msix.heard(vector) for vector in range(129))
    assert line.heard() == 0


@pytest.mark.point("R09")
def test_the_controllers_mask_means_nothing_under_msix(bench: Bench, msix: Listener) -> None:
    bench.bar.write32(INTMS, 0xFFFF_FFFF)
    driver = bench.driver.enable()
    pair = driver.create_queue_pair(1, vector=1)
    batch(bench, pair)
    assert msix.heard(1) == 1
    assert not bench.device.intx.asserted


@pytest.mark.point("R09")
def test_msi_is_held_back_by_the_mask_and_made_up_for(bench: Bench, msi: Listener, line: Listener) -> None:
    driver = bench.driver.enable()
    pair = driver.create_queue_pair(1, vector=0)
    msi.heard()
    bench.bar.write32(INTMS, 1)
    batch(bench, pair)
    assert msi.heard() == 0
    bench.bar.write32(INTMC, 1)
    assert msi.heard() == 1
    batch(bench, pair)
    assert msi.heard() == 1
    assert line.heard() == 0


def test_doorbells_stay_in_the_bar_while_the_interrupt_line_is_heard(bench: Bench, line: Listener) -> None:
    """A VMM lowers the line at the guest's next access to the BAR: a silent one would never be let go."""
    driver = bench.driver.enable()
    driver.identify(Cns.CONTROLLER)
    assert IDENTIFY_CONTROLLER.decode(driver.ram.read(driver.data, PAGE))["oacs"] == 0x23F
    pages = driver.ram.allocate(2 * PAGE)
    command = Command(AdminOpcode.DOORBELL_BUFFER_CONFIG, prp1=pages, prp2=pages + PAGE)
    assert ended(driver.admin.execute(command)) == Status.INVALID_OPCODE


@pytest.mark.point("R09")
def test_nothing_is_made_up_for_that_was_consumed_while_masked(bench: Bench, msi: Listener) -> None:
    driver = bench.driver.enable()
    pair = driver.create_queue_pair(1, vector=0)
    msi.heard()
    bench.bar.write32(INTMS, 1)
    batch(bench, pair)
    pair.poll()
    bench.bar.write32(INTMC, 1)
    assert msi.heard() == 0


def intx_up(bench: Bench) -> bool:
    return bool(bench.config.read(6, 2) & 1 << 3)


@pytest.mark.point("PCI03")
def test_the_line_is_up_while_completions_are_not_consumed(bench: Bench, line: Listener) -> None:
    driver = bench.driver.enable()
    pair = driver.create_queue_pair(1, vector=0)
    assert not intx_up(bench)
    batch(bench, pair, 3)
    assert intx_up(bench)
    pair.head = 2
    pair.acknowledge()
    assert intx_up(bench)
    pair.head = 3
    pair.acknowledge()
    assert not intx_up(bench)


@pytest.mark.point("PCI03")
def test_an_unmasked_line_that_is_still_up_is_heard_again(bench: Bench, line: Listener) -> None:
    driver = bench.driver.enable()
    pair = driver.create_queue_pair(1, vector=0)
    line.heard()
    bench.device.set_irqs(INTX, IrqAction.UNMASK, IrqData.NONE, 0, 1)
    batch(bench, pair)
    assert line.heard() == 1
    bench.device.set_irqs(INTX, IrqAction.UNMASK, IrqData.NONE, 0, 1)
    assert line.heard() == 1
    pair.poll()
    bench.device.set_irqs(INTX, IrqAction.UNMASK, IrqData.NONE, 0, 1)
    assert line.heard() == 0


@pytest.mark.point("PCI03")
def test_the_line_covers_every_queue_that_interrupts(bench: Bench) -> None:
    driver = bench.driver.enable()
    pairs = [driver.create_queue_pair(qid, vector=0) for qid in (1, 2)]
    for pair in pairs:
        batch(bench, pair)
    pairs[0].poll()
    assert intx_up(bench)
    pairs[1].poll()
    assert not intx_up(bench)


@pytest.mark.point("R09")
def test_the_line_is_held_down_by_the_mask(bench: Bench) -> None:
    driver = bench.driver.enable()
    pair = driver.create_queue_pair(1, vector=0)
    batch(bench, pair)
    bench.bar.write32(INTMS, 1)
    assert not intx_up(bench)
    bench.bar.write32(INTMC, 1)
    assert intx_up(bench)


@pytest.mark.point("S01")
@pytest.mark.parametrize("how", ["disable", "reset", "delete"])
def test_the_line_falls_with_its_queue(bench: Bench, how: str) -> None:
    driver = bench.driver.enable()
    pair = driver.create_queue_pair(1, vector=0)
    batch(bench, pair)
    assert intx_up(bench)
    if how == "disable":
        driver.disable()
    elif how == "reset":
        bench.device.reset()
    else:
        for opcode in (0x00, 0x04):
            assert ended(driver.admin.execute(Command(opcode, cdw10=1))) == Status.SUCCESS
    bench.settle()
    assert not intx_up(bench)


def test_the_line_falls_when_messages_are_enabled(bench: Bench) -> None:
    driver = bench.driver.enable()
    batch(bench, driver.create_queue_pair(1, vector=0))
    bench.config.write(find_capability(bench, 0x11) + 2, 2, 0x8000)
    driver.identify(1)
    assert not intx_up(bench)


def test_commands_complete_without_anyone_listening(driver: Driver) -> None:
    pair = driver.create_queue_pair(1, vector=1)
    assert ended(pair.execute(FLUSH)) == Status.SUCCESS
