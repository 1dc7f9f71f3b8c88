"""Whether a controller can do what is asked for, and where everything is in the memory it reaches."""

from outboard.drivers.nvme import CNS_CONTROLLER, CNS_NAMESPACE, NvmeDriver
from outboard.drivers.nvme_measure.layout import COMPLETION_SIZE, SUBMISSION_SIZE
from outboard.drivers.nvme_measure.workload import Workload
from outboard.errors import RemoteError, SetupError

PAGE = 4096
ALIGNMENT = 2 << 20
"""What the memory's size is rounded to: some servers take no less."""

FEWEST_ENTRIES, ENTRIES_A_COMMAND = 64, 2
MOST_CHUNKS = 1 << 31
"""What the loop draws numbers from; of a larger namespace the first ones are measured."""
MOST_VERIFIED = 1 << 20
"""How many chunks are remembered when verifying."""
MDTS = 77
"""Where Identify Controller has the largest transfer, as a power of two of pages."""

FLBAS, DPS, LBA_FORMATS = 26, 29, 128
CNS_NVM_NAMESPACE = 5
"""Where Identify Namespace has the LBA format, the protection, and the formats; what says more of those."""
WIDE_GUARD = 2
MADE_AND_CHECKED = 1 << 29 | 1 << 28
"""PRACT, and the check of the guard."""


def pages(size: int) -> int:
    """``size`` bytes, rounded up to whole pages.

    >>> pages(1), pages(8192)
    (4096, 8192)
    """
    return -(-size // PAGE) * PAGE


class Plan:
    """Where everything of a workload is in the memory that the controller reaches. All sizes in bytes."""

    def __init__(self, driver: NvmeDriver, workload: Workload) -> None:
        self.workload = workload
        try:
            self.block = driver.block_size(workload.nsid)
        except RemoteError as error:
            raise SetupError(
                f"there is no namespace {workload.nsid}; the controller has {driver.namespaces()}"
            ) from error
        self.protection = self._protection(driver)
        self.chunks = self._chunks(driver)
        self._check(driver)
        wanted = max(FEWEST_ENTRIES, ENTRIES_A_COMMAND * workload.qd)
        self.entries = min(driver.queue_entries, 1 << (wanted - 1).bit_length())
        self.slots = workload.qd * workload.queues
        self.shadow, self.events = 0, PAGE
        self._submissions = 2 * PAGE
        self._queue = pages(self.entries * SUBMISSION_SIZE), pages(self.entries * COMPLETION_SIZE)
        self._lists = self._submissions + workload.queues * sum(self._queue)
        self.data_size = pages(workload.bs)
        self.has_lists = workload.bs > 2 * PAGE
        self.data = self._lists + (self.slots * PAGE if self.has_lists else 0)
        self.size = -(-(self.data + self.slots * self.data_size) // ALIGNMENT) * ALIGNMENT

    def queue(self, number: int) -> tuple[int, int]:
        """Where the rings of queue pair ``number``, from 0, are."""
        submissions = self._submissions + number * sum(self._queue)
        return submissions, submissions + self._queue[0]

    def buffer(self, slot: int) -> int:
        """Where the data of a slot is."""
        return self.data + slot * self.data_size

    def prp_list(self, slot: int) -> int:
        """Where the list of a slot's pages is, when it has more than two."""
        return self._lists + slot * PAGE

    def _chunks(self, driver: NvmeDriver) -> int:
        blocks = int.from_bytes(driver.identify(CNS_NAMESPACE, self.workload.nsid)[:8], "little")
        if not blocks:
            raise SetupError(
                f"there is no namespace {self.workload.nsid}; the controller has {driver.namespaces()}"
            )
        limit = MOST_VERIFIED if self.workload.verify else MOST_CHUNKS
        return min(blocks * self.block // self.workload.bs, limit)

    def _protection(self, driver: NvmeDriver) -> int:
        """What dword 12 says of protection information: the controller makes it, and checks the guard."""
        data = driver.identify(CNS_NAMESPACE, self.workload.nsid)
        number = data[FLBAS] & 0xF
        metadata = int.from_bytes(data[LBA_FORMATS + 4 * number :][:2], "little")
        if metadata == 0:
            return 0
        size = 8
        if metadata == 16:
            extended = driver.identify(CNS_NVM_NAMESPACE, self.workload.nsid)[12 + 4 * number :][:4]
            size = 16 if int.from_bytes(extended, "little") >> 7 & 3 == WIDE_GUARD else 8
        if not data[DPS] & 7 or metadata != size:
            raise SetupError(
                f"namespace {self.workload.nsid} has {metadata} bytes of metadata with each block, not"
                " protection information alone: such namespaces cannot be measured"
            )
        return MADE_AND_CHECKED

    def _check(self, driver: NvmeDriver) -> None:
        workload = self.workload
        if workload.bs % self.block:
            raise SetupError(
                f"commands of {workload.bs} bytes: namespace {workload.nsid} has blocks of {self.block} bytes"
            )
        if mdts := driver.identify(CNS_CONTROLLER)[MDTS]:
            largest = driver.smallest_page << mdts
            if workload.bs > largest:
                raise SetupError(
                    f"commands of {workload.bs} bytes: the controller takes {largest} bytes at most"
                )
        if workload.qd >= driver.queue_entries:
            raise SetupError(
                f"{workload.qd} commands in flight: the controller's queues take {driver.queue_entries - 1}"
            )
        needed = workload.qd * workload.queues if workload.verify else 1
        if self.chunks < needed:
            raise SetupError(
                f"namespace {workload.nsid} has room for {self.chunks} commands of {workload.bs} bytes,"
                f" {needed} are needed"
            )
        granted = driver.request_queues(workload.queues)
        if granted < workload.queues:
            raise SetupError(f"{workload.queues} queues: the controller has {granted}")
