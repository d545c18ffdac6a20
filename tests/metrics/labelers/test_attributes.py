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
        "Left effusion and/or atelectasis.",
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


def read(text):
    return [(f.condition, f.side, f.place, f.severity, f.change) for f in RulesLabeler().findings(text)]


def sides(text):
    return [(f.condition, f.side) for f in RulesLabeler().findings(text)]


VALUES = [
    (2, "upper", "Upper lobe"), (2, "middle", "Middle lobe"), (2, "lower", "Lower lung"), (2, "apical", "Apical"),
    (2, "basal", "Basal"), (2, "retrocardiac", "Retrocardiac"), (3, "small", "Tiny"), (3, "mild", "Subtle"),
    (3, "moderate", "Moderate"), (3, "large", "Massive"), (3, "severe", "Extensive"), (4, "new", "Newly seen"),
    (4, "larger", "Worsening"), (4, "smaller", "Decreasing"), (4, "unchanged", "Similar"), (1, "left", "Left sided"),
    (1, "right", "Right sided"), (1, "bilateral", "Bibasilar"),
]  # fmt: skip


SEPARATORS = ", and with plus or but ; : versus |"
BREAKS = """in at of on within along near involving over overlying projecting is are was were has have appears appear
    remains remain to from which that than measuring"""
VERBS = "may might could represent reflect suggest compatible consistent due is are favor"
STEADY = "stable unchanged new newly persistent again similar constant"


def test_every_value():
    for place, value, words in VALUES:
        (found,) = read(f"{words} consolidation.")
        assert found[place] == value
        assert sum(one is not None for one in found[1:]) == (2 if words == "Bibasilar" else 1)


def test_a_separator_parts_two_findings():
    for word in SEPARATORS.split():
        shared = "left" if word in (",", "and", "or") else None  # these make a list
        assert sides(f"Effusion left {word} pneumonia.") == [("Pleural Effusion", "left"), ("Pneumonia", shared)], word
        assert sides(f"Effusion at {word} left pneumonia.") == [("Pleural Effusion", None), ("Pneumonia", "left")], word


def test_denials_and_line_breaks_part_two_findings():
    for word in ("no", "without"):
        assert sides(f"Effusion left {word} pneumonia.") == [("Pleural Effusion", "left")]
    assert sides("Possible effusion at\nLeft pneumonia.") == [("Pleural Effusion", None), ("Pneumonia", "left")]
    assert sides("Effusion left pneumonia.") == [("Pleural Effusion", None), ("Pneumonia", "left")]


def test_what_stands_behind_a_preposition_or_before_a_verb_belongs_to_the_finding_before():
    expected = [("Pleural Effusion", "left"), ("Pneumonia", None)]
    for word in BREAKS.split():
        assert sides(f"Effusion {word} left pneumonia.") == expected, word
    for word in VERBS.split():
        assert sides(f"Effusion left {word} pneumonia.") == expected, word


def test_what_is_steady_has_a_severity():
    for word in STEADY.split():
        change = "new" if word.startswith("new") else "unchanged"
        assert read(f"{word} mild edema.") == [("Edema", None, None, "mild", change)], word


def test_the_degree_of_a_change_is_no_severity():
    assert read("Edema is mildly worse.") == [("Edema", None, None, None, "larger")]
    assert read("Edema is worse mildly.") == [("Edema", None, None, None, "larger")]
    assert read("Edema is mild and worse.") == [("Edema", None, None, "mild", "larger")]
    assert read("Mild edema is worse.") == [("Edema", None, None, "mild", "larger")]
    assert read("Left mild edema, worse.") == [("Edema", "left", None, "mild", "larger")]


def test_words_of_a_name_state_side_and_place_alone():
    assert read("Moderate enlargement of the heart, increased left basilar opacity.") == [
        ("Cardiomegaly", None, None, "moderate", None),
        ("Lung Opacity", "left", "basal", None, None),
    ]
    assert read("The opacity has increased.") == [("Lung Opacity", None, None, None, "larger")]


def test_words_too_far_away_belong_to_nothing():
    for num, side in ((40, "left"), (41, None)):
        assert sides(f"Edema {'x ' * num}left.") == [("Edema", side)]
        assert sides(f"Left {'x ' * num}edema.") == [("Edema", side)]
    assert sides(f"Edema {'x ' * 41}left pneumonia.") == [("Edema", None), ("Pneumonia", "left")]
    assert sides("Left lung with edema.") == [("Edema", None)]
    assert sides("Edema with the left lung.") == [("Edema", "left")]


def test_findings_of_a_list_share_side_and_place_alone():
    assert read("Small left basal effusion and new pneumonia.") == [
        ("Pleural Effusion", "left", "basal", "small", None),
        ("Pneumonia", "left", "basal", None, "new"),
    ]
    assert read("Left effusion and basal pneumonia.") == [
        ("Pleural Effusion", "left", None, None, None),
        ("Pneumonia", None, "basal", None, None),
    ]
    assert sides("Effusion and a b pneumonia, left.")[0] == ("Pleural Effusion", "left")
    assert sides("Effusion and a b c pneumonia, left.")[0] == ("Pleural Effusion", None)
    assert sides("Edema, effusion and pneumonia in the left lung.") == [
        ("Edema", "left"), ("Pleural Effusion", "left"), ("Pneumonia", "left"),
    ]  # fmt: skip
    assert sides("Left edema, effusion and pneumonia.") == [
        ("Edema", "left"), ("Pleural Effusion", "left"), ("Pneumonia", "left"),
    ]  # fmt: skip
    assert sides("Left effusion or with pneumonia.") == [("Pleural Effusion", "left"), ("Pneumonia", None)]


def test_what_has_resolved_alone_is_shown_of_denied_findings():
    assert read("The left effusion is not seen.") == []
    assert read("Resolution of the left effusion and edema.") == [
        ("Pleural Effusion", "left", None, None, "resolved"),
        ("Edema", "left", None, None, "resolved"),
    ]
    assert read("Heart size is normal.") == []
    assert read("The left lung is clear.") == []


def test_the_same_side_twice_is_that_side():
    assert sides("Left effusion on the left.") == [("Pleural Effusion", "left")]
    assert sides("Right and left effusion.") == [("Pleural Effusion", "bilateral")]
