"""DMA_MAP's access modes: the client says how its descriptor is to be used."""

import errno
import os
import struct

import pytest

from outboard.devices.nvme import Nvme
from outboard.drivers.nvme import NvmeDriver
from outboard.errors import RemoteError
from outboard.storage import open_storage
from outboard.testing import TestClient
from tests import raw
from tests.raw import RawPeer, memory_file, open_descriptors
from tests.server.gadgets import Gadget
from tests.server.test_dma import BASE, PAGE, READ, WRITE, settle, start

MMAP, FILE_IO = 4, 8


@pytest.mark.point("P90", "P92")
@pytest.mark.parametrize("mode", [MMAP, FILE_IO])
def test_a_range_is_reached_as_its_client_says(client: RawPeer, gadget: Gadget, mode: int) -> None:
    fd = memory_file(2 * PAGE, b"from the guest")
    client.ask(raw.dma_map(BASE, PAGE, flags=3 | mode), [fd])
    assert gadget.dma.maps[0].file_io == (mode == FILE_IO)
    start(client, READ, BASE, 14)
    settle(client)
    assert gadget.got == b"from the guest"
    start(client, WRITE, BASE + 1, 3, fill=0x2D)
    settle(client)
    assert os.pread(fd, 6, 0) == b"f--- t"
    client.ask(raw.dma_unmap(BASE, PAGE))
    os.close(fd)


@pytest.mark.point("P92")
def test_an_access_mode_needs_a_descriptor_and_excludes_the_other(client: RawPeer, gadget: Gadget) -> None:
    fd = memory_file(PAGE)
    before = open_descriptors()
    for flags in (3 | MMAP, 3 | FILE_IO, MMAP, FILE_IO, 3 | MMAP | FILE_IO):
        assert client.refused(raw.dma_map(BASE, PAGE, flags=flags)) == errno.EINVAL
    assert client.refused(raw.dma_map(BASE, PAGE, flags=3 | MMAP | FILE_IO), [fd]) == errno.EINVAL
    assert client.refused(raw.dma_map(BASE, 2 * PAGE, flags=3 | FILE_IO), [fd]) == errno.EINVAL
    assert open_descriptors() == before
    assert gadget.dma.maps == ()
    os.close(fd)


def test_file_io_is_no_message_so_a_handler_may_use_it(client: RawPeer, gadget: Gadget) -> None:
    fd = memory_file(PAGE, b"inside")
    client.ask(raw.dma_map(BASE, PAGE, flags=3 | FILE_IO), [fd])
    client.write(raw.CONFIG, 4, b"\x04\x00")
    client.write(0, 0x20, struct.pack("=QI", BASE, 6)[:8])
    client.write(0, 0x28, struct.pack("=I", 6))
    client.write(0, 0x2C, bytes(4))
    assert gadget.got == b"inside"
    os.close(fd)


@pytest.mark.point("P133")
def test_our_client_says_how_its_memory_is_to_be_reached(gadget: Gadget) -> None:
    with TestClient(gadget, strict=False) as client:
        client.memory(PAGE, 0x1000, access="file")
        client.memory(PAGE, 0x3000, access="mmap", writable=False)
        client.memory(PAGE, 0x5000)
        assert [(m.address, m.file_io, m.writable) for m in gadget.dma.maps] == [
            (0x1000, True, True),
            (0x3000, False, False),
            (0x5000, False, True),
        ]
        with pytest.raises(RemoteError):
            client.memory(PAGE, 0x7000, access="file", shared=False)


@pytest.mark.parametrize("options", [{"access": "file"}, {"shared": False}])
@pytest.mark.parametrize("twin_socket", [True, False])
def test_an_nvme_controller_works_with_memory_it_cannot_map(
    options: dict[str, object], twin_socket: bool
) -> None:
    class Unmapped(TestClient):
        def memory(self, size: int, address: int | None = None, **_: object):  # type: ignore[no-untyped-def]
            return super().memory(size, address, **options)  # type: ignore[arg-type]

    with (
        Unmapped(Nvme(open_storage("ram:1M")), twin_socket=twin_socket) as client,
        NvmeDriver(client) as driver,
    ):
        data = os.urandom(3 * PAGE)
        driver.write(1, PAGE, data)
        assert driver.read(1, PAGE, 3 * PAGE) == data
