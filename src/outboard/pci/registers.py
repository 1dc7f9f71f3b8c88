"""Registers of a BAR: what the guest may do to each, and the device's handlers.

A register's bytes live little-endian in its BAR's memory. A guest's access of any size and alignment is
split over the registers it touches; on the instance a register is an int, and setting it stores the bits
as they are, with no handler and no mask.
"""

from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, TypeVar, overload

from outboard.errors import DefinitionError
from outboard.pci.fields import Field, T_co, check

if TYPE_CHECKING:
    from mmap import mmap

    from outboard.pci.bar import Bar
    from outboard.pci.doorbells import Doorbell

Access = Literal["rw", "ro", "wo", "w1c", "w1s", "rc"]
"""What the guest may do: read and write; only read; only write (reads as 0); clear or set bits by writing
ones; read, which clears."""

ACCESS_KINDS = ("rw", "ro", "wo", "w1c", "w1s", "rc")

T = TypeVar("T")
EnumT = TypeVar("EnumT", bound=Enum)
Handler = TypeVar("Handler", bound=Callable[..., Any])
Writer = TypeVar("Writer", bound=Callable[[Any, int], None])
Reader = TypeVar("Reader", bound=Callable[[Any], int])
IndexedWriter = TypeVar("IndexedWriter", bound=Callable[[Any, int, int], None])
IndexedReader = TypeVar("IndexedReader", bound=Callable[[Any, int], int])


class Space(Protocol):
    """What a register needs of the BAR it lives in, on one device."""

    holder: object
    memory: "bytearray | mmap"


class RegisterField(Field[T_co]):
    """What `Register` and `RegisterArray` share: place, width, access kind, handlers by name."""

    def __init__(
        self,
        bar: "Bar",
        offset: int,
        *,
        size: int,
        reset: int,
        access: Access,
        mask: int | None,
        doc: str,
        count: int = 1,
        stride: int = 0,
    ) -> None:
        where = f"register at {offset:#x} of BAR{bar.index}"
        check(size in (1, 2, 4, 8), f"{where}: size is {size}, a register has 1, 2, 4 or 8 bytes")
        check(access in ACCESS_KINDS, f"{where}: access {access!r} is none of {', '.join(ACCESS_KINDS)}")
        stride = stride or size
        check(count >= 1, f"{where}: count is {count}, an array has at least one register")
        check(stride >= size, f"{where}: stride {stride} is smaller than the register, {size} bytes")
        end = offset + (count - 1) * stride + size
        check(offset >= 0 and end <= bar.size, f"{where} ends at {end:#x}, the BAR at {bar.size:#x}")
        ones = (1 << 8 * size) - 1
        mask = ones if mask is None else mask
        check(0 <= reset <= ones, f"{where}: reset value {reset:#x} does not fit in {size} bytes")
        check(0 <= mask <= ones, f"{where}: mask {mask:#x} does not fit in {size} bytes")
        self.bar, self.offset, self.size, self.count, self.stride = bar, offset, size, count, stride
        self.reset, self.access, self.mask, self.ones = reset, access, mask, ones
        self.starts = range(offset, offset + count * stride, stride)
        self.doc = doc
        self.write_handler = ""
        self.read_handler = ""
        self.handlers: dict[str, Callable[..., Any]] = {}

    def _handle(self, kind: str, handler: Handler) -> Handler:
        """Remember a handler by name: it is looked up on the instance, so a subclass can override it."""
        what = f"on_{kind} of the register at {self.offset:#x} of BAR{self.bar.index}"
        taken: str = getattr(self, f"{kind}_handler")
        check(not taken, f"{what} is {taken} already: override that method, or call both from one")
        check(not self.name, f"{what}: {handler.__name__} must be defined in the class that declares it")
        check(
            kind == "read" or self.access not in ("ro", "rc"),
            f"{what}: the register is {self.access!r}, no write of the guest reaches it",
        )
        check(kind == "write" or self.access != "wo", f"{what}: the register is 'wo', it reads as 0")
        setattr(self, f"{kind}_handler", handler.__name__)
        self.handlers[handler.__name__] = handler
        return handler

    def cells(self, space: Space, reset: int) -> "Iterator[Cell]":
        """The registers of one device, one by one."""
        for index in range(self.count):
            yield Cell(self, index, space, reset)


class Register(RegisterField[int]):
    """One register; made by `Bar.reg`. On the instance it is an int."""

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: object, owner: type) -> int: ...
    def __get__(self, instance: object | None, owner: type) -> Any:
        if instance is None:
            return self
        memory = instance.__dict__[self.bar.name].memory
        return int.from_bytes(memory[self.offset : self.offset + self.size], "little")

    def __set__(self, instance: object, value: int) -> None:
        memory = instance.__dict__[self.bar.name].memory
        memory[self.offset : self.offset + self.size] = (value & self.ones).to_bytes(self.size, "little")

    def on_write(self, handler: Writer) -> Writer:
        """Decorate ``handler(self, value)``, which runs after a guest's write was stored.

        ``value`` is the register's whole new value; of a ``w1c`` or ``w1s`` register, the bits written.
        """
        return self._handle("write", handler)

    def on_read(self, handler: Reader) -> Reader:
        """Decorate ``handler(self) -> int``, which gives what a guest reads. The value is not stored."""
        return self._handle("read", handler)

    def bit(self, number: int) -> "BitField[bool]":
        """One bit as a bool."""
        return BitField(self, number, number, bool)

    @overload
    def bits(self, high: int, low: int) -> "BitField[int]": ...
    @overload
    def bits(self, high: int, low: int, kind: type[EnumT]) -> "BitField[EnumT]": ...
    def bits(self, high: int, low: int, kind: type[Any] = int) -> "BitField[Any]":
        """Bits ``high`` to ``low``, both included as datasheets print them, as an int or an enum.

        A value the enum does not name is read as the int: the guest may write anything.
        """
        return BitField(self, high, low, kind)


class RegisterArray(RegisterField["RegisterView"]):
    """Equal registers ``stride`` bytes apart; made by `Bar.array`. On the instance: ``self.name[i]``."""

    def on_write(self, handler: IndexedWriter) -> IndexedWriter:
        """Decorate ``handler(self, index, value)``; see `Register.on_write`."""
        return self._handle("write", handler)

    def on_read(self, handler: IndexedReader) -> IndexedReader:
        """Decorate ``handler(self, index) -> int``; see `Register.on_read`."""
        return self._handle("read", handler)

    def bind(self, space: Space) -> "RegisterView":
        """The array on one device."""
        return RegisterView(self, space)


class RegisterView(Sequence[int]):
    """A `RegisterArray` on one device: a fixed number of ints that can be set."""

    __slots__ = ("_array", "_space")

    def __init__(self, array: RegisterArray, space: Space) -> None:
        self._array = array
        self._space = space

    def __len__(self) -> int:
        return self._array.count

    def _place(self, index: int) -> slice:
        array = self._array
        if not 0 <= index < array.count:
            raise IndexError(f"{array.name}[{index}]: the array has {array.count} registers")
        start = array.starts[index]
        return slice(start, start + array.size)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: int | slice) -> int | list[int]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return int.from_bytes(self._space.memory[self._place(index)], "little")

    def __setitem__(self, index: int, value: int) -> None:
        array = self._array
        self._space.memory[self._place(index)] = (value & array.ones).to_bytes(array.size, "little")


class BitField(Field[T]):
    """Some bits of a register under a name of their own; made by `Register.bit` and `Register.bits`."""

    def __init__(self, register: Register, high: int, low: int, kind: type[Any]) -> None:
        check(
            0 <= low <= high < 8 * register.size,
            f"bits {high}..{low} of the register at {register.offset:#x}, which has {8 * register.size}",
        )
        self.register, self.high, self.low = register, high, low
        self.ones = (1 << (high - low + 1)) - 1
        self.kind = kind

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: object, owner: type) -> T: ...
    def __get__(self, instance: object | None, owner: type) -> Any:
        if instance is None:
            return self
        value = self.register.__get__(instance, owner) >> self.low & self.ones
        try:
            return self.kind(value)
        except ValueError:
            return value

    def __set__(self, instance: object, value: T) -> None:
        number = int(value.value if isinstance(value, Enum) else value)  # type: ignore[arg-type]
        if not 0 <= number <= self.ones:
            raise ValueError(f"{self.name} = {number:#x} does not fit in bits {self.high}..{self.low}")
        rest = self.register.__get__(instance, type(instance)) & ~(self.ones << self.low)
        self.register.__set__(instance, rest | number << self.low)


class Cell:
    """One register of one device: where the guest's accesses to it end."""

    __slots__ = ("direct", "end", "index", "plain", "register", "reset_value", "size", "space", "start")
    index: tuple[int, ...]

    def __init__(self, register: RegisterField[Any], index: int, space: Space, reset: int) -> None:
        self.register, self.space = register, space
        self.index = (index,) if isinstance(register, RegisterArray) else ()
        self.size = register.size
        self.start = register.starts[index]
        self.end = self.start + register.size
        self.reset_value = reset
        self.plain = not register.read_handler and register.access not in ("wo", "rc")
        self.direct = register.access in ("rw", "wo") and register.mask == register.ones

    @property
    def value(self) -> int:
        """What is stored, whatever a guest would read."""
        return int.from_bytes(self.space.memory[self.start : self.end], "little")

    @value.setter
    def value(self, value: int) -> None:
        self._put(value)

    def reset(self) -> None:
        """Back to the reset value."""
        self._put(self.reset_value)

    def load(self, offset: int, size: int) -> bytes:
        """A guest reads ``size`` bytes at ``offset`` of the BAR, all of them in this register."""
        register, first = self.register, offset - self.start
        if register.access == "wo":
            return bytes(size)
        if register.read_handler:
            value = self._call(register.read_handler) & register.ones
            part = value.to_bytes(self.size, "little")[first : first + size]
        else:
            part = bytes(self.space.memory[offset : offset + size])
        if register.access == "rc":
            self.space.memory[offset : offset + size] = bytes(size)
        return part

    def store(self, offset: int, data: bytes) -> None:
        """A guest writes ``data`` at ``offset`` of the BAR, all of it in this register."""
        register = self.register
        if self.direct and len(data) == self.size:
            self.space.memory[self.start : self.end] = data
            if register.write_handler:
                self._call(register.write_handler, int.from_bytes(data, "little"))
            return
        access = register.access
        if access in ("ro", "rc"):
            return
        old = self.value
        shift = 8 * (offset - self.start)
        written = int.from_bytes(data, "little") << shift
        if access == "w1c":
            value = written & register.mask
            self._put(old & ~value)
        elif access == "w1s":
            value = written & register.mask
            self._put(old | value)
        else:
            lanes = ((1 << 8 * len(data)) - 1 << shift) & register.mask
            value = old & ~lanes | written & lanes
            self._put(value)
        if register.write_handler:
            self._call(register.write_handler, value)

    def _put(self, value: int) -> None:
        self.space.memory[self.start : self.end] = value.to_bytes(self.size, "little")

    def _call(self, handler: str, *arguments: int) -> int:
        result: int = getattr(self.space.holder, handler)(*self.index, *arguments)
        return result


def check_handlers(owner: type, registers: "Sequence[RegisterField[Any] | Doorbell]") -> None:
    """Every handler must still be a method of the class, under a name of its own; else `DefinitionError`."""
    functions: dict[str, Callable[..., Any]] = {}
    for register in registers:
        for name, function in register.handlers.items():
            if not callable(getattr(owner, name, None)):
                raise DefinitionError(
                    f"{owner.__name__}.{register.name} is handled by {name}, which is no method of the class"
                )
            if functions.setdefault(name, function) is not function:
                raise DefinitionError(
                    f"two handlers of {owner.__name__} are called {name}: the second hides the first"
                )
