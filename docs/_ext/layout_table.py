"""The ``layout`` directive: a structure of the wire as a table.

Offsets, sizes and names come from the code; the page says what each field means, a line a field::

    ```{layout} DmaMap
    argsz: 32
    flags: bit 0 ...
    ```

A field without a line, or a line without a field, is an error.
"""

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata
from wire_layouts import LAYOUTS, Field

KINDS = {1: "u8", 2: "u16", 4: "u32", 8: "u64"}


class LayoutDirective(SphinxDirective):
    """A table of one structure."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        """The table."""
        name = self.arguments[0]
        if name not in LAYOUTS:
            raise self.error(f"there is no structure {name}; there are {', '.join(LAYOUTS)}")
        try:
            meanings = described(LAYOUTS[name], list(self.content))
        except ValueError as error:
            raise self.error(f"{name}: {error}") from error
        made, group, body = nodes.table(classes=["layout"]), nodes.tgroup(cols=4), nodes.tbody()
        group += [nodes.colspec(colwidth=width) for width in (9, 9, 18, 64)]
        group += nodes.thead("", row(*(nodes.Text(word) for word in ("offset", "size", "field", "meaning"))))
        for field, (offset, meaning) in zip(LAYOUTS[name], meanings, strict=True):
            text, _ = self.state.inline_text(meaning, self.lineno + offset)
            kind = KINDS.get(field.size, f"{field.size} bytes") if field.name != "data" else "8 bytes"
            body += row(
                nodes.Text(str(field.offset)), nodes.Text(kind), nodes.literal(text=field.name), *text, at=3
            )
        group += body
        made += group
        return [made]


def described(fields: tuple[Field, ...], lines: list[str]) -> list[tuple[int, str]]:
    """For each field which line has its meaning, and the meaning; raises ValueError if they do not fit.

    >>> described((Field("argsz", 0, 4),), ["argsz: 32"])
    [(0, '32')]
    """
    said: list[tuple[int, str, str]] = []
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        if line.startswith(" ") and said:
            before = said.pop()
            said.append((before[0], before[1], f"{before[2]} {line.strip()}"))
            continue
        name, _, meaning = line.partition(":")
        said.append((number, name.strip(), meaning.strip()))
    expected, found = [field.name for field in fields], [name for _, name, _ in said]
    if expected != found:
        raise ValueError(f"the fields are {', '.join(expected)}; the page describes {', '.join(found)}")
    return [(number, meaning) for number, _, meaning in said]


def row(*cells: nodes.Node, at: int | None = None) -> nodes.row:
    """A row; the cells from ``at`` on are one."""
    line = nodes.row()
    alone = cells if at is None else cells[:at]
    for cell in alone:
        line += nodes.entry("", nodes.paragraph("", "", cell))
    if at is not None:
        line += nodes.entry("", nodes.paragraph("", "", *cells[at:]))
    return line


def setup(app: Sphinx) -> ExtensionMetadata:
    """Tell Sphinx the directive."""
    app.add_directive("layout", LayoutDirective)
    return {"version": "1", "parallel_read_safe": True}
