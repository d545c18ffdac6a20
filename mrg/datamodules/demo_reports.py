"""Radiology-style reports for the demo: what a reader says about findings of known class, in several hands.

As in real reports, the normal is said in one or two fixed phrases and the abnormal in many. The likeliest wording is
therefore often not the likeliest statement: where a finding has a chance of .7 but is worded in seven ways, the fixed
denial is the likelier text. A model trained on tokens writes the text, a model trained on findings the statement.
Readers differ in the order of their topics, leave out part of the normal, and hedge what they are not sure of.
"""

from __future__ import annotations

import numpy as np

from mrg.metrics.conditions import NEGATIVE, POSITIVE, UNCERTAIN

SIDES = {-1: "right", 0: "bilateral", 1: "left"}

POSITIVE_PHRASES: dict[str, tuple[str, ...]] = {
    "Enlarged Cardiomediastinum": (
        "The mediastinum is widened.",
        "Widened mediastinum.",
        "There is widening of the superior mediastinum.",
        "The cardiomediastinal silhouette is enlarged.",
        "Enlarged mediastinal contour.",
    ),
    "Cardiomegaly": (
        "The heart is enlarged.",
        "Cardiomegaly.",
        "Moderate cardiomegaly is present.",
        "The cardiac silhouette is enlarged.",
        "There is cardiomegaly.",
        "Stable enlargement of the heart.",
        "Mild cardiomegaly.",
    ),
    "Lung Opacity": (
        "Patchy opacity in the {side} mid lung.",
        "There is a hazy opacity in the {side} lung.",
        "{Side} mid lung opacity.",
        "An ill-defined opacity is seen on the {side}.",
        "Increased opacity is noted in the {side} mid lung.",
    ),
    "Lung Lesion": (
        "A nodule projects over the {side} upper lobe.",
        "{Side} upper lobe nodule.",
        "There is a pulmonary nodule on the {side}.",
        "Rounded nodule in the {side} upper lung.",
        "Small {side} lung nodule.",
    ),
    "Edema": (
        "Interstitial edema.",
        "There is mild pulmonary edema.",
        "Findings of pulmonary edema.",
        "Perihilar haze, consistent with edema.",
        "Moderate interstitial edema is present.",
        "Pulmonary edema is seen.",
    ),
    "Consolidation": (
        "{Side} lower lobe consolidation.",
        "There is consolidation in the {side} lower lobe.",
        "Dense consolidation at the {side} base.",
        "The {side} base is consolidated.",
        "Focal consolidation is present on the {side}.",
    ),
    "Pneumonia": (
        "{Side} lower lobe pneumonia.",
        "Findings are consistent with pneumonia on the {side}.",
        "There is {side} sided pneumonia.",
        "Airspace disease on the {side}, consistent with pneumonia.",
        "Pneumonia is present in the {side} lung.",
    ),
    "Atelectasis": (
        "{Side} basilar atelectasis.",
        "There is linear atelectasis at the {side} base.",
        "Subsegmental atelectasis is seen.",
        "Streaky atelectasis in the {side} lower lung.",
        "Mild atelectasis at the {side} base.",
        "Bandlike {side} atelectasis.",
    ),
    "Pneumothorax": (
        "{Side} apical pneumothorax.",
        "There is a small {side} pneumothorax.",
        "A {side} pneumothorax is present.",
        "Small pneumothorax on the {side}.",
        "Moderate {side} pneumothorax.",
    ),
    "Pleural Effusion": (
        "Small {side} pleural effusion.",
        "There is a {side} pleural effusion.",
        "Moderate {side} effusion.",
        "Blunting of the {side} costophrenic angle, consistent with effusion.",
        "{Side} pleural effusion is present.",
        "A {side} pleural effusion is seen.",
        "Layering {side} effusion.",
    ),
    "Pleural Other": (
        "{Side} apical pleural thickening.",
        "There is pleural thickening at the {side} apex.",
        "Apical pleural thickening is seen.",
        "Mild {side} pleural thickening.",
    ),
    "Fracture": (
        "{Side} rib fracture.",
        "There is a healing {side} rib fracture.",
        "Fracture of a {side} rib.",
        "Old {side} rib fracture is noted.",
    ),
    "Support Devices": (
        "{device} in place.",
        "{device} is present.",
        "{device} is noted.",
        "There is a {device}.",
    ),
}

UNCERTAIN_PHRASES: dict[str, tuple[str, ...]] = {
    "Enlarged Cardiomediastinum": ("Possible widening of the mediastinum.",),
    "Cardiomegaly": ("Borderline heart size, cardiomegaly cannot be excluded.", "Possible mild cardiomegaly."),
    "Lung Opacity": ("Possible opacity in the {side} mid lung.", "Questionable {side} lung opacity."),
    "Lung Lesion": ("Questionable nodule in the {side} upper lung.", "A {side} nodule cannot be excluded."),
    "Edema": ("Possible mild edema.", "Mild edema cannot be excluded."),
    "Consolidation": ("Possible consolidation at the {side} base.", "{Side} consolidation cannot be excluded."),
    "Pneumonia": (
        "{Side} basilar density, which may represent pneumonia.",
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
"""What readers deny, the usual phrase first; for the other conditions silence means normal."""

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
"""What readers like to deny in one breath."""


def write_report(
    rng: np.random.Generator, classes: dict[str, int], side: dict[str, int], omission: float = 0.1
) -> tuple[str, dict[str, int]]:
    """Write one report.

    Args:
        rng: Source of the reader, the phrases and the omissions.
        classes: Condition to label class, for each condition that the reader saw or looked for; others are not written.
        side: Condition to -1 right, 0 both, +1 left.
        omission: Share of the normal statements that are left out.

    Returns:
        The report, and the classes that it really states.
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
