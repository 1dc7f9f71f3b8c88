"""Linux booted in QEMU with a device behind the proxy, and what they said to each other.

    python -m tests.guest.boots

records anew the boots that tests/trace/captures keeps, for the tests that replay them without a guest.
"""

import runpy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from outboard import Server
from outboard.devices.nvme import Nvme
from outboard.storage import open_storage
from outboard.testing.guest import Guest
from outboard.trace.capture import Captured, CaptureWriter
from outboard.trace.proxy import Proxy
from tests.guest.linux import disk_of

ROOT = Path(__file__).parents[2]
CAPTURES = ROOT / "tests" / "trace" / "captures"
MEMORY = 0x1000_0000


def edu() -> Any:
    """The first example."""
    return runpy.run_path(str(ROOT / "examples" / "01_edu.py"))["Edu"]()


def nvme() -> Nvme:
    """A small disk, always the same."""
    return Nvme(open_storage("ram:16M"), serial="RECORDED")


def use_edu(guest: Guest) -> None:
    """Registers, and a transfer of guest memory that is waited for."""
    guest.run("setpci -s 01:00.0 COMMAND=6:6")
    base = int(guest.run("cat /sys/bus/pci/devices/0000:01:00.0/resource").split()[0], 16)

    def register(offset: int, value: str = "") -> str:
        return guest.run(f"devmem {base + offset:#x} 32 {value}")

    register(0x04, "0x12345678")
    register(0x04)
    register(0x08, "12")
    register(0x08)
    for offset, value in ((0x80, MEMORY), (0x88, 0x4_0000), (0x90, 64), (0x98, 1)):
        register(offset, hex(value))
    while int(register(0x98), 16) & 1:
        pass


def use_nvme(guest: Guest) -> None:
    """The kernel's driver finds the disk, and reads and writes it."""
    disk = disk_of(guest)
    guest.run(
        f"dd if=/dev/urandom of={disk} bs=4k count=4 conv=fsync && dd if={disk} of=/dev/null bs=4k count=8"
    )


BOOTS: dict[str, tuple[Callable[[], Any], Callable[[Guest], None]]] = {
    "linux-edu": (edu, use_edu),
    "linux-nvme": (nvme, use_nvme),
}


def record(name: str, folder: Path) -> list[Captured]:
    """Boots a guest with that device, uses it, and switches the guest off; all that passed the proxy."""
    make, use = BOOTS[name]
    seen: list[Captured] = []
    with (
        Server(make(), folder / "device.sock").start(),
        Proxy(
            folder / "vm.sock", folder / "device.sock", observer=seen.append, share_memory=False
        ).start() as proxy,
        Guest([proxy.path], tools=["pciutils"], append=f"memmap=1M${MEMORY:#x}", logs=folder) as guest,
    ):
        use(guest)
        guest.shutdown()
    return seen


def main() -> None:
    """Records all boots."""
    for name in BOOTS:
        with tempfile.TemporaryDirectory(prefix="ob", dir="/tmp") as folder:
            messages = record(name, Path(folder))
        with (CAPTURES / f"{name}.pcapng").open("wb") as file:
            writer = CaptureWriter(file)
            writer.connection(f"/run/{name}.sock")
            for captured in messages:
                writer.write(captured)


if __name__ == "__main__":
    main()
