"""What the demo's reports say is what the labeler reads in them."""

import numpy as np
import pytest

from mrg.datamodules.demo.reports import (
    DEVICES,
    NEGATIVE_PHRASES,
    POSITIVE_PHRASES,
    SIDES,
    UNCERTAIN_PHRASES,
    write_report,
)
from mrg.metrics import CONDITIONS, NEGATIVE, POSITIVE, THIRTEEN, UNCERTAIN, RulesLabeler

NORMAL = {"No Finding": POSITIVE}
labeler = RulesLabeler()


def stated(text):
    """Condition to class, for all that are not blank."""
    return {c: k for c, k in zip(CONDITIONS, labeler([text])[0].tolist(), strict=True) if k}


def filled(phrase):
    for side, name in SIDES.items():
        if "{device}" in phrase and side not in DEVICES:
            continue
        text = phrase.format(side=name, Side=name, device=DEVICES.get(side))
        yield text[0].upper() + text[1:]


@pytest.mark.parametrize(
    ("condition", "label", "phrase"),
    [
        (condition, label, phrase)
        for table, label in ((POSITIVE_PHRASES, POSITIVE), (UNCERTAIN_PHRASES, UNCERTAIN), (NEGATIVE_PHRASES, NEGATIVE))
        for condition in table
        for phrase in table[condition]
    ],
)
def test_phrase_states_its_condition_and_nothing_else(condition, label, phrase):
    expected = {condition: label}
    if label == NEGATIVE or condition == "Support Devices":
        expected["No Finding"] = POSITIVE
    for text in filled(phrase):
        assert stated(text) == expected, text


def test_lists_deny_all_they_name():
    listed = dict.fromkeys(("Consolidation", "Pleural Effusion", "Pneumothorax"), NEGATIVE) | NORMAL
    assert stated("No focal consolidation, pleural effusion or pneumothorax.") == listed
    assert (
        stated("No focal consolidation or pneumothorax.")
        == dict.fromkeys(("Consolidation", "Pneumothorax"), NEGATIVE) | NORMAL
    )


def test_reports_state_the_classes_they_were_written_from():
    """The labeler reads back every stated class of 300 reports."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        classes = {c: int(rng.choice([POSITIVE, NEGATIVE, UNCERTAIN], p=[0.3, 0.6, 0.1])) for c in THIRTEEN}
        classes["Support Devices"] = int(rng.choice([POSITIVE, NEGATIVE]))
        report, expected = write_report(rng, classes, {c: int(rng.choice([-1, 1])) for c in THIRTEEN}, 0.3)
        got = stated(report)
        got.pop("No Finding", None)
        assert got == expected, report
