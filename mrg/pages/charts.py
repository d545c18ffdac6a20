"""Charts for pages: matplotlib figures as SVG text inside the page."""

from __future__ import annotations

import io
import re

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure

# The page's own font and colour, so that a chart follows its light or dark scheme; equal figures give equal text.
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mrg",
    "font.family": "sans-serif",
    "font.size": 10,
}


def new_figure(width: float = 6.0, height: float = 2.6) -> Figure:
    """An empty figure of so many inches, without any window or global state."""
    return Figure(figsize=(width, height), layout="constrained")


def svg(figure: Figure, description: str) -> Markup:
    """The figure as an `<svg>` element, black lines and text in the page's text colour.

    Args:
        figure: From `new_figure`.
        description: What the chart shows, for readers who do not see it.
    """
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    with rc_context(_STYLE):
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace("#000000", "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # Every figure numbers its parts from 1: on a page of several, only what is referred to may keep its name.
    referred = set(re.findall(r"#([\w.-]+)", text))
    text = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in referred else "", text)
    label = Markup('<svg role="img" fill="currentColor" aria-label="{}" ').format(description)
    return Markup(text.replace("<svg ", label, 1))
