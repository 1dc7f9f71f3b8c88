"""`outboard top`: rates, its keys, and what it shows of a server at work."""

import asyncio
import io
import json
import re
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from textual.widgets import DataTable, Static

from outboard.cli.top import as_text
from outboard.cli.top_rates import TABLES, ordered, tables_of
from outboard.cli.top_view import TopView
from outboard.client import Client
from outboard.drivers.nvme import NvmeDriver
from outboard.operation import ControlClient, Running
from outboard.operation.configuration import configuration_of
from tests.cli.conftest import Outboard
from tests.operation.conftest import document


@pytest.fixture
def control(tmp_path: Path) -> Iterator[Path]:
    """The control socket of a service with two controllers."""
    with Running(configuration_of(document(tmp_path), "test.toml")) as running:
        running.start()
        yield tmp_path / "control.sock"


def watched(control: Path, look: Callable[[TopView, Any], Awaitable[None]]) -> None:
    """Run the view as on a terminal of 130 columns; it looks when told to, beside once in a while."""

    async def run() -> None:
        view = TopView(lambda: ControlClient(control), 3600)
        async with view.run_test(size=(130, 40)) as pilot:
            await look(view, pilot)

    asyncio.run(run())


def text_of(view: TopView) -> str:
    """What is on the screen."""
    svg = view.export_screenshot()
    return re.sub(r"<[^>]+>", "", svg).replace("&#160;", " ")


def test_it_shows_controllers_queues_and_namespaces_at_work(control: Path) -> None:
    async def look(view: TopView, pilot: Any) -> None:
        with Client(control.with_name("a.sock")) as client, NvmeDriver(client) as driver:
            await view.look()
            for _ in range(5):
                driver.read(1, 0, 4096)
            await view.look()
            await pilot.pause()
            shown = text_of(view)
            first, second = view.shown["controllers"]
            assert first["reads"] > 0
            assert first["bytes_read"] == pytest.approx(first["reads"] * 4096)
            assert second["reads"] == 0
        for words in (
            "controllers",
            "queues",
            "namespaces",
            "reads/s",
            "ready",
            "1G",
            "IOPS",
            "Quit",
            "Pause",
        ):
            assert words in shown, words
        queues = view.query_one("#queues", DataTable)
        assert queues.row_count == 2

    watched(control, look)


def test_its_keys_sort_pause_and_quit(control: Path) -> None:
    async def look(view: TopView, pilot: Any) -> None:
        await pilot.press("s")
        await pilot.pause()
        assert view.sort_key == "cntlid"
        assert [row["cntlid"] for row in view.shown["controllers"]] == [1, 2]
        table = view.query_one("#controllers", DataTable)
        assert [str(table.get_row_at(row)[1]).strip() for row in range(2)] == ["2", "1"]
        await pilot.press("r", "r")
        await pilot.pause()
        assert view.sort_key == TABLES["controllers"][-1].key

        await pilot.press("p")
        assert "paused" in str(view.query_one("#summary", Static).render())
        before = view.shown
        await view.look()
        assert view.shown is before
        await pilot.press("p")
        await view.look()
        assert view.shown is not before

        await pilot.press("q")

    watched(control, look)


def test_it_survives_its_server_and_says_so(tmp_path: Path) -> None:
    async def look(view: TopView, pilot: Any) -> None:
        assert "nobody can be asked" in view.problem
        with Running(configuration_of(document(tmp_path), "test.toml")) as running:
            running.start()
            await view.look()
            assert view.problem == ""
            assert len(view.shown["controllers"]) == 2
        await view.look()
        await pilot.pause()
        assert view.problem
        assert "control.sock" in text_of(view)

    watched(tmp_path / "control.sock", look)


def counted(time: float, reads: int, cntlid: int = 1) -> dict[str, Any]:
    numbers = dict.fromkeys(("writes", "bytes_read", "bytes_written", "errors"), 0)
    controller = {
        "cntlid": cntlid,
        "connected": True,
        "state": "ready",
        "reads": reads,
        **numbers,
        "counters": {"interrupts": reads // 2},
        "queues": [
            {
                "id": 1,
                "entries": 8,
                "waiting": 3,
                "unconsumed": 0,
                "vector": 0,
                "compiled": True,
                "depth": 4,
                "commands": reads,
                "bytes": 512 * reads,
                "interrupts": reads // 2,
            }
        ],
    }
    return {"time": time, "subsystems": [{"name": "main", "controllers": [controller], "namespaces": []}]}


def test_rates_are_differences_by_the_servers_clock() -> None:
    (row,) = tables_of(counted(10.0, 100), counted(12.0, 500))["controllers"]
    assert (row["reads"], row["interrupts"], row["waiting"]) == (200.0, 100.0, 3)


def test_a_queue_has_rates_too() -> None:
    (row,) = tables_of(counted(10.0, 100), counted(12.0, 500))["queues"]
    assert (row["commands"], row["bytes"], row["interrupts"], row["depth"]) == (200.0, 102400.0, 100.0, 4)


def test_the_latency_of_a_namespace_is_that_of_the_time_between() -> None:
    before, after = counted(10.0, 0), counted(12.0, 0)
    quiet = dict.fromkeys(("writes", "bytes_read", "bytes_written"), 0)
    space = {"nsid": 1, "size": 512, "attached": [1], **quiet}
    before["subsystems"][0]["namespaces"] = [space | {"reads": 10, "measured": 10, "latency_ns": 10**9}]
    after["subsystems"][0]["namespaces"] = [
        space | {"reads": 410, "measured": 14, "latency_ns": 10**9 + 80_000},
        space | {"nsid": 2, "reads": 0, "measured": 0, "latency_ns": 0},
    ]
    first, second = tables_of(before, after)["namespaces"]
    assert (first["reads"], first["latency"], second["latency"]) == (200.0, 20_000.0, None)
    console = Console(file=io.StringIO(), width=150)
    console.print(as_text(tables_of(before, after)))
    assert isinstance(console.file, io.StringIO)
    assert "20 us" in console.file.getvalue()


def test_a_controller_that_came_since_counts_from_zero_and_one_made_anew_never_backwards() -> None:
    (row,) = tables_of(counted(10.0, 100, cntlid=7), counted(12.0, 500))["controllers"]
    assert row["reads"] == 250.0
    (row,) = tables_of(counted(10.0, 1000), counted(12.0, 500))["controllers"]
    assert row["reads"] == 0.0


def test_numbers_are_sorted_down_and_text_up() -> None:
    rows = [{"a": 1, "b": "x"}, {"a": 2, "b": "w"}]
    assert ordered(rows, "a") == ordered(rows, "b") == rows[::-1]


def test_once_prints_tables_without_a_terminal(outboard: Outboard, control: Path) -> None:
    printed = outboard("top", "--socket", control, "--interval", "0.1")
    assert printed.returncode == 0, printed.stderr
    assert "reads/s" in printed.stdout
    assert "1G" in printed.stdout
    found = json.loads(
        outboard("top", "--once", "--json", "--interval", "0.1", OUTBOARD_CONTROL=str(control)).stdout
    )
    assert found.keys() == TABLES.keys()
    assert [row["cntlid"] for row in found["controllers"]] == [1, 2]


def test_tables_without_a_row_are_left_out() -> None:
    console = Console(file=io.StringIO(), width=120)
    console.print(as_text(tables_of(counted(0, 0), counted(1, 0))))
    assert isinstance(console.file, io.StringIO)
    assert "namespaces" not in console.file.getvalue()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--interval", "0", "--socket", "x"], "at least 0.1"),
        ([], "Give --socket PATH, or set OUTBOARD_CONTROL"),
    ],
)
def test_a_wrong_use_is_told(outboard: Outboard, arguments: list[str], sentence: str) -> None:
    failed = outboard("top", *arguments)
    assert failed.returncode == 1
    assert sentence in failed.stderr
