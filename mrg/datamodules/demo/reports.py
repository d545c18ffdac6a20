"""Synthetic radiology reports for the demo, by several readers, from known label classes.

As in real reports, normal findings have one or two fixed phrases and abnormal ones many. The most likely wording is
therefore often not the most likely statement: if a finding has a probability of 0.8 but is worded in fourteen styles,
the fixed negation is the more likely text. A model trained on tokens writes that text, a model trained on findings the
statement. Readers differ in the order of topics, omit some normal findings, and hedge uncertain ones.
"""

from __future__ import annotations

import numpy as np

from mrg.metrics.conditions import NEGATIVE, POSITIVE, UNCERTAIN

SIDES = {-1: "right", 0: "bilateral", 1: "left"}

NOUNS: dict[str, tuple[str, ...]] = {
    "Enlarged Cardiomediastinum": ("widening of the mediastinum", "mediastinal widening", "mediastinal enlargement"),
    "Cardiomegaly": ("cardiomegaly", "enlargement of the heart", "cardiac enlargement"),
    "Lung Opacity": ("{side} mid lung opacity", "opacity in the {side} lung", "hazy {side} lung opacity"),
    "Lung Lesion": ("{side} upper lobe nodule", "nodule in the {side} upper lung", "{side} lung nodule"),
    "Edema": ("pulmonary edema", "interstitial edema", "perihilar edema"),
    "Consolidation": ("{side} lower lobe consolidation", "consolidation at the {side} base", "{side} consolidation"),
    "Pneumonia": ("{side} lower lobe pneumonia", "pneumonia on the {side}", "{side} basilar pneumonia"),
    "Atelectasis": ("{side} basilar atelectasis", "atelectasis at the {side} base", "linear atelectasis on the {side}"),
    "Pneumothorax": ("{side} apical pneumothorax", "pneumothorax on the {side}", "{side} pneumothorax"),
    "Pleural Effusion": ("{side} pleural effusion", "pleural effusion on the {side}", "{side} effusion"),
    "Pleural Other": ("{side} apical pleural thickening", "pleural thickening at the {side} apex"),
    "Fracture": ("{side} rib fracture", "fracture of a {side} rib"),
    "Support Devices": ("{device}",),
}
PLAIN = (
    "X.",
    "There is X.",
    "X is present.",
    "X is seen.",
    "X is noted.",
    "Stable X.",
    "Again noted is X.",
    "Unchanged X.",
)
GRADED = ("Mild X.", "Moderate X.", "Minimal X.", "Subtle X.", "Persistent X.", "Findings of X.")
POSITIVE_PHRASES: dict[str, tuple[str, ...]] = {
    condition: tuple(
        style.replace("X", noun)
        for style in (PLAIN if condition in ("Support Devices", "Fracture", "Lung Lesion") else PLAIN + GRADED)
        for noun in nouns
    )
    for condition, nouns in NOUNS.items()
}
"""Phrases for a finding: every noun in every style."""

UNCERTAIN_PHRASES: dict[str, tuple[str, ...]] = {
    "Enlarged Cardiomediastinum": ("Possible widening of the mediastinum.",),
    "Cardiomegaly": ("Borderline heart size, cardiomegaly cannot be excluded.", "Possible mild cardiomegaly."),
    "Lung Opacity": ("Possible opacity in the {side} mid lung.", "Questionable {side} lung opacity."),
    "Lung Lesion": ("Questionable nodule in the {side} upper lung.", "A {side} nodule cannot be excluded."),
    "Edema": ("Possible mild edema.", "Mild edema cannot be excluded."),
    "Consolidation": ("Possible consolidation at the {side} base.", "{Side} consolidation cannot be excluded."),
    "Pneumonia": (
        "{Side} lower lobe changes may represent pneumonia.",
        "Possible {side} pneumonia.",
        "Pneumonia cannot be excluded.",
    ),
    "Atelectasis": ("Possible {side} basilar atelectasis.", "{Side} density may represent atelectasis."),
    "Pneumothorax": ("Possible small {side} pneumothorax.", "A {side} pneumothorax cannot be excluded."),
    "Pleural Effusion": ("Possible small {side} pleural effusion.", "A {side} effusion cannot be excluded."),
    "Pleural Other": ("Possible {side} pleural thickening.",),
    "Fracture": ("Possible {side} rib fracture.",),
}

NEGATIVE_PHRASES: dict[str, tuple[str, ...]] = {
    "Enlarged Cardiomediastinum": ("The mediastinum is not widened.", "The mediastinum is normal."),
    "Cardiomegaly": ("The heart is normal in size.", "Heart size is normal."),
    "Edema": ("No pulmonary edema.",),
    "Consolidation": ("No focal consolidation.",),
    "Pneumonia": ("No evidence of pneumonia.",),
    "Pneumothorax": ("No pneumothorax.",),
    "Pleural Effusion": ("No pleural effusion.",),
}
"""Phrases for absent conditions, the usual one first; other absent conditions are not mentioned."""

DEVICES = {-1: "right central venous catheter", 1: "left pacemaker"}
ORDERS: tuple[tuple[str, ...], ...] = (
    ("heart", "lungs", "pleura", "bones", "devices"),
    ("lungs", "pleura", "heart", "bones", "devices"),
    ("devices", "heart", "lungs", "pleura", "bones"),
)
TOPICS: dict[str, tuple[str, ...]] = {
    "heart": ("Cardiomegaly", "Enlarged Cardiomediastinum"),
    "lungs": ("Edema", "Consolidation", "Pneumonia", "Lung Opacity", "Atelectasis", "Lung Lesion"),
    "pleura": ("Pleural Effusion", "Pneumothorax", "Pleural Other"),
    "bones": ("Fracture",),
    "devices": ("Support Devices",),
}
LISTED = {
    "Consolidation": "focal consolidation",
    "Pleural Effusion": "pleural effusion",
    "Pneumothorax": "pneumothorax",
}
"""Conditions that readers often negate in one sentence."""


def write_report(
    rng: np.random.Generator, classes: dict[str, int], side: dict[str, int], omission: float = 0.1
) -> tuple[str, dict[str, int]]:
    """Write one report.

    Args:
        rng: Random generator for the reader, the phrases and the omissions.
        classes: Label class by condition; other conditions are not mentioned.
        side: -1 (right), 0 (both) or +1 (left) by condition.
        omission: Fraction of the normal statements that are omitted.

    Returns:
        The report, and the classes that it states.
    """
    order = ORDERS[rng.integers(len(ORDERS))]
    stated = {c: k for c, k in classes.items() if k != NEGATIVE or (c in NEGATIVE_PHRASES and rng.random() >= omission)}
    sentences: list[str] = []
    listed = [c for c in LISTED if stated.get(c) == NEGATIVE]
    together = len(listed) > 1 and rng.random() < 0.8
    lungs_clear = not any(stated.get(c) in (POSITIVE, UNCERTAIN) for c in TOPICS["lungs"])
    for topic in order:
        if topic == "lungs" and lungs_clear and rng.random() < 0.8:
            sentences.append("The lungs are clear.")
        for condition in TOPICS[topic]:
            label = stated.get(condition)
            if label is None or (together and condition in listed):
                continue
            sentences.append(_phrase(rng, condition, label, side.get(condition, 1)))
        if topic == "pleura" and together:
            names = [LISTED[c] for c in listed]
            sentences.append(f"No {', '.join(names[:-1])} or {names[-1]}.")
        if topic == "bones" and "Fracture" not in stated and rng.random() < 0.5:
            sentences.append("The visualized bones are unremarkable.")
    return " ".join(sentences), stated


def _phrase(rng: np.random.Generator, condition: str, label: int, side: int) -> str:
    table = {POSITIVE: POSITIVE_PHRASES, UNCERTAIN: UNCERTAIN_PHRASES, NEGATIVE: NEGATIVE_PHRASES}[label]
    phrases = table[condition]
    index = int(rng.random() > 0.75) if label == NEGATIVE else int(rng.integers(len(phrases)))
    text = phrases[min(index, len(phrases) - 1)].format(
        side=SIDES[side], Side=SIDES[side], device=DEVICES.get(side, "")
    )
    return text[0].upper() + text[1:]
