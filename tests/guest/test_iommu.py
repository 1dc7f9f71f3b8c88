"""Guests with a virtual IOMMU: a device reaches what the guest's kernel maps for it, and nothing else.

A group of type ``DMA`` has the maps its driver asks for, each gone as soon as it is not needed; ``identity``
is all of memory, as if there were no IOMMU. Memory for DMA of our own is set aside by ``memmap=``.
"""

import runpy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from outboard import Server
from outboard.devices.nvme import Nvme
from outboard.dma import Mapping
from outboard.storage import Storage, open_storage
from outboard.testing.guest import Guest
from tests.guest.linux import MIB, Registers, bar, checksum, complaints, disk_of, stored, write_random

pytestmark = pytest.mark.guest

EXAMPLE = Path(__file__).parents[2] / "examples" / "01_edu.py"
NVME, EDU = "0000:01:00.0", "0000:02:00.0"
PAGE = 0x1000
MEMORY = 0x1000_0000
BEYOND = 1 << 36
"""An address where the guest has no memory."""

IOMMUS = {
    "intel": (["-device", "intel-iommu,caching-mode=on"], [], "intel_iommu=on"),
    "virtio": (["-device", "virtio-iommu-pci"], ["virtio-iommu"], ""),
}

CC, CSTS, AQA, ASQ, ACQ, DOORBELL = 0x14, 0x1C, 0x24, 0x28, 0x30, 0x1000
READY, FATAL = 1, 2
ENABLE = 0x0046_0001
DATA_TRANSFER_ERROR = 0x04


class Mapped(Nvme):
    """A controller that counts the maps it is given, by their size."""

    def __init__(self, storage: Storage) -> None:
        super().__init__(storage)
        self.sizes: list[int] = []

    def dma_map(self, mapping: Mapping) -> None:
        self.sizes.append(mapping.size)
        super().dma_map(mapping)


@dataclass(frozen=True)
class Rig:
    """A machine with an IOMMU of some kind, and what is behind it: a disk, and the first example."""

    kind: str
    guest: Guest
    controller: Mapped
    storage: Storage

    def move_to(self, domain: str, address: str) -> None:
        """Have a device that no driver holds in a domain of this type; it may then use DMA."""
        group = f"/sys/bus/pci/devices/{address}/iommu_group/type"
        self.guest.run(f"echo {domain} >{group}; setpci -s {address} COMMAND=6:6")
        assert self.guest.run(f"cat {group}").strip() == domain

    @contextmanager
    def without_a_driver(self) -> Iterator[Registers]:
        """The controller's registers, for us alone; then Linux's driver has it again."""
        driver = "/sys/bus/pci/drivers/nvme"
        self.guest.run(f"echo {NVME} >{driver}/unbind")
        try:
            yield bar(self.guest, NVME)
        finally:
            self.move_to("DMA", NVME)
            self.guest.run(f"echo {NVME} >{driver}/bind")


@pytest.fixture(scope="module", params=list(IOMMUS))
def rig(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    folder = tmp_path_factory.mktemp(request.param)
    device, modules, argument = IOMMUS[request.param]
    controller = Mapped(storage := open_storage("ram:64M"))
    edu: Any = runpy.run_path(str(EXAMPLE))["Edu"]()
    with (
        Server(controller, folder / "nvme.sock").start(),
        Server(edu, folder / "edu.sock").start(),
        Guest(
            [folder / "nvme.sock", folder / "edu.sock"],
            modules=[*modules, "uio_pci_generic"],
            append=f"{argument} iommu.passthrough=0 iommu.strict=1 memmap=1M${MEMORY:#x}",
            tools=["pciutils"],
            extra=device,
            logs=folder,
        ) as guest,
    ):
        # Linux brings a device behind its IOMMU when a driver first takes it, at the latest.
        guest.run("echo 1234 11e8 >/sys/bus/pci/drivers/uio_pci_generic/new_id")
        guest.run(f"echo {EDU} >/sys/bus/pci/drivers/uio_pci_generic/unbind")
        yield Rig(request.param, guest, controller, storage)


@pytest.mark.point("P149", "PCI02")
def test_a_disk_works_through_maps_that_come_and_go_page_by_page(rig: Rig) -> None:
    guest, controller, disk = rig.guest, rig.controller, disk_of(rig.guest)
    assert guest.run(f"cat /sys/bus/pci/devices/{NVME}/iommu_group/type").strip() == "DMA"
    standing = controller.dma.maps
    assert sum(mapping.size for mapping in standing) < MIB
    controller.sizes.clear()
    written = write_random(guest, disk)
    assert checksum(guest, disk) == stored(rig.storage) == written
    assert sum(controller.sizes) >= 2 * 4 * MIB
    if rig.kind == "intel":
        assert {*controller.sizes} == {PAGE}
    else:
        # As the driver asked for them, whole.
        assert max(controller.sizes) <= MIB
    assert controller.dma.maps == standing
    assert complaints(guest) == []


@pytest.mark.point("P149")
def test_dma_reaches_nothing_that_the_guest_has_not_mapped(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    guest = rig.guest

    def moved() -> bool:
        """Whether the device can carry a word from one place in memory to another."""
        memory[0x10], memory[0x800] = 0xCAFE_F00D, 0
        for source, target, command in ((MEMORY + 0x10, 0x4_0000, 1), (0x4_0000, MEMORY + 0x800, 3)):
            edu[0x80], edu[0x88], edu[0x90], edu[0x98] = source, target, 4, command
            edu[0x04] = command
            assert edu[0x04] == ~command & 0xFFFF_FFFF
        return memory[0x800] == 0xCAFE_F00D

    memory, edu = Registers(guest, MEMORY), bar(guest, EDU)
    rig.move_to("DMA", EDU)
    assert not moved()
    assert f"nothing is mapped at {MEMORY + 0x10:#x} (reading 0x4 bytes" in caplog.text
    assert f"nothing is mapped at {MEMORY + 0x800:#x} (writing 0x4 bytes" in caplog.text
    rig.move_to("identity", EDU)
    assert moved()
    rig.move_to("DMA", EDU)
    assert not moved()


@pytest.mark.point("P149", "D04", "S07")
def test_a_controller_fails_without_its_queues_and_a_command_without_its_data(rig: Rig) -> None:
    guest, queue = rig.guest, MEMORY + PAGE
    written = write_random(guest, disk_of(guest))
    memory = Registers(guest, queue)
    with rig.without_a_driver() as registers:

        def enable() -> None:
            """As a driver does: with two queues of 16, of whose entries the first two begin as zeros."""
            for first, last in ((queue, queue + 127), (queue + PAGE, queue + PAGE + 31)):
                guest.run(f"for at in $(seq {first} 4 {last}); do devmem $at 32 0; done")
            registers[CC] = 0
            registers[AQA] = 0x000F_000F
            registers[ASQ], registers[ASQ + 4] = queue, 0
            registers[ACQ], registers[ACQ + 4] = queue + PAGE, 0
            registers[CC] = ENABLE
            assert registers[CSTS] == READY

        def status(tail: int) -> int:
            """Status code and type of the command before ``tail``, waited for."""
            registers[DOORBELL], entry = tail, PAGE + 16 * (tail - 1) + 12
            guest.run(f"until [ $(($(devmem {memory.base + entry} 32) >> 16)) != 0 ]; do :; done")
            return memory[entry] >> 17 & 0x7FF

        rig.move_to("DMA", NVME)
        enable()
        registers[DOORBELL] = 1
        guest.run(f"until [ $(($(devmem {registers.base + CSTS} 32))) = {READY | FATAL} ]; do :; done")
        rig.move_to("identity", NVME)
        enable()
        # Two commands to identify the controller, into memory that is not there and that is.
        for slot, target in enumerate((BEYOND, MEMORY)):
            for offset, value in {0: 0x06, 24: target % (1 << 32), 28: target >> 32, 40: 1}.items():
                memory[64 * slot + offset] = value
        assert status(1) == DATA_TRANSFER_ERROR
        assert status(2) == 0
        assert Registers(guest, MEMORY)[0] & 0xFFFF == rig.controller.vendor_id
    assert checksum(guest, disk_of(guest)) == written
    assert complaints(guest) == []


@pytest.mark.point("P149", "PCI02")
def test_a_disk_behind_an_iommu_survives_its_reset(rig: Rig) -> None:
    guest, storage = rig.guest, rig.storage
    written = write_random(guest, disk_of(guest))
    guest.reboot()
    assert checksum(guest, disk_of(guest)) == written
    assert write_random(guest, disk_of(guest), at=32) == stored(storage, at=32)
    assert complaints(guest) == []
