"""Many writes of regions in few messages, and none of them waited for if so wished.

vfio-user specification, "VFIO_USER_REGION_WRITE_MULTI", and the No_reply bit of "Header".
"""

from collections.abc import Iterable, Iterator

from outboard.protocol.messages import Message, MultiWrite, RegionWrite, RegionWriteMulti

Write = tuple[int, int, bytes]
"""A region's index, a byte offset in it, the data."""

MULTI_DATA = 8
"""Bytes that one write of a REGION_WRITE_MULTI carries at most."""
MULTI_WRITES = 200
"""Writes in one message: what QEMU sends at most, so what servers have seen."""


def single(region: int, offset: int, data: bytes, most: int) -> Iterator[RegionWrite]:
    """The REGION_WRITEs of one write, `most` bytes each."""
    for at in range(0, len(data), most):
        piece = data[at : at + most]
        yield RegionWrite(offset + at, region, len(piece), piece)


def batched(writes: Iterable[Write], most: int) -> Iterator[Message]:
    """`writes` in their order: short ones together, up to `most` bytes a message, long ones alone."""
    room = max(1, min(MULTI_WRITES, most // MultiWrite.LAYOUT.size))
    batch: list[MultiWrite] = []
    for region, offset, data in writes:
        is_short = len(data) <= MULTI_DATA
        if batch and (not is_short or len(batch) == room):
            yield RegionWriteMulti(tuple(batch))
            batch = []
        if is_short:
            batch.append(MultiWrite(offset, region, data))
        else:
            yield from single(region, offset, data, most)
    if batch:
        yield RegionWriteMulti(tuple(batch))
