"""Tables as text for a terminal and as Markdown for the documentation."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """A row of headings and rows of cells; all but the first column are numbers, on the right."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]

    def text(self) -> str:
        """Columns of even width."""
        lines = [self.headings, *self.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.headings))]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if column == 0 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        )

    def printed(self, *, markdown: bool) -> str:
        """What a program prints: Markdown, ended so that a paragraph can follow; or text."""
        return self.markdown() + "\n" if markdown else self.text()

    def markdown(self) -> str:
        """A table of Markdown."""
        rule = ["---"] + ["---:"] * (len(self.headings) - 1)
        return "\n".join("| " + " | ".join(line) + " |" for line in (self.headings, rule, *self.rows))


def number(value: float) -> str:
    """Three digits and a unit.

    >>> number(21_460_000), number(183_400), number(1_000), number(999.7), number(0.25)
    ('21.5 M', '183 k', '1.00 k', '1.00 k', '0.25')
    """
    for factor, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= factor * 0.9995:
            return three_digits(value / factor) + unit
    return three_digits(value)


def three_digits(value: float) -> str:
    """A number below a thousand.

    >>> three_digits(1.234), three_digits(12.34), three_digits(123.4)
    ('1.23', '12.3', '123')
    """
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}"


def size_name(size: int) -> str:
    """A size as NVMe people say it.

    >>> size_name(4096), size_name(131072)
    ('4 KiB', '128 KiB')
    """
    return f"{size >> 10} KiB"
