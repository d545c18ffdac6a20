"""The 14 conditions, the 4 label classes, and the conventions by which CE-F1 is computed from them.

Conditions are in CheXbert order (Smit et al., 2020; Irvin et al., 2019). A convention fixes the conditions, the
treatment of uncertain findings, and the average.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor

from mrg.errors import UserError

CONDITIONS: tuple[str, ...] = (
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
    "No Finding",
)
NUM_CONDITIONS = len(CONDITIONS)

FIVE: tuple[str, ...] = ("Cardiomegaly", "Edema", "Consolidation", "Atelectasis", "Pleural Effusion")
"""The five conditions of the CheXpert competition, for which most papers report a separate score."""

THIRTEEN: tuple[str, ...] = CONDITIONS[:-1]
"""All conditions except No Finding, which is the absence of the others."""

BLANK, POSITIVE, NEGATIVE, UNCERTAIN = range(4)
CLASSES: tuple[str, ...] = ("blank", "positive", "negative", "uncertain")


def stated(labels: Tensor) -> Tensor:
    """Mask of the findings that a report states, as certain (positive) or as possible (uncertain).

    Returns:
        Booleans of the same shape.
    """
    return (labels == POSITIVE) | (labels == UNCERTAIN)


AVERAGES = ("micro", "macro", "weighted", "example", "none")
SCORES = ("f1", "precision", "recall")
UNCERTAIN_OPTIONS = ("positive", "negative", "own", "ignore")
SETS: dict[int, tuple[str, ...]] = {14: CONDITIONS, 13: THIRTEEN, 5: FIVE}

CONVENTIONS: dict[str, dict[str, Any]] = {
    f"{average}-{size}{'+' if uncertain == 'positive' else ''}": {
        "average": average,
        "conditions": SETS[size],
        "uncertain": uncertain,
    }
    for size, uncertain, average in product(
        (13, 14, 5), ("positive", "negative"), ("micro", "macro", "weighted", "example")
    )
}
"""Name -> arguments of `CEF1` and `ce_f1`. The names extend LLaVA-Rad's: average, number of conditions, and a plus sign
if uncertain counts as positive (otherwise as negative). 0/0 = 0 in all of them."""

FAMILIES: dict[str, tuple[str, ...]] = {
    "r2gen": ("micro-14", "macro-14"),
    "example": ("example-14",),
    "f1chexbert": tuple(f"{average}-{size}+" for size in (14, 5) for average in AVERAGES[:4]),
    "miura": ("micro-5+",),
    "llava-rad": tuple(f"{average}-{size}{plus}" for size in (14, 5) for average in AVERAGES[:2] for plus in ("", "+")),
}
"""Meaning of "CE" in groups of papers: R2Gen and R2GenCMN (Chen et al., 2020, 2021); CvT2DistilGPT2 and PromptMRG by
example; the f1chexbert package, vilmedic and RadEval; Miura et al. (2021); LLaVA-Rad (Zambrano Chaves et al., 2025)."""


def convention(name: str) -> dict[str, Any]:
    """Arguments of a named convention, for `CEF1(**convention("micro-14+"))`.

    Args:
        name: A key of `CONVENTIONS`, or of `FAMILIES` if the family reports one number only.

    Raises:
        UserError: If the name is unknown, or the family reports several numbers.
    """
    name = name.lower().replace("-f1-", "-")  # LLaVA-Rad writes Micro-F1-14
    members = FAMILIES.get(name, (name,))
    if len(members) > 1:
        raise UserError(f"Expected one convention, but {name!r} stands for several: choose from {', '.join(members)}.")
    if members[0] not in CONVENTIONS:
        known = ", ".join([*CONVENTIONS, *FAMILIES])
        raise UserError(f"Expected argument `name` to be a convention, but got {name!r}; known are {known}.")
    return dict(CONVENTIONS[members[0]])


def condition_indices(conditions: int | Sequence[str]) -> list[int]:
    """Columns of conditions in label tensors.

    Args:
        conditions: 14, 13 (without No Finding), 5 (the CheXpert competition's), or names from `CONDITIONS`.

    Raises:
        UserError: If a name is unknown or repeated, or there is none.
    """
    if isinstance(conditions, int):
        if conditions not in SETS:
            raise UserError(f"Expected argument `conditions` to be 14, 13, 5 or a list of names, but got {conditions}.")
        conditions = SETS[conditions]
    if isinstance(conditions, str) or not isinstance(conditions, Sequence):
        raise UserError(f"Expected argument `conditions` to be 14, 13, 5 or a list of names, but got {conditions!r}.")
    unknown = [c for c in conditions if c not in CONDITIONS]
    if unknown:
        raise UserError(
            f"Expected argument `conditions` to hold names from {', '.join(CONDITIONS)}, but got {unknown[0]!r}."
        )
    if not conditions or len(set(conditions)) < len(conditions):
        raise UserError(f"Expected argument `conditions` to hold different names, but got {list(conditions)}.")
    return [CONDITIONS.index(c) for c in conditions]


def outcomes(uncertain: str) -> Tensor:
    """Outcome of each pair of classes: (3, 4, 4) int64, class in the reference by class in the prediction.

    The first axis is true positive, false positive, false negative. With `"positive"` an uncertain finding counts as a
    finding, with `"negative"` it does not. With `"own"` the certainty must agree as well: a positive finding that is
    predicted as uncertain is both missed and hallucinated. With `"ignore"` a finding that is uncertain in the
    *reference* does not count (U-Ignore; Irvin et al., 2019), while an uncertain prediction counts as positive, as
    hedging would otherwise be free.

    Raises:
        UserError: If the option is unknown.
    """
    if uncertain not in UNCERTAIN_OPTIONS:
        options = "'positive', 'negative', 'own' or 'ignore'"
        raise UserError(f"Expected argument `uncertain` to be {options}, but got {uncertain!r}.")
    classes = torch.arange(4)
    found = (classes == POSITIVE) | ((classes == UNCERTAIN) if uncertain != "negative" else False)
    target, preds = found[:, None], found[None, :]
    agree = target & preds
    if uncertain == "own":
        agree = agree & (classes[:, None] == classes[None, :])
    table = torch.stack([agree, preds & ~agree, target & ~agree]).long()
    if uncertain == "ignore":
        table[:, UNCERTAIN] = 0
    return table
