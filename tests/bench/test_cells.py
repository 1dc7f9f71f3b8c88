"""The cells of the data plane's table, without a run."""

from data_plane import Cell, all_cells, as_json, chart_of, notes, table_of

ABOUT = {
    "machine": "a machine",
    "date": "2026-01-01",
    "runs": 3,
    "seconds": 1.0,
    "steal_percent": 0.0,
    "round_trip_ns": 100.0,
    "fio": False,
}


def measured() -> list[Cell]:
    """A cell whose bound changed as the machine did, and one without a bound."""
    return [
        Cell("null", "randread", 4096, 32, [2e6, 1e6, 9e6], [1.0] * 3, [2.0] * 3, [4e6, 2e6, 9e6]),
        Cell("file", "randread", 4096, 1, [1e5] * 3, [9.0] * 3, [99.0] * 3),
    ]


def test_a_ratio_is_to_the_bound_of_the_same_round() -> None:
    assert measured()[0].ratio == 0.5


def test_a_cell_without_a_bound_has_no_ratio_anywhere() -> None:
    cells = measured()
    assert table_of(cells).rows[1][-2:] == ("", "")
    assert '"ratio": null' in as_json(cells, ABOUT)
    assert "100 k" in chart_of(cells)
    assert "no fio" in notes(ABOUT)


def test_cells_have_names_of_their_own() -> None:
    names = [cell.name for cell in all_cells()]
    assert len(set(names)) == len(names)
    assert {"null-randread-4k-1", "ram-randread-128k-32", "file-randwrite-4k-128"} <= set(names)
