"""Profiles: who is taken for whom, what the log says, and how a user overrides it."""

import errno
import json
import os
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from outboard import Server
from outboard.descriptors import close_all
from outboard.errors import RemoteError, SetupError
from outboard.protocol.messages import Version
from outboard.server.profiles import PROFILES, SPEC, detect
from outboard.testing import TestClient
from tests import raw
from tests.raw import RawPeer
from tests.server.conftest import Connect, Serve
from tests.server.gadgets import Gadget

QEMU_2026_JSON = raw.QEMU_JSON.replace(
    b'"write_multiple": true', b'"write_multiple": true, "sparse_mmap_fds": true'
)
RUST_JSON = b'{"capabilities":{"max_msg_fds":1,"max_data_xfer_size":1048576,"migration":{"pgsize":4096}}}\0'
SAMPLE_JSON = b'{"capabilities":{"max_msg_fds":32,"max_data_xfer_size":1048576}}\0'
PYTHON_JSON = (
    b'{"capabilities": {"max_data_xfer_size": 1048576, "max_msg_fds": 8,'
    b' "twin_socket": {"supported": true}}}\0'
)
OURS = (
    b'{"capabilities":{"max_msg_fds":16,"max_data_xfer_size":1048576,"max_dma_maps":65535,"pgsizes":4096,'
    b'"write_multiple":true,"migration":{"pgsize":4096,"max_bitmap_size":268435456}}}\0'
)
CLIENTS = [
    (0, raw.QEMU_JSON, "qemu"),
    (0, QEMU_2026_JSON, "qemu"),
    (1, RUST_JSON, "cloud-hypervisor"),
    (1, b"", "spdk"),
    (2, SAMPLE_JSON, "libvfio-user"),
    (2, b"", "libvfio-user"),
    (1, PYTHON_JSON, "libvfio-user"),
    (1, OURS, "spec"),
    (0, b"", "spec"),
    (0, b"{}\0", "spec"),
    (1, b'{"capabilities":{}}\0', "spec"),
    (3, b"", "spec"),
]


def said(minor: int, text: bytes) -> bytes:
    return struct.pack("=HH", 0, minor) + text


@pytest.mark.parametrize(("minor", "text", "name"), CLIENTS)
def test_each_client_is_known_by_its_version(minor: int, text: bytes, name: str) -> None:
    assert detect(Version.decode(said(minor, text))).name == name


@pytest.mark.parametrize(("minor", "text", "name"), CLIENTS)
def test_the_log_says_who_the_client_is_taken_for_and_why(
    gadget: Gadget, serve: Serve, caplog: pytest.LogCaptureFixture, minor: int, text: bytes, name: str
) -> None:
    caplog.set_level("INFO")
    server = serve(gadget)
    with RawPeer.connect(server.path) as client:
        client.ask(raw.version(0, minor, text))
    assert f"profile {name}: {PROFILES[name].told_by}" in caplog.text


@pytest.mark.point("P29")
@pytest.mark.parametrize(("minor", "text", "name"), CLIENTS)
def test_what_an_answer_to_version_says_is_what_its_client_can_take(
    gadget: Gadget, serve: Serve, minor: int, text: bytes, name: str
) -> None:
    server = serve(gadget)
    with RawPeer.connect(server.path) as client:
        question = raw.version(0, minor, text)
        answer = client.ask(question)
        for fd in answer.fds:
            os.close(fd)
    said = json.loads(answer.payload[4:-1])["capabilities"]
    assert "sparse_mmap_fds" not in said  # its capability's number is not settled
    assert ("write_multiple" in said) == (text is OURS)
    assert len(answer.fds) == ("twin_socket" in said) == (text is PYTHON_JSON)
    if name == "qemu":  # which reads the answer into the room of its question
        assert answer.size <= len(question)


def test_a_profile_that_is_given_is_not_doubted(
    gadget: Gadget, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with (
        Server(gadget, folder / "told", profile="libvfio-user").start() as server,
        RawPeer.connect(server.path) as client,
    ):
        client.negotiate()
        client.ask(raw.dma_map(0, 8192))
        assert client.refused(raw.dma_map(4096, 8192)) == errno.EINVAL
    assert "profile libvfio-user: as told" in caplog.text


def test_a_profile_of_ones_own_is_possible_and_so_it_is_in_memory(gadget: Gadget) -> None:
    mine = replace(SPEC, name="mine", message_dma=False, overlap_errno=errno.EBUSY)
    with TestClient(gadget, strict=False, profile=mine) as client:
        client.memory(8192, 0)
        with pytest.raises(RemoteError) as caught:
            client.memory(8192, 4096)
        assert caught.value.errno == errno.EBUSY
    with TestClient(gadget, strict=False, profile="spdk") as client:
        info, fds = client.region_info(2)
        assert len(info.areas) == len(fds) == 2
        close_all(fds)


def test_how_failed_reads_are_answered_can_be_chosen_apart_from_the_profile(
    gadget: Gadget, folder: Path, connect: Connect
) -> None:
    with Server(gadget, folder / "both", profile="cloud-hypervisor", on_error="error").start() as server:
        assert connect(server).refused(raw.read(0, 0x10, 4)) == errno.EIO


def test_an_unknown_profile_is_refused_with_those_there_are(gadget: Gadget, folder: Path) -> None:
    with pytest.raises(SetupError, match=r"no profile 'crosvm': it is one of auto, .*qemu-10\.1"):
        Server(gadget, folder / "no", profile="crosvm")  # type: ignore[arg-type]
    assert not (folder / "no").exists()


def test_an_overlap_is_eexist_as_specified_for_whom_nothing_else_is_known(
    gadget: Gadget, serve: Serve, connect: Connect
) -> None:
    client = connect(serve(gadget))
    client.ask(raw.dma_map(0, 8192))
    assert client.refused(raw.dma_map(4096, 8192)) == errno.EEXIST
