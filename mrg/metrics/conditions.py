"""The 14 conditions in CheXbert order and the 4 label classes (Smit et al., 2020; Irvin et al., 2019)."""

from __future__ import annotations

from torch import Tensor

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

    Args:
        labels: Label classes of any shape.

    Returns:
        Booleans of the same shape.
    """
    return (labels == POSITIVE) | (labels == UNCERTAIN)
