"""An NVM subsystem: namespaces, and the controllers by which hosts reach them (NVMe Base 2.0, 2.3.1 and 3.2).

A subsystem with several controllers is served on several sockets: paths of one host to the same disks, or
hosts that share them. A namespace that is allocated here is seen by the controllers it is attached to.
Everything here is done in the `turn` of the thread that does it (`outboard.devices.nvme.monitor`).
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from outboard.devices.nvme import placement as placing
from outboard.devices.nvme import vitals, zone_events
from outboard.devices.nvme.ana import AnaState, AnaStates
from outboard.devices.nvme.checks import check_text
from outboard.devices.nvme.events import RESERVATION_LOG_AVAILABLE
from outboard.devices.nvme.injection import Faults
from outboard.devices.nvme.management.background import Background
from outboard.devices.nvme.management.firmware import Firmware
from outboard.devices.nvme.management.formatting import Formatting
from outboard.devices.nvme.management.inventory import Inventory
from outboard.devices.nvme.management.pool import Pool
from outboard.devices.nvme.management.resizing import follow, resize
from outboard.devices.nvme.management.sanitizing import Sanitizing
from outboard.devices.nvme.management.self_tests import SelfTests
from outboard.devices.nvme.monitor import Monitor
from outboard.devices.nvme.namespace import Namespace, derived_uuid
from outboard.devices.nvme.persistent_events import PersistentEvents
from outboard.devices.nvme.placement import PlacementLayout
from outboard.devices.nvme.qos import Qos
from outboard.devices.nvme.reservation import Host, Notices, Reservation, keep, kept
from outboard.devices.nvme.spec import PersistentEvent, SelfTestResult
from outboard.devices.nvme.status import Status
from outboard.devices.nvme.store import Document, Store
from outboard.devices.nvme.uncorrectable import Uncorrectable
from outboard.devices.nvme.vitals import Vitals
from outboard.errors import DefinitionError, SetupError, StateError
from outboard.storage import Storage, VolatileStorage, layers

if TYPE_CHECKING:
    from outboard.devices.nvme.state import State

log = logging.getLogger(__name__)

MOST_CONTROLLERS = 0xFFEF


class Subsystem:
    """A subsystem with these namespaces, numbered from 1, and no controller yet.

    ``serial`` (20 characters at most, printable ASCII) is what hosts tell subsystems and namespaces
    apart by: keep it, and they are recognised after a restart. ``model`` has 40 characters at most.
    ``most_namespaces`` is the largest namespace identifier there can ever be (NN): firmware asks for each.
    ``multipath``: hosts are told from the start that there may be several controllers (CMIC), which they note
    once; without it they are as soon as there are two. ``store`` is what outlives a power cycle. ``pool`` is
    where namespaces come from that hosts create; those that were created before come back from it. ``faults``
    are those that a test has injected. With ``placement`` hosts may say which data belongs together.
    ``vitals`` says how the drive is, `set_vitals` changes that; ``persistent_events`` is the history of both.

    Raises `DefinitionError`.

    >>> from outboard.storage import open_storage
    >>> from outboard.devices.nvme import Nvme
    >>> disks = Subsystem(open_storage("ram:64M"), serial="SHARED1")
    >>> paths = Nvme(subsystem=disks), Nvme(subsystem=disks)
    >>> sorted(disks.controllers)
    [1, 2]
    """

    def __init__(
        self,
        *namespaces: Namespace | Storage,
        serial: str = "OUTBOARD0001",
        model: str = "outboard NVMe",
        most_namespaces: int = 32,
        multipath: bool = False,
        store: Store | None = None,
        pool: Pool | None = None,
        placement: PlacementLayout | None = None,
    ) -> None:
        check_text("serial", serial, 20)
        check_text("model", model, 40)
        self.serial, self.model, self.multipath = serial, model, multipath
        self.most_namespaces = max(most_namespaces, len(namespaces))
        self.store, self.pool = store or Store(), pool
        self.away = False
        """Whether its state was saved to go on elsewhere, or came from there, and nobody has begun anew."""
        self.placement = placing.kept(placement, self.store) if placement is not None else None
        self.vitals: Vitals = vitals.load(self.store)
        self.persistent_events = PersistentEvents(self.store)
        self.turn = Monitor()
        self.ana = AnaStates()
        self.namespaces: dict[int, Namespace] = {}
        self.controllers: dict[int, State] = {}
        self.faults = Faults(self.turn, self._reconfigure_all)
        self.background = Background(self.turn, self.at_work)
        self.uncorrectable = Uncorrectable(self)
        self.inventory = Inventory(self)
        self.firmware = Firmware(self)
        self.sanitizing: Sanitizing = Sanitizing(self)
        self.self_tests: SelfTests = SelfTests(self)
        self.formatting = Formatting(self)
        for space in namespaces:
            self.add(space)
        self.inventory.reopen()
        self._go_on()

    @property
    def nqn(self) -> str:
        """The NVMe Qualified Name, derived from the serial number."""
        return f"nqn.2014-08.org.nvmexpress:uuid:{derived_uuid(self.serial)}"

    @property
    def free_identifier(self) -> int:
        """The smallest namespace identifier that is free; 0 if none is."""
        taken = self.namespaces.keys() | self.inventory.reserved
        return next((n for n in range(1, self.most_namespaces + 1) if n not in taken), 0)

    def add(self, space: Namespace | Storage, nsid: int = 0) -> Namespace:
        """Allocate a namespace (0: the first identifier that is free), and attach it to every controller.

        Who had reserved it, if that was to be kept, has still. Raises `DefinitionError` if there is no such
        identifier, or it is taken.
        """
        if not isinstance(space, Namespace):
            space = Namespace(space)
        with self.turn:
            nsid = nsid or self.free_identifier
            if not 1 <= nsid <= self.most_namespaces:
                raise DefinitionError(
                    f"namespace identifiers are 1 to {self.most_namespaces}: "
                    + (f"{nsid} is not" if nsid else "all are taken")
                )
            if nsid in self.namespaces or (nsid in self.inventory.reserved and not space.created):
                raise DefinitionError(f"namespace {nsid} is there already")
            space.nsid = nsid
            space.reservation = kept(self.store, nsid)
            self.uncorrectable.recall(space)
            self.inventory.recall(space)
            self._place(space)
            zone_events.belong(self, space)
            self.namespaces[nsid] = space
            self.sanitizing.bar(space)
            for cntlid in self.controllers:
                if self.inventory.may_have(space, cntlid):
                    self.attach(nsid, cntlid)
            self.announce(nsid)
        return space

    def remove(self, nsid: int, *, but: int = 0) -> Namespace:
        """Detach a namespace from every controller and forget it; its storage is the caller's to close.

        One that a host created is deleted, content and all. Every host but controller ``but``'s is told.
        """
        with self.turn:
            space = self.namespaces[nsid]
            before = set(space.attached)
            for cntlid in before:
                self.detach(nsid, cntlid)
            for state in self.controllers.values():
                state.rest(space.storage)
                state.let_go(space.storage)
            del self.namespaces[nsid]
            self.background.interrupt(space)
            self._part(space)
            self.self_tests.abort_for([nsid], SelfTestResult.NAMESPACE_REMOVED)
            self.forget(nsid)
            if space.created and self.pool is not None:
                self.pool.delete(nsid)
            self._tell(nsid, before - {but})
        return space

    def forget(self, nsid: int) -> None:
        """Forget what belongs to a namespace identifier: the next namespace that has it begins anew."""
        self.inventory.forget(nsid)
        self.uncorrectable.forget(nsid)
        with _for_now(f"that namespace {nsid} is not reserved"):
            keep(self.store, nsid, Reservation(), anyway=True)
        for state in self.controllers.values():
            state.reservation_log.masks.pop(nsid, None)
            with _for_now(f"that namespace {nsid} has no features"):
                state.features.forget_namespace(nsid)

    def attach(self, nsid: int, cntlid: int) -> None:
        """Let a controller have a namespace; its host is not told."""
        with self.turn:
            space, state = self.namespaces[nsid], self.controllers[cntlid]
            space.attached.add(cntlid)
            space.limits.reach(state.limits.transfer)
            if len(space.attached) == 2:  # from now on their loops keep out of each other's way
                self.reconfigure(nsid)
            self.ana.changed(cntlid, space.ana_group)
            if space.csi in state.command_sets:
                state.namespaces[nsid] = space
                state.plane.configure()

    def detach(self, nsid: int, cntlid: int) -> None:
        """Take a namespace from a controller. Its host is not told.

        What the data plane does ends first; what waits for a slow storage ends with an error (`State.abort`).
        """
        with self.turn:
            space, state = self.namespaces[nsid], self.controllers[cntlid]
            space.attached.discard(cntlid)
            state.namespaces.pop(nsid, None)
            self.ana.changed(cntlid, space.ana_group)
            state.plane.configure()
            state.abort(space, Status.INVALID_NAMESPACE, alone=True)

    def remember(self, kind: PersistentEvent, data: bytes) -> None:
        """Add to the persistent event log what happened to no controller in particular."""
        if self.controllers:
            self.controllers[min(self.controllers)].remember(kind, data)

    def keep(self, section: str, value: Any) -> None:
        """Put something into the store; if it cannot be kept now, it is with what is kept next."""
        with _for_now(section):
            self.store.put(section, value, anyway=True)

    def keep_placement(self) -> None:
        """Make durable what data placement has counted."""
        if self.placement is not None:
            self.keep(placing.SECTION, self.placement.save())

    def resized(self, nsid: int) -> None:
        """Look at a namespace's storage again, whose size has changed, and tell every host."""
        with self._still(nsid) as space:
            follow(space)

    def resize(self, nsid: int, size: int) -> None:
        """Give a namespace's storage another size in bytes, and tell every host.

        Commands under way end first; those that wait for a slow storage are to be tried again (Command
        Interrupted). What a smaller one does not hold is lost. Raises `StorageError` if the
        storage cannot, or does not hold a block any more; `DefinitionError` while it is being erased.
        """
        with self._still(nsid) as space:
            resize(space, size, self.pool)

    @contextmanager
    def _still(self, nsid: int) -> Iterator[Namespace]:
        """Nobody uses a namespace until the block is left; then its storage may be another one."""
        with self.turn, ExitStack() as stack:
            space = self.namespaces[nsid]
            if space.barred is not None:
                raise DefinitionError(f"namespace {nsid} is being erased: resize it afterwards")
            for state in self.states_of(nsid):
                state.abort(space, Status.COMMAND_INTERRUPTED)
                stack.enter_context(state.plane.paused())
            for state in self.controllers.values():  # one that had it a moment ago may write still
                state.rest(space.storage)
            self.self_tests.abort_for([nsid], SelfTestResult.ABORTED_UNKNOWN)
            self.background.interrupt(space)
            before = space.blocks
            try:
                yield space
            finally:
                if space.blocks != before:
                    self.relocate(space)
                if space.blocks < before:
                    self.uncorrectable.renew(space)
                self.reconfigure(nsid)
            self.inventory.renew(space)
            self.announce(nsid)

    def set_qos(self, nsid: int, qos: Qos | None) -> None:
        """Limit a namespace from now on, or no longer; what waits for its time goes by the new limits.

        Raises KeyError if there is no such namespace.
        """
        with self.turn:
            space = self.namespaces[nsid]
            space.qos = qos
            space.limits.set(qos)
            self.reconfigure(nsid)
            for state in self.states_of(nsid):
                state.wake()

    def relocate(self, space: Namespace) -> None:
        """The blocks of a namespace are others now: where they were placed is forgotten."""
        if space.placed is not None and self.placement is not None:
            self.placement.leave(space.placed)
            space.placed = None
            try:
                self._place(space)
            except DefinitionError as error:
                log.warning("namespace %d has no part in data placement any more: %s", space.nsid, error)

    def reconfigure(self, nsid: int) -> None:
        """Have every data plane look anew at a namespace that has changed; when this returns, each has."""
        with self.turn:
            for state in self.states_of(nsid):
                state.plane.configure()

    def power_cut(self, seed: int | str = 0) -> None:
        """Everything loses its power at once; afterwards it is as after power on.

        Commands under way vanish. Of what was not flushed a storage with a volatile write cache
        (`outboard.storage.VolatileStorage`) keeps what ``seed`` says; another one keeps everything.
        """
        with self.turn:
            for state in list(self.controllers.values()):
                if state.hardware is not None:
                    state.hardware.lose_power()
            self.lose_power()
            for nsid, space in self.namespaces.items():
                space.reservation = space.reservation.after_power_loss()
                space.write_protection = space.lasting_protection
                for storage in layers(space.storage):
                    if isinstance(storage, VolatileStorage):
                        storage.cut(f"{seed} {nsid}")
            self.uncorrectable.lose_power()

    def announce(self, nsid: int, *, but: int = 0) -> None:
        """Tell every host that has a namespace, but not controller ``but``'s, that it has changed."""
        self._tell(nsid, self.namespaces[nsid].attached - {but})

    def set_ana(self, cntlid: int, group: int, access: AnaState) -> None:
        """Set how a controller can access the namespaces of a group, and tell its host.

        When this returns, commands that come in by that controller find it so, and no older one is under
        way in its data plane. Raises `DefinitionError` if there is no such controller or group.
        """
        with self.turn:
            state = self.controllers.get(cntlid)
            if state is None:
                raise DefinitionError(f"there is no controller {cntlid}, but {sorted(self.controllers)}")
            if self.ana.of(cntlid, group) != access:
                self.ana.set(cntlid, group, access)
                state.plane.configure()
                state.access_changed(group)

    def reserve(self, space: Namespace, after: Reservation, notices: Notices = ()) -> None:
        """Have a namespace's reservation be as in ``after``: kept, followed by data planes, and told.

        A controller is disturbed only if its host may do more now, or less. Raises `SetupError`, with nothing
        changed, if it cannot be kept.
        """
        with self.turn:
            keep(self.store, space.nsid, after)
            self._reserved(space, after, notices)

    def _reserved(self, space: Namespace, after: Reservation, notices: Notices) -> None:
        before, space.reservation = space.reservation, after
        for state in self.states_of(space.nsid):
            if before.rights(state.host) != after.rights(state.host):
                state.plane.configure()
        for host, what in notices:
            for state in self.states_of(space.nsid):
                if state.host == host and state.reservation_log.add(what, space.nsid):
                    state.report(RESERVATION_LOG_AVAILABLE)

    def host_left(self, cntlid: int) -> None:
        """A controller was reset: without an identifier, whoever uses it next is another host."""
        host = Host(b"", cntlid)
        with self.turn:
            for space in self.namespaces.values():
                if host in space.reservation.keys:
                    after = space.reservation.copy()
                    notices = after.forget(host)
                    # Nothing of such a host outlives a power cycle, whatever is kept.
                    self._reserved(space, after, notices)

    def set_vitals(self, **values: Any) -> None:
        """Say how the drive is: see `outboard.devices.nvme.vitals.Vitals`. Hosts are told of what is wrong.

        Raises `DefinitionError` for what cannot be, `SetupError` if it cannot be kept.
        """
        with self.turn:
            changed = vitals.changes(self.vitals, values)
            before, now = self.vitals, replace(self.vitals, **changed)
            for state in self.controllers.values():
                vitals.account(state)
            self.vitals = now
            vitals.keep(self.store, now)
            for state in self.controllers.values():
                vitals.changed(state, before)
            if "read_only" in changed:
                for nsid in self.namespaces:
                    self.reconfigure(nsid)

    def states_of(self, nsid: int) -> "Iterator[State]":
        """The controllers that have a namespace attached."""
        return (self.controllers[cntlid] for cntlid in sorted(self.namespaces[nsid].attached))

    def enrol(self, make: "Callable[[int], State]") -> "State":
        """A new controller: ``make`` gets its identifier. Every namespace that may be is attached to it."""
        with self.turn:
            cntlid = next(n for n in range(1, MOST_CONTROLLERS + 1) if n not in self.controllers)
            state = self.controllers[cntlid] = make(cntlid)
            self.multipath |= len(self.controllers) > 1
            for nsid, space in self.namespaces.items():
                if self.inventory.may_have(space, cntlid):
                    self.attach(nsid, cntlid)
            self.ana.was_reset(cntlid)
            self.background.look()
        return state

    def leave(self, cntlid: int) -> None:
        """A controller is gone for good."""
        with self.turn:
            self.host_left(cntlid)
            for nsid in self.controllers[cntlid].attached:
                self.detach(nsid, cntlid)
            del self.controllers[cntlid]
            self.ana.forget(cntlid)
            self.background.look()

    def become(self, document: Document) -> None:
        """Remember this, which comes from another process; a namespace's format and controllers stay.

        Operations go on when a controller does. Raises `StateError` if it cannot be, and nothing has changed.
        """
        before = self.store.document
        self.away = True
        try:
            self.store.document = document
            self._recall()
        except Exception as error:
            with suppress(SetupError):
                self.store.document = before
            self._recall()
            raise StateError(f"the state of the subsystem cannot be: {error!r}") from error

    def begin_here(self) -> None:
        """A controller starts, or goes on, in this process."""
        self.away = False
        self.background.look()

    def _recall(self) -> None:
        for operation in list(self.background.operations):
            self.background.cancel(operation)
        self.inventory = Inventory(self)
        self.firmware = Firmware(self)
        self.sanitizing = Sanitizing(self)
        self.self_tests = SelfTests(self)
        self.formatting = Formatting(self)
        for space in self.namespaces.values():
            self.sanitizing.bar(space)
        self._go_on()

    def controller_was_reset(self, cntlid: int) -> None:
        """A controller has forgotten what a reset forgets: its turn is held."""
        self.firmware.controller_was_reset(cntlid)
        self.background.look()

    def at_work(self) -> bool:
        """Whether there are controllers, none of which is about to be moved to another process."""
        states = list(self.controllers.values())
        return bool(states) and not self.away and not any(state.plane.frozen for state in states)

    def _go_on(self) -> None:
        """Begin anew the operations that were under way."""
        self.formatting.go_on()
        self.sanitizing.go_on()
        self.self_tests.go_on()
        self.firmware.go_on()

    def _reconfigure_all(self) -> None:
        for state in self.controllers.values():
            state.plane.configure()

    def _place(self, space: Namespace) -> None:
        if self.placement is not None and self.placement.enabled:
            space.placed = self.placement.join(space)
        elif space.placement_handles:
            raise DefinitionError("placement handles are for a subsystem that has data placement enabled")

    def _part(self, space: Namespace) -> None:
        """A namespace is not ours any more: neither are its zones, nor where its data is placed."""
        zone_events.part(space)
        for state in self.controllers.values():
            state.changed_zones.pop(space.nsid, None)
        if space.placed is not None and self.placement is not None:
            self.placement.leave(space.placed)
            space.placed = None

    def lose_power(self) -> None:
        """The power of the whole subsystem is gone and back, as by a subsystem reset."""
        with self.turn:
            for space in self.namespaces.values():
                if space.zones is not None:
                    space.zones.lose_power()

    def _tell(self, nsid: int, cntlids: set[int]) -> None:
        for cntlid in sorted(cntlids):
            self.controllers[cntlid].namespace_changed(nsid)


@contextmanager
def _for_now(what: str) -> Iterator[None]:
    """Go on though something cannot be kept."""
    try:
        yield
    except SetupError as error:
        log.error("%s will not outlive a power cycle: %s", what, error)
