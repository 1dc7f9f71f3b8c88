"""What a VMM does with a device, by our clients: run as a command, with the kind and the socket."""

import sys

from outboard.client import Client
from outboard.client.qemu import QemuClient


def use(client: Client) -> None:
    """Read, map, enable, reset, and let go."""
    client.config.read(0, 256)
    ram = client.memory(1 << 20, 0x1000_0000)
    client.bus_master(True)
    client.bar(0).read(0, 0x4000)
    client.enable_intx()
    client.enable_msix()
    client.map_bar(0)
    client.reset()
    client.dma_unmap(ram.address, 1 << 20)


if __name__ == "__main__":
    kind = QemuClient if sys.argv[1] == "qemu" else Client
    with kind(sys.argv[2], timeout=1.5) as client:
        use(client)
