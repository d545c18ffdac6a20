import json

import pytest
import torch

from mrg.metrics import CONDITIONS, CONVENTIONS, RulesLabeler, ce_f1, mccs
from mrg.metrics.compare import changes, compare_systems, format_comparison

TARGET = ["Cardiomegaly. No edema.", "Edema. Left effusion.", "Clear lungs.", "Small effusion."] * 5
PREDS = ["Cardiomegaly.", "Edema. Left effusion.", "Clear lungs.", "No effusion."] * 5
OTHER = ["No cardiomegaly.", "Edema. Pneumonia.", "Fracture.", "Small effusion."] * 5
IDS = [f"s{i:02d}" for i in range(20)]


def test_scores_and_differences():
    labeler = RulesLabeler()
    result = compare_systems(PREDS, OTHER, TARGET, labeler, IDS, margin=0.3, num_trials=500)
    labels = [labeler(texts) for texts in (PREDS, OTHER, TARGET)]
    expected = [float(mccs(x, labels[2], 0.3)) for x in labels[:2]]
    row = result["scores"]["MCCS"]
    assert [row["value"], row["other"], row["difference"]] == pytest.approx([*expected, expected[0] - expected[1]])
    assert row["low"] < row["difference"] < row["high"]
    for name, setting in CONVENTIONS.items():
        row = result["scores"][f"CE-F1 {name}"]
        assert row["value"] == pytest.approx(float(ce_f1(labels[0], labels[2], **setting)), abs=1e-12)
        assert row["other"] == pytest.approx(float(ce_f1(labels[1], labels[2], **setting)), abs=1e-12)
        assert 1 / 501 <= row["p"] <= 1
    assert json.loads(json.dumps(result)) == result


def test_changed_studies():
    result = compare_systems(PREDS, OTHER, TARGET, RulesLabeler(), IDS, num_trials=10)
    rows = {row["id"]: row for row in result["changed"]}
    assert len(rows) == 20
    assert rows["s00"]["better"] == ["Cardiomegaly"]
    assert rows["s01"]["better"] == ["Pneumonia", "Pleural Effusion"]
    assert rows["s02"]["better"] == ["Fracture"]
    assert rows["s03"]["worse"] == ["Pleural Effusion"]
    assert (rows["s03"]["mccs"], rows["s03"]["other_mccs"]) == (0, 1)
    # Most findings first, then the larger change of MCCS.
    assert [row["id"] for row in result["changed"]][:5] == ["s01", "s05", "s09", "s13", "s17"]
    text = format_comparison(result, ("one", "two"), 2)
    assert "A: one\nB: two\n20 studies" in text
    assert "+Pneumonia, +Pleural Effusion" in text
    assert "s03" not in text
    assert max(map(len, text.splitlines())) <= 120


def test_findings_that_one_system_hallucinates_are_named():
    """A is correct on Pneumonia because it does not state it: B hallucinates it."""
    result = compare_systems(PREDS, OTHER, TARGET, RulesLabeler(), IDS, num_trials=2)
    rows = {row["id"]: row["hallucinated"] for row in result["changed"]}
    assert [rows[f"s{i:02d}"] for i in range(4)] == [[], ["Pneumonia"], ["Fracture"], []]
    text = format_comparison(result, ("one", "two"), 20)
    assert "+Pneumonia, +Pleural Effusion (hallucinated: Pneumonia)\n" in text
    assert "+Cardiomegaly\n" in text  # the reference states it, and B denies it
    swapped = compare_systems(OTHER, PREDS, TARGET, RulesLabeler(), IDS, num_trials=2)
    assert {row["id"]: row["hallucinated"] for row in swapped["changed"]} == rows
    assert "-Fracture (hallucinated)" in format_comparison(swapped, ("two", "one"), 20)


def test_no_p_is_printed_as_0():
    result = compare_systems(PREDS, OTHER, TARGET, RulesLabeler(), IDS, num_trials=2)
    result["num_trials"] = 200_000
    result["scores"]["MCCS"]["p"] = 1 / 200_001
    line = next(line for line in format_comparison(result, ("a", "b")).splitlines() if line.startswith("MCCS"))
    assert line.endswith(" 0.000005")


def test_gained_and_lost_are_those_of_the_changed_studies():
    torch.manual_seed(0)
    labeler = RulesLabeler()
    pool = [*TARGET[:4], *PREDS[:4], "No pneumothorax.", "Fracture. Pacemaker."]
    a, b, target = ([pool[i] for i in torch.randint(len(pool), (60,)).tolist()] for _ in range(3))
    got = changes(labeler(a), labeler(b), labeler(target))
    expected = {row["id"]: row for row in compare_systems(a, b, target, labeler, num_trials=2)["changed"]}
    for place, change in enumerate(got, 1):
        row = expected.get(str(place), {"better": [], "worse": []})
        assert [CONDITIONS[i] for i in change["gained"]] == row["better"]
        assert [CONDITIONS[i] for i in change["lost"]] == row["worse"]


def test_equal_systems_do_not_differ():
    result = compare_systems(PREDS, PREDS, TARGET, RulesLabeler(), num_trials=50)
    for row in result["scores"].values():
        assert (row["difference"], row["low"], row["high"], row["p"]) == (0, 0, 0, 1)
    assert result["changed"] == []
    assert "0 studies have a finding that only one of the two gets right." in format_comparison(result, ("a", "b"))


def test_a_scorer_of_ones_own():
    def words(preds, target):
        return [float(len(p.split())) for p in preds]

    result = compare_systems(PREDS, OTHER, TARGET, RulesLabeler(), num_trials=50, scorers={"words": words})
    assert result["scores"]["words"]["value"] == pytest.approx((1 + 3 + 2 + 2) / 4)
    assert result["scores"]["words"]["difference"] == pytest.approx((1 + 3 + 2 + 2 - 2 - 2 - 1 - 2) / 4)


def test_bad_input():
    with pytest.raises(ValueError, match="same length, but got 19 and 20"):
        compare_systems(PREDS, OTHER[:19], TARGET, RulesLabeler())
    with pytest.raises(ValueError, match="`ids` to have 20 names, but got 3"):
        compare_systems(PREDS, OTHER, TARGET, RulesLabeler(), ["a", "b", "c"])
    with pytest.raises(ValueError, match="at least one report"):
        compare_systems([], [], [], RulesLabeler())


def test_the_printed_comparison():
    row = {"value": 0.5, "other": 0.25, "difference": 0.25, "low": 0.1, "high": 0.4, "p": 0.0123}
    changed = [
        {
            "id": "s1",
            "mccs": 1.0,
            "other_mccs": 0.5,
            "better": ["Edema"],
            "worse": ["Fracture"],
            "hallucinated": ["Fracture"],
        },
        {"id": "study2", "mccs": 0.0, "other_mccs": 0.25, "better": [], "worse": ["Edema"], "hallucinated": []},
    ]
    result = {"num_studies": 1234, "labeler": "rules", "margin": 0.3, "num_trials": 1000, "changed": changed}
    result["scores"] = {"MCCS": row, "words": {**row, "value": 2.0}}
    text = """A: one
B: two
1,234 studies, labeler rules, MCCS margin 0.3. In percent, paired by study.
95 % bootstrap intervals of A - B; two-sided p by approximate randomization; 1,000 trials each.
p-values are not corrected for multiple comparisons.

                            A      B   A - B     95 % interval        p
MCCS                     50.0   25.0   +25.0    [+10.0, +40.0]   0.0123
words                   2.000  0.250  +0.250  [+0.100, +0.400]   0.0123

2 studies have a finding that only one of the two gets right.
Correct: stated (positive or uncertain) exactly if the reference states it.
Hallucinated: the reference does not state it, and the system that is not correct does.
        MCCS A     B   + correct in A only, - correct in B only
s1         100    50   +Edema, -Fracture (hallucinated: Fracture)
study2       0    25   -Edema"""
    assert format_comparison(result, ("one", "two")) == text
    one = format_comparison({**result, "changed": changed[:1]}, ("one", "two"))
    assert one.endswith("1 study has a finding that only one of the two gets right.\n" + "\n".join([
        *text.splitlines()[-5:-3], "    MCCS A     B   + correct in A only, - correct in B only",
        "s1     100    50   +Edema, -Fracture (hallucinated: Fracture)",
    ]))  # fmt: skip
    assert format_comparison(result, ("one", "two"), 0) == text[: text.index("\nCorrect: ")]


def test_equal_numbers_of_findings_are_ordered_by_the_change_of_mccs_and_then_by_name():
    target = ["Edema. Pneumonia.", "Edema.", "Edema.", "Edema. Pneumonia."]
    preds = ["Edema.", "Edema.", "Edema.", "Edema. Pneumonia."]
    result = compare_systems(preds, ["Pneumonia.", "", "", "Edema."], target, RulesLabeler(), ["d", "c", "b", "a"], 0.0,
                             num_trials=2)  # fmt: skip
    assert [row["id"] for row in result["changed"]] == ["d", "b", "c", "a"]
    assert [row["better"] for row in result["changed"]] == [["Edema"], ["Edema"], ["Edema"], ["Pneumonia"]]
    assert result["changed"][0]["worse"] == ["Pneumonia"]
    assert result["num_trials"] == 2
    assert result["margin"] == 0
    assert compare_systems(preds, preds, target, RulesLabeler(), num_trials=2)["margin"] == 0.5
