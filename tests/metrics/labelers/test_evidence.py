"""Where in a text the rules read what they say."""

import pytest

from mrg.metrics.labelers.rules import RulesLabeler
from tests.metrics.labelers.sentences import CASES, N, P, U, labels


@pytest.fixture(scope="module")
def labeler():
    return RulesLabeler(convention="plain")


EVIDENCE = [
    (
        "Comparison: none. Heart size is normal. No 1.5 cm nodule or effusion.  Opacity may represent pneumonia",
        [
            ("Cardiomegaly", N, "Heart size is normal.", "normal", "Heart size"),
            ("Lung Lesion", N, "No 1.5 cm nodule or effusion.", "No", "nodule"),
            ("Pleural Effusion", N, "No 1.5 cm nodule or effusion.", "No", "effusion"),
            ("Lung Opacity", P, "Opacity may represent pneumonia", "Opacity", "Opacity"),
            ("Pneumonia", U, "Opacity may represent pneumonia", "may represent", "pneumonia"),
        ],
    ),
    (
        "1. Atelectasis vs. pneumonia\n2. The left effussion has resolved!",
        [
            ("Atelectasis", U, "Atelectasis vs. pneumonia", "vs.", "Atelectasis"),
            ("Pneumonia", U, "Atelectasis vs. pneumonia", "vs.", "pneumonia"),
            ("Pleural Effusion", N, "The left effussion has resolved!", "has resolved", "effussion"),
        ],
    ),
    (
        "Heart: ENLARGED.\n\nAtelectasis or pneumonia",
        [
            ("Cardiomegaly", P, "Heart: ENLARGED.", "ENLARGED", "Heart"),
            ("Atelectasis", U, "Atelectasis or pneumonia", "or", "Atelectasis"),
            ("Pneumonia", U, "Atelectasis or pneumonia", "or", "pneumonia"),
        ],
    ),
    ("No hydropneumothorax.", [
        ("Pneumothorax", N, "No hydropneumothorax.", "No", "hydropneumothorax"),
        ("Pleural Effusion", N, "No hydropneumothorax.", "No", "hydropneumothorax"),
    ]),
    (
        "Effusion: no. Vascular congestion. Heart size has increased",
        [
            ("Pleural Effusion", N, "Effusion: no.", "no", "Effusion"),
            ("Edema", U, "Vascular congestion.", "Vascular congestion", "Vascular congestion"),
            ("Cardiomegaly", P, "Heart size has increased", "has increased", "Heart size"),
        ],
    ),
    ("Rib fractures may not be visible.", []),
    ("Heart size is stable. The lungs are clear.", []),
    ("History of pneumonia. Indication: edema.", []),
    ("", []),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), EVIDENCE)
def test_evidence(labeler, text, expected):
    got = [
        (e.condition, e.label, text[e.start : e.end], e.cue, text[e.mention_start : e.mention_end])
        for e in labeler.evidence(text)
    ]
    assert got == expected


def test_evidence_explains_the_row(labeler):
    """The strongest statement about a condition is its label, and a condition without evidence is blank."""
    for text, _ in CASES:
        found = {}
        for e in labeler.evidence(text):
            assert e.start <= e.mention_start < e.mention_end <= e.end, text
            assert e.cue in text[e.start : e.end], text
            found.setdefault(e.condition, set()).add(e.label)
        strongest = {
            condition: next(label for label in (P, U, N) if label in seen) for condition, seen in found.items()
        }
        row = labels(labeler, text)
        row.pop("No Finding", None)
        assert strongest == row, text
