"""Hostile commands: valid ones of every opcode, of which most are then changed where it hurts.

`Maker.admin` and `Maker.io` make one each; what they decide comes from a `random.Random` alone, or from
whoever passes for one.
"""

import random
from dataclasses import fields

from outboard.devices.nvme.admin import ADMIN_COMMANDS
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.io import IO_COMMANDS
from outboard.devices.nvme.namespace import Namespace
from outboard.devices.nvme.spec import BROADCAST, AdminOpcode, Csi, IoOpcode
from outboard.devices.nvme.state import State
from tests.devices.nvme.driver import PAGE, Ram
from tests.devices.nvme.storm.memory import Aim
from tests.devices.nvme.storm.structures import Structures

NUMBERS = (
    *(0, 1, 2, 3, 4, 5, 7, 8, 15, 16, 31, 63, 127, 128, 255, 256, 511, 512, 1023, 2047, 2048, 4095, 4096),
    *(0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x10001, 0x20001, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF),
)
"""Values at which programs go wrong."""

WRITES = frozenset(
    {
        IoOpcode.WRITE,
        IoOpcode.WRITE_ZEROES,
        IoOpcode.DATASET_MANAGEMENT,
        IoOpcode.COPY,
        IoOpcode.ZONE_MANAGEMENT_SEND,
        IoOpcode.ZONE_APPEND,
    }
)
"""The I/O commands that may change what a namespace holds."""

_FIELDS = tuple(field.name for field in fields(Command) if field.name not in ("opcode", "cid"))
_POINTERS = ("prp1", "prp2", "mptr")
_ADMIN, _IO = sorted(ADMIN_COMMANDS), sorted(IO_COMMANDS)
_DEEP = [
    AdminOpcode.GET_LOG_PAGE,
    AdminOpcode.NAMESPACE_MANAGEMENT,
    AdminOpcode.NAMESPACE_ATTACHMENT,
    AdminOpcode.SET_FEATURES,
]
_RARE = {AdminOpcode.SANITIZE, AdminOpcode.FORMAT_NVM, AdminOpcode.DEVICE_SELF_TEST}
_FITTING = {csi: [opcode for opcode in _IO if IO_COMMANDS[opcode].csi in (None, csi)] for csi in Csi}
_COMMON_IO = [IoOpcode.READ, IoOpcode.WRITE] * 6


class Maker:
    """Makes commands for the controller of ``state``, whose guest memory is ``ram``.

    ``doorbells`` are two pages where doorbells may be: a command that puts them anywhere else takes those, or
    else the controller would look for its doorbells among the data.
    """

    def __init__(self, chance: random.Random, state: State, ram: Ram, doorbells: int) -> None:
        self.chance, self.state = chance, state
        self.aim = Aim(chance, ram)
        self.structures = Structures(chance, state, self.aim)
        self.doorbells = doorbells

    def admin(self) -> Command:
        """An admin command."""
        chance = self.chance
        opcode = chance.choice(_ADMIN) if chance.random() < 0.97 else chance.randrange(256)
        if opcode in _RARE and chance.random() < 0.7:
            opcode = chance.choice(_DEEP)
        command = self.structures.admin(opcode)
        return self._with_harmless_doorbells(self._mutated(command))

    def io(self) -> Command:
        """An I/O command."""
        chance = self.chance
        kind = chance.random()
        space = self._space()
        if kind < 0.6:
            opcode = chance.choice(_FITTING[space.csi] if space is not None else _IO)
        elif kind < 0.95:
            opcode = chance.choice(_COMMON_IO)
        else:
            opcode = chance.choice(_IO) if kind < 0.98 else chance.randrange(256)
        command = self._io(opcode, space)
        if chance.random() < 0.03:
            command.flags |= chance.choice((1, 2, 1, 2, 3))
        return self._mutated(command)

    def pair(self) -> tuple[Command, Command]:
        """A fused compare and write."""
        space = self._space()
        first, second = self._io(IoOpcode.COMPARE, space), self._io(IoOpcode.WRITE, space)
        second.nsid, second.cdw10, second.cdw11, second.cdw12 = (
            first.nsid,
            first.cdw10,
            first.cdw11,
            first.cdw12,
        )
        first.flags, second.flags = first.flags | 1, second.flags | 2
        return (
            (first, second) if self.chance.random() < 0.7 else (self._mutated(first), self._mutated(second))
        )

    def _io(self, opcode: int, space: Namespace | None) -> Command:
        if space is None:
            return Command(opcode, nsid=self.chance.choice((0, 1, BROADCAST)), prp1=self.aim.page())
        command = self.structures.io(opcode, space)
        command.nsid = space.nsid
        return command

    def _space(self) -> Namespace | None:
        spaces = list(self.state.namespaces.values())
        spaces += 3 * [space for space in spaces if space.zones is not None]
        return self.chance.choice(spaces) if spaces else None

    def _mutated(self, command: Command) -> Command:
        kind = self.chance.random()
        for _ in range(0 if kind < 0.55 else 1 if kind < 0.85 else 2 if kind < 0.95 else 6):
            name = self.chance.choice(_FIELDS)
            setattr(command, name, self._other(name, getattr(command, name)))
        return command

    def _other(self, name: str, value: int) -> int:
        chance = self.chance
        if name in _POINTERS:
            return self.aim.address()
        if name == "flags":
            return chance.choice((0, 0x40, 0x80, 0xC0, 1, 2, 4, chance.randrange(256)))
        if name == "nsid" and chance.random() < 0.7:
            return chance.choice((0, 1, 2, 3, 12, 13, 14, 15, 16, 20, 21, BROADCAST - 1, BROADCAST))
        kind = chance.randrange(6)
        if kind < 2:
            return chance.choice(NUMBERS)
        if kind == 2:
            return value ^ 1 << chance.randrange(32)
        if kind == 3:
            return value + chance.choice((1, -1)) & 0xFFFFFFFF
        if kind == 4:
            return value & ~0xFFFF | chance.choice(NUMBERS) & 0xFFFF
        return chance.getrandbits(32)

    def _with_harmless_doorbells(self, command: Command) -> Command:
        if command.opcode == AdminOpcode.DOORBELL_BUFFER_CONFIG and not (command.prp1 | command.prp2) % PAGE:
            command.prp1, command.prp2 = self.doorbells, self.doorbells + PAGE
        return command
