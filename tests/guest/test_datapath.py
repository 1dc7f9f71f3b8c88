"""An unmodified Linux that loads the native data plane while everything under it changes.

Linux has four I/O queues on its two processors: two for writes and two for reads (``nvme.write_queues``).
A reset takes commands away from the driver that are under way; it gives each to the controller again, but
not for ever, so ``max_retries`` is raised: what is tested is that nothing is lost, not its patience.

How long a command may take: on a quiet machine the slowest one of fio's takes 0.4 s, as two processors in
software share 256 commands in flight and compute the checksums; a busy machine makes that several times as
much. An interrupt that is lost costs 30 s, the driver's time-out, and a line in the kernel's log.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from outboard import Server
from outboard.devices.nvme import Nvme, Tuning
from outboard.devices.nvme.datapath.records import PL_SPIN
from outboard.native.jit import available
from outboard.storage import open_storage
from outboard.testing.guest import Guest
from tests.guest.linux import MIB, complaints, deep, disk_of, interrupts, under

pytestmark = pytest.mark.guest

PATIENCE = 4.0
"""Seconds a command may take: one, and what a machine in software on a busy one adds."""

RESETTING = 12.0
"""Seconds, where each reset takes up to a second and a command may be caught by several."""

LONG_SPIN = 2_000_000
"""Nanoseconds a poller looks on: longer than a processor in software takes for its next commands."""

RAM, FILE = 1, 2
"""Namespaces."""

MORE_MEMORY = {"qom-type": "memory-backend-memfd", "id": "more", "size": 128 * MIB, "share": True}

IO_QUEUES = {f"nvme0q{number}" for number in range(1, 5)}


def times(short: int, long: int) -> pytest.MarkDecorator:
    """How often something is done: a few times, and many in `make soak`."""
    return pytest.mark.parametrize("turns", [short, pytest.param(long, marks=pytest.mark.soak)])


class Listening(Nvme):
    """A controller that counts the doorbells that come by message, those of I/O queues."""

    messages = 0

    def ring(self, index: int, value: int) -> None:
        self.messages += index > 1
        super().ring(index, value)


@dataclass(frozen=True)
class Rig:
    """A machine, and the controller in it."""

    guest: Guest
    controller: Listening

    def counted(self, name: str) -> int:
        """One of the data plane's counters."""
        return self.controller.statistics[name]


@pytest.fixture(scope="module", params=[("shadow", 1), ("mmap", 2)], ids=lambda param: param[0])
def rig(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A machine for each kind of doorbells, with more room for memory than it has."""
    if not available():
        pytest.skip("Numba is not installed: there are no pollers")
    doorbells, pollers = request.param
    folder = tmp_path_factory.mktemp(doorbells)
    (image := folder / "disk.img").touch()
    controller = Listening(
        open_storage("ram:128M"),
        open_storage(f"{image},size=128M"),
        doorbells=doorbells,
        tuning=Tuning(pollers=pollers),
    )
    with (
        Server(controller, folder / "nvme.sock").start(),
        Guest(
            [folder / "nvme.sock"],
            tools=["fio"],
            append="nvme.write_queues=2 nvme_core.max_retries=255 memhp_default_state=offline",
            extra=["-m", "slots=4,maxmem=2G"],
            logs=folder,
        ) as guest,
    ):
        yield Rig(guest, controller)


@pytest.mark.point("N03")
@pytest.mark.parametrize("nsid", [RAM, FILE], ids=["ram", "file"])
@times(1, 100)
def test_four_queues_64_deep_give_back_what_was_written(rig: Rig, nsid: int, turns: int) -> None:
    guest, disk = rig.guest, disk_of(rig.guest, nsid)
    before, told, taken = interrupts(guest, "nvme0q"), rig.counted("interrupts"), rig.counted("commands")
    diverted = rig.counted("diverted")
    for _ in range(turns):
        with under(guest, deep(disk)) as load:
            pass
        assert load.longest < PATIENCE
    after = interrupts(guest, "nvme0q")
    assert all(after[queue] > before[queue] for queue in IO_QUEUES)
    commands = rig.counted("commands") - taken
    assert commands >= load.commands
    assert rig.counted("diverted") == diverted
    assert rig.counted("interrupts") - told < 0.8 * commands
    assert complaints(guest) == []


def test_doorbells_are_silent_while_a_poller_looks(rig: Rig) -> None:
    _spin(rig, LONG_SPIN)
    command = deep(disk_of(rig.guest), rw="randread", bsrange="4k-4k", verify=0, size="16M")
    before, taken = rig.controller.messages, rig.counted("commands")
    rig.guest.run(command, timeout=120)
    _spin(rig, Tuning.spin * 1000)
    messages, commands = rig.controller.messages - before, rig.counted("commands") - taken
    assert commands >= 4 * 16 * MIB / 4096
    if rig.controller.plane.polled:
        assert messages == 0
    else:
        assert messages < commands / 4


@times(5, 100)
def test_nothing_is_lost_when_the_controller_is_reset_under_load(rig: Rig, turns: int) -> None:
    guest = rig.guest
    with under(guest, deep(disk_of(guest))) as load:
        for turn in range(turns):
            _wait_for_commands(rig, 200)
            if turn % 5 == 4:
                guest.run("echo 1 >/sys/class/nvme/nvme0/device/reset")
            else:
                guest.run("echo 1 >/sys/class/nvme/nvme0/reset_controller")
    assert load.longest < RESETTING
    assert complaints(guest) == []


@times(2, 100)
def test_nothing_is_lost_when_the_number_of_queues_changes(rig: Rig, turns: int) -> None:
    guest = rig.guest
    for turn in range(turns):
        # Not under load: Linux itself fails what it has for a queue that is not made anew.
        writing = turn % 2 + 1
        guest.run(f"echo {writing} >/sys/module/nvme/parameters/write_queues")
        guest.run("echo 1 >/sys/class/nvme/nvme0/reset_controller")
        assert {*interrupts(guest, "nvme0q")} - {"nvme0q0"} == {
            f"nvme0q{number}" for number in range(1, writing + 3)
        }
        with under(guest, deep(disk_of(guest, FILE))) as load:
            pass
        assert load.longest < RESETTING
    assert complaints(guest) == []


@times(4, 100)
def test_nothing_is_lost_when_memory_comes_and_goes_under_load(rig: Rig, turns: int) -> None:
    guest = rig.guest
    maps = len(rig.controller.dma.maps)
    with under(guest, deep(disk_of(guest))) as load:
        for _ in range(turns):
            guest.qmp(
                "object-add", **{"qom-type": "memory-backend-memfd"}, id="more", size=128 * MIB, share=True
            )
            guest.qmp("device_add", driver="pc-dimm", id="module", memdev="more")
            assert len(rig.controller.dma.maps) > maps
            _wait_for_commands(rig, 100)
            guest.qmp("device_del", id="module")
            guest.wait_event("DEVICE_DELETED", 60, device="module")
            guest.qmp("object-del", id="more")
            assert len(rig.controller.dma.maps) == maps
            _wait_for_commands(rig, 100)
    assert load.longest < PATIENCE
    assert complaints(guest) == []


def _spin(rig: Rig, nanoseconds: int) -> None:
    """Have the pollers look on for so long; the other tests want them to fall asleep often."""
    plane = rig.controller.plane
    with plane.paused():
        for workspace in plane.workspaces:
            workspace.record[PL_SPIN] = nanoseconds


def _wait_for_commands(rig: Rig, count: int, timeout: float = 60) -> None:
    """Wait until the guest has had so many more commands carried out."""
    deadline, wanted = time.monotonic() + timeout, rig.counted("commands") + count
    while rig.counted("commands") < wanted:
        assert time.monotonic() < deadline, f"{count} commands were not carried out in {timeout:g} s"
        time.sleep(0.01)
