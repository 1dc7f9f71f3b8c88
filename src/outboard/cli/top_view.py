"""The live view of `outboard top`: one table each for controllers, queues and namespaces.

Needs textual (the extra ``top``). The control socket is asked in a thread, so keys are heard meanwhile.
"""

import asyncio
from collections.abc import Callable
from typing import Any, ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import DataTable, Footer, Label, Static

from outboard.cli.bench_run import in_thousands
from outboard.cli.top_rates import TABLES, Column, Row, ordered, tables_of
from outboard.errors import OutboardError
from outboard.operation.control.client import ControlClient

SORTED = "controllers"
"""The table whose columns are gone through; the others follow where they have the same column."""

NO_BREAK_SPACE = "\xa0"
"""Other spaces at the beginning of a text are taken away."""
GAP = 3 * NO_BREAK_SPACE


class TopView(App[None]):
    """Asks the client that ``connect`` gives every ``interval`` seconds; connects anew where that fails."""

    TITLE = "outboard top"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #summary { padding: 0 1; background: $panel; color: $text; width: 100%; }
    .title { padding: 1 1 0 1; text-style: bold; color: $accent; }
    DataTable { height: auto; max-height: 45%; background: $background; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "Quit"),
        Binding("p,space", "pause", "Pause"),
        Binding("s", "sort(1)", "Sort by the next column"),
        Binding("r", "sort(-1)", "by the one before"),
    ]

    def __init__(self, connect: Callable[[], ControlClient], interval: float) -> None:
        super().__init__()
        self._connect = connect
        self._interval = interval
        self._client: ControlClient | None = None
        self._before: dict[str, Any] | None = None
        self._asking = False
        self.shown: dict[str, list[Row]] = {name: [] for name in TABLES}
        self.sort_key = TABLES[SORTED][0].key
        self.paused = False
        self.problem = ""

    def compose(self) -> ComposeResult:
        """A line on top, the tables, and the keys."""
        yield Static(id="summary")
        for name in TABLES:
            yield Label(name, classes="title")
            yield DataTable(id=name, cursor_type="none", show_cursor=False, zebra_stripes=True)
        yield Footer()

    async def on_mount(self) -> None:
        """Begin to look."""
        self._summarise()
        self.set_interval(self._interval, self.look)
        await self.look()

    async def on_unmount(self) -> None:
        """Let go of the socket."""
        if self._client is not None:
            self._client.close()

    async def look(self) -> None:
        """Ask once, and show what has changed since the last time."""
        if self.paused or self._asking:
            return
        self._asking = True
        try:
            after = await asyncio.to_thread(self._ask)
            self.problem = ""
        except OutboardError as error:
            self.problem, after = error.sentence, None
        finally:
            self._asking = False
        if after is not None:
            self.shown = tables_of(self._before or after, after)
        self._before = after
        self._show()

    def action_pause(self) -> None:
        """Stop looking, or go on; rates begin anew then."""
        self.paused = not self.paused
        self._before = None
        self._summarise()

    def action_sort(self, step: int) -> None:
        """Sort by another column."""
        keys = [column.key for column in TABLES[SORTED]]
        self.sort_key = keys[(keys.index(self.sort_key) + step) % len(keys)]
        self._show()

    def _ask(self) -> dict[str, Any]:
        if self._client is None:
            self._client = self._connect()
        try:
            found: dict[str, Any] = self._client.call("statistics.get")
        except OutboardError:
            self._client.close()
            self._client = None
            raise
        return found

    def _show(self) -> None:
        for name, columns in TABLES.items():
            table = self.query_one(f"#{name}", DataTable)
            keys = [column.key for column in columns]
            rows = ordered(self.shown[name], self.sort_key) if self.sort_key in keys else self.shown[name]
            cells = [self._cells(column, rows) for column in columns]
            place = table.scroll_y
            table.clear(columns=True)
            table.add_columns(*(column[0] for column in cells))
            table.add_rows(zip(*(column[1:] for column in cells), strict=True))
            table.scroll_to(y=place, animate=False)
        self._summarise()

    def _cells(self, column: Column, rows: list[Row]) -> list[Text]:
        """A column: its title and what is in its lines, numbers to the right."""
        mark = " ▾" if column.key == self.sort_key else ""
        texts = [column.title + mark, *(column.shown(row[column.key]) for row in rows)]
        width = max(map(len, texts))
        return [Text(text.rjust(width, NO_BREAK_SPACE) if column.number else text) for text in texts]

    def _summarise(self) -> None:
        rows = self.shown[SORTED]
        commands = in_thousands(sum(row["reads"] + row["writes"] for row in rows))
        moved = in_thousands(sum(row["bytes_read"] + row["bytes_written"] for row in rows))
        text = Text.assemble(
            ("outboard top   ", "bold"), f"{commands} IOPS   {moved}B/s   every {self._interval:g} s"
        )
        if self.paused:
            text.append(GAP + "paused", "bold yellow")
        if self.problem:
            text.append(GAP + self.problem, "bold red")
        self.query_one("#summary", Static).update(text)
