"""The PCI function of an NVMe controller: its BAR, its registers, its interrupts.

NVMe Base 2.0, 3.1 (registers), 3.5 and 3.6 (start, shutdown), 3.7 (resets); NVMe over PCIe 1.0, 3.
The commands themselves are `outboard.devices.nvme.controller`'s.

A vCPU waits for every register access, and may not be kept waiting for its own memory: handlers only
note what happened, and the queues are processed as soon as the access is answered.

Left out: the controller memory buffer, persistent memory, boot partitions, page sizes above 4 KiB.
"""

import logging
import time
from collections.abc import Mapping
from typing import Any, Literal, get_args

from outboard.device import Device
from outboard.devices.nvme import saved_state
from outboard.devices.nvme.controller import Controller, Progress
from outboard.devices.nvme.datapath.plane import DataPlane
from outboard.devices.nvme.datapath.records import BY_PYTHON
from outboard.devices.nvme.datapath.tuning import Tuning
from outboard.devices.nvme.doorbell_page import DoorbellPage
from outboard.devices.nvme.events import NAMESPACE_CHANGED
from outboard.devices.nvme.namespace import Namespace
from outboard.devices.nvme.queues import CompletionQueue
from outboard.devices.nvme.spec import NSSR_KEY, VERSION, Shutdown, ShutdownStatus
from outboard.devices.nvme.state import Identity, Limits, State
from outboard.devices.nvme.transfer import Bus
from outboard.errors import DefinitionError
from outboard.loop import Timer
from outboard.native.jit import available
from outboard.pci.bar import Bar
from outboard.pci.capabilities import Msi, MsiX, PciExpress, PowerManagement
from outboard.pci.interrupts import Intx
from outboard.server.profiles import Profile
from outboard.storage import RamStorage, Storage

log = logging.getLogger(__name__)

READY_TIMEOUT = 15
"""CAP.TO and CRTO, in units of 500 ms: firmware and drivers take 0 for "at once" and give up."""

MAX_VECTORS = 256
"""MSI-X vectors that fit in the page of BAR0 that holds their table."""

STALL_PATIENCE = 1.0
"""Seconds a queue may be out of reach, while a VMM rearranges memory, before the controller gives up."""

STALL_RETRY = 0.05

FIRMWARE = "1.0"

Doorbells = Literal["auto", "shadow", "mmap", "trapped"]
"""How the host tells of new commands and consumed completions; see `Nvme`."""

_NSSRO, _NAMESPACE_NOTICES = 1 << 4, 1 << 8


class Nvme(Device):
    """An NVMe controller with these namespaces, numbered from 1.

    ``serial`` (20 characters at most, printable ASCII) is what hosts tell controllers and namespaces
    apart by: keep it, and they are recognised after a restart. ``model`` has 40 characters at most.
    ``doorbells`` says how the host tells of new commands. ``"shadow"``: by messages, and in guest memory if
    its driver wants to (Doorbell Buffer Config), so that it is silent while we look. ``"mmap"``: in a page
    of BAR0 that the client maps, and that is looked at all the time. ``"trapped"``: by messages only.
    ``"auto"``: mapped for a client that introduces itself without a word, as SPDK's driver does, which knows
    no other way; else as ``"shadow"``. ``tuning`` says how the queues are served; without it by one
    poller, compiled, where Numba is installed, and in the device's own thread elsewhere.

    ``vectors`` is the number of MSI-X vectors (0 to 256). With 0 the controller has MSI and INTx only and
    can be unplugged: QEMU up to 11.1 ends itself when a vfio-user device with MSI-X is. ``io_queues`` is
    the number of I/O queue pairs, ``queue_entries`` the largest I/O queue (2 to 65536), ``mdts`` the
    largest transfer as a power of two of 4 KiB pages. Other arguments replace declared fields, as for
    every `Device`.

    Raises `DefinitionError`.

    >>> from outboard.storage import open_storage
    >>> disk = Nvme(open_storage("ram:64M"))
    >>> disk.namespaces[1].blocks
    131072
    """

    device_id = 0x0001
    class_code = 0x01_08_02
    revision_id = 1

    power = PowerManagement()
    pcie = PciExpress()
    bar = Bar(0, size=0x4000, bits=64)
    msix = MsiX(33, table=(0, 0x2000), pba=(0, 0x3000))
    msi = Msi(vectors=1)
    intx = Intx()

    cap = bar.reg(0x00, size=8, access="ro", doc="Controller Capabilities")
    vs = bar.reg(0x08, reset=VERSION, access="ro", doc="Version")
    intms = bar.reg(0x0C, access="w1s", doc="Interrupt Mask Set")
    intmc = bar.reg(0x10, access="w1s", doc="Interrupt Mask Clear")
    cc = bar.reg(0x14, mask=0x00FF_FFF1, doc="Controller Configuration")
    csts = bar.reg(0x1C, access="w1c", mask=_NSSRO, doc="Controller Status")
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

    asq_size = aqa.bits(11, 0)
    acq_size = aqa.bits(27, 16)

    def __init__(
        self,
        *namespaces: Namespace | Storage,
        serial: str = "OUTBOARD0001",
        model: str = "outboard NVMe",
        vectors: int = 33,
        io_queues: int = 32,
        queue_entries: int = 1024,
        mdts: int = 7,
        doorbells: Doorbells = "auto",
        tuning: Tuning | None = None,
        **replacements: object,
    ) -> None:
        _check_text("serial", serial, 20)
        _check_text("model", model, 40)
        _check_number("vectors", vectors, 0, MAX_VECTORS)
        _check_number("io_queues", io_queues, 1, self._most_queues())
        _check_number("queue_entries", queue_entries, 2, 1 << 16)
        _check_number("mdts", mdts, 1, 16)
        msix = MsiX(vectors, table=(0, 0x2000), pba=(0, 0x3000)) if vectors else None
        replacements.setdefault("msix", msix)
        replacements.setdefault("cap", _capabilities(queue_entries))
        if doorbells not in get_args(Doorbells):
            raise DefinitionError(f"doorbells={doorbells!r}: it is one of {', '.join(get_args(Doorbells))}")
        tuning = tuning or Tuning(pollers=int(available()))
        if tuning.pollers == 0 and doorbells == "mmap":
            raise DefinitionError("doorbells='mmap' needs a poller: nobody rings, so somebody has to look")
        super().__init__(**replacements)
        self.namespaces = {
            nsid: space if isinstance(space, Namespace) else Namespace(space)
            for nsid, space in enumerate(namespaces, 1)
        }
        vendor = self.vendor_id
        subsystem = vendor if self.subsystem_vendor_id is None else self.subsystem_vendor_id
        # MSI, and then INTx, are one vector.
        usable = len(self.msix) if self.msix is not None else 1
        limits = Limits(io_queues=io_queues, vectors=usable, queue_entries=queue_entries, mdts=mdts)
        self._page = DoorbellPage()
        self.plane = DataPlane(
            self.dma,
            self.namespaces,
            io_queues=io_queues,
            mdts=limits.transfer,
            doorbells=self._page.address,
            vector_fd=self._vector_fd,
            line_heard=lambda: self.intx.heard,
            tuning=tuning,
        )
        identity = Identity(serial, model, FIRMWARE, vendor, subsystem)
        self.state = State(identity, limits, self.namespaces, Bus(self.dma), self.plane)
        self.controller = Controller(self.state, self._interrupt, self._schedule)
        self._doorbells = doorbells
        self._map_doorbells(doorbells == "mmap")
        if self.msix is not None:
            self.msix.on_change = self.plane.vector_changed
        self._running = False
        self._scheduled = False
        self._gone = False
        self._stalled_since: float | None = None
        self._retry: Timer | None = None

    @property
    def statistics(self) -> dict[str, int]:
        """What the data plane has counted since the device was made."""
        return self.plane.statistics

    @classmethod
    def _most_queues(cls) -> int:
        return cls.doorbells.count // 2 - 1

    @cc.on_write
    def configure(self, value: int) -> None:
        """The host wrote CC: start, reset or shut down."""
        self.state.entry_sizes_set = (self.sq_entry_size, self.cq_entry_size) == (6, 4)
        if self.enable and not self._running:
            self._start()
        elif not self.enable and self._running:
            self._disable()
        if self.shutdown_notification != Shutdown.NONE and self.shutdown_status == ShutdownStatus.NORMAL:
            self._shut_down()

    @nssr.on_write
    def reset_subsystem(self, value: int) -> None:
        """The host wrote NSSR: with the right key, everything but PCI's own state is reset."""
        if value == NSSR_KEY:
            self._disable()
            self.cc = self.aqa = self.asq = self.acq = 0
            self.csts = _NSSRO
        self.nssr = 0

    @intms.on_write
    def mask_interrupts(self, bits: int) -> None:
        """Hold back INTx and MSI of these vectors. MSI-X has masks of its own."""
        self._update_line()

    @intmc.on_write
    def unmask_interrupts(self, bits: int) -> None:
        """Let INTx and MSI of these vectors through again; what was missed is made up for."""
        self.intms &= ~bits
        if bits & 1 and self.msi.enabled and not self._msix_enabled and self.controller.unconsumed:
            self.msi[0].trigger()
        self._update_line()

    @intmc.on_read
    def masked_interrupts(self) -> int:
        """INTMC reads as INTMS does."""
        return self.intms

    @doorbells.on_write
    def ring(self, index: int, value: int) -> None:
        """The host moved a queue's tail (even) or head (odd)."""
        if self.controller.ring(index, value):
            self._schedule()
        if index & 1:
            self._update_line()

    @bar.on_read
    def read_reserved(self, offset: int, size: int) -> int:
        """Reserved and optional registers that are not there: zero."""
        return 0

    @bar.on_write
    def write_reserved(self, offset: int, size: int, value: int) -> None:
        """Nothing happens."""

    def on_reset(self) -> None:
        """FLR, DEVICE_RESET: as after power on. The registers are reset already."""
        self._running = False
        self.controller.reset()
        self._forget_stall()

    def introduced(self, profile: Profile) -> None:
        """Who the client is decides where the doorbells are, if that is left to us."""
        if self._doorbells != "auto" or self.plane.inline:
            return
        self._map_doorbells(profile.needs_areas)
        if profile.needs_areas:
            log.info("doorbells: %s gets the page to map, which is polled (--doorbells auto)", profile.client)
        else:
            log.info(
                "doorbells: by messages, and in guest memory if the driver offers that (--doorbells auto)"
            )

    def on_connect(self) -> None:
        """A client is there, perhaps one that goes on where the last one was cut off."""
        self._gone = False
        self.controller.start_workers(self._require_loop())
        self.plane.start(self._require_loop(), self._schedule)
        if self.controller.pending or self.plane.inline:
            self._schedule()

    def on_disconnect(self) -> None:
        """Queues and registers stay, unless the doorbells were mapped: such a driver never comes back.

        With no memory to reach, nothing is done.
        """
        self._gone = True
        self._forget_stall()
        self.plane.stop(self.loop)
        self.controller.stop_workers()
        log.info("the data plane so far: %s", ", ".join(f"{n} {name}" for name, n in self.statistics.items()))
        if self.plane.polled:
            self.reset()

    def memories(self) -> dict[str, memoryview]:
        """A disk in memory moves with its controller."""
        disks = {
            f"namespace{nsid}": space.storage.memory
            for nsid, space in self.namespaces.items()
            if isinstance(space.storage, RamStorage)
        }
        return super().memories() | disks

    def on_stop(self) -> None:
        """The client migrates us: no command is under way from here on."""
        self.controller.freeze()

    def on_run(self) -> None:
        """Here, or where we come from, the client lets us go on."""
        self.controller.thaw()
        self._schedule()

    def on_save(self) -> dict[str, Any]:
        """Queues, features, events, logs."""
        running = {"running": self._running, "enabled": self.controller.enabled}
        return {"controller": running | saved_state.save(self.state)}

    def on_restore(self, saved: Mapping[str, Any], version: int) -> None:
        """Become the controller that was saved."""
        controller = saved["controller"]
        saved_state.restore(self.state, controller)
        self._running = bool(controller["running"])
        self.controller.enabled = bool(controller["enabled"]) and 0 in self.state.completion

    def on_bus_master(self, enabled: bool) -> None:
        """Memory that could not be reached may be reachable now."""
        if enabled and self.controller.enabled:
            self._schedule()

    def close(self) -> None:
        """Let go of what only goes by itself when the device is forgotten. It is not used any more."""
        self._page.close()

    def refresh(self, nsid: int) -> None:
        """Look at a namespace's storage again, whose size has changed, and tell the host."""
        space = self.namespaces[nsid]
        space.blocks = space.storage.size // space.block_size
        self.plane.configure()
        self.state.changed_namespaces.add(nsid)
        if self.state.features.tells(_NAMESPACE_NOTICES):
            self.controller.report(NAMESPACE_CHANGED)
            self._schedule()

    def _start(self) -> None:
        self._running = True
        self.shutdown_status = ShutdownStatus.NORMAL
        problem = self._misconfiguration()
        if problem:
            log.info("the host enables a controller that cannot be: %s", problem)
            self.fatal = True
            return
        self.controller.enable(self.asq, self.asq_size + 1, self.acq, self.acq_size + 1)
        self.ready = True

    def _misconfiguration(self) -> str:
        """What in CC and AQA cannot be, or nothing."""
        possible = (
            ("CC.CSS", self.command_set, (0,)),
            ("CC.MPS", self.page_size, (0,)),
            ("CC.AMS", self.arbitration, (0,)),
            # Zero: to be set before the first I/O queue is created.
            ("CC.IOSQES", self.sq_entry_size, (0, 6)),
            ("CC.IOCQES", self.cq_entry_size, (0, 4)),
            ("AQA.ASQS", self.asq_size, range(1, 4096)),
            ("AQA.ACQS", self.acq_size, range(1, 4096)),
        )
        return ", ".join(f"{name} is {value}" for name, value, allowed in possible if value not in allowed)

    def _disable(self) -> None:
        """Controller reset: CC.EN went from 1 to 0. AQA, ASQ and ACQ stay."""
        self._running = False
        self.controller.reset()
        self._forget_stall()
        self.csts &= _NSSRO
        self.intms = 0
        self._update_line()

    def _shut_down(self) -> None:
        self.controller.stop()
        if not self._running:
            self.shutdown_status = ShutdownStatus.COMPLETE
            return
        self.shutdown_status = ShutdownStatus.OCCURRING
        self.call_soon(lambda: self.controller.flush(self._finish_shutdown))

    def _finish_shutdown(self) -> None:
        if self.shutdown_status == ShutdownStatus.OCCURRING:
            self.shutdown_status = ShutdownStatus.COMPLETE

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self.call_soon(self._work)

    def _work(self) -> None:
        self._scheduled = False
        if self._gone:
            return
        progress = self.controller.process()
        self._update_line()
        if self._gone:  # while its memory was awaited: the next client's patience begins anew
            return
        if progress is Progress.STALLED:
            self._wait_for_memory()
            return
        self._forget_stall()
        if progress is Progress.MORE:
            self._schedule()
        elif self.controller.deferred:
            self.after(self.controller.deferred, self._schedule)

    def _wait_for_memory(self) -> None:
        now = time.monotonic()
        if self._stalled_since is None:
            self._stalled_since = now
        if now - self._stalled_since >= STALL_PATIENCE:
            log.info("a queue was out of reach for %s s: the controller has failed", STALL_PATIENCE)
            self._forget_stall()
            self.controller.stop()
            self.fatal = True
        elif self._retry is None:
            self._retry = self.after(STALL_RETRY, self._try_again)

    def _try_again(self) -> None:
        self._retry = None
        self._schedule()

    def _forget_stall(self) -> None:
        self._stalled_since = None
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    def _map_doorbells(self, mapped: bool) -> None:
        """Offer the page of doorbells to the client, or not; and the buffers in guest memory otherwise."""
        self.plane.set_polled(mapped)
        self.plane.offers_shadow = not mapped and self._doorbells in ("auto", "shadow")
        self.regions = (self._page.offered_in(self.regions[0], mapped), *self.regions[1:])

    def _vector_fd(self, cq: CompletionQueue) -> int:
        """The eventfd of a queue's vector, for the data plane to write to; or `BY_PYTHON`.

        Python sends what is masked, what is no MSI-X, and what could block: only the client can say that an
        eventfd does not.
        """
        if self.plane.inline or self.msix is None:
            return BY_PYTHON
        vector = self.msix[cq.vector]
        event = vector.event
        return event.fd if event is not None and not event.blocks and not vector.masked else BY_PYTHON

    @property
    def _msix_enabled(self) -> bool:
        return self.msix is not None and self.msix.enabled

    def _interrupt(self, cq: CompletionQueue) -> None:
        """Completions were posted in ``cq``."""
        if self._msix_enabled:
            if cq.interrupts:
                self.msix[cq.vector].trigger()
        elif self.msi.enabled:
            if cq.interrupts and not self.intms & 1:
                self.msi[0].trigger()
        else:
            self._update_line()

    def _update_line(self) -> None:
        """INTx is a level: up while the host has completions to consume and has not masked it."""
        messages = self._msix_enabled or self.msi.enabled
        if self.controller.unconsumed and not messages and not self.intms & 1:
            self.intx.assert_()  # noqa: PT009
        else:
            self.intx.deassert()


def _capabilities(queue_entries: int) -> int:
    """CAP: contiguous queues, subsystem reset, the NVM command set, ready by CRTO.CRWMT."""
    cqr, nssrs, css_nvm, crwms = 1 << 16, 1 << 36, 1 << 37, 1 << 59
    return queue_entries - 1 | cqr | READY_TIMEOUT << 24 | nssrs | css_nvm | crwms


def _check_text(what: str, text: str, limit: int) -> None:
    if not (0 < len(text) <= limit and text.isascii() and text.isprintable()):
        raise DefinitionError(f"{what} {text!r}: it has 1 to {limit} printable ASCII characters")


def _check_number(what: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise DefinitionError(f"{what} is {value}: it is {low} to {high}")
