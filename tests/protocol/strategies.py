"""What the protocol's tests share: hypothesis strategies of messages, and a pair of open connections."""

from typing import Any

from hypothesis import strategies as st

from outboard.protocol import (
    Capabilities,
    ClientConnection,
    Migration,
    Reply,
    Request,
    ServerConnection,
    TwinSocket,
)
from outboard.protocol.messages import (
    Area,
    Bitmap,
    DeviceFeature,
    DeviceInfo,
    DeviceReset,
    DirtyPages,
    DmaMap,
    DmaRead,
    DmaReadReply,
    DmaUnmap,
    DmaUnmapFlag,
    DmaWrite,
    DmaWriteReply,
    Empty,
    IoFdsLayout,
    IoSubRegion,
    IrqInfo,
    Message,
    MigDataRead,
    MigDataReadReply,
    MigDataWrite,
    MultiWrite,
    RegionFlag,
    RegionInfo,
    RegionIoFds,
    RegionRead,
    RegionReadReply,
    RegionWrite,
    RegionWriteMulti,
    RegionWriteMultiReply,
    RegionWriteReply,
    SetIrqs,
    Version,
)

u16 = st.integers(0, 2**16 - 1)
u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
counts = st.integers(0, 1024 * 1024)
data = st.binary(max_size=80)


def argsz(least: int) -> st.SearchStrategy[int]:
    return st.integers(least, 2**32 - 1)


pages = st.integers(1, 2**50).map(lambda n: n * 4096)
capabilities = st.builds(
    Capabilities,
    max_msg_fds=st.integers(0, 1024),
    max_data_xfer_size=st.integers(1, 2**64 - 1),
    max_dma_maps=u64,
    pgsizes=pages,
    twin_socket=st.just(TwinSocket())
    | st.builds(TwinSocket, st.just(True), st.none() | st.integers(0, 1023)),
    write_multiple=st.booleans(),
    migration=st.none() | st.builds(Migration, st.integers(12, 63).map(lambda n: 1 << n), u64),
)


def carrying(kind: Any, *fields: st.SearchStrategy[int]) -> st.SearchStrategy[Any]:
    """Messages that end in a count and as many bytes."""
    return st.builds(lambda head, d: kind(*head, len(d), d), st.tuples(*fields), data)


area_lists = st.lists(st.builds(Area, u64, u64), min_size=1, max_size=5).map(tuple)
region_infos = st.builds(
    RegionInfo, argsz(32), u32.map(lambda f: f & ~RegionFlag.CAPS), u32, st.just(0), u64, u64
)
region_infos_with_areas = st.builds(
    lambda info, areas: RegionInfo(0, info.flags, info.index, 0, info.size, info.offset, areas).fitted(2**31),
    region_infos,
    area_lists,
)
shadowed = st.lists(st.builds(IoSubRegion, u64, u64, u32, u32, u32, u64, u32, u64), min_size=1, max_size=4)
sub_regions = st.lists(st.builds(IoSubRegion, u64, u64, u32, u32, u32, u64), min_size=1, max_size=4)
region_io_fds = (
    st.builds(RegionIoFds, argsz(16), u32, u32, u32)
    | sub_regions.map(lambda subs: RegionIoFds(16 + 40 * len(subs), 0, 1, len(subs), tuple(subs)))
    | shadowed.map(
        lambda subs: RegionIoFds(16 + 48 * len(subs), 0, 1, len(subs), tuple(subs), IoFdsLayout.LIBVFIO_USER)
    )
)
unmaps = st.builds(
    DmaUnmap, argsz(24), u32.map(lambda f: f & ~DmaUnmapFlag.DIRTY_BITMAP), u64, u64
) | st.builds(
    DmaUnmap, argsz(24), st.just(int(DmaUnmapFlag.DIRTY_BITMAP)), u64, u64, st.builds(Bitmap, u64, u64, data)
)
multi_writes = st.lists(st.builds(MultiWrite, u64, u32, st.binary(max_size=8)), max_size=6)

MESSAGES: dict[type[Message], st.SearchStrategy[Any]] = {
    Version: st.builds(Version, u16, u16, st.none() | capabilities),
    DmaMap: st.builds(DmaMap, argsz(32), u32, u64, u64, u64),
    DmaUnmap: unmaps,
    DeviceInfo: st.builds(DeviceInfo, argsz(16), u32, u32, u32),
    RegionInfo: region_infos | region_infos_with_areas,
    RegionIoFds: region_io_fds,
    IrqInfo: st.builds(IrqInfo, argsz(16), u32, u32, u32),
    SetIrqs: st.builds(SetIrqs, argsz(20), u32, u32, u32, u32, data),
    RegionRead: st.builds(RegionRead, u64, u32, counts),
    RegionReadReply: carrying(RegionReadReply, u64, u32),
    RegionWrite: carrying(RegionWrite, u64, u32),
    RegionWriteReply: st.builds(RegionWriteReply, u64, u32, u32),
    DmaRead: st.builds(DmaRead, u64, counts),
    DmaReadReply: carrying(DmaReadReply, u64),
    DmaWrite: carrying(DmaWrite, u64),
    DmaWriteReply: st.builds(DmaWriteReply, u64, u64),
    DeviceReset: st.just(DeviceReset()),
    Empty: st.just(Empty()),
    DirtyPages: st.builds(DirtyPages, argsz(8), u32, data),
    RegionWriteMulti: st.builds(RegionWriteMulti, multi_writes.map(tuple)),
    RegionWriteMultiReply: st.builds(RegionWriteMultiReply, u64),
    DeviceFeature: st.builds(DeviceFeature, argsz(8), u32, data),
    MigDataRead: counts.map(lambda size: MigDataRead(8 + size, size)),
    MigDataReadReply: carrying(MigDataReadReply, argsz(8)),
    MigDataWrite: carrying(MigDataWrite, argsz(8)),
}

TO_SERVER_REQUESTS = (
    DmaMap,
    DmaUnmap,
    DeviceInfo,
    RegionInfo,
    RegionIoFds,
    IrqInfo,
    SetIrqs,
    RegionRead,
    RegionWrite,
    DeviceReset,
    DirtyPages,
    RegionWriteMulti,
    DeviceFeature,
    MigDataRead,
    MigDataWrite,
)


def open_pair(
    server_offer: Capabilities | None = None, client_offer: Capabilities | None = None
) -> tuple[ClientConnection, ServerConnection]:
    """A client and a server that have agreed on a version."""
    client = ClientConnection(client_offer) if client_offer else ClientConnection()
    server = ServerConnection(server_offer) if server_offer else ServerConnection()
    _, hello = client.version_command()
    [request] = server.feed(hello)
    assert isinstance(request, Request)
    [welcome] = client.feed(server.accept(request))
    assert isinstance(welcome, Reply)
    return client, server


def only_request(server: ServerConnection | ClientConnection, message: bytes) -> Request:
    """The request that ``message`` is."""
    [event] = server.feed(message)
    assert isinstance(event, Request)
    return event
