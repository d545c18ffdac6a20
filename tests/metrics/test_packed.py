import random

import pytest

from mrg.metrics import packed
from mrg.metrics.packed import PackedTexts, distinct, pick

TEXTS = [f"Report {number % 7}: é \x00 \ud800.\n" for number in range(31)]


@pytest.mark.parametrize("block", [1, 3, 4, 31, 4096])
def test_packed_texts_are_a_list(monkeypatch, block):
    monkeypatch.setattr(packed, "_BLOCK", block)
    texts = PackedTexts(TEXTS)
    assert (len(texts), list(texts), texts[:]) == (31, TEXTS, TEXTS)
    assert [texts[i] for i in (30, -31, 7, 6, 29)] == [TEXTS[i] for i in (30, -31, 7, 6, 29)]
    assert texts[28:2:-5] == TEXTS[28:2:-5]
    assert list(zip(texts, reversed(texts), strict=True)) == list(zip(TEXTS, reversed(TEXTS), strict=True))
    for index in (31, -32):
        with pytest.raises(IndexError):
            texts[index]
    assert not PackedTexts()
    assert texts.plain() == TEXTS if block > 3 else texts.plain() is texts


def test_reports_take_less_than_a_third_of_their_length():
    words = [
        "effusion",
        "opacity",
        "atelectasis",
        "lungs",
        "no",
        "mild",
        "left",
        "unchanged",
        "pleural",
        "are",
        "clear",
    ]
    draw = random.Random(0)
    reports = [" ".join(draw.choices(words, k=40)) for _ in range(4096)]
    (block,) = PackedTexts(reports)._blocks
    assert len(block) < sum(map(len, reports)) / 3


@pytest.mark.parametrize("seed", range(3))
def test_distinct_texts_in_the_order_in_which_they_occur(seed):
    draw = random.Random(seed)
    sides = [[str(draw.randrange(20)) for _ in range(length)] for length in (15, 0, 40, 1)]
    new, rows = distinct(*sides)
    expected = list(dict.fromkeys(text for side in sides for text in side))
    assert [text for side, own in zip(sides, new, strict=True) for text in pick(side, own)] == expected
    assert [[expected[i] for i in row] for row in rows] == sides


def test_no_text_is_distinct_in_nothing():
    new, rows = distinct([])
    assert [len(new[0]), len(rows[0]), list(pick([], new[0]))] == [0, 0, []]
