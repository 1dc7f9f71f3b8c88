"""The ``profiles`` directive: what a server does for each client, made from the profiles themselves."""

from dataclasses import fields
from enum import Enum
from errno import errorcode

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata

from outboard.server import profiles
from outboard.server.profiles import PROFILES, SPEC, Profile

DESCRIPTIONS = ("name", "client", "told_by")


class ProfilesDirective(SphinxDirective):
    """A table of the profiles, and under it what each of their fields means."""

    def run(self) -> list[nodes.Node]:
        """The table and the list."""
        self.env.note_dependency(profiles.__file__)
        meanings = ModuleAnalyzer.for_module(profiles.__name__).find_attr_docs()
        listing = nodes.definition_list()
        for name in field_names():
            term = nodes.term("", "", nodes.literal(text=name), nodes.Text(f" (spec: {shown(SPEC, name)})"))
            meaning = " ".join(meanings["Profile", name]).strip()
            listing += nodes.definition_list_item(
                "", term, nodes.definition("", nodes.paragraph(text=meaning))
            )
        return [table(), listing]


def table() -> nodes.table:
    """One row a profile: who it is for, how that is seen, what is not as the specification has it."""
    made, spec, body = nodes.table(), nodes.tgroup(cols=4), nodes.tbody()
    spec += [nodes.colspec(colwidth=width) for width in (14, 24, 30, 32)]
    head = nodes.thead(
        "", row(*(nodes.Text(word) for word in ("profile", "client", "told by", "differs in")))
    )
    for profile in PROFILES.values():
        changes = nodes.line_block("", *(nodes.line("", "", *change) for change in differences(profile)))
        texts = (nodes.Text(profile.client), nodes.Text(profile.told_by))
        body += row(nodes.literal(text=profile.name), *texts, changes if changes.children else nodes.Text(""))
    spec += [head, body]
    made += spec
    return made


def differences(profile: Profile) -> list[list[nodes.Node]]:
    """The fields that are not as in the specification's profile, with their values."""
    return [
        [nodes.literal(text=name), nodes.Text(f" {shown(profile, name)}")]
        for name in field_names()
        if getattr(profile, name) != getattr(SPEC, name)
    ]


def field_names() -> list[str]:
    """What a profile decides."""
    return [field.name for field in fields(Profile) if field.name not in DESCRIPTIONS]


def shown(profile: Profile, name: str) -> str:
    """A field's value as a reader wants it."""
    value = getattr(profile, name)
    if name.endswith("errno"):
        return errorcode[value]
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value.value if isinstance(value, Enum) else value)


def row(*cells: nodes.Node) -> nodes.row:
    """A row of a table."""
    line = nodes.row()
    for cell in cells:
        whole = cell if isinstance(cell, nodes.line_block) else nodes.paragraph("", "", cell)
        line += nodes.entry("", whole)
    return line


def setup(app: Sphinx) -> ExtensionMetadata:
    """Tell Sphinx the directive."""
    app.add_directive("profiles", ProfilesDirective)
    return {"version": "1", "parallel_read_safe": True}
