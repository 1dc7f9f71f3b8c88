"""Devices named on the command line: ``FILE.py:Class`` or ``package.module:Class``."""

import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import TypeGuard

from outboard.device import DeviceContract
from outboard.errors import DefinitionError

CONTRACT = ("region_read", "region_write", "dma_map", "dma_unmap", "set_irqs", "reset")


def load_device(target: str) -> DeviceContract:
    """The device that ``target`` names: a class is instantiated, a function called, an object taken.

    Without ``:Class`` the file's only device class is taken. Raises `DefinitionError` with what to
    write instead; an exception of the file itself is let out as it is.
    """
    thing = load_named(target)
    device = thing() if callable(thing) and not is_device(thing) else thing
    if not is_device(device):
        missing = [method for method in CONTRACT if not callable(getattr(device, method, None))]
        raise DefinitionError(f"{target} is no device: it lacks {', '.join(missing)}")
    return device


def load_class(target: str) -> type:
    """The class of the device that ``target`` names, not instantiated: its declarations are all it is for.

    Raises `DefinitionError` if it names anything else.
    """
    thing = load_named(target)
    if not inspect.isclass(thing):
        raise DefinitionError(f"{target} is no class: write FILE.py:Class")
    return thing


def load_named(target: str) -> object:
    """What ``FILE.py:Class`` or ``package.module:Class`` names, or the only device class of a file.

    Raises `DefinitionError` where there is no such thing.
    """
    place, _, name = target.rpartition(":") if ":" in target else (target, "", "")
    module = load_module(place)
    thing: object = getattr(module, name, None) if name else only_device(module, target)
    if thing is None:
        there = ", ".join(candidates(module)) or "no device class at all"
        raise DefinitionError(f"{place} has no {name!r}; it has {there}")
    return thing


def load_module(place: str) -> ModuleType:
    """The module in a file, or of a dotted name; the file's folder becomes importable, as for a script."""
    if not place.endswith(".py"):
        try:
            return importlib.import_module(place)
        except ModuleNotFoundError as error:
            if error.name and place.startswith(error.name):
                raise DefinitionError(
                    f"there is no module {place!r}; a file is written with its .py"
                ) from error
            raise
    path = Path(place).resolve()
    if not path.is_file():
        raise DefinitionError(f"there is no file {place}; write FILE.py:Class")
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise DefinitionError(f"{place} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def only_device(module: ModuleType, target: str) -> object:
    """The one device class a module defines."""
    names = candidates(module)
    if len(names) != 1:
        found = ", ".join(names) or "none"
        raise DefinitionError(f"{target} defines {len(names)} device classes ({found}): write {target}:Class")
    return getattr(module, names[0])


def candidates(module: ModuleType) -> list[str]:
    """The device classes that a module itself defines, in its order."""
    return [
        name
        for name, value in vars(module).items()
        if inspect.isclass(value) and value.__module__ == module.__name__ and has_contract(value)
    ]


def is_device(thing: object) -> TypeGuard[DeviceContract]:
    """Whether an object, not a class, has the six methods."""
    return not inspect.isclass(thing) and has_contract(thing)


def has_contract(thing: object) -> bool:
    """Whether all six methods are there."""
    return all(callable(getattr(thing, method, None)) for method in CONTRACT)
