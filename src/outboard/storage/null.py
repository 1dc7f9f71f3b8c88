"""A disk of any size that forgets: reads give zeros, writes vanish. The floor for measurements."""

from outboard.storage.base import Data, check_range
from outboard.storage.fast import Nothing
from outboard.storage.sizes import format_size


class NullStorage:
    """``size`` bytes of nothing."""

    discard_zeroes = True
    fast = Nothing()

    def __init__(self, size: int) -> None:
        self.size = size
        self.name = f"null:{format_size(size)}"

    def read(self, offset: int, size: int) -> bytes:
        """Return zeros."""
        check_range(self, offset, size)
        return bytes(size)

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Zero ``buffer``."""
        check_range(self, offset, buffer.nbytes)
        buffer[:] = bytes(buffer.nbytes)

    def write(self, offset: int, data: Data) -> None:
        """Forget ``data``."""
        check_range(self, offset, len(data))

    def flush(self) -> None:
        """Nothing to keep."""

    def discard(self, offset: int, size: int) -> None:
        """Nothing to give back."""
        check_range(self, offset, size)

    def write_zeroes(self, offset: int, size: int) -> None:
        """Zeros already."""
        check_range(self, offset, size)

    def resize(self, size: int) -> None:
        """Be of another size."""
        self.size = size

    def close(self) -> None:
        """Nothing to let go of."""
