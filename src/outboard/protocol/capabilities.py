"""The JSON text of VERSION: what each side can take, and how the server answers an offer.

vfio-user specification, "VFIO_USER_VERSION". The text comes from the peer before anything is agreed,
so it is bounded, and every value in it is checked before it is believed.
"""

import json
from dataclasses import dataclass, field
from typing import Any, Self

from outboard.errors import LocalProtocolError, RemoteProtocolError

MAX_TEXT = 64 * 1024  # ten keys exist; QEMU sends 193 bytes
MAX_MSG_FDS = 1024  # libvfio-user refuses more, and the kernel carries 253
PAGE = 4096
U64_MAX = 2**64 - 1


@dataclass(frozen=True, slots=True)
class TwinSocket:
    """A second socket for the server's commands: ``fd_index`` is its descriptor's place in the reply."""

    supported: bool = False
    fd_index: int | None = None


@dataclass(frozen=True, slots=True)
class Migration:
    """Dirty-page tracking: page size in bytes, and the largest bitmap in bytes."""

    pgsize: int = PAGE
    max_bitmap_size: int = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Capabilities:
    r"""What the sender of a VERSION can take. The defaults are those of a peer that says nothing.

    ``max_msg_fds`` descriptors a message, ``max_data_xfer_size`` bytes of data a message,
    ``max_dma_maps`` mappings at a time, ``pgsizes`` a bitmap of page sizes in bytes.

    >>> Capabilities(write_multiple=True).encode()[-39:]
    b'"pgsizes":4096,"write_multiple":true}}\x00'
    >>> Capabilities.decode(b'{"capabilities":{"max_msg_fds":8}}\0').max_msg_fds
    8
    """

    max_msg_fds: int = 1
    max_data_xfer_size: int = 1024 * 1024
    max_dma_maps: int = 65535
    pgsizes: int = PAGE
    twin_socket: TwinSocket = field(default_factory=TwinSocket)
    write_multiple: bool = False
    migration: Migration | None = None

    def answer(self, peer: "Capabilities") -> "Capabilities":
        """What a server that offers ``self`` tells ``peer``: its limits, and the features both have."""
        twin = self.twin_socket.supported and peer.twin_socket.supported
        return Capabilities(
            max_msg_fds=self.max_msg_fds,
            max_data_xfer_size=self.max_data_xfer_size,
            max_dma_maps=self.max_dma_maps,
            pgsizes=self.pgsizes,
            twin_socket=TwinSocket(True, 0) if twin else TwinSocket(),
            write_multiple=self.write_multiple and peer.write_multiple,
            migration=self.migration if peer.migration else None,
        )

    def check_offer(self) -> None:
        """Raises LocalProtocolError if QEMU would break the connection over these values of a server."""
        for name, value, most in (
            ("max_msg_fds", self.max_msg_fds, 16),
            ("max_data_xfer_size", self.max_data_xfer_size, 64 * 1024 * 1024),
            ("max_dma_maps", self.max_dma_maps, 65535),
        ):
            if not 0 < value <= most:
                raise LocalProtocolError(f"a server's {name} must be from 1 to {most}, not {value}")
        if self.pgsizes <= 0 or self.pgsizes % PAGE:
            raise LocalProtocolError(f"a server's pgsizes must be a multiple of {PAGE}, not {self.pgsizes}")

    def encode(self) -> bytes:
        """The JSON text with its NUL. Features that are off are left out, to stay short."""
        values: dict[str, Any] = {
            "max_msg_fds": self.max_msg_fds,
            "max_data_xfer_size": self.max_data_xfer_size,
            "max_dma_maps": self.max_dma_maps,
            "pgsizes": self.pgsizes,
        }
        if self.write_multiple:
            values["write_multiple"] = True
        if self.twin_socket.supported:
            index = self.twin_socket.fd_index
            values["twin_socket"] = {"supported": True} | ({} if index is None else {"fd_index": index})
        if self.migration is not None:
            values["migration"] = {
                "pgsize": self.migration.pgsize,
                "max_bitmap_size": self.migration.max_bitmap_size,
            }
        return json.dumps({"capabilities": values}, separators=(",", ":")).encode() + b"\0"

    @classmethod
    def decode(cls, text: bytes) -> Self:
        """The capabilities in a JSON text that ends with NUL; keys nobody knows are passed over.

        Raises RemoteProtocolError for anything that is not such a text, or a value out of its range.
        """
        values = _Values(_parse(text), "VERSION").section("capabilities")
        twin = values.section("twin_socket")
        migration = values.section("migration")
        return cls(
            max_msg_fds=values.number("max_msg_fds", 1, 0, MAX_MSG_FDS),
            max_data_xfer_size=values.number("max_data_xfer_size", 1024 * 1024, 1, U64_MAX),
            max_dma_maps=values.number("max_dma_maps", 65535, 0, U64_MAX),
            pgsizes=values.pages("pgsizes"),
            twin_socket=TwinSocket(
                twin.flag("supported"),
                twin.number("fd_index", 0, 0, MAX_MSG_FDS - 1) if "fd_index" in twin.values else None,
            ),
            write_multiple=values.flag("write_multiple"),
            migration=Migration(
                migration.page("pgsize"),
                migration.number("max_bitmap_size", Migration().max_bitmap_size, 0, U64_MAX),
            )
            if "migration" in values.values
            else None,
        )


class _Values:
    """One object of the text, read key by key with the type and range each key has."""

    def __init__(self, values: object, name: str) -> None:
        if not isinstance(values, dict):
            raise RemoteProtocolError(f"{name} must be a JSON object, not {_short(values)}")
        self.values: dict[str, object] = values

    def section(self, key: str) -> "_Values":
        return _Values(self.values.get(key, {}), key)

    def flag(self, key: str) -> bool:
        value = self.values.get(key, False)
        if not isinstance(value, bool):
            raise RemoteProtocolError(f"{key} must be true or false, not {_short(value)}")
        return value

    def number(self, key: str, default: int, low: int, high: int) -> int:
        value = self.values.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise RemoteProtocolError(f"{key} must be an integer from {low} to {high}, not {_short(value)}")
        return value

    def pages(self, key: str) -> int:
        value = self.number(key, PAGE, PAGE, U64_MAX)
        if value % PAGE:
            raise RemoteProtocolError(f"{key} must be a multiple of {PAGE}, not {value}")
        return value

    def page(self, key: str) -> int:
        value = self.pages(key)
        if value & (value - 1):
            raise RemoteProtocolError(f"{key} must be a power of two, not {value}")
        return value


def _parse(text: bytes) -> object:
    if len(text) > MAX_TEXT:
        raise RemoteProtocolError(f"the JSON text of VERSION has {len(text)} bytes, {MAX_TEXT} at most")
    if text.find(b"\0") != len(text) - 1:
        raise RemoteProtocolError("the JSON text of VERSION must end with its only NUL")
    try:
        return json.loads(text[:-1].decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise RemoteProtocolError(f"the JSON text of VERSION cannot be read: {error}") from error


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key comes twice")
    return values


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not a JSON number")


def _short(value: object) -> str:
    if isinstance(value, dict | list):
        return f"a JSON {type(value).__name__}"
    if isinstance(value, int) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"
    return repr(value)[:60]


SERVER_DEFAULTS = Capabilities(max_msg_fds=16)
CLIENT_DEFAULTS = Capabilities(max_msg_fds=16, write_multiple=True, migration=Migration())
