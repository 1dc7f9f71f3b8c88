"""What is measured, and what came out."""

from dataclasses import dataclass

from outboard.drivers.nvme_measure.doorbells import Doorbells
from outboard.errors import SetupError

PATTERNS = ("read", "write", "randread", "randwrite", "randrw")
LARGEST_COMMAND = 1 << 20
MOST_IN_FLIGHT = 1 << 16
DEFAULT_MIX = 70.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What to ask of a namespace.

    ``rw`` is one of `PATTERNS`, ``mix`` the percentage that ``randrw`` reads. ``bs`` is the bytes of a
    command, ``qd`` how many commands are in flight in each of ``queues`` queues. The measurement takes
    ``seconds``, after ``warm_up`` seconds that do not count. ``verify`` compares what is read with what was
    written; it needs a pattern that writes.

    Raises `SetupError` for what cannot be.
    """

    rw: str = "randread"
    bs: int = 4096
    qd: int = 32
    queues: int = 1
    seconds: float = 5.0
    warm_up: float = 0.5
    nsid: int = 1
    mix: float = DEFAULT_MIX
    verify: bool = False

    def __post_init__(self) -> None:
        if self.rw not in PATTERNS:
            raise SetupError(f"{self.rw!r} is no pattern of access: take one of {', '.join(PATTERNS)}")
        if not 512 <= self.bs <= LARGEST_COMMAND:
            raise SetupError(f"a command of {self.bs} bytes: take 512 bytes to {LARGEST_COMMAND >> 20} MiB")
        if self.qd < 1 or self.queues < 1 or self.qd * self.queues > MOST_IN_FLIGHT:
            raise SetupError(
                f"{self.queues} queues of {self.qd} commands: take at least one of each, and"
                f" {MOST_IN_FLIGHT} commands at most"
            )
        if not (0 < self.seconds < 1e6 and 0 <= self.warm_up < 1e6):
            raise SetupError(f"{self.seconds} s after {self.warm_up} s: a measurement takes some time")
        if not 0 <= self.mix <= 100:
            raise SetupError(f"{self.mix} % of reads: take 0 to 100")
        if self.verify and self.read_percent == 100:
            raise SetupError(f"{self.rw!r} writes nothing that could be verified: take randrw or randwrite")

    @property
    def is_random(self) -> bool:
        """Whether addresses are drawn, or follow each other."""
        return self.rw.startswith("rand")

    @property
    def read_percent(self) -> float:
        """How many of a hundred commands read."""
        return {"read": 100.0, "randread": 100.0, "randrw": self.mix}.get(self.rw, 0.0)


@dataclass(frozen=True, slots=True)
class Latency:
    """Times of commands in nanoseconds; ``buckets`` are (first, last, count), ascending."""

    mean: float
    p50: int
    p99: int
    p999: int
    max: int
    buckets: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class FirstFailure:
    """The first command that failed: status type and code, opcode, first block."""

    status_type: int
    status_code: int
    opcode: int
    lba: int

    def __str__(self) -> str:
        name = {1: "Write", 2: "Read"}.get(self.opcode, f"opcode {self.opcode:#x}")
        status = f"status type {self.status_type}, code {self.status_code:#04x}"
        return f"{name} at LBA {self.lba} failed with {status}"


@dataclass(frozen=True, slots=True)
class Corruption:
    """The first data that was not what had been written: at which block, which byte of it."""

    lba: int
    byte: int
    expected: int
    found: int

    def __str__(self) -> str:
        return (
            f"LBA {self.lba}, byte {self.byte}: {self.expected & (1 << 64) - 1:#018x} was written,"
            f" {self.found & (1 << 64) - 1:#018x} was read"
        )


@dataclass(frozen=True, slots=True)
class Result:
    """What was measured in ``seconds``: ``operations`` commands that succeeded.

    ``failures`` counts the others, by (status type, code), and ``corrupt`` the reads that differed from what
    was written, ``compared`` those that did not. ``native``: the loop was compiled.
    """

    workload: Workload
    doorbells: Doorbells
    native: bool
    seconds: float
    operations: int
    latency: Latency
    failures: dict[tuple[int, int], int]
    first_failure: FirstFailure | None
    compared: int
    corrupt: int
    corruption: Corruption | None

    @property
    def iops(self) -> float:
        """Commands a second."""
        return self.operations / self.seconds if self.seconds > 0 else 0.0

    @property
    def bytes_per_second(self) -> float:
        """Bytes moved a second."""
        return self.iops * self.workload.bs

    @property
    def errors(self) -> int:
        """Commands that failed, and reads that came back wrong."""
        return sum(self.failures.values()) + self.corrupt
