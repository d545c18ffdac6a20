"""The corruptions by hand, and how they are counted."""

from mrg.metrics.stress import CORRUPTIONS, drop_finding, flip_negation, new_to_resolved, reorder, stress, swap_sides


def test_sides_are_swapped_with_their_case():
    assert swap_sides("Left effusion, right and LEFT; leftward.") == "Right effusion, left and Right; leftward."


def test_the_first_denial_is_asserted_or_the_first_finding_denied():
    assert flip_negation("Clear. No edema. No effusion.") == "Clear. Edema. No effusion."
    assert flip_negation("Clear. No evidence of edema.") == "Clear. Edema."
    assert flip_negation("Lungs are clear. Mild edema. Fracture.") == "Lungs are clear. No mild edema. Fracture."
    assert flip_negation("Lungs are clear.") == "Lungs are clear."


def test_new_findings_have_resolved():
    text = "New edema, newly developed or developing; no renewed nodule. A new one."
    assert new_to_resolved(text) == "Resolved edema, resolved or resolved; no renewed nodule. A resolved one."


def test_the_first_finding_is_dropped():
    assert drop_finding("Lungs are clear. Possible edema! Fracture.") == "Lungs are clear. Fracture."
    assert drop_finding("Edema.") == ""
    assert drop_finding("Lungs are clear. No edema.") == "Lungs are clear. No edema."


def test_sentences_in_reverse_order():
    assert reorder("One. Two?  Three 1.5 cm!") == "Three 1.5 cm! Two? One."


def test_only_reports_that_change_are_counted_and_only_scores_that_fall():
    def sides(preds, target):
        return [float(pred.lower().count("left") >= reference.lower().count("left")) for pred, reference in zip(
            preds, target, strict=True)]  # fmt: skip

    result = stress(sides, ["Left edema.", "Right edema.", "Edema. Left."])
    assert list(result) == list(CORRUPTIONS)
    assert result["swap sides"] == (2, 3)
    assert result["flip negation"] == (0, 3)
    assert result["new to resolved"] == (0, 0)
    assert result["drop a finding"] == (1, 3)
    assert result["reorder"] == (0, 1)
