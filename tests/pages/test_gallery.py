import json
import re

import pytest

from mrg.metrics import CONDITIONS, RulesLabeler, mccs
from mrg.metrics.compare import compare_systems
from mrg.metrics.verdicts import VERDICTS, verdicts
from mrg.pages.gallery import Gallery, label_kinds, marked_text, verdict_kinds
from mrg.pages.images import ImageOptions

TARGET = ["Cardiomegaly. No edema.", "Edema. Left effusion.", "The lungs are clear.", "Possible pneumonia."]
GOOD = ["Cardiomegaly.", "Edema. Left effusion.", "The lungs are clear.", "Pneumonia."]
BAD = ["Edema.", "No edema.", "", "Pneumonia."]

LABELER = RulesLabeler()
PLACE = {name: place for place, name in enumerate(CONDITIONS)}


def rows(preds, target=TARGET):
    listed = []
    for i, text in enumerate(preds):
        row = {"id": f"s{i}", "prediction": text, "thinking": "", "completion": f"<report>{text}"}
        listed.append(row if target is None else {**row, "target": target[i], "format": bool(text)})
    return listed


def read(page):
    """The page's text and the studies that its script reads."""
    text = page.read_text(encoding="utf-8")
    return text, json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])


def names(study, verdict, system=0):
    digits = study["outputs"][system]["verdicts"]
    return [CONDITIONS[i] for i in range(13) if VERDICTS[int(digits[i])] == verdict]


def test_studies_stand_worst_first_with_verdicts_and_scores(tmp_path):
    Gallery({"model": rows(BAD)[::-1]}, RulesLabeler(), margin=0.3).write(tmp_path / "g.html")
    _, data = read(tmp_path / "g.html")
    studies = {study["id"]: study for study in data["studies"]}
    assert [study["id"] for study in data["studies"]] == ["s1", "s0", "s2", "s3"]
    assert names(studies["s0"], "missed") == ["Cardiomegaly"]
    assert names(studies["s0"], "contradicted") == ["Edema"]
    assert names(studies["s1"], "missed") == ["Pleural Effusion"]
    assert names(studies["s3"], "uncertain") == ["Pneumonia"]
    scores = mccs(BAD, TARGET, 0.3, reduction="none", labeler=RulesLabeler()).tolist()
    assert [studies[f"s{i}"]["outputs"][0]["mccs"] for i in range(4)] == pytest.approx(scores, abs=1e-4)
    # What was written where there is no report, and only there.
    assert [studies[f"s{i}"]["outputs"][0]["completion"] for i in range(4)] == ["", "", "<report>", ""]
    assert [studies[f"s{i}"]["outputs"][0]["format"] for i in range(4)] == [True, True, False, True]


def test_a_comparison_stands_most_changed_first(tmp_path):
    comparison = compare_systems(GOOD, BAD, TARGET, RulesLabeler(), [f"s{i}" for i in range(4)], num_trials=5)
    Gallery({"A": rows(GOOD), "B": rows(BAD)}, RulesLabeler(), comparison=comparison).write(tmp_path / "g.html")
    text, data = read(tmp_path / "g.html")
    # s0: cardiomegaly and edema; s1: edema and effusion; a normal report and silence agree on the 13.
    assert [study["id"] for study in data["studies"]][:2] == ["s1", "s0"]
    assert data["studies"][1]["outputs"][1]["change"] == {"gained": [1, 4], "lost": []}
    assert "<b>A</b> is A, <b>B</b> is B" in text
    assert "All 25 scores" in text


def test_without_references_it_shows_what_is_said(tmp_path):
    Gallery({"model": rows(GOOD, None)}, RulesLabeler()).write(tmp_path / "g.html")
    text, data = read(tmp_path / "g.html")
    assert [study["id"] for study in data["studies"]] == ["s0", "s1", "s2", "s3"]
    assert data["studies"][0]["outputs"][0]["report"] == [["Cardiomegaly", [["stated", 1]]], "."]
    assert "verdicts" not in data["studies"][0]["outputs"][0]
    assert "There are no references" in text


class Silent:
    """Labels as the rules do, without evidence: what CheXbert looks like from outside."""

    name = "silent"

    def __call__(self, texts):
        return RulesLabeler()(texts)


def test_probabilities_of_findings_and_samples_that_disagree(tmp_path):
    shares = dict.fromkeys(CONDITIONS[:13], 0.0) | {"Edema": 0.5, "Cardiomegaly": 1.0}
    sampled = {"shares": shares, "probabilities": {name: share * 0.8 for name, share in shares.items()}}
    Gallery({"model": [row | sampled for row in rows(GOOD)]}, LABELER).write(tmp_path / "g.html")
    text, data = read(tmp_path / "g.html")
    output = data["studies"][0]["outputs"][0]
    assert (output["probabilities"][PLACE["Edema"]], output["probabilities"][PLACE["Cardiomegaly"]]) == (40, 80)
    assert output["disagree"] == [PLACE["Edema"]]
    assert "Samples disagree" in text
    Gallery({"model": rows(GOOD)}, LABELER).write(tmp_path / "g.html")
    assert "disagree" not in read(tmp_path / "g.html")[1]["studies"][0]["outputs"][0]


def test_a_labeler_without_evidence_leaves_texts_plain_and_says_so(tmp_path):
    Gallery({"model": rows(GOOD)}, Silent()).write(tmp_path / "g.html")
    text, data = read(tmp_path / "g.html")
    assert "The labeler silent does not show the words" in text
    assert data["hasEvidence"] is False
    assert {study["id"]: study["outputs"][0]["report"] for study in data["studies"]}["s0"] == ["Cardiomegaly."]
    assert names(data["studies"][-1], "missed") == []


def test_text_cannot_leave_its_place(tmp_path):
    evil = "</script><script>alert(1)</script><!-- <b> \u2028 ' \" &"
    row = {"id": evil, "prediction": evil, "thinking": evil, "completion": evil, "target": evil, "format": False}
    Gallery({evil: [row]}, RulesLabeler(), indications={evil: evil}, title=evil).write(tmp_path / "g.html")
    text, data = read(tmp_path / "g.html")
    assert "<script>alert" not in text
    assert "<!-- <b>" not in text
    assert data["studies"][0]["id"] == data["studies"][0]["outputs"][0]["thinking"] == evil
    assert text.count("<script") == 2  # the data and ours


def test_nothing_points_to_the_network(tmp_path):
    Gallery({"model": rows(GOOD)}, RulesLabeler()).write(tmp_path / "g.html")
    text = (tmp_path / "g.html").read_text()
    assert not re.findall(r"(?:src|href)=\"(?!data:)|https?://|@import|url\(", text)
    assert "default-src 'none'" in text


def test_a_long_list_is_cut_and_says_so(tmp_path):
    Gallery({"model": rows(BAD)[::-1]}, RulesLabeler(), max_studies=2).write(tmp_path / "g.html")
    text, data = read(tmp_path / "g.html")
    assert [study["id"] for study in data["studies"]] == ["s1", "s0"]
    assert "shows 2 of 4 studies: those with the lowest MCCS" in text


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match="at least one study"):
        Gallery({"model": []}, RulesLabeler()).write(tmp_path / "g.html")
    with pytest.raises(ValueError, match="'B' to have the same studies in the same order"):
        Gallery({"A": rows(GOOD), "B": rows(BAD)[::-1]}, RulesLabeler()).write(tmp_path / "g.html")
    assert not (tmp_path / "g.html").exists()


def test_images_stand_with_their_study(tmp_path, studies):
    preds = [{"id": s.id, "prediction": "Edema.", "target": s.report, "format": True} for s in studies]
    views = {study.id: study.views for study in studies}
    gallery = Gallery({"model": preds}, RulesLabeler(), views=views, image_options=ImageOptions(image_size=64))
    gallery.write(tmp_path / "g.html")
    text, data = read(tmp_path / "g.html")
    by_id = {study.id: study for study in studies}
    for place, shown in enumerate(data["studies"]):
        own = by_id[shown["id"]].views
        assert [view["position"] for view in shown["views"]] == [view.position for view in own]
        assert text.count(f'id="image-{place}-') == len(own)
    assert "at most 64 pixels" in text


def marked(text, other, is_reference=False):
    """The text cut, and judged against another one."""
    own, rest = LABELER([text, other])
    preds, target = (rest, own) if is_reference else (own, rest)
    kinds = verdict_kinds(verdicts(preds[None], target[None])[0].tolist())
    return marked_text(text, LABELER.evidence(text), own.tolist(), kinds)


def test_every_kind_of_mark():
    target = "Cardiomegaly. Possible edema. No pneumothorax. Rib fracture."
    preds = "Cardiomegaly. Edema. Small pneumothorax. Consolidation."
    assert marked(preds, target) == [
        ["Cardiomegaly", [["correct", PLACE["Cardiomegaly"]]]],
        ". ",
        ["Edema", [["uncertain", PLACE["Edema"]]]],
        ". Small ",
        ["pneumothorax", [["contradicted", PLACE["Pneumothorax"]]]],
        ". ",
        ["Consolidation", [["hallucinated", PLACE["Consolidation"]]]],
        ".",
    ]
    kinds = [piece[1][0][0] for piece in marked(target, preds, is_reference=True) if isinstance(piece, list)]
    assert kinds == ["correct", "uncertain", "contradicted", "missed"]


def test_only_what_decides_the_label_is_marked():
    pieces = marked("Left effusion. No right effusion.", "Small effusion.")
    assert pieces == ["Left ", ["effusion", [["correct", PLACE["Pleural Effusion"]]]], ". No right effusion."]


def test_agreeing_denials_stay_plain():
    assert marked("No edema.", "No edema.") == ["No edema."]


def test_one_word_of_two_findings():
    text = "Left hydropneumothorax."
    word = next(piece for piece in marked(text, "No effusion.") if isinstance(piece, list))
    assert word == [
        "hydropneumothorax",
        [["hallucinated", PLACE["Pneumothorax"]], ["contradicted", PLACE["Pleural Effusion"]]],
    ]


def test_pieces_joined_are_the_text():
    texts = ["", "\U0001f600 Edema\u200d. قلب كبير\n\nNo 1.5 cm nodule </script>", "Effusion " * 1000]
    for text in texts:
        labels = LABELER([text])[0].tolist()
        pieces = marked_text(text, LABELER.evidence(text), labels, label_kinds(labels))
        assert "".join(piece if isinstance(piece, str) else piece[0] for piece in pieces) == text


def test_what_is_said_without_a_reference():
    text = "Edema. Possible pneumonia. No effusion."
    labels = LABELER([text])[0].tolist()
    pieces = marked_text(text, LABELER.evidence(text), labels, label_kinds(labels))
    kinds = [piece[1][0][0] for piece in pieces if isinstance(piece, list)]
    assert kinds == ["stated", "possible", "ruled out"]
