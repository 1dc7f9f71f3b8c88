"""The ``points`` directive: the conformance tables, made from the marks of the tests.

The ``point`` role links to rows of them: {point}`P41 P42`.
"""

import sys
from functools import cache
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective, SphinxRole
from sphinx.util.typing import ExtensionMetadata

sys.path.insert(0, str(Path(__file__).parents[2]))
from tools import points

OPEN = "open"


class PointsDirective(SphinxDirective):
    """One section a group: id, sentence, and the tests that cover it."""

    def run(self) -> list[nodes.Node]:
        """The sections, and a line that counts before them."""
        for name in ("tests", "tools"):
            self.env.note_dependency(str(points.ROOT / name))
        table = points.groups()
        every = [point for group in table.values() for point in group]
        covered = sum(bool(point.tests) for point in every)
        count = nodes.paragraph(text=f"{covered} of {len(every)} points are covered by a named test today.")
        return [count, *(self.section(title, group) for title, group in table.items())]

    def section(self, title: str, group: list[points.Point]) -> nodes.section:
        """One group's title and table."""
        section = nodes.section(ids=[nodes.make_id(f"points {title}")])
        covered = sum(bool(point.tests) for point in group)
        section += nodes.title(text=f"{title} ({covered} of {len(group)})")
        table, spec, body = nodes.table(), nodes.tgroup(cols=3), nodes.tbody()
        spec += [nodes.colspec(colwidth=width) for width in (8, 46, 46)]
        head = nodes.thead("", row(["point", "what holds", "shown by"]))
        for point in group:
            line = row([point.id + (" Q" if point.qemu else ""), point.sentence, tests(point)])
            line["ids"].append(anchor(point.id))
            body += line
        spec += [head, body]
        table += spec
        section += table
        return section


class PointRole(SphinxRole):
    """Points by their ids, each a link to its row with its sentence as the tooltip."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """The links."""
        table = self.env.app.builder.get_relative_uri(self.env.docname, "reference/conformance")
        links: list[nodes.Node] = []
        for name in self.text.split():
            if name not in sentences():
                return [], [self.inliner.reporter.error(f"there is no point {name}", line=self.lineno)]
            links += [
                nodes.Text(" " * bool(links)),
                nodes.reference(
                    "", name, refuri=f"{table}#{anchor(name)}", reftitle=sentences()[name], classes=["point"]
                ),
            ]
        return links, []


@cache
def sentences() -> dict[str, str]:
    """Every point's sentence, by its id."""
    return {point.id: point.sentence for group in points.groups().values() for point in group}


def anchor(name: str) -> str:
    """The id of a point's row in the page."""
    return f"point-{name.lower()}"


def row(cells: list[str | nodes.Node]) -> nodes.row:
    """A row of a table; text becomes a paragraph."""
    line = nodes.row()
    for cell in cells:
        line += nodes.entry("", nodes.paragraph(text=cell) if isinstance(cell, str) else cell)
    return line


def tests(point: points.Point) -> nodes.Node:
    """The tests of a point, or the word that says there is none."""
    if not point.tests:
        return nodes.paragraph("", "", nodes.emphasis(text=OPEN))
    listing = nodes.bullet_list()
    for test in point.tests:
        listing += nodes.list_item(
            "", nodes.paragraph("", "", nodes.literal(text=f"{test.path}: {test.name}"))
        )
    return listing


def setup(app: Sphinx) -> ExtensionMetadata:
    """Tell Sphinx the directive."""
    app.add_directive("points", PointsDirective)
    app.add_role("point", PointRole())
    return {"version": "1", "parallel_read_safe": True}
