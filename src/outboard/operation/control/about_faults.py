"""Faults, injected into commands on purpose: `outboard.devices.nvme.Fault` as JSON."""

from typing import Annotated, Any

from outboard.devices.nvme import Fault
from outboard.operation.control.method import Functions
from outboard.operation.declared import Between
from outboard.operation.service import Served

Conditions = Annotated[
    dict[str, Any], "Which commands it meets, and what it does to them, as `Fault` has it."
]
FaultId = Annotated[int, Between(1, 1 << 62), "The fault, by its identifier."]


def inject(served: Served, fault: Conditions) -> dict[str, Any]:
    """Let commands fail that are begun from now on."""
    id = served.subsystem.faults.inject(Fault.from_json(fault))
    return served.subsystem.faults[id].to_json()


def list_them(served: Served) -> list[dict[str, Any]]:
    """Tell the faults, how many commands each has met, and how many of them it struck."""
    return [injection.to_json() for injection in served.subsystem.faults.list()]


def remove(served: Served, id: FaultId) -> None:
    """Lift a fault; what it holds stays held."""
    served.subsystem.faults.remove(id)


def clear(served: Served) -> None:
    """Lift all faults."""
    served.subsystem.faults.clear()


FUNCTIONS: Functions = {
    "fault.inject": inject,
    "fault.list": list_them,
    "fault.remove": remove,
    "fault.clear": clear,
}
