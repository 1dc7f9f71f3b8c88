"""The PCI function: what a host finds before it touches a register, and what an author may choose."""

import pytest

from outboard.devices.nvme import Namespace, Nvme
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.datapath.tuning import Tuning
from outboard.devices.nvme.spec import IoOpcode
from outboard.devices.nvme.status import Status
from outboard.errors import DefinitionError
from outboard.storage import NullStorage, RamStorage
from outboard.testing import TestClient
from tests.devices.nvme.bench import Bench
from tests.devices.nvme.conftest import MakeBench
from tests.devices.nvme.driver import READY, Driver, Ram, ended
from tests.devices.nvme.test_interrupts import Listener, batch, find_capability

NVME_CLASS = 0x01_08_02


@pytest.mark.point("PCI01")
def test_the_function_is_an_nvme_controller_with_ids_of_its_own(bench: Bench) -> None:
    assert bench.config.read(0, 4) == 0x0001_4F42
    assert bench.config.read(8, 4) >> 8 == NVME_CLASS
    assert bench.config.read(0x2C, 4) == 0x0001_4F42
    assert bench.config.read(0x3D, 1) == 1, "INTA"


@pytest.mark.point("PCI01", "PCI06")
def test_bar0_is_16_kib_of_64_bit_memory(bench: Bench) -> None:
    for half in (0x10, 0x14):
        bench.config.write(half, 4, 0xFFFF_FFFF)
    assert bench.config.read(0x10, 8) == 0xFFFF_FFFF_FFFF_C004
    assert bench.device.regions[0].size == 0x4000
    assert [region.size for region in bench.device.regions[1:7]] == [0] * 6


@pytest.mark.point("B05")
def test_there_is_no_option_rom_for_firmware_to_run(bench: Bench) -> None:
    bench.config.write(0x30, 4, 0xFFFF_FFFF)
    assert bench.config.read(0x30, 4) == 0
    assert bench.device.regions[6].size == 0


@pytest.mark.point("PCI01")
def test_the_capabilities_are_those_drivers_look_for(bench: Bench) -> None:
    for capability in (0x01, 0x10, 0x05, 0x11):
        assert find_capability(bench, capability)
    msix = find_capability(bench, 0x11)
    assert bench.config.read(msix + 2, 2) == 128
    assert (bench.config.read(msix + 4, 4), bench.config.read(msix + 8, 4)) == (0x2000, 0x3000)
    express = find_capability(bench, 0x10)
    assert bench.config.read(express + 4, 4) >> 28 & 1, "FLR"
    assert bench.device.interrupts == (1, 1, 129, 1, 1)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"serial": ""}, "serial '': it has 1 to 20"),
        ({"serial": "x" * 21}, "1 to 20 printable"),
        ({"serial": "tab\t"}, "printable"),
        ({"model": "Ä"}, "ASCII"),
        ({"model": "x" * 41}, "1 to 40"),
        ({"vectors": 2049}, "vectors is 2049: it is 0 to 2048"),
        ({"io_queues": 0}, "io_queues is 0: it is 1 to 511"),
        ({"io_queues": 512}, "io_queues is 512"),
        ({"queue_entries": 1}, "queue_entries is 1: it is 2 to 65536"),
        ({"mdts": 0}, "mdts is 0"),
        ({"colour": 1}, "no such field"),
    ],
)
def test_a_controller_that_cannot_be_is_refused(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(DefinitionError, match=sentence):
        Nvme(NullStorage(1 << 20), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("size", "block_size"), [(1 << 20, 1024), (511, 512), (4095, 4096)])
def test_a_namespace_that_cannot_be_is_refused(size: int, block_size: int) -> None:
    with pytest.raises(DefinitionError):
        Namespace(NullStorage(size), block_size)


@pytest.mark.point("R03")
@pytest.mark.parametrize("entries", [2, 64, 65536])
def test_the_largest_queue_is_the_authors_choice(make_bench: MakeBench, entries: int) -> None:
    bench = make_bench(queue_entries=entries)
    assert bench.bar.read64(0) & 0xFFFF == entries - 1
    pair = bench.driver.enable().create_queue_pair(1, entries=entries)
    assert ended(pair.execute(Command(IoOpcode.FLUSH, nsid=1))) == Status.SUCCESS


def test_a_controller_without_namespaces_starts(make_bench: MakeBench) -> None:
    bench = make_bench(NullStorage(1 << 20))
    bench.device.subsystem.remove(1)
    driver = bench.driver.enable()
    assert ended(driver.identify(2)) == Status.SUCCESS
    assert driver.ram.read(driver.data, 4) == bytes(4)


def test_a_controller_without_msix_has_msi_and_a_line(make_bench: MakeBench) -> None:
    bench = make_bench(vectors=0)
    assert bench.device.interrupts == (1, 1, 0, 1, 1)
    listener = Listener(bench, 0, 1)
    driver = bench.driver.enable()
    pair = driver.create_queue_pair(1, vector=0)
    assert ended(driver.admin.execute(driver.create_cq(pair, vector=1))) == Status.INVALID_QUEUE_ID
    batch(bench, pair)
    assert listener.heard() == 1
    listener.close()


@pytest.mark.point("PCI02")
@pytest.mark.parametrize("shared", [True, False], ids=["shared memory", "by message"])
def test_a_client_drives_it_over_the_protocol(shared: bool) -> None:
    storage = RamStorage(1 << 20)
    with TestClient(Nvme(storage)) as client:
        client.bus_master(True)
        memory = client.memory(1 << 20, shared=shared)
        interrupts = client.enable_msix(2)
        ram = Ram(memory.view, memory.address)
        driver = Driver(client.bar(0), ram, client.step).enable()
        assert driver.status == READY
        pair = driver.create_queue_pair(1, vector=1)
        buffer = ram.allocate(8192, offset=256)
        for opcode in (IoOpcode.WRITE, IoOpcode.COMPARE, IoOpcode.READ):
            ram.write(buffer, b"over the wire...") if opcode == IoOpcode.WRITE else None
            assert ended(pair.execute(driver.rw(opcode, 3, 16, buffer, 8192))) == Status.SUCCESS
        assert interrupts[1].take() == 3
        assert storage.read(3 * 512, 16) == b"over the wire..."
        driver.disable()
    storage.close()


@pytest.mark.point("PCI01", "PCI06", "Q05")
def test_a_controller_may_have_as_many_vectors_and_queues_as_pci_and_the_doorbells_allow(
    make_bench: MakeBench,
) -> None:
    bench = make_bench(vectors=2048, io_queues=511)
    assert bench.device.regions[0].size == 0x1_0000
    msix = find_capability(bench, 0x11)
    assert bench.config.read(msix + 2, 2) == 2047
    assert (bench.config.read(msix + 4, 4), bench.config.read(msix + 8, 4)) == (0x8000, 0x3000)
    listener = Listener(bench, 2, 2048)
    bench.config.write(msix + 2, 2, 0x8000)
    driver = bench.driver.enable()
    pair = driver.create_queue_pair(511, vector=2047)
    assert ended(pair.execute(Command(IoOpcode.FLUSH, nsid=1))) == Status.SUCCESS
    assert listener.heard(2047) == 1
    mask = 0x8000 + 16 * 2047 + 12
    bench.bar.write32(mask, 1)
    pair.execute(Command(IoOpcode.FLUSH, nsid=1))
    assert bench.bar.read64(0x3000 + 2048 // 8 - 8) == 1 << 63
    bench.bar.write32(mask, 0)
    assert listener.heard(2047) == 1
    assert bench.bar.read32(0x2000) == 0, "nothing is where the table of few vectors would be"
    listener.close()


@pytest.mark.point("PCI01")
@pytest.mark.parametrize(("vectors", "size"), [(1, 0x4000), (256, 0x4000), (257, 0x1_0000)])
def test_bar0_grows_only_for_more_vectors_than_a_page_holds(vectors: int, size: int) -> None:
    device = Nvme(NullStorage(1 << 20), vectors=vectors, tuning=Tuning(pollers=0, native=False))
    assert device.regions[0].size == size
    assert device.interrupts[2] == vectors
    device.close()
