"""The ``capture`` directive: messages as ``outboard trace`` prints them, and their bytes by field.

Its argument is a capture file, from the top of the sources, or the name of a conversation in
`conversations`, which is then held while the documentation is built::

    ```{capture} reset
    :only: DEVICE_RESET
    :messages: 1-2
    :bytes:
    ```

``only`` names commands, ``region`` a region; ``messages`` are places among those that are left, from 1.
``bytes`` adds the bytes, ``header`` takes their headers apart too, ``times`` adds the time of each message.
"""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import ClassVar

import conversations
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata, OptionSpec
from wire_layouts import ROW, Part, annotate

from outboard.cli.trace import Filter, line
from outboard.trace import Captured, Described, describe, read_capture

ROOT = Path(__file__).parents[2]
TIME = 12
"""Characters of a line that are the time."""
SHOWN = 4
"""Rows of long data that are shown."""


class CaptureDirective(SphinxDirective):
    """A block of messages."""

    required_arguments = 1
    option_spec: ClassVar[OptionSpec] = {
        "only": directives.unchanged_required,
        "region": directives.unchanged_required,
        "messages": directives.unchanged_required,
        "bytes": directives.flag,
        "header": directives.flag,
        "times": directives.flag,
    }

    def run(self) -> list[nodes.Node]:
        """The block."""
        name = self.arguments[0]
        if name.endswith(".pcapng"):
            self.env.note_dependency(str(ROOT / name))
        else:
            self.env.note_dependency(conversations.__file__)
        wanted = Filter([self.options.get("only", "")], self.options.get("region", "").split())
        chosen = list(wanted.chosen(describe(messages_of(name))))
        if "messages" in self.options:
            try:
                chosen = [chosen[place - 1] for place in places(self.options["messages"])]
            except IndexError:
                raise self.error(f"{name} has {len(chosen)} such messages") from None
        if not chosen:
            raise self.error(f"{name} has no such message")
        options = {flag: flag in self.options for flag in ("bytes", "header", "times")}
        text = "\n".join(text_of(chosen, **options))
        return [nodes.literal_block(text, text, language="text", classes=["capture"])]


@cache
def messages_of(name: str) -> tuple[Captured, ...]:
    """The messages of a file or a conversation."""
    return tuple(read_capture(ROOT / name) if name.endswith(".pcapng") else conversations.hold(name))


def places(text: str) -> list[int]:
    """Numbers and ranges, in the order they are given.

    >>> places("1-3, 7")
    [1, 2, 3, 7]
    """
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def text_of(
    chosen: list[Described], *, bytes: bool = False, header: bool = False, times: bool = False
) -> Iterator[str]:
    """The lines of the block."""
    start = chosen[0].captured.time
    for number, message in enumerate(chosen):
        if not times:
            message.latency = None  # a conversation held in one thread takes no time worth telling
        whole = line(message, message.captured.time - start).plain
        if (bytes or header) and number:
            yield ""
        yield whole if times else whole[TIME:]
        if bytes or header:
            yield from rows(annotate(message.captured.data), header)


def rows(parts: list[Part], header: bool) -> Iterator[str]:
    """A line for each field, more for long data; the header is one line unless it is asked for."""
    heads = [part for part in parts if part.offset is None]
    if header:
        at = 0
        for part in heads:
            yield row("header" if not at else "", part.data, part.name, part.says)
            at += len(part.data)
    else:
        said = f"id {heads[0].says}, {heads[1].says}, {heads[2].says} bytes, {heads[3].says}"
        if any(heads[4].data):
            said += f", errno {heads[4].says}"
        yield f"  header  {b''.join(part.data for part in heads).hex(' ')}  {said}"
    for part in parts:
        if part.offset is not None:
            yield from data_rows(part.offset, part)


def data_rows(offset: int, part: Part) -> Iterator[str]:
    """The lines of one field."""
    starts = range(0, len(part.data), ROW)
    for number, at in enumerate(starts):
        if len(starts) > SHOWN and SHOWN - 1 <= number < len(starts) - 1:
            if number == SHOWN - 1:
                yield "     ..."
            continue
        piece = part.data[at : at + ROW]
        yield row(str(offset + at), piece, "" if at else part.name, part.says or readable(piece))


def row(place: str, data: bytes, name: str, says: str) -> str:
    """One line."""
    return f"{place:>8}  {data.hex(' '):<24} {name:<16} {says}".rstrip()


def readable(data: bytes) -> str:
    """Bytes as text where they are text."""
    letters = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in data)
    return letters if len(letters.replace(".", "")) * 2 > len(letters) and len(data) > 1 else ""


def setup(app: Sphinx) -> ExtensionMetadata:
    """Tell Sphinx the directive."""
    app.add_directive("capture", CaptureDirective)
    return {"version": "1", "parallel_read_safe": True}
