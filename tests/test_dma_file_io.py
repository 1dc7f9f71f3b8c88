"""Guest memory that the client wants read and written in place: never mapped, so any file will do."""

import ctypes
import errno
import fcntl
import os
import pty
import socket
import tempfile
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outboard.dma import MAX_MESSAGE_TRANSFER, GuestMemory, Mapping
from outboard.errors import DmaError, DmaForbidden, DmaUnmapped, RequestRefused
from outboard.native.translation import READ, translate
from tests.raw import memory_file, open_descriptors

PAGE = 4096
BASE = 0x10_0000


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    memory = GuestMemory()
    yield memory
    memory.unmap_all()


def file_io(address: int, size: int, fd: int, offset: int = 0, rights: str = "rw") -> Mapping:
    return Mapping(address, size, "r" in rights, "w" in rights, fd=os.dup(fd), offset=offset, file_io=True)


@pytest.mark.point("P90")
def test_reads_and_writes_reach_the_file_at_the_mapped_offset(memory: GuestMemory) -> None:
    fd = memory_file(4 * PAGE)
    memory.map(file_io(BASE, PAGE, fd, 2 * PAGE))
    memory.write(BASE + 0x10, b"written by the device")
    assert os.pread(fd, 21, 2 * PAGE + 0x10) == b"written by the device"
    os.pwrite(fd, b"written by the guest", 2 * PAGE + 0x100)
    assert memory.read(BASE + 0x100, 20) == b"written by the guest"
    [mapping] = memory.maps
    assert (mapping.file_io, mapping.fd) == (True, None)
    os.close(fd)


@pytest.mark.point("P90")
def test_a_file_that_cannot_be_mapped_serves(memory: GuestMemory) -> None:
    buffer = ctypes.create_string_buffer(b"the memory of a process, through /proc", 64)
    fd = os.open("/proc/self/mem", os.O_RDWR)
    where = ctypes.addressof(buffer)
    with pytest.raises(RequestRefused):
        memory.map(Mapping(BASE, 64, fd=os.dup(fd), offset=where))
    memory.map(file_io(BASE, 64, fd, where))
    assert memory.read(BASE + 4, 6) == b"memory"
    memory.write(BASE, b"THE")
    assert buffer.value.startswith(b"THE memory")
    os.close(fd)


@pytest.mark.point("P90")
def test_rights_hold_for_file_io_too(memory: GuestMemory) -> None:
    fd = memory_file(2 * PAGE)
    memory.map(file_io(0, PAGE, fd, rights="r"))
    memory.map(file_io(PAGE, PAGE, fd, rights="w"))
    with pytest.raises(DmaForbidden):
        memory.write(0, b"x")
    with pytest.raises(DmaForbidden):
        memory.read(PAGE, 1)
    with pytest.raises(DmaForbidden):
        memory.write(PAGE - 1, b"xy")
    assert os.pread(fd, PAGE, 0) == bytes(PAGE)
    memory.enabled = False
    with pytest.raises(DmaForbidden):
        memory.read(0, 1)
    os.close(fd)


def test_it_cannot_be_viewed_and_compiled_code_does_not_find_it(memory: GuestMemory) -> None:
    fd = memory_file(PAGE)
    table = memory.translation
    memory.map(file_io(BASE, PAGE, fd))
    with pytest.raises(DmaUnmapped, match=r"cannot be viewed: it is reached by file I/O only; read\(\)"):
        memory.view(BASE, 4)
    assert translate(table.address, BASE, 4, READ) == 0
    memory.unmap(BASE, PAGE)
    os.close(fd)


@pytest.mark.point("P100")
def test_an_access_crosses_memory_of_all_three_kinds(memory: GuestMemory) -> None:
    class Messages:
        def __init__(self) -> None:
            self.bytes = bytearray(3 * PAGE)

        def read(self, address: int, count: int) -> bytes:
            return bytes(self.bytes[address : address + count])

        def write(self, address: int, data: bytes) -> None:
            self.bytes[address : address + len(data)] = data

    memory.remote = remote = Messages()
    fd = memory_file(2 * PAGE)
    memory.map(Mapping(0, PAGE, fd=os.dup(fd)))
    memory.map(file_io(PAGE, PAGE, fd, PAGE))
    memory.map(Mapping(2 * PAGE, PAGE))
    content = os.urandom(3 * PAGE)
    memory.write(0, content)
    assert memory.read(0, 3 * PAGE) == content
    assert os.pread(fd, 2 * PAGE, 0) == content[: 2 * PAGE]
    assert remote.bytes[2 * PAGE :] == content[2 * PAGE :]
    os.close(fd)


@pytest.mark.point("P96")
def test_thousands_of_ranges_of_one_file_cost_one_descriptor(memory: GuestMemory) -> None:
    fd = memory_file(3000 * PAGE)
    before = open_descriptors()
    for page in range(3000):
        memory.map(file_io(page * 2 * PAGE, PAGE, fd, page * PAGE))
    assert open_descriptors() == before + 1
    memory.write(2 * 2999 * PAGE, b"last")
    assert os.pread(fd, 4, 2999 * PAGE) == b"last"
    memory.unmap_all()
    assert open_descriptors() == before
    os.close(fd)


@pytest.mark.point("P94")
def test_the_same_map_twice_is_one_and_another_way_to_reach_it_an_overlap(memory: GuestMemory) -> None:
    fd = memory_file(2 * PAGE)
    before = open_descriptors()
    memory.map(file_io(BASE, PAGE, fd))
    memory.map(file_io(BASE, PAGE, fd))
    for other in (Mapping(BASE, PAGE, fd=os.dup(fd)), Mapping(BASE, PAGE), file_io(BASE, PAGE, fd, PAGE)):
        with pytest.raises(RequestRefused) as caught:
            memory.map(other)
        assert caught.value.errno == errno.EEXIST
    assert len(memory.maps) == 1
    memory.unmap(BASE, PAGE)
    assert open_descriptors() == before
    os.close(fd)


def opened(flags: int, size: int = PAGE) -> int:
    """A file that is open in one way only, and has no name."""
    with tempfile.NamedTemporaryFile() as file:
        os.truncate(file.name, size)
        return os.open(file.name, flags)


def no_descriptor() -> int:
    os.close(fd := os.eventfd(0))
    return fd


def terminal() -> int:
    ours, theirs = pty.openpty()
    os.close(ours)
    return theirs


KINDS: list[tuple[Callable[[], int], str, int]] = [
    (no_descriptor, "rw", errno.EINVAL),
    (lambda: os.eventfd(0), "rw", errno.EINVAL),  # which would be read whatever the offset, and wait
    (lambda: socket.socket().detach(), "rw", errno.EINVAL),
    (lambda: os.open("/", os.O_RDONLY), "r", errno.EINVAL),
    (terminal, "rw", errno.EINVAL),
    (lambda: opened(os.O_PATH), "r", errno.EINVAL),
    (lambda: opened(os.O_RDONLY), "rw", errno.EACCES),
    (lambda: opened(os.O_WRONLY), "rw", errno.EACCES),
    (lambda: opened(os.O_RDWR | os.O_APPEND), "rw", errno.EINVAL),  # writes at its end, wherever told
    (lambda: opened(os.O_RDWR, PAGE - 1), "rw", errno.EINVAL),
]


@pytest.mark.point("P92", "P93")
@pytest.mark.parametrize(("make", "rights", "number"), KINDS)
def test_descriptors_that_file_io_cannot_use_are_refused_and_closed(
    memory: GuestMemory, make: Callable[[], int], rights: str, number: int
) -> None:
    before = open_descriptors()
    with pytest.raises(RequestRefused) as caught:
        memory.map(Mapping(BASE, PAGE, "r" in rights, "w" in rights, fd=make(), file_io=True))
    assert caught.value.errno == number
    assert memory.maps == ()
    assert open_descriptors() <= before


@pytest.mark.parametrize(("flags", "rights"), [(os.O_RDONLY, "r"), (os.O_WRONLY, "w"), (os.O_RDWR, "rw")])
def test_a_file_need_be_open_only_for_what_the_device_may_do(
    memory: GuestMemory, flags: int, rights: str
) -> None:
    fd = opened(flags)
    memory.map(Mapping(BASE, PAGE, "r" in rights, "w" in rights, fd=fd, file_io=True))
    if "w" in rights:
        memory.write(BASE, b"written")
    if "r" in rights:
        assert len(memory.read(BASE, PAGE)) == PAGE


@pytest.mark.point("P92")
@pytest.mark.parametrize("offset", [(1 << 63) - PAGE + 1, (1 << 64) - 1])
def test_an_offset_no_file_has_is_refused(memory: GuestMemory, offset: int) -> None:
    fd = os.open("/dev/zero", os.O_RDWR)
    with pytest.raises(RequestRefused):
        memory.map(Mapping(BASE, PAGE, fd=fd, offset=offset, file_io=True))


@pytest.mark.point("P93", "P105")
def test_a_file_the_client_shrinks_or_seals_is_an_error_of_the_access(memory: GuestMemory) -> None:
    fd = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
    os.truncate(fd, 2 * PAGE)
    memory.map(file_io(BASE, 2 * PAGE, fd))
    os.truncate(fd, PAGE)
    assert len(memory.read(BASE, PAGE)) == PAGE
    with pytest.raises(DmaError, match="the file ends at 0x1000") as caught:
        memory.read(BASE + PAGE - 8, 16)
    assert (caught.value.address, caught.value.size) == (BASE + PAGE - 8, 16)

    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    with pytest.raises(DmaError, match="writing 0x1 bytes at 0x100000 by file I/O: Operation not permitted"):
        memory.write(BASE, b"x")
    os.close(fd)


@pytest.mark.point("P107")
def test_a_range_may_be_huge_but_one_access_by_file_io_may_not(memory: GuestMemory) -> None:
    fd = memory_file(1 << 40)
    memory.map(file_io(0, 1 << 40, fd))
    assert memory.read((1 << 40) - 1, 1) == b"\0"
    with pytest.raises(DmaForbidden, match="split the access"):
        memory.read(0, MAX_MESSAGE_TRANSFER + 1)
    os.close(fd)


@given(st.lists(st.tuples(st.integers(0, 3 * PAGE), st.binary(max_size=2 * PAGE)), max_size=8))
def test_it_equals_mapped_memory_whatever_is_written(writes: list[tuple[int, bytes]]) -> None:
    """A file reached by file I/O holds what the same file, mapped, would hold; and reads the same."""
    fds = [memory_file(5 * PAGE), memory_file(5 * PAGE)]
    memories = [GuestMemory(), GuestMemory()]
    for fd, memory, in_place in zip(fds, memories, (True, False), strict=True):
        memory.map(Mapping(0, 3 * PAGE, fd=os.dup(fd), file_io=in_place))
        memory.map(Mapping(3 * PAGE, 2 * PAGE, fd=os.dup(fd), offset=3 * PAGE, file_io=True))
        for at, data in writes:
            memory.write(at, data)
    contents = [memory.read(0, 5 * PAGE) for memory in memories]
    assert contents[0] == contents[1] == os.pread(fds[0], 5 * PAGE, 0) == os.pread(fds[1], 5 * PAGE, 0)
    for fd, memory in zip(fds, memories, strict=True):
        memory.unmap_all()
        os.close(fd)


@pytest.mark.point("P116")
def test_what_is_written_by_file_io_is_logged_also_where_it_fails_halfway(memory: GuestMemory) -> None:
    fd = memory_file(8 * PAGE)
    memory.map(file_io(0, 8 * PAGE, fd))
    memory.start_log()
    memory.write(PAGE - 1, b"two pages")
    assert memory.take_dirty(0, 8 * PAGE) == b"\x03" + bytes(7)
    memory.read(0, 8 * PAGE)
    assert memory.take_dirty(0, 8 * PAGE) == bytes(8)
    sealed = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
    os.truncate(sealed, PAGE)
    memory.map(file_io(8 * PAGE, PAGE, sealed))
    fcntl.fcntl(sealed, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    with pytest.raises(DmaError):
        memory.write(8 * PAGE - 4, b"half of it")
    assert memory.take_dirty(0, 9 * PAGE) == b"\x80\x01" + bytes(6)
    assert os.pread(fd, 4, 8 * PAGE - 4) == b"half"
    os.close(fd)
    os.close(sealed)
