"""VERSION: what is agreed, and what is refused before anything is."""

import errno
import json
import os
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from outboard import Server
from outboard.server.profiles import SPEC
from tests import raw
from tests.raw import RawPeer
from tests.server.conftest import Connect, Serve
from tests.server.gadgets import Gadget


@pytest.fixture
def server(gadget: Gadget, serve: Serve) -> Server:
    return serve(gadget)


def text(capabilities: object) -> bytes:
    return json.dumps({"capabilities": capabilities}).encode() + b"\0"


@pytest.mark.point("P25")
@pytest.mark.parametrize("command", [0, *range(2, 19), 999])
def test_nothing_is_served_before_a_version_is_agreed(server: Server, command: int) -> None:
    with RawPeer.connect(server.path) as client:
        assert client.refused(raw.message(command, bytes(32))) == errno.EINVAL
        client.negotiate()


@pytest.mark.point("P26")
@pytest.mark.parametrize(("asked", "answered"), [(0, 0), (1, 1), (2, 1), (9, 1), (0xFFFF, 1)])
def test_the_lower_minor_version_is_agreed(server: Server, asked: int, answered: int) -> None:
    with RawPeer.connect(server.path) as client:
        answer = client.ask(raw.version(0, asked))
        assert struct.unpack_from("=HH", answer.payload) == (0, answered)
        client.ask(raw.device_info())


@pytest.mark.point("P29", "P84")
@pytest.mark.parametrize("wanted", [True, False])
@pytest.mark.parametrize("offered", [True, False])
def test_write_multiple_is_agreed_only_if_both_sides_have_it(
    gadget: Gadget, folder: Path, offered: bool, wanted: bool
) -> None:
    with Server(gadget, folder / "s.sock", profile=replace(SPEC, write_multiple=offered)).start() as server:
        with RawPeer.connect(server.path) as client:
            question = raw.version(text=text({"write_multiple": wanted}))
            said = json.loads(client.ask(question).payload[4:-1])["capabilities"]
            assert said.get("write_multiple", False) is (offered and wanted)
        with RawPeer.connect(server.path) as client:
            assert client.ask(raw.version()).size <= len(raw.version())


@pytest.mark.point("P27")
@pytest.mark.parametrize("major", [1, 0xFFFF])
def test_another_major_version_is_refused_and_ends_the_connection(server: Server, major: int) -> None:
    with RawPeer.connect(server.path) as client:
        assert client.refused(raw.version(major, 0)) == errno.EINVAL
        client.expect_closed()


@pytest.mark.point("P28", "P29")
def test_the_answer_suits_qemus_buffer_and_its_checks(server: Server) -> None:
    with RawPeer.connect(server.path) as client:
        question = raw.version()
        answer = client.ask(question)
        assert answer.size <= len(question)
        assert answer.fds == ()
        assert answer.payload.endswith(b"}\0")
        said = json.loads(answer.payload[4:-1])["capabilities"]
        assert 0 < said["max_msg_fds"] <= 16
        assert 0 < said["max_data_xfer_size"] <= 64 << 20
        assert 0 < said["max_dma_maps"] <= 65535
        assert said["pgsizes"] > 0
        assert said["pgsizes"] % 4096 == 0
        assert said.keys() <= {
            "max_msg_fds", "max_data_xfer_size", "max_dma_maps", "pgsizes", "migration"
        }  # fmt: skip


@pytest.mark.point("P30", "P31")
@pytest.mark.parametrize("said", [b"", b"{}\0", text({}), text({"colour": "blue"}), b'{"x":[1]}\0'])
def test_a_client_that_says_nothing_is_served(server: Server, said: bytes) -> None:
    with RawPeer.connect(server.path) as client:
        assert b"capabilities" in client.negotiate(said).payload
        assert len(client.read(3, 0, 1 << 20)) == 1 << 20


@pytest.mark.point("P32", "P33")
@pytest.mark.parametrize(
    "said",
    [
        b"{",
        b"{}",
        b"\0",
        b"[]\0",
        b"\xff\xfe\0",
        b'{"capabilities":[]}\0',
        b'{"capabilities":{}}\0\0',
        b'{"capabilities":{"max_msg_fds":1,"max_msg_fds":2}}\0',
        b'{"capabilities":{"max_msg_fds":' + b"9" * 5000 + b"}}\0",
        b"[" * 50_000 + b"\0",
        b'"' + b"x" * (1 << 20) + b'"\0',
        *map(text, [None, {"max_msg_fds": "16"}, {"max_msg_fds": -1}, {"max_data_xfer_size": 1.5}]),
        *map(text, [{"max_msg_fds": 1025}, {"pgsizes": 4095}, {"pgsizes": 0}, {"twin_socket": 1}]),
    ],
    ids=lambda said: repr(said[:40]),
)
def test_capabilities_that_cannot_be_are_refused_and_end_the_connection(server: Server, said: bytes) -> None:
    with RawPeer.connect(server.path) as client:
        assert client.refused(raw.version(text=said)) == errno.EINVAL
        client.expect_closed()


@pytest.mark.point("P36")
def test_a_second_version_is_refused_and_the_connection_kept(server: Server) -> None:
    with RawPeer.connect(server.path) as client:
        client.negotiate()
        for major in (0, 1):
            assert client.refused(raw.version(major)) == errno.EINVAL
        client.ask(raw.device_info())


@pytest.mark.point("P34")
def test_a_client_that_takes_no_descriptor_gets_none(server: Server) -> None:
    with RawPeer.connect(server.path) as client:
        client.negotiate(text({"max_msg_fds": 0}))
        for argsz in (32, 4096):
            answer = client.ask(raw.region_info(3, argsz))
            assert answer.fds == ()
            assert struct.unpack_from("=I", answer.payload, 4)[0] == 3  # read and write, not mmap


@pytest.mark.point("P82")
def test_an_author_whose_on_connect_fails_loses_the_client_not_the_server(
    serve: Serve, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    class Shy(Gadget):
        shy = True

        def on_connect(self) -> None:
            if self.shy:
                raise RuntimeError("not today")

    server = serve(device := Shy())
    reader, writer = os.pipe()
    with RawPeer.connect(server.path) as client:
        assert client.refused(raw.version(), [reader]) == errno.EIO
        client.expect_closed()
    assert "not today" in caplog.text
    device.shy = False
    connect(server).ask(raw.device_info())
    os.close(reader)
    os.close(writer)
