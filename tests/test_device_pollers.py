"""`Device.start_poller`: a loop beside the device, for as long as a client is there."""

import os
import threading

import pytest

from outboard import Bar, Device, Msi
from outboard.native.jit import available, entry
from outboard.native.memory import address_of, load64, load_acquire32, store64
from outboard.native.poller import arm, notify, sleep, stopping
from outboard.native.translation import READ, translate
from outboard.native.words import Block, offsets
from outboard.pci.doorbells import WORD
from outboard.server.profiles import ProfileName
from outboard.testing import TestClient

TABLE, ADDRESS, SEEN, RUNS = offsets(4)


@entry
def look(control: int, words: int) -> int:
    """Say once a run what is at an address of the guest."""
    store64(words + RUNS, load64(words + RUNS) + 1)
    at = translate(load64(words + TABLE), load64(words + ADDRESS), 8, READ)
    store64(words + SEEN, load64(at) if at != 0 else -1)
    notify(control)
    while not stopping(control):
        arm(control)
        sleep(control, -1, -1)
    return 0


@entry
def follow(control: int, words: int) -> int:
    """Take over what is stored at an address, and say so; asleep while it stays."""
    while not stopping(control):
        value = load_acquire32(load64(words + ADDRESS))
        if value != load64(words + SEEN):
            store64(words + SEEN, value)
            notify(control)
        else:
            arm(control)
            if load_acquire32(load64(words + ADDRESS)) == value:
                sleep(control, -1, -1)
    return 0


class Watcher(Device):
    bar = Bar(0, size=0x1000)
    msi = Msi(vectors=1)

    def __init__(self) -> None:
        super().__init__()
        self.words = Block(64)
        self.words[TABLE] = self.dma.translation.address

    def on_connect(self) -> None:
        self.poller = self.start_poller(look, self.words.address, on_notice=self.msi[0].trigger)


class Follower(Device):
    bar = Bar(0, size=0x1000)
    bell = bar.doorbell(0x10, count=2, shadow=True)
    msi = Msi(vectors=1)

    def on_connect(self) -> None:
        self.words = Block(64)
        self.words[ADDRESS] = address_of(self.bell.memory) + WORD
        self.poller = self.start_poller(follow, self.words.address, on_notice=self.msi[0].trigger)

    @bell.on_ring
    def wake(self, index: int, value: int) -> None:
        self.poller.wake()


@pytest.fixture(params=["plain", "native"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Watcher:
    if request.param == "plain":
        monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    elif not available():
        if os.environ.get("CI"):
            pytest.fail("Numba is not installed: pip install 'outboard[fast]'")
        pytest.skip("Numba is not installed: pip install 'outboard[fast]'")
    look.best()
    follow.best()  # compiling takes longer than a client waits
    return Watcher()


def test_a_notice_of_the_loop_arrives_in_the_devices_thread(device: Watcher) -> None:
    with TestClient(device) as client:
        heard = client.enable_msi(1)[0]
        with device.poller.paused():
            pass
        assert heard.wait() >= 1


def test_the_loop_sees_memory_only_while_it_is_mapped(device: Watcher) -> None:
    with TestClient(device) as client:
        client.bus_master(True)
        ram = client.memory(4096)
        ram.write(0, (42).to_bytes(8, "little"))
        interrupt = client.enable_msi(1)[0]

        def seen() -> int:
            interrupt.take()
            runs = device.words[RUNS]
            with device.poller.paused():
                device.words[ADDRESS] = ram.address
            while device.words[RUNS] == runs or not interrupt.take():
                client.step(1.0)
            return device.words[SEEN]

        assert seen() == 42
        ram.unmap()
        assert seen() == -1


def test_it_ends_with_the_client_and_begins_with_the_next(device: Watcher) -> None:
    threads = threading.active_count()
    for _ in range(2):
        with TestClient(device):
            assert device.poller.running
        assert threading.active_count() == threads
        assert device.dma.users == []


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("profile", ["spec", "libvfio-user"])
def test_a_loop_reads_a_doorbell_where_the_client_or_a_message_puts_it(profile: ProfileName) -> None:
    follower = Follower()
    with TestClient(follower, profile=profile) as client:
        interrupt = client.enable_msi(1)[0]
        bell = client.doorbells(0).at(0x14)
        assert bell.by_descriptor is (profile == "libvfio-user")
        for value in (1, 2, 0xFFFF_FFFF):
            bell.ring(value)
            assert interrupt.wait() == 1
            assert follower.words[SEEN] == value
