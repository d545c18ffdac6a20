"""Charts for pages: matplotlib figures as inline SVG."""

from __future__ import annotations

import io
import re

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure

# Text stays text, in the page's font and colour, for its light and dark schemes; equal figures give equal SVG.
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mrg",
    "font.family": "sans-serif",
    "font.size": 10,
}


def new_figure(width: float = 6.0, height: float = 2.6) -> Figure:
    """Empty figure, sized in inches, without a window or global state."""
    return Figure(figsize=(width, height), layout="constrained")


def svg(figure: Figure, description: str) -> Markup:
    """Render a figure as an `<svg>` element; black lines and text take the page's text colour.

    Args:
        figure: Figure made by `new_figure`.
        description: Text alternative for screen readers.
    """
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    with rc_context(_STYLE):
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace("#000000", "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # Every figure numbers its parts from 1: to avoid clashes on a page, only ids that are referred to are kept.
    referred = set(re.findall(r"#([\w.-]+)", text))
    text = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in referred else "", text)
    label = Markup('<svg role="img" fill="currentColor" aria-label="{}" ').format(description)
    return Markup(text.replace("<svg ", label, 1))
