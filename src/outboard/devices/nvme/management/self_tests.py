"""Device self-test: the storages are read, a sample of them or whole (NVMe Base 2.0, 5.9 and 8.6).

One operation at a time is under way in a subsystem. A short one ends with a reset of the controller that
began it; an extended one goes on, and begins anew after a power cycle. Section ``self_test`` of the store.
"""

import logging
import time
from collections.abc import Generator, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from outboard.devices.nvme import layouts
from outboard.devices.nvme.management.background import Operation, Step, Steps
from outboard.devices.nvme.namespace import Namespace
from outboard.devices.nvme.spec import BROADCAST, SelfTest, SelfTestResult
from outboard.devices.nvme.status import Status
from outboard.storage import Storage

if TYPE_CHECKING:
    from outboard.devices.nvme.subsystem import Subsystem

log = logging.getLogger(__name__)

SECTION = "self_test"

RESULTS = 20
"""Results the log keeps."""

SAMPLES, SAMPLE = 64, 64 << 10
"""How many pieces of how many bytes a short test reads of each storage."""

READ_AT_ONCE = 1 << 20

BYTES_A_MINUTE = 16 << 30
"""What the time of an extended test (EDSTT) assumes."""

MEDIA_SEGMENT = 2
"""The segment that reads namespaces; 1 is the controller's own, which is there if it answers."""

_RESULT = layouts.SELF_TEST_RESULT.size

_NSID_VALID, _LBA_VALID, _TYPE_VALID, _CODE_VALID = 1 << 0, 1 << 1, 1 << 2, 1 << 3


class SelfTests:
    """The self-tests of one subsystem: the one under way, and each controller's results. All in its turn."""

    def __init__(self, subsystem: "Subsystem") -> None:
        self._subsystem = subsystem
        self._since = time.monotonic()
        saved = subsystem.store.get(SECTION, {})
        self._results: dict[str, list[str]] = {
            cntlid: [bytes.fromhex(result)[:_RESULT].ljust(_RESULT).hex() for result in results[:RESULTS]]
            for cntlid, results in saved.get("results", {}).items()
        }
        self._running: dict[str, Any] | None = saved.get("running")
        self._operation: Operation | None = None
        self._percent = 0

    def go_on(self) -> None:
        """Begin anew the extended test that a power cycle has ended; a short one was ended by that."""
        running, self._running = self._running, None
        if running is None:
            return
        cntlid, nsid = int(running["cntlid"]), int(running["nsid"]) & BROADCAST
        self.begin(cntlid, SelfTest(running["code"]), nsid, self._present(running["spaces"]))
        if running["code"] != SelfTest.EXTENDED and not self._subsystem.away:
            self.abort(SelfTestResult.RESET)

    @property
    def extended_minutes(self) -> int:
        """How long an extended test takes, about."""
        size = sum(space.storage.size for space in self._subsystem.namespaces.values())
        return min(1 + size // BYTES_A_MINUTE, 0xFFFF)

    @property
    def under_way(self) -> bool:
        """Whether one is."""
        return self._running is not None

    def begin(self, cntlid: int, code: int, nsid: int, spaces: Sequence[Namespace]) -> None:
        """Begin a test of ``spaces``, as a controller was asked to by ``nsid``."""
        self._running = {
            "cntlid": cntlid,
            "code": code,
            "nsid": nsid,
            "spaces": [space.nsid for space in spaces],
        }
        self._percent = 0
        self._keep()
        self._operation = Operation("self-test", lambda operation: self._steps(operation, spaces))
        self._subsystem.background.start(self._operation)

    def abort(self, result: SelfTestResult) -> None:
        """End the test that is under way, if any is. What it reads now it may go on to read."""
        if self._operation is not None:
            self._subsystem.background.abandon(self._operation)
            self._end(result)

    def abort_for(self, nsids: Sequence[int], result: SelfTestResult) -> None:
        """End the test that is under way if it is of one of these namespaces."""
        if self._running is not None and set(nsids) & set(self._running["spaces"]):
            self.abort(result)

    def controller_was_reset(self, cntlid: int) -> None:
        """A short test ends with its controller's life."""
        running = self._running
        if running is not None and running["cntlid"] == cntlid and running["code"] != SelfTest.EXTENDED:
            self.abort(SelfTestResult.RESET)

    def log(self, cntlid: int) -> bytes:
        """The Device Self-test log page of a controller."""
        results = b"".join(bytes.fromhex(result) for result in self._results.get(str(cntlid), []))
        unused = layouts.SELF_TEST_RESULT.encode(status=SelfTestResult.UNUSED)
        mine = self._running if self._running and self._running["cntlid"] == cntlid else None
        return layouts.SELF_TEST_LOG.encode(
            operation=mine["code"] if mine else 0,
            completion=self._percent if mine else 0,
            results=results + unused * (RESULTS - len(results) // _RESULT),
        )

    def _steps(self, operation: Operation, spaces: Sequence[Namespace]) -> Steps:
        assert self._running is not None
        extended = self._running["code"] == SelfTest.EXTENDED
        for number, space in enumerate(spaces):
            operation.target, storage = space, space.storage
            for offset, count in _pieces(storage, extended):
                try:
                    yield partial(storage.read, offset, count)
                except Exception as error:
                    log.warning("self-test: namespace %d cannot be read: %s", space.nsid, error)
                    broken = yield from _first_broken(space, offset, count)
                    self._end(SelfTestResult.FAILED_SEGMENT, space, broken)
                    return
                done = number + (offset + count) / storage.size
                self._percent = min(int(100 * done / len(spaces)), 99)
        self._end(SelfTestResult.PASSED)

    def _end(self, result: SelfTestResult, space: Namespace | None = None, offset: int = 0) -> None:
        running = self._running
        assert running is not None
        valid, failure = 0, {}
        if running["nsid"]:
            valid |= _NSID_VALID
        if space is not None:
            valid |= _NSID_VALID | _LBA_VALID | _TYPE_VALID | _CODE_VALID
            failure = {
                "segment": MEDIA_SEGMENT,
                "failing_lba": min(offset // space.block_size, space.blocks - 1),
                "status_code_type": Status.UNRECOVERED_READ_ERROR >> 8,
                "status_code": Status.UNRECOVERED_READ_ERROR & 0xFF,
            }
        entry = layouts.SELF_TEST_RESULT.encode(
            status=running["code"] << 4 | result,
            valid=valid,
            power_on_hours=int(time.monotonic() - self._since) // 3600,
            nsid=space.nsid if space is not None else running["nsid"],
            **failure,
        )
        results = self._results.setdefault(str(running["cntlid"]), [])
        results.insert(0, entry.hex())
        del results[RESULTS:]
        self._running = self._operation = None
        self._keep()

    def _keep(self) -> None:
        self._subsystem.keep(SECTION, {"results": self._results, "running": self._running})

    def _present(self, nsids: Sequence[int]) -> list[Namespace]:
        namespaces = self._subsystem.namespaces
        return [namespaces[nsid] for nsid in nsids if nsid in namespaces]


def _first_broken(space: Namespace, offset: int, count: int) -> Generator[Step, None, int]:
    """Find the block that cannot be read; the first one if all can be by themselves."""
    for block in range(offset, offset + count, space.block_size):
        try:
            yield partial(space.storage.read, block, min(space.block_size, offset + count - block))
        except Exception:
            return block
    return offset


def _pieces(storage: Storage, extended: bool) -> Iterator[tuple[int, int]]:
    """Offsets and sizes of what is read of a storage."""
    count, stride = READ_AT_ONCE, READ_AT_ONCE
    if not extended:
        stride = max(SAMPLE, -(-storage.size // SAMPLES))
        count = SAMPLE
    for offset in range(0, storage.size, stride):
        yield offset, min(count, storage.size - offset)
