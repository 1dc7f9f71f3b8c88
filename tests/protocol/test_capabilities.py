"""The JSON of VERSION: its defaults, what is refused, and how an offer is answered."""

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outboard.errors import LocalProtocolError, RemoteProtocolError
from outboard.protocol import (
    CLIENT_DEFAULTS,
    SERVER_DEFAULTS,
    Capabilities,
    Migration,
    ServerConnection,
    TwinSocket,
)
from tests.protocol.strategies import capabilities

QEMU_REQUEST = 214
QEMU_TEXT = (
    b'{"capabilities": {"migration": {"pgsize": 4096, "max_bitmap_size": 268435456}, "max_msg_fds": 16, '
    b'"max_data_xfer_size": 1048576, "pgsizes": 4096, "max_dma_maps": 65535, "write_multiple": true}}\0'
)


def caps(**values: object) -> bytes:
    return json.dumps({"capabilities": values}).encode() + b"\0"


@pytest.mark.point("P30", "P31")
@pytest.mark.parametrize(
    "text", [b"{}\0", caps(), caps(colour="red"), b'{"other": 1}\0', b' {"capabilities" : { } } \0']
)
def test_what_is_not_said_has_its_default(text: bytes) -> None:
    assert Capabilities.decode(text) == Capabilities(1, 1024 * 1024, 65535, 4096)


def test_the_text_of_qemu_is_understood() -> None:
    assert Capabilities.decode(QEMU_TEXT) == CLIENT_DEFAULTS


@pytest.mark.point("P32", "P122")
@pytest.mark.parametrize(
    "text",
    [
        b"\0",
        b"{}",
        b"{]\0",
        b"[]\0",
        b"7\0",
        b"null\0",
        b'{"capabilities": []}\0',
        b'{"capabilities": null}\0',
        caps(max_msg_fds="8"),
        caps(max_msg_fds=8.0),
        caps(max_msg_fds=True),
        caps(max_msg_fds=None),
        caps(max_msg_fds=-1),
        caps(max_msg_fds=1025),
        caps(max_data_xfer_size=0),
        caps(max_data_xfer_size=10**30),
        caps(max_data_xfer_size=float("inf")),
        caps(max_dma_maps=-1),
        caps(pgsizes=0),
        caps(pgsizes=4095),
        caps(write_multiple=1),
        caps(twin_socket=True),
        caps(twin_socket={"supported": "yes"}),
        caps(twin_socket={"fd_index": -1}),
        caps(migration=[]),
        caps(migration={"pgsize": 4095}),
        caps(migration={"pgsize": 12288}),
        caps(migration={"max_bitmap_size": -1}),
    ],
    ids=lambda text: text[:40].decode(),
)
def test_a_value_nobody_can_mean_is_refused(text: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        Capabilities.decode(text)


@pytest.mark.point("P33")
@pytest.mark.parametrize(
    "text",
    [
        caps(pad="x" * 1024 * 1024),
        b"[" * 30_000 + b"\0",
        b'{"capabilities":' * 4000 + b"\0",
        b"[" * 100_000 + b"]" * 100_000 + b"\0",
        b'{"capabilities": "\xff\xfe"}\0',
        b"\xef\xbb\xbf{}\0",
        b'{"capabilities": {}}\0{}\0',
        b'{"capa\0bilities": {}}\0',
        b'{"capabilities": {}, "capabilities": {}}\0',
        b'{"capabilities": {"max_msg_fds": 1, "max_msg_fds": 2}}\0',
        b'{"capabilities": {"max_msg_fds": ' + b"9" * 5000 + b"}}\0",
        b'{"capabilities": {"max_msg_fds": NaN}}\0',
        b'{"capabilities": {"\\ud800": 1}}',
    ],
    ids=lambda text: text[:20].decode(errors="replace"),
)
def test_a_hostile_text_is_refused(text: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        Capabilities.decode(text)


@given(junk=st.binary(max_size=60), end=st.sampled_from([b"", b"\0"]))
def test_any_text_is_read_or_refused(junk: bytes, end: bytes) -> None:
    """Any bytes give capabilities or RemoteProtocolError, nothing else."""
    with suppress(RemoteProtocolError):
        Capabilities.decode(junk + end)


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text("ab", max_size=5)
values = st.recursive(
    scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text("ab", max_size=4), v, max_size=3)
)
KEYS = [
    "max_msg_fds",
    "max_data_xfer_size",
    "pgsizes",
    "twin_socket",
    "write_multiple",
    "migration",
    "supported",
]


@given(section=st.dictionaries(st.sampled_from(KEYS), values))
def test_any_values_are_read_or_refused(section: dict[str, object]) -> None:
    """Any JSON value for any key gives capabilities or RemoteProtocolError, nothing else."""
    with suppress(RemoteProtocolError):
        Capabilities.decode(caps(**section))


@pytest.mark.point("P28", "P29")
@given(peer=capabilities, offer=capabilities)
def test_an_answer_offers_no_feature_the_peer_lacks(peer: Capabilities, offer: Capabilities) -> None:
    """The answer keeps our limits, has only features of both, and ends in NUL."""
    answer = offer.answer(peer)
    assert (answer.max_msg_fds, answer.max_data_xfer_size) == (offer.max_msg_fds, offer.max_data_xfer_size)
    assert answer.write_multiple == (offer.write_multiple and peer.write_multiple)
    assert answer.twin_socket.supported == (offer.twin_socket.supported and peer.twin_socket.supported)
    assert (answer.migration is None) == (offer.migration is None or peer.migration is None)
    assert answer.encode().endswith(b"}}\0")


@pytest.mark.point("P29")
def test_the_longest_answer_to_qemu_fits_its_request() -> None:
    full = Capabilities(16, 64 * 1024 * 1024, 65535, 4096, TwinSocket(True), True, Migration())
    assert 20 + len(full.answer(CLIENT_DEFAULTS).encode()) <= QEMU_REQUEST


@pytest.mark.point("P29")
def test_the_default_answer_has_nothing_qemu_refuses() -> None:
    said = json.loads(SERVER_DEFAULTS.answer(CLIENT_DEFAULTS).encode()[:-1])
    assert said == {
        "capabilities": {
            "max_msg_fds": 16,
            "max_data_xfer_size": 1024 * 1024,
            "max_dma_maps": 65535,
            "pgsizes": 4096,
        }
    }


@pytest.mark.point("P29")
@pytest.mark.parametrize(
    "offer",
    [
        Capabilities(max_msg_fds=17),
        Capabilities(max_data_xfer_size=64 * 1024 * 1024 + 1),
        Capabilities(max_dma_maps=65536),
        Capabilities(pgsizes=0),
        Capabilities(pgsizes=4095),
    ],
)
def test_a_server_refuses_to_offer_what_breaks_qemu(offer: Capabilities) -> None:
    with pytest.raises(LocalProtocolError, match="a server's"):
        ServerConnection(offer)
