"""Limits of a namespace, and when a command is due: shared by all who serve it, without a lock.

A limit is a clock that runs ahead: each command moves it on by the time that it costs, and is due at the
time that the clock showed before. So a command takes a ticket once, and whoever waits is served in the order
of the tickets. A clock that lags behind by more than `SAVED` is what nobody used, and is set to that.

Which commands are limited, and what they cost, is decided here, by opcode and number of blocks.
"""

from outboard.devices.nvme.qos import Qos
from outboard.native.jit import jitable
from outboard.native.libc import SECOND
from outboard.native.memory import add64, load64, store64
from outboard.native.words import Block, offsets

COMMANDS, BYTES, READ_COMMANDS, READ_BYTES, WRITE_COMMANDS, WRITE_BYTES = offsets(6)
"""Limits, a second; 0: none."""

MOST = 48
"""Bytes that a command may move at most: one that names more fails, and costs as much as one without data."""

CLOCKS = 64
"""Their clocks begin here, in the same order: nanoseconds of the monotonic clock."""

SAVED = 20_000_000
"""Nanoseconds for which can be saved up what nobody used: also how late a ticket may be redeemed."""

WRITE, READ, COMPARE, ZONE_APPEND = 0x01, 0x02, 0x05, 0x7D
READING = 1 << READ | 1 << COMPARE | 1 << 0x0C
WRITING = 1 << WRITE | 1 << 0x04 | 1 << 0x08 | 1 << 0x09 | 1 << 0x19
"""Opcodes below 40h, as bits: those that read blocks, and that change them."""

NEITHER, READS, WRITES = range(3)
"""What a command does with blocks."""


@jitable
def direction(opcode: int) -> int:
    """What a command with this opcode does with blocks."""
    if opcode > 0x3F:
        return WRITES if opcode == ZONE_APPEND else NEITHER
    if (READING >> opcode) & 1 != 0:
        return READS
    return WRITES if (WRITING >> opcode) & 1 != 0 else NEITHER


@jitable
def bytes_moved(limits: int, entry: int, shift: int) -> int:
    """How many bytes the command at ``entry`` moves between the host and blocks of ``1 << shift`` bytes."""
    opcode = load64(entry) & 0xFF
    if opcode in (READ, WRITE, COMPARE, ZONE_APPEND):
        size = ((load64(entry + 48) & 0xFFFF) + 1) << shift
        return size if size <= load64(limits + MOST) else 0
    return 0


@jitable
def ticket(limits: int, entry: int, shift: int, now: int) -> int:
    """When the command at ``entry``, of our own memory, is due: it pays now, and may be executed then."""
    size = bytes_moved(limits, entry, shift)
    own = WRITE_COMMANDS if direction(load64(entry) & 0xFF) == WRITES else READ_COMMANDS
    due = max(_pay(limits + COMMANDS, 1, now), _pay(limits + BYTES, size, now))
    return max(due, max(_pay(limits + own, 1, now), _pay(limits + own + 8, size, now)))


@jitable
def _pay(limit: int, units: int, now: int) -> int:
    rate = load64(limit)
    if rate == 0 or units == 0:
        return 1
    if load64(limit + CLOCKS) < now - SAVED:
        store64(limit + CLOCKS, now - SAVED)
    return add64(limit + CLOCKS, units * SECOND // rate)


@jitable
def refund(limits: int, entry: int, shift: int) -> int:
    """Take back the ticket of a command that will not use it."""
    size = bytes_moved(limits, entry, shift)
    own = WRITE_COMMANDS if direction(load64(entry) & 0xFF) == WRITES else READ_COMMANDS
    _pay_back(limits + COMMANDS, 1)
    _pay_back(limits + BYTES, size)
    _pay_back(limits + own, 1)
    return _pay_back(limits + own + 8, size)


@jitable
def _pay_back(limit: int, units: int) -> int:
    rate = load64(limit)
    return add64(limit + CLOCKS, -(units * SECOND // rate)) if rate != 0 else 0


class Limits:
    """The limits of one namespace; ``address`` is what tickets are taken from.

    >>> limits = Limits()
    >>> limits.set(Qos(iops=1000))
    >>> limits.active, limits.changes
    (True, 1)
    """

    def __init__(self) -> None:
        self._block = Block(2 * CLOCKS)
        self.address = self._block.address
        self.active = False
        self.changes = 0

    def reach(self, most: int) -> None:
        """A controller has the namespace that moves up to ``most`` bytes by one command."""
        self._block[MOST] = max(self._block[MOST], most)

    def set(self, qos: Qos | None) -> None:
        """Have these limits from now on; tickets that were taken before are void."""
        qos = qos or Qos()
        for limit, rate in (
            (COMMANDS, qos.iops),
            (BYTES, qos.bytes_per_second),
            (READ_COMMANDS, qos.read_iops),
            (READ_BYTES, qos.read_bytes_per_second),
            (WRITE_COMMANDS, qos.write_iops),
            (WRITE_BYTES, qos.write_bytes_per_second),
        ):
            self._block[limit], self._block[limit + CLOCKS] = rate, 0
        self.active = bool(qos)
        self.changes += 1
