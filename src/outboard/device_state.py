"""What a device does to be moved: it is quieted, stopped, saved; restored elsewhere, and set running.

vfio-user specification, "VFIO_USER_DEVICE_FEATURE": the migration states. A declared device saves itself:
its registers, plain memory, configuration space and interrupts; an author adds the rest with `on_save` and
`on_restore`. The sections of such a state (`outboard.state` has the layout):

======================  ======================================================================
``device``              JSON: the class's name and its ``state_version``
``config``              configuration space, raw
``interrupts``          JSON, by index: pending bits, the MSI-X table, the level of INTx
``registers/BAR``       JSON, one for each BAR with registers: by offset in hexadecimal, every
                        value that is not the reset value
``memory/NAME/OFFSET``  memory (`Movable.memories`), raw: blocks of 64 KiB that are not all zero
``doorbells/NAME``      JSON: the values, and which rings were not heard yet
``own/NAME``            what `on_save` gave
======================  ======================================================================
"""

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import ExitStack
from hashlib import blake2b

from outboard import state
from outboard.dma import GuestMemory
from outboard.errors import StateError
from outboard.loop import Loop, Timer
from outboard.native.poller import Poller
from outboard.pci.bar import BarSpace
from outboard.pci.config_space import ConfigSpace
from outboard.pci.doorbells import Doorbells
from outboard.pci.interrupts import Interrupts
from outboard.state import Value

MEMORY_BLOCK = 64 << 10

Sent = MutableMapping[str, bytes]
"""Digests of the blocks of memory that were saved before, by the names of their sections."""


class Movable:
    """The part of `outboard.Device` that saves and restores it.

    ``state_version`` is the author's: raise it when what `on_save` gives changes; `on_restore` is told the
    version of what it gets, and a state newer than the class is refused. ``stopped`` is True while the
    client has stopped the device: it reaches no memory, its pollers pause, and its timers wait.
    """

    state_version: int = 1
    stopped: bool = False
    config: ConfigSpace
    dma: GuestMemory
    loop: Loop | None
    _bar_spaces: list[BarSpace]
    _interrupts: Interrupts
    _pollers: list[Poller]

    def __init__(self) -> None:
        self._paused = ExitStack()
        self._put_off: list[tuple[Timer | None, Callable[[], None]]] = []
        self._when_quiet: Callable[[], None] | None = None
        self._is_quiet = False

    def on_quiesce(self) -> bool | None:
        """Called before memory is mapped or unmapped, before a reset and before a stop. Override.

        End what is under way; return False if that takes time, and call `quiesced` when it is done: the
        client's request waits for it. Until `on_resume` nothing new is to be begun.
        """

    def on_resume(self) -> None:
        """Called when what `on_quiesce` was called for is over. Override."""

    def on_stop(self) -> None:
        """Called when the device is to stop; its memory can be reached still. Override."""

    def on_run(self) -> None:
        """Called when a device that was stopped, or restored, is to run (again). Override."""

    def on_save(self) -> Mapping[str, Value]:
        """What to save beside the declared fields, by names of your choice: bytes, or JSON. Override."""
        return {}

    def on_restore(self, saved: Mapping[str, Value], version: int) -> None:
        """Take back what `on_save` of ``state_version`` ``version`` gave; registers are restored. Override.

        Any KeyError, TypeError or ValueError of it says that the state is no good.
        """

    def memories(self) -> dict[str, memoryview]:
        """The memory that moves with the device, by name: the plain memory of its BARs. Extend by overriding.

        While the device still runs it is saved for the first time, and what has changed once more at the end.
        """
        return {
            f"{space.bar.name}@{start:#x}": memoryview(space.memory)[start:end]
            for space in self._bar_spaces
            for start, end in space.plain_memory
        }

    def quiesced(self) -> None:
        """To be called after `on_quiesce` has returned False, when the device is quiet."""
        ready, self._when_quiet = self._when_quiet, None
        if ready is not None:
            ready()

    def quiesce(self, ready: Callable[[], None]) -> bool:
        """Have the device become quiet; False if it is not yet, and calls ``ready`` when it is."""
        self._when_quiet = ready
        if not self._is_quiet:
            self._is_quiet = True
            if self.on_quiesce() is False:
                self._hush(True)
                return False
        self._when_quiet = None
        return True

    def unquiesce(self) -> None:
        """What `quiesce` was for is over."""
        if self._is_quiet and not self.stopped:
            self._is_quiet = False
            self._hush(False)
            self.on_resume()

    def stop_device(self) -> None:
        """The device, quiet already, does nothing any more: migration's STOP."""
        if self.stopped:
            return
        self.on_stop()
        self.stopped = True
        self._hush(True)
        for poller in self._pollers:
            self._paused.enter_context(poller.paused())
        self.dma.stopped = True

    def run_device(self) -> None:
        """The device goes on, with what its timers had for it meanwhile."""
        if not self.stopped:
            return
        self.stopped = False
        self.dma.stopped = False
        self._paused.close()
        self._hush(False)
        self._put_off += [(None, bells.hear_owed) for bells in self._every_doorbell()]
        put_off, self._put_off = self._put_off, []
        for timer, callback in put_off:
            if self.loop is not None and (timer is None or timer.callback is not None):
                self.loop.call_soon(callback)
        self.on_run()

    def forget_stop(self) -> None:
        """The client that stopped the device has gone: moved away, or never come, it is as after a reset."""
        self._is_quiet, self._when_quiet = False, None
        self._hush(False)
        if self.stopped:
            self.stopped = False
            self.dma.stopped = False
            self._paused.close()
            self._put_off.clear()
            self.reset()

    def save_state(self, sent: Sent | None = None) -> bytes:
        """The whole state, to be taken while the device is stopped.

        With ``sent``: without the memory that `save_memory` has saved and that is the same still.
        """
        sections: dict[str, Value] = {
            "device": {"class": type(self).__name__, "state_version": self.state_version},
            "config": self.config.save(),
            "interrupts": self._interrupts.save(),
        }
        for space in self._bar_spaces:
            if space.cells:
                changed = ((cell.start, cell.value) for cell in space.cells if cell.value != cell.reset_value)
                sections[f"registers/{space.bar.name}"] = {f"{at:#x}": value for at, value in changed}
        sections.update(
            {f"doorbells/{bells.declared.name}": bells.save() for bells in self._every_doorbell()}
        )
        sections.update(self._memory(sent if sent is not None else {}))
        sections.update({f"own/{name}": value for name, value in self.on_save().items()})
        return state.encode(sections)

    def save_memory(self, sent: Sent) -> bytes:
        """The plain memory that is not in ``sent`` yet, which then has it; nothing (b"") if there is none.

        For a device that runs: what changes later is saved once more.
        """
        sections = dict(self._memory(sent))
        return state.encode(sections) if sections else b""

    def restore_state(self, stream: bytes | bytearray) -> None:
        """Become what was saved; to be called while the device is stopped.

        Raises StateError for what is no state of such a device, which is then as after a reset.
        """
        sections = state.decode(stream)
        try:
            self._restore(sections)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            self.reset()
            raise StateError(f"the state is not one of {type(self).__name__}: {error!r}") from error
        except Exception:
            self.reset()
            raise

    def reset(self) -> None:
        """As after power on; see `outboard.Device.reset`."""
        raise NotImplementedError

    def _restore(self, sections: dict[str, Value]) -> None:
        version = int(sections.pop("device")["state_version"])
        if version > self.state_version:
            raise StateError(
                f"the state has version {version}, this {type(self).__name__} knows {self.state_version}:"
                " restore it where the newer one is"
            )
        self.reset()
        self.config.restore(sections.pop("config"))
        interrupts = sections.pop("interrupts")
        for space in self._bar_spaces:
            if space.cells:
                _restore_registers(space, sections.pop(f"registers/{space.bar.name}"))
        for bells in self._every_doorbell():
            bells.restore(sections.pop(f"doorbells/{bells.declared.name}"))
        for name, memory in self.memories().items():
            for section, block in _blocks(name, memory):
                saved = sections.pop(section, bytes(len(block)))
                # Memory that is zero and stays so is not touched: it may be large and not there yet.
                if block != saved:
                    block[:] = saved
        self._interrupts.restore(interrupts)
        own = {name.removeprefix("own/"): sections.pop(name) for name in list(sections) if name[:4] == "own/"}
        if sections:
            raise StateError(
                f"the state has sections that are not {type(self).__name__}'s: {', '.join(sections)}"
            )
        self.on_restore(own, version)

    def _hush(self, hushed: bool) -> None:
        """Whether rings by descriptor wait: those by message do, with all other requests."""
        for bells in self._every_doorbell():
            bells.hushed = hushed

    def _every_doorbell(self) -> Iterator[Doorbells]:
        for space in self._bar_spaces:
            yield from space.doorbells.values()

    def _memory(self, sent: Sent) -> Iterator[tuple[str, bytes]]:
        """The blocks of plain memory that ``sent`` has not in this form; it has them then."""
        for name, memory in self.memories().items():
            for section, view in _blocks(name, memory):
                block = bytes(view)
                digest = blake2b(block, digest_size=16).digest() if block.strip(b"\0") else b""
                if sent.get(section, b"") != digest:
                    sent[section] = digest
                    yield section, block

    def _due(self, timer: Timer | None, callback: Callable[[], None]) -> None:
        """What ``timer``, or `call_soon`, was for; it waits while the device is stopped."""
        if self.stopped:
            self._put_off.append((timer, callback))
        else:
            callback()


def _blocks(name: str, memory: memoryview) -> Iterator[tuple[str, memoryview]]:
    """The blocks of a memory, by the names of their sections."""
    for at in range(0, len(memory), MEMORY_BLOCK):
        yield f"memory/{name}/{at:#x}", memory[at : at + MEMORY_BLOCK]


def _restore_registers(space: BarSpace, saved: Mapping[str, int]) -> None:
    cells = {cell.start: cell for cell in space.cells}
    for offset, value in saved.items():
        cell = cells.get(int(offset, 16))
        if cell is None:
            raise StateError(f"the state has a register at {offset} of {space.bar.name}: there is none")
        cell.value = value
