"""What a storm may not leave behind: errors in the log, descriptors, threads, memory."""

import gc
import logging
import os
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

PATIENCE = 20.0
"""Seconds after which a thread is left."""


class Errors(logging.Handler):
    """Errors that were logged, with their tracebacks."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.setFormatter(logging.Formatter("%(name)s: %(message)s"))
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one."""
        self.found.append(self.format(record))


@contextmanager
def watched() -> Iterator[Errors]:
    """No error is logged in the block, and no descriptor and no thread is left behind it."""
    errors, log = Errors(), logging.getLogger("outboard")
    files, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    log.addHandler(errors)
    try:
        yield errors
    finally:
        log.removeHandler(errors)
    gc.collect()  # guest memory is mapped by what is made of cycles
    end = time.monotonic() + PATIENCE
    while threading.active_count() > threads and time.monotonic() < end:
        time.sleep(0.001)
    assert threading.active_count() <= threads, f"threads are left: {threading.enumerate()}"
    assert len(os.listdir("/proc/self/fd")) <= files, "descriptors are left"


def memory() -> int:
    """Bytes that the process has used at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
