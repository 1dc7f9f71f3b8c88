"""What a namespace can be: its format, its metadata, its protection."""

import struct

import pytest

from outboard.devices.nvme import Namespace, Nvme, Protection, Qos
from outboard.devices.nvme.layouts import IDENTIFY_NAMESPACE
from outboard.devices.nvme.saved_state import restore, save
from outboard.devices.nvme.spec import PAGE, Cns, IoOpcode
from outboard.devices.nvme.status import Status
from outboard.errors import DefinitionError, StateError
from outboard.storage import RamStorage
from tests.devices.nvme.conftest import MakeBench
from tests.devices.nvme.driver import Driver, ended

SIZE = 1 << 20


def identify(driver: Driver) -> dict[str, int | bytes]:
    assert ended(driver.identify(Cns.NAMESPACE, 1)) == Status.SUCCESS
    return IDENTIFY_NAMESPACE.decode(driver.ram.read(driver.data, PAGE))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            {"block_size": 1000},
            r"size of 1000 with 0 bytes of metadata is not offered: use one of 512\+0, 4096\+0, 512\+8",
        ),
        ({"metadata": 16, "protection": Protection()}, r"16 bytes of metadata and a guard of 16 bits is not"),
        (
            {"metadata": 8, "protection": Protection(guard=64)},
            r"8 bytes of metadata and a guard of 64 bits is not",
        ),
        ({"protection": Protection()}, r"has 8 bytes, and blocks of 512\+0 have 0 bytes of metadata"),
    ],
)
def test_a_format_that_is_not_offered_is_refused(arguments: dict[str, object], sentence: str) -> None:
    with pytest.raises(DefinitionError, match=sentence):
        Namespace(RamStorage(SIZE), **arguments)  # type: ignore[arg-type]


def test_a_storage_that_holds_no_block_with_its_metadata_is_refused() -> None:
    with pytest.raises(DefinitionError, match="holds no block of 4096"):
        Namespace(RamStorage(4096), 4096, 8)


@pytest.mark.parametrize(("type", "guard"), [(0, 16), (4, 16), (1, 32)])
def test_protection_of_another_kind_is_refused(type: int, guard: int) -> None:
    with pytest.raises(DefinitionError, match=r"type 1, 2 or 3|16 or 64"):
        Protection(type, guard=guard)


@pytest.mark.point("I01", "N13")
def test_a_host_reads_of_metadata_and_protection(make_bench: MakeBench) -> None:
    protection = Protection(3, first=True, guard=64)
    space = Namespace(RamStorage(SIZE), 4096, 64, extended=True, protection=protection)
    found = identify(make_bench(space).driver.enable())
    assert (found["flbas"], found["dps"]) == (7 | 1 << 4, 3 | 1 << 3)
    assert found["nsze"] == SIZE // 4160
    assert found["nvmcap"] == SIZE // 4160 * 4160


@pytest.mark.point("N02", "N13")
def test_another_format_is_what_hosts_see_and_planes_serve_from_then_on(make_bench: MakeBench) -> None:
    space = Namespace(RamStorage(SIZE))
    bench = make_bench(space)
    driver = bench.driver.enable()
    pair = driver.create_queue_pair(1)
    space.reformat(3, protection=Protection.of(0b0_010))
    bench.device.subsystem.reconfigure(1)
    assert space.protection == Protection(2)
    assert (identify(driver)["flbas"], identify(driver)["dps"]) == (3, 2)
    write = driver.rw(IoOpcode.WRITE, 9, 1, driver.data, 4096, cdw12=1 << 29, cdw14=77, cdw15=5)
    assert ended(pair.execute(write)) == Status.SUCCESS
    stored = space.inverted(space.storage.read(space.metadata_offset + 9 * 8, 8))
    assert struct.unpack(">2xHI", stored) == (5, 77)


def test_a_format_that_cannot_be_changes_nothing() -> None:
    space = Namespace(RamStorage(4100), 512)
    for number, protection in ((8, None), (-1, None), (0, Protection()), (3, None)):
        with pytest.raises(DefinitionError):
            space.reformat(number, protection=protection)
    assert (space.format, space.block_size, space.metadata, space.blocks) == (0, 512, 0, 8)
    assert Protection.of(0) is None


@pytest.mark.parametrize(
    "other",
    [
        Namespace(RamStorage(SIZE), metadata=8),
        Namespace(RamStorage(SIZE), metadata=8, protection=Protection(2)),
        Namespace(RamStorage(SIZE), metadata=8, extended=True, protection=Protection()),
    ],
    ids=["none", "type 2", "extended"],
)
def test_a_controller_with_other_protection_does_not_go_on_from_a_saved_state(other: Namespace) -> None:
    one = Nvme(Namespace(RamStorage(SIZE), metadata=8, protection=Protection()))
    with pytest.raises(StateError, match="the same namespaces"):
        restore(Nvme(other).state, save(one.state))


@pytest.mark.parametrize(
    "wrong", [{"iops": -1}, {"iops": 10_000_001}, {"read_bytes_per_second": 100_000_000_001}]
)
def test_a_limit_that_cannot_be_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(DefinitionError, match=next(iter(wrong))):
        Qos(**wrong)
