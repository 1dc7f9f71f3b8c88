"""The ``commands`` directive: the ``--help`` of every command, as the program prints it."""

import contextlib
import io
import re

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata

from outboard.cli import COMMANDS, main


class CommandsDirective(SphinxDirective):
    """One section a command, holding its help text."""

    def run(self) -> list[nodes.Node]:
        """The sections, in the order of the command list."""
        return [self.section(name) for name in COMMANDS]

    def section(self, name: str) -> nodes.section:
        """One command's title and help."""
        section = nodes.section(ids=[nodes.make_id(f"outboard {name}")])
        section += nodes.title("", "", nodes.literal(text=f"outboard {name}"))
        text = help_of(name)
        section += nodes.literal_block(text, text, language="text")
        return section


def help_of(name: str) -> str:
    """What ``outboard NAME --help`` prints on a terminal of 100 columns, without colours."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main([name, "--help"], width=100)
    return re.sub(r"\x1b\[[0-9;]*m", "", printed.getvalue()).strip()


def setup(app: Sphinx) -> ExtensionMetadata:
    """Tell Sphinx the directive."""
    app.add_directive("commands", CommandsDirective)
    return {"version": "1", "parallel_read_safe": True}
