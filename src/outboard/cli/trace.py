"""``outboard trace``: a capture in words, as JSON, or as a timeline; and the dissector for Wireshark."""

import json as json_module
import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from cyclopts import App
from rich.console import Console
from rich.text import Text

from outboard.cli.device_file import load_class
from outboard.cli.dissector import install_dissector
from outboard.errors import OutboardError
from outboard.protocol import Command, Direction
from outboard.trace.capture import CaptureReader, read_capture
from outboard.trace.describe import Described, Kind, as_json, describe
from outboard.trace.registers import REGIONS
from outboard.trace.timeline import write_timeline

NVME_CLASS = 0x010802
REGION_NUMBERS = {name.upper(): index for index, name in REGIONS.items()}

trace = App(name="trace", help_format="markdown")
trace.command(install_dissector, name="install-dissector")


@trace.default
def show(
    file: Path,
    /,
    *,
    device: str | None = None,
    only: list[str] | None = None,
    region: list[str] | None = None,
    json: bool = False,
    timeline: Path | None = None,
) -> None:
    """Print a capture of vfio-user messages, decoded.

    Captures are pcapng files: Wireshark and tshark read them too, with the dissector that
    `outboard trace install-dissector` installs.

    A line has the time since the first message in seconds, where the message went (→ to the
    server, ← to the client), its id, its name and what it says; of a reply how long it took; and
    the descriptors that came with it. What is wrong with a message follows in red.

    **Examples**

    ```
    outboard trace boot.pcapng
    outboard trace boot.pcapng --only REGION_READ,REGION_WRITE --region BAR0
    outboard trace boot.pcapng --device edu.py:Edu
    outboard trace boot.pcapng --json | jq .command
    outboard trace boot.pcapng --timeline boot.json
    ```

    Parameters
    ----------
    file
        The capture; /dev/stdin, or a named pipe that a running proxy writes to, is read as it comes.
    device
        Names registers as this device declares them: nvme, FILE.py:Class or package.module:Class.
        An NVMe controller is recognised by its class code.
    only
        Print these commands and their replies: names, separated by commas.
    region
        Print accesses of this region: 0 to 8, or BAR0 to BAR5, ROM, config.
    json
        Print one JSON object a message, numbers as numbers.
    timeline
        Write a timeline for ui.perfetto.dev or chrome://tracing into this file, and print nothing.
    """
    wanted = Filter(only or [], region or [])
    with read_capture(file) as capture:
        described = describe(capture, device_class(device), {NVME_CLASS: nvme_class})
        if timeline is not None:
            with timeline.open("w") as out:
                write_timeline(wanted.chosen(described), out, capture.connections)
        elif json:
            for message in wanted.chosen(described):
                print(json_module.dumps(as_json(message)))
        else:
            print_messages(described, wanted, capture)
        if capture.cut_short:
            print(f"outboard: {file} ends inside a packet: its writer was stopped", file=sys.stderr)


def device_class(device: str | None) -> type | None:
    """The class that ``--device`` names."""
    if device is None:
        return None
    return nvme_class() if device == "nvme" else load_class(device)


def nvme_class() -> type:
    """The NVMe controller, imported only when one is met."""
    from outboard.devices.nvme import Nvme

    return Nvme


class Filter:
    """Which messages are shown. Raises `OutboardError` for a command or region that does not exist."""

    def __init__(self, only: list[str], region: list[str]) -> None:
        names = [name for text in only for name in text.upper().replace("-", "_").split(",") if name]
        for name in names:
            if name not in Command.__members__:
                raise OutboardError(f"there is no command {name}; there are {', '.join(Command.__members__)}")
        self._commands = set(names)
        self._regions = {_region_number(text) for text in region}

    def chosen(self, described: Iterable[Described]) -> Iterator[Described]:
        """Those to show; a malformed message without a name, and one without a region, is not chosen."""
        for message in described:
            if self._commands and message.command not in self._commands:
                continue
            if not self._regions or self._regions & message.regions:
                yield message


def _region_number(text: str) -> int:
    if text.isdecimal():
        return int(text)
    if (number := REGION_NUMBERS.get(text.upper())) is None:
        raise OutboardError(f"there is no region {text}; there are {', '.join(REGION_NUMBERS)}, or numbers")
    return number


def print_messages(described: Iterator[Described], wanted: Filter, capture: CaptureReader) -> None:
    """One line a message; where there are several connections, a heading where they change."""
    console = Console(soft_wrap=True, highlight=False)
    connection: int | None = None
    start = next(described, None)
    if start is None:
        return
    for message in wanted.chosen(chain([start], described)):
        captured = message.captured
        if captured.connection != connection:
            connection = captured.connection
            console.print(Text(printable(capture.connections[connection]), style="bold"))
        console.print(line(message, captured.time - start.captured.time))


def line(message: Described, elapsed: int) -> Text:
    """A message on one line; ``elapsed`` in nanoseconds since the first."""
    captured = message.captured
    to_server = captured.direction is Direction.TO_SERVER
    text = Text(f"{elapsed / 1e9:11.6f} ", style="dim")
    text.append("→" if to_server else "←", style="cyan" if to_server else "green")
    text.append(f" {'' if message.id is None else message.id:>5} ", style="dim")
    command_style = "bold red" if message.kind is Kind.ERROR else "bold"
    text.append(f"{message.command or 'not a message':<24} ", style=command_style)
    text.append(printable(message.text), style="red" if message.kind is Kind.ERROR else "not dim")
    notes = [f"{captured.fds} descriptor{'s' * (captured.fds != 1)}"] * bool(captured.fds)
    notes += ["twin socket"] * bool(captured.socket)
    notes += ["no reply wanted"] * (message.kind is Kind.POSTED)
    if message.latency is not None:
        notes.append(duration(message.latency))
    if notes:
        text.append(f"  [{', '.join(notes)}]", style="dim")
    if message.problem:
        text.append(f"  {printable(message.problem)}", style="bold red")
    if captured.remark:
        text.append(f"  ({printable(captured.remark)})", style="yellow")
    text.rstrip()
    return text


def printable(text: str) -> str:
    r"""What a peer or a file says, with nothing in it that a terminal obeys.

    >>> print(printable("a\x1b[2Jb"))
    a\x1b[2Jb
    """
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def duration(nanoseconds: int) -> str:
    """Nanoseconds in the unit that reads best.

    >>> duration(1500), duration(23_000_000), duration(-1)
    ('1.5 µs', '23 ms', '-0.001 µs')
    """
    for unit, size in (("s", 10**9), ("ms", 10**6)):
        if abs(nanoseconds) >= size:
            return f"{nanoseconds / size:.3g} {unit}"
    return f"{nanoseconds / 1000:.3g} µs"
