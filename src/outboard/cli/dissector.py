"""``outboard trace install-dissector``: vfio-user in Wireshark and tshark."""

import os
import re
import shutil
import subprocess
from pathlib import Path

from outboard.trace import dissector

PERSONAL = Path(".local/lib/wireshark/plugins")


def install_dissector(*, directory: Path | None = None) -> None:
    """Teach Wireshark and tshark vfio-user: put the dissector where they look for plugins.

    Captures of vfio-user are decoded from then on, with no preference to set.

    **Examples**

    ```
    outboard trace install-dissector
    outboard trace install-dissector --directory /usr/lib/x86_64-linux-gnu/wireshark/plugins
    ```

    Parameters
    ----------
    directory
        A folder of Lua plugins; without it the personal one that tshark -G folders names, or
        ~/.local/lib/wireshark/plugins. Wireshark from 4.4 on reads none of a user's own when it is run
        as root: then give the global folder.
    """
    target = (directory or personal_folder()) / dissector().name
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(dissector(), target)
    print(f"installed {target}")
    print("Wireshark reads it when it starts, or with Ctrl-Shift-L (Analyze, Reload Lua Plugins). Then:")
    print("    wireshark boot.pcapng")
    print("    tshark -r boot.pcapng -O vfio_user")
    print("    tshark -r boot.pcapng -Y 'vfio_user.region == BAR0 && vfio_user.command == REGION_WRITE'")
    if directory is None and os.geteuid() == 0:
        print("You are root: Wireshark from 4.4 on reads personal plugins for other users only; give it")
        print("--directory and what `tshark -G folders` calls Global Lua Plugins, or run it as a user.")


def personal_folder() -> Path:
    """Where Wireshark looks for a user's own Lua plugins."""
    try:
        folders = subprocess.run(
            ["tshark", "-G", "folders"], capture_output=True, text=True, timeout=30, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return Path.home() / PERSONAL
    found = re.search(r"^Personal Lua Plugins:\s*(.+)$", folders, re.MULTILINE)
    return Path(found[1]) if found else Path.home() / PERSONAL
