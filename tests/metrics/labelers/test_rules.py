import random

import pytest
import torch

from mrg.metrics.conditions import BLANK
from mrg.metrics.labelers import phrases
from mrg.metrics.labelers.layout import without_skipped_sections
from mrg.metrics.labelers.rules import RulesLabeler
from mrg.metrics.labels import Labeler
from tests.metrics.labelers.sentences import CASES, CHEXBERT, FORMS, SENTENCES_OF_REPORTS, N, P, U, labels


@pytest.fixture(scope="module")
def labeler():
    return RulesLabeler(convention="plain")


@pytest.mark.parametrize(("text", "expected"), [*CASES, *FORMS], ids=[repr(text) for text, _ in [*CASES, *FORMS]])
def test_sentences(labeler, text, expected):
    assert labels(labeler, text) == expected


@pytest.mark.parametrize(("text", "expected"), [*SENTENCES_OF_REPORTS, *CHEXBERT, *FORMS])
def test_sentences_as_chexbert_reads_them(text, expected):
    assert labels(RulesLabeler(convention="chexbert"), text) == expected


def test_conventions():
    assert RulesLabeler().convention == "chexbert"
    assert RulesLabeler().name == "rules"
    assert RulesLabeler(convention="plain").name == "rules-plain"
    with pytest.raises(ValueError, match="`convention` to be 'chexbert' or 'plain', but got 'chexpert'"):
        RulesLabeler(convention="chexpert")


@pytest.mark.parametrize(("word", "variants"), phrases.SPELLINGS.items())
def test_spellings_are_read_like_the_word_they_stand_for(labeler, word, variants):
    for variant in variants.split():
        for sentence in ("{} in the left lung.", "No {} in the left lung.", "Possible {}, enlarged heart."):
            assert labels(labeler, sentence.format(variant)) == labels(labeler, sentence.format(word)), variant


def findings(table, label):
    for condition, text in table.items():
        for phrase in text.replace("\n", ",").split(","):
            if phrase.strip():
                yield condition, " ".join(phrase.split()), label


@pytest.mark.parametrize(
    ("condition", "phrase", "label"),
    [*findings(phrases.FINDINGS, P), *findings(phrases.UNCERTAIN_FINDINGS, U)],
)
def test_every_phrase_of_the_table_is_read(labeler, condition, phrase, label):
    """Asserted, denied, doubted and written in capitals, whatever else the phrase may mean."""
    for text, expected in (
        (f"{phrase}.", label),
        (f"There is {phrase} today.", label),
        # "No increase" is no denial, see `phrases.NOTHING`.
        (f"NO {phrase.upper()}.", None if phrase.startswith("increase in") else N),
        (f"Possible {phrase}.", U),
    ):
        assert labels(labeler, text).get(condition) == expected, text


def test_case_and_white_space_do_not_matter(labeler):
    for text, expected in CASES:
        variants = [text.upper(), text.lower(), f"  {text} ", text.replace(" ", "  "), text.replace(" ", "\t")]
        if ":" not in text:
            variants.append(text.replace(" ", "\n"))
        for variant in variants:
            assert labels(labeler, variant) == expected, variant


def test_sentences_are_read_one_by_one(labeler):
    """The labels of "A. B." are those of A and of B, the stronger where both speak of a condition."""
    texts = [text for text, _ in CASES if text.endswith(".") and ":" not in text and "\n" not in text]
    rng = random.Random(0)
    for _ in range(2000):
        first, second = rng.choices(texts, k=2)
        alone = labeler([first, second])[:, :13].tolist()
        expected = [max(pair, key=(BLANK, N, U, P).index) for pair in zip(*alone, strict=True)]
        assert labeler([f"{first} {second}"])[0, :13].tolist() == expected, (first, second)


def test_skipped_sections_keep_every_place():
    text = "Indication: edema. Findings: No effusion."
    assert without_skipped_sections(text) == " " * len("Indication: edema.") + " Findings: No effusion."
    assert without_skipped_sections("Findings: No effusion.") == "Findings: No effusion."


def test_form(labeler):
    assert isinstance(labeler, Labeler)
    for texts in ([], [""], ("Effusion.", "No effusion.", "")):
        rows = labeler(texts)
        assert rows.dtype == torch.int64
        assert rows.shape == (len(texts), 14)
    first = labeler(["Effusion."])
    first[:] = 9  # the caller's own: must not reach the cache
    assert labels(labeler, "Effusion.") == {"Pleural Effusion": P}


@pytest.mark.parametrize("cache_size", [0, 1, 7, 65_536])
def test_rows_depend_on_the_text_alone(labeler, cache_size):
    texts = [text for text, _ in CASES]
    alone = {text: labeler([text])[0] for text in texts}
    labeler = RulesLabeler(cache_size, convention="plain")
    drawn = random.Random(cache_size).choices(texts, k=400)
    for size in (1, 5, 394):
        batch, drawn = drawn[:size], drawn[size:]
        assert torch.equal(labeler(batch), torch.stack([alone[text] for text in batch]))
        assert len(labeler._cache) <= cache_size


def test_the_least_recently_used_text_is_forgotten():
    labeler = RulesLabeler(cache_size=2)
    for text in ("Edema.", "Effusion.", "Edema.", "Pneumonia."):
        labeler([text])
    assert set(labeler._cache) == {"Edema.", "Pneumonia."}


def test_bad_input(labeler):
    with pytest.raises(TypeError, match="got one string: put it in a list"):
        labeler("No effusion.")
    for texts, message in (([None], r"texts\[0\].*NoneType"), (["Edema.", "", 3], r"texts\[2\].*int")):
        with pytest.raises(TypeError, match=message):
            labeler(texts)
    with pytest.raises(TypeError, match="list"):
        labeler.evidence(["Edema."])
    with pytest.raises(ValueError, match="at least 0, but got -1"):
        RulesLabeler(cache_size=-1)
