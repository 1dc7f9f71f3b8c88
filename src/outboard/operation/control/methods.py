"""The methods of the control socket, by name.

To add one, write a function in a module of this folder, and name it in that module's ``FUNCTIONS``.
"""

from typing import Any

from outboard.operation.control import (
    about_controllers,
    about_drive,
    about_faults,
    about_namespaces,
    about_service,
    about_zones,
)
from outboard.operation.control.method import Functions, Method
from outboard.operation.service import Service


def discover(service: Service) -> list[dict[str, Any]]:
    """Tell every method, with the JSON schema of its parameters."""
    return [method.description for method in METHODS.values()]


FUNCTIONS: Functions = {
    **about_service.FUNCTIONS,
    **about_namespaces.FUNCTIONS,
    **about_zones.FUNCTIONS,
    **about_controllers.FUNCTIONS,
    **about_drive.FUNCTIONS,
    **about_faults.FUNCTIONS,
    "rpc.discover": discover,
}
METHODS = {name: Method.of(name, function) for name, function in FUNCTIONS.items()}
