import pytest

from mrg.metrics.conditions import NEGATIVE, POSITIVE, UNCERTAIN
from mrg.metrics.labelers.rules import CONVENTIONS, RulesLabeler

SENTENCES = [
    ("Small left pleural effusion, unchanged.", [("Pleural Effusion", "left", None, "small", "unchanged")]),
    (
        "Opacity in the left base and a small right apical pneumothorax.",
        [("Lung Opacity", "left", "basal", None, None), ("Pneumothorax", "right", "apical", "small", None)],
    ),
    (
        "Left effusion and atelectasis.",
        [("Pleural Effusion", "left", None, None, None), ("Atelectasis", "left", None, None, None)],
    ),
    (
        "Atelectasis and effusion at the right base.",
        [("Atelectasis", "right", "basal", None, None), ("Pleural Effusion", "right", "basal", None, None)],
    ),
    ("Left lung base opacity.", [("Lung Opacity", "left", "basal", None, None)]),
    ("The heart is mildly enlarged and stable.", [("Cardiomegaly", None, None, "mild", "unchanged")]),
    ("Stable mild cardiomegaly.", [("Cardiomegaly", None, None, "mild", "unchanged")]),
    ("Consolidation and edema have cleared.", [("Consolidation", None, None, None, "resolved"),
                                               ("Edema", None, None, None, "resolved")]),
    ("The left effusion has resolved.", [("Pleural Effusion", "left", None, None, "resolved")]),
    ("Interval removal of the right chest tube.", [("Support Devices", "right", None, None, "resolved")]),
    ("No new effusion.", []),
    ("No left effusion.", []),
    (
        "New large right effusion with left basilar atelectasis.",
        [("Pleural Effusion", "right", None, "large", "new"), ("Atelectasis", "left", "basal", None, None)],
    ),
    ("Bilateral effusions, left greater than right.", [("Pleural Effusion", "bilateral", None, None, None)]),
    ("Opacities in the right and left bases.", [("Lung Opacity", "bilateral", "basal", None, None)]),
    ("Right upper lobe nodule is larger.", [("Lung Lesion", "right", "upper", None, "larger")]),
    ("The nodule in the lingula is slightly larger.", [("Lung Lesion", None, "middle", None, "larger")]),
    ("Left lower lobe consolidation has improved.", [("Consolidation", "left", "lower", None, "smaller")]),
    ("Retrocardiac opacity.", [("Lung Opacity", None, "retrocardiac", None, None)]),
    ("The left effusion has not resolved.", [("Pleural Effusion", "left", None, None, "unchanged")]),
    ("No change in the left effusion.", [("Pleural Effusion", "left", None, None, "unchanged")]),
    ("Increased interstitial markings.", [("Lung Opacity", None, None, None, None)]),
    (
        "Opacity left lung base may represent pneumonia.",
        [("Lung Opacity", "left", "basal", None, None), ("Pneumonia", None, None, None, None)],
    ),
    ("Minimally displaced fracture of the right 7th rib.", [("Fracture", "right", None, None, None)]),
    ("Enlarged heart with a right ventricular lead.", [("Cardiomegaly", None, None, None, None),
                                                      ("Support Devices", None, None, None, None)]),
    ("Left effusion. Right pneumothorax.", [("Pleural Effusion", "left", None, None, None),
                                            ("Pneumothorax", "right", None, None, None)]),
    ("- Left effusion\n- Right pneumothorax", [("Pleural Effusion", "left", None, None, None),
                                               ("Pneumothorax", "right", None, None, None)]),
]  # fmt: skip


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize(("text", "expected"), SENTENCES)
def test_attributes(convention, text, expected):
    found = RulesLabeler(convention=convention).findings(text)
    assert [(f.condition, f.side, f.place, f.severity, f.change) for f in found] == expected


def test_findings_show_their_words():
    text = "Possible small effusion on the LEFT. The pneumothorax has resolved."
    first, second = RulesLabeler().findings(text)
    assert (first.label, first.words, text[first.start : first.end]) == (UNCERTAIN, ("small", "LEFT"), "effusion")
    assert (second.label, second.change, text[second.start : second.end]) == (NEGATIVE, "resolved", "pneumothorax")
    assert RulesLabeler().findings("Effusion.")[0].label == POSITIVE
    with pytest.raises(TypeError, match="string"):
        RulesLabeler().findings(None)
