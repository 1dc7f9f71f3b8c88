"""Identify: who the controller is, what it can do, which namespaces there are (NVMe Base 2.0, 5.17)."""

import struct
from collections.abc import Callable, Iterable, Mapping

from outboard.devices.nvme import ana, layouts, power, reservations
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.copying import FORMATS_OFFERED, MOST_BLOCKS, MOST_BLOCKS_OF_RANGE, MOST_RANGES
from outboard.devices.nvme.events import ACCESS_NOTICES, OFFERED_NOTICES
from outboard.devices.nvme.fused import FUSES
from outboard.devices.nvme.management import sanitizing, write_protection
from outboard.devices.nvme.management.drive_commands import FORMAT_ATTRIBUTES
from outboard.devices.nvme.management.firmware import GRANULARITY, MOST_ACTIVATION_TIME, SLOTS
from outboard.devices.nvme.metadata import BYTE_ALIGNED_BUFFER, SGL_FOR_METADATA
from outboard.devices.nvme.namespace import (
    ANA_GROUPS,
    FORMATS,
    OUI,
    BlockFormat,
    Names,
    Namespace,
    derived_uuid,
)
from outboard.devices.nvme.persistent_events import UNITS
from outboard.devices.nvme.placement import ENDURANCE_GROUP
from outboard.devices.nvme.protection import EXTENDED_FORMATS
from outboard.devices.nvme.sgl import BIT_BUCKETS, LONGER_THAN_DATA, OFFERED
from outboard.devices.nvme.spec import BROADCAST, PAGE, VERSION, AdminOpcode, Cns, Csi, IoOpcode
from outboard.devices.nvme.state import State
from outboard.devices.nvme.status import CommandFailed, Status
from outboard.devices.nvme.subsystem import Subsystem
from outboard.devices.nvme.transfer import deliver
from outboard.devices.nvme.zone_identify import zoned_controller, zoned_namespace
from outboard.storage.fast import Descriptor, fast_of

SIZE = 4096
LIST_LENGTH = 1024
MOST_IN_LIST = 2047
"""Identifiers in a list of namespaces, and in one of controllers."""

_SELECT, _TIMESTAMP = 1 << 4, 1 << 6
"""Bits of ONCS. SELECT: the Select field of Get Features, and Save of Set Features, mean something."""

_ONCS: dict[int, int] = {
    IoOpcode.COMPARE: 1 << 0,
    IoOpcode.WRITE_UNCORRECTABLE: 1 << 1,
    IoOpcode.DATASET_MANAGEMENT: 1 << 2,
    IoOpcode.WRITE_ZEROES: 1 << 3,
    IoOpcode.RESERVATION_REGISTER: 1 << 5,
    IoOpcode.VERIFY: 1 << 7,
    IoOpcode.COPY: 1 << 8,
}

_OACS: dict[int, int] = {
    AdminOpcode.SECURITY_SEND: 1 << 0,
    AdminOpcode.FORMAT_NVM: 1 << 1,
    AdminOpcode.FIRMWARE_COMMIT: 1 << 2,
    AdminOpcode.NAMESPACE_MANAGEMENT: 1 << 3,
    AdminOpcode.DEVICE_SELF_TEST: 1 << 4,
    AdminOpcode.DIRECTIVE_SEND: 1 << 5,
    AdminOpcode.GET_LBA_STATUS: 1 << 9,
}

_DOORBELL_BUFFER_CONFIG = 1 << 8
"""A bit of OACS."""

_PROGRESS_SUPPORTED = 1 << 7
"""A bit of FPI."""

_SEVERAL = 0b1011
"""CMIC: several ports, several controllers, asymmetric namespace access."""

_ANA = {
    "anatt": ana.TRANSITION,
    "anacap": ana.CAPABILITIES,
    "anagrpmax": ANA_GROUPS,
    "nanagrpid": ANA_GROUPS,
}

_LONG_HOST_IDENTIFIERS, _ENDURANCE_GROUPS, _UUIDS, _DATA_PLACEMENT = 1 << 0, 1 << 4, 1 << 9, 1 << 19
"""Bits of CTRATT."""

_EFFECTS, _LONG_LOGS, _TELEMETRY, _PERSISTENT_EVENTS, _SUPPORTED_LOGS = (1 << bit for bit in range(1, 6))
"""Bits of LPA."""

_DEALLOCATED_ERRORS, _OPTIMAL_SIZES = 1 << 2, 1 << 4
"""Bits of NSFEAT. The second: NPWG, NPWA, NPDG, NPDA and NOWS say something."""

_BEST, _BETTER, _GOOD = range(3)
"""Relative performance of an LBA format."""

RETRY_DELAYS = (1, 10, 50)
"""What a status may ask a host to wait before it tries again, in 100 ms (CRDT1 to 3)."""

_EXTENDED_BLOCKS, _SEPARATE_METADATA = 1 << 0, 1 << 1
"""Bits of MC."""

_ALL_PROTECTION = 0b11_111
"""DPC: protection information of each type, as the first and as the last of the metadata."""

_WIDE_GUARD = 0b10 << 7
"""In ELBAF: guards of 64 bits, and no storage tags."""

_EUI64, _NGUID, _UUID, _CSI = 1, 2, 3, 4
"""Types of namespace identification descriptors."""


def identify(state: State, command: Command) -> int:
    """Execute Identify. Unknown structures and command sets are Invalid Field."""
    structure = STRUCTURES.get(command.cdw10 & 0xFF)
    if structure is None:
        raise CommandFailed(
            Status.INVALID_FIELD, f"Identify knows no structure {command.cdw10 & 0xFF:#x}", location=40
        )
    deliver(state.bus, command, structure(state, command))
    return 0


def controller(state: State) -> bytes:
    """Return the Identify Controller structure (CNS 01h)."""
    identity, limits, subsystem = state.identity, state.limits, state.subsystem
    return layouts.IDENTIFY_CONTROLLER.encode(
        vid=identity.vendor_id,
        ssvid=identity.subsystem_vendor_id,
        sn=_text(subsystem.serial, 20),
        mn=_text(subsystem.model, 40),
        fr=_text(subsystem.firmware.revision(identity.firmware), 8),
        rab=4,
        ieee=OUI,
        cmic=_SEVERAL if subsystem.multipath else 0,
        mdts=limits.mdts,
        cntlid=identity.cntlid,
        ver=VERSION,
        rtd3r=1_000_000,  # microseconds to begin anew
        rtd3e=20_000_000,  # microseconds a shutdown may take: a host's file cache may have to reach a disk
        oacs=_bits(_OACS, state.commands.admin) | (_DOORBELL_BUFFER_CONFIG if state.plane.shadowable else 0),
        oaes=OFFERED_NOTICES | (ACCESS_NOTICES if subsystem.multipath else 0),
        ctratt=_LONG_HOST_IDENTIFIERS
        | _ENDURANCE_GROUPS
        | _UUIDS
        | EXTENDED_FORMATS
        | (_DATA_PLACEMENT if subsystem.placement is not None else 0),
        cntrltype=1,
        crdt1=RETRY_DELAYS[0],
        crdt2=RETRY_DELAYS[1],
        crdt3=RETRY_DELAYS[2],
        acl=limits.aborts - 1,
        aerl=limits.event_requests - 1,
        frmw=1 | SLOTS << 1 | 1 << 4,  # the first slot is read only; activation without a reset
        lpa=_EFFECTS | _LONG_LOGS | _TELEMETRY | _PERSISTENT_EVENTS | _SUPPORTED_LOGS,
        elpe=limits.error_entries - 1,
        npss=len(power.POWER_STATES) - 1,
        apsta=1,
        wctemp=limits.warning_temperature,
        cctemp=limits.critical_temperature,
        kas=10,
        **(_ANA if subsystem.multipath else {}),
        hctma=1,
        mntmt=power.COOLEST,
        mxtmt=power.HOTTEST,
        endgidmax=ENDURANCE_GROUP,
        pels=UNITS,
        sqes=0x66,
        cqes=0x44,
        maxcmd=min(limits.queue_entries, 0xFFFF),
        nn=subsystem.most_namespaces,
        mnan=subsystem.most_namespaces,
        fuses=FUSES,
        ocfs=FORMATS_OFFERED,
        oncs=_bits(_ONCS, state.commands.io) | _SELECT | _TIMESTAMP,
        vwc=0b111,  # there is a write cache; Flush accepts the broadcast NSID
        mtfa=MOST_ACTIVATION_TIME,
        edstt=subsystem.self_tests.extended_minutes,
        dsto=1,  # one self-test at a time in the subsystem
        fwug=GRANULARITY // 4096,
        sanicap=sanitizing.CAPABILITIES,
        fna=FORMAT_ATTRIBUTES,
        nwpc=write_protection.CAPABILITIES,
        tnvmcap=_given(subsystem) + (subsystem.pool.capacity if subsystem.pool else 0),
        unvmcap=subsystem.pool.free if subsystem.pool else 0,
        sgls=OFFERED | BIT_BUCKETS | LONGER_THAN_DATA | BYTE_ALIGNED_BUFFER | SGL_FOR_METADATA,
        subnqn=subsystem.nqn.encode(),
        **{f"psd{number}": each.descriptor for number, each in enumerate(power.POWER_STATES)},
    )


def _given(subsystem: Subsystem) -> int:
    """Bytes of namespaces that do not come from the pool."""
    return sum(space.storage.size for space in subsystem.namespaces.values() if not space.created)


def _bits(bits: Mapping[int, int], commands: Mapping[int, object]) -> int:
    """The bits that say of optional commands whether there are any of them."""
    return sum(bit for opcode, bit in bits.items() if opcode in commands)


def _namespace(state: State, command: Command) -> bytes:
    if command.nsid == BROADCAST:
        return layouts.IDENTIFY_NAMESPACE.encode(**_common_capabilities(), lbafs=_formats())
    return _one_namespace(state, command.nsid, state.namespaces)


def _allocated_namespace(state: State, command: Command) -> bytes:
    return _one_namespace(state, command.nsid, state.subsystem.namespaces)


def _one_namespace(state: State, nsid: int, among: Mapping[int, Namespace]) -> bytes:
    if nsid in among:
        return namespace(state, among[nsid])
    return _absent(state, nsid)


def _absent(state: State, nsid: int) -> bytes:
    """Zeros for a namespace that could be, and is not active or not allocated."""
    if 1 <= nsid <= state.subsystem.most_namespaces:
        return bytes(SIZE)
    raise CommandFailed(Status.INVALID_NAMESPACE, f"there is no namespace {nsid:#x}", location=4)


def _format_namespace(state: State, command: Command) -> bytes:
    _check_format(command)
    return layouts.IDENTIFY_NAMESPACE.encode(**_common_capabilities(), lbafs=_formats())


def _csi_format_namespace(state: State, command: Command) -> bytes:
    _check_format(command)
    if _command_set(command) != Csi.NVM:
        raise CommandFailed(
            Status.INVALID_FIELD, "LBA formats have more to them in the NVM command set only", location=47
        )
    return _extended_formats()


def _extended_formats() -> bytes:
    """What the NVM command set says of LBA formats beside: the width of their guards."""
    formats = [_WIDE_GUARD if each.guard == 64 else 0 for each in FORMATS]
    return layouts.IDENTIFY_NVM_NAMESPACE.encode(elbafs=struct.pack(f"<{len(formats)}I", *formats))


def _check_format(command: Command) -> None:
    index = command.cdw11 & 0xFFFF
    if index >= len(FORMATS):
        raise CommandFailed(Status.INVALID_FIELD, f"there is no format {index}", location=44)


def namespace(state: State, space: Namespace) -> bytes:
    """Return the Identify Namespace structure (CNS 00h)."""
    names = Names.derive(state.subsystem.serial, space.nsid, space.created)
    page = optimal_blocks(space)
    return layouts.IDENTIFY_NAMESPACE.encode(
        nsze=space.blocks,
        ncap=space.blocks,
        nuse=_used(state, space),
        nsfeat=_OPTIMAL_SIZES | (_DEALLOCATED_ERRORS if space.deallocated is not None else 0),
        mssrl=MOST_BLOCKS_OF_RANGE,
        mcl=MOST_BLOCKS,
        msrc=MOST_RANGES - 1,
        flbas=space.format | space.extended << 4,
        dps=space.protection.dps if space.protection else 0,
        nmic=int(space.shared),
        fpi=_PROGRESS_SUPPORTED | space.unformatted,
        anagrpid=_group(state, space),
        rescap=reservations.CAPABILITIES,
        dlfeat=_after_deallocation(space),
        nvmcap=space.blocks * (space.block_size + space.metadata),
        nsattr=int(space.write_protection != 0),
        npwg=page - 1,
        npwa=page - 1,
        npdg=page - 1,
        npda=page - 1,
        nows=page - 1,
        endgid=ENDURANCE_GROUP,
        nguid=names.nguid,
        eui64=names.eui64,
        lbafs=_formats(),
        **_common_capabilities(),
    )


def _common_capabilities() -> dict[str, int]:
    """What is the same of all namespaces."""
    return {"nlbaf": len(FORMATS) - 1, "mc": _SEPARATE_METADATA | _EXTENDED_BLOCKS, "dpc": _ALL_PROTECTION}


def _formats() -> bytes:
    return b"".join(
        struct.pack("<HBB", each.metadata, each.block_size.bit_length() - 1, _performance(each))
        for each in FORMATS
    )


def _used(state: State, space: Namespace) -> int:
    """NUSE: blocks that are allocated; nothing is said of what cannot be reached."""
    if not ana.reachable(state, space):
        return 0
    return space.blocks - (space.deallocated.total if space.deallocated is not None else 0)


def _group(state: State, space: Namespace) -> int:
    """ANAGRPID; 0 where asymmetric access is not spoken of."""
    return space.ana_group if state.subsystem.multipath else 0


def optimal_blocks(space: Namespace) -> int:
    """How many blocks should be written or deallocated together: a page of whatever is below.

    Files, and memory, are kept in pages; with O_DIRECT a file system may ask for more.
    """
    fast = fast_of(space.storage)
    below = max(PAGE, fast.alignment) if isinstance(fast, Descriptor) else PAGE
    return max(1, below // space.block_size)


def _performance(each: BlockFormat) -> int:
    """Metadata is Python's work, and a block smaller than a page may have to be read before it is written."""
    if each.metadata:
        return _GOOD
    return _BEST if each.block_size >= PAGE else _BETTER


def _after_deallocation(space: Namespace) -> int:
    """DLFEAT: zeros are read from deallocated blocks, and Write Zeroes may deallocate; or nothing."""
    return 0b1001 if space.storage.discard_zeroes else 0


def _active_namespaces(state: State, command: Command) -> bytes:
    return _list_above(command.nsid, state.namespaces)


def _csi_active_namespaces(state: State, command: Command) -> bytes:
    csi = _command_set(command)
    return _list_above(command.nsid, [nsid for nsid, space in state.namespaces.items() if space.csi == csi])


def _allocated_namespaces(state: State, command: Command) -> bytes:
    return _list_above(command.nsid, state.subsystem.namespaces)


def _namespace_controllers(state: State, command: Command) -> bytes:
    spaces = state.subsystem.namespaces
    if command.nsid not in spaces:
        return _absent(state, command.nsid)
    return _controllers_from(command.cdw10 >> 16, spaces[command.nsid].attached)


def _controllers(state: State, command: Command) -> bytes:
    return _controllers_from(command.cdw10 >> 16, state.subsystem.controllers)


def _controllers_from(first: int, cntlids: Iterable[int]) -> bytes:
    """A controller list: those that are ``first`` or above."""
    found = [cntlid for cntlid in sorted(cntlids) if cntlid >= first][:MOST_IN_LIST]
    return struct.pack(f"<{1 + len(found)}H", len(found), *found).ljust(SIZE, b"\0")


def _primary_capabilities(state: State, command: Command) -> bytes:
    """There are no secondary controllers, so nothing is theirs. nvme-cli names 0 unless told otherwise."""
    if command.cdw10 >> 16 not in (0, state.identity.cntlid):
        raise CommandFailed(
            Status.INVALID_FIELD, f"controller {command.cdw10 >> 16:#x} is not this one", location=42
        )
    return layouts.PRIMARY_CAPABILITIES.encode(cntlid=state.identity.cntlid)


def _list_above(after: int, nsids: Iterable[int]) -> bytes:
    if after >= BROADCAST - 1:
        raise CommandFailed(
            Status.INVALID_NAMESPACE, f"no namespace identifier is above {after:#x}", location=4
        )
    found = [nsid for nsid in sorted(nsids) if nsid > after][:LIST_LENGTH]
    return struct.pack(f"<{len(found)}I", *found).ljust(SIZE, b"\0")


def _descriptors(state: State, command: Command) -> bytes:
    space = state.namespace(command.nsid)
    names = Names.derive(state.subsystem.serial, space.nsid, space.created)
    found = ((_EUI64, names.eui64), (_NGUID, names.nguid), (_UUID, names.uuid), (_CSI, bytes([space.csi])))
    return b"".join(struct.pack("<BBH", kind, len(name), 0) + name for kind, name in found).ljust(SIZE, b"\0")


def _csi_namespace(state: State, command: Command) -> bytes:
    return _of_set(command, state.namespace(command.nsid))


def _of_set(command: Command, space: Namespace) -> bytes:
    """What a command set says of a namespace; the NVM set, of any, says more of the LBA formats."""
    csi = _command_set(command)
    if csi == Csi.NVM:
        return _extended_formats()
    if space.csi != csi:
        raise CommandFailed(
            Status.INVALID_FIELD, f"namespace {space.nsid} is not of command set {csi:#x}", location=47
        )
    return zoned_namespace(space)


def _csi_controller(state: State, command: Command) -> bytes:
    """All zero for the NVM set: Write Zeroes and Dataset Management have no limits of their own."""
    if _command_set(command) == Csi.ZONED:
        return zoned_controller(state)
    return layouts.IDENTIFY_NVM_CONTROLLER.encode()


def _independent_namespace(state: State, command: Command) -> bytes:
    space = state.namespace(command.nsid)
    return layouts.IDENTIFY_INDEPENDENT_NAMESPACE.encode(
        nsfeat=_OPTIMAL_SIZES,
        nmic=int(space.shared),
        fpi=_PROGRESS_SUPPORTED | space.unformatted,
        nsattr=int(space.write_protection != 0),
        rescap=reservations.CAPABILITIES,
        anagrpid=_group(state, space),
        endgid=ENDURANCE_GROUP,
        nstat=1,
    )


def _uuids(state: State, command: Command) -> bytes:
    """The one by which vendor specific things of ours could be asked for; there are none yet."""
    return bytes(32) + (bytes(16) + derived_uuid("vendor").bytes).ljust(SIZE - 32, b"\0")


def _endurance_groups(state: State, command: Command) -> bytes:
    """The identifiers from the given one on, which are 16 bits here, behind their number."""
    found = [ENDURANCE_GROUP] if command.cdw11 & 0xFFFF <= ENDURANCE_GROUP else []
    return struct.pack(f"<{1 + len(found)}H", len(found), *found).ljust(SIZE, b"\0")


def _command_set(command: Command) -> int:
    csi = command.cdw11 >> 24
    if csi not in (Csi.NVM, Csi.ZONED):
        raise CommandFailed(Status.INVALID_FIELD, f"there is no command set {csi:#x}", location=47)
    return csi


def _allocated_by_set(state: State, command: Command) -> bytes:
    csi = _command_set(command)
    spaces = state.subsystem.namespaces
    return _list_above(command.nsid, [nsid for nsid, space in spaces.items() if space.csi == csi])


def _allocated_of_set(state: State, command: Command) -> bytes:
    space = state.subsystem.namespaces.get(command.nsid)
    if space is None:
        state.namespace(command.nsid)
        return bytes(SIZE)
    return _of_set(command, space)


def _command_sets(state: State, command: Command) -> bytes:
    """The combinations of command sets that controllers may have: there is one, of all."""
    if command.cdw10 >> 16 not in (0xFFFF, *state.subsystem.controllers):
        raise CommandFailed(
            Status.INVALID_FIELD, f"there is no controller {command.cdw10 >> 16:#x}", location=42
        )
    return struct.pack("<Q", 1 << Csi.NVM | 1 << Csi.ZONED).ljust(SIZE, b"\0")


def _text(text: str, width: int) -> bytes:
    return text.encode("ascii").ljust(width)


STRUCTURES: dict[int, Callable[[State, Command], bytes]] = {
    Cns.NAMESPACE: _namespace,
    Cns.CONTROLLER: lambda state, command: controller(state),
    Cns.ACTIVE_NAMESPACES: _active_namespaces,
    Cns.NAMESPACE_DESCRIPTORS: _descriptors,
    Cns.CSI_NAMESPACE: _csi_namespace,
    Cns.CSI_CONTROLLER: _csi_controller,
    Cns.CSI_ACTIVE_NAMESPACES: _csi_active_namespaces,
    Cns.CSI_INDEPENDENT_NAMESPACE: _independent_namespace,
    Cns.FORMAT_NAMESPACE: _format_namespace,
    Cns.CSI_FORMAT_NAMESPACE: _csi_format_namespace,
    Cns.ALLOCATED_NAMESPACES: _allocated_namespaces,
    Cns.ALLOCATED_NAMESPACE: _allocated_namespace,
    Cns.NAMESPACE_CONTROLLERS: _namespace_controllers,
    Cns.CONTROLLERS: _controllers,
    Cns.PRIMARY_CAPABILITIES: _primary_capabilities,
    Cns.SECONDARY_CONTROLLERS: lambda state, command: bytes(SIZE),
    Cns.UUIDS: _uuids,
    Cns.ENDURANCE_GROUPS: _endurance_groups,
    Cns.CSI_ALLOCATED_NAMESPACES: _allocated_by_set,
    Cns.CSI_ALLOCATED_NAMESPACE: _allocated_of_set,
    Cns.COMMAND_SETS: _command_sets,
}
"""What Identify gives, by CNS."""
