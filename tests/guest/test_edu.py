"""The first example, and a gadget with what it lacks, driven from a guest's shell: no driver is needed.

Registers are reached by ``devmem``, configuration space by ``setpci``, memory for DMA is set aside by the
kernel's ``memmap=``.
"""

import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from outboard import Bar, Device, Intx, Server
from outboard.testing.guest import Attach, Guest
from tests.guest.linux import Registers, bar, interrupts

pytestmark = pytest.mark.guest

EXAMPLE = Path(__file__).parents[2] / "examples" / "01_edu.py"
EDU, PORT = "0000:01:00.0", "0000:00:01.0"
MEMORY = 0x1000_0000
COMMAND_MEMORY_AND_MASTER = "COMMAND=6:6"


class Gadget(Device):
    """A conventional function: an I/O port that sets the interrupt line, and memory the guest maps."""

    vendor_id, device_id, class_code = 0x4F42, 0x7E57, 0xFF0000
    ports = Bar(0, size=0x20, io=True)
    window = Bar(1, size=0x1000, mmap=True)
    intx = Intx()
    line = ports.reg(0x04)
    memory = window.ram(0, size=0x1000)

    def __init__(self) -> None:
        super().__init__()
        self.asked: set[int] = set()

    def region_read(self, region: int, offset: int, count: int) -> bytes:
        self.asked.add(region)
        return super().region_read(region, offset, count)

    def region_write(self, region: int, offset: int, data: bytes) -> None:
        self.asked.add(region)
        super().region_write(region, offset, data)

    @line.on_write
    def set_line(self, value: int) -> None:
        if value:
            self.intx.assert_()  # noqa: PT009
        else:
            self.intx.deassert()


@pytest.fixture(scope="module")
def gadget() -> Gadget:
    return Gadget()


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory, gadget: Gadget) -> Iterator[Guest]:
    folder = tmp_path_factory.mktemp("edu")
    edu: Any = runpy.run_path(str(EXAMPLE))["Edu"]()
    with (
        Server(edu, folder / "edu.sock").start(),
        Server(gadget, folder / "gadget.sock").start(),
        Guest(
            [folder / "edu.sock", Attach(folder / "gadget.sock", port=False)],
            tools=["pciutils"],
            modules=["uio_pci_generic"],
            append=f"memmap=1M${MEMORY:#x}",
            logs=folder,
        ) as guest,
    ):
        yield guest


@pytest.fixture
def address(machine: Guest) -> str:
    """Where the gadget is."""
    return machine.run("dirname $(grep -l 0x7e57 /sys/bus/pci/devices/*/device)").split("/")[-1].strip()


@pytest.fixture
def edu(machine: Guest) -> Registers:
    machine.run(f"setpci -s {EDU} {COMMAND_MEMORY_AND_MASTER}")
    return bar(machine, EDU)


@pytest.mark.point("P141", "P142")
def test_registers_answer_a_guest(edu: Registers) -> None:
    assert edu[0x00] == 0x0100_00ED
    edu[0x04] = 0x1234_5678
    assert edu[0x04] == 0xEDCB_A987
    edu[0x08] = 12
    assert edu[0x08] == 479001600


@pytest.mark.point("P142")
def test_an_interrupt_arrives_as_the_message_it_was_given(machine: Guest, edu: Registers) -> None:
    # The root port's own vector, from its MSI-X table, is lent to the device: a handler counts it.
    table = bar(machine, PORT)
    message = f"CAP_MSI+4.l={table[0]:x} CAP_MSI+8.l={table[4]:x} CAP_MSI+c.w={table[8]:x}"
    machine.run(f"setpci -s {EDU} {message} CAP_MSI+2.w=1:1")
    before = interrupts(machine, PORT)
    edu[0x60] = 5
    assert edu[0x24] == 5
    edu[0x64] = 1
    assert edu[0x24] == 4
    assert [count - before[name] for name, count in interrupts(machine, PORT).items()] == [1]


@pytest.mark.point("P143")
def test_dma_moves_the_guests_memory_there_and_back(machine: Guest, edu: Registers) -> None:
    memory = Registers(machine, MEMORY)
    memory[0x10], memory[0x800] = 0xCAFE_F00D, 0
    for source, target, command in (
        (MEMORY + 0x10, 0x4_0000, 1),
        (0x4_0000, MEMORY + 0x800, 3),
    ):
        edu[0x80], edu[0x88], edu[0x90], edu[0x98] = source, target, 4, command
        while edu[0x98] & 1:
            pass
    assert memory[0x800] == 0xCAFE_F00D


@pytest.mark.point("P144")
def test_mapped_memory_is_shared_without_a_message(machine: Guest, gadget: Gadget, address: str) -> None:
    # Before the line's test: for a second after an interrupt on it QEMU catches every access.
    machine.run(f"setpci -s {address} {COMMAND_MEMORY_AND_MASTER}")
    memory = bar(machine, address, 1)
    gadget.asked.clear()
    memory[0x20] = 0x600D_600D
    assert gadget.memory[0x20:0x24].tobytes() == b"\x0d\x60\x0d\x60"
    gadget.memory[0x24:0x28] = b"\x01\x02\x03\x04"
    assert memory[0x24] == 0x0403_0201
    assert 1 not in gadget.asked


@pytest.mark.point("P142", "PCI03")
def test_the_line_stays_up_until_it_is_lowered(machine: Guest, gadget: Gadget, address: str) -> None:
    machine.run("echo 4f42 7e57 >/sys/bus/pci/drivers/uio_pci_generic/new_id")
    # A read of the descriptor ends at an interrupt later than its opening, and the kernel masks the line.
    write = f"dd of=/sys/bus/pci/devices/{address}/resource0 bs=4 seek=1 count=1 conv=notrunc 2>/dev/null"
    wait = "timeout 20 dd bs=4 count=1 <&3 2>/dev/null | od -An -tu4"
    unmask = f"setpci -s {address} COMMAND=0:400"
    counts = machine.run(
        f"exec 3</dev/uio0; printf '\\1\\0\\0\\0' | {write}; {wait}; {unmask}; {wait}; "
        f"printf '\\0\\0\\0\\0' | {write}; {unmask}; setpci -s {address} STATUS.w"
    ).split()
    first, second, status = counts
    assert int(second) == int(first) + 1
    assert int(status, 16) & 8 == 0
    assert not gadget.intx.asserted
    assert gadget.intx.fired == 1
