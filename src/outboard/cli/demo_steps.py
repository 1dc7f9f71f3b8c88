"""The steps of a demonstration on the screen: what is being done, what was said, how long it took."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.table import Table

from outboard.errors import SetupError


class Report:
    """A context manager: runs steps one by one and ends with a table of them, also when one failed."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status: Status | None = None
        self._rows: list[tuple[str, str, float]] = []
        self._title = ""

    def step(self, title: str, action: Callable[[], str]) -> str:
        """Run ``action`` and show what it returns, the guest's own words; hand them on.

        Its exception goes on to the caller; a `SetupError` leaves no trace, as nothing was tried.
        """
        started = time.monotonic()
        self._title = title
        with self._console.status(title) as self._status:
            try:
                words = action()
            except SetupError:
                raise
            except BaseException:
                self._finish("[red]✗[/]", title, time.monotonic() - started)
                raise
        self._finish("[green]✓[/]", title, time.monotonic() - started)
        for line in words.strip().splitlines():
            self._console.print(f"    [dim]{escape(line)}[/]")
        return words

    def progress(self, stage: str, done: int, total: int) -> None:
        """Show how far the step is that runs now."""
        if self._status is not None:
            share = f" {100 * done // total}%" if total else ""
            self._status.update(f"{self._title}: {escape(stage)}{share}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._rows:
            return
        table = Table("", "step", "seconds", show_footer=True)
        table.columns[1].footer = "failed" if error else "every step did what it should"
        table.columns[2].footer = f"{sum(seconds for *_, seconds in self._rows):.1f}"
        table.columns[2].justify = "right"
        for mark, title, seconds in self._rows:
            table.add_row(mark, title, f"{seconds:.1f}")
        self._console.print(table)

    def _finish(self, mark: str, title: str, seconds: float) -> None:
        self._status = None
        self._rows.append((mark, title, seconds))
        self._console.print(f"{mark} {title} [dim]({seconds:.1f} s)[/]")
