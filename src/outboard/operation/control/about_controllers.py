"""Controllers, added and removed while the others go on."""

from typing import Annotated, Literal

from outboard.devices.nvme.ana import AnaState
from outboard.devices.nvme.namespace import ANA_GROUPS
from outboard.errors import RequestRefused
from outboard.operation.control.method import SUBSYSTEM, Functions
from outboard.operation.control.shown import ControllerShown, controller_shown
from outboard.operation.declared import Between
from outboard.operation.options import PlacedController, ServedController
from outboard.operation.service import ControllerServed, Served, Service
from outboard.operation.statistics import state_of

Cntlid = Annotated[int, Between(1, 0xFFEF), "The controller."]
Name = Annotated[str | None, SUBSYSTEM.meaning]

Seconds = Annotated[float, Between(0, 3600), "For how long."]
Group = Annotated[int, Between(1, ANA_GROUPS), "The group, which namespaces name as their ana_group."]
Access = Annotated[
    Literal["optimized", "non_optimized", "inaccessible", "persistent_loss", "change"],
    "How; change is for ten seconds at most.",
]


def list_them(served: Served) -> list[ControllerShown]:
    """Tell the controllers."""
    return [controller_shown(each) for _, each in sorted(served.controllers.items())]


def add(
    served: Served, socket: Annotated[str, "The UNIX socket to listen on."], options: PlacedController
) -> ControllerShown:
    """Make one more controller, on a socket of its own: one more path to the same namespaces."""
    cntlid = served.service.add_controller(served, ServedController(**vars(options), socket=socket))
    served.controllers[cntlid].server.start()
    return controller_shown(served.controllers[cntlid])


def remove(service: Service, cntlid: Cntlid, subsystem: Name = None) -> None:
    """Let a controller's client go, and remove its socket and the controller, as if it was pulled out."""
    # Its thread may need the subsystem's turn to come to its end.
    service.remove_controller(service.named(subsystem), cntlid)


def fail(served: Served, cntlid: Cntlid) -> ControllerShown:
    """Let a controller fail for good (CSTS.CFS), until its host resets it."""
    controller = _running(served, cntlid)
    controller.nvme.fail("the operator had it fail")
    return controller_shown(controller)


def pause(served: Served, cntlid: Cntlid, seconds: Seconds) -> ControllerShown:
    """Let a controller take no command for a while (CSTS.PP), as if firmware was activated."""
    controller = _running(served, cntlid)
    controller.nvme.pause(seconds)
    return controller_shown(controller)


def pull(served: Served, cntlid: Cntlid) -> None:
    """Have a controller gone without a word, its client still connected: all it reads is ones."""
    served.controller(cntlid).nvme.surprise_removal()


def plug(served: Served, cntlid: Cntlid) -> None:
    """Put a controller that was pulled back in: it is as after power on."""
    served.controller(cntlid).nvme.replug()


def _running(served: Served, cntlid: int) -> ControllerServed:
    controller = served.controller(cntlid)
    if not (controller.server.connected and state_of(controller.nvme) == "ready"):
        raise RequestRefused(f"controller {cntlid} is not in use: no host has made it ready")
    return controller


def set_access(served: Served, cntlid: Cntlid, group: Group, access: Access) -> None:
    """Set how a controller can access a group of namespaces (ANA); its host is told."""
    served.subsystem.set_ana(cntlid, group, AnaState[access.upper()])


FUNCTIONS: Functions = {
    "controller.list": list_them,
    "controller.add": add,
    "controller.remove": remove,
    "controller.fail": fail,
    "controller.pause": pause,
    "controller.pull": pull,
    "controller.plug": plug,
    "ana.set": set_access,
}
