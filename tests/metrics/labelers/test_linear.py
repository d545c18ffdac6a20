"""Work is linear in the length of a text, whatever is in it."""

import itertools

import pytest

from mrg.metrics.labelers.layout import plain, without_skipped_sections
from mrg.metrics.labelers.lexicon import _TOKEN
from mrg.metrics.labelers.rules import RulesLabeler
from tests.linear import assert_linear_time, assert_linear_work

REPEATED = [
    "\n", " ", "\n ", "\r", ".", "- ", "-\n", "a-\n", "a", "1", "1.", "<", "<br ", "<a", "* ", "# ", "(1) ", "|", "_",
    "---", "\u0301", "\ufb01", "a\u00ad\n", "edema unlikely ", "edema possible ", "no edema ", "edema, ", "edema or ",
    "heart ", "heart enlarged ", "heart stable ", "edema: no ", "Edema\n", "a mild ", "no entirely ",
    "completely ", "mediastinal and ", "lungs show ", "Heart: ", "no edema, ",
    "clinical\n", "Indication: x. ", "Findings\n", "blunting cleared ", "edema left ", "left edema ",
    "has resolved ",
]  # fmt: skip


@pytest.fixture(scope="module")
def labeler():
    return RulesLabeler(cache_size=0)


def read_in_every_way(labeler, text):
    labeler([text])
    labeler.evidence(text)
    labeler.findings(text)


@pytest.mark.parametrize("prefix", ["", "Findings:", "No "])
@pytest.mark.parametrize("unit", REPEATED)
def test_labels_evidence_and_findings(labeler, prefix, unit):
    assert_linear_work(lambda text: read_in_every_way(labeler, text), lambda n: prefix + unit * n)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("lungs ", "show "),
        ("lungs ", "heart show "),
        ("heart ", "enlarged "),
        ("edema ", "unlikely "),
        ("no edema ", "or "),
        ("edema or ", "has cleared "),
        ("a ", "mild "),
        ("left ", "edema "),
        ("no ", "completely "),
        ("heart ", "\n"),
        ("Edema\n", "resolved\n"),
    ],
)
def test_many_of_one_kind_before_many_of_another(labeler, first, second):
    """What the second kind looks back at does not grow."""
    assert_linear_work(lambda text: read_in_every_way(labeler, text), lambda n: f"{first * n}heart edema {second * n}")


EXPRESSIONS = {
    "plain": lambda text: plain(text, {"edema"}),
    "sections": without_skipped_sections,
    "tokens": _TOKEN.findall,
}


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_regular_expressions(name):
    """Every unit alone, behind a heading, and where what a long run leads to is missing."""
    units = [*REPEATED, "\x1e", "\x1f", "\x1d", "-\n ", "1)\n", "a.\n", "<br>", "vs", ". ", ": "]
    for unit, ends in itertools.product(units, [("", ""), ("Indication:\n", ":"), (".<", "x")]):
        assert_linear_time(EXPRESSIONS[name], unit, *ends)
