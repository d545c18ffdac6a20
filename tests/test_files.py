import pytest

from mrg.files import identifier, is_missing
from mrg.metrics import format_score, parse_completion

WORDS = ("nan", "None", "N/A", "null", "NaN", "-", "", " \n", " NULL ", "NA", "#N/A", "<NA>")
REPORTS = ("None.", "No.", "normal", "Nan is the patient's name.", "Nothing.", "- The lungs are clear.", "0")


@pytest.mark.parametrize("word", [*WORDS, None, float("nan")])
def test_missing(word):
    assert is_missing(word)


@pytest.mark.parametrize("text", [*REPORTS, 0, 0.0, [], False])
def test_anything_else_is_a_value(text):
    assert not is_missing(text)


@pytest.mark.parametrize("word", ["nan", "None", "-"])
def test_a_policy_that_writes_such_a_word_writes_no_report(word):
    """In the GRPO reward and in evaluation, which parse completions with this function."""
    texts = [f"<think>x</think><report>{word}</report>", f"x<report> {word}</report>", f"<report>{word}</report>"]
    assert [parse_completion(text).report for text in texts] == ["", "", ""]
    assert format_score([texts[0]]).tolist() == format_score([texts[2]], "absent").tolist() == [0.0]
    assert format_score([f"<think>{word}</think><report>Clear.</report>"]).tolist() == [1.0]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (12, "12"), (12.0, "12"), ("12", "12"), ("12.0", "12"), (" 50414267.00 ", "50414267"), (50414267.0, "50414267"),
        (1e16, "10000000000000000"), (-3.0, "-3"), ("007", "007"), ("1.5", "1.5"), (1.5, "1.5"), ("1.2.0", "1.2.0"),
        ("v1.0", "v1.0"), ("12.", "12."), ("nan", ""), (None, ""), (float("nan"), ""), ("None", ""),
    ],
)  # fmt: skip
def test_identifiers(value, expected):
    assert identifier(value) == expected
