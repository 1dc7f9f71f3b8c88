"""cloud-hypervisor as a client, byte by byte: it reads replies of the size it expects, whatever they say."""

import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator

import pytest

from outboard import Server
from outboard.errors import DmaError
from tests import raw
from tests.raw import CONFIG, EVENTFD, INTX, MSIX, NONE, TRIGGER, UNMASK, memory_file
from tests.server.conftest import Serve
from tests.server.gadgets import Gadget
from tests.server.profiles.test_detection import RUST_JSON
from tests.server.test_dma import ADDRESS, COUNT, NOW, PAGE, READ

Eventfds = Callable[[int], list[int]]


class RustClient:
    """The crate's client: writes a request, then reads exactly as much as the reply has when all is well."""

    def __init__(self, server: Server) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(raw.DEADLINE)
        self.socket.connect(os.fspath(server.path or ""))
        self.id = 0

    def exchange(self, message: bytes, size: int, fds: tuple[int, ...] = ()) -> bytes:
        """Sends `message` under the next id; the `size` bytes it takes for the reply, header included."""
        message = struct.pack("=H", self.id) + message[2:]
        self.id += 1
        socket.send_fds(self.socket, [message], fds)
        return self.read_exact(size)

    def read_exact(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self.socket.recv(size - len(data))
            assert part, f"the server closed after {len(data)} of {size} bytes"
            data += part
        return data

    def negotiate(self) -> bytes:
        head = self.exchange(raw.version(0, 1, RUST_JSON), 20)
        text = self.read_exact(struct.unpack_from("=I", head, 4)[0] - 20)
        assert text[-1:] == b"\0"  # it takes one byte off without looking: an empty text would be its end
        return text[:-1]

    def region_info(self, index: int) -> tuple[int, int, int, tuple[int, ...]]:
        """(flags, size, areas, descriptors): the retry for areas goes out under the same id."""
        self.exchange(raw.region_info(index, 32), 0)
        reply, fds = self._with_fds(48)
        argsz = struct.unpack_from("=I", reply, 16)[0]
        if argsz > 32:
            for fd in fds:
                os.close(fd)
            self.id -= 1
            self.exchange(raw.region_info(index, argsz), 0)
            reply, fds = self._with_fds(48)
            size, argsz = struct.unpack_from("=I", reply, 4)[0], struct.unpack_from("=I", reply, 16)[0]
            assert argsz - 32 == size - 48  # or it panics
            areas = struct.unpack_from("=I", self.read_exact(argsz - 32), 8)[0]
        else:
            areas = 0
        flags, length = struct.unpack_from("=I", reply, 20)[0], struct.unpack_from("=Q", reply, 32)[0]
        return flags, length, areas, fds

    def region_read(self, region: int, offset: int, count: int) -> bytes:
        self.exchange(raw.read(region, offset, count), 32)
        return self.read_exact(count)

    def region_write(self, region: int, offset: int, data: bytes) -> None:
        self.exchange(raw.write(region, offset, data), 32)

    def set_irqs(self, index: int, flags: int, start: int, count: int, fds: tuple[int, ...] = ()) -> None:
        self.exchange(raw.set_irqs(index, flags, start, count), 16, fds)

    def _with_fds(self, size: int) -> tuple[bytes, tuple[int, ...]]:
        """One recvmsg: header, fixed part and descriptors have to come in it."""
        data, fds, _, _ = socket.recv_fds(self.socket, size, 4)
        assert len(data) == size
        return data, tuple(fds)


@pytest.fixture
def rust(gadget: Gadget, serve: Serve) -> Iterator[RustClient]:
    client = RustClient(serve(gadget))
    client.negotiate()
    yield client
    client.socket.close()


@pytest.mark.point("P108a", "P108b", "P20")
def test_cloud_hypervisors_start_up_is_answered(gadget: Gadget, serve: Serve, eventfds: Eventfds) -> None:
    rust = RustClient(serve(gadget))
    assert rust.negotiate().startswith(b'{"capabilities":')
    reply = rust.exchange(raw.device_info(32), 32)  # it counts the header into argsz
    _, flags, regions, irqs = struct.unpack_from("=IIII", reply, 16)
    assert (flags, regions, irqs) == (3, 9, 5)
    for index in range(regions):
        _, _, areas, fds = rust.region_info(index)
        assert (len(fds), areas) == ({2: 1, 3: 1}.get(index, 0), {2: 2}.get(index, 0))
        for fd in fds:
            os.close(fd)
    assert rust.exchange(raw.reset(), 16)[8:12] == b"\1\0\0\0"
    for index in range(irqs):
        rust.exchange(raw.irq_info(index), 32)
    ram = memory_file(16 * PAGE)
    rust.exchange(raw.dma_map(0, 16 * PAGE), 16, (ram,))
    assert rust.region_read(CONFIG, 0, 4) == b"\x34\x12\x78\x56"

    # All vectors at once, 16 descriptors a message, whatever was announced.
    vectors = tuple(eventfds(16))
    rust.set_irqs(MSIX, EVENTFD | TRIGGER, 0, 16, vectors)
    rust.region_write(0, 0x18, struct.pack("=I", 15))
    assert [raw.fired(fd) for fd in vectors] == [0] * 15 + [1]
    rust.set_irqs(MSIX, NONE | TRIGGER, 0, 0)
    rust.set_irqs(INTX, EVENTFD | TRIGGER, 0, 1, vectors[:1])
    rust.set_irqs(INTX, NONE | UNMASK, 0, 1)
    reply = rust.exchange(raw.dma_unmap(0, 16 * PAGE), 40)
    assert struct.unpack_from("=QQ", reply, 24) == (0, 16 * PAGE)
    assert gadget.dma.maps == ()
    os.close(ram)
    rust.socket.close()


@pytest.mark.point("P108c")
def test_whatever_fails_is_answered_in_full_size_so_that_the_virtual_machine_goes_on(
    rust: RustClient, gadget: Gadget, caplog: pytest.LogCaptureFixture
) -> None:
    assert rust.region_read(0, 0x10, 4) == b"\xff" * 4  # the device raises
    assert "the author's bug, reading" in caplog.text
    assert rust.region_read(0, 0xFFE, 4) == b"\xff" * 4  # past the end
    assert rust.region_read(5, 0, 2) == b"\xff" * 2  # no such BAR
    rust.region_write(0, 0x10, bytes(4))  # the device raises
    assert "the author's bug, writing" in caplog.text
    rust.region_write(5, 0, bytes(4))
    reply = rust.exchange(raw.dma_unmap(0x5000, PAGE), 40)
    assert struct.unpack_from("=IIIIQQ", reply, 8) == (1, 0, 24, 0, 0x5000, PAGE)
    assert rust.exchange(raw.region_info(77), 48)[16:] == struct.pack("=IIIIQQ", 32, 0, 77, 0, 0, 0)
    assert rust.exchange(raw.irq_info(77), 32)[16:] == struct.pack("=IIII", 16, 0, 77, 0)
    assert rust.exchange(raw.region_io_fds(77), 32)[16:] == struct.pack("=IIII", 16, 0, 77, 0)
    # In step after all of that.
    assert rust.region_read(0, 0, 4) == b"\x78\x56\x34\x12"


def test_failures_whose_success_is_a_header_alone_stay_errors(rust: RustClient) -> None:
    for message in (raw.dma_map(0, 0), raw.set_irqs(MSIX, 0, 0, 1)):
        assert struct.unpack_from("=II", rust.exchange(message, 16), 8) == (0x21, errno.EINVAL)


@pytest.mark.point("P91")
def test_no_message_for_memory_is_ever_sent(rust: RustClient, gadget: Gadget) -> None:
    rust.exchange(raw.dma_map(0, PAGE), 16)  # without a descriptor, which it never does
    rust.region_write(CONFIG, 4, b"\x04\x00")
    rust.region_write(0, ADDRESS, struct.pack("=Q", 0))
    rust.region_write(0, COUNT, struct.pack("=I", 4))
    for register in (READ, NOW):
        rust.region_write(0, register, bytes(4))
        rust.region_read(0, 0, 4)  # nothing lies between this and its reply
    assert isinstance(gadget.dma_error, DmaError)
    assert "serves no DMA by message; give it shared memory" in str(gadget.dma_error)
