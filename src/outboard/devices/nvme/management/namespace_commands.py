"""Namespace Management and Namespace Attachment (NVMe Base 2.0, 5.22, 5.23 and 8.11).

Other controllers' hosts are told; the one whose command it is knows. Namespaces that the configuration gave
are the operator's: they are attached and detached like any other, and deleting one is Operation Denied.
"""

import struct
from typing import TYPE_CHECKING

from outboard.devices.nvme.command import Command
from outboard.devices.nvme.command_set import CHANGES_INVENTORY, CHANGES_NAMESPACE, AdminCommand
from outboard.devices.nvme.layouts import CHANGE_NAMESPACE_EVENT, NAMESPACE_MANAGEMENT
from outboard.devices.nvme.management.setting import Setting
from outboard.devices.nvme.namespace import ANA_GROUPS, Namespace
from outboard.devices.nvme.placement import ENDURANCE_GROUP
from outboard.devices.nvme.spec import BROADCAST, AdminOpcode, Csi, PersistentEvent
from outboard.devices.nvme.status import CommandFailed, Status
from outboard.devices.nvme.transfer import fetch
from outboard.devices.nvme.work import Work
from outboard.devices.nvme.workers import at_rest
from outboard.errors import DefinitionError, StorageError

if TYPE_CHECKING:
    from outboard.devices.nvme.state import State
    from outboard.devices.nvme.subsystem import Subsystem

CREATE, DELETE = 0, 1
ATTACH, DETACH = 0, 1
"""The Select fields."""

LIST_SIZE = 4096
MOST_IN_LIST = 2047
"""Identifiers in a controller list."""

_SHARED = 1 << 0


def namespace_management(state: "State", command: Command) -> int:
    """Execute Namespace Management: create one, whose identifier is dword 0, or delete one or all."""
    select = command.cdw10 & 0xF
    if select == CREATE:
        return _create(state, command)
    if select == DELETE:
        return _delete(state, command)
    raise CommandFailed(Status.INVALID_FIELD, f"Select {select} is reserved", location=40)


def namespace_attachment(state: "State", command: Command) -> int | Work:
    """Execute Namespace Attachment: with all controllers of the list, or, if one cannot be, with none.

    A detach completes when no storage is at work for them any more.
    """
    select = command.cdw10 & 0xF
    if select not in (ATTACH, DETACH):
        raise CommandFailed(Status.INVALID_FIELD, f"Select {select} is reserved", location=40)
    subsystem = state.subsystem
    # First of all: others may have their turns while memory is awaited.
    data = fetch(state.bus, command, LIST_SIZE)
    space = _allocated(subsystem, command.nsid)
    cntlids = _controller_list(subsystem, data)
    if select == ATTACH:
        _check_attachable(space, cntlids)
        for cntlid in cntlids:
            subsystem.attach(space.nsid, cntlid)
    else:
        if missing := [cntlid for cntlid in cntlids if cntlid not in space.attached]:
            raise CommandFailed(
                Status.NAMESPACE_NOT_ATTACHED, f"controller {missing[0]} does not have namespace {space.nsid}"
            )
        for cntlid in cntlids:
            subsystem.detach(space.nsid, cntlid)
    subsystem.inventory.note(space, attached=True)
    for cntlid in cntlids:
        if cntlid != state.identity.cntlid:
            subsystem.controllers[cntlid].namespace_changed(space.nsid)
    return 0 if select == ATTACH else at_rest(space.storage)


def _create(state: "State", command: Command) -> int:
    subsystem = state.subsystem
    csi = _command_set(command.cdw11 >> 24)
    wanted = NAMESPACE_MANAGEMENT.decode(fetch(state.bus, command, NAMESPACE_MANAGEMENT.size))
    setting = _setting(wanted)
    setting.check(csi)
    blocks = int(wanted["nsze"])
    _check_size(blocks, int(wanted["ncap"]))
    if int(wanted["nmic"]) & ~_SHARED:
        raise CommandFailed(Status.INVALID_FIELD, "NMIC has reserved bits set")
    group = int(wanted["anagrpid"])
    if group > ANA_GROUPS:
        raise CommandFailed(Status.ANA_GROUP_INVALID, f"there is no ANA group {group}")
    if wanted["nvmsetid"] or wanted["endgid"] not in (0, ENDURANCE_GROUP):
        raise CommandFailed(Status.INVALID_FIELD, "there are no NVM sets, and one endurance group")
    nsid = subsystem.free_identifier
    if nsid == 0:
        raise CommandFailed(
            Status.NAMESPACE_ID_UNAVAILABLE, f"all {subsystem.most_namespaces} identifiers are taken"
        )
    setting.check_placed([], subsystem.placement)
    size = blocks * setting.bytes
    if subsystem.pool is None or size > subsystem.pool.free:
        raise CommandFailed(
            Status.NAMESPACE_INSUFFICIENT_CAPACITY, f"{size} bytes are more than is unallocated"
        )
    try:
        storage = subsystem.pool.create(nsid, size)
    except StorageError as error:
        raise CommandFailed(Status.NAMESPACE_INSUFFICIENT_CAPACITY, str(error)) from error
    space = Namespace(storage, shared=bool(int(wanted["nmic"]) & _SHARED), ana_group=group or 1)
    setting.apply(space)
    space.csi, space.created = csi, subsystem.inventory.next_generation()
    space.nsid = nsid
    # The configuration may have had one with this identifier in another process.
    subsystem.forget(nsid)
    # Noted as attached to none: it is there before any controller may have it.
    subsystem.inventory.note(space, attached=True)
    try:
        subsystem.add(space, nsid)
    except DefinitionError as error:
        subsystem.inventory.forget(nsid)
        subsystem.pool.delete(nsid)
        raise CommandFailed(Status.INVALID_PLACEMENT_HANDLE_LIST, str(error)) from error
    _remember(state, command, space)
    return nsid


def _delete(state: "State", command: Command) -> int:
    subsystem = state.subsystem
    if command.nsid == BROADCAST:
        spaces = list(subsystem.namespaces.values())
    else:
        spaces = [_allocated(subsystem, command.nsid)]
    for space in spaces:
        if not space.created:
            raise CommandFailed(
                Status.OPERATION_DENIED, f"namespace {space.nsid} was given by the configuration", location=4
            )
        if space.barred is not None:
            raise CommandFailed(space.barred, f"namespace {space.nsid} is being formatted", location=4)
        if space.write_protection:
            raise CommandFailed(
                Status.NAMESPACE_WRITE_PROTECTED, f"namespace {space.nsid} is write protected", location=4
            )
    for space in spaces:
        subsystem.remove(space.nsid, but=state.identity.cntlid)
        _remember(state, command, space)
    return 0


def _remember(state: "State", command: Command, space: Namespace) -> None:
    event = CHANGE_NAMESPACE_EVENT.encode(
        cdw10=command.cdw10,
        nsze=space.blocks,
        ncap=space.blocks,
        flbas=space.format | space.extended << 4,
        dps=space.protection.dps if space.protection else 0,
        nmic=int(space.shared),
        anagrpid=space.ana_group,
        nsid=space.nsid,
    )
    state.remember(PersistentEvent.CHANGE_NAMESPACE, event)


def _allocated(subsystem: "Subsystem", nsid: int) -> Namespace:
    if nsid not in subsystem.namespaces:
        raise CommandFailed(Status.INVALID_NAMESPACE, f"there is no namespace {nsid:#x}", location=4)
    return subsystem.namespaces[nsid]


def _command_set(number: int) -> Csi:
    if number != Csi.NVM:
        raise CommandFailed(
            Status.COMMAND_SET_NOT_SUPPORTED, f"no namespace can have command set {number:#x}", location=47
        )
    return Csi(number)


def _setting(wanted: "dict[str, int | bytes]") -> Setting:
    flbas, dps = int(wanted["flbas"]), int(wanted["dps"])
    if flbas >> 7 or dps >> 4:
        raise CommandFailed(Status.INVALID_FIELD, "FLBAS or DPS has reserved bits set")
    return Setting(
        format=flbas & 0xF | (flbas >> 5 & 3) << 4,
        extended=bool(flbas >> 4 & 1),
        protection=dps & 7,
        first=bool(dps >> 3 & 1),
    )


def _check_size(size: int, capacity: int) -> None:
    """Size and capacity, in blocks: thin provisioning is not offered, so they are the same."""
    if size == 0 or capacity > size:
        raise CommandFailed(Status.INVALID_FIELD, f"a size of {size} blocks, a capacity of {capacity}")
    if capacity < size:
        raise CommandFailed(
            Status.THIN_PROVISIONING_NOT_SUPPORTED, f"{size} blocks, {capacity} of them with something below"
        )


def _controller_list(subsystem: "Subsystem", data: bytes) -> list[int]:
    """The identifiers of a controller list: in order, none twice, and there."""
    (count,) = struct.unpack_from("<H", data)
    if not 0 < count <= MOST_IN_LIST:
        raise CommandFailed(Status.CONTROLLER_LIST_INVALID, f"a list of {count} controllers")
    cntlids = list(struct.unpack_from(f"<{count}H", data, 2))
    if cntlids != sorted(set(cntlids)):
        raise CommandFailed(Status.CONTROLLER_LIST_INVALID, "the controllers are not in ascending order")
    if unknown := [cntlid for cntlid in cntlids if cntlid not in subsystem.controllers]:
        raise CommandFailed(Status.CONTROLLER_LIST_INVALID, f"there is no controller {unknown[0]}")
    return cntlids


def _check_attachable(space: Namespace, cntlids: list[int]) -> None:
    if already := space.attached.intersection(cntlids):
        raise CommandFailed(
            Status.NAMESPACE_ALREADY_ATTACHED, f"controller {min(already)} has namespace {space.nsid}"
        )
    if not space.shared and len(space.attached) + len(cntlids) > 1:
        raise CommandFailed(
            Status.NAMESPACE_IS_PRIVATE, f"namespace {space.nsid} is for one controller at a time"
        )


COMMANDS: dict[int, AdminCommand] = {
    AdminOpcode.NAMESPACE_MANAGEMENT: AdminCommand(namespace_management, effects=CHANGES_INVENTORY),
    AdminOpcode.NAMESPACE_ATTACHMENT: AdminCommand(
        namespace_attachment, effects=CHANGES_INVENTORY | CHANGES_NAMESPACE
    ),
}
