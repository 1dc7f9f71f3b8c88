"""What does an NVMe controller cost that nobody uses, and how long does it take to wake up?

Idle: `outboard nvme` serves a Linux guest's disk, once with shadow doorbells and once with mapped ones, which
have to be looked at; what the servers use of a processor while the guest does nothing is read from the
kernel's accounts of their threads. Wake-up: without a guest, a server asleep is sent one read and the
message of its doorbell; the time runs from before that is sent until the completion is seen in shared
memory. Run: `python bench/idle.py`.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from harness.report import Table
from outboard.client import Client
from outboard.client.qemu import QemuClient
from outboard.drivers.nvme import NvmeDriver
from outboard.errors import SetupError
from outboard.native.memory import load32, load_acquire32, store32, store_release32
from outboard.testing.guest import Guest

PAGE = 4096
ENTRIES = 64
DOORBELL_BUFFER_CONFIG = 0x7C
READ = 0x02
TIMEOUT = 5.0
PHASE_AT = 12


@contextmanager
def serving(socket: Path, doorbells: str, more: list[str]) -> Iterator[int]:
    """`outboard nvme` in a process of its own; its process id."""
    command = [sys.executable, "-c", "from outboard.cli import main; main()", "nvme"]
    command += ["--namespace", "null:1T", "--socket", str(socket), "--serial", socket.name[:20]]
    with subprocess.Popen([*command, "--doorbells", doorbells, *more], stdout=subprocess.DEVNULL) as process:
        try:
            # The first time it compiles the data plane before it listens.
            Client(socket, patience=60).close()
            yield process.pid
        finally:
            process.terminate()


def processor_time(process: int) -> int:
    """Nanoseconds that the threads of a process have run so far."""
    return sum(
        int((task / "schedstat").read_text().split()[0]) for task in Path(f"/proc/{process}/task").iterdir()
    )


def idle_shares(seconds: float, more: list[str]) -> dict[str, float]:
    """The share of a processor that a server uses whose guest is idle, for each kind of doorbells."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        kinds = ("shadow", "mmap")
        servers = {kind: stack.enter_context(serving(folder / kind, kind, more)) for kind in kinds}
        guest = stack.enter_context(Guest([folder / kind for kind in kinds], spare_ports=0))
        guest.run("until [ -b /dev/nvme0n1 -a -b /dev/nvme1n1 ]; do sleep 0.1; done; sleep 2")
        before = {kind: processor_time(server) for kind, server in servers.items()}
        time.sleep(seconds)
        return {
            kind: (processor_time(server) - before[kind]) / 1e9 / seconds for kind, server in servers.items()
        }


class Waking:
    """One queue pair of a controller, driven a command at a time; the client posts doorbells as QEMU does."""

    def __init__(self, client: QemuClient, driver: NvmeDriver, *, shadow: bool) -> None:
        self._driver, self._ram = driver, client.ram
        self._submissions, self._completions, self._shadow, self._events, self._data = range(
            8 << 20, (8 << 20) + 5 * PAGE, PAGE
        )
        driver.request_queues(1)
        driver.create_queues(1, self._submissions, self._completions, ENTRIES)
        self._is_shadow = shadow
        if shadow:
            driver.admin(
                "Doorbell Buffer Config", DOORBELL_BUFFER_CONFIG, prp1=self._shadow, prp2=self._events
            )
        self._index, self._phase = 0, 1

    def read(self) -> float:
        """Microseconds from before the doorbell's message until its completion is seen."""
        ram, driver, following = self._ram, self._driver, (self._index + 1) % ENTRIES
        entry = bytearray(64)
        entry[0], entry[4] = READ, 1
        entry[2:4] = self._index.to_bytes(2, "little")
        entry[24:32] = self._data.to_bytes(8, "little")
        ram.write(self._submissions + 64 * self._index, bytes(entry))
        phase_at = ram.address_here(self._completions + 16 * self._index + PHASE_AT)
        bell = driver.doorbell(1)
        if self._is_shadow:
            wanted = load32(ram.address_here(self._events + 8))
            if wanted != self._index:
                raise SystemExit(f"the server does not sleep: its event index is {wanted}, not {self._index}")
            store_release32(ram.address_here(self._shadow + 8), following)
        started = time.perf_counter()
        driver.ring(bell, following)
        while load_acquire32(phase_at) >> 16 & 1 != self._phase:
            if time.perf_counter() - started > TIMEOUT:
                raise SystemExit(f"no completion in {TIMEOUT:g} s")
        taken = time.perf_counter() - started
        if self._is_shadow:
            store32(ram.address_here(self._shadow + 12), following)
        else:
            driver.ring(bell + driver.doorbell_stride, following)
        self._phase ^= following == 0
        self._index = following
        return taken * 1e6


def wake_times(kind: str, tries: int, more: list[str]) -> list[float]:
    """Microseconds of each of so many wake-ups, with doorbells ``shadow`` or ``trapped``."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(serving(folder / kind, kind, more))
        client = stack.enter_context(QemuClient(folder / kind))
        # As a driver does: with the interrupt line doorbells are not silent.
        client.enable_msix(1)
        waking = Waking(client, stack.enter_context(NvmeDriver(client)), shadow=kind == "shadow")
        times = []
        for _ in range(tries):
            # Much longer than it spins.
            time.sleep(0.02)
            times.append(waking.read())
        return times


def main() -> None:
    """Measures and prints."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seconds", type=float, default=60, help="how long the guest does nothing")
    arguments.add_argument("--tries", type=int, default=300, help="wake-ups of each kind")
    arguments.add_argument("--serve", default="", help="more options of `outboard nvme`")
    arguments.add_argument("--no-guest", action="store_true", help="wake-ups only")
    arguments.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    arguments.add_argument("--markdown", action="store_true", help="the tables as Markdown")
    arguments.add_argument("--quick", action="store_true", help="5 seconds, 50 tries: a look")
    options = arguments.parse_args()
    if options.quick:
        options.seconds, options.tries = 5, 50
    more = options.serve.split()

    wakes = {kind: sorted(wake_times(kind, options.tries, more)) for kind in ("shadow", "trapped")}
    shares = {}
    if not options.no_guest:
        try:
            shares = idle_shares(options.seconds, more)
        except SetupError as missing:
            print(f"no guest: {missing}", file=sys.stderr)
    if options.json:
        medians = {kind: round(statistics.median(times), 1) for kind, times in wakes.items()}
        print(json.dumps({"idle_share": shares, "wake_us": medians}))
        return
    tables = [wakes_table(wakes), *([shares_table(shares, options.seconds)] if shares else [])]
    print("\n\n".join(table.markdown() if options.markdown else table.text() for table in tables))


def wakes_table(wakes: dict[str, list[float]]) -> Table:
    """A row for each kind of doorbells, whose times are sorted."""
    rows = []
    for kind, times in wakes.items():
        numbers = (times[0], statistics.median(times), times[len(times) * 9 // 10])
        rows.append((f"woken by a message, doorbells {kind}", *(f"{each:.0f}" for each in numbers)))
    return Table(("message to completion", "fastest us", "median us", "p90 us"), rows)


def shares_table(shares: dict[str, float], seconds: float) -> Table:
    """A row for each kind of doorbells."""
    rows = [(f"doorbells {kind}", f"{share:.2%}") for kind, share in shares.items()]
    return Table((f"a Linux guest attached, idle for {seconds:g} s", "of a processor"), rows)


if __name__ == "__main__":
    main()
