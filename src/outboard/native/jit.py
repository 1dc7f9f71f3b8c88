"""One source, three ways to run it: compiled by Numba, uncompiled, and where there is no Numba at all.

A data-plane function is a plain Python function over integers: addresses, sizes, file descriptors. It is
marked `jitable` and stays what it is for whoever calls it from Python. An `Entry` is a function the
control plane calls; ``entry.plain`` runs it as Python, ``entry.native`` compiles it, and everything it
reaches, to machine code that runs without the GIL.

What Numba cannot do in its own language (an atomic load, a prefetch) is a `primitive`: a plain body in
`outboard.native.memory` or `outboard.native.libc`, and an LLVM body in `outboard.native.lowering`.

Numba is imported when there is something to compile, which takes seconds, once. The machine code is kept
(`outboard.native.machine_code`) in a folder named after everything it was made from, so that a change of
any data-plane module it reaches is a change of the folder.
"""

import hashlib
import importlib.util
import inspect
import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from outboard.errors import SetupError
from outboard.native import machine_code

log = logging.getLogger(__name__)

Function = TypeVar("Function", bound=Callable[..., Any])

JITABLE: list[Callable[..., Any]] = []
PRIMITIVES: list[Callable[..., Any]] = []
ENTRIES: "list[Entry]" = []

_compiling = threading.RLock()
DIGEST = hashlib.sha256().digest_size
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
    if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        return False
    with suppress(ImportError):
        return sys.modules.get("numba") is not None or importlib.util.find_spec("numba") is not None
    return False


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
        self._arity = len(inspect.signature(function).parameters)
        JITABLE.append(function)
        ENTRIES.append(self)

    @property
    def native(self) -> Callable[..., int]:
        """The compiled function; compiling takes seconds once, milliseconds from then on.

        Raises `SetupError` without Numba, and for a function that cannot run without it.
        """
        with _compiling:
            if self._native is None:
                self._native = self._load()
        return self._native

    @property
    def is_ready(self) -> bool:
        """Whether `native` is there or can be had in milliseconds: somebody compiled it before."""
        if self._native is not None:
            return True
        return available() and _kept(self._file()) is not None

    def best(self) -> Callable[..., int]:
        """The compiled function where there can be one, the plain one elsewhere."""
        return self.native if available() else self.plain

    def _file(self) -> Path:
        return cache_folder(self.plain) / f"{self.name}.o"

    def _load(self) -> Callable[..., int]:
        if not available():
            raise SetupError("compiled data planes need Numba: pip install 'outboard[fast]'")
        started = time.monotonic()
        file = self._file()
        code = _kept(file)
        if code is None:
            _register()
            code = machine_code.compile_object(self.plain, self._arity)
            _keep(file, code)
        function = machine_code.load_object(code, self._arity)
        log.debug("%s ready after %.2f s", self.name, time.monotonic() - started)
        return function


def entry(function: Callable[..., int]) -> Entry:
    """Decorate a data-plane function that Python calls. All its arguments are integers."""
    return Entry(function)


def compile_all(
    entries: Iterable[Entry], progress: Callable[[str, int, int], None] = lambda name, done, total: None
) -> None:
    """Have the machine code of all ``entries``.

    ``progress(name, done, total)`` is called before each one that has to be compiled, which takes
    seconds, and in the end with an empty name; not at all if there is nothing to compile. Raises
    `SetupError` as `Entry.native` does.
    """
    waiting = [entry for entry in entries if not entry.is_ready]
    for done, entry in enumerate(waiting):
        progress(entry.name, done, len(waiting))
        _ = entry.native
    if waiting:
        progress("", len(waiting), len(waiting))


def cache_folder(function: Callable[..., Any]) -> Path:
    """Where the machine code of an entry is kept: a folder named after all it is made from.

    That is this processor, this Python, this Numba, every function the entry reaches, and the numbers they
    take from modules.
    """
    base = Path(os.environ.get("OUTBOARD_CACHE") or Path.home() / ".cache" / "outboard")
    made_by = f"{sys.version} {version('numba')} {machine_code.processor()}"
    digest = hashlib.sha256(made_by.encode())
    for name in ("lowering.py", "crc_lowering.py", "machine_code.py"):
        digest.update(Path(__file__).with_name(name).read_bytes())
    parts: set[str] = set()
    for reached in _reach(function):
        code = reached.__code__
        parts.add(f"{reached.__qualname__} {code.co_code.hex()} {code.co_consts} {code.co_names}")
        numbers = [(name, value) for name, value in _named(reached) if isinstance(value, int)]
        parts.add(f"{reached.__qualname__} {numbers}")
    digest.update("\n".join(sorted(parts)).encode())
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
            waiting += [
                value for _, value in _named(reached) if inspect.isfunction(value) and value in marked
            ]
    return found


def _named(function: Callable[..., Any]) -> list[tuple[str, Any]]:
    """What the names in a function stand for: in its module, and in the modules that it names."""
    names = function.__code__.co_names
    scopes = [function.__globals__]
    scopes += [vars(scope) for name in names if inspect.ismodule(scope := function.__globals__.get(name))]
    return [(name, scope[name]) for scope in scopes for name in names if name in scope]


def _kept(file: Path) -> bytes | None:
    """The machine code in a file; None if there is none, or it is not what was written."""
    with suppress(OSError):
        data = file.read_bytes()
        code = data[DIGEST:]
        if data[:DIGEST] == hashlib.sha256(code).digest():
            return code
    return None


def _keep(file: Path, code: bytes) -> None:
    """Write machine code for the next time; without a folder to write to there is none."""
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as new:
            new.write(hashlib.sha256(code).digest() + code)
        os.replace(new.name, file)


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
            register_jitable(**machine_code.OPTIONS)(function)
            _registered.add(function)
