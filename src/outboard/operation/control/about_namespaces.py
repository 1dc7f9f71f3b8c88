"""Namespaces, changed while hosts use them: each change is told to every host that sees it."""

from typing import Annotated

from outboard.errors import RequestRefused
from outboard.operation.control.method import Functions
from outboard.operation.control.shown import NamespaceShown, namespace_shown
from outboard.operation.declared import Between
from outboard.operation.options import NamespaceOptions
from outboard.operation.service import Served, no_controller, no_namespace

Nsid = Annotated[int, Between(1, 0xFFFF_FFFE), "The namespace."]
Cntlid = Annotated[int, Between(1, 0xFFEF), "The controller."]


def list_them(served: Served) -> list[NamespaceShown]:
    """Tell the namespaces."""
    return [namespace_shown(space) for _, space in sorted(served.subsystem.namespaces.items())]


def add(served: Served, options: NamespaceOptions) -> NamespaceShown:
    """Open a back end, and give it to every controller as a namespace."""
    nsid = served.add_namespace(options)
    return namespace_shown(served.subsystem.namespaces[nsid])


def remove(served: Served, nsid: Nsid) -> None:
    """Take a namespace from every controller, and close its back end. What is under way ends first."""
    served.remove_namespace(nsid)


def attach(served: Served, nsid: Nsid, cntlid: Cntlid) -> NamespaceShown:
    """Give a controller a namespace; its host is told."""
    _check(served, nsid, cntlid)
    space = served.subsystem.namespaces[nsid]
    if not space.shared and space.attached - {cntlid}:
        raise RequestRefused(f"namespace {nsid} is not shared: controller {min(space.attached)} has it")
    served.subsystem.attach(nsid, cntlid)
    served.subsystem.controllers[cntlid].namespace_changed(nsid)
    return namespace_shown(served.subsystem.namespaces[nsid])


def detach(served: Served, nsid: Nsid, cntlid: Cntlid) -> NamespaceShown:
    """Take a namespace from a controller, whose host is told. What is under way ends first."""
    _check(served, nsid, cntlid)
    served.subsystem.detach(nsid, cntlid)
    served.subsystem.controllers[cntlid].namespace_changed(nsid)
    return namespace_shown(served.subsystem.namespaces[nsid])


def _check(served: Served, nsid: int, cntlid: int) -> None:
    if nsid not in served.subsystem.namespaces:
        raise no_namespace(served, nsid)
    if cntlid not in served.controllers:
        raise no_controller(served, cntlid)


FUNCTIONS: Functions = {
    "namespace.list": list_them,
    "namespace.add": add,
    "namespace.remove": remove,
    "namespace.attach": attach,
    "namespace.detach": detach,
}
