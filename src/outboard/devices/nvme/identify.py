"""Identify: who the controller is, what it can do, which namespaces there are (NVMe Base 2.0, 5.17)."""

import struct

from outboard.devices.nvme import layouts
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.namespace import Names, Namespace, derived_uuid
from outboard.devices.nvme.sgl import BIT_BUCKETS, DWORD_ALIGNED, LONGER_THAN_DATA
from outboard.devices.nvme.spec import BROADCAST, VERSION, Cns, Csi
from outboard.devices.nvme.state import State
from outboard.devices.nvme.status import CommandFailed, Status
from outboard.devices.nvme.transfer import deliver

SIZE = 4096
LIST_LENGTH = 1024

COMPARE, DATASET_MANAGEMENT, WRITE_ZEROES, SELECT, TIMESTAMP = 1 << 0, 1 << 2, 1 << 3, 1 << 4, 1 << 6
"""Bits of ONCS. SELECT: the Select field of Get Features, and Save of Set Features, mean something."""

DOORBELL_BUFFER_CONFIG = 1 << 8
"""A bit of OACS."""

_EUI64, _NGUID, _UUID, _CSI = 1, 2, 3, 4
"""Types of namespace identification descriptors."""


def identify(state: State, command: Command) -> int:
    """Execute Identify. Unknown structures and command sets are Invalid Field."""
    cns, csi = command.cdw10 & 0xFF, command.cdw11 >> 24
    if cns in (Cns.CSI_NAMESPACE, Cns.CSI_CONTROLLER, Cns.CSI_ACTIVE_NAMESPACES) and csi != Csi.NVM:
        raise CommandFailed(Status.INVALID_FIELD, f"there is no command set {csi:#x}", location=47)
    match cns:
        case Cns.NAMESPACE:
            data = _namespace(state, command.nsid)
        case Cns.CONTROLLER:
            data = controller(state)
        case Cns.ACTIVE_NAMESPACES | Cns.CSI_ACTIVE_NAMESPACES:
            data = _active_namespaces(state, command.nsid)
        case Cns.NAMESPACE_DESCRIPTORS:
            data = _descriptors(state, command.nsid)
        case Cns.CSI_NAMESPACE:
            state.namespace(command.nsid)
            data = bytes(SIZE)
        case Cns.CSI_CONTROLLER:
            # All zero: Write Zeroes and Dataset Management have no limits of their own.
            data = layouts.IDENTIFY_NVM_CONTROLLER.encode()
        case Cns.CSI_INDEPENDENT_NAMESPACE:
            state.namespace(command.nsid)
            data = layouts.IDENTIFY_INDEPENDENT_NAMESPACE.encode(nstat=1)
        case _:
            raise CommandFailed(Status.INVALID_FIELD, f"Identify knows no structure {cns:#x}", location=40)
    deliver(state.bus, command, data)
    return 0


def controller(state: State) -> bytes:
    """Return the Identify Controller structure (CNS 01h)."""
    identity, limits = state.identity, state.limits
    subsystem = derived_uuid(identity.serial)
    return layouts.IDENTIFY_CONTROLLER.encode(
        vid=identity.vendor_id,
        ssvid=identity.subsystem_vendor_id,
        sn=_text(identity.serial, 20),
        mn=_text(identity.model, 40),
        fr=_text(identity.firmware, 8),
        rab=4,
        mdts=limits.mdts,
        cntlid=1,
        ver=VERSION,
        rtd3e=20_000_000,  # microseconds a shutdown may take: a host's file cache may have to reach a disk
        oacs=DOORBELL_BUFFER_CONFIG if state.plane.shadowable else 0,
        oaes=1 << 8,  # namespace attribute notices
        cntrltype=1,
        acl=limits.aborts - 1,
        aerl=limits.event_requests - 1,
        frmw=0b0_001_1,  # one slot, read only
        lpa=0b0000_0110,  # commands-and-effects log, offsets into logs
        elpe=limits.error_entries - 1,
        wctemp=limits.warning_temperature,
        cctemp=limits.critical_temperature,
        kas=10,
        sqes=0x66,
        cqes=0x44,
        nn=len(state.namespaces),
        oncs=COMPARE | DATASET_MANAGEMENT | WRITE_ZEROES | SELECT | TIMESTAMP,
        vwc=0b111,  # there is a write cache; Flush accepts the broadcast NSID
        tnvmcap=sum(space.blocks * space.block_size for space in state.namespaces.values()),
        sgls=DWORD_ALIGNED | BIT_BUCKETS | LONGER_THAN_DATA,
        subnqn=f"nqn.2014-08.org.nvmexpress:uuid:{subsystem}".encode(),
        psd0=struct.pack("<H30x", 2500),  # 25 W, the largest a slot gives
    )


def _namespace(state: State, nsid: int) -> bytes:
    space = state.namespace(nsid)
    names = Names.derive(state.identity.serial, nsid)
    return layouts.IDENTIFY_NAMESPACE.encode(
        nsze=space.blocks,
        ncap=space.blocks,
        nuse=space.blocks,
        dlfeat=_after_deallocation(space),
        nvmcap=space.blocks * space.block_size,
        nguid=names.nguid,
        eui64=names.eui64,
        lbaf0=(space.block_size.bit_length() - 1) << 16,
    )


def _after_deallocation(space: Namespace) -> int:
    """DLFEAT: zeros are read from deallocated blocks, and Write Zeroes may deallocate; or nothing."""
    return 0b1001 if space.storage.discard_zeroes else 0


def _active_namespaces(state: State, after: int) -> bytes:
    if after >= BROADCAST - 1:
        raise CommandFailed(
            Status.INVALID_NAMESPACE, f"no namespace identifier is above {after:#x}", location=4
        )
    found = [nsid for nsid in sorted(state.namespaces) if nsid > after][:LIST_LENGTH]
    return struct.pack(f"<{len(found)}I", *found).ljust(SIZE, b"\0")


def _descriptors(state: State, nsid: int) -> bytes:
    state.namespace(nsid)
    names = Names.derive(state.identity.serial, nsid)
    found = ((_EUI64, names.eui64), (_NGUID, names.nguid), (_UUID, names.uuid), (_CSI, bytes([Csi.NVM])))
    return b"".join(struct.pack("<BBH", kind, len(name), 0) + name for kind, name in found).ljust(SIZE, b"\0")


def _text(text: str, width: int) -> bytes:
    return text.encode("ascii").ljust(width)
