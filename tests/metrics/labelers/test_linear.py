"""Work is linear in the length of a text, whatever is in it."""

import time

import pytest

from mrg.metrics.format import parse_completion
from mrg.metrics.labelers.rules import RulesLabeler

REPEATED = [
    "\n", " ", "\n ", "\r", ".", "- ", "-\n", "a-\n", "a", "1", "1.", "<", "<br ", "<a", "* ", "# ", "(1) ", "|", "_",
    "---", "\u0301", "\ufb01", "a\u00ad\n", "edema unlikely ", "edema possible ", "no edema ", "edema, ", "edema or ",
    "heart ", "heart enlarged ", "heart stable ", "edema: no ", "Edema\n", "a mild ", "no entirely ",
    "mediastinal and ",
    "clinical\n", "Indication: x. ", "Findings\n", "blunting cleared ", "edema left ", "left edema ",
    "has resolved ",
]  # fmt: skip


@pytest.fixture(scope="module")
def labeler():
    return RulesLabeler(cache_size=0)


@pytest.mark.parametrize("prefix", ["", "Findings:", "No "])
@pytest.mark.parametrize("unit", REPEATED)
def test_long_texts_are_labelled(labeler, prefix, unit):
    """100 kB; the limit is far above what linear work takes, and far below what quadratic work would."""
    text = prefix + unit * (100_000 // len(unit))
    start = time.process_time()
    labeler([text])
    labeler.evidence(text)
    labeler.findings(text)
    assert time.process_time() - start < 10


@pytest.mark.parametrize(
    "unit",
    [
        "<think>",
        "</think><report>",
        "<report>",
        "<think></think><report></report>",
        "</report> ",
        "<report>a</report>",
        " ",
    ],
)
@pytest.mark.parametrize("prefix", ["", "<report>", "<think>a</think>", "<think>a</think><report>a</report>"])
def test_long_completions_are_parsed(unit, prefix):
    text = prefix + unit * (1_000_000 // len(unit))
    start = time.process_time()
    for think in ("required", "absent"):
        parse_completion(text, think)
    assert time.process_time() - start < 10


@pytest.mark.parametrize("unit", ["edema unlikely ", "Edema\n", "no edema, ", "heart enlarged "])
def test_twice_the_text_takes_twice_the_work(labeler, monkeypatch, unit):
    """Mentions that are looked at again, as the reader counts them."""
    from mrg.metrics.labelers.lexicon import Mention

    looks = 0

    class Counted(Mention):
        def __getattribute__(self, name):
            nonlocal looks
            looks += 1
            return super().__getattribute__(name)

    monkeypatch.setattr("mrg.metrics.labelers.scopes.Mention", Counted)
    counts = []
    for size in (2000, 4000):
        looks = 0
        labeler([unit * size])
        counts.append(looks)
    assert counts[1] < 2.2 * counts[0]
