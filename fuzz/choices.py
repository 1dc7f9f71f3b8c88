"""Decisions out of a fuzzer's bytes: each takes the next few of them; when they are used up, zeros."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")

INTERESTING = (
    *(0, 1, 2, 4, 8, 15, 16, 17, 24, 31, 32, 33, 40, 63, 64, 255, 256, 257, 4095, 4096, 4097, 8192, 65535),
    *(65536, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 1 << 30, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32),
    *((1 << 63) - 1, 1 << 63, (1 << 64) - 4096, (1 << 64) - 1),
)
"""Numbers at which programs go wrong."""


class Choices:
    r"""What ``data`` decides.

    >>> choices = Choices(bytes([7, 200, 1, 2]))
    >>> choices.below(5), choices.chance(0.5), choices.take(3), choices.below(9), choices.more
    (2, False, b'\x01\x02', 0, False)
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def more(self) -> bool:
        """Whether there are bytes left."""
        return self._at < len(self._data)

    def take(self, most: int) -> bytes:
        """The next bytes, fewer at the end."""
        taken = self._data[self._at : self._at + most]
        self._at += len(taken)
        return taken

    def below(self, end: int) -> int:
        """A number from 0 on, below ``end``."""
        size = 1 if end <= 256 else 2 if end <= 65536 else 4
        return int.from_bytes(self.take(size), "little") % end

    def chance(self, likely: float) -> bool:
        """Yes, with that probability if the bytes are random; yes for a zero."""
        return self.below(256) < likely * 256

    def pick(self, among: Sequence[T]) -> T:
        """One of them, the first for a zero."""
        return among[self.below(len(among))]

    def number(self, usual: Sequence[int], bits: int = 32) -> int:
        """Mostly one of the ``usual`` numbers; else an interesting one, or any of ``bits`` bits."""
        kind = self.below(16)
        if kind < 13:
            return self.pick(usual)
        number = self.pick(INTERESTING) if kind < 15 else int.from_bytes(self.take(bits // 8), "little")
        return number & (1 << bits) - 1

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """``data`` as a socket may deliver it: mostly whole, else cut, or in crumbs."""
        kind = self.below(16)
        if kind < 12 or len(data) < 2:
            yield data
        elif kind < 15:
            at = 1 + self.below(len(data) - 1)
            yield data[:at]
            yield data[at:]
        else:
            yield from (data[at : at + 3] for at in range(0, min(len(data), 600), 3))
            yield data[600:]
