"""Sample studies of each condition, so that labels and images can be looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mrg.commands.data_check.statistics import SplitStatistics
from mrg.datamodules.errors import ImageReadError
from mrg.datamodules.study import Study
from mrg.metrics.conditions import CONDITIONS, POSITIVE
from mrg.pages.images import encode

_SIZE, _QUALITY = 384, 75
_MOST_VIEWS = 2


def pick_samples(statistics: Mapping[str, SplitStatistics], num: int = 2) -> dict[str, list[dict[str, Any]]]:
    """Choose studies of each condition, evenly spaced in the first split with enough of them.

    Args:
        statistics: Statistics by split, in the order of preference.
        num: Number of studies of each condition.

    Returns:
        Condition -> `split` and `place` in it of the studies whose report states the condition without doubt; a
        condition that no report states is left out.
    """
    found = {}
    for index, condition in enumerate(CONDITIONS):
        best: list[dict[str, Any]] = []
        for split, part in statistics.items():
            places = np.flatnonzero((part.labels[:, index] == POSITIVE) & part.is_written)
            chosen = places[np.linspace(0, len(places) - 1, min(num, len(places))).astype(int)] if len(places) else []
            if len(chosen) > len(best):
                best = [{"split": split, "place": int(place)} for place in chosen]
        if best:
            found[condition] = best
    return found


def show_samples(
    samples: Mapping[str, Sequence[Mapping[str, Any]]], splits: Mapping[str, Sequence[Study]], with_images: bool
) -> dict[str, list[dict[str, Any]]]:
    """Read the chosen studies.

    Args:
        samples: Return value of `pick_samples`.
        splits: Studies by split.
        with_images: Whether to read the images.

    Returns:
        Condition -> `split`, `id`, `report` and `views` of each study; a view has `position`, and `jpeg` (base64),
        `width` and `height`, or `problem`, the reason why it cannot be read.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for condition, rows in samples.items():
        found[condition] = []
        for row in rows:
            study = splits[row["split"]][row["place"]]
            views = []
            for number, view in enumerate(study.views[:_MOST_VIEWS] if with_images else ()):
                shown: dict[str, Any] = {"position": view.position or f"view {number + 1}"}
                image = encode(view, _SIZE, _QUALITY)
                if isinstance(image, ImageReadError):
                    shown["problem"] = str(image)
                else:
                    shown["jpeg"], (shown["width"], shown["height"]) = image
                views.append(shown)
            found[condition].append({"split": row["split"], "id": study.id, "report": study.report, "views": views})
    return found
