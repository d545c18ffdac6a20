"""What data sets call the position of a view, in the two words that a `View` knows."""

from __future__ import annotations

import re

_FRONTAL = {
    "frontal",
    "ap",
    "pa",
    "anteroposterior",
    "posteroanterior",
    "apaxial",
    "pachest",
    "apsupine",
    "aphorizontal",
}
_LATERAL = {"lateral", "ll", "rl", "lat", "l", "leftlateral", "rightlateral", "rll"}


def to_position(word: object) -> str:
    """`"frontal"`, `"lateral"`, or `""` for an oblique, an unknown or another view.

    Letter case and the marks between words do not matter: `PA`, `Postero-Anterior` and `POSTERO_ANTERIOR` are frontal.
    """
    letters = re.sub(r"[^a-z]", "", str(word or "").lower())
    return "frontal" if letters in _FRONTAL else "lateral" if letters in _LATERAL else ""
