"""Commands that may have to wait: generators that say what they wait for.

A command that needs storage is a `Work`: it yields each call of a storage, and goes on when that has
returned. Whoever runs it decides where the calls are made, in place (`run_inline`) or in a thread
(`outboard.devices.nvme.workers`). The generator itself always runs in the device's own thread, and only
it touches guest memory and the controller's state; the calls touch private buffers.

A generator may be closed where it waits: its queue was deleted, or the controller was reset.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass

from outboard.storage import Storage


@dataclass(frozen=True, slots=True)
class Call:
    """One call of ``storage``, made by calling this; it may take as long as it likes.

    ``moves``: it reads or changes blocks.
    """

    storage: Storage
    function: Callable[[], None]
    moves: bool = True

    def __call__(self) -> None:
        """Make the call; raises what the storage raises."""
        self.function()


def flush_of(storage: Storage) -> Call:
    """The call that makes durable what a storage holds."""
    return Call(storage, storage.flush, moves=False)


Work = Generator[Call, None, int]
"""A command under way: yields calls, returns dword 0 of its completion, raises `CommandFailed`."""


def run_inline(work: Work) -> int:
    """Run ``work`` to its end, its calls made here; return and raise what it does.

    >>> from outboard.storage import NullStorage
    >>> disk = NullStorage(4096)
    >>> def flush():
    ...     yield Call(disk, disk.flush)
    ...     return 7
    >>> run_inline(flush())
    7
    """
    try:
        call = next(work)
        while True:
            try:
                call()
            except Exception as error:
                call = work.throw(error)
            else:
                call = next(work)
    except StopIteration as end:
        return int(end.value)
