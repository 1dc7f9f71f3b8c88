"""Loops that share a namespace in memory keep out of each other's way (NVM Command Set 1.0, 2.1.4: AWUN).

Nobody may see half of a block that is being written. One loop does one command after the other, and Python
makes it stand still (`undisturbed`); several lock what a command reads or writes, in stripes of `STRIPE`
bytes, the first one first. Who has a stripe only copies: the others wait as long as its guest's memory, which
is memory as a rule, takes to be there. Two namespaces on one storage do not know of each other.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from outboard.devices.nvme.datapath.records import (
    NS_ADDRESS,
    NS_STRIPES,
    OP_DISK,
    OP_LENGTH,
    OP_SPACE,
)
from outboard.native.jit import jitable
from outboard.native.libc import sched_yield
from outboard.native.memory import add64, load64, pause
from outboard.native.words import WORD, Block
from outboard.storage import Storage
from outboard.storage.fast import Memory, fast_of

if TYPE_CHECKING:
    from outboard.devices.nvme.subsystem import Subsystem

SHIFT = 16
STRIPE = 1 << SHIFT

PATIENCE = 1000
"""Looks at a stripe that another loop has, until others on this processor are let through."""


@jitable
def lock(operation: int) -> int:
    """Lock the stripes of a read or write of memory, if anybody shares it; 0 if nobody does."""
    stripes = load64(load64(operation + OP_SPACE) + NS_STRIPES)
    if stripes != 0:
        at = stripe(stripes, operation, 0)
        end = stripe(stripes, operation, load64(operation + OP_LENGTH) - 1)
        while at <= end:
            looks = 0
            while add64(at, 1) != 0:
                add64(at, -1)
                looks += 1
                if looks < PATIENCE:
                    pause()
                else:
                    sched_yield()
            at += WORD
    return stripes


@jitable
def unlock(stripes: int, operation: int) -> int:
    """Let the others have them, who see then what was stored."""
    at = stripe(stripes, operation, 0)
    end = stripe(stripes, operation, load64(operation + OP_LENGTH) - 1)
    while at <= end:
        add64(at, -1)
        at += WORD
    return 1


@jitable
def stripe(stripes: int, operation: int, offset: int) -> int:
    """The address of the word to lock for the byte at ``offset`` of what a command reads or writes."""
    start = load64(operation + OP_DISK) - load64(load64(operation + OP_SPACE) + NS_ADDRESS)
    return stripes + (start + offset >> SHIFT) * WORD


class Stripes:
    """The locks of one namespace; its loops are described while they are paused, so that none is held.

    >>> stripes = Stripes()
    >>> stripes.address(1 << 20) == stripes.address(1 << 20)
    True
    """

    def __init__(self) -> None:
        self._words: Block | None = None

    def address(self, size: int) -> int:
        """Where the locks of ``size`` bytes are."""
        needed = (size + STRIPE - 1 >> SHIFT) * WORD
        if self._words is None or self._words.size != needed:
            self._words = Block(needed)
        return self._words.address


@contextmanager
def undisturbed(subsystem: "Subsystem", storage: Storage) -> Iterator[None]:
    """Have no poller touch a storage in memory until the block is left: what is done there is whole."""
    in_memory = isinstance(fast_of(storage), Memory)
    with ExitStack() as stack:
        for state in list(subsystem.controllers.values()) if in_memory else ():
            spaces = state.namespaces.values()
            if state.plane.pollers and any(space.storage is storage for space in list(spaces)):
                stack.enter_context(state.plane.paused())
        yield
