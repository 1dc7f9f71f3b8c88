"""``outboard identify``: what is behind a socket, seen as a client sees it."""

import json
from pathlib import Path
from typing import Any

from outboard.cli import lspci, nvme_id
from outboard.client import Client
from outboard.drivers import nvme

BARS_AND_ROM = 7
WHOLE_HEADER = 256


def identify(socket: Path, /, *, json: bool = False) -> None:
    """Tell what is behind a socket.

    Reads the configuration space of any vfio-user device and prints it as lspci -vv would. An
    NVMe controller is also asked for what nvme id-ctrl and nvme id-ns print; it is enabled for
    that, and disabled again. A device serves one client at a time: end QEMU first.

    **Examples**

    ```
    outboard identify /tmp/disk.sock
    outboard identify /tmp/disk.sock --json | jq .nvme.controller.sn
    ```

    Parameters
    ----------
    socket
        The server's UNIX socket.
    json
        Print one JSON object, numbers as numbers.
    """
    with Client(socket) as client:
        found = describe(client)
    print(to_json(found) if json else "\n".join(to_text(found)))


def describe(client: Client) -> dict[str, Any]:
    """The function behind a client, and its NVMe side where it has one."""
    sizes = [region.size for region in client.regions[:BARS_AND_ROM]]
    config = client.config.read(0, client.config.size).ljust(WHOLE_HEADER, b"\0")
    found: dict[str, Any] = {"pci": lspci.describe(config, sizes)}
    if found["pci"]["class"] == nvme.CLASS_CODE:
        found["nvme"] = describe_nvme(client)
    return found


def describe_nvme(client: Client) -> dict[str, Any]:
    """What an NVMe controller says of itself and its namespaces."""
    with nvme.NvmeDriver(client) as driver:
        return {
            "controller": nvme_id.controller_fields(driver.identify(nvme.CNS_CONTROLLER)),
            "namespaces": {
                nsid: nvme_id.namespace_fields(driver.identify(nvme.CNS_NAMESPACE, nsid))
                for nsid in driver.namespaces()
            },
        }


def to_json(found: dict[str, Any]) -> str:
    """One JSON object."""
    return json.dumps(found, indent=2)


def to_text(found: dict[str, Any]) -> list[str]:
    """The lines for a person."""
    text = [lspci.render(found["pci"])]
    if controller := found.get("nvme"):
        text += ["", *nvme_id.render("NVME Identify Controller:", controller["controller"])]
        for nsid, fields in controller["namespaces"].items():
            text += ["", *nvme_id.render(f"NVME Identify Namespace {nsid}:", fields)]
    return text
