"""The PCI function of an NVMe controller: its BAR, its registers, its interrupts.

NVMe Base 2.0, 3.1 (registers), 3.5 and 3.6 (start, shutdown), 3.7 (resets); NVMe over PCIe 1.0, 3.
The commands themselves are `outboard.devices.nvme.controller`'s.

A vCPU waits for every register access, and may not be kept waiting for its own memory: handlers only
note what happened, and the queues are processed as soon as the access is answered.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

from outboard.devices.nvme import persistent_events, saved_state
from outboard.devices.nvme.admin import ADMIN_COMMANDS
from outboard.devices.nvme.attended import Attended
from outboard.devices.nvme.checks import check_number
from outboard.devices.nvme.command_set import Commands
from outboard.devices.nvme.controller import Controller, Progress
from outboard.devices.nvme.datapath.plane import DataPlane
from outboard.devices.nvme.datapath.records import BY_PYTHON
from outboard.devices.nvme.datapath.tuning import Tuning
from outboard.devices.nvme.doorbell_page import DoorbellPage
from outboard.devices.nvme.injection import Faults
from outboard.devices.nvme.io import CONDITIONS, IO_COMMANDS
from outboard.devices.nvme.namespace import Namespace
from outboard.devices.nvme.patience import Patience
from outboard.devices.nvme.queues import CompletionQueue
from outboard.devices.nvme.registers import (
    ALL_SETS,
    MAX_VECTORS,
    NSSRO,
    WEIGHTED,
    capabilities,
    layout,
)
from outboard.devices.nvme.spec import Csi, HardwareError, Shutdown, ShutdownStatus
from outboard.devices.nvme.state import Hardware, Identity, Limits, State
from outboard.devices.nvme.subsystem import Subsystem
from outboard.devices.nvme.transfer import Bus
from outboard.errors import DefinitionError
from outboard.loop import Timer
from outboard.native.jit import available
from outboard.server.profiles import Profile
from outboard.storage import RamStorage, Storage, VolatileStorage, layers

log = logging.getLogger(__name__)

FIRMWARE = "1.0"

Doorbells = Literal["auto", "shadow", "mmap", "trapped"]
"""How the host tells of new commands and consumed completions; see `Nvme`."""


class Nvme(Attended):
    """An NVMe controller with these namespaces, numbered from 1, or one more of ``subsystem``.

    Without a subsystem it has one of its own, of which ``serial`` and ``model`` are: see `Subsystem`.
    ``doorbells`` says how the host tells of new commands. ``"shadow"``: by messages, and in guest memory if
    its driver wants to (Doorbell Buffer Config), so that it is silent while we look. ``"mmap"``: in a page
    of BAR0 that the client maps, and that is looked at all the time. ``"trapped"``: by messages only.
    ``"auto"``: mapped for a client that introduces itself without a word, as SPDK's driver does, which knows
    no other way; else as ``"shadow"``. ``tuning`` says how the queues are served; without it by one
    poller, compiled, where Numba is installed, and in the device's own thread elsewhere.

    ``vectors`` is the number of MSI-X vectors (0 to 2048; above 256 BAR0 has 64 KiB instead of 16). With 0
    the controller has MSI and INTx only and can be unplugged: QEMU up to 11.1 ends itself when a vfio-user
    device with MSI-X is. ``io_queues`` is the number of I/O queue pairs (up to 511), ``queue_entries`` the
    largest I/O queue (2 to 65536), ``mdts`` the largest transfer as a power of two of 4 KiB pages, ``zasl``
    the largest of Zone Append (0: the same). Other arguments replace declared fields, as for every `Device`.

    Raises `DefinitionError`.

    >>> from outboard.storage import open_storage
    >>> disk = Nvme(open_storage("ram:64M"))
    >>> disk.namespaces[1].blocks
    131072
    """

    def __init__(
        self,
        *namespaces: Namespace | Storage,
        subsystem: Subsystem | None = None,
        serial: str = "OUTBOARD0001",
        model: str = "outboard NVMe",
        vectors: int = 129,
        io_queues: int = 128,
        queue_entries: int = 4096,
        mdts: int = 8,
        zasl: int = 0,
        doorbells: Doorbells = "auto",
        tuning: Tuning | None = None,
        **replacements: object,
    ) -> None:
        if subsystem is None:
            subsystem = Subsystem(*namespaces, serial=serial, model=model)
        elif namespaces:
            raise DefinitionError("the namespaces are the subsystem's: give them to that")
        check_number("vectors", vectors, 0, MAX_VECTORS)
        check_number("io_queues", io_queues, 1, self._most_queues())
        check_number("queue_entries", queue_entries, 2, 1 << 16)
        check_number("mdts", mdts, 1, 16)
        check_number("zasl", zasl, 0, mdts)
        replacements = layout(vectors) | replacements
        replacements.setdefault("cap", capabilities(queue_entries))
        if doorbells not in get_args(Doorbells):
            raise DefinitionError(f"doorbells={doorbells!r}: it is one of {', '.join(get_args(Doorbells))}")
        tuning = tuning or Tuning(pollers=int(available()))
        if tuning.pollers == 0 and doorbells == "mmap":
            raise DefinitionError("doorbells='mmap' needs a poller: nobody rings, so somebody has to look")
        super().__init__(**replacements)
        self.subsystem, self.turn = subsystem, subsystem.turn
        self._running = False
        self._scheduled = False
        self._gone = False
        self._removed = False
        self._late: list[Callable[[], None]] = []
        self._patience = Patience(self.after, self._schedule, self._given_up)
        self._later: Timer | None = None
        self.namespaces: dict[int, Namespace] = {}
        vendor = self.vendor_id
        subvendor = vendor if self.subsystem_vendor_id is None else self.subsystem_vendor_id
        # MSI, and then INTx, are one vector.
        usable = len(self.msix) if self.msix is not None else 1
        limits = Limits(
            io_queues=io_queues, vectors=usable, queue_entries=queue_entries, mdts=mdts, zasl=zasl
        )
        self._page = DoorbellPage()
        self.plane = DataPlane(
            self.dma,
            self.namespaces,
            most_namespaces=subsystem.most_namespaces,
            io_queues=io_queues,
            mdts=limits.transfer,
            doorbells=self._page.address,
            vector_fd=self._vector_fd,
            line_heard=lambda: self.intx.heard,
            tuning=tuning,
        )
        self.state = subsystem.enrol(
            lambda cntlid: State(
                subsystem,
                Identity(cntlid, FIRMWARE, vendor, subvendor),
                limits,
                Commands(ADMIN_COMMANDS, IO_COMMANDS, CONDITIONS),
                self.namespaces,
                Bus(self.dma),
                self.plane,
                self._wake,
                self._restart,
            )
        )
        self.state.pause = self.show_paused
        with self.turn:
            persistent_events.switched_on(self.state)
        self.state.hardware = Hardware(self._when_served, self.fail, self._vanish, self._lose_power)
        self.controller = Controller(self.state, self._interrupt, self._schedule)
        self._doorbells = doorbells
        self._map_doorbells(doorbells == "mmap")
        if self.msix is not None:
            self.msix.on_change = self.plane.vector_changed

    @property
    def cntlid(self) -> int:
        """The controller's identifier in its subsystem."""
        return self.state.identity.cntlid

    @property
    def faults(self) -> Faults:
        """What goes wrong on purpose: the faults of the subsystem."""
        return self.subsystem.faults

    @property
    def statistics(self) -> dict[str, int]:
        """What the data plane has counted since the device was made."""
        return self.plane.statistics

    @classmethod
    def _most_queues(cls) -> int:
        return cls.doorbells.count // 2 - 1

    def _configured(self) -> None:
        self.state.entry_sizes_set = (self.sq_entry_size, self.cq_entry_size) == (6, 4)
        if self.enable and not self._running:
            self._start()
        elif not self.enable and self._running:
            self._disable()
        if self.shutdown_notification != Shutdown.NONE and self.shutdown_status == ShutdownStatus.NORMAL:
            self._shut_down()

    def _subsystem_reset(self) -> None:
        for state in self.subsystem.controllers.values():
            if state is not self.state:
                state.restart()
        self._reset_with_subsystem()
        self.subsystem.lose_power()

    def _restart(self) -> None:
        """Another controller's host resets the subsystem; in whatever thread that is."""
        if self.loop is not None:
            self.call_soon(self._reset_with_subsystem)

    def _reset_with_subsystem(self) -> None:
        self._disable()
        self.cc = self.aqa = self.asq = self.acq = 0
        self.csts = NSSRO

    def _masked(self) -> None:
        self._update_line()

    def _unmasked(self) -> None:
        if self.msi.enabled and not self._msix_enabled and self.controller.unconsumed:
            self.msi[0].trigger()
        self._update_line()

    def _rung(self, doorbell: int, value: int) -> None:
        if self.controller.ring(doorbell, value):
            self._schedule()
        if doorbell & 1:
            self._update_line()

    def region_read(self, region: int, offset: int, count: int) -> bytes:
        """As `Device`'s; what was removed reads as ones."""
        return b"\xff" * count if self._removed else super().region_read(region, offset, count)

    def region_write(self, region: int, offset: int, data: bytes) -> None:
        """As `Device`'s; what was removed hears nothing."""
        if not self._removed:
            super().region_write(region, offset, data)

    def power_cut(self, seed: int | str = 0) -> None:
        """The power fails, of the whole subsystem: see `Subsystem.power_cut`. From any thread.

        The host is to be killed or reset at the same moment.
        """
        self.subsystem.power_cut(seed)

    def surprise_removal(self) -> None:
        """The function is gone: registers and configuration space read as ones, until `replug`.

        A client that connects anew finds it there, too. That the slot is empty only a VMM can say.
        """
        with self.turn:
            self._vanish()

    def replug(self) -> None:
        """A function that was removed is there again, as after power on."""
        with self.turn:
            self._removed = False

    def on_reset(self) -> None:
        """FLR, DEVICE_RESET: as after power on. The registers are reset already."""
        self._reset_controller()

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
        self._gone = self._removed = False
        # What was put off in another loop, whose server has ended, does not come any more.
        self._scheduled = False
        self.controller.start_workers(self._require_loop())
        self.plane.start(self._require_loop(), self._schedule)
        self._begin_ticks()
        late, self._late = self._late, []
        for callback in late:
            callback()
        if self.controller.pending or self.plane.inline:
            self._schedule()

    def on_disconnect(self) -> None:
        """Queues and registers stay, unless the doorbells were mapped: such a driver never comes back.

        With no memory to reach, nothing is done.
        """
        self._gone = True
        self._patience.restore()
        self.plane.stop(self.loop)
        self.controller.stop_workers()
        self._end_ticks()
        log.info("the data plane so far: %s", ", ".join(f"{n} {name}" for name, n in self.statistics.items()))
        if self.plane.polled:
            self.reset()

    def memories(self) -> dict[str, memoryview]:
        """A disk in memory moves with its controller."""
        disks = {
            f"namespace{nsid}": storage.memory
            for nsid, space in self.state.attached.items()
            for storage in layers(space.storage)
            if isinstance(storage, RamStorage)
        }
        return super().memories() | disks

    def on_stop(self) -> None:
        """The client migrates us: no command is under way from here on, and no write is held back."""
        self.controller.freeze()
        for space in self.state.attached.values():
            for storage in layers(space.storage):
                if isinstance(storage, VolatileStorage):
                    storage.write_back()

    def on_run(self) -> None:
        """Here, or where we come from, the client lets us go on."""
        self.processing_paused = self.controller.paused
        self.controller.thaw()
        self._keep()
        self._schedule()

    def on_save(self) -> dict[str, Any]:
        """Queues, features, events, logs."""
        running = {"running": self._running, "enabled": self.controller.enabled}
        return {"controller": running | saved_state.save(self.state)}

    def on_restore(self, saved: Mapping[str, Any], version: int) -> None:
        """Become the controller that was saved."""
        controller = saved["controller"]
        self._enable_sets()
        saved_state.restore(self.state, controller)
        self._running = bool(controller["running"])
        self.controller.enabled = bool(controller["enabled"]) and 0 in self.state.completion

    def on_bus_master(self, enabled: bool) -> None:
        """Memory that could not be reached may be reachable now."""
        if enabled and self.controller.enabled:
            self._schedule()

    def close(self) -> None:
        """Let go of what only goes by itself when the device is forgotten. It is not used any more."""
        self._gone = True
        with self.turn:
            self._keep()
        self.subsystem.leave(self.cntlid)
        self._page.close()

    def refresh(self, nsid: int) -> None:
        """Look at a namespace's storage again, whose size has changed, and tell the host."""
        self.subsystem.resized(nsid)

    def _start(self) -> None:
        self._running = True
        self.shutdown_status = ShutdownStatus.NORMAL
        problem = self.misconfiguration()
        if problem:
            log.info("the host enables a controller that cannot be: %s", problem)
            self.fatal = True
            return
        self._enable_sets()
        self.plane.weighted = self.arbitration == WEIGHTED
        self.controller.enable(self.asq, self.asq_size + 1, self.acq, self.acq_size + 1)
        self.ready = True
        self.call_soon(self._keep)

    def _enable_sets(self) -> None:
        self.state.enable_sets(frozenset(Csi) if self.command_set == ALL_SETS else frozenset({Csi.NVM}))

    def _disable(self) -> None:
        """Controller reset: CC.EN went from 1 to 0. AQA, ASQ and ACQ stay."""
        self._reset_controller()
        self.csts &= NSSRO
        self.intms = 0
        self._update_line()

    def _reset_controller(self) -> None:
        was_running, self._running = self._running, False
        self.controller.reset()
        self._patience.restore()
        self._forget_pause()
        if was_running:
            self.call_soon(lambda: persistent_events.was_reset(self.state))

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
            self._keep()

    def _wake(self) -> None:
        """There is something for `process` to do, as soon as somebody serves us."""
        if self.loop is not None:
            self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self.call_soon(self._work)

    def _work(self) -> None:
        self._scheduled = False
        if self._later is not None:
            self._later.cancel()
            self._later = None
        if self._gone:
            return
        progress = self.controller.process()
        self._update_line()
        if self._gone:  # while its memory was awaited: the next client's patience begins anew
            return
        if progress is Progress.STALLED:
            self._patience.wear()
            return
        self._patience.restore()
        if progress is Progress.MORE:
            self._schedule()
        elif self.controller.deferred:
            self._later = self.after(self.controller.deferred, self._schedule)

    def _given_up(self) -> None:
        self.fail("a queue was out of reach")

    def _vanish(self) -> None:
        self._removed = True
        self.reset()

    def _lose_power(self) -> None:
        unexpectedly = self._running and self.shutdown_status != ShutdownStatus.COMPLETE
        self.state.health.power_lost(unexpectedly=unexpectedly)
        if unexpectedly:
            persistent_events.failed(self.state, HardwareError.UNSAFE_SHUTDOWN)
        self.reset()

    def _when_served(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Call ``callback`` in so many seconds; later, if no client is there then."""
        return self.after(seconds, lambda: self._late.append(callback) if self._gone else callback())

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
