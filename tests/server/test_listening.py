"""Who may connect: the mode and owner of the socket's file, and the credentials of the peer."""

import grp
import logging
import os
import pwd
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from outboard import Server
from outboard.errors import SetupError
from outboard.server.listening import Peer, group_id, owner_ids, user_id
from tests import raw
from tests.raw import RawPeer, open_descriptors
from tests.server.gadgets import Gadget

STRANGER, THEIR_GROUP, OTHER_GROUP = 12345, 23456, 34567
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


def as_user(uid: int, gid: int, groups: list[int], act: Callable[[], None]) -> int:
    """Does `act` in a process of that user; 0, or the errno with which it fails."""
    child = os.fork()
    if not child:
        status = 255
        try:
            os.setgroups(groups)
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            act()
            status = 0
        except OSError as error:
            status = error.errno or 254
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def be_served(path: Path) -> None:
    with RawPeer.connect(path) as client:
        client.negotiate()
        client.ask(raw.device_info())


def be_turned_away(path: Path) -> None:
    with RawPeer.connect(path) as client:
        client.expect_closed()


@pytest.fixture
def open_folder(folder: Path) -> Path:
    """A folder that every user may look into."""
    folder.chmod(0o755)
    return folder


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    before = os.umask(0o022)
    os.umask(before)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_the_sockets_file_has_the_mode_asked_for_whatever_the_umask(
    folder: Path, umask: Callable[[int], int], mode: int, mask: int
) -> None:
    umask(mask)
    with Server(Gadget(), folder / "s", mode=mode):
        assert stat.S_IMODE((folder / "s").stat().st_mode) == mode
        assert umask(mask) == mask


def test_without_a_mode_the_umask_decides(folder: Path, umask: Callable[[int], int]) -> None:
    umask(0o027)
    with Server(Gadget(), folder / "s"):
        assert stat.S_IMODE((folder / "s").stat().st_mode) == 0o750


def test_at_no_moment_is_the_socket_wider_open_than_asked(folder: Path, umask: Callable[[int], int]) -> None:
    path, seen = folder / "s", set[int]()

    def look(frame: object, event: str, argument: Any) -> None:
        if event in ("c_call", "c_return"):
            sys.setprofile(None)
            if path.exists():
                seen.add(stat.S_IMODE(path.stat().st_mode))
            sys.setprofile(look)

    umask(0)
    device = Gadget()
    sys.setprofile(look)
    try:
        server = Server(device, path, mode=0o640, owner=f"{os.geteuid()}:{os.getegid()}")
    finally:
        sys.setprofile(None)
    server.close()
    assert seen == {0o600, 0o640}


@as_root
def test_the_socket_is_given_to_its_owner_who_may_connect_while_others_may_not(open_folder: Path) -> None:
    path = open_folder / "s"
    with Server(Gadget(), path, owner=f"{STRANGER}:{THEIR_GROUP}").start():
        status = path.stat()
        assert (status.st_uid, status.st_gid) == (STRANGER, THEIR_GROUP)
        assert stat.S_IMODE(status.st_mode) == 0o660
        for uid, gid, groups in ((STRANGER, 1, []), (1, THEIR_GROUP, []), (1, 1, [THEIR_GROUP])):
            assert as_user(uid, gid, list(groups), lambda: be_served(path)) == 0
        assert as_user(STRANGER + 1, 1, [], lambda: be_served(path)) == 13  # EACCES


@as_root
@pytest.mark.parametrize("owner", [f"{STRANGER}", f":{THEIR_GROUP}"])
def test_half_an_owner_leaves_the_other_half(folder: Path, owner: str) -> None:
    with Server(Gadget(), folder / "s", owner=owner):
        status = (folder / "s").stat()
        assert (status.st_uid, status.st_gid) in ((STRANGER, os.getegid()), (0, THEIR_GROUP))


def test_owners_are_named_by_name_or_number() -> None:
    user, group = pwd.getpwuid(0).pw_name, grp.getgrgid(0).gr_name
    assert owner_ids(f"{user}:{group}") == (0, 0)
    assert owner_ids("107:109") == (107, 109)
    assert (user_id(user), group_id(group), user_id(5)) == (0, 0, 5)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"owner": "nobody-has-this-name"}, "no user 'nobody-has-this-name'"),
        ({"owner": ":nobody-has-this-name"}, "no group 'nobody-has-this-name'"),
        ({"owner": ""}, "write user:group"),
        ({"owner": ":"}, "write user:group"),
        ({"owner": "4294967295"}, "4294967295 is no number of a user"),
        ({"mode": 0o1777}, "0o1777 is no mode"),
        ({"mode": -1}, "is no mode"),
        ({"allow_users": ["nobody-has-this-name"]}, "no user"),
        ({"allow_groups": ["nobody-has-this-name"]}, "no group"),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_is_made(
    folder: Path, options: dict[str, Any], sentence: str
) -> None:
    before = open_descriptors()
    with pytest.raises(SetupError, match=sentence):
        Server(Gadget(), folder / "s", **options)
    assert not (folder / "s").exists()
    assert open_descriptors() == before


def test_a_mode_for_an_inherited_descriptor_is_refused() -> None:
    with pytest.raises(SetupError, match="give them with a path"):
        Server(Gadget(), fd=0, mode=0o600)


@as_root
def test_a_socket_that_cannot_be_given_away_is_not_left_behind(open_folder: Path) -> None:
    open_folder.chmod(0o777)

    def give_away() -> None:
        with pytest.raises(SetupError, match="only root gives files away"):
            Server(Gadget(), open_folder / "s", owner="0:0")
        assert not (open_folder / "s").exists()

    assert as_user(STRANGER, THEIR_GROUP, [], give_away) == 0


@as_root
@pytest.mark.parametrize(
    ("allowed", "let_in", "turned_away"),
    [
        ({"allow_users": [STRANGER]}, (STRANGER, 1, []), (STRANGER + 1, 1, [])),
        ({"allow_groups": [THEIR_GROUP]}, (1, THEIR_GROUP, []), (1, 1, [OTHER_GROUP])),
        ({"allow_groups": [THEIR_GROUP]}, (1, 1, [OTHER_GROUP, THEIR_GROUP]), (STRANGER, 1, [])),
        ({"allow_users": [STRANGER], "allow_groups": [THEIR_GROUP]}, (STRANGER, 1, []), (1, 1, [])),
    ],
)
def test_a_peer_that_is_not_allowed_is_let_go_with_a_line_that_names_it(
    open_folder: Path,
    allowed: dict[str, Any],
    let_in: tuple[int, int, list[int]],
    turned_away: tuple[int, int, list[int]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    path, device = open_folder / "s", Gadget()
    with Server(device, path, mode=0o666, **allowed).start():
        for _ in range(3):
            assert as_user(*turned_away, lambda: be_turned_away(path)) == 0
        assert device.log == []
        assert as_user(*let_in, lambda: be_served(path)) == 0
    lines = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(lines) == 3
    assert all(f"of user {turned_away[0]}," in line for line in lines)


@as_root
def test_strangers_disturb_neither_the_client_nor_the_one_who_waits(open_folder: Path) -> None:
    path, device = open_folder / "s", Gadget()
    before = open_descriptors()
    server = Server(device, path, mode=0o666, allow_users=[os.geteuid()])
    with server.start(), RawPeer.connect(path) as client:
        client.negotiate()
        for _ in range(5):
            assert as_user(STRANGER, 1, [], lambda: RawPeer.connect(path).close()) == 0
        client.ask(raw.device_info())
        with RawPeer.connect(path) as waiting:
            waiting.send(raw.version())
            client.close()
            assert waiting.receive().command == raw.VERSION
    assert open_descriptors() == before


def test_an_inherited_connection_is_checked_too() -> None:
    ours, theirs = socket.socketpair()
    before = open_descriptors()
    with ours, theirs, pytest.raises(SetupError, match=f"not allowed: process {os.getpid()} of user"):
        Server(Gadget(), fd=os.dup(theirs.fileno()), allow_users=[os.geteuid() + 1])
    assert open_descriptors() == before - 2


def test_a_peer_is_the_process_that_connected() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        peer = Peer.of(ours)
        assert (peer.pid, peer.uid) == (os.getpid(), os.geteuid())
        assert os.getegid() in peer.groups
