import pytest

from mrg.datamodules.iu.record import clean_target, make_record
from tests.linear import assert_linear_time


@pytest.mark.parametrize(
    ("report", "without_token", "without_sentence"),
    [
        ("Lungs clear.  No  XXXX.", "Lungs clear. No.", "Lungs clear."),
        ("The XXXX XXXX are intact. No effusion.", "The are intact. No effusion.", "No effusion."),
        ("Heart normal. XXXX. Lungs clear.", "Heart normal. Lungs clear.", "Heart normal. Lungs clear."),
        ("XXXX, the heart is large. No edema.", "the heart is large. No edema.", "No edema."),
        ("Lungs clear, XXXX.", "Lungs clear.", ""),
        ("Left XXXX-a-XXXX is seen on chest x-XXXX (XXXX), stable.", "Left is seen on chest, stable.", ""),
        ("Nodes XXXX/granulomas. The XXXX't contours.", "Nodes granulomas. The contours.", ""),
        ("Seen on XXXX/XXXX.", "Seen on.", ""),
        ("Size 1.5 cm, XXXX. Clear.", "Size 1.5 cm. Clear.", "Clear."),
        ("Left (XXXX) / right, XXXX ,, ;. and/or (a).", "Left right. and/or (a).", "and/or (a)."),
        ("Seen ,,XXXX,,a. ( XXXX", "Seen,,,,a. (", ""),
        ("Clear XXXX.Heart large.", "Clear.Heart large.", "Heart large."),
        ("Both XXXX clear.Heart large.", "Both clear.Heart large.", "Heart large."),
        (
            "1. Large heart. 2. Old XXXX. 3. No edema.",
            "1. Large heart. 2. Old. 3. No edema.",
            "1. Large heart. 3. No edema.",
        ),
        ("XXXX", "", ""),
    ],
)
def test_clean_target(report: str, without_token: str, without_sentence: str) -> None:
    assert clean_target(report) == report
    assert clean_target(report, "drop_token") == without_token
    assert clean_target(report, "drop_sentence") == without_sentence


def test_clean_target_leaves_reports_without_the_token_alone() -> None:
    report = "  Clear ..  Size .5 cm /  ( )\n1. Heart.Large "
    assert clean_target(report, "drop_token") == report
    assert clean_target(report, "drop_sentence") == report


@pytest.mark.parametrize("word", ["nan", "None", "N/A", "null", "-"])
def test_a_word_for_nothing_is_an_empty_section(word: str) -> None:
    """In the XML reports and the table alike."""
    record = make_record("CXR1", [], {"findings": word, "impression": "Clear.", "indication": word}, [])
    assert (record.findings, record.impression, record.indication) == ("", "Clear.", "")


@pytest.mark.parametrize("deidentified", ["drop_token", "drop_sentence"])
@pytest.mark.parametrize(("prefix", "suffix"), [("XXXX ", "a"), ("", "XXXX"), ("(XXXX ", ")a")])
def test_work_is_linear(deidentified: str, prefix: str, suffix: str) -> None:
    units = ("a", "XXXX", "XXXX,", "XXXX ", ", ", ",", "(", "( ", ")", " ", "/", "'", "- ", ". ", "1.", ".A", ".,a")
    for unit in units:
        assert_linear_time(lambda text: clean_target(text, deidentified), unit, prefix, suffix)  # type: ignore[arg-type]
