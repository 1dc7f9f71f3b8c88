"""End-to-end protection: what a command asks for, whether its blocks pass (NVM Command Set 1.0, 5.2 and 5.3).

Every command that moves blocks, or looks at them, has the same fields for it. `Prinfo.of` reads them, and
refuses those that cannot be; `verify` and `generate` are what is done with the blocks. The work itself is
done in `outboard.devices.nvme.datapath.protect`, compiled where it can be.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

from outboard.devices.nvme.command import Command
from outboard.devices.nvme.datapath import protect
from outboard.devices.nvme.datapath.beside import PROTECTION
from outboard.devices.nvme.datapath.protect import (
    ACTION,
    BAD_APPLICATION_TAG,
    BAD_GUARD,
    BAD_REFERENCE_TAG,
    CHECK_REFERENCE,
)
from outboard.devices.nvme.datapath.records import NS_RECORD, OP_CHECKS, OP_RECORD, OP_REFERENCE, OP_TAGS
from outboard.devices.nvme.datapath.spaces import describe_blocks
from outboard.devices.nvme.metadata import Extent
from outboard.devices.nvme.namespace import Namespace
from outboard.devices.nvme.status import CommandFailed, Status
from outboard.native.jit import entry
from outboard.native.memory import address_of
from outboard.native.words import Block, Record

EXTENDED_FORMATS = 1 << 15
"""ELBAS, a bit of CTRATT: some LBA formats have more to say than Identify Namespace has room for."""

_CONTROL_LOCATION, _REFERENCE_LOCATION = 51, 56

_WRONG = {
    BAD_GUARD: (Status.GUARD_CHECK_ERROR, "the guard"),
    BAD_APPLICATION_TAG: (Status.APPLICATION_TAG_CHECK_ERROR, "the application tag"),
    BAD_REFERENCE_TAG: (Status.REFERENCE_TAG_CHECK_ERROR, "the reference tag"),
}


@dataclass(frozen=True, slots=True)
class Prinfo:
    """What a command wants done with protection information.

    ``action`` (PRACT): it is made here when blocks are written, and taken off when they are read, as far as
    it is all the metadata there is. ``checks``: the bits of
    `outboard.devices.nvme.datapath.protect`.
    ``application`` is the tag, under ``mask``; ``reference`` that of the first block.
    """

    action: bool = False
    checks: int = 0
    application: int = 0
    mask: int = 0
    reference: int = 0

    @classmethod
    def of(cls, space: Namespace, command: Command) -> "Prinfo":
        """What a command with one range says: Read, Write, Compare, Verify, Write Zeroes, Zone Append.

        Nothing on a namespace without protection. Raises `CommandFailed` (Invalid Protection Information).
        """
        if space.protection is None:
            return cls()
        info = command.cdw12 >> PROTECTION & 0xF
        reference = command.cdw14 | (command.cdw3 & 0xFFFF) << 32
        found = cls(
            bool(info & ACTION),
            info & ~ACTION,
            command.cdw15 & 0xFFFF,
            command.cdw15 >> 16,
            reference & space.protection.tag_mask,
        )
        found.check(space, command.slba)
        return found

    def check(self, space: Namespace, slba: int) -> None:
        """Raise `CommandFailed` (Invalid Protection Information) if this cannot be, from ``slba`` on."""
        protection = space.protection
        if protection is None or not self.checks & CHECK_REFERENCE:
            return
        if protection.type == 3:
            raise CommandFailed(
                Status.INVALID_PROTECTION_INFORMATION,
                "reference tags mean nothing with protection of type 3: leave their check off",
                location=_CONTROL_LOCATION,
            )
        if protection.type == 1 and self.reference != slba & protection.tag_mask:
            raise CommandFailed(
                Status.INVALID_PROTECTION_INFORMATION,
                f"with protection of type 1 the reference tag of block {slba:#x} is no {self.reference:#x}",
                location=_REFERENCE_LOCATION,
            )

    def no_action(self) -> None:
        """Raise `CommandFailed` (Invalid Protection Information) for PRACT, which is for reads and writes."""
        if self.action:
            raise CommandFailed(
                Status.INVALID_PROTECTION_INFORMATION,
                "the command moves no protection information: PRACT is for reads and writes",
                location=_CONTROL_LOCATION,
            )

    def behind(self, space: Namespace, blocks: int) -> "Prinfo":
        """The same for what comes behind the first ``blocks`` blocks of the command."""
        if space.protection is None or space.protection.type == 3:
            return self
        return replace(self, reference=self.reference + blocks & space.protection.tag_mask)

    def carried(self, space: Namespace) -> int:
        """How many bytes of metadata a block has between the host and us."""
        return 0 if self.action and space.protection_span[1] == space.metadata else space.metadata


def verify(extent: Extent, prinfo: Prinfo) -> None:
    """Raise `CommandFailed` for the first block that does not pass.

    Guard, Application Tag, or Reference Tag Check Error; nothing without protection, or without checks.
    """
    if extent.space.protection is None or not prinfo.checks:
        return
    if found := _protect(extent, prinfo, making=False):
        status, what = _WRONG[found & 3]
        lba = extent.slba + (found >> 2)
        raise CommandFailed(status, f"{what} of block {lba:#x} is wrong", lba=lba)


def generate(extent: Extent, prinfo: Prinfo) -> None:
    """Put the protection information of an extent's data into its metadata, where there is any."""
    if extent.space.protection is not None:
        _protect(extent, prinfo, making=True)


def receive(extent: Extent, prinfo: Prinfo) -> None:
    """Do with what the host gave to be written as it asked: `generate`, or else `verify`."""
    (generate if prinfo.action else verify)(extent, prinfo)


def renew_guard(extent: Extent) -> None:
    """Make the guard of the one block in an extent right for its data; its tags stay."""
    if extent.space.protection is None:
        return
    start, size = extent.space.protection_span
    tags = slice(start + extent.space.protection.guard // 8, start + size)
    before = extent.metadata[tags]
    generate(extent, Prinfo())
    extent.metadata[tags] = before


def of_zeros(space: Namespace, prinfo: Prinfo, first: int, count: int) -> bytes:
    """The metadata of ``count`` blocks of zeros, from the command's block number ``first`` on: Write Zeroes.

    With PRACT it has protection information, else it is zeros as well.
    """
    if space.protection is None or not prinfo.action:
        return bytes(count * space.metadata)
    one = Extent(space, 0, 1)
    generate(one, prinfo)
    if space.protection.type == 3:
        return bytes(one.metadata) * count
    start, size = space.protection_span
    width = 6 if space.protection.guard == 64 else 4
    at = start + size - width
    before, after = bytes(one.metadata[:at]), bytes(one.metadata[at + width :])
    mask = space.protection.tag_mask
    return b"".join(
        before + (prinfo.reference + number & mask).to_bytes(width, "big") + after
        for number in range(first, first + count)
    )


def _protect(extent: Extent, prinfo: Prinfo, *, making: bool) -> int:
    if not extent.fits:
        raise CommandFailed(
            Status.COMMAND_INTERRUPTED, f"namespace {extent.space.nsid} has another format meanwhile"
        )
    space, operation = Block(NS_RECORD), Block(OP_RECORD)
    describe_blocks(Record(space, 0), extent.space)
    operation[OP_CHECKS], operation[OP_REFERENCE] = prinfo.checks, prinfo.reference
    operation[OP_TAGS] = prinfo.application | prinfo.mask << 16
    data, metadata = address_of(extent.data), address_of(extent.metadata)
    return _best()(space.address, operation.address, data, metadata, extent.blocks, int(making))


def prepare() -> None:
    """Compile what can be, so that no client waits for it."""
    _best()


@cache
def _best() -> Callable[..., int]:
    return protect_blocks.best()


@entry
def protect_blocks(space: int, operation: int, data: int, metadata: int, blocks: int, making: int) -> int:
    """Make, or else judge, the protection information of blocks, for Python."""
    if making != 0:
        return protect.generate(space, operation, data, metadata, blocks)
    return protect.verify(space, operation, data, metadata, blocks)
