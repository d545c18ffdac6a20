"""Words count, form does not: the same sentences in many forms get the same labels."""

import random
import re

import pytest
import torch

from mrg.metrics.labelers.layout import HARD, ITEM, SOFT, plain
from mrg.metrics.labelers.rules import CONVENTIONS, RulesLabeler
from tests.metrics.labelers.iu_data import IU_XRAY, needs_iu_xray, read_reports
from tests.metrics.labelers.rewritings import REWRITINGS
from tests.metrics.labelers.sentences import CASES, N, P, labels

WHOLE = [text for text, _ in CASES if re.fullmatch(r"[A-Z][a-z][^.:;!?\n_]*[a-z]\.", text) and "XXXX" not in text]


@pytest.fixture(scope="module", params=CONVENTIONS)
def labeler(request):
    return RulesLabeler(convention=request.param)


def invented_reports(num=200):
    rng = random.Random(0)
    return [rng.sample(WHOLE, rng.randint(3, 7)) for _ in range(num)]


def test_there_are_enough_forms_and_sentences():
    assert len(REWRITINGS) >= 50
    assert len(WHOLE) > 150


@pytest.mark.parametrize("name", REWRITINGS)
def test_form_does_not_change_the_labels_of_invented_reports(labeler, name):
    reports = invented_reports()
    expected = labeler([" ".join(sentences) for sentences in reports])
    got = labeler([REWRITINGS[name](sentences) for sentences in reports])
    different = (expected != got).any(1).nonzero().flatten().tolist()
    assert not different, REWRITINGS[name](reports[different[0]])


@needs_iu_xray
def test_form_does_not_change_the_labels_of_real_reports(labeler):
    texts = [text for text in read_reports(IU_XRAY).values() if ":" not in text and text.isascii()]
    split = [re.split(r"(?<=[a-z]\.) +(?=[A-Z][a-z ])", text) for text in texts]
    reports = [sentences for sentences in split if 3 <= len(sentences) <= 8][:200]
    assert len(reports) == 200
    expected = labeler([" ".join(sentences) for sentences in reports])
    for name, write in REWRITINGS.items():
        got = labeler([write(sentences) for sentences in reports])
        assert int((expected != got).any(1).sum()) == 0, name


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("No effusion.", "No effusion."),
        ("No e\ufb00usion", "No effusion"),
        ("a\r\nb", f"a {SOFT}b"),
        ("No effusion\nCardiomegaly", f"No effusion{SOFT}Cardiomegaly"),
        ("No effusion\nor edema", "No effusion\nor edema"),
        ("- No effusion\n- Edema", f"{HARD} No effusion\n{HARD} Edema"),
        ("No effusion - Edema | a/b", f"No effusion {ITEM} Edema {ITEM} a/b"),
        ("**Edema**", f"{HARD} Edema  "),
        ("A<br>B", f"A{HARD}   B"),
        ("an 8\u20139 mm nodule", "an 8-9 mm nodule"),
    ],
)
def test_plain_form(text, expected):
    assert plain(text)[0] == expected


def test_hyphenation_is_undone_for_known_words_only():
    text, places = plain("No pneumo-\nthorax, air-\nspace", {"pneumothorax"})
    assert text == "No pneumothorax, air-\nspace"
    assert places is not None
    assert [places[0], places[9], places[14]] == [0, 11, 16]


def test_evidence_points_into_the_text_as_given(labeler):
    text = "\ufeff**Findings:**\r\n\u2022 No e\ufb00usion\n\u2022 Mild pneumo\u00ad\nthorax\u2014Cardiomegaly"
    found = [(e.condition, e.label, text[e.mention_start : e.mention_end]) for e in labeler.evidence(text)]
    assert found == [
        ("Pleural Effusion", N, "e\ufb00usion"),
        ("Pneumothorax", P, "pneumo\u00ad\nthorax"),
        ("Cardiomegaly", P, "Cardiomegaly"),
    ]


def test_line_wraps_do_not_part_a_denial(labeler):
    text = (
        "There is no evidence of focal consolidation, pulmonary edema, pneumothorax,\nleft or right pleural effusion."
    )
    expected = labels(labeler, text.replace("\n", " "))
    assert labels(labeler, text) == expected
    assert labels(labeler, text.upper()) == expected
    assert torch.equal(labeler([text]), labeler([text.replace("\n", "  \n  ")]))
