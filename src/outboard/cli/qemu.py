"""``outboard qemu``: devices and the machine they are in, started and ended together."""

import signal
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from outboard.cli.device_file import load_device
from outboard.cli.namespaces import controller
from outboard.cli.qemu_command import complete, shell
from outboard.device import DeviceContract
from outboard.errors import SetupError
from outboard.server import Server
from outboard.testing.guest import Attach, find_qemu


def qemu(
    *arguments: str,
    nvme: list[str] | None = None,
    device: list[str] | None = None,
    dry_run: bool = False,
) -> int:
    """Run QEMU with devices of outboard in it.

    Starts the devices, adds to QEMU's arguments shared memory of the size that -m says, a PCI
    Express root port for each device where the machine has those, and the devices; ends them when QEMU
    ends, and exits with QEMU's status. QEMU is the system's where that is 10.1 or newer, else
    one fetched once from Debian's packages.

    **Examples**

    ```
    outboard qemu --nvme ram:1G -- -machine q35 -m 2G disk.qcow2
    outboard qemu --nvme boot.img --device edu.py:Edu -- -machine q35,accel=kvm -m 4G -nographic
    ```

    Parameters
    ----------
    arguments
        QEMU's own arguments, behind --.
    nvme
        BACKEND[,block_size=4096]: an NVMe controller with this namespace. Each use adds a controller.
    device
        FILE.py:Class: any device. Each use adds one.
    dry_run
        Print the command instead of running it; with the sockets' places for the devices.
    """
    # Controllers of one serial number are one subsystem to Linux, which then refuses the second.
    devices: list[DeviceContract] = [
        controller([backend], serial=f"OUTBOARD{number:04}") for number, backend in enumerate(nvme or (), 1)
    ]
    devices += [load_device(target) for target in device or ()]
    if not devices:
        raise SetupError("there is no device to put into QEMU: give --nvme BACKEND or --device FILE.py:Class")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="outboard-")))
        attachments = [
            Attach(folder / f"{number}.sock", bootindex=number + 1 if number < len(nvme or ()) else None)
            for number in range(len(devices))
        ]
        added = complete(arguments, attachments)
        if dry_run:
            print(shell(["qemu-system-x86_64", *arguments, *added]))
            return 0
        command = qemu_program()
        for attachment, served in zip(attachments, devices, strict=True):
            stack.enter_context(Server(served, attachment.path)).start()
        return run_in_foreground([*command, *arguments, *added])


def qemu_program() -> tuple[str, ...]:
    """The words that start QEMU; fetches it with a progress bar where there is none yet."""
    with Progress(console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("looking for QEMU", total=None)
        found = find_qemu(
            lambda stage, done, total: bars.update(task, description=stage, completed=done, total=total)
        )
    return found.command


def run_in_foreground(command: Sequence[str]) -> int:
    """Run a program on our terminal; return its exit status, 128 + N if signal N ended it.

    Ctrl-C goes to the program, which decides; SIGTERM is passed on.
    """
    # A handler of ours, unlike SIG_IGN, does not go on to the program.
    signal.signal(signal.SIGINT, lambda *_: None)
    with subprocess.Popen(command) as program:
        signal.signal(signal.SIGTERM, lambda *_: program.terminate())
        status = program.wait()
    return status if status >= 0 else 128 - status
