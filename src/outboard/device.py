"""Devices: the contract a server calls, and `Device`, the class authors subclass.

Any object with the methods of `DeviceContract` is a device. `Device` implements them from what a subclass
declares: BARs, registers, capabilities and interrupts as class fields, behaviour as decorated methods.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple, Protocol

from outboard.device_state import Movable
from outboard.dma import GuestMemory, Mapping, RemoteMemory
from outboard.errors import OutboardError, RequestRefused
from outboard.loop import Loop, Timer
from outboard.native.jit import Entry
from outboard.native.poller import Poller
from outboard.pci.bar import Bar, BarSpace, Ram, RomSpace, Window
from outboard.pci.capabilities import Msi, MsiX
from outboard.pci.config_space import COMMAND, Command, ConfigSpace
from outboard.pci.doorbells import Doorbell, IoEventFd
from outboard.pci.fields import Field, check, declared
from outboard.pci.function import Function, Identity
from outboard.pci.interrupts import Interrupts, IrqAction, IrqData, Vector, Vectors
from outboard.pci.registers import BitField, RegisterArray, RegisterField, check_handlers

log = logging.getLogger(__name__)

READ, WRITE, MMAP = 1, 2, 4
"""Flags of a region, as VFIO numbers them."""

ROM_REGION, CONFIG_REGION, VGA_REGION = 6, 7, 8
REGIONS = 9
REMEMBERED_ACCESSES = 256


@dataclass(frozen=True, slots=True)
class Region:
    """One region of a device: BAR0 to BAR5, the ROM, configuration space, VGA. Size 0: there is none.

    ``areas`` are the (offset, size) a client may map; none although ``flags`` has `MMAP` means all of it.
    The region begins at ``fd_offset`` of ``fd``, which stays the device's.
    """

    size: int = 0
    flags: int = 0
    areas: tuple[tuple[int, int], ...] = ()
    fd: int | None = None
    fd_offset: int = 0


class Access(NamedTuple):
    """A guest's access to bytes of a BAR that neither a register nor a handler claims."""

    region: int
    offset: int
    size: int
    is_write: bool


class DeviceContract(Protocol):
    """What a server needs of a device. Errors become error replies; `RequestRefused` names the errno.

    A device may also have ``attach(loop)``, ``connected(remote)`` and ``disconnected()``; see `Device`; and
    ``introduced(profile)``, called before ``connected``: who the client is (`outboard.server.profiles`); and
    ``io_event_fds(region, shadows)``: the parts of a region that a client may ring by descriptor.
    """

    @property
    def regions(self) -> Sequence[Region]:
        """Exactly nine: BAR0 to BAR5, ROM, configuration space, VGA."""

    @property
    def interrupts(self) -> Sequence[int]:
        """How many vectors: INTx, MSI, MSI-X, ERR, REQ."""

    def region_read(self, region: int, offset: int, count: int) -> bytes:
        """``count`` bytes at ``offset`` of a region."""

    def region_write(self, region: int, offset: int, data: bytes) -> None:
        """Write ``data`` at ``offset`` of a region."""

    def dma_map(self, mapping: Mapping) -> None:
        """The guest's memory grew; ``mapping.fd`` is the device's from now on."""

    def dma_unmap(self, address: int, size: int) -> None:
        """The range is gone when the call returns."""

    def set_irqs(
        self,
        index: int,
        action: IrqAction,
        data: IrqData,
        start: int,
        count: int,
        *,
        fds: Sequence[int] = (),
        bools: bytes = b"",
    ) -> None:
        """VFIO's SET_IRQS; ``fds`` are the device's from now on, also when it refuses."""

    def reset(self) -> None:
        """As after power on, but descriptors and memory maps stay."""


class _Space(Protocol):
    def read(self, offset: int, count: int) -> bytes: ...
    def write(self, offset: int, data: bytes) -> None: ...


class Device(Movable):
    """A PCI function, declared.

    >>> from outboard import Bar, Device
    >>> class Inverter(Device):
    ...     mmio = Bar(0, size=0x1000)
    ...     value = mmio.reg(0x04)
    ...
    ...     @value.on_write
    ...     def invert(self, value: int) -> None:
    ...         self.value = ~value
    >>> device = Inverter()
    >>> device.region_write(0, 0x04, bytes(4))
    >>> device.region_read(0, 0x04, 4).hex()
    'ffffffff'

    Handlers run in one thread, in the order of the wire, while a virtual CPU waits. ``dma`` is the
    guest's memory, ``config`` the configuration space, ``unhandled`` the first accesses nobody claimed,
    ``error_irq`` and ``request_irq`` VFIO's two notifications to the VMM.
    """

    vendor_id: int = 0x4F42
    device_id: int = 0x0000
    class_code: int = 0xFF_0000
    """24 bits: base class, subclass, programming interface."""
    subsystem_vendor_id: int | None = None
    """None: the same as `vendor_id`."""
    subsystem_id: int | None = None
    """None: the same as `device_id`."""
    revision_id: int = 0
    express: bool | None = None
    """Whether configuration space has 4096 bytes; None: if a PciExpress field is declared."""
    dma_requires_bus_master: bool = True
    """Whether DMA is refused until the guest sets COMMAND.MASTER, as on real hardware."""

    _REPLACEABLE: ClassVar = (*Identity.__slots__, "express", "dma_requires_bus_master")

    config: ConfigSpace
    dma: GuestMemory
    regions: tuple[Region, ...]
    interrupts: tuple[int, ...]
    unhandled: list[Access]
    loop: Loop | None
    error_irq: Vector
    request_irq: Vector

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        fields = declared(cls)
        for name in fields:
            check(
                not hasattr(Device, name) and name not in Device.__annotations__,
                f"{cls.__name__}.{name} hides Device.{name}, which a device needs; choose another name",
            )
        function = Function(cls.__name__, fields, cls.express)
        Device._identity(cls).check(cls.__name__)
        check_handlers(
            cls, [field for field in fields.values() if isinstance(field, RegisterField | Doorbell)]
        )
        for bar in function.bars.values():
            for handler in filter(None, (bar.read_handler, bar.write_handler)):
                check(callable(getattr(cls, handler, None)), f"{cls.__name__} has no method {handler}")

    def __init__(self, **replacements: Any) -> None:
        """A device as declared, except for what ``replacements`` names.

        A field is replaced by another of its kind or, unless it is a register, taken out by None; a
        register by its reset value; ``vendor_id`` and the other class attributes by a value.
        Raises `DefinitionError`.
        """
        super().__init__()
        owner = type(self).__name__
        fields = declared(type(self))
        resets: dict[str, int] = {}
        for name, value in replacements.items():
            if name in self._REPLACEABLE:
                setattr(self, name, value)
            else:
                self._replace(fields, resets, name, value)
        function = Function(owner, fields, self.express)
        identity = self._identity(self)
        identity.check(owner)
        self.config = function.config_space(identity)
        self.dma = GuestMemory()
        self.dma.enabled = not self.dma_requires_bus_master
        self.unhandled = []
        self.loop = None
        self._pollers: list[Poller] = []
        self._bus_master = False
        self._bind(function, resets)
        self.config.watch(COMMAND, 2, self._command_written)

    def region_read(self, region: int, offset: int, count: int) -> bytes:
        """A guest's read; `RequestRefused` (EINVAL) if it does not lie in an existing region."""
        register = self._plain.get((region, offset, count))
        if register is not None:
            return register.tobytes()
        space = self._spaces[region] if 0 <= region < REGIONS else None
        if space is None:
            raise RequestRefused(f"region {region} does not exist; reading {count} bytes at {offset:#x}")
        return space.read(offset, count)

    def region_write(self, region: int, offset: int, data: bytes) -> None:
        """A guest's write; `RequestRefused` (EINVAL) if it does not lie in an existing region."""
        space = self._spaces[region] if 0 <= region < REGIONS else None
        if space is None:
            raise RequestRefused(f"region {region} does not exist; writing {len(data)} bytes at {offset:#x}")
        space.write(offset, data)

    def dma_map(self, mapping: Mapping) -> None:
        """Guest memory to reach by ``self.dma``. Override to follow it; call this first."""
        self.dma.map(mapping)

    def dma_unmap(self, address: int, size: int) -> None:
        """Guest memory that goes away. Override to let go of it; call this last."""
        self.dma.unmap(address, size)

    def set_irqs(
        self,
        index: int,
        action: IrqAction,
        data: IrqData,
        start: int,
        count: int,
        *,
        fds: Sequence[int] = (),
        bools: bytes = b"",
    ) -> None:
        """VFIO's SET_IRQS; see `Interrupts.set_irqs`."""
        self._interrupts.set_irqs(index, action, data, start, count, fds=fds, bools=bools)

    def io_event_fds(self, region: int, shadows: bool) -> Iterator[IoEventFd]:
        """The doorbells of a region, each made ready for the client when its turn comes.

        ``shadows``: with those that have one, whose ring by eventfd alone would lose the value.
        """
        space = self._spaces[region]
        if isinstance(space, BarSpace):
            for bells in space.doorbells.values():
                if shadows or bells.shadow_fd is None:
                    yield from bells.io_event_fds()

    def reset(self) -> None:
        """Registers and configuration space to their reset values, interrupts lowered; then `on_reset`.

        Runs for DEVICE_RESET and for a function-level reset. Eventfds, DMA maps and plain memory stay.
        """
        self._interrupts.reset()
        for space in self._bar_spaces:
            space.reset()
        self.config.reset()
        self.on_reset()

    def attach(self, loop: Loop) -> None:
        """The loop the device lives in from now on."""
        self.loop = loop
        self._interrupts.attach(loop)
        for bells in self._every_doorbell():
            bells.attach(loop)

    def connected(self, remote: RemoteMemory | None) -> None:
        """A client is there; ``remote`` reaches memory it maps without a descriptor."""
        self.dma.remote = remote
        self.on_connect()

    def disconnected(self) -> None:
        """The client is gone: first `on_disconnect`, then the pollers and its eventfds go; registers stay.

        Its memory is unmapped next, by `dma_unmap`.
        """
        try:
            self.on_disconnect()
        finally:
            while self._pollers:
                self._stop_poller(self._pollers.pop())
            self._interrupts.disconnect()
            for bells in self._every_doorbell():
                bells.disconnect()
            self.dma.remote = None
            self.forget_stop()

    def on_reset(self) -> None:
        """Called after a reset. Override."""

    def on_connect(self) -> None:
        """Called when a client has connected. Override."""

    def on_disconnect(self) -> None:
        """Called when the client has gone, while its memory is still mapped. Override."""

    def on_bus_master(self, enabled: bool) -> None:
        """Called when the guest, or a reset, switches bus mastering. Override."""

    def after(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Call ``callback`` in ``seconds``, in the device's thread."""
        timer: Timer = self._require_loop().after(seconds, lambda: self._due(timer, callback))
        return timer

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` after the request at hand is answered, in the device's thread."""
        self._require_loop().call_soon(partial(self._due, None, callback))

    def start_poller(
        self, loop: Entry, *arguments: int, on_notice: Callable[[], None] | None = None
    ) -> Poller:
        """Run ``loop(control, *arguments)`` beside the device until the client has gone.

        To be called in `on_connect`. It runs in a thread of its own, compiled if it can be (``loop.best()``
        before the first client comes: compiling takes seconds, once); the guest's memory is mapped and
        unmapped only while it is paused. ``on_notice`` is called in the device's thread after the loop
        has called `outboard.native.poller.notify`.
        """
        poller = Poller(loop, *arguments, name=f"{type(self).__name__}.{loop.name}")

        def noticed() -> None:
            poller.acknowledge()
            if on_notice is not None:
                on_notice()

        self._require_loop().watch(poller.notices, noticed)
        self.dma.users.append(poller.paused)
        self._pollers.append(poller)
        return poller.start()

    def _stop_poller(self, poller: Poller) -> None:
        self.dma.users.remove(poller.paused)
        self._require_loop().unwatch(poller.notices)
        poller.stop()

    def _require_loop(self) -> Loop:
        if self.loop is None:
            raise OutboardError(
                "the device lives in no loop yet: serve it, use TestClient, or attach(Loop()) it"
            )
        return self.loop

    @staticmethod
    def _identity(holder: "Device | type[Device]") -> Identity:
        subsystem = (holder.subsystem_vendor_id, holder.subsystem_id)
        return Identity(
            holder.vendor_id,
            holder.device_id,
            holder.vendor_id if subsystem[0] is None else subsystem[0],
            holder.device_id if subsystem[1] is None else subsystem[1],
            holder.class_code,
            holder.revision_id,
        )

    def _replace(
        self, fields: dict[str, Field[Any]], resets: dict[str, int], name: str, value: object
    ) -> None:
        owner, field = type(self).__name__, fields.get(name)
        known = ", ".join([*fields, *self._REPLACEABLE])
        check(field is not None, f"{owner}({name}=...): there is no such field; there are {known}")
        where = f"{owner}({name}={value!r})"
        if isinstance(field, RegisterField):
            check(
                isinstance(value, int) and 0 <= value <= field.ones,
                f"{where}: a register is replaced by a reset value of {field.size} bytes",
            )
            resets[name] = value  # type: ignore[assignment]
        elif isinstance(field, BitField):
            check(False, f"{where}: give the reset value of the register {field.register.name} instead")
        elif value is None:
            del fields[name]
            self.__dict__[name] = None
        else:
            check(
                isinstance(value, type(field)), f"{where}: it is replaced by another {type(field).__name__}"
            )
            assert isinstance(value, Field)
            assert field is not None
            check(value.name in ("", name), f"{where}: that one is {value.name} already")
            value.take_over(field)
            fields[name] = value

    def _bind(self, function: Function, resets: dict[str, int]) -> None:
        vectors: dict[type, Vectors] = {}
        windows: list[tuple[int, Window]] = []
        for offset, capability in function.capabilities:
            bound = capability.bind(self.config, offset, self.reset)
            self.__dict__[capability.name] = bound
            if isinstance(capability, Msi | MsiX):
                vectors[type(capability)] = bound
            if isinstance(capability, MsiX):
                windows += [(capability.table_bar, bound.table), (capability.pba_bar, bound.pba)]
        intx = None
        if function.intx is not None:
            intx = self.__dict__[function.intx.name] = function.intx.bind(self.config)
        self._interrupts = Interrupts(intx, vectors.get(Msi, Vectors(0)), vectors.get(MsiX, Vectors(0)))
        self.interrupts = self._interrupts.counts
        self.error_irq = self._interrupts.error[0]
        self.request_irq = self._interrupts.request[0]

        spaces: list[_Space | None] = [None] * REGIONS
        regions = [Region()] * REGIONS
        self._bar_spaces: list[BarSpace] = []
        self._plain: dict[tuple[int, int, int], memoryview] = {}
        for index, bar in function.bars.items():
            registers = [c for c in function.contents[index] if isinstance(c, RegisterField)]
            rams = [c for c in function.contents[index] if isinstance(c, Ram)]
            doorbells = [c for c in function.contents[index] if isinstance(c, Doorbell)]
            space = BarSpace(
                bar,
                self,
                [(register, resets.get(register.name, register.reset)) for register in registers],
                rams,
                doorbells,
                [window for where, window in windows if where == index],
                self._note_unhandled,
            )
            self.__dict__[bar.name] = spaces[index] = space
            self._bar_spaces.append(space)
            self.__dict__ |= space.doorbells
            self._plain |= space.plain_registers()
            regions[index] = self._describe(bar, space)
            for content in function.contents[index]:
                if isinstance(content, RegisterArray | Ram):
                    self.__dict__[content.name] = content.bind(space)
        if function.rom is not None:
            rom: RomSpace = function.rom.bind()
            self.__dict__[function.rom.name] = spaces[ROM_REGION] = rom
            regions[ROM_REGION] = Region(rom.size, READ)
        spaces[CONFIG_REGION] = self.config
        regions[CONFIG_REGION] = Region(self.config.size, READ | WRITE)
        self._spaces = tuple(spaces)
        self.regions = tuple(regions)

    @staticmethod
    def _describe(bar: Bar, space: BarSpace) -> Region:
        flags = READ | WRITE | (MMAP if bar.mappable else 0)
        return Region(bar.size, flags, bar.areas, space.fd)

    def _command_written(self) -> None:
        enabled = bool(self.config.load(COMMAND, 2) & Command.MASTER)
        if enabled != self._bus_master:
            self._bus_master = enabled
            self.dma.enabled = enabled or not self.dma_requires_bus_master
            self.on_bus_master(enabled)

    def _note_unhandled(self, region: int, offset: int, size: int, is_write: bool) -> None:
        access = Access(region, offset, size, is_write)
        if len(self.unhandled) < REMEMBERED_ACCESSES and access not in self.unhandled:
            self.unhandled.append(access)
            verb = "writes" if is_write else "reads"
            log.warning(
                "%s: the guest %s %d bytes at %#x of BAR%d, which nothing claims",
                type(self).__name__,
                verb,
                size,
                offset,
                region,
            )
