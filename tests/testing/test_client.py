"""`TestClient`: the same bytes without a socket, and a block that cannot be left with a loose end."""

import math
import os
import time

import pytest

from outboard import Bar, Device, Msi
from outboard.client import GuestRam
from outboard.errors import DmaError, DmaInHandler, RemoteError
from outboard.testing import TestClient
from tests import raw
from tests.server.gadgets import Gadget, Handmade


class Edu(Device):
    vendor_id, device_id, class_code = 0x1234, 0x11E8, 0x00FF00

    mmio = Bar(0, size=0x1000)
    msi = Msi(vectors=1)

    factorial = mmio.reg(0x08)
    pending = mmio.reg(0x24, access="ro")
    acknowledge = mmio.reg(0x64, access="wo")

    @factorial.on_write
    def compute(self, n: int) -> None:
        self.factorial = math.factorial(n % 13)
        self.pending |= 1
        self.msi[0].trigger()

    @acknowledge.on_write
    def lower_interrupt(self, bits: int) -> None:
        self.pending &= ~bits


class Lively(Device):
    """Does things later, at the wish of its one register's writer."""

    mmio = Bar(0, size=0x1000)
    command = mmio.reg(0)
    address = mmio.reg(8, size=8)

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.kept: object = None

    @command.on_write
    def act(self, what: int) -> None:
        match what:
            case 1:
                self.after(0.01, lambda: self.seen.append("timer"))
            case 2:
                self.call_soon(lambda: self.call_soon(lambda: self.seen.append("second call")))
            case 3:
                self.call_soon(self.poll)
            case 4:
                raise RuntimeError("in the handler")
            case 5:
                self.call_soon(self.fail)
            case 6:
                self.after(0.01, self.fail)
            case 7:
                self.kept = os.open("/dev/null", os.O_RDONLY)
            case 8:
                self.kept = self.dma.view(self.address, 16)
            case 9:
                self.call_soon(self.copy)
            case 10:
                self.copy()
            case 11:
                self.call_soon(lambda: self.dma.write(self.address + (1 << 40), b"nowhere"))

    def fail(self) -> None:
        raise KeyError("missing")

    def poll(self) -> None:
        self.seen.append("poll")
        self.call_soon(self.poll)

    def copy(self) -> None:
        data = self.dma.read(self.address, 8)
        self.dma.write(self.address + 100_000, data[::-1])
        self.seen.append("copied")


@pytest.fixture
def lively() -> Lively:
    return Lively()


def test_factorial_raises_an_interrupt_until_acknowledged() -> None:
    with TestClient(device := Edu()) as client:
        mmio = client.bar(0)
        mmio.write32(0x08, 5)
        assert mmio.read32(0x08) == 120
        assert device.msi[0].fired == 1
        mmio.write32(0x64, 1)
        assert mmio.read32(0x24) == 0


def test_interrupts_arrive_as_they_do_with_a_socket(lively: Lively) -> None:
    with TestClient(device := Edu()) as client:
        [interrupt] = client.enable_msi()
        client.bar(0).write32(0x08, 3)
        assert interrupt.wait() == 1
        assert device.msi.enabled


def test_what_a_device_puts_off_has_run_when_the_call_returns(lively: Lively) -> None:
    with TestClient(lively) as client:
        client.bar(0).write32(0, 2)
        assert lively.seen == ["second call"]


def test_timers_run_in_step(lively: Lively) -> None:
    with TestClient(lively) as client:
        client.bar(0).write32(0, 1)
        assert lively.seen == []
        started = time.monotonic()
        client.step(5)
        assert lively.seen == ["timer"]
        assert time.monotonic() - started < 1
        client.step()


def test_a_device_that_polls_without_end_lets_its_client_go_on(lively: Lively) -> None:
    with TestClient(lively) as client:
        client.bar(0).write32(0, 3)
        assert lively.seen.count("poll") > 10
        assert client.bar(0).read32(8) == 0


@pytest.mark.point("P82")
@pytest.mark.parametrize(("what", "error"), [(4, RuntimeError), (5, KeyError)])
def test_a_devices_exception_is_raised_in_the_test_and_the_client_goes_on(
    lively: Lively, what: int, error: type[Exception]
) -> None:
    with TestClient(lively) as client:
        with pytest.raises(error) as caught:
            client.bar(0).write32(0, what)
        assert "raised by the device" in caught.value.__notes__[0]
        client.bar(0).write32(0, 2)
        assert lively.seen == ["second call"]


def test_an_exception_of_a_timer_is_raised_in_step(lively: Lively) -> None:
    with TestClient(lively) as client:
        client.bar(0).write32(0, 6)
        with pytest.raises(KeyError, match="missing"):
            client.step(5)


def test_an_exception_on_disconnect_fails_the_block() -> None:
    class Clumsy(Lively):
        def on_disconnect(self) -> None:
            raise RuntimeError("dropped it")

    with pytest.raises(RuntimeError, match="dropped it"), TestClient(Clumsy()):
        pass


def test_an_exception_on_connect_is_raised_where_the_client_is_made() -> None:
    class Shy(Lively):
        def on_connect(self) -> None:
            raise RuntimeError("not today")

    before = raw.open_descriptors()
    with pytest.raises(RuntimeError, match="not today"):
        TestClient(device := Shy())
    del device
    assert raw.open_descriptors() == before


def test_a_leaked_descriptor_fails_the_block_and_is_named(lively: Lively) -> None:
    with pytest.raises(AssertionError, match="/dev/null"), TestClient(lively) as client:
        client.bar(0).write32(0, 7)
    assert isinstance(lively.kept, int)
    os.close(lively.kept)


def look_at_memory(client: TestClient) -> GuestRam:
    """Lets the device view memory of its client."""
    ram = client.memory(4096)
    client.bus_master()
    client.bar(0).write64(8, ram.address)
    client.bar(0).write32(0, 8)
    return ram


def test_a_live_view_fails_the_block(lively: Lively) -> None:
    with pytest.raises(AssertionError, match="1 views of guest memory"), TestClient(lively) as client:
        look_at_memory(client)


@pytest.mark.point("P99")
def test_a_view_dies_with_its_map(lively: Lively) -> None:
    with TestClient(lively) as client:
        ram = look_at_memory(client)
        assert isinstance(lively.kept, memoryview)
        assert lively.kept[0] == 0
        ram.unmap()
        with pytest.raises(ValueError, match="released"):
            lively.kept[0]


def test_an_access_nobody_handles_fails_the_block_and_is_named(lively: Lively) -> None:
    with pytest.raises(AssertionError, match=r"offset=256, size=4"), TestClient(lively) as client:
        assert client.bar(0).read32(0x100) == 0


def test_strictness_can_be_switched_off(lively: Lively) -> None:
    with TestClient(lively, strict=False) as client:
        client.bar(0).read32(0x100)
        client.bar(0).write32(0, 7)
    assert isinstance(lively.kept, int)
    os.close(lively.kept)


def fail_after_a_stray_access(client: TestClient) -> None:
    client.bar(0).read32(0x100)
    raise LookupError("the test's own")


def test_a_failing_test_is_not_hidden_by_loose_ends(lively: Lively) -> None:
    with pytest.raises(LookupError, match="the test's own"), TestClient(lively) as client:
        fail_after_a_stray_access(client)


@pytest.mark.point("P91", "P102")
def test_memory_that_is_not_shared_is_reached_by_messages(lively: Lively) -> None:
    with TestClient(lively) as client:
        ram = client.memory(200_000, shared=False)
        client.bus_master()
        ram.write(0, b"12345678")
        client.bar(0).write64(8, ram.address)
        client.bar(0).write32(0, 9)
        assert lively.seen == ["copied"]
        assert ram.read(100_000, 8) == b"87654321"


@pytest.mark.point("P104")
def test_messages_inside_a_handler_are_refused_here_too(lively: Lively) -> None:
    with TestClient(lively) as client:
        ram = client.memory(200_000, shared=False)
        client.bus_master()
        client.bar(0).write64(8, ram.address)
        with pytest.raises(RemoteError) as caught:
            client.bar(0).write32(0, 10)
        assert caught.value.errno == DmaInHandler.errno


def test_dma_to_nowhere_put_off_is_raised_in_the_test(lively: Lively) -> None:
    with TestClient(lively) as client:
        client.bus_master()
        with pytest.raises(DmaError, match="nothing is mapped"):
            client.bar(0).write32(0, 11)


@pytest.mark.point("P117", "P118")
def test_one_device_serves_one_client_after_the_other() -> None:
    gadget = Gadget()
    for number in range(5):
        with TestClient(gadget) as client:
            assert client.bar(0).read32(0) == (0x1234_5678 if number == 0 else number - 1)
            client.bar(0).write32(0, number)
            client.memory(4096)
            client.enable_msix()
        assert gadget.dma.maps == ()
    assert gadget.log.count("connected") == 5


def test_a_device_of_six_methods_is_tested_too() -> None:
    with TestClient(device := Handmade()) as client:
        client.bar(0).write32(8, 0xCAFE)
        assert client.bar(0).read16(8) == 0xCAFE
        assert device.calls[-1] == ("region_read", 0, 8, 2)
        client.reset()
        with pytest.raises(RemoteError):
            client.bar(0).read32(62)
