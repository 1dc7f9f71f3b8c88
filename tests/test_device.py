import gc
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from outboard import Bar, Device, DeviceContract, IrqAction, IrqData, Mapping, Msi, MsiX, PciExpress
from outboard.errors import DefinitionError, DmaForbidden, DmaUnmapped, OutboardError, RequestRefused
from outboard.loop import Loop

CONFIG, COMMAND = 7, 4


class Disk(Device):
    vendor_id, device_id = 0x1234, 0x0001
    bar = Bar(0, size=0x1000)
    capabilities = bar.reg(0, size=8, access="ro", reset=0x11)
    tails = bar.array(0x100, count=2, reset=3)
    link = PciExpress()
    msix = MsiX(vectors=8)
    enable = capabilities.bit(0)

    def __init__(self, **replacements: Any) -> None:
        super().__init__(**replacements)
        self.seen: list[Any] = []

    def on_reset(self) -> None:
        self.seen.append(("reset", self.capabilities, self.config.load(COMMAND, 2)))

    def on_connect(self) -> None:
        self.seen.append("connect")

    def on_disconnect(self) -> None:
        self.seen.append(("disconnect", len(self.dma.maps)))

    def on_bus_master(self, enabled: bool) -> None:
        self.seen.append(("bus master", enabled))


@pytest.fixture
def memory() -> Iterator[Callable[[], Mapping]]:
    """Makes mappings of one page of shared memory at 0x10000."""

    def make() -> Mapping:
        fd = os.memfd_create("guest")
        os.ftruncate(fd, 4096)
        return Mapping(address=0x10000, size=4096, fd=fd)

    gc.collect()  # what other tests have left is not to go meanwhile
    before = len(os.listdir("/proc/self/fd"))
    yield make
    assert len(os.listdir("/proc/self/fd")) == before


def master(device: Device, on: bool = True) -> None:
    device.region_write(CONFIG, COMMAND, bytes([0x06 if on else 0, 0]))


def test_a_device_meets_the_contract() -> None:
    device: DeviceContract = Disk()
    assert len(device.regions) == 9
    assert len(device.interrupts) == 5


@pytest.mark.point("P39", "P40")
def test_regions_that_are_not_declared_have_no_size_and_no_flags() -> None:
    device = Disk()
    assert [(region.size, region.flags) for region in device.regions] == [
        (0x1000, 3),
        (0x2000, 3),  # MSI-X made it
        *[(0, 0)] * 5,
        (4096, 3),
        (0, 0),
    ]


@pytest.mark.point("P78")
@pytest.mark.parametrize("region", [2, 6, 8, 9, -1, 2**32 - 1])
def test_an_access_to_a_region_that_is_not_there_is_refused(region: int) -> None:
    device = Disk()
    with pytest.raises(RequestRefused, match=f"region {region} does not exist"):
        device.region_read(region, 0, 4)
    with pytest.raises(RequestRefused, match=f"region {region} does not exist"):
        device.region_write(region, 0, b"abcd")


@pytest.mark.point("P109", "P110")
def test_reset_clears_configuration_space_then_tells_the_device(memory: Callable[[], Mapping]) -> None:
    device = Disk()
    device.dma_map(memory())
    for offset in range(0x10, 0x18, 4):
        device.region_write(CONFIG, offset, (0xFEB0_0000).to_bytes(4, "little"))
    master(device)
    device.tails[1] = 9
    device.reset()
    assert device.region_read(CONFIG, 0x10, 8) == bytes(8)
    assert list(device.tails) == [3, 3]
    assert device.seen == [("bus master", True), ("bus master", False), ("reset", 0x11, 0)]
    assert len(device.dma.maps) == 1
    for _ in range(100):
        device.reset()
    device.dma_unmap(0x10000, 4096)


@pytest.mark.point("P106")
def test_dma_needs_bus_mastering(memory: Callable[[], Mapping]) -> None:
    device = Disk()
    device.dma_map(memory())
    with pytest.raises(DmaForbidden):
        device.dma.read(0x10000, 4)
    master(device)
    device.dma.write(0x10000, b"data")
    assert device.dma.read(0x10000, 4) == b"data"
    master(device, False)
    with pytest.raises(DmaForbidden):
        device.dma.write(0x10000, b"data")
    device.dma_unmap(0x10000, 4096)


@pytest.mark.point("P106")
def test_a_device_may_do_without_bus_mastering(memory: Callable[[], Mapping]) -> None:
    device = Disk(dma_requires_bus_master=False)
    device.dma_map(memory())
    assert device.dma.read(0x10000, 4) == bytes(4)
    master(device)
    master(device, False)
    assert device.dma.read(0x10000, 4) == bytes(4)
    assert device.seen == [("bus master", True), ("bus master", False)]
    device.dma_unmap(0x10000, 4096)
    with pytest.raises(DmaUnmapped):
        device.dma.read(0x10000, 4)


@pytest.mark.point("P117", "P118")
def test_a_client_that_goes_leaves_the_registers_and_takes_its_eventfds(
    memory: Callable[[], Mapping],
) -> None:
    device = Disk()
    for _ in range(3):
        device.connected(None)
        device.dma_map(memory())
        eventfd = os.eventfd(0)
        device.set_irqs(2, IrqAction.TRIGGER, IrqData.EVENTFD, 0, 1, fds=[eventfd])
        device.tails[0] += 1
        device.disconnected()
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(eventfd)
        device.dma_unmap(0x10000, 4096)
    assert device.seen == ["connect", ("disconnect", 1)] * 3
    assert device.tails[0] == 6


def test_eventfds_go_even_if_the_device_fails_when_its_client_goes() -> None:
    class Failing(Disk):
        def on_disconnect(self) -> None:
            raise ZeroDivisionError

    device = Failing()
    eventfd = os.eventfd(0)
    device.set_irqs(2, IrqAction.TRIGGER, IrqData.EVENTFD, 0, 1, fds=[eventfd])
    with pytest.raises(ZeroDivisionError):
        device.disconnected()
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(eventfd)


def test_work_can_be_put_off() -> None:
    device, done = Disk(), []
    with pytest.raises(OutboardError, match="lives in no loop yet"):
        device.call_soon(lambda: None)
    loop = Loop()
    device.attach(loop)
    device.call_soon(lambda: done.append("soon"))
    device.after(0, lambda: done.append("later"))
    device.after(0, lambda: done.append("never")).cancel()
    while len(done) < 2:
        loop.run_once(timeout=1)
    assert sorted(done) == ["later", "soon"]
    loop.close()


def test_an_instance_may_replace_what_its_class_declares() -> None:
    device = Disk(
        msix=MsiX(vectors=64),
        capabilities=0xFF,
        tails=8,
        bar=Bar(0, size=0x10000),
        device_id=7,
        express=False,
    )
    assert device.interrupts[2] == 64
    assert device.regions[0].size == 0x10000
    assert device.config.size == 256
    assert device.region_read(CONFIG, 0, 4) == b"\x34\x12\x07\0"
    assert device.region_read(0, 0, 8) == b"\xff" + bytes(7)
    assert list(device.tails) == [8, 8]
    device.capabilities = 0
    device.reset()
    assert device.capabilities == 0xFF
    assert Disk().interrupts[2] == 8


def test_an_instance_may_leave_a_field_out() -> None:
    device = Disk(msix=None)
    assert device.interrupts[2] == 0
    assert device.msix is None
    assert device.regions[1].size == 0


def test_a_subclass_may_leave_a_field_out() -> None:
    class NoMsix(Disk):
        msix = None  # type: ignore[assignment]

    assert NoMsix().interrupts[2] == 0


@pytest.mark.parametrize(
    ("replacement", "sentence"),
    [
        ({"cap": 1}, r"Disk\(cap=\.\.\.\): there is no such field; there are bar, capabilities"),
        ({"capabilities": 1 << 64}, "a reset value of 8 bytes"),
        ({"capabilities": "x"}, "a reset value of 8 bytes"),
        ({"enable": True}, "the reset value of the register capabilities"),
        ({"msix": Msi()}, "replaced by another MsiX"),
        ({"msix": 3}, "replaced by another MsiX"),
        ({"bar": Bar(0, size=0x80)}, r"tails ends at 0x104, BAR0 at 0x80"),
        ({"vendor_id": -1}, "Disk.vendor_id is -1"),
    ],
)
def test_a_replacement_that_cannot_be_is_refused(replacement: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DefinitionError, match=sentence):
        Disk(**replacement)


def test_two_devices_of_a_class_share_nothing() -> None:
    one, other = Disk(), Disk()
    one.tails[0] = 1
    one.msix[0].trigger()
    master(one)
    assert other.tails[0] == 3
    assert other.msix[0].fired == 0
    assert other.config.load(COMMAND, 2) == 0


def test_a_plain_register_is_read_in_about_a_microsecond() -> None:
    device = Disk()
    best = min(_time(lambda: device.region_read(0, 0, 8)) for _ in range(20))
    assert best < 5e-6  # 0.3 us on an idle core; the bound only catches losing the short way


def _time(call: Callable[[], object], times: int = 1000) -> float:
    start = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - start) / times
