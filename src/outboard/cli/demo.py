"""``outboard demo``: the main job end to end, in the guest's own words."""

import tempfile
from contextlib import closing
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.markup import escape

from outboard.cli.demo_driver import drive
from outboard.cli.demo_guest import prove
from outboard.cli.demo_steps import Report
from outboard.devices.nvme import Nvme
from outboard.errors import SetupError
from outboard.server import Server
from outboard.storage import open_storage

MODEL = "outboard NVMe"


def demo(*, size: str = "256M", guest: Annotated[bool, Parameter(negative="--no-guest")] = True) -> None:
    """Boot a Linux guest on a disk that outboard serves, and let it prove the disk.

    An NVMe controller in this process serves a disk in memory. An unmodified Linux, in QEMU, finds
    it with its own driver, makes a file system, writes and syncs a file, lets its driver go and
    come back, and compares checksums. QEMU and a kernel are fetched once, without root, where the
    machine has none that fit. Where no virtual machine can run, outboard's own driver
    plays the guest, and says so. Exit status 1 if anything is not as it should be.

    **Examples**

    ```
    outboard demo
    outboard demo --no-guest
    ```

    Parameters
    ----------
    size
        Of the disk; at least 128M.
    guest
        Without one outboard's own driver plays the guest at once.
    """
    console = Console(highlight=False, soft_wrap=True)
    with (
        tempfile.TemporaryDirectory(prefix="outboard-") as folder,
        closing(open_storage(f"ram:{size}")) as disk,
    ):
        socket = Path(folder, "disk.sock")
        with Server(Nvme(disk, model=MODEL), socket).start(), Report(console) as report:
            console.print(f"[bold]An NVMe disk of {size}[/], served by this process on {socket}")
            play = prove if guest else drive
            try:
                play(socket, disk.size, MODEL, report)
            except SetupError as error:
                console.print(f"[yellow]No virtual machine can run here: {escape(error.sentence)}[/]")
                console.print("[yellow]outboard's own driver plays the guest instead.[/]")
                drive(socket, disk.size, MODEL, report)
