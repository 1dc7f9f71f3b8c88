"""Bars as SVG: a panel for each group, every axis from zero, the bound as an outline around each bar.

The picture has no background and colours of middle lightness, to be read on a light page and on a
dark one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from harness.report import number

WIDTH, LABELS, VALUES = 760, 150, 170
"""Of the picture, of the names at its left, and of what stands behind the longest bar."""
BARS = WIDTH - LABELS - VALUES
ROW, THICK, TITLE, AXIS = 24, 14, 30, 26
TEXT, FAINT, BAR, BOUND = "#7d8590", "#7d859055", "#2f81c7", "#d0762b"
STEPS = (1, 2, 2.5, 5, 10)
MOST_TICKS = 5


@dataclass(frozen=True)
class Bar:
    """What was reached, what would have been possible (None: not known), and words behind the bar."""

    label: str
    value: float
    bound: float | None
    note: str


@dataclass(frozen=True)
class Panel:
    """Bars on one axis."""

    title: str
    bars: Sequence[Bar]

    @property
    def height(self) -> int:
        """Its height in pixels."""
        return TITLE + ROW * len(self.bars) + AXIS

    @property
    def limit(self) -> float:
        """The largest number on its axis."""
        return max(max(bar.value, bar.bound or 0) for bar in self.bars) or 1.0


def ticks(limit: float) -> list[float]:
    """Round numbers from zero to ``limit``.

    >>> ticks(21.0)
    [0.0, 5.0, 10.0, 15.0, 20.0]
    >>> ticks(0.9)
    [0.0, 0.2, 0.4, 0.6000000000000001, 0.8]
    """
    power = 10.0 ** (len(f"{limit:.0f}") - 2) if limit >= 1 else 0.01
    while True:
        for step in STEPS:
            if limit / (step * power) <= MOST_TICKS:
                return [step * power * index for index in range(int(limit / (step * power)) + 1)]
        power *= 10


def short(value: float) -> str:
    """A round number without the zeros behind its point.

    >>> short(0.0), short(500_000.0), short(2_500_000.0)
    ('0', '500 k', '2.5 M')
    """
    digits, _, unit = number(value).partition(" ")
    return f"{float(digits):g} {unit}".rstrip()


def svg(title: str, panels: Sequence[Panel], legend: str) -> str:
    """The picture. ``legend`` is a sentence below it."""
    height = sum(panel.height for panel in panels) + 28
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img"'
        f' font-family="system-ui, sans-serif" font-size="12" fill="{TEXT}">',
        f"<title>{escape(title)}</title>",
    ]
    top = 0
    for panel in panels:
        parts += draw(panel, top)
        top += panel.height
    parts += [
        f'<rect x="{LABELS}" y="{top + 8}" width="18" height="10" fill="{BAR}"/>',
        f'<rect x="{LABELS + 26}" y="{top + 8}" width="18" height="10" fill="none" stroke="{BOUND}"'
        ' stroke-width="1.5"/>',
        text(LABELS + 52, top + 17, legend),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def draw(panel: Panel, top: int) -> Iterator[str]:
    """One panel, ``top`` pixels down."""
    scale = BARS / panel.limit
    first = top + TITLE
    bottom = first + ROW * len(panel.bars)
    yield text(LABELS, top + 20, panel.title, weight="bold")
    for tick in ticks(panel.limit):
        x = LABELS + tick * scale
        yield f'<path d="M{x:.1f} {first}V{bottom}" stroke="{FAINT}"/>'
        yield text(x, bottom + 15, short(tick), anchor="middle")
    for row, bar in enumerate(panel.bars):
        y = first + row * ROW + (ROW - THICK) // 2
        yield text(LABELS - 8, y + 11, bar.label, anchor="end")
        yield f'<rect x="{LABELS}" y="{y}" width="{bar.value * scale:.1f}" height="{THICK}" fill="{BAR}"/>'
        if bar.bound is not None:
            yield (
                f'<rect x="{LABELS}" y="{y - 2}" width="{bar.bound * scale:.1f}" height="{THICK + 4}"'
                f' fill="none" stroke="{BOUND}" stroke-width="1.5"/>'
            )
        end = LABELS + max(bar.value, bar.bound or 0) * scale
        yield text(end + 8, y + 11, bar.note)


def text(x: float, y: float, words: str, *, anchor: str = "start", weight: str = "normal") -> str:
    """Words at a place."""
    return f'<text x="{x:.1f}" y="{y}" text-anchor="{anchor}" font-weight="{weight}">{escape(words)}</text>'
