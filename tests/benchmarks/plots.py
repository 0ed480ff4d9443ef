"""Bar charts as SVG, readable on light and on dark pages."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

from tests.benchmarks.report import figure

WIDTH, LABELS, FIGURES, HEIGHT, GAP = 760, 250, 70, 20, 34

STYLE = """
text { font: 12px system-ui, sans-serif; fill: #57606a; }
.title { font-weight: 600; font-size: 14px; }
rect { fill: #8c959f; }
.ours { fill: #0969da; }
@media (prefers-color-scheme: dark) {
  text { fill: #9198a1; }
  rect { fill: #656c76; }
  .ours { fill: #4493f8; }
}
"""

Bar = tuple[str, float]


def bars(title: str, groups: Mapping[str, Sequence[Bar]], *, log: bool = False) -> str:
    """A chart of horizontal bars, by group; those of telesession stand out."""
    values = [value for group in groups.values() for _, value in group if value > 0]
    low = 10 ** math.floor(math.log10(min(values))) if log else 0
    room = WIDTH - LABELS - FIGURES

    def length(value: float) -> float:
        if value <= low:
            return 1
        share = math.log(value / low) / math.log(max(values) / low) if log else value / max(values)
        return max(1.0, room * share)

    parts, y = [text(0, 16, title, "title")], 28.0
    for name, group in groups.items():
        if name:
            parts.append(text(0, y + 18, name, "title"))
            y += GAP - 8
        for label, value in group:
            ours = ' class="ours"' if label.startswith("telesession") else ""
            parts.append(text(LABELS - 8, y + 14, label, anchor="end"))
            shape = f'x="{LABELS}" y="{y + 3}" width="{length(value):.1f}" height="{HEIGHT - 6}"'
            parts.append(f'<rect{ours} {shape} rx="2"/>')
            parts.append(text(LABELS + length(value) + 6, y + 14, figure(value)))
            y += HEIGHT
        y += 8
    size = f'width="{WIDTH}" height="{y:.0f}" viewBox="0 0 {WIDTH} {y:.0f}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">'
    return "\n".join(
        [head, f"<title>{escape(title)}</title>", f"<style>{STYLE}</style>", *parts, "</svg>\n"]
    )


def text(x: float, y: float, content: str, kind: str = "", anchor: str = "start") -> str:
    where = f'x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}"'
    return f"<text {where}>{escape(content)}</text>"


def lost_updates(rows: Mapping[str, Any]) -> str:
    row = rows["kept"]
    ways = {"2 threads": 0, "8 threads": 1, "all updates at once": 2}
    groups = {
        way: [(name, line[place]) for name, line in row["lines"].items() if line[place] is not None]
        for way, place in ways.items()
    }
    return bars(row["title"], groups)


def cost_by_size(rows: Mapping[str, Any]) -> str:
    row = rows["cost"]
    groups = {
        size: [
            (name, line[place]) for name, line in row["lines"].items() if line[place] is not None
        ]
        for place, size in enumerate(row["columns"])
    }
    groups = {size: group for size, group in groups.items() if len(group) > 1}
    return bars(f"{row['title']}, in µs (logarithmic)", groups, log=True)


#: By name of the file: the row that it needs, and what draws it.
PLOTS: dict[str, tuple[str, Callable[[Mapping[str, Any]], str]]] = {
    "lost_updates.svg": ("kept", lost_updates),
    "cost_by_size.svg": ("cost", cost_by_size),
}
