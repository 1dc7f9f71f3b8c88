"""Directives for what is declared once: a class's ``options``, the control socket's ``methods``, ``metrics``.

Their argument, where they have one, is the name of a class::

    ```{options} outboard.operation.options.NamespaceOptions
    ```
"""

import json
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata

from outboard.operation import Configuration, Service
from outboard.operation.control.method import Method
from outboard.operation.control.methods import METHODS
from outboard.operation.declared import Field, fields_of, schema
from outboard.operation.metrics import NvmeCollector

PLAIN = {
    "string": "text",
    "integer": "number",
    "number": "number",
    "boolean": "true or false",
    "object": "table",
}


Cells = list[str | nodes.Node]


class OptionsDirective(SphinxDirective):
    """A table of what a class takes."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The table."""
        module, _, name = self.arguments[0].rpartition(".")
        found = import_module(module)
        self.env.note_dependency(str(found.__file__))
        return [options(fields_of(getattr(found, name)))]


class MethodsDirective(SphinxDirective):
    """One section a method: what it does, what it takes, how it is called."""

    def run(self) -> list[nodes.Node]:
        """The sections, in the order of the table of methods."""
        return [self.section(method) for method in METHODS.values()]

    def section(self, method: Method) -> nodes.section:
        """One method."""
        section = nodes.section(ids=[nodes.make_id(f"method {method.name}")])
        section += nodes.title("", "", nodes.literal(text=method.name))
        section += nodes.paragraph(text=method.summary)
        if method.fields:
            section += options(method.fields)
        return section


class MetricsDirective(SphinxDirective):
    """A table of the metrics."""

    def run(self) -> list[nodes.Node]:
        """The table."""
        rows: list[Cells] = []
        for family in NvmeCollector(Service(Configuration())).collect():
            name = family.name + "_total" * (family.type == "counter")
            labels = ", ".join(getattr(family, "_labelnames", ()))
            rows.append([nodes.literal(text=name), family.type, labels, family.documentation])
        return [table(("metric", "type", "labels", "what it is"), (44, 10, 22, 40), rows)]


def options(fields: Iterable[Field]) -> nodes.table:
    """A table of declared fields."""
    rows: list[Cells] = [
        [nodes.literal(text=each.name), values(schema(each.kind)), default(each), each.meaning]
        for each in fields
    ]
    return table(("name", "is", "default", "meaning"), (18, 24, 14, 60), rows)


def values(found: dict[str, Any]) -> str:
    """What a JSON schema allows, in words.

    >>> values({"type": "integer", "minimum": 1, "maximum": 8}), values({"enum": ["a", "b"]})
    ('1 to 8', 'a, b')
    """
    if "anyOf" in found:
        return values(found["anyOf"][0])
    if "enum" in found:
        return ", ".join(map(str, found["enum"]))
    if "minimum" in found:
        return f"{found['minimum']} to {found['maximum']}"
    if isinstance(found.get("type"), list):
        return "bytes, or text as 8G"
    if found.get("type") == "array":
        return f"list of {values(found['items']).removesuffix('s')}s"
    return PLAIN.get(found.get("type", ""), "anything")


def default(field: Field) -> str:
    """The default of a field, as TOML has it."""
    if field.required:
        return "required"
    return "" if field.default in (None, (), {}) else json.dumps(field.default)


def table(titles: Sequence[str], widths: Sequence[int], rows: Iterable[Cells]) -> nodes.table:
    """A table with a head."""
    made, spec, body = nodes.table(), nodes.tgroup(cols=len(titles)), nodes.tbody()
    spec += [nodes.colspec(colwidth=width) for width in widths]
    spec += nodes.thead("", row(titles))
    for each in rows:
        body += row(each)
    spec += body
    made += spec
    return made


def row(cells: Sequence[str | nodes.Node]) -> nodes.row:
    """A row of a table."""
    line = nodes.row()
    for cell in cells:
        inner = nodes.paragraph(text=cell) if isinstance(cell, str) else nodes.paragraph("", "", cell)
        line += nodes.entry("", inner)
    return line


def setup(app: Sphinx) -> ExtensionMetadata:
    """Tell Sphinx the directives."""
    app.add_directive("options", OptionsDirective)
    app.add_directive("methods", MethodsDirective)
    app.add_directive("metrics", MetricsDirective)
    return {"version": "1", "parallel_read_safe": True}
