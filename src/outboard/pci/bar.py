"""Base address registers: how large, of which kind, which pages the guest may map, what answers inside.

A BAR with neither register nor handler is plain memory. In any other BAR the bytes that no register
claims go to the BAR's own handlers; without those they read as 0, ignore writes, and are remembered.
"""

import os
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from fcntl import F_ADD_SEALS, F_SEAL_GROW, F_SEAL_SEAL, F_SEAL_SHRINK, fcntl
from mmap import mmap as MemoryMap
from typing import Any, Protocol, TypeVar

from outboard.pci.config_space import check_range
from outboard.pci.doorbells import Doorbell
from outboard.pci.fields import Field, check
from outboard.pci.registers import Access, Cell, Register, RegisterArray, RegisterField

PAGE = 4096

BarReader = TypeVar("BarReader", bound=Callable[[Any, int, int], int])
BarWriter = TypeVar("BarWriter", bound=Callable[[Any, int, int, int], None])
Unclaimed = Callable[[int, int, int, bool], None]
"""Called with (BAR index, offset, size, is_write) for an access that nothing claims."""


class Bar(Field["BarSpace"]):
    """One BAR: declared ``mmio = Bar(0, size=0x1000)``; on the instance, a `BarSpace`."""

    def __init__(
        self,
        index: int,
        *,
        size: int,
        mmap: bool | Sequence[tuple[int, int]] = False,
        io: bool = False,
        bits: int = 32,
        prefetchable: bool = False,
    ) -> None:
        """A BAR of ``size`` bytes, a power of two.

        ``mmap=True`` lets the guest map all of it, a list of (offset, size) only those pages: there the
        guest reads and writes shared memory and no handler runs. ``bits=64`` takes the next index too.
        Raises `DefinitionError` for what PCI does not allow.
        """
        what = f"BAR{index}"
        check(0 <= index <= 5, f"{what}: a function has BAR0 to BAR5")
        least = 4 if io else 16
        check(size >= least and size & (size - 1) == 0, f"{what}: {size:#x} is no power of two >= {least}")
        check(bits in (32, 64), f"{what}: bits is {bits}, it is 32 or 64")
        check(not (io and (bits == 64 or prefetchable)), f"{what}: an I/O BAR is 32 bits, not prefetchable")
        check(
            bits == 32 or index < 5, f"{what}: a 64-bit BAR takes the next index too; start at BAR4 or below"
        )
        check(size <= 1 << (bits - 1), f"{what}: {size:#x} bytes do not fit in {bits} address bits")
        check(not (io and mmap), f"{what}: an I/O BAR cannot be mapped by the guest")
        self.index, self.size, self.io, self.bits, self.prefetchable = index, size, io, bits, prefetchable
        self.whole = mmap is True
        self.areas: tuple[tuple[int, int], ...] = () if isinstance(mmap, bool) else tuple(sorted(mmap))
        check(not self.whole or size >= PAGE, f"{what}: {size:#x} bytes are less than a page, no mmap")
        last = 0
        for start, length in self.areas:
            area = f"{what}: the mmap area {start:#x}, {length:#x} bytes,"
            check(length > 0 and start % PAGE == length % PAGE == 0, f"{area} is not made of 4 KiB pages")
            check(last <= start, f"{area} overlaps the one before it, which ends at {last:#x}")
            last = start + length
            check(last <= size, f"{area} ends after the BAR, which has {size:#x} bytes")
        self.read_handler = ""
        self.write_handler = ""

    def take_over(self, replaced: Field[Any]) -> None:
        """A BAR of another size keeps the handlers, as it keeps the registers."""
        if isinstance(replaced, Bar):
            self.read_handler = self.read_handler or replaced.read_handler
            self.write_handler = self.write_handler or replaced.write_handler

    @property
    def mappable(self) -> tuple[tuple[int, int], ...]:
        """The (offset, size) areas the guest may map: none, some, or one that is the whole BAR."""
        return ((0, self.size),) if self.whole else self.areas

    def reg(
        self,
        offset: int,
        *,
        size: int = 4,
        reset: int = 0,
        access: Access = "rw",
        mask: int | None = None,
        doc: str = "",
    ) -> Register:
        """A register of ``size`` bytes (1, 2, 4, 8) at ``offset``.

        ``mask`` has a one for each bit that a write can change (default: all); ``reset`` is the value
        after power on and reset; ``access`` says what the guest may do (see `Access`).
        """
        return Register(self, offset, size=size, reset=reset, access=access, mask=mask, doc=doc)

    def array(
        self,
        offset: int,
        *,
        count: int,
        stride: int = 0,
        size: int = 4,
        reset: int = 0,
        access: Access = "rw",
        mask: int | None = None,
        doc: str = "",
    ) -> RegisterArray:
        """``count`` equal registers, each ``stride`` bytes (default: ``size``) after the one before."""
        return RegisterArray(
            self,
            offset,
            size=size,
            reset=reset,
            access=access,
            mask=mask,
            doc=doc,
            count=count,
            stride=stride,
        )

    def doorbell(
        self,
        offset: int,
        *,
        size: int = 4,
        count: int = 1,
        stride: int = 0,
        matches: Sequence[int] = (),
        shadow: bool = False,
        shared: bool = False,
        doc: str = "",
    ) -> Doorbell:
        """``count`` doorbells, each ``stride`` bytes (default: ``size``) after the one before.

        A client that asks may ring them by eventfd. The value that is written is then lost, unless
        ``shadow=True`` has it stored in shared memory before, or it is one of ``matches``, each with an
        eventfd of its own. ``shared=True``: one eventfd for all, when clients take few descriptors.
        """
        return Doorbell(
            self,
            offset,
            size=size,
            count=count,
            stride=stride,
            matches=matches,
            shadow=shadow,
            shared=shared,
            doc=doc,
        )

    def ram(self, offset: int, *, size: int, doc: str = "") -> "Ram":
        """``size`` bytes of plain memory at ``offset``, between the registers of a BAR."""
        return Ram(self, offset, size, doc)

    def on_read(self, handler: BarReader) -> BarReader:
        """Decorate ``handler(self, offset, size) -> int``: reads of bytes that no register claims."""
        check(not self.read_handler, f"BAR{self.index}: on_read is {self.read_handler} already")
        self.read_handler = handler.__name__
        return handler

    def on_write(self, handler: BarWriter) -> BarWriter:
        """Decorate ``handler(self, offset, size, value)``: writes to bytes that no register claims."""
        check(not self.write_handler, f"BAR{self.index}: on_write is {self.write_handler} already")
        self.write_handler = handler.__name__
        return handler


class Ram(Field[memoryview]):
    """Plain memory in a BAR; made by `Bar.ram`. On the instance it is a memoryview of the bytes."""

    def __init__(self, bar: Bar, offset: int, size: int, doc: str) -> None:
        where = f"memory of {size:#x} bytes at {offset:#x} of BAR{bar.index}"
        check(size > 0 and offset >= 0 and offset + size <= bar.size, f"{where}: the BAR has {bar.size:#x}")
        self.bar, self.offset, self.size, self.doc = bar, offset, size, doc
        self.starts = (offset,)

    def bind(self, space: "BarSpace") -> memoryview:
        """The bytes of one device."""
        return memoryview(space.memory)[self.offset : self.offset + self.size]


class Rom(Field["RomSpace"]):
    """The expansion ROM (option ROM): an image, or a size in bytes for one that the device fills in."""

    def __init__(self, image: bytes | int) -> None:
        content = bytes(image)
        check(0 < len(content) <= 1 << 24, f"a ROM has 1 byte to 16 MiB, not {len(content):#x} bytes")
        self.size = max(2048, 1 << (len(content) - 1).bit_length())
        self.image = content.ljust(self.size, b"\xff")

    def bind(self) -> "RomSpace":
        """The ROM of one device."""
        return RomSpace(self)


class RomSpace:
    """The ROM of one device; ``memory`` is the device's to change, the guest only reads."""

    def __init__(self, rom: Rom) -> None:
        self.size = rom.size
        self.memory = bytearray(rom.image)

    def read(self, offset: int, count: int) -> bytes:
        """A guest's read."""
        check_range("the ROM", self.size, offset, count)
        return bytes(self.memory[offset : offset + count])

    def write(self, offset: int, data: bytes) -> None:
        """A guest's write, which changes nothing."""
        check_range("the ROM", self.size, offset, len(data))


class Window(Protocol):
    """Bytes [start, end) of a BAR that answer for themselves."""

    start: int
    end: int

    def load(self, offset: int, size: int) -> bytes:
        """A guest's read that lies in the window; ``offset`` is the BAR's."""

    def store(self, offset: int, data: bytes) -> None:
        """A guest's write that lies in the window."""


class _Memory:
    """A window of plain memory."""

    __slots__ = ("end", "memory", "start")

    def __init__(self, start: int, end: int, memory: bytearray | MemoryMap) -> None:
        self.start, self.end, self.memory = start, end, memory

    def load(self, offset: int, size: int) -> bytes:
        return bytes(self.memory[offset : offset + size])

    def store(self, offset: int, data: bytes) -> None:
        self.memory[offset : offset + len(data)] = data


class BarSpace:
    """One BAR of one device.

    ``memory`` holds its bytes, up to the last that a register or plain memory needs: a bytearray, or
    shared memory (an ``mmap``) of the whole BAR if the guest may map any of it; ``fd`` is then the
    descriptor behind it, and lives as long as the device does. ``doorbells`` are those in it, by name.
    """

    def __init__(
        self,
        bar: Bar,
        holder: object,
        registers: Iterable[tuple[RegisterField[Any], int]],
        rams: Iterable[Ram],
        doorbells: Iterable[Doorbell],
        windows: Iterable[Window],
        unclaimed: Unclaimed,
    ) -> None:
        """``registers`` come with their reset values; ``windows`` answer for the MSI-X structures."""
        self.bar, self.holder, self.size = bar, holder, bar.size
        self._unclaimed = unclaimed
        cells = [cell for register, reset in registers for cell in register.cells(self, reset)]
        self._cells = {cell.start: cell for cell in cells}
        ends = {ram.offset: ram.offset + ram.size for ram in rams}
        self.doorbells = {doorbell.name: doorbell.bind(holder) for doorbell in doorbells}
        places = [place for bells in self.doorbells.values() for place in bells.windows()]
        plain = not (cells or ends or places or bar.read_handler or bar.write_handler)
        self.fd: int | None = None
        self.memory: bytearray | MemoryMap
        if bar.mappable:
            self.fd = os.memfd_create(f"BAR{bar.index}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(self.fd, bar.size)
            # A client that shrank the file would kill us (SIGBUS) at the next access.
            fcntl(self.fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)
            self.memory = MemoryMap(self.fd, bar.size)
        else:
            used = max((*(cell.end for cell in cells), *ends.values()), default=0)
            self.memory = bytearray(bar.size if plain else used)
        memories = [_Memory(start, end, self.memory) for start, end in ends.items()]
        elsewhere = ((0, bar.size),) if plain else bar.mappable
        self._windows = self._fill([*cells, *memories, *places, *windows], elsewhere)
        self._starts = [window.start for window in self._windows]
        self.reset()

    def __del__(self) -> None:
        if getattr(self, "fd", None) is not None:
            os.close(self.fd)  # type: ignore[arg-type]

    def plain_registers(self) -> dict[tuple[int, int, int], memoryview]:
        """By (BAR index, offset, size): the bytes of each register whose read is nothing but its bytes."""
        memory = memoryview(self.memory)
        return {
            (self.bar.index, cell.start, cell.size): memory[cell.start : cell.end]
            for cell in self._cells.values()
            if cell.plain
        }

    @property
    def cells(self) -> Sequence[Cell]:
        """The registers, one by one."""
        return tuple(self._cells.values())

    @property
    def plain_memory(self) -> Sequence[tuple[int, int]]:
        """The (start, end) of what is plain memory."""
        return [(window.start, window.end) for window in self._windows if isinstance(window, _Memory)]

    def reset(self) -> None:
        """Every register back to its reset value, doorbells to 0; plain memory keeps its content."""
        for cell in self._cells.values():
            cell.reset()
        for bells in self.doorbells.values():
            bells.reset()

    def read(self, offset: int, count: int) -> bytes:
        """A guest's read of any size and alignment; `RequestRefused` if it does not lie in the BAR."""
        cell = self._cells.get(offset)
        if cell is not None and cell.size == count:
            return cell.load(offset, count)
        check_range(f"BAR{self.bar.index}", self.size, offset, count)
        parts = []
        for window, start, end in self._pieces(offset, offset + count):
            if window is not None:
                parts.append(window.load(start, end - start))
            elif self.bar.read_handler:
                value = getattr(self.holder, self.bar.read_handler)(start, end - start)
                parts.append((value & (1 << 8 * (end - start)) - 1).to_bytes(end - start, "little"))
            else:
                self._unclaimed(self.bar.index, start, end - start, False)
                parts.append(bytes(end - start))
        return b"".join(parts)

    def write(self, offset: int, data: bytes) -> None:
        """A guest's write of any size and alignment; `RequestRefused` if it does not lie in the BAR."""
        cell = self._cells.get(offset)
        if cell is not None and cell.size == len(data):
            cell.store(offset, data)
            return
        check_range(f"BAR{self.bar.index}", self.size, offset, len(data))
        for window, start, end in self._pieces(offset, offset + len(data)):
            part = data[start - offset : end - offset]
            if window is not None:
                window.store(start, part)
            elif self.bar.write_handler:
                value = int.from_bytes(part, "little")
                getattr(self.holder, self.bar.write_handler)(start, end - start, value)
            else:
                self._unclaimed(self.bar.index, start, end - start, True)

    def _pieces(self, start: int, end: int) -> Iterable[tuple[Window | None, int, int]]:
        """An access cut at the edges of windows; None stands for bytes that no window claims."""
        at = bisect_right(self._starts, start) - 1
        if at < 0 or self._windows[at].end <= start:
            at += 1
        while start < end:
            window = self._windows[at] if at < len(self._windows) else None
            if window is None or window.start >= end:
                yield None, start, end
                return
            if start < window.start:
                yield None, start, window.start
            stop = min(end, window.end)
            yield window, max(start, window.start), stop
            start, at = stop, at + 1

    def _fill(self, claimed: list[Any], memory: Iterable[tuple[int, int]]) -> list[Window]:
        """All windows in order: the claimed ones, and plain memory in the gaps where there is some."""
        claimed.sort(key=lambda window: window.start)
        windows: list[Window] = list(claimed)
        for first, size in memory:
            start = first
            for window in claimed:
                if window.end > start and window.start < first + size:
                    if start < window.start:
                        windows.append(_Memory(start, window.start, self.memory))
                    start = window.end
            if start < first + size:
                windows.append(_Memory(start, first + size, self.memory))
        windows.sort(key=lambda window: window.start)
        return windows
