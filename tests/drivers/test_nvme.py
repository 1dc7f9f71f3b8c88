"""The user-space NVMe driver against the controller."""

import os
from collections.abc import Iterator

import pytest

from outboard.devices.nvme import Namespace, Nvme
from outboard.drivers.nvme import CC, CNS_CONTROLLER, CSTS, LARGEST_TRANSFER, NvmeDriver
from outboard.errors import RemoteError
from outboard.storage import open_storage
from outboard.testing import TestClient

Rig = tuple[TestClient, NvmeDriver]


@pytest.fixture
def rig() -> Iterator[Rig]:
    controller = Nvme(
        open_storage("ram:8M"), Namespace(open_storage("ram:8M"), block_size=4096), serial="RIG"
    )
    with TestClient(controller) as client, NvmeDriver(client) as driver:
        yield client, driver


def test_it_identifies_controller_and_namespaces(rig: Rig) -> None:
    _, driver = rig
    assert driver.identify(CNS_CONTROLLER)[4:24] == b"RIG".ljust(20)
    assert driver.namespaces() == [1, 2]
    assert [driver.block_size(nsid) for nsid in (1, 2)] == [512, 4096]


@pytest.mark.parametrize("size", [4096, 8192, 12288, LARGEST_TRANSFER])
@pytest.mark.parametrize("nsid", [1, 2])
def test_what_is_written_is_read(rig: Rig, nsid: int, size: int) -> None:
    _, driver = rig
    data = os.urandom(size)
    driver.write(nsid, 4096, data)
    driver.flush(nsid)
    assert driver.read(nsid, 4096, size) == data
    assert driver.read(nsid, 4096 + size, 4096) == bytes(4096)


def test_its_queues_go_round_many_times(rig: Rig) -> None:
    _, driver = rig
    for block in range(100):
        driver.write(1, block * 512, bytes([block]) * 512)
    assert [driver.read(1, block * 512, 512)[0] for block in range(100)] == list(range(100))


def test_a_failed_command_raises_with_its_name_and_the_next_one_works(rig: Rig) -> None:
    _, driver = rig
    with pytest.raises(RemoteError, match="Read failed with status type 0, code 0x80"):
        driver.read(1, 8 << 20, 512)
    assert driver.read(1, 0, 512) == bytes(512)


@pytest.mark.parametrize(("offset", "size"), [(100, 512), (0, 100), (0, 0), (0, LARGEST_TRANSFER + 512)])
def test_a_transfer_that_is_not_whole_blocks_is_refused(rig: Rig, offset: int, size: int) -> None:
    _, driver = rig
    with pytest.raises(ValueError, match="whole blocks"):
        driver.read(1, offset, size)


def test_a_controller_left_enabled_is_taken_over() -> None:
    with TestClient(Nvme(open_storage("ram:1M"))) as client:
        NvmeDriver(client)
        with NvmeDriver(client) as driver:
            assert driver.namespaces() == [1]
        assert client.bar(0).read32(CC) & 1 == 0
        assert client.bar(0).read32(CSTS) & 1 == 0


def test_it_leaves_the_function_as_it_found_it() -> None:
    with TestClient(Nvme(open_storage("ram:1M"))) as client:
        before = client.config.read(0, client.config.size)
        with NvmeDriver(client):
            pass
        assert client.config.read(0, client.config.size) == before
