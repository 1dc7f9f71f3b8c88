"""The chart of the measurements says what was measured."""

import re
from xml.etree import ElementTree

from harness.chart import Bar, Panel, svg

SVG = "{http://www.w3.org/2000/svg}"


def rectangles(picture: str) -> list[tuple[str, float, float]]:
    """Fill, left edge and width of every rectangle."""
    return [
        (found.get("fill", ""), float(found.get("x", "")), float(found.get("width", "")))
        for found in ElementTree.fromstring(picture).iter(f"{SVG}rect")
    ]


def test_bars_are_as_long_as_their_values_from_a_common_zero() -> None:
    panel = Panel("reads", [Bar("one", 1e6, None, ""), Bar("two", 2e6, 4e6, "")])
    one, two, bound, *_ = rectangles(svg("all", [panel], "legend"))
    assert one[1] == two[1] == bound[1]
    assert two[2] / one[2] == 2
    assert bound[2] / one[2] == 4
    assert bound[0] == "none"


def test_every_panel_has_an_axis_of_its_own() -> None:
    panels = [Panel("fast", [Bar("a", 2e7, None, "")]), Panel("slow", [Bar("b", 1e3, None, "")])]
    fast, slow, *_ = rectangles(svg("all", panels, "legend"))
    assert fast[2] == slow[2]


def test_words_with_markup_are_words() -> None:
    picture = svg("a < b", [Panel("<i>", [Bar("x & y", 1.0, None, "")])], "legend")
    assert {"a < b", "<i>", "x & y"} <= {found.text for found in ElementTree.fromstring(picture).iter()}


def test_the_picture_has_no_background_that_would_glare_on_a_dark_page() -> None:
    picture = svg("all", [Panel("p", [Bar("a", 1.0, None, "")])], "legend")
    assert not re.search(r"#fff|white|#000|black", picture)
