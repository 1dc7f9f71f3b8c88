"""A ring of messages with one who puts in and one who takes out: a poller and Python, either way round.

Both ends work by address, compiled or not. A message is written in place and then announced; it is read
in place and then given back. Nothing waits: whoever finds the ring full, or empty, comes again.
"""

from outboard.native.jit import jitable
from outboard.native.memory import load64, load_acquire64, store_release64
from outboard.native.words import Block

TAKEN, GIVEN, CAPACITY, SIZE, SLOTS = 0, 64, 128, 136, 192
"""How many were taken and given so far (a cache line each), slots, bytes of one, where they begin."""


@jitable
def next_free(ring: int) -> int:
    """The address of the slot to be filled next, 0 if the ring is full."""
    given = load64(ring + GIVEN)
    capacity = load64(ring + CAPACITY)
    if given - load_acquire64(ring + TAKEN) >= capacity:
        return 0
    return ring + SLOTS + given % capacity * load64(ring + SIZE)


@jitable
def give(ring: int) -> int:
    """Announce the slot that `next_free` gave."""
    return store_release64(ring + GIVEN, load64(ring + GIVEN) + 1)


@jitable
def next_given(ring: int) -> int:
    """The address of the oldest message, 0 if there is none."""
    taken = load64(ring + TAKEN)
    if taken == load_acquire64(ring + GIVEN):
        return 0
    return ring + SLOTS + taken % load64(ring + CAPACITY) * load64(ring + SIZE)


@jitable
def take(ring: int) -> int:
    """Give the slot of the oldest message back."""
    return store_release64(ring + TAKEN, load64(ring + TAKEN) + 1)


class Ring:
    """``capacity`` slots of ``size`` bytes, a multiple of 8.

    >>> ring = Ring(4, 16)
    >>> ring.push(b"sixteen bytes, !")
    True
    >>> ring.pop()
    b'sixteen bytes, !'
    >>> ring.pop() is None
    True
    """

    def __init__(self, capacity: int, size: int) -> None:
        self._block = Block(SLOTS + capacity * size)
        self._size = size
        self._block[CAPACITY], self._block[SIZE] = capacity, size

    @property
    def address(self) -> int:
        """What the functions of this module take."""
        return self._block.address

    def __len__(self) -> int:
        return self._block[GIVEN] - self._block[TAKEN]

    def push(self, message: bytes) -> bool:
        """Put one message in; False if the ring is full. Raises ValueError if it is larger than a slot."""
        if len(message) > self._size:
            raise ValueError(f"a message of {len(message)} bytes does not fit into a slot of {self._size}")
        slot = next_free(self.address)
        if slot == 0:
            return False
        start = slot - self.address
        self._block.bytes[start : start + len(message)] = message
        give(self.address)
        return True

    def pop(self) -> bytes | None:
        """Take the oldest message out, None if there is none."""
        slot = next_given(self.address)
        if slot == 0:
            return None
        start = slot - self.address
        message = bytes(self._block.bytes[start : start + self._size])
        take(self.address)
        return message

    def clear(self) -> None:
        """Forget every message; only while nobody uses the ring."""
        self._block[TAKEN] = self._block[GIVEN]
