"""Payloads: every message both ways, its bytes on the wire, and what is refused."""

from contextlib import suppress
from struct import pack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outboard.errors import LocalProtocolError, RemoteProtocolError
from outboard.protocol import RULES
from outboard.protocol.messages import (
    Area,
    Bitmap,
    DeviceFeature,
    DeviceInfo,
    DmaMap,
    DmaReadReply,
    DmaUnmap,
    DmaWriteReply,
    Empty,
    IoFdsLayout,
    IoSubRegion,
    IrqInfo,
    Message,
    MigDataRead,
    MigDataWrite,
    MultiWrite,
    RegionInfo,
    RegionIoFds,
    RegionRead,
    RegionReadReply,
    RegionWrite,
    RegionWriteMulti,
    RegionWriteReply,
    SetIrqs,
)
from tests.protocol.strategies import MESSAGES, region_infos_with_areas

KINDS = sorted(MESSAGES, key=lambda kind: kind.__name__)


def test_every_message_of_the_table_has_a_strategy() -> None:
    assert {kind for rule in RULES.values() for kind in (rule.request, rule.reply)} == set(MESSAGES)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25)
@given(draw=st.data())
def test_every_message_comes_back_from_its_bytes(kind: type[Message], draw: st.DataObject) -> None:
    """Decoding the encoding of any message gives that message, from bytes and from a view."""
    message = draw.draw(MESSAGES[kind])
    wire = message.encode()
    assert kind.decode(wire) == message
    assert kind.decode(memoryview(wire)) == message


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25)
@given(junk=st.binary(max_size=200))
def test_any_bytes_decode_or_are_refused(kind: type[Message], junk: bytes) -> None:
    """Any payload either becomes a message or raises RemoteProtocolError, nothing else."""
    with suppress(RemoteProtocolError):
        kind.decode(junk)


@pytest.mark.parametrize(
    ("message", "wire"),
    [
        (DmaMap(32, 3, 0x1000, 0x2000, 0x3000), pack("=IIQQQ", 32, 3, 0x1000, 0x2000, 0x3000)),
        (DmaUnmap(24, 0, 0x2000, 0x3000), pack("=IIQQ", 24, 0, 0x2000, 0x3000)),
        (DmaUnmap(24, 1, 0, 1, Bitmap(4096, 8)), pack("=IIQQQQ", 24, 1, 0, 1, 4096, 8)),
        (DeviceInfo(16, 3, 9, 5), pack("=IIII", 16, 3, 9, 5)),
        (RegionInfo(32, 3, 7, 0, 256, 0), pack("=IIIIQQ", 32, 3, 7, 0, 256, 0)),
        (
            RegionInfo(64, 15, 0, 32, 0x2000, 0, (Area(0x1000, 0x1000),)),
            pack("=IIIIQQHHIIIQQ", 64, 15, 0, 32, 0x2000, 0, 1, 1, 0, 1, 0, 0x1000, 0x1000),
        ),
        (
            RegionIoFds(56, 0, 1, 1, (IoSubRegion(4, 8, 0, 0, 1, 9),)),
            pack("=IIIIQQIIIIQ", 56, 0, 1, 1, 4, 8, 0, 0, 1, 0, 9),
        ),
        (
            RegionIoFds(64, 0, 1, 1, (IoSubRegion(4, 8, 1, 2, 0, 9, 3, 16),), IoFdsLayout.LIBVFIO_USER),
            pack("=IIIIQQIIIIQQ", 64, 0, 1, 1, 4, 8, 1, 2, 0, 3, 16, 9),
        ),
        (IrqInfo(16, 1, 2, 32), pack("=IIII", 16, 1, 2, 32)),
        (SetIrqs(20, 34, 2, 0, 2, b"\1\0"), pack("=IIIII2s", 20, 34, 2, 0, 2, b"\1\0")),
        (RegionRead(0x10, 7, 4), pack("=QII", 0x10, 7, 4)),
        (RegionReadReply(0x10, 7, 2, b"ab"), pack("=QII2s", 0x10, 7, 2, b"ab")),
        (RegionWrite(0x10, 7, 2, b"ab"), pack("=QII2s", 0x10, 7, 2, b"ab")),
        (RegionWriteReply(0x10, 7, 2), pack("=QII", 0x10, 7, 2)),
        (DmaReadReply(0x10, 2, b"ab"), pack("=QQ2s", 0x10, 2, b"ab")),
        (
            RegionWriteMulti((MultiWrite(0x10, 0, b"abcd"),)),
            pack("=QQII8s", 1, 0x10, 0, 4, b"abcd"),
        ),
        (DeviceFeature(8, 1 << 16 | 1), pack("=II", 8, 1 << 16 | 1)),
        (MigDataWrite(10, 2, b"ab"), pack("=II2s", 10, 2, b"ab")),
    ],
)
def test_bytes_lie_where_the_specification_puts_them(message: Message, wire: bytes) -> None:
    assert message.encode() == wire


@pytest.mark.point("P38", "P42", "P49", "P92")
@pytest.mark.parametrize(
    "message",
    [
        DeviceInfo(15, 0, 0, 0),
        IrqInfo(15, 0, 0, 0),
        RegionInfo(31, 0, 0, 0, 0, 0),
        RegionIoFds(15, 0, 0, 0),
        SetIrqs(19, 33, 0, 0, 0),
        DmaMap(31, 0, 0, 0, 0),
        DmaUnmap(23, 0, 0, 0),
        DeviceFeature(7, 0),
        MigDataRead(7, 0),
        MigDataRead(8 + 99, 100),
    ],
)
def test_an_argsz_without_room_for_the_message_is_refused(message: Message) -> None:
    with pytest.raises(RemoteProtocolError, match="argsz"):
        type(message).decode(message.encode())


@pytest.mark.point("P18", "P38")
@pytest.mark.parametrize("kind", [DeviceInfo, IrqInfo, RegionInfo, DmaMap, DmaUnmap])
def test_bytes_after_a_message_with_argsz_are_ignored(kind: type[Message]) -> None:
    fields = (4064, 0, 0, 0, 0, 0)
    message = kind(*fields[: len(kind.__match_args__) - (kind in (RegionInfo, DmaUnmap))])  # type: ignore[attr-defined]
    assert kind.decode(message.encode().ljust(4080, b"\0")) == message


@pytest.mark.point("P18", "P81")
@pytest.mark.parametrize(
    "payload", [RegionWrite(0, 0, 2, b"ab").encode() + b"c", RegionWrite(0, 0, 2, b"ab").encode()[:-1]]
)
def test_a_write_with_more_or_less_data_than_announced_is_refused(payload: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="announces 2 bytes"):
        RegionWrite.decode(payload)


@pytest.mark.point("P84")
@pytest.mark.parametrize(
    "payload",
    [pack("=Q", 1), pack("=Q", 2**63), pack("=QQII8s", 2, 0, 0, 4, b""), pack("=QQII8s", 1, 0, 0, 9, b"")],
)
def test_a_multiple_write_must_hold_what_it_announces(payload: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="REGION_WRITE_MULTI"):
        RegionWriteMulti.decode(payload)


@pytest.mark.parametrize(
    "message",
    [
        RegionRead(-1, 0, 4),
        RegionRead(2**64, 0, 4),
        RegionReadReply(0, 0, 3, b"ab"),
        RegionWriteMulti((MultiWrite(0, 0, bytes(9)),)),
        RegionInfo(48, 0, 0, 0, 0, 0, (Area(0, 1),)),
    ],
)
def test_a_message_that_cannot_be_sent_is_our_mistake(message: Message) -> None:
    with pytest.raises(LocalProtocolError):
        message.encode()


@pytest.mark.point("P41", "P42")
@given(info=region_infos_with_areas, argsz=st.integers(32, 200))
def test_region_info_is_whole_or_says_how_much_room_it_needs(info: RegionInfo, argsz: int) -> None:
    """A reply cut to an argsz never exceeds it, and its own argsz always fetches everything."""
    cut = info.fitted(argsz)
    assert len(cut.encode()) <= argsz
    assert cut.argsz == info.needed
    assert bool(cut.flags & 8) == bool(cut.cap_offset) == bool(cut.areas) == (argsz >= info.needed)
    assert cut.fitted(cut.argsz) == cut or info.fitted(cut.argsz).areas == info.areas


def test_region_info_cut_short_by_the_sender_has_no_areas() -> None:
    payload = pack("=IIIIQQ", 64, 15, 0, 32, 0x2000, 0)
    assert RegionInfo.decode(payload).areas == ()


@pytest.mark.point("P130")
@pytest.mark.parametrize(
    "chain",
    [
        pack("=HHI", 9, 1, 32),
        pack("=HHIHHI", 9, 1, 40, 9, 1, 32),
        pack("=HHI", 9, 1, 4096),
        pack("=HHI", 9, 1, 8),
        pack("=HHI", 1, 1, 0),
        pack("=HHIII", 1, 1, 0, 2**32 - 1, 0),
    ],
    ids=["self", "loop", "beyond", "inside the fields", "no areas", "too many areas"],
)
def test_a_region_capability_that_loops_or_leaves_the_payload_is_refused(chain: bytes) -> None:
    payload = pack("=IIIIQQ", 32 + len(chain), 15, 0, 32, 0x2000, 0) + chain
    with pytest.raises(RemoteProtocolError):
        RegionInfo.decode(payload)


def test_an_unknown_region_capability_is_passed_over() -> None:
    sparse = pack("=HHIIIQQ", 1, 1, 0, 1, 0, 0x1000, 0x1000)
    payload = pack("=IIIIQQHHI", 72, 15, 0, 32, 0x2000, 0, 0x8001, 1, 40) + sparse
    assert RegionInfo.decode(payload).areas == (Area(0x1000, 0x1000),)


def test_sub_regions_of_libvfio_user_are_read_too() -> None:
    payload = pack("=IIIIQQIIIIQQ", 64, 0, 1, 1, 4, 8, 0, 2, 1, 1, 0x10, 9)
    info = RegionIoFds.decode(payload)
    assert info.layout is IoFdsLayout.LIBVFIO_USER
    assert info.sub_regions == (IoSubRegion(4, 8, 0, 2, 1, 9, shadow_fd_index=1, shadow_offset=0x10),)


def test_sub_regions_of_another_size_are_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="40 or 48"):
        RegionIoFds.decode(pack("=IIII", 59, 0, 1, 1) + bytes(43))


def test_a_write_reply_may_count_in_32_bits() -> None:
    assert DmaWriteReply.decode(pack("=QI", 0x1000, 4)) == DmaWriteReply(0x1000, 4)


def test_an_echo_where_only_a_header_is_due_is_ignored() -> None:
    assert Empty.decode(b"echo") == Empty()
