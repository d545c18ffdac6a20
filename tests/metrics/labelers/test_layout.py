"""Words count, form does not: the same sentences in many forms get the same labels."""

import random
import re

import pytest
import torch

from mrg.metrics.labelers.layout import HARD, ITEM, SOFT, plain, without_skipped_sections
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


CHARACTERS = [
    ("\u2022\u2023\u25e6\u2219\u00b7\u2027\u2043\u30fb\uff65\u2a00\u2981", HARD),
    ("\u2190\u21ff\u2460\u249b\u25a0\u27bf\u2029\x0b\x0c\x1c\x1d\x1e", HARD),
    ("\u2014\u2015\u2e3a\u2e3b", f" {ITEM} "),
    ("|\u00a6\u2502", ITEM),
    ("\u2013\u2010\u2011\u2012\u2212\u02d7\ufe63\uff0d", "-"),
    ("\u2018\u2019\u02bc\u2032\u201b\u00b4", "'"),
    ("\u3002\uff61\u0964\u06d4", ". "),
    ("\u3001\uff64\u060c", ", "),
    ("\x1f\t\u00a0\u1680\x07", " "),
    ("\u200b\u0301\u20dd", ""),
    ("\u00e6", "ae"), ("\u0153", "oe"), ("\u00c6", "Ae"), ("\u0152", "Oe"), ("\u00df", "ss"), ("\u00f8", "o"),
    ("\u0142", "l"), ("\u00e9", "e"), ("\ufb01", "fi"), ("\u00b2", "2"), ("\uff21", "A"), ("\u249c", "(a)"),
    ("*_`~", " "), ("X", "X"), ("~", " "), ("\u218f", "\u218f"), ("\u2200", "\u2200"), ("\u259f", "\u259f"),
]  # fmt: skip


def test_every_character_has_its_plain_form():
    for characters, expected in CHARACTERS:
        for character in characters:
            assert plain(f"edema{character}mass \u00a0")[0] == f"edema{expected}mass  ", hex(ord(character))
    for character in "\u2028\x85\r\n":  # the end of a line
        assert plain(f"Edema{character}Mass")[0] == f"Edema{SOFT}Mass", hex(ord(character))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("edema / mass", "edema   mass"), ("edema / Mass", f"edema {ITEM} Mass"),
        ("edema + Mass", f"edema {ITEM} Mass"),
        ("edema - mass", f"edema {ITEM} mass"), ("edema --- mass", f"edema {ITEM}   mass"), ("a ---- b", "a ---- b"),
        ("edema/Mass", "edema/Mass"), ("a 1) edema b) mass", f"a {HARD}  edema {HARD}  mass"),
        ("see (12) here", f"see {HARD}    here"), ("see (123) here", "see (123) here"),
        ("see (i) here", "see (i) here"),
        ("see (h) here", f"see {HARD}   here"), ("(a) Edema", f"{HARD}   Edema"), ("- edema", f"{HARD} edema"),
        ("+ edema", f"{HARD} edema"), ("> edema", "> edema"), ("-edema", f"{HARD}edema"), ("-5 mm", "-5 mm"),
        ("###### Edema", f"{HARD}      Edema"), ("iv) Edema\nxi. Mass", f"{HARD}   Edema\n{HARD}   Mass"),
        ("o edema\no mass", f"{HARD} edema\n{HARD} mass"), ("or edema\nor mass", f"or edema{SOFT}or mass"),
        ("Edema\n---\nMass", f"Edema\n{HARD}  \nMass"), ("Edema\n--\nMass", f"Edema\n--{SOFT}Mass"),
        ("Edema\n\nMass", f"Edema{HARD}\nMass"), ("Edema\n \nMass", f"Edema{HARD} \nMass"),
        ("Edema </li>mass", f"Edema {HARD}    mass"), ("Edema <H3 a=b>mass", f"Edema {HARD}       mass"),
        ("Edema <b>mass</b>", "Edema    mass    "), ("Edema < 3 mass", "Edema < 3 mass"), ("<h7>mass", "    mass"),
        ("a 12. Mass\n12. Mass", f"a 12. Mass\n{HARD}   Mass"), ("123. Mass\nMass", f"123. Mass{SOFT}Mass"),
    ],
)  # fmt: skip
def test_marks_of_lists_and_of_markup(text, expected):
    assert plain(text)[0] == expected


@pytest.mark.parametrize("text", ["1.", "2)", "(3) ", "a. ", "ii. ", "o ", "A. , ", "b) 1", "o 2,", "12", "- ", ". "])
def test_a_mark_without_an_item_is_read_alike_with_blanks_around_it(labeler, text):
    """A number is no report without findings, and a letter is no mark where nothing follows."""
    alone = labels(labeler, text)
    assert alone == ({"No Finding": P} if text[0].isalpha() else {})
    for around in (f" {text}\n", f"\n  {text} ", f"{text}\n\n"):
        assert labels(labeler, around) == alone


def test_a_state_after_a_line_break_is_not_that_of_a_structure_that_has_changed(labeler):
    for text in ("Heart size has decreased\nNormal chest", "HEART SIZE HAS DECREASED\nNORMAL CHEST"):
        assert labels(labeler, text) == {"No Finding": P}
    assert labels(labeler, "The heart size has\nNormal limits") == labels(labeler, "The heart size has normal limits")


def test_line_breaks_of_one_case_depend_on_the_width():
    """A word that would have fitted on the line starts a statement; a narrow text has a statement on each line."""
    assert plain("edema\nmass")[0] == f"edema{SOFT}mass"
    wide = "x" * 40
    assert plain(f"{wide}\nmass")[0] == f"{wide}\nmass"
    assert plain(f"{wide[1:]}\nmass")[0] == f"{wide[1:]}{SOFT}mass"
    rest = f"mass {wide[:30]}"
    assert plain(f"{wide}\n{wide[5:]}\n{rest}")[0] == f"{wide}\n{wide[5:]}{SOFT}{rest}"
    assert plain(f"{wide}\n{wide[4:]}\n{rest}")[0] == f"{wide}\n{wide[4:]}\n{rest}"
    assert plain(f"{wide}\n{wide[5:]}  \n{rest}")[0] == f"{wide}\n{wide[5:]}  {SOFT}{rest}"
    assert plain("No edema\n3 masses\nXXXX mass\n\u00a0\nmass")[0] == f"No edema{SOFT}3 masses\nXXXX mass{HARD} \nmass"


def test_hyphens_at_the_end_of_a_line():
    for text in ("pneumo-\nthorax", "pneumo-  \n  thorax", "Pneumo-\nThorax"):
        assert plain(f"No {text}.", {"pneumothorax"})[0].lower() == "no pneumothorax."
    assert plain("No pneumo-\nthorax.", {"pneumo"})[0] == "No pneumo-\nthorax."
    text, places = plain("a-\nb c-\nd", {"ab", "cd"})
    assert (text, list(places)) == ("ab cd", [0, 3, 4, 5, 8])
    assert plain("plain text.") == ("plain text.", None)
    assert plain("- edema")[1] is None
    assert list(plain("a\u00e6 b")[1]) == [0, 1, 1, 2, 3]


HEADINGS = (
    "indication indications history comparison comparisons technique examination exam procedure views notification"
)


READ = "findings finding impression conclusion report chest heart lungs pleura bones mediastinum lines"


def test_every_heading_of_a_skipped_section():
    for name in [*HEADINGS.split(), "clinical history", "reason for the exam", "wet  read"]:
        text = f"Edema. {name.title()}: mass. More."
        assert without_skipped_sections(text) == f"Edema. {' ' * (len(name) + 7)} More.", name
    for name in READ.split():
        text = f"Indication: mass. {name.title()}: edema."
        assert without_skipped_sections(text) == f"{' ' * 18}{name.title()}: edema.", name


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Indication: mass", ""), ("Indication: 1.5 cm mass. Edema.", "Edema."), ("Indication: mass! Edema.", "Edema."),
        ("Indication: mass? Edema.", "Edema."), (f"Indication{HARD}mass{HARD}Edema.", "Edema."),
        (f"Indication{SOFT}mass. Edema.", "Edema."), ("Indication: mass\n\nEdema.", "Edema."),
        ("Indication: mass\nEdema. Mass.", "Mass."), ("No indication: mass.", "No indication: mass."),
        ("Edema. History mass.", "Edema. History mass."), ("HISTORY: mass. EDEMA.", "EDEMA."),
        ("Views: two. Exam: chest. Edema.", "Edema."), ("Technique:\n: x. Edema.", "Edema."),
        ("Edema.\nHistory: mass. Findings: no.", "Edema.\nFindings: no."),
    ],
)  # fmt: skip
def test_the_end_of_a_skipped_section(text, kept):
    found = without_skipped_sections(text)
    assert len(found) == len(text)
    assert found.replace(" ", "") == kept.replace(" ", "")
