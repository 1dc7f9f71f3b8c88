"""The registers of an NVMe controller, its BAR, its capabilities (NVMe Base 2.0, 3.1; NVMe over PCIe 1.0, 3).

What happens when they are written is in `outboard.devices.nvme.function`. Left out: the controller memory
buffer, persistent memory, boot partitions, page sizes above 4 KiB.
"""

from outboard.device import Device
from outboard.devices.nvme.spec import NSSR_KEY, VERSION, ShutdownStatus
from outboard.pci.bar import Bar
from outboard.pci.capabilities import Msi, MsiX, PciExpress, PowerManagement
from outboard.pci.interrupts import Intx

READY_TIMEOUT = 15
"""CAP.TO and CRTO, in units of 500 ms: firmware and drivers take 0 for "at once" and give up."""

FEW_VECTORS, MAX_VECTORS = 256, 2048
"""MSI-X vectors whose table fits in a page, and those that PCI allows."""

FEW_LAYOUT, MANY_LAYOUT = (0x4000, 0x2000), (0x1_0000, 0x8000)
"""The size of BAR0 and where in it the MSI-X table is: for few vectors as firmware knows it, and for many."""

PENDING = 0x3000
"""Where in BAR0 the pending bits of MSI-X are."""

ROUND_ROBIN, WEIGHTED = 0, 1
"""CC.AMS."""

NVM_SET_ONLY, ALL_SETS = 0b000, 0b110
"""CC.CSS: which I/O command sets the host enables. With the first, zoned namespaces are not there for it."""

NSSRO = 1 << 4
"""CSTS: a subsystem reset has occurred."""


class Registers(Device):
    """The declared part of `outboard.devices.nvme.Nvme`."""

    device_id = 0x0001
    class_code = 0x01_08_02
    revision_id = 1

    power = PowerManagement()
    pcie = PciExpress()
    bar = Bar(0, size=FEW_LAYOUT[0], bits=64)
    msix = MsiX(129, table=(0, FEW_LAYOUT[1]), pba=(0, PENDING))
    msi = Msi(vectors=1)
    intx = Intx()

    cap = bar.reg(0x00, size=8, access="ro", doc="Controller Capabilities")
    vs = bar.reg(0x08, reset=VERSION, access="ro", doc="Version")
    intms = bar.reg(0x0C, access="w1s", doc="Interrupt Mask Set")
    intmc = bar.reg(0x10, access="w1s", doc="Interrupt Mask Clear")
    cc = bar.reg(0x14, mask=0x00FF_FFF1, doc="Controller Configuration")
    csts = bar.reg(0x1C, access="w1c", mask=NSSRO, doc="Controller Status")
    nssr = bar.reg(0x20, access="wo", doc="NVM Subsystem Reset")
    aqa = bar.reg(0x24, mask=0x0FFF_0FFF, doc="Admin Queue Attributes")
    asq = bar.reg(0x28, size=8, mask=0xFFFF_FFFF_FFFF_F000, doc="Admin Submission Queue Base Address")
    acq = bar.reg(0x30, size=8, mask=0xFFFF_FFFF_FFFF_F000, doc="Admin Completion Queue Base Address")
    cmbloc = bar.reg(0x38, access="ro", doc="Controller Memory Buffer Location: there is none")
    cmbsz = bar.reg(0x3C, access="ro", doc="Controller Memory Buffer Size: there is none")
    crto = bar.reg(
        0x68, reset=READY_TIMEOUT | READY_TIMEOUT << 16, access="ro", doc="Controller Ready Timeouts"
    )
    doorbells = bar.array(0x1000, count=1024, stride=4, access="wo", doc="Queue tails and heads by turns")

    enable = cc.bit(0)
    command_set = cc.bits(6, 4)
    page_size = cc.bits(10, 7)
    arbitration = cc.bits(13, 11)
    shutdown_notification = cc.bits(15, 14)
    sq_entry_size = cc.bits(19, 16)
    cq_entry_size = cc.bits(23, 20)

    ready = csts.bit(0)
    fatal = csts.bit(1)
    shutdown_status = csts.bits(3, 2, ShutdownStatus)
    processing_paused = csts.bit(5)

    asq_size = aqa.bits(11, 0)
    acq_size = aqa.bits(27, 16)

    @cc.on_write
    def configure(self, value: int) -> None:
        """The host wrote CC: start, reset or shut down."""
        self._configured()

    @nssr.on_write
    def reset_subsystem(self, value: int) -> None:
        """The host wrote NSSR: with the right key, everything but PCI's own state is reset."""
        if value == NSSR_KEY:
            self._subsystem_reset()
        self.nssr = 0

    @intms.on_write
    def mask_interrupts(self, bits: int) -> None:
        """Hold back INTx and MSI of these vectors. MSI-X has masks of its own."""
        self._masked()

    @intmc.on_write
    def unmask_interrupts(self, bits: int) -> None:
        """Let INTx and MSI of these vectors through again; what was missed is made up for."""
        self.intms &= ~bits
        if bits & 1:
            self._unmasked()

    @intmc.on_read
    def masked_interrupts(self) -> int:
        """INTMC reads as INTMS does."""
        return self.intms

    @doorbells.on_write
    def ring(self, index: int, value: int) -> None:
        """The host moved a queue's tail (even) or head (odd)."""
        self._rung(index, value)

    @bar.on_read
    def read_reserved(self, offset: int, size: int) -> int:
        """Reserved and optional registers that are not there: zero."""
        return 0

    @bar.on_write
    def write_reserved(self, offset: int, size: int, value: int) -> None:
        """Nothing happens."""

    def _configured(self) -> None:
        """CC has another value."""
        raise NotImplementedError

    def _subsystem_reset(self) -> None:
        """The key to reset the subsystem was written."""
        raise NotImplementedError

    def _masked(self) -> None:
        """Interrupts are masked in INTMS."""
        raise NotImplementedError

    def _unmasked(self) -> None:
        """The only vector that MSI and INTx have is not masked any more."""
        raise NotImplementedError

    def _rung(self, doorbell: int, value: int) -> None:
        """A doorbell was written, by its number."""
        raise NotImplementedError

    def misconfiguration(self) -> str:
        """What in CC and AQA cannot be, or nothing."""
        possible = (
            ("CC.CSS", self.command_set, (NVM_SET_ONLY, ALL_SETS)),
            ("CC.MPS", self.page_size, (0,)),
            ("CC.AMS", self.arbitration, (ROUND_ROBIN, WEIGHTED)),
            # Zero: to be set before the first I/O queue is created.
            ("CC.IOSQES", self.sq_entry_size, (0, 6)),
            ("CC.IOCQES", self.cq_entry_size, (0, 4)),
            ("AQA.ASQS", self.asq_size, range(1, 4096)),
            ("AQA.ACQS", self.acq_size, range(1, 4096)),
        )
        return ", ".join(f"{name} is {value}" for name, value, allowed in possible if value not in allowed)


def layout(vectors: int) -> dict[str, Bar | MsiX | None]:
    """BAR0 and MSI-X of a controller with so many vectors, as replacements of those declared."""
    size, table = FEW_LAYOUT if vectors <= FEW_VECTORS else MANY_LAYOUT
    msix = MsiX(vectors, table=(0, table), pba=(0, PENDING)) if vectors else None
    return {"bar": Bar(0, size=size, bits=64), "msix": msix}


def capabilities(queue_entries: int) -> int:
    """CAP: contiguous queues, weighted arbitration, subsystem reset, all command sets, CRTO.CRWMT is true."""
    cqr, ams, nssrs, css_nvm, css_all, crwms = 1 << 16, 1 << 17, 1 << 36, 1 << 37, 1 << 43, 1 << 59
    return queue_entries - 1 | cqr | ams | READY_TIMEOUT << 24 | nssrs | css_nvm | css_all | crwms
