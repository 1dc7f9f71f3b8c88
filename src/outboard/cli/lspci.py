"""Configuration space in words, laid out as ``lspci -vv`` lays it out.

PCI Local Bus 3.0 chapter 6, PCI Express Base chapter 7. `describe` gives names and values, ready for
JSON; `render` prints them. A capability that is not known here is shown by its number.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

Fields = dict[str, Any]
"""Names and values, of the kinds JSON has."""

CLASSES = {
    0x00FF: "Unassigned class",
    0x0100: "SCSI storage controller",
    0x0106: "SATA controller",
    0x0108: "Non-Volatile memory controller",
    0x0200: "Ethernet controller",
    0x0300: "VGA compatible controller",
    0x0403: "Audio device",
    0x0500: "RAM memory",
    0x0700: "Serial controller",
    0x0780: "Communication controller",
    0x0880: "System peripheral",
    0x0C03: "USB controller",
    0x1200: "Processing accelerators",
}
COMMAND_BITS = {
    "I/O": 0,
    "Mem": 1,
    "BusMaster": 2,
    "SpecCycle": 3,
    "MemWINV": 4,
    "VGASnoop": 5,
    "ParErr": 6,
    "SERR": 8,
    "FastB2B": 9,
    "DisINTx": 10,
}
STATUS_BITS = {
    "Cap": 4,
    "66MHz": 5,
    "FastB2B": 7,
    "ParErr": 8,
    ">TAbort": 11,
    "<TAbort": 12,
    "<MAbort": 13,
    ">SERR": 14,
    "<PERR": 15,
    "INTx": 3,
}
CAPABILITY_POINTER, FIRST_CAPABILITY, EXTENDED = 0x34, 0x40, 0x100


def describe(config: bytes, sizes: Sequence[int]) -> Fields:
    """What the 256 or 4096 bytes of ``config`` say; ``sizes``: BAR 0 to 5 and ROM, in bytes."""
    command, status = word(config, 0x04), word(config, 0x06)
    class_code = int.from_bytes(config[0x09:0x0C], "little")
    return {
        "vendor": word(config, 0x00),
        "device": word(config, 0x02),
        "class": class_code,
        "class_name": CLASSES.get(class_code >> 8, "Class"),
        "revision": config[0x08],
        "subsystem_vendor": word(config, 0x2C),
        "subsystem": word(config, 0x2E),
        "control": {name: flag(command, bit) for name, bit in COMMAND_BITS.items()},
        "status": {name: flag(status, bit) for name, bit in STATUS_BITS.items()},
        "interrupt": {
            "pin": " ABCD"[config[0x3D]].strip() if config[0x3D] <= 4 else "?",
            "line": config[0x3C],
        },
        "regions": list(regions(config, sizes)),
        "capabilities": [*capabilities(config), *extended_capabilities(config)],
    }


def regions(config: bytes, sizes: Sequence[int]) -> Iterator[Fields]:
    """The BARs that have a size, and the ROM."""
    upper = False
    for index in range(6):
        if upper or not sizes[index]:
            upper = False
            continue
        low = dword(config, 0x10 + 4 * index)
        port, upper = bool(low & 1), low & 7 == 4
        address = low & ~0x3 if port else low & ~0xF
        if upper:
            address |= dword(config, 0x14 + 4 * index) << 32
        kind = (
            "I/O ports"
            if port
            else f"Memory ({64 if upper else 32}-bit, {'' if low & 8 else 'non-'}prefetchable)"
        )
        yield {"region": index, "kind": kind, "address": address, "size": sizes[index]}
    if sizes[6]:
        yield {
            "region": 6,
            "kind": "Expansion ROM",
            "address": dword(config, 0x30) & ~0x7FF,
            "size": sizes[6],
        }


def capabilities(config: bytes) -> Iterator[Fields]:
    """The chain of capabilities below 0x100; ends where it loops."""
    at, seen = config[CAPABILITY_POINTER] & 0xFC, set[int]()
    while word(config, 0x06) & 0x10 and at >= FIRST_CAPABILITY and at not in seen:
        seen.add(at)
        id = config[at]
        name, decode = STANDARD.get(id, (f"Capability {id:#04x}", nothing))
        yield {"at": at, "id": id, "extended": False, "name": name} | decode(config, at)
        at = config[at + 1] & 0xFC


def extended_capabilities(config: bytes) -> Iterator[Fields]:
    """The chain of capabilities from 0x100 up; ends where it loops."""
    at, seen = EXTENDED, set[int]()
    while EXTENDED <= at <= len(config) - 4 and at not in seen and (header := dword(config, at)):
        seen.add(at)
        id, version = header & 0xFFFF, header >> 16 & 0xF
        name, decode = EXTENDED_NAMES.get(id, (f"Extended capability {id:#06x}", nothing))
        yield {"at": at, "id": id, "extended": True, "structure": version, "name": name} | decode(config, at)
        at = header >> 20 & 0xFFC


def nothing(config: bytes, at: int) -> Fields:
    """What is said of a capability that is not known."""
    return {}


def power_management(config: bytes, at: int) -> Fields:
    """PCI Bus Power Management Interface 1.2, section 3.2."""
    can, now = word(config, at + 2), word(config, at + 4)
    bits = {"pme_clock": 3, "dsi": 5, "d1": 9, "d2": 10, "wake_d0": 11, "wake_d1": 12, "wake_d2": 13}
    bits |= {"wake_d3hot": 14, "wake_d3cold": 15}
    return {
        "version": can & 7,
        **{name: flag(can, bit) for name, bit in bits.items()},
        "state": now & 3,
        "no_soft_reset": flag(now, 3),
        "pme_enable": flag(now, 8),
        "data_select": now >> 9 & 0xF,
        "data_scale": now >> 13 & 3,
        "pme": flag(now, 15),
    }


def msi(config: bytes, at: int) -> Fields:
    """PCI Local Bus 3.0, section 6.8.1."""
    control = word(config, at + 2)
    wide, maskable = flag(control, 7), flag(control, 8)
    data = at + (12 if wide else 8)
    return {
        "enable": flag(control, 0),
        "count": 1 << (control >> 4 & 7),
        "capable": 1 << (control >> 1 & 7),
        "maskable": maskable,
        "wide": wide,
        "address": dword(config, at + 4) | (dword(config, at + 8) << 32 if wide else 0),
        "data": word(config, data),
        "masking": dword(config, data + 4) if maskable else 0,
        "pending": dword(config, data + 8) if maskable else 0,
    }


def msix(config: bytes, at: int) -> Fields:
    """PCI Local Bus 3.0, section 6.8.2."""
    control = word(config, at + 2)
    table, pending = dword(config, at + 4), dword(config, at + 8)
    return {
        "enable": flag(control, 15),
        "count": (control & 0x7FF) + 1,
        "masked": flag(control, 14),
        "table_bar": table & 7,
        "table_offset": table & ~7,
        "pba_bar": pending & 7,
        "pba_offset": pending & ~7,
    }


def express(config: bytes, at: int) -> Fields:
    """PCI Express Base, section 7.5.3."""
    header, can = word(config, at + 2), dword(config, at + 4)
    control, status = word(config, at + 8), word(config, at + 10)
    link, link_status = dword(config, at + 12), word(config, at + 18)
    kinds = {0: "Endpoint", 1: "Legacy Endpoint", 9: "Root Complex Integrated Endpoint"}
    reports = {"correctable": 0, "non_fatal": 1, "fatal": 2, "unsupported": 3}
    return {
        "version": header & 0xF,
        "type": kinds.get(header >> 4 & 0xF, f"type {header >> 4 & 0xF}"),
        "largest_payload": 128 << (can & 7),
        "extended_tag_capable": flag(can, 5),
        "role_based_errors": flag(can, 15),
        "function_reset": flag(can, 28),
        **{f"report_{name}": flag(control, bit) for name, bit in reports.items()},
        "relaxed_ordering": flag(control, 4),
        "payload": 128 << (control >> 5 & 7),
        "extended_tag": flag(control, 8),
        "no_snoop": flag(control, 11),
        "read_request": 128 << (control >> 12 & 7),
        **{f"seen_{name}": flag(status, bit) for name, bit in reports.items()},
        "pending": flag(status, 5),
        "port": link >> 24,
        "link_speed": speed(link & 0xF),
        "link_width": link >> 4 & 0x3F,
        "speed": speed(link_status & 0xF),
        "width": link_status >> 4 & 0x3F,
    }


def vendor_specific(config: bytes, at: int) -> Fields:
    """PCI Local Bus 3.0, appendix H: a length, then what the vendor likes."""
    length = config[at + 2]
    return {"length": length, "data": config[at + 3 : at + length].hex(" ")}


def serial_number(config: bytes, at: int) -> Fields:
    """PCI Express Base, section 7.9.3."""
    return {"serial": config[at + 4 : at + 12][::-1].hex("-")}


def vendor_extended(config: bytes, at: int) -> Fields:
    """PCI Express Base, section 7.9.5."""
    header = dword(config, at + 4)
    return {"vsec": header & 0xFFFF, "revision": header >> 16 & 0xF, "length": header >> 20}


Decoder = Callable[[bytes, int], Fields]
STANDARD: Mapping[int, tuple[str, Decoder]] = {
    0x01: ("Power Management", power_management),
    0x05: ("MSI", msi),
    0x09: ("Vendor Specific Information", vendor_specific),
    0x10: ("Express", express),
    0x11: ("MSI-X", msix),
}
EXTENDED_NAMES: Mapping[int, tuple[str, Decoder]] = {
    0x0001: ("Advanced Error Reporting", nothing),
    0x0003: ("Device Serial Number", serial_number),
    0x000B: ("Vendor Specific Information", vendor_extended),
}

TEMPLATES: Mapping[Decoder, str] = {
    power_management: """\
 version {version}
Flags: PMEClk{pme_clock} DSI{dsi} D1{d1} D2{d2} \
PME(D0{wake_d0},D1{wake_d1},D2{wake_d2},D3hot{wake_d3hot},D3cold{wake_d3cold})
Status: D{state} NoSoftRst{no_soft_reset} PME-Enable{pme_enable} DSel={data_select} \
DScale={data_scale} PME{pme}""",
    msi: """\
: Enable{enable} Count={count}/{capable} Maskable{maskable} 64bit{wide}
Address: {address:016x}  Data: {data:04x}
Masking: {masking:08x}  Pending: {pending:08x}""",
    msix: """\
: Enable{enable} Count={count} Masked{masked}
Vector table: BAR={table_bar} offset={table_offset:08x}
PBA: BAR={pba_bar} offset={pba_offset:08x}""",
    express: """\
 (v{version}) {type}
DevCap:\tMaxPayload {largest_payload} bytes
\tExtTag{extended_tag_capable} RBE{role_based_errors} FLReset{function_reset}
DevCtl:\tCorrErr{report_correctable} NonFatalErr{report_non_fatal} FatalErr{report_fatal} \
UnsupReq{report_unsupported}
\tRlxdOrd{relaxed_ordering} ExtTag{extended_tag} NoSnoop{no_snoop}
\tMaxPayload {payload} bytes, MaxReadReq {read_request} bytes
DevSta:\tCorrErr{seen_correctable} NonFatalErr{seen_non_fatal} FatalErr{seen_fatal} \
UnsupReq{seen_unsupported} TransPend{pending}
LnkCap:\tPort #{port}, Speed {link_speed}, Width x{link_width}
LnkSta:\tSpeed {speed}, Width x{width}""",
    vendor_specific: ": Len={length:02x} <{data}>",
    serial_number: " {serial}",
    vendor_extended: ": ID={vsec:04x} Rev={revision} Len={length:03x} <?>",
    nothing: "",
}
"""How each kind is printed: behind its name, then its further lines; a bit becomes ``+`` or ``-``."""


def render(function: Fields) -> str:
    """What `describe` found, as lspci would print it, without a final newline."""
    return "\n".join(lines(function))


def lines(function: Fields) -> Iterator[str]:
    """The lines of `render`."""
    code = function["class"]
    revision = f" (rev {function['revision']:02x})" if function["revision"] else ""
    interface = f" (prog-if {code & 0xFF:02x})" if code & 0xFF else ""
    ids = f"[{function['vendor']:04x}:{function['device']:04x}]"
    yield f"{function['class_name']} [{code >> 8:04x}]: Device {ids}{revision}{interface}"
    if function["subsystem_vendor"]:
        yield f"\tSubsystem: Device [{function['subsystem_vendor']:04x}:{function['subsystem']:04x}]"
    yield f"\tControl: {words(function['control'])}"
    yield f"\tStatus: {words(function['status'])}"
    if function["interrupt"]["pin"]:
        yield f"\tInterrupt: pin {function['interrupt']['pin']} routed to IRQ {function['interrupt']['line']}"
    for region in function["regions"]:
        yield region_line(region)
    for capability in function["capabilities"]:
        yield from capability_lines(capability)


def region_line(region: Fields) -> str:
    """One region, with its size in the largest unit."""
    size, unit = region["size"], ""
    for larger in "KMGT":
        if size % 1024:
            break
        size, unit = size // 1024, larger
    title = (
        "Expansion ROM"
        if region["region"] == 6
        else f"Region {region['region']}: {region['kind'].partition(' (')[0]}"
    )
    more = region["kind"].partition(" (")[2]
    place = f"{region['address']:08x}" if region["address"] else "<unassigned>"
    return f"\t{title} at {place}{' (' + more if more else ''} [size={size}{unit}]"


def capability_lines(capability: Fields) -> Iterator[str]:
    """A capability: its place and name, and what its template says."""
    if capability["extended"]:
        place = f"[{capability['at']:03x} v{capability['structure']}]"
        known = EXTENDED_NAMES
    else:
        place = f"[{capability['at']:02x}]"
        known = STANDARD
    _, decode = known.get(capability["id"], ("", nothing))
    fields = {name: sign(value) if isinstance(value, bool) else value for name, value in capability.items()}
    first, *more = TEMPLATES[decode].format_map(fields).split("\n")
    yield f"\tCapabilities: {place} {capability['name']}{first}"
    yield from (f"\t\t{line}" for line in more)


def words(bits: Mapping[str, bool]) -> str:
    """Bits in a row.

    >>> words({"Mem": True, "BusMaster": False})
    'Mem+ BusMaster-'
    """
    return " ".join(name + sign(value) for name, value in bits.items())


def sign(value: bool) -> str:
    """How lspci prints a bit."""
    return "+" if value else "-"


def speed(code: int) -> str:
    """A link speed by its code."""
    return (
        ["unknown", "2.5GT/s", "5GT/s", "8GT/s", "16GT/s", "32GT/s", "64GT/s"][code]
        if code < 7
        else "unknown"
    )


def flag(value: int, bit: int) -> bool:
    """One bit."""
    return bool(value >> bit & 1)


def word(data: bytes, at: int) -> int:
    """The 16-bit number at ``at``; what is beyond the end reads zero."""
    return int.from_bytes(data[at : at + 2], "little")


def dword(data: bytes, at: int) -> int:
    """The 32-bit number at ``at``; what is beyond the end reads zero."""
    return int.from_bytes(data[at : at + 4], "little")
