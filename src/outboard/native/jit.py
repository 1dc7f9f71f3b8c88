"""One source, three ways to run it: compiled by Numba, uncompiled, and where there is no Numba at all.

A data-plane function is a plain Python function over integers: addresses, sizes, file descriptors. It is
marked `jitable` and stays what it is for whoever calls it from Python. An `Entry` is a function the
control plane calls; ``entry.plain`` runs it as Python, ``entry.native`` compiles it, and everything it
reaches, to machine code that runs without the GIL.

What Numba cannot do in its own language (an atomic load, a prefetch) is a `primitive`: a plain body in
`outboard.native.memory` or `outboard.native.libc`, and an LLVM body in `outboard.native.lowering`.

Numba is imported when something is compiled first, never before. Machine code is kept in a folder named
after everything it was made from, so that a change of any data-plane module is a change of the folder:
Numba itself would only notice a change of the file that holds the entry.
"""

import hashlib
import importlib.util
import inspect
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from outboard.errors import SetupError

log = logging.getLogger(__name__)

Function = TypeVar("Function", bound=Callable[..., Any])

JITABLE: list[Callable[..., Any]] = []
PRIMITIVES: list[Callable[..., Any]] = []
ENTRIES: "list[Entry]" = []

OPTIONS = {"nogil": True, "error_model": "numpy", "boundscheck": False}
"""No GIL; integer division by zero gives zero instead of an exception nobody would hear."""

_compiling = threading.RLock()
_registered: set[Callable[..., Any]] = set()


def jitable(function: Function) -> Function:
    """Mark a function that compiled functions may call; to Python it stays what it is."""
    JITABLE.append(function)
    return function


def primitive(function: Function) -> Function:
    """Mark a function whose compiled form has the same name in `outboard.native.lowering`."""
    PRIMITIVES.append(function)
    return function


def available() -> bool:
    """Whether functions can be compiled here: Numba is installed, and not told to stay away."""
    return os.environ.get("NUMBA_DISABLE_JIT", "0") in ("", "0") and (
        "numba" in sys.modules or importlib.util.find_spec("numba") is not None
    )


class Entry:
    """A data-plane function that Python calls: integers in, an integer out.

    >>> @entry
    ... def double(value: int) -> int:
    ...     return value + value
    >>> double.plain(4)
    8
    >>> double.best()(4)
    8
    """

    def __init__(self, function: Callable[..., int]) -> None:
        self.plain = function
        self.name = function.__name__
        self.__doc__ = function.__doc__
        self._native: Callable[..., int] | None = None
        JITABLE.append(function)
        ENTRIES.append(self)

    @property
    def native(self) -> Callable[..., int]:
        """The compiled function; compiling takes seconds once, a fraction of one from then on.

        Raises `SetupError` without Numba.
        """
        with _compiling:
            if self._native is None:
                self._native = _compile(self.plain)
        return self._native

    def best(self) -> Callable[..., int]:
        """The compiled function where there can be one, the plain one elsewhere."""
        return self.native if available() else self.plain


def entry(function: Callable[..., int]) -> Entry:
    """Decorate a data-plane function that Python calls. All its arguments are integers."""
    return Entry(function)


def cache_folder(function: Callable[..., Any]) -> Path:
    """Where the machine code of an entry is kept: a folder named after all it is made from.

    That is this Python, this Numba, the files of every function the entry reaches, and the numbers they
    take from other modules.
    """
    base = Path(os.environ.get("OUTBOARD_CACHE") or Path.home() / ".cache" / "outboard")
    digest = hashlib.sha256(f"{sys.version} {version('numba')} {OPTIONS}".encode())
    files = {Path(__file__).with_name("lowering.py")}
    numbers: set[str] = set()
    for reached in _reach(function):
        if (path := _source(reached)) is not None:
            files.add(path)
        for name in reached.__code__.co_names:
            if isinstance(value := reached.__globals__.get(name), int):
                numbers.add(f"{reached.__qualname__} {name}={value}")
    for path in sorted(files):
        digest.update(str(path).encode() + path.read_bytes())
    digest.update("\n".join(sorted(numbers)).encode())
    return base / "native" / digest.hexdigest()[:16]


def _reach(function: Callable[..., Any]) -> set[Any]:
    """The function and all marked ones that it calls, directly or not."""
    marked = {*JITABLE, *PRIMITIVES}
    found: set[Any] = set()
    waiting: list[Any] = [function]
    while waiting:
        reached = waiting.pop()
        if reached not in found:
            found.add(reached)
            called = (reached.__globals__.get(name) for name in reached.__code__.co_names)
            waiting += [other for other in called if inspect.isfunction(other) and other in marked]
    return found


def _source(function: Callable[..., Any]) -> Path | None:
    path = inspect.getsourcefile(function)
    return Path(path) if path and Path(path).is_file() else None


def _compile(function: Callable[..., int]) -> Callable[..., int]:
    """Machine code of ``function`` for 64-bit integers."""
    if not available():
        raise SetupError("compiled data planes need Numba: pip install 'outboard[fast]'")
    import numba
    from numba.core import types

    _register()
    started = time.monotonic()
    signature = types.int64(*[types.int64] * len(inspect.signature(function).parameters))
    folder = cache_folder(function)
    previous = numba.config.CACHE_DIR
    cached = _source(function) is not None and _writable(folder)
    numba.config.CACHE_DIR = str(folder)
    try:
        compiled = numba.njit(signature, cache=cached, **OPTIONS)(function)
    finally:
        numba.config.CACHE_DIR = previous
    log.debug("%s ready after %.2f s", function.__name__, time.monotonic() - started)
    return compiled  # type: ignore[no-any-return]


def _writable(folder: Path) -> bool:
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    return os.access(folder, os.W_OK)


def _register() -> None:
    """Tell Numba of every function marked since the last time."""
    from numba.extending import register_jitable

    from outboard.native import lowering

    for function in PRIMITIVES:
        if function not in _registered:
            lowering.register(function)
            _registered.add(function)
    for function in JITABLE:
        if function not in _registered:
            register_jitable(**{key: OPTIONS[key] for key in ("error_model", "boundscheck")})(function)
            _registered.add(function)
