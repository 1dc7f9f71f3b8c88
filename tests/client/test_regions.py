"""How a client finds out about regions, maps them, walks capabilities and enables interrupts."""

import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from outboard import Client, Server
from outboard.errors import PeerTimeout, RemoteError, RemoteProtocolError
from tests import raw
from tests.client.conftest import Stage, greet, serve_plainly, wait_for_end
from tests.raw import RawPeer
from tests.server.gadgets import Gadget

RW_MMAP_CAPS = 0xF


@pytest.fixture
def gadget() -> Gadget:
    return Gadget()


@pytest.fixture
def client(gadget: Gadget, folder: Path) -> object:
    with Server(gadget, folder / "gadget").start(), Client(folder / "gadget") as client:
        yield client


def described(index: int, argsz: int, chain: bytes = b"", *, flags: int = RW_MMAP_CAPS) -> bytes:
    return struct.pack("=IIIIQQ", argsz, flags, index, 32 if chain else 0, 0x4000, 0) + chain


def sparse(*areas: tuple[int, int], following: int = 0, count: int | None = None) -> bytes:
    head = struct.pack("=HHIII", 1, 1, following, len(areas) if count is None else count, 0)
    return head + b"".join(struct.pack("=QQ", *area) for area in areas)


def describe(payloads: list[bytes], fds: list[int] | None = None) -> Callable[[RawPeer], None]:
    """A script that answers DEVICE_GET_REGION_INFO with each of `payloads` in turn."""

    def script(peer: RawPeer) -> None:
        greet(peer)
        for payload in payloads:
            peer.send(raw.reply(peer.receive(), payload), fds or ())
        wait_for_end(peer)

    return script


@pytest.mark.point("P130")
def test_a_region_is_asked_about_again_with_the_room_it_needs(play: Stage) -> None:
    fd = raw.memory_file(0x4000)

    def script(peer: RawPeer) -> None:
        greet(peer)
        first = peer.receive()
        assert struct.unpack_from("=I", first.payload)[0] == 32
        peer.send(raw.reply(first, described(2, 80)))
        second = peer.receive()
        assert struct.unpack_from("=III", second.payload) == (80, 0, 2)
        assert second.size == 48
        peer.send(raw.reply(second, described(2, 80, sparse((0x1000, 0x1000), (0x3000, 0x1000)))), [fd])
        wait_for_end(peer)

    with Client(play(script)) as client:
        info, fds = client.region_info(2)
        assert [(area.offset, area.size) for area in info.areas] == [(0x1000, 0x1000), (0x3000, 0x1000)]
        assert len(fds) == 1
        os.close(fds[0])
    os.close(fd)


@pytest.mark.point("P130")
def test_a_region_that_always_needs_more_room_is_refused(play: Stage) -> None:
    answers = [described(0, argsz) for argsz in (64, 80)]
    with (
        Client(play(describe(answers))) as client,
        pytest.raises(RemoteProtocolError, match="now it needs 80"),
    ):
        client.region_info(0)


@pytest.mark.point("P130")
@pytest.mark.parametrize(
    "chain",
    [
        sparse((0, 0x1000), following=32),
        sparse((0, 0x1000), following=8),
        sparse((0, 0x1000), following=4096),
        sparse(count=1 << 31),
        b"\1\0\1\0",
    ],
    ids=["loop", "into the fields", "beyond the end", "too many areas", "cut short"],
)
def test_a_capability_chain_that_goes_astray_is_refused(play: Stage, chain: bytes) -> None:
    reader, writer = os.pipe()
    path = play(describe([described(0, 32 + len(chain)), described(0, 32 + len(chain), chain)], [reader]))
    with Client(path) as client, pytest.raises(RemoteProtocolError):
        client.region_info(0)
    os.close(reader)
    os.close(writer)


@pytest.mark.point("P130", "P131")
@pytest.mark.parametrize("fds", [1, 2], ids=["one descriptor", "one an area"])
def test_areas_are_mapped_from_one_descriptor_or_one_each(play: Stage, fds: int) -> None:
    files = [raw.memory_file(0x4000, b"." * 0x4000) for _ in range(fds)]
    os.pwrite(files[0], b"first", 0x1000)
    os.pwrite(files[-1], b"second", 0x3000)
    areas = sparse((0x1000, 0x1000), (0x2000, 0), (0x3000, 0x1000))
    if fds == 2:
        areas = sparse((0x1000, 0x1000), (0x3000, 0x1000))
    size = 32 + len(areas)
    path = play(describe([described(0, size), described(0, size, areas)], files))
    with Client(path) as client:
        before = raw.open_descriptors()
        with client.map_bar(0) as mapped:
            assert mapped.read(0x1000, 5) == b"first"
            assert mapped.read(0x3000, 6) == b"second"
            mapped.write32(0x1FFC, 0x12345678)
            for offset, count in ((0, 4), (0xFFF, 2), (0x1FFF, 2), (0x2000, 1), (0x4000, 1)):
                with pytest.raises(IndexError, match="not in a mapped area"):
                    mapped.read(offset, count)
        assert raw.open_descriptors() == before
    assert os.pread(files[0], 4, 0x1FFC) == b"\x78\x56\x34\x12"
    for fd in files:
        os.close(fd)


@pytest.mark.point("P131")
@pytest.mark.parametrize(
    "area", [(0x3000, 0x2000), (0x800, 0x1000), (1 << 63, 0x1000), (0, 1 << 63), (0x4000, 0x1000)]
)
def test_areas_that_cannot_be_mapped_are_the_servers_fault(play: Stage, area: tuple[int, int]) -> None:
    file = raw.memory_file(0x4000)
    chain = sparse((0, 0x1000), area)
    size = 32 + len(chain)
    path = play(describe([described(0, size), described(0, size, chain)], [file]))
    with Client(path) as client:
        before = raw.open_descriptors()
        with pytest.raises(RemoteProtocolError, match="cannot be mapped"):
            client.map_bar(0)
        assert raw.open_descriptors() == before
    os.close(file)


@pytest.mark.point("P131")
def test_mapped_areas_are_shared_with_the_device_and_the_rest_goes_by_message(
    client: Client, gadget: Gadget
) -> None:
    with client.map_bar(2) as mapped:
        mapped.write32(0x1000, 0xCAFE)
        assert client.bar(2).read32(0x1000) == 0xCAFE
        client.bar(2).write8(0x3FFF, 0x55)
        assert mapped.read8(0x3FFF) == 0x55
    client.bar(2).write64(0x2000, 7)
    assert client.bar(2).read64(0x2000) == 7
    assert gadget.shared.memory[0x2000] == 7
    with client.map_bar(2) as again:
        assert again.read16(0x1000) == 0xCAFE
        assert client.map_bar(2) is again
    with pytest.raises(IndexError, match="handles every access"):
        client.map_bar(0)


@pytest.mark.point("P131")
def test_a_bar_the_device_lacks_is_named(client: Client) -> None:
    for index in (5, 6, -1):
        with pytest.raises(IndexError, match=rf"no BAR {index}; it has \[0, 1, 2, 3, 4\]"):
            client.bar(index)


@pytest.mark.point("P135")
def test_capabilities_are_found_and_a_looping_list_ends(client: Client, play: Stage) -> None:
    found = [client.find_capability(id) for id in (0x01, 0x05, 0x10, 0x11, 0x09)]
    assert None not in found
    assert len(set(found)) == 5
    assert client.find_capability(0x42) is None

    config = bytearray(4096)
    config[6], config[0x34] = 0x10, 0x50
    config[0x50:0x52], config[0x60:0x62] = b"\x01\x60", b"\x05\x50"

    def script(peer: RawPeer) -> None:
        greet(peer)
        serve_plainly(peer, bytes(config))

    with Client(play(script)) as looping:
        assert looping.find_capability(0x05) == 0x60
        assert looping.find_capability(0x11) is None


@pytest.mark.point("P132", "P135")
def test_interrupts_of_each_kind_are_enabled_and_waited_for(client: Client, gadget: Gadget) -> None:
    msix = client.enable_msix()
    assert len(msix) == 64
    assert gadget.msix.enabled
    gadget.msix[63].trigger()
    gadget.msix[63].trigger()
    assert msix[63].wait() == 2
    with pytest.raises(PeerTimeout, match="MSIX vector 63 has not fired"):
        msix[63].wait(0.01)
    msi = client.enable_msi(8)
    assert gadget.msi.enabled
    gadget.msi[7].trigger()
    assert [interrupt.take() for interrupt in msi] == [0] * 7 + [1]
    line = client.enable_intx()
    client.bar(0).write32(0x1C, 1)
    assert line.wait() == 1
    client.disable_interrupts(2)  # type: ignore[arg-type]
    gadget.msix[0].trigger()
    with pytest.raises(RemoteError):
        client.enable_msix(65)


@pytest.mark.point("P135")
def test_fewer_msi_vectors_than_before_are_told_to_the_device(client: Client) -> None:
    at = client.find_capability(0x05)
    assert at is not None
    client.enable_msi(8)
    assert client.config.read16(at + 2) & 0x71 == 0x31
    client.enable_msi(1)
    assert client.config.read16(at + 2) & 0x71 == 0x01


@pytest.mark.point("P134", "P135")
def test_reset_and_bus_mastering_reach_the_device(client: Client, gadget: Gadget) -> None:
    client.bus_master(True)
    assert client.config.read16(4) & 4
    assert gadget.dma.enabled
    client.bus_master(False)
    assert not gadget.dma.enabled
    client.bus_master()
    client.reset()
    assert gadget.log[-1] == "reset"
    assert client.config.read16(4) == 0


@pytest.mark.point("P118", "P134")
def test_a_client_frees_everything_it_made(gadget: Gadget, folder: Path) -> None:
    with Server(gadget, folder / "s").start():
        before = raw.open_descriptors()
        for _ in range(3):
            with Client(folder / "s") as client:
                client.enable_msix()
                client.enable_msi()
                client.memory(4096)
                client.memory(4096, shared=False)
                client.map_bar(3)
                assert client.regions
            client.close()
        with Client(folder / "s") as client:
            client.reset()  # the server has let the last one go
        with Client(folder / "s"):
            assert raw.open_descriptors() <= before + 2


def test_a_server_with_fewer_regions_than_pci_needs_is_named_as_the_one_at_fault(play: Stage) -> None:
    def script(peer: RawPeer) -> None:
        greet(peer, regions=3)
        for index in range(3):
            peer.send(raw.reply(peer.receive(), described(index, 32, flags=3)))
        wait_for_end(peer)

    with Client(play(script)) as client:
        with pytest.raises(RemoteProtocolError, match="3 regions, and configuration space is number 7"):
            client.bus_master()
        with pytest.raises(IndexError, match=r"no BAR 4; it has \[0, 1, 2\]"):
            client.bar(4)
        with pytest.raises(IndexError, match="no region 7; it has 3"):
            client.region(7)
