"""The command line: one file a command. Only this file is imported before a command is chosen."""

import sys
from collections.abc import Sequence

COMMANDS = {
    "demo": "Boot a Linux guest on a disk that outboard serves, and let it prove the disk.",
    "serve": "Serve any device.",
    "nvme": "Serve NVMe controllers.",
    "ctl": "Ask and change what `outboard nvme` serves, while it serves.",
    "top": "Watch what `outboard nvme` serves at work.",
    "qemu": "Run QEMU with devices of outboard in it.",
    "bench": "Measure any NVMe controller behind a vfio-user socket.",
    "proxy": "Stand between a VMM and any server: record, decode, break on purpose.",
    "replay": "Say again what a recorded client said, and compare the answers.",
    "trace": "Print a capture of vfio-user messages, decoded.",
    "identify": "Tell what is behind a socket.",
    "conformance": "Judge any vfio-user server, or any client, point by point.",
    "doctor": "Tell what this machine lacks, and what mends it.",
}
"""The commands and what each does; ``outboard.cli.NAME`` has a function ``NAME``."""


def main(arguments: Sequence[str] | None = None, *, width: int | None = None) -> None:
    """Run one command line (default: this process's) and exit with its status.

    ``width`` fixes the columns of what is printed, where it goes to no terminal.
    """
    try:
        from outboard.cli.app import run
    except ModuleNotFoundError as missing:
        if (missing.name or "").startswith("outboard"):
            raise
        sys.exit(f"outboard: the command line needs {missing.name}: pip install 'outboard[cli]'")
    sys.exit(run(sys.argv[1:] if arguments is None else arguments, width))
