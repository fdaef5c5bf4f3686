"""Learning curves as a picture: one small panel for each figure, above one axis of steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

_WIDTH, _PANEL, _GAP, _LEFT, _TOP = 720, 120, 40, 70, 50
_STYLE = """\
text { font: 12px system-ui, sans-serif; fill: #6e7681 } .title { font-size: 15px; font-weight: 600 }
.right { text-anchor: end } .frame { fill: none; stroke: #8b949e; stroke-opacity: 0.4 }
.curve { fill: none; stroke: #2da44e; stroke-width: 1.5 }
"""


def curve_picture(title: str, steps: Sequence[float], figures: Mapping[str, Sequence[float]]) -> str:
    """A self-contained SVG without background.

    Args:
        title: what was trained.
        steps: ascending.
        figures: by name, one value a step.
    """
    height = _TOP + len(figures) * (_PANEL + _GAP)
    width = _WIDTH - _LEFT - 20
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        'role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>\n{_STYLE}</style>",
        f'<text class="title" x="16" y="26">{escape(title)}</text>',
    ]
    for number, (name, values) in enumerate(figures.items()):
        top = _TOP + number * (_PANEL + _GAP)
        low, high = min(values), max(values)
        reach, span = max(high - low, 1e-12), max(steps[-1] - steps[0], 1e-12)
        points = " ".join(
            f"{_LEFT + (step - steps[0]) / span * width:.1f},{top + _PANEL - (value - low) / reach * _PANEL:.1f}"
            for step, value in zip(steps, values, strict=True)
        )
        lines += [
            f'<rect class="frame" x="{_LEFT}" y="{top}" width="{width}" height="{_PANEL}"/>',
            f'<polyline class="curve" points="{points}"/>',
            f'<text x="{_LEFT}" y="{top - 6}">{escape(name)}: {values[-1]:.4g} at step {steps[-1]:g}</text>',
            f'<text class="right" x="{_LEFT - 8}" y="{top + 10}">{high:.4g}</text>',
            f'<text class="right" x="{_LEFT - 8}" y="{top + _PANEL}">{low:.4g}</text>',
        ]
    return "\n".join([*lines, "</svg>", ""])
