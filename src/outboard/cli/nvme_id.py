"""An NVMe controller's and a namespace's own description, as ``nvme id-ctrl`` and ``nvme id-ns`` print it.

The names and places of the fields are the controller's own table (`outboard.devices.nvme.layouts`).
"""

from collections.abc import Iterator, Mapping
from uuid import UUID

from outboard.devices.nvme.layouts import IDENTIFY_CONTROLLER, IDENTIFY_NAMESPACE

Fields = dict[str, int | str | list[dict[str, int | bool]]]

TEXT = ("sn", "mn", "fr", "subnqn")
NUMBERS_IN_BYTES = ("ieee",)
UUIDS = ("fguid",)
HEXADECIMAL = set(
    "vid ssvid cntlid ver rtd3r rtd3e oaes ctratt rrls oacs frmw lpa avscc apsta hctma sanicap anacap "
    "sqes cqes ocfs oncs fuses fna vwc icsvscc sgls "
    "nsze ncap nuse nsfeat flbas mc dpc dps nmic rescap fpi".split()
)
FORMATS, FORMAT_TABLE = 16, 128
"""How many block formats a namespace can list, and where they begin."""

NAME_WIDTH = 10


def controller_fields(data: bytes) -> Fields:
    """What Identify Controller's 4096 bytes say."""
    return readable(IDENTIFY_CONTROLLER.decode(data))


def namespace_fields(data: bytes) -> Fields:
    """What Identify Namespace's 4096 bytes say, with its block formats as ``lbaf``."""
    fields = readable(IDENTIFY_NAMESPACE.decode(data))
    del fields["lbafs"]
    used = data[26] & 0xF
    formats = []
    for index in range(min(data[25] + 1, FORMATS)):
        at = FORMAT_TABLE + 4 * index
        metadata, shift, performance = (
            int.from_bytes(data[at : at + 2], "little"),
            data[at + 2],
            data[at + 3] & 3,
        )
        formats.append({"ms": metadata, "lbads": shift, "rp": performance, "in_use": index == used})
    return {**fields, "lbaf": formats}


def readable(values: Mapping[str, int | bytes]) -> Fields:
    """Numbers as they are, names as text, identifiers as hexadecimal digits."""
    fields: Fields = {}
    for name, value in values.items():
        if isinstance(value, int):
            fields[name] = value
        elif name in TEXT:
            fields[name] = value.rstrip(b" \0").decode("ascii", "backslashreplace")
        elif name in NUMBERS_IN_BYTES:
            fields[name] = value[::-1].hex()
        elif name in UUIDS:
            fields[name] = str(UUID(bytes=value))
        else:
            fields[name] = value.hex()
    return fields


def render(title: str, fields: Fields) -> Iterator[str]:
    """The title, and a line for each field."""
    yield title
    for name, value in fields.items():
        if isinstance(value, list):
            for index, entry in enumerate(value):
                parts = f"ms:{entry['ms']:<3} lbads:{entry['lbads']:<2} rp:{hexadecimal(entry['rp'])}"
                yield f"{name:<5}{index:>2} : {parts}{' (in use)' if entry['in_use'] else ''}"
        else:
            shown = hexadecimal(value) if isinstance(value, int) and name in HEXADECIMAL else value
            yield f"{name:<{NAME_WIDTH}}: {shown}"


def hexadecimal(value: int) -> str:
    """A number as C's ``%#x`` has it: nothing goes before a zero."""
    return f"{value:#x}" if value else "0"
