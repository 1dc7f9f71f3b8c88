"""PCI devices in Python, outside the virtual machine monitor.

The package, from the bottom up::

    errors                 every error, and whose fault it is
    protocol | pci         what is on the wire | what a PCI function is
    native                 the data plane's tools: compiled rings, io_uring, pollers
    loop, dma              a device's thread, and the guest's memory
    descriptors            file descriptors that ride on messages
    device, storage        the class authors subclass; what is behind a disk
    server, client         serve() a device to a VMM; be the VMM
    devices, drivers       an NVMe controller, ...; user-space drivers
    conformance            judges any server and any client, on the wire
    trace                  captures and what they say, a proxy that makes them, replay, timeline
    testing                TestClient, faults, guest virtual machines
    operation              NVMe subsystems as a service: a file, a control socket, metrics
    cli                    the `outboard` command
"""

from outboard.client import Client
from outboard.device import Access, Device, DeviceContract, Region
from outboard.dma import GuestMemory, Mapping
from outboard.errors import OutboardError
from outboard.pci.bar import Bar, Rom
from outboard.pci.capabilities import (
    Msi,
    MsiX,
    PciExpress,
    PowerManagement,
    RawCapability,
    SerialNumber,
    VendorCapability,
    VendorExtended,
)
from outboard.pci.interrupts import Intx, IrqAction, IrqData
from outboard.server import Server, serve, serve_all

__version__ = "0.1.0"

__all__ = [
    "Access",
    "Bar",
    "Client",
    "Device",
    "DeviceContract",
    "GuestMemory",
    "Intx",
    "IrqAction",
    "IrqData",
    "Mapping",
    "Msi",
    "MsiX",
    "OutboardError",
    "PciExpress",
    "PowerManagement",
    "RawCapability",
    "Region",
    "Rom",
    "SerialNumber",
    "Server",
    "VendorCapability",
    "VendorExtended",
    "serve",
    "serve_all",
]
