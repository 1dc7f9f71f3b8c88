"""Options of the commands that listen: the socket's mode and owner, and who is served on it."""

from dataclasses import dataclass
from typing import Annotated, TypedDict

from cyclopts import Group, Parameter

from outboard.errors import SetupError

ACCESS = Group("Who may connect")


class ServerAccess(TypedDict):
    """What `Server` calls these options."""

    mode: int | None
    owner: str | None
    allow_users: tuple[str, ...]
    allow_groups: tuple[str, ...]


@Parameter(name="*", group=ACCESS)
@dataclass(frozen=True)
class Access:
    """Who may connect.

    Parameters
    ----------
    socket_mode
        Permission bits of the socket's file in octal, as 660: to connect takes the right to write. With
        an owner 660, else as the umask says.
    socket_owner
        USER:GROUP, USER or :GROUP, by name or number, as for chown.
    allow_user
        Serve only processes of this user, by name or number; may be repeated.
    allow_group
        Serve only processes that are in this group, by name or number; may be repeated.
    """

    socket_mode: str | None = None
    socket_owner: str | None = None
    allow_user: Annotated[tuple[str, ...], Parameter(alias="--allow-uid", show_default=False)] = ()
    allow_group: Annotated[tuple[str, ...], Parameter(alias="--allow-gid", show_default=False)] = ()

    def options(self) -> ServerAccess:
        """As arguments for `Server`. Raises SetupError for a mode that is no octal number."""
        try:
            mode = None if self.socket_mode is None else int(self.socket_mode, 8)
        except ValueError as error:
            raise SetupError(
                f"--socket-mode {self.socket_mode}: write the permission bits in octal, as 660"
            ) from error
        return {
            "mode": mode,
            "owner": self.socket_owner,
            "allow_users": self.allow_user,
            "allow_groups": self.allow_group,
        }


ANYONE = Access()
"""Whoever the umask lets connect."""
