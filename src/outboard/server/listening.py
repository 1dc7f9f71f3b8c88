"""Where a server listens, and whom it lets in: the socket's file, its mode and owner, the peer's credentials.

unix(7). vfio-user's security considerations leave it to the file system who may connect; SO_PEERCRED says
besides who did. A name is looked up once, when the server starts.
"""

import errno
import grp
import os
import pwd
import socket
import stat
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, Self

from outboard.errors import SetupError

QUEUE = 16
"""Clients that may wait to be taken; the next one's connect() fails or waits itself."""
ACCEPT_AGAIN = 1.0
"""Seconds until a client that could not be taken is tried again: time must free a descriptor first."""
SO_PEERGROUPS = 59
"""The peer's supplementary groups; Python's socket module has no name for it."""
CREDENTIALS = struct.Struct("=iII")
GROUP_ID = struct.Struct("=I")
MOST_GROUPS = 256
"""Python's getsockopt takes no more; of a process in more of them only the group it runs as is known."""
PRIVATE, SHARED = 0o600, 0o660


class Peer(NamedTuple):
    """Who is at the other end of a connection: the process that called connect(), as it was then."""

    pid: int
    uid: int
    groups: frozenset[int]

    @classmethod
    def of(cls, connection: socket.socket) -> Self:
        """The peer of a connected UNIX socket."""
        given = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
        pid, uid, gid = CREDENTIALS.unpack(given)
        try:
            others = connection.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, GROUP_ID.size * MOST_GROUPS)
        except OSError:  # too many, or Linux before 4.13
            others = b""
        return cls(pid, uid, frozenset([gid, *(group for (group,) in GROUP_ID.iter_unpack(others))]))

    def __str__(self) -> str:
        return f"process {self.pid} of user {self.uid}, groups {', '.join(map(str, sorted(self.groups)))}"


class Admission:
    """Who may be a client: these users, and members of these groups, each by name or number.

    With neither, everyone whom the socket's file lets connect. Raises SetupError for a name nobody has.
    """

    def __init__(self, users: Iterable[str | int] = (), groups: Iterable[str | int] = ()) -> None:
        self.users = frozenset(user_id(user) for user in users)
        self.groups = frozenset(group_id(group) for group in groups)

    def admits(self, peer: Peer) -> bool:
        """Whether `peer` may be a client."""
        if not self.users and not self.groups:
            return True
        return peer.uid in self.users or not self.groups.isdisjoint(peer.groups)


def listen(path: Path, *, mode: int | None = None, owner: str | None = None) -> socket.socket:
    """A listening socket at `path`; a dead server's file is replaced, a live server's is not.

    ``owner`` is "user", "user:group" or ":group", by name or number; ``mode`` the permission bits of the
    socket's file (to connect takes the right to write). An owner without a mode makes it 0o660, neither
    leaves it to the umask. The file is never more open than that, and nobody can connect before all of it
    holds. Raises SetupError and OSError.
    """
    user, group = (-1, -1) if owner is None else owner_ids(owner)
    if mode is None and owner is not None:
        mode = SHARED
    if mode is not None and not 0 <= mode <= 0o777:
        raise SetupError(f"{mode:#o} is no mode of a socket: three octal digits are, as 0o660")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.exists() or path.is_symlink():
            _remove_stale(path)
        if mode is not None:
            # bind() takes the file's mode from the socket's: so the file is born closed to others.
            os.fchmod(listener.fileno(), PRIVATE)
        listener.bind(os.fspath(path))
        try:
            if mode is not None:
                _give(path, user, group, mode)
            listener.listen(QUEUE)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
    except BaseException as error:
        listener.close()
        if isinstance(error, OSError) and error.errno is None:
            raise SetupError(f"cannot listen on {path}: {error}") from error
        raise
    return listener


def owner_ids(owner: str) -> tuple[int, int]:
    """The numbers of "user", "user:group" or ":group", -1 for the one that is left out.

    >>> owner_ids("root:0"), owner_ids(":7"), owner_ids("7")
    ((0, 0), (-1, 7), (7, -1))
    """
    user, _, group = owner.partition(":")
    if not user and not group:
        raise SetupError(f"{owner!r} is no owner of a socket: write user:group, user, or :group")
    return user_id(user) if user else -1, group_id(group) if group else -1


def user_id(user: str | int) -> int:
    """The number of a user named by name or number. Raises SetupError."""
    try:
        return _number(user) if str(user).isdecimal() else pwd.getpwnam(str(user)).pw_uid
    except KeyError as error:
        raise SetupError(f"this machine has no user {user!r}: name another, or give its number") from error


def group_id(group: str | int) -> int:
    """The number of a group named by name or number. Raises SetupError."""
    try:
        return _number(group) if str(group).isdecimal() else grp.getgrnam(str(group)).gr_gid
    except KeyError as error:
        raise SetupError(f"this machine has no group {group!r}: name another, or give its number") from error


def _number(text: str | int) -> int:
    # The largest one means "none" to chown(2).
    if int(text) >= 0xFFFF_FFFF:
        raise SetupError(f"{text} is no number of a user or group: they end at {0xFFFF_FFFE}")
    return int(text)


def _give(path: Path, user: int, group: int, mode: int) -> None:
    """Another owner and mode for the socket just made at `path`, and for nothing that took its place."""
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        if not stat.S_ISSOCK(status.st_mode) or status.st_uid != os.geteuid():
            raise SetupError(
                f"{path} was replaced by somebody: listen in a folder that only you may write to"
            )
        if (user, group) != (-1, -1):
            os.chown(f"/proc/self/fd/{fd}", user, group)
        os.chmod(f"/proc/self/fd/{fd}", mode)
    except PermissionError as error:
        raise SetupError(
            f"cannot give {path} to user {user}, group {group} (-1: as it is): only root gives files away,"
            " and others only to a group of their own"
        ) from error
    finally:
        os.close(fd)


def _remove_stale(path: Path) -> None:
    if not stat.S_ISSOCK(path.stat().st_mode):
        raise SetupError(f"{path} is there and is not a socket: name another path, or remove it")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except OSError as error:
            if error.errno != errno.EAGAIN:
                raise
    raise SetupError(f"another server listens on {path}: stop it, or name another path")
