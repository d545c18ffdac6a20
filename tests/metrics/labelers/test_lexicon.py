"""The tables of words, and how a text is split into their words."""

import pytest

from mrg.metrics.labelers import attributes, chexbert_phrases, cues, phrases
from mrg.metrics.labelers.layout import HARD, ITEM, SOFT
from mrg.metrics.labelers.lexicon import _phrases, _words
from mrg.metrics.labelers.rules import RulesLabeler
from tests.metrics.labelers.sentences import N, P, U, denied, labels


@pytest.fixture(scope="module")
def labeler():
    return RulesLabeler(convention="plain")


def tables(value):
    """All tables of phrases in a constant; of a state, its phrases."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, tuple):
        yield value[-1]
    elif isinstance(value, dict):
        for part in value.values():
            yield from tables(part)


@pytest.mark.parametrize("module", [phrases, cues, chexbert_phrases, attributes])
def test_every_phrase_is_written_as_the_words_of_a_text(module):
    """Else no text could contain it."""
    names = [name for name in vars(module) if name.isupper() and name not in ("SPELLINGS", "HARD", "ITEM", "SOFT")]
    found = [item for name in names for table in tables(getattr(module, name)) for item in _phrases(table)]
    assert len(found) > {chexbert_phrases: 80}.get(module, 100)
    assert [item for item in found if _words(" ".join(item)) != list(item)] == []


def test_every_spelling_is_a_word_and_read_as_its_key():
    spelled = {variant: word for word, variants in phrases.SPELLINGS.items() for variant in variants.split()}
    assert len(spelled) == sum(len(variants.split()) for variants in phrases.SPELLINGS.values()) > 190
    assert {variant: _words(variant) for variant in spelled} == {variant: [word] for variant, word in spelled.items()}
    assert all(word.isascii() and word.rstrip(".").isalnum() and word == word.lower() for word in spelled)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1.5 cm", ["1.5", "cm"]), ("a .5 cm", ["a", ".5", "cm"]), ("a.5", ["a", ".", "5"]), ("vs. b", ["vs", "b"]),
        ("avs. b", ["avs", ".", "b"]), ("a_b", ["a", "b"]), ("a...b?!", ["a", ".", "b", "?"]),
        ("a-b/c'd", list("abcd")),
        (f"a{HARD} {SOFT}\n{HARD}b", ["a", HARD, "b"]), (f"a {ITEM}  {ITEM} b", ["a", ITEM, "b"]),
        ("a; b: c, d", ["a", ";", "b", ":", "c", ",", "d"]), (f"a{SOFT}b", ["a", SOFT, "b"]), ("a%(b)", ["a", "b"]),
        ("effusions oedema", ["effusion", "edema"]), ("", []),
    ],
)  # fmt: skip
def test_words_of_a_text(text, words):
    found = ["versus" if word == "versus" else word for word in _words(text)]
    assert [word if word != "versus" else "vs" for word in found] == words


def test_signs_that_end_a_clause(labeler):
    for sign in (".", "!", "?", ";", ":", " |", " -", "\n-", "\n\n"):
        assert labels(labeler, f"No edema{sign} effusion") == {"Edema": N, "Pleural Effusion": P}, sign
    assert labels(labeler, "No edema, effusion") == denied("Edema", "Pleural Effusion")


def test_signs_between_a_name_and_what_is_said_of_it(labeler):
    for sign, answered in ((":", True), (" |", True), (" -", True), (";", False), (".", False)):
        found = labels(labeler, f"Effusion{sign} none")
        assert found == (denied("Pleural Effusion") if answered else {"Pleural Effusion": P}), sign
        found = labels(labeler, f"Heart{sign} enlarged")
        assert found == ({"Cardiomegaly": P} if answered else {"No Finding": P}), sign


def test_a_phrase_with_its_skipped_words_has_twenty_words(labeler):
    assert labels(labeler, f"Cannot {'entirely ' * 18}exclude edema.") == {"Edema": U}
    assert labels(labeler, f"Cannot {'entirely ' * 19}exclude edema.") == {"Edema": P}


STATES = [
    ("enlarged", P, P, None), ("widening", None, P, None), ("has increased", P, None, None),
    ("blunting", None, None, U), ("borderline", U, U, None), ("normal", N, N, N), ("clear", None, None, N),
    ("unchanged", None, None, None),
]  # fmt: skip


def test_every_state_of_every_structure(labeler):
    for state, heart, mediastinum, angle in STATES:
        for name, condition, label in (
            ("Heart", "Cardiomegaly", heart), ("Mediastinum", "Enlarged Cardiomediastinum", mediastinum),
            ("Costophrenic angle", "Pleural Effusion", angle),
        ):  # fmt: skip
            assert labels(labeler, f"{name} {state}.").get(condition) == label, (name, state)
    assert labels(labeler, "Pleural space clear.") == denied("Pleural Effusion")
    assert labels(RulesLabeler(), "Heart unchanged. Pleural space clear.") == {"Cardiomegaly": U}
    assert labels(RulesLabeler(), "Costophrenic angle blunting.") == {}
    assert labels(RulesLabeler(), "Engorgement is normal.").get("Edema") is None
    assert labels(labeler, "Engorgement is normal.") == denied("Edema")
