"""Namespaces, changed while hosts use them: each change is told to every host that sees it."""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from outboard.devices.nvme import Qos
from outboard.devices.nvme.management.write_protection import protect as protect_namespace
from outboard.devices.nvme.spec import WriteProtection
from outboard.devices.nvme.workers import flush_between, wait_for_rest
from outboard.errors import RequestRefused
from outboard.operation.control.method import Functions
from outboard.operation.control.shown import NamespaceShown, namespace_shown
from outboard.operation.declared import Between, Size
from outboard.operation.options import LIMITS, Bytes, Commands, NamespaceOptions
from outboard.operation.service import Served

Nsid = Annotated[int, Between(1, 0xFFFF_FFFE), "The namespace."]
NewSize = Annotated[Size, "Bytes that its back end has then."]
Protected = Annotated[
    Literal["none", "write_protect", "until_power_cycle", "permanent"],
    "How; hosts can end write_protect only, and until_power_cycle lasts as long as this process.",
]
Cntlid = Annotated[int, Between(1, 0xFFEF), "The controller."]


@dataclass(frozen=True, kw_only=True)
class QosOptions:
    """Limits of a namespace; what is left out stays.

    Parameters
    ----------
    iops
        Reads and writes that all its hosts together may have in a second; 0: any number.
    bytes_per_second
        Bytes that they may read and write in a second; 0: any number.
    read_iops
        Reads in a second; 0: any number.
    write_iops
        Writes in a second; 0: any number.
    read_bytes_per_second
        Bytes that they may read in a second; 0: any number.
    write_bytes_per_second
        Bytes that they may write in a second; 0: any number.
    """

    iops: Commands | None = None
    bytes_per_second: Bytes | None = None
    read_iops: Commands | None = None
    write_iops: Commands | None = None
    read_bytes_per_second: Bytes | None = None
    write_bytes_per_second: Bytes | None = None


def list_them(served: Served) -> list[NamespaceShown]:
    """Tell the namespaces."""
    return [namespace_shown(space) for _, space in sorted(served.subsystem.namespaces.items())]


def add(served: Served, options: NamespaceOptions) -> NamespaceShown:
    """Open a back end, and give it to every controller as a namespace."""
    nsid = served.add_namespace(options)
    return namespace_shown(served.subsystem.namespaces[nsid])


def remove(served: Served, nsid: Nsid) -> None:
    """Take a namespace from every controller, and close its back end. What is under way ends first.

    One that a host created is deleted, content and all.
    """
    served.remove_namespace(nsid)


def resize(served: Served, nsid: Nsid, size: NewSize) -> NamespaceShown:
    """Make a namespace larger, or smaller; hosts are told. What is under way ends first.

    Memory, files and null disks can be resized. What a smaller one does not hold is lost.
    """
    space = served.namespace(nsid)
    served.subsystem.resize(nsid, size)
    return namespace_shown(space)


def protect(served: Served, nsid: Nsid, protection: Protected) -> NamespaceShown:
    """Protect a namespace against writes, or no longer; hosts are told. What was written is made durable."""
    space = served.namespace(nsid)
    if space.barred is not None:
        raise RequestRefused(f"namespace {nsid} is being erased: protect it afterwards")
    protect_namespace(served.subsystem, space, WriteProtection[protection.upper()])
    with served.subsystem.turn.released():
        flush_between(space.storage)
    return namespace_shown(space)


def set_qos(served: Served, nsid: Nsid, limits: QosOptions) -> dict[str, int]:
    """Limit how much of a namespace's speed its hosts have together, from now on; tell the limits."""
    space = served.namespace(nsid)
    before = space.qos or Qos()
    given = {name: value for name, value in vars(limits).items() if value is not None}
    after = replace(before, **given)
    served.subsystem.set_qos(nsid, after or None)
    return {name: getattr(after, name) for name in LIMITS}


def attach(served: Served, nsid: Nsid, cntlid: Cntlid) -> NamespaceShown:
    """Give a controller a namespace; its host is told."""
    space, controller = served.namespace(nsid), served.controller(cntlid)
    if not space.shared and space.attached - {cntlid}:
        raise RequestRefused(f"namespace {nsid} is not shared: controller {min(space.attached)} has it")
    served.subsystem.attach(nsid, cntlid)
    controller.nvme.state.namespace_changed(nsid)
    return namespace_shown(space)


def detach(served: Served, nsid: Nsid, cntlid: Cntlid) -> NamespaceShown:
    """Take a namespace from a controller, whose host is told. What is under way ends first."""
    space, controller = served.namespace(nsid), served.controller(cntlid)
    served.subsystem.detach(nsid, cntlid)
    controller.nvme.state.namespace_changed(nsid)
    with served.subsystem.turn.released():
        wait_for_rest(space.storage)
    return namespace_shown(space)


FUNCTIONS: Functions = {
    "namespace.list": list_them,
    "namespace.add": add,
    "namespace.remove": remove,
    "namespace.resize": resize,
    "namespace.protect": protect,
    "namespace.set_qos": set_qos,
    "namespace.attach": attach,
    "namespace.detach": detach,
}
