"""What QEMU has to be told so that it uses our devices, fitted to what its user tells it anyway.

Written after QEMU's manual page (``-machine``, ``-m``, ``-object``, ``-device``) and the documentation of
``vfio-user-pci``: the device is given as JSON, and guest memory has to be a shared file.
"""

import json
import shlex
from collections.abc import Iterator, Sequence
from itertools import pairwise

from outboard.errors import SetupError, StorageError
from outboard.storage import parse_size
from outboard.testing.guest.command_line import Attach

EXPRESS_MACHINES = ("q35", "pc-q35", "virt")
"""Machines whose slots below the root take no hot-plugging: a device gets a root port of its own."""

DEFAULT_MEMORY = 128 << 20
"""What QEMU gives a guest whose user does not say."""

CONVENTIONAL_BUS = "pci.0"
MEMORY_ID = "outboard-memory"
FIRST_CHASSIS = 200
"""Root ports are told apart by their chassis; users and tools count theirs from 0 or 1."""


def complete(user: Sequence[str], attachments: Sequence[Attach]) -> list[str]:
    """The arguments to add to the user's own.

    Raises:
        SetupError: the user's memory is not shared, or does not fit together.
    """
    return [*memory_arguments(user), *device_arguments(user, attachments)]


def device_arguments(user: Sequence[str], attachments: Sequence[Attach]) -> list[str]:
    """One ``-device`` for each attachment, behind a root port where the machine has those."""
    arguments = []
    express = machine_type(user).startswith(EXPRESS_MACHINES)
    for number, attachment in enumerate(attachments):
        bus = f"outboard-port{number}" if express else CONVENTIONAL_BUS
        if express:
            arguments += ["-device", f"pcie-root-port,id={bus},chassis={FIRST_CHASSIS + number}"]
        arguments += ["-device", device_argument(attachment, f"outboard{number}", bus)]
    return arguments


def device_argument(attachment: Attach, id: str, bus: str) -> str:
    """The JSON behind ``-device``.

    >>> device_argument(Attach("/tmp/edu.sock"), "dev0", "rp0")
    '{"driver":"vfio-user-pci","id":"dev0","bus":"rp0","socket":{"type":"unix","path":"/tmp/edu.sock"}}'
    """
    return json.dumps(attachment.device(id, bus), separators=(",", ":"))


def memory_arguments(user: Sequence[str]) -> list[str]:
    """What makes guest memory shared: nothing if the user's already is."""
    backends = {backend["id"]: backend for backend in memory_backends(user)}
    used = [options["memory-backend"] for options in machine_options(user) if "memory-backend" in options]
    used += [node["memdev"] for node in options_of(user, "-numa") if "memdev" in node]
    for id in used:
        if id not in backends:
            raise SetupError(
                f"QEMU is told to use memory backend {id!r}, but no -object memory-backend-... has that id"
            )
        if not is_shared(backends[id]):
            raise SetupError(
                f"guest memory {id!r} is private to QEMU and a device outside would read stale data: "
                "add share=on to it"
            )
    if used:
        return []
    size = memory_size(user)
    return [
        *("-object", f"memory-backend-memfd,id={MEMORY_ID},size={size},share=on"),
        *("-machine", f"memory-backend={MEMORY_ID}"),
    ]


def memory_size(user: Sequence[str]) -> int:
    """The bytes of guest memory that ``-m`` asks for; a number alone counts MiB.

    >>> memory_size(["-m", "2G"]), memory_size(["-m", "size=512,maxmem=4G"]), memory_size([])
    (2147483648, 536870912, 134217728)
    """
    size = DEFAULT_MEMORY
    for options in options_of(user, "-m", implied="size"):
        if text := options.get("size"):
            try:
                size = int(text) << 20 if text.isdecimal() else parse_size(text)
            except StorageError as error:
                raise SetupError(f"-m {text} is not a size: write 512M or 2G") from error
    return size


def machine_type(user: Sequence[str]) -> str:
    """The last machine the user names; empty if none, which QEMU takes for its own default."""
    return next((options["type"] for options in reversed(machine_options(user)) if "type" in options), "")


def machine_options(user: Sequence[str]) -> list[dict[str, str]]:
    """The options of every ``-machine`` and ``-M``."""
    return list(options_of(user, "-machine", "-M", implied="type"))


def memory_backends(user: Sequence[str]) -> list[dict[str, str]]:
    """The options of every memory backend object that has an id."""
    objects = options_of(user, "-object", implied="qom-type")
    return [
        found
        for found in objects
        if found.get("qom-type", "").startswith("memory-backend-") and "id" in found
    ]


def is_shared(backend: dict[str, str]) -> bool:
    """Whether a backend is a shared one; QEMU shares a memfd unless told otherwise."""
    default = "on" if backend["qom-type"] == "memory-backend-memfd" else "off"
    return backend.get("share", default).lower() in ("on", "true", "yes")


def options_of(user: Sequence[str], *names: str, implied: str = "") -> Iterator[dict[str, str]]:
    """The ``key=value`` options of each use of some arguments, in order.

    The first word may lack the ``implied`` key. Two dashes count like one, and JSON is read too.
    """
    for argument, value in pairwise(user):
        if argument not in names and argument.removeprefix("-") not in names:
            continue
        if value.startswith("{"):
            yield {key: json.dumps(item).strip('"') for key, item in json_object(argument, value).items()}
            continue
        options = {}
        # A doubled comma is QEMU's way to write one inside a value.
        for position, part in enumerate(value.replace(",,", "\0").split(",")):
            key, equals, text = part.partition("=")
            if not equals and position == 0 and implied:
                key, text = implied, key
            options[key] = text.replace("\0", ",") if equals or (position == 0 and implied) else "on"
        yield options


def json_object(name: str, text: str) -> dict[str, object]:
    """An argument given as JSON."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise SetupError(f"{name} is followed by broken JSON: {error}") from error
    return value if isinstance(value, dict) else {}


def shell(arguments: Sequence[str]) -> str:
    """Arguments as one pastes them into a shell.

    >>> print(shell(["-device", '{"driver":"x"}', "-m", "2G"]))
    -device '{"driver":"x"}' -m 2G
    """
    return shlex.join(arguments)
