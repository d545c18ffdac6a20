from mrg.metrics import CONDITIONS, RulesLabeler
from mrg.metrics.verdicts import verdicts
from mrg.pages.evidence import cut, evidence_of, label_kinds, verdict_kinds

labeler = RulesLabeler()
PLACE = {name: place for place, name in enumerate(CONDITIONS)}


def marked(text, other, is_reference=False):
    """The text cut, and judged against another one."""
    own, rest = labeler([text, other])
    preds, target = (rest, own) if is_reference else (own, rest)
    kinds = verdict_kinds(verdicts(preds[None], target[None])[0].tolist())
    return cut(text, labeler.evidence(text), own.tolist(), kinds)


def test_every_kind_of_mark():
    target = "Cardiomegaly. Possible edema. No pneumothorax. Rib fracture."
    preds = "Cardiomegaly. Edema. Small pneumothorax. Consolidation."
    assert marked(preds, target) == [
        ["Cardiomegaly", [["right", PLACE["Cardiomegaly"]]]],
        ". ",
        ["Edema", [["uncertain", PLACE["Edema"]]]],
        ". Small ",
        ["pneumothorax", [["contradicted", PLACE["Pneumothorax"]]]],
        ". ",
        ["Consolidation", [["invented", PLACE["Consolidation"]]]],
        ".",
    ]
    kinds = [piece[1][0][0] for piece in marked(target, preds, is_reference=True) if isinstance(piece, list)]
    assert kinds == ["right", "uncertain", "contradicted", "missed"]


def test_only_what_decides_the_label_is_marked():
    pieces = marked("Left effusion. No right effusion.", "Small effusion.")
    assert pieces == ["Left ", ["effusion", [["right", PLACE["Pleural Effusion"]]]], ". No right effusion."]


def test_agreeing_denials_stay_plain():
    assert marked("No edema.", "No edema.") == ["No edema."]


def test_one_word_of_two_findings():
    text = "Left hydropneumothorax."
    word = next(piece for piece in marked(text, "No effusion.") if isinstance(piece, list))
    assert word == [
        "hydropneumothorax",
        [["invented", PLACE["Pneumothorax"]], ["contradicted", PLACE["Pleural Effusion"]]],
    ]


def test_pieces_joined_are_the_text():
    texts = ["", "\U0001f600 Edema\u200d. قلب كبير\n\nNo 1.5 cm nodule </script>", "Effusion " * 1000]
    for text in texts:
        labels = labeler([text])[0].tolist()
        pieces = cut(text, labeler.evidence(text), labels, label_kinds(labels))
        assert "".join(piece if isinstance(piece, str) else piece[0] for piece in pieces) == text


def test_what_is_said_without_a_reference():
    text = "Edema. Possible pneumonia. No effusion."
    labels = labeler([text])[0].tolist()
    pieces = cut(text, labeler.evidence(text), labels, label_kinds(labels))
    kinds = [piece[1][0][0] for piece in pieces if isinstance(piece, list)]
    assert kinds == ["stated", "possible", "ruled out"]


def test_a_labeler_without_evidence():
    assert evidence_of(object()) is None
    assert evidence_of(labeler) is not None
