"""``outboard conformance``: judges any vfio-user server, or any client, point by point."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from outboard.conformance import (
    MEANINGS,
    Outcome,
    Point,
    Report,
    client_points,
    judge_client,
    judge_server,
)
from outboard.conformance.server import POINTS as SERVER_POINTS
from outboard.errors import SetupError

COLOURS = {Outcome.PASS: "green", Outcome.FAIL: "bold red", Outcome.NOT_APPLICABLE: "dim"}


def conformance(
    socket: Path | None = None,
    /,
    *,
    client: bool = False,
    command: str | None = None,
    profile: Literal["spec", "qemu", "libvfio-user", "robust"] | None = None,
    only: str | None = None,
    writable: str | None = None,
    timeout: float | None = None,
    list: bool = False,
    json: bool = False,
    html: Path | None = None,
    markdown: Path | None = None,
) -> int:
    """Judge any vfio-user server, or any client, point by point.

    Connects to a server again and again, once for each point, and asks what the specification, QEMU and
    libvfio-user's clients ask. What is written to the device is written back; a device in use is not
    for this. With --client it is the other way round: listens on the socket, and judges the VMM that
    connects, once for each of some twenty servers that are each odd in one way. Exit status 1 if any point
    fails.

    **Examples**

    ```
    outboard conformance /tmp/disk.sock
    outboard conformance /tmp/dev.sock --command './my-server {socket}' --profile qemu
    outboard conformance --client /tmp/vmm.sock --command './my-client {socket}' --html report.html
    ```

    Parameters
    ----------
    socket
        The server's UNIX socket; with --client the one to listen on. May be left out with --command.
    client
        Judge a client, not a server.
    command
        What starts the server whenever nobody listens, or the client for each connection; {socket}
        stands for the socket's path.
    profile
        Only the points that the specification, QEMU or libvfio-user's peers need, or robustness.
    only
        Judge these points alone: P37,P41 (which is P41a and P41b).
    writable
        BAR:OFFSET of four bytes that may be written to, and written back.
    timeout
        Seconds for each answer (default 2); of a client, seconds of silence after which it has come to rest
        (default 1).
    list
        Print the points and what they stand for, and judge nothing.
    json
        Print one JSON object.
    html
        Write the findings as a page.
    markdown
        Write the findings as a page in Markdown.
    """
    if list:
        print_points(client_points() if client else SERVER_POINTS)
        return 0
    chosen = tuple(only.split(",")) if only else ()
    with _socket(socket, command) as path:
        try:
            if client:
                report = judge_client(
                    path,
                    command=command,
                    only=chosen,
                    profile=profile,
                    settle=timeout or 1.0,
                    announce=lambda scenario: _tell(path, scenario, quiet=command is not None),
                )
            else:
                report = judge_server(
                    path,
                    command=command,
                    only=chosen,
                    profile=profile,
                    writable=_place(writable),
                    timeout=timeout or 2.0,
                )
        except KeyError as unknown:
            raise SetupError(f"there is no point {unknown.args[0]}; see --list") from unknown
    if html is not None:
        html.write_text(report.to_html())
    if markdown is not None:
        markdown.write_text(report.to_markdown())
    if json:
        print(report.to_json())
    else:
        print_report(report)
    return 0 if report.ok else 1


def print_report(report: Report) -> None:
    """A table for each subject, then the failures in full."""
    console = Console()
    for title, verdicts in report.groups():
        table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
        for name in ("", "", "what holds"):
            table.add_column(name, overflow="fold")
        for verdict in verdicts:
            note = f"\n[dim]{escape(verdict.reason)}[/]" if verdict.reason else ""
            colour = COLOURS[verdict.outcome]
            table.add_row(
                verdict.point.id, f"[{colour}]{verdict.outcome}[/]", escape(verdict.point.title) + note
            )
        console.print(table)
        console.print()
    for verdict in report.failures:
        console.print(f"[bold red]{verdict.point.id}[/] [bold]{escape(verdict.point.title)}[/]")
        lines = Table.grid(padding=(0, 1))
        for label, text in verdict.explanation():
            lines.add_row(f"  [dim]{label}[/]", escape(text))
        console.print(lines)
        console.print()
    console.print(escape(report.summary()), style="bold")


def print_points(points: Sequence[Point[Any]]) -> None:
    """Every point, what it stands for, and who needs it."""
    console = Console()
    for profile, meaning in MEANINGS.items():
        console.print(f"[bold]{profile}[/]: {meaning}")
    for point in points:
        who = ", ".join(point.profiles) if point.judge is not None else "not seen on a socket"
        console.print(f"\n[bold]{point.id}[/] {escape(point.title)} [dim]({who})[/]")
        console.print(f"  {escape(point.source or point.reason)}")


@contextmanager
def _socket(path: Path | None, command: str | None) -> Iterator[Path]:
    """The path that was given, or one of our own for a command that is told it."""
    if path is not None:
        yield path
    elif command is None:
        raise SetupError("say which socket: outboard conformance SOCKET")
    else:
        folder = tempfile.mkdtemp(prefix="outboard-")
        try:
            yield Path(folder, "vfio-user.sock")
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _place(text: str | None) -> tuple[int, int] | None:
    """BAR:OFFSET, in any base."""
    if text is None:
        return None
    bar, _, offset = text.partition(":")
    try:
        return int(bar, 0), int(offset, 0)
    except ValueError as error:
        raise SetupError(f"--writable is BAR:OFFSET, such as 0:0x10, not {text!r}") from error


def _tell(path: Path, scenario: str, *, quiet: bool) -> None:
    """Ask a person to start the client once more."""
    if not quiet:
        Console(stderr=True).print(
            f"waiting on {escape(str(path))} for the client: {scenario}", highlight=False
        )
