import random

import pytest
import torch

from mrg.metrics import MCCS, AttributeAccuracy, ChangeF1, FindingF1, RulesLabeler, as_reward, ce_f1
from mrg.metrics.finding_f1 import report_findings
from mrg.metrics.labelers.attributes import ATTRIBUTES, Finding
from mrg.metrics.stress import CORRUPTIONS, stress

TARGET = [
    "Left effusion. Cardiomegaly. New right upper lobe nodule.",
    "The lungs are clear.",
    "Left effusion is smaller.",
]
PREDS = ["Right effusion. Cardiomegaly. Right upper lobe nodule.", "Rib fracture.", "Left effusion is larger."]


def test_by_hand():
    # First: effusion wrong side; cardiomegaly and nodule right. Second: one hallucinated. Third: right.
    assert float(FindingF1()(PREDS, TARGET)) == pytest.approx(2 * 3 / (5 + 4))
    assert FindingF1().scores(PREDS, TARGET).tolist() == pytest.approx([4 / 6, 0, 1])
    assert float(FindingF1(average="example")(PREDS, TARGET)) == pytest.approx((4 / 6 + 0 + 1) / 3)
    # With change: the nodule lacks "new", the effusion of the third is larger in place of smaller.
    assert float(FindingF1(("side", "change"))(PREDS, TARGET)) == pytest.approx(2 * 1 / (5 + 4))
    # Pairs (effusion, larger) against (nodule, new), (effusion, smaller).
    assert float(ChangeF1()(PREDS, TARGET)) == 0
    assert float(ChangeF1()(TARGET, TARGET)) == 1
    # Shared findings with a side in the reference: effusion wrong, nodule right, effusion right.
    assert float(AttributeAccuracy()(PREDS, TARGET)) == pytest.approx(2 / 3)
    assert torch.isnan(AttributeAccuracy("severity")(PREDS, TARGET))


def test_without_attributes_it_is_ce_f1():
    expected = ce_f1(PREDS, TARGET, labeler=RulesLabeler())
    assert torch.equal(FindingF1(())(PREDS, TARGET), expected)


def test_what_the_reference_does_not_say_is_free():
    assert float(FindingF1()(["Small left effusion."], ["Effusion."])) == 1
    assert float(FindingF1()(["Effusion."], ["Left effusion."])) == 0


def test_batches_add_up():
    whole, parts = FindingF1(), FindingF1()
    whole.update(PREDS, TARGET)
    for pred, target in zip(PREDS, TARGET, strict=True):
        parts.update([pred], [target])
    parts.update([], [])
    assert torch.equal(whole.compute(), parts.compute())


def test_as_reward():
    reward = as_reward(FindingF1(average="example"))
    assert reward(completions=PREDS, target=TARGET) == pytest.approx([4 / 6, 0, 1])


def invented_reports(num=60):
    """Each with a side, a denial, something new and two findings."""
    rng = random.Random(0)
    parts = (
        ("New small {} pleural effusion.", "New {} apical pneumothorax.", "New {} lower lobe consolidation."),
        ("No edema.", "No evidence of pneumonia.", "No rib fracture."),
        ("The {} basilar atelectasis is unchanged.", "Mild {} upper lobe opacity.", "Stable {} lung nodule."),
    )
    reports = []
    for _ in range(num):
        sentences = [rng.choice(options).format(rng.choice(("left", "right"))) for options in parts]
        rng.shuffle(sentences)
        reports.append(" ".join(sentences))
    return reports


@pytest.mark.parametrize("attributes", [("side", "change"), tuple(ATTRIBUTES)])
def test_every_corruption_lowers_the_score_and_reordering_does_not(attributes):
    reports = invented_reports()
    result = stress(FindingF1(attributes).scores, reports)
    assert set(result) == set(CORRUPTIONS)
    for name, (fell, changed) in result.items():
        assert changed == len(reports), name
        assert fell == (0 if name == "reorder" else changed), name


def test_a_metric_without_attributes_fails_the_stress_suite():
    result = stress(MCCS(labeler=RulesLabeler()).scores, invented_reports())
    assert result["swap sides"][0] == 0
    assert result["drop a finding"][0] == result["drop a finding"][1]


def test_change_f1_notices_what_has_resolved():
    assert ChangeF1().scores(["The effusion has resolved."], ["New effusion."]).tolist() == [0]
    assert ChangeF1().scores(["The effusion has resolved."], ["Resolved effusion."]).tolist() == [1]


def test_bad_input():
    with pytest.raises(
        ValueError, match=r"`attributes` to hold names from side, place, severity, change, but got 'size'"
    ):
        FindingF1(("size",))
    with pytest.raises(ValueError, match="but got 'side'"):
        FindingF1("side")
    with pytest.raises(ValueError, match="`average` to be 'micro' or 'example', but got 'macro'"):
        FindingF1(average="macro")
    with pytest.raises(ValueError, match="`attribute` to be one of side"):
        AttributeAccuracy("colour")
    with pytest.raises(TypeError, match="to read findings"):
        FindingF1(labeler=lambda texts: None)
    with pytest.raises(ValueError, match="same length, but got 1 and 2"):
        FindingF1()(["a"], ["a", "b"])


def test_statements_of_a_report():
    """Left and right make bilateral; what is no condition of the 13, or denied, is not stated."""
    stated, changes = report_findings(
        RulesLabeler(), "Small left effusion. New right effusion. The edema has resolved."
    )
    assert set(stated) == {"Pleural Effusion"}
    own = stated["Pleural Effusion"]
    assert own == {"side": {"bilateral"}, "place": set(), "severity": {"small"}, "change": {"new"}}
    assert changes == {("Pleural Effusion", "new"), ("Edema", "resolved")}
    assert FindingF1().scores(["Left effusion. Right effusion."], ["Bilateral effusions."]).tolist() == [1]
    found = Finding("No Finding", 1, None, None, None, "new", 0, 1, ())

    class Reader:
        def findings(self, text):
            return [found]

    assert report_findings(Reader(), "") == ({}, set())


def test_nothing_found_on_either_side():
    assert FindingF1().scores(["Clear.", "Edema."], ["Clear.", "Clear."]).tolist() == [1, 0]
    assert float(FindingF1()(["Clear."], ["Clear."])) == float(ChangeF1()(["Clear."], ["Clear."])) == 0
    assert float(ChangeF1()(["New edema."], ["New edema. Stable effusion."])) == pytest.approx(2 / 3)
    assert float(AttributeAccuracy("place")(["Left basal edema."], ["Right basal edema."])) == 1
    assert FindingF1.higher_is_better is ChangeF1.higher_is_better is True
    assert FindingF1.full_state_update is FindingF1.is_differentiable is False


def test_the_accuracy_of_a_report():
    # First: the side of the effusion is wrong, that of the nodule right. Second: no shared finding. Third: right.
    scores = AttributeAccuracy().scores(PREDS, TARGET)
    assert scores.nan_to_num(-1).tolist() == [0.5, -1, 1]
