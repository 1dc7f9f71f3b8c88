"""The ``suite`` directive: every point of the conformance suite, made from the suite itself."""

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata

from outboard.conformance import Point, client_points
from outboard.conformance.server import POINTS


class SuiteDirective(SphinxDirective):
    """One section a group: id, what holds, the source, whom it matters to, and the profiles."""

    def run(self) -> list[nodes.Node]:
        """The sections, those of servers first; what no socket shows is a list of its own."""
        every: list[Point[Any]] = [*POINTS, *client_points()]
        judged = [point for point in every if point.judge is not None]
        groups = dict.fromkeys(point.group for point in judged)
        sections: list[nodes.Node] = [
            section(group, [point for point in judged if point.group == group]) for group in groups
        ]
        return [*sections, unseen([point for point in every if point.judge is None])]


def section(title: str, points: list[Point[Any]]) -> nodes.section:
    """One group: a definition for each point."""
    part = nodes.section(ids=[nodes.make_id(f"suite {title}")])
    part += nodes.title(text=f"{title} ({len(points)} checks)")
    listing = nodes.definition_list()
    for point in points:
        term = nodes.term("", "", nodes.strong(text=point.id), nodes.Text(f" {point.title} "))
        term += nodes.emphasis(text=f"({', '.join(point.profiles)})")
        definition = nodes.definition("", nodes.paragraph(text=f"{point.source}."))
        definition += nodes.paragraph(
            "", "", nodes.emphasis(text="Otherwise: "), nodes.Text(f"{point.matters}.")
        )
        listing += nodes.definition_list_item("", term, definition)
    part += listing
    return part


def unseen(points: list[Point[Any]]) -> nodes.section:
    """What the suite cannot judge, and why."""
    part = nodes.section(ids=["suite-unseen"])
    part += nodes.title(text=f"Not seen on a socket ({len(points)} points)")
    listing = nodes.bullet_list()
    for point in points:
        listing += nodes.list_item("", nodes.paragraph(text=f"{point.id}, {point.title}: {point.reason}."))
    part += listing
    return part


def setup(app: Sphinx) -> ExtensionMetadata:
    """Tell Sphinx the directive."""
    app.add_directive("suite", SuiteDirective)
    return {"version": "1", "parallel_read_safe": True}
