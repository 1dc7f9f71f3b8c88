"""Whatever two hosts' commands are, each completes once with a status, and the controllers live on.

It is the storm of `tests.devices.nvme.storm`, whose decisions the input makes: no error is logged, a
namespace that nobody wrote to holds what it held, and no descriptor, thread or view is left.
"""

import logging
import random

from fuzz.choices import Choices
from tests.devices.nvme.storm.storm import Episode, play
from tests.devices.nvme.storm.watch import watched


def run(data: bytes) -> None:
    """One episode, until the input is used up."""
    decided = Decided(data)
    quiet = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with watched() as errors:
            play(Episode("plain", decided), errors, lambda: decided.more)
    finally:
        logging.disable(quiet)


class Decided(random.Random):
    r"""Passes for chance, and takes the bytes of ``data`` in turn; then zeros.

    >>> decided = Decided(b"\x40\x03")
    >>> decided.random(), decided.choice("abcd"), decided.choice("abcd"), decided.more
    (0.25, 'd', 'a', False)
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(0)
        self._choices = Choices(data)

    @property
    def more(self) -> bool:
        """Whether there are bytes left."""
        return self._choices.more

    def random(self) -> float:
        """One byte, as a part of 256."""
        return self._choices.below(256) / 256

    def getrandbits(self, k: int) -> int:
        """As many bytes as are needed for so many bits."""
        size = -(-k // 8)
        return int.from_bytes(self._choices.take(size).ljust(size, b"\0"), "little") & (1 << k) - 1
