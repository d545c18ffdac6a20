"""RaTEScore against the package RaTEScore 0.6.0, one pair at a time, for the same tiny networks.

ratescore_package.json holds what the package gave on transformers 4.57, with sentences split at punctuation.
"""

import json
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mrg.errors import MissingPackageError, NotFoundError, UserError
from mrg.metrics import ReportScore, as_reward
from mrg.metrics.learned.ratescore import TYPES, WEIGHTS, Named, RaTEScore, join_tokens, matched
from tests.metrics.learned.lookalikes import write_centered, write_ner

PACKAGE = json.loads((Path(__file__).parent / "ratescore_package.json").read_text())
TEXTS, OTHERS = PACKAGE["texts"], PACKAGE["others"]


@pytest.fixture(scope="module")
def ner(tmp_path_factory):
    """Folder of the tiny token classifier."""
    return write_ner(tmp_path_factory.mktemp("ratescore") / "ner")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """Folder of the tiny encoder of entities."""
    return write_centered(tmp_path_factory.mktemp("ratescore") / "encoder")


@pytest.fixture
def make(ner, encoder):
    def make(ner=ner, encoder=encoder, sentences="punctuation", device="cpu", **settings):
        return RaTEScore(ner, encoder, sentences=sentences, device=device, **settings)

    return make


def test_entities_and_scores_equal_the_package(make):
    score = make(batch_tokens=200)
    assert [[list(entity) for entity in own] for own in score.entities(TEXTS)] == PACKAGE["entities"]  # together
    assert [[list(entity) for entity in score.entities([text])[0]] for text in TEXTS[:3]] == PACKAGE["entities"][:3]
    assert {entity.type for own in score.entities(TEXTS + OTHERS) for entity in own} >= set(TYPES[:3])
    assert score(OTHERS, TEXTS).tolist() == pytest.approx(PACKAGE["long"], abs=3e-5)
    assert make(weights="short")(OTHERS, TEXTS).tolist() == pytest.approx(PACKAGE["short"], abs=3e-5)


def test_a_report_without_entities_scores_one_half_and_shifts_no_other(make):
    score = make()
    values = score(["", TEXTS[0], OTHERS[0]], [TEXTS[0], " \n", TEXTS[0]]).tolist()
    assert values == pytest.approx([0.5, 0.5, PACKAGE["long"][0]], abs=3e-5)
    assert score([TEXTS[0]], [TEXTS[0]]).item() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("labels", "spans"),
    [
        ("O O B-A I-A O", [(2, 3, "A")]),
        ("O B-A B-B O O", [(1, 1, "A"), (2, 2, "B")]),
        ("O B-A I-B B-B O", [(1, 2, "A"), (3, 3, "B")]),  # the type of the first token
        ("O I-A O B-A O", [(3, 3, "A")]),  # nothing has begun
        ("O B-A I-A I-A I-A", [(1, 3, "A")]),  # the last special token continues it
        ("O B-A B-B I-B I-B", [(1, 1, "A")]),  # as in the package, which then loses the second one
    ],
)
def test_tokens_are_joined_as_in_the_package(labels, spans):
    assert join_tokens(["[CLS]", "a", "b", "c", "[SEP]"], labels.split(" ")) == spans


def test_matches_by_hand():
    table, axes = WEIGHTS["long"], torch.eye(3)
    entities = [Named("effusion", "ABNORMALITY"), Named("lung", "ANATOMY")]
    others = [Named("effusion", "NON-ABNORMALITY"), Named("lung", "ANATOMY")]
    value = matched(entities, [axes[0], axes[1]], others, [axes[0], axes[1]], table)
    denied, same = table.affinity[0][3], table.affinity[1][1]
    assert value == pytest.approx((denied * table.negation + same) / (denied + same))
    assert matched(entities[1:], [axes[1]], others[1:], [-axes[1]], table) == pytest.approx(-1.0)


def test_reports_without_any_similarity_score_zero(make, monkeypatch):
    monkeypatch.setattr("mrg.metrics.learned.ratescore.matched", lambda *sides: 0.0)
    assert make()([TEXTS[0]], [OTHERS[0]]).tolist() == [0.0]


def test_texts_and_entities_are_encoded_once(make, monkeypatch):
    score = make()
    score(OTHERS[:2], TEXTS[:2])
    monkeypatch.setattr(score, "_find", lambda texts: pytest.fail("found again") if texts else {})
    monkeypatch.setattr(score, "_embed", lambda texts: pytest.fail("embedded again") if texts else {})
    assert score(OTHERS[:2], TEXTS[:2]).tolist() == pytest.approx(PACKAGE["long"][:2], abs=3e-5)


def test_as_metric_and_as_reward(make):
    score = make()
    values = score(OTHERS, TEXTS)
    metric = ReportScore(score, score.name, score.higher_is_better)
    metric.update(OTHERS, TEXTS)
    assert float(metric.compute()) == pytest.approx(float(values.mean()))
    assert as_reward(score)(completions=["", *OTHERS[1:]], target=TEXTS) == [0.0, *values[1:].tolist()]
    assert {**score.settings(), "ner": "", "encoder": ""} == {
        "ner": "", "encoder": "", "name": "RaTEScore", "weights": "long", "sentences": "punctuation",
    }  # fmt: skip


def test_sentences_of_medspacy_or_of_a_function(make, monkeypatch):
    monkeypatch.setitem(sys.modules, "medspacy", None)
    with pytest.raises(MissingPackageError, match=r"pip install -e '\.\[ratescore\]'.*sentences='punctuation'"):
        make(sentences="medspacy")
    asked = []

    def load(medspacy_enable):
        asked.extend(medspacy_enable)
        return lambda text: SimpleNamespace(sents=text.split(". "))

    monkeypatch.setitem(sys.modules, "medspacy", SimpleNamespace(load=load))
    by_package, by_function = make(sentences="medspacy"), make(sentences=lambda text: text.split(". "))
    assert by_package.entities(TEXTS) == by_function.entities(TEXTS)
    assert asked == ["medspacy_pyrush"]  # the package's splitter, loaded once
    assert make(sentences=partial(str.split, sep=". ")).settings()["sentences"] == "function"  # it has no name


def test_the_splitter_of_medspacy_itself(make):
    pytest.importorskip("medspacy")
    score = make(sentences="medspacy")
    assert len(score.entities(TEXTS)) == len(TEXTS)


def test_what_is_missing_or_wrong_is_named(make, bert, tmp_path):
    with pytest.raises(NotFoundError, match=r"RaTEScore's entities, does not exist: .*licenses: .*RaTE-NER-Deberta"):
        make(ner=tmp_path / "nowhere")
    with pytest.raises(NotFoundError, match=r"RaTEScore's encoder, does not exist: .*BioLORD-2023-C"):
        make(encoder=tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"lack classifier\.bias, one of 2 missing tensors"):
        make(ner=bert)  # an encoder without the head
    with pytest.raises(UserError, match="Expected argument `weights` to be one of long, short"):
        make(weights="wide")
    with pytest.raises(UserError, match="Expected argument `sentences` to be a function or one of medspacy"):
        make(sentences="spacy")


def test_other_types_of_entities_are_refused(make, ner, tmp_path):
    for file in ner.iterdir():
        content = file.read_bytes()
        (tmp_path / file.name).write_bytes(
            content.replace(b"ANATOMY", b"ORGAN") if file.name == "config.json" else content
        )
    with pytest.raises(UserError, match=r"Expected the types of entities in .* to be ABNORMALITY, .*but got .*ORGAN"):
        make(ner=tmp_path)


@pytest.mark.parametrize(
    ("weights", "rows", "columns"),
    [
        ("long", (1.868311957495, 1.514718150106, 4.041710022346, 0.997204684839, 1.43984506624),
         (2.957455021104, 2.107311963894, 2.128845458724, 1.585681978198, 1.082495459106)),
        ("short", (2.572384094472, 2.429043042678, 3.677950740361, 1.47657212626, 2.07208487823),
         (3.000899624175, 3.009725009599, 1.081971154416, 2.496111746676, 2.639327347135)),
    ],
)  # fmt: skip
def test_the_weights_are_those_of_the_package(weights, rows, columns):
    """A checksum by rows and by columns, which no change of one number leaves as it is."""
    table = torch.tensor(WEIGHTS[weights].affinity, dtype=torch.float64)
    assert table.sum(1).tolist() == pytest.approx(rows, abs=1e-11)
    assert table.sum(0).tolist() == pytest.approx(columns, abs=1e-11)
    assert WEIGHTS[weights].negation == {"long": 0.871655396649, "short": 0.361157785435}[weights]
