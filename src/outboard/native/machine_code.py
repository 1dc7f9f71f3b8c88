"""Machine code: made by Numba once, kept as an object file, loaded by LLVM alone from then on.

Numba takes a second to start and 100 MB to hold. What it makes of a data-plane function needs neither: it
is a few functions of the C library away from standing on its own. So the object code is what is kept, with
an entry that a C function pointer can call: 64-bit integers in, one out.
"""

import ctypes
import platform
from collections.abc import Callable
from functools import cache
from typing import Any

from outboard.errors import SetupError

ENTRY_POINT = "outboard_entry"

OPTIONS = {
    "error_model": "numpy",
    "no_rewrites": True,
    "_nrt": False,
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
}
"""Integer division by zero gives zero instead of an exception nobody would hear. Nothing is made that
integers have no use for (arrays, entries for Python and C of each function): it takes most of the time."""

BORROWED = {"memcpy", "memset", "memmove", "syscall", "__errno_location", "clock_gettime"}
"""What machine code may ask of others. Anything else is Numba's, which is not there when it is loaded."""

SYMBOLS: dict[str, int] = {}
"""What else it may ask of us: addresses of this process, by a name that lowering uses."""

X86 = platform.machine() in ("x86_64", "AMD64")


def processor() -> str:
    """What machine code is made for: this processor, its features, this LLVM."""
    from llvmlite import __version__
    from llvmlite.binding import get_host_cpu_features, get_host_cpu_name

    return f"{get_host_cpu_name()} {get_host_cpu_features().flatten()} {__version__}"


def compile_object(function: Callable[..., int], arity: int) -> bytes:
    """An object file of ``function``, which takes ``arity`` integers.

    Raises `SetupError` if it needs anything but integers and `outboard.native`.
    """
    from llvmlite import binding as llvm
    from numba import njit
    from numba.core import types
    from numba.core.errors import NumbaError

    _name_symbols()
    signature = types.int64(*[types.int64] * arity)
    try:
        compiled = njit(signature, **OPTIONS)(function)
    except NumbaError as error:
        raise SetupError(f"{function.__name__} cannot be a data plane: {error}") from error
    name = compiled.overloads[signature.args].fndesc.llvm_func_name
    module = llvm.parse_assembly(compiled.inspect_llvm(signature.args) + _entry_point(name, arity))
    for inner in module.functions:
        if not inner.is_declaration and inner.name != ENTRY_POINT:
            inner.linkage = "internal"
    _check(function.__name__, module)
    return _target_machine().emit_object(module)  # type: ignore[no-any-return]


def load_object(code: bytes, arity: int) -> Callable[..., int]:
    """The function in an object file. It runs without the GIL."""
    from llvmlite import binding as llvm

    _name_symbols()
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _target_machine())
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    kind = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * arity)
    function: Any = kind(engine.get_function_address(ENTRY_POINT))
    function.engine = engine
    return function  # type: ignore[no-any-return]


def _name_symbols() -> None:
    # LLVM ends the process when it does not find one.
    from llvmlite import binding as llvm

    for name, address in SYMBOLS.items():
        llvm.add_symbol(name, address)


@cache
def _target_machine() -> Any:
    from llvmlite import binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=3,
        reloc="static" if X86 else "default",
        codemodel="jitdefault",
        jit=True,
    )


def _entry_point(name: str, arity: int) -> str:
    """LLVM's text of a C function around Numba's, whose result and exception go through pointers."""
    arguments = ", ".join(f"i64 %a{number}" for number in range(arity))
    return f"""
define i64 @{ENTRY_POINT}({arguments}) {{
  %result = alloca i64
  %exception = alloca ptr
  call i32 @"{name}"({", ".join(filter(None, ("ptr %result", "ptr %exception", arguments)))})
  %value = load i64, ptr %result
  ret i64 %value
}}
"""


def _check(name: str, module: Any) -> None:
    """Refuse a function that needs what only a process with Numba has: LLVM would end the process."""
    asked = {inner.name for inner in module.functions if inner.is_declaration}
    asked |= {variable.name for variable in module.global_variables if variable.is_declaration}
    foreign = sorted(other for other in asked - BORROWED - SYMBOLS.keys() if not other.startswith("llvm."))
    if any("picklebuf" in variable.name for variable in module.global_variables):
        foreign.append("an exception")
    if foreign:
        raise SetupError(
            f"{name} cannot be a data plane: its machine code needs {', '.join(foreign)};"
            " use integers and what outboard.native has, nothing else"
        )
