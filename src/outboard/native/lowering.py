"""The LLVM bodies of the primitives: everything a data plane needs that Numba's language does not have.

Imported when something is compiled first. Each body is named after the primitive it
compiles, takes LLVM's builder and the arguments as 64-bit values, and returns a 64-bit value, or None for
zero.
"""

import platform
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import lower_builtin, type_callable

from outboard.native.crc_lowering import _crc16, _crc64

__all__ = ["_crc16", "_crc64", "register"]

Builder = Any
Value = Any

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
X86 = platform.machine() in ("x86_64", "AMD64")
WIDE = ir.VectorType(I64, 8)
"""A cache line."""
LINE, LINES_AT_ONCE = 64, 4


def register(plain: Callable[..., int]) -> None:
    """Have compiled code use the body that is named after ``plain``."""
    lower = globals()["_" + plain.__name__]
    names = ", ".join(plain.__code__.co_varnames[: plain.__code__.co_argcount])
    signature = types.int64(*[types.int64] * plain.__code__.co_argcount)

    def generate(context: Any, builder: Builder, signature: Any, values: Any) -> Value:
        result = lower(builder, *values)
        return ir.Constant(I64, 0) if result is None else result

    # Numba looks at the names of arguments, so its function needs those of the plain one.
    type_callable(plain)(lambda context: eval(f"lambda {names}: signature", {"signature": signature}))
    lower_builtin(plain, *signature.args)(generate)


def _load8(builder: Builder, address: Value) -> Value:
    return _load(builder, address, I8, "monotonic")


def _load16(builder: Builder, address: Value) -> Value:
    return _load(builder, address, I16, "monotonic")


def _load32(builder: Builder, address: Value) -> Value:
    return _load(builder, address, I32, "monotonic")


def _load64(builder: Builder, address: Value) -> Value:
    return _load(builder, address, I64, "monotonic")


def _load_acquire32(builder: Builder, address: Value) -> Value:
    return _load(builder, address, I32, "acquire")


def _load_acquire64(builder: Builder, address: Value) -> Value:
    return _load(builder, address, I64, "acquire")


def _store16(builder: Builder, address: Value, value: Value) -> None:
    _store(builder, address, value, I16, "monotonic")


def _store32(builder: Builder, address: Value, value: Value) -> None:
    _store(builder, address, value, I32, "monotonic")


def _store64(builder: Builder, address: Value, value: Value) -> None:
    _store(builder, address, value, I64, "monotonic")


def _store_release32(builder: Builder, address: Value, value: Value) -> None:
    _store(builder, address, value, I32, "release")


def _store_release64(builder: Builder, address: Value, value: Value) -> None:
    _store(builder, address, value, I64, "release")


def _add64(builder: Builder, address: Value, value: Value) -> Value:
    return builder.atomic_rmw("add", _pointer(builder, address, I64), value, "monotonic")


def _fence(builder: Builder) -> None:
    builder.fence("seq_cst")


def _pause(builder: Builder) -> None:
    if X86:
        _call(builder, "llvm.x86.sse2.pause", ir.VoidType())


def _copy(builder: Builder, to: Value, source: Value, size: Value) -> None:
    pointer = I8.as_pointer()
    kind = ir.FunctionType(pointer, [pointer, pointer, I64])
    function = cgutils.get_or_insert_function(builder.module, kind, "memcpy")
    builder.call(function, [_pointer(builder, to, I8), _pointer(builder, source, I8), size])


def _fill(builder: Builder, to: Value, value: Value, size: Value) -> None:
    pointer = I8.as_pointer()
    kind = ir.FunctionType(pointer, [pointer, I32, I64])
    function = cgutils.get_or_insert_function(builder.module, kind, "memset")
    builder.call(function, [_pointer(builder, to, I8), builder.trunc(value, I32), size])


def _copy_ahead(builder: Builder, to: Value, source: Value, size: Value, ahead: Value) -> None:
    _copy_lines(builder, to, source, size, ahead, builder.store, align=1)


def _copy_stream(builder: Builder, to: Value, source: Value, size: Value, ahead: Value) -> None:
    hint = builder.module.add_metadata([ir.Constant(I32, 1)])

    def store(value: Value, pointer: Value, align: int) -> None:
        builder.store(value, pointer, align=align).set_metadata("nontemporal", hint)

    _copy_lines(builder, to, source, size, ahead, store, align=LINE)


def _copy_lines(
    builder: Builder,
    to: Value,
    source: Value,
    size: Value,
    ahead: Value,
    store: Callable[..., Any],
    *,
    align: int,
) -> None:
    """Whole lines, four at a time while there are so many: all loads before the stores."""

    def lines(count: int, offset: Value) -> None:
        steps = [builder.add(offset, ir.Constant(I64, LINE * step)) for step in range(count)]
        for step in steps:
            _prefetch(builder, builder.add(ahead, step))
        loaded = [builder.load(_pointer(builder, builder.add(source, step), WIDE), align=1) for step in steps]
        for step, value in zip(steps, loaded, strict=True):
            store(value, _pointer(builder, builder.add(to, step), WIDE), align=align)

    block = ir.Constant(I64, LINE * LINES_AT_ONCE)
    whole = builder.sub(size, builder.urem(size, block))
    with cgutils.for_range_slice(builder, ir.Constant(I64, 0), whole, block) as (offset, _):
        lines(LINES_AT_ONCE, offset)
    with cgutils.for_range_slice(builder, whole, size, ir.Constant(I64, LINE)) as (offset, _):
        lines(1, offset)


def _drain_stream(builder: Builder) -> None:
    if X86:
        _call(builder, "llvm.x86.sse.sfence", ir.VoidType())
    else:
        builder.fence("seq_cst")


def _prefetch(builder: Builder, address: Value) -> None:
    read, second_level, data = (ir.Constant(I32, number) for number in (0, 2, 1))
    pointer = _pointer(builder, address, I8)
    kind = ir.FunctionType(ir.VoidType(), [pointer.type, I32, I32, I32])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(function, [pointer, read, second_level, data])


def _system_call(builder: Builder, *values: Value) -> Value:
    """The C library's ``syscall``; its errno, negative, if it fails."""
    kind = ir.FunctionType(I64, [I64], var_arg=True)
    function = cgutils.get_or_insert_function(builder.module, kind, "syscall")
    result = builder.call(function, values)
    location = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(I32.as_pointer(), []), "__errno_location"
    )
    failed = builder.icmp_signed("==", result, ir.Constant(I64, -1))
    number = builder.zext(builder.load(builder.call(location, [])), I64)
    return builder.select(failed, builder.neg(number), result)


def _monotonic_ns(builder: Builder) -> Value:
    times = cgutils.alloca_once(builder, ir.ArrayType(I64, 2))
    kind = ir.FunctionType(I32, [I32, times.type])
    function = cgutils.get_or_insert_function(builder.module, kind, "clock_gettime")
    builder.call(function, [ir.Constant(I32, 1), times])
    seconds, nanoseconds = (
        builder.load(builder.gep(times, [ir.Constant(I32, 0), ir.Constant(I32, index)])) for index in (0, 1)
    )
    return builder.add(builder.mul(seconds, ir.Constant(I64, 10**9)), nanoseconds)


def _guard_table(builder: Builder) -> Value:
    symbol = ir.GlobalVariable(builder.module, I8, "outboard_guard_table")
    return builder.ptrtoint(symbol, I64)


def _pointer(builder: Builder, address: Value, kind: Any) -> Value:
    return builder.inttoptr(address, kind.as_pointer())


def _load(builder: Builder, address: Value, kind: Any, order: str) -> Value:
    value = builder.load_atomic(_pointer(builder, address, kind), ordering=order, align=kind.width // 8)
    return value if kind.width == 64 else builder.zext(value, I64)


def _store(builder: Builder, address: Value, value: Value, kind: Any, order: str) -> None:
    if kind.width < 64:
        value = builder.trunc(value, kind)
    builder.store_atomic(value, _pointer(builder, address, kind), ordering=order, align=kind.width // 8)


def _call(builder: Builder, name: str, result: Any) -> None:
    builder.call(cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, []), name), [])
