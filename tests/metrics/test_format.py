import pytest
import torch

from mrg.metrics import format_score, parse_completion
from tests.linear import assert_linear_time

WELL_FORMED = [
    "<think>a</think><report>b</report>",
    " \n<think> a </think>\n\n<report>\tb\n</report>\n",
]
# Completion, and the report in it: given only where there is exactly one closed report section.
ILL_FORMED = [
    ("", ""),
    (" \n", ""),
    ("b", ""),
    ("<report>b</report>", "b"),
    ("<think>a</think>", ""),
    ("<think>a</think>b", ""),
    ("<think></think><report>b</report>", "b"),
    ("<think> \n</think><report>b</report>", "b"),
    ("<think>a</think><report></report>", ""),
    ("<think>a</think><report> \n</report>", ""),
    ("x<think>a</think><report>b</report>", "b"),
    ("<think>a</think>x<report>b</report>", "b"),
    ("<think>a</think><report>b</report>x", "b"),
    ("<report>b</report><think>a</think>", "b"),
    ("<think>a<report>b</report></think>", "b"),
    ("<think>a</think><think>c</think><report>b</report>", "b"),
    ("<think>a<think>c</think><report>b</report>", "b"),
    ("<think>a</think></think><report>b</report>", "b"),
    ("<think>a</think><report>b</report></report>", ""),
    ("<think>a</think><report>b</report><report>c</report>", ""),
    ("<think>a</think><report>b</report><report>b</report>", ""),
    ("<think>a</think><report>b", ""),
    ("<think>a</think>b</report>", ""),
    ("<think>a<report>b</report>", "b"),
    ("a</think><report>b</report>", "b"),
    ("<THINK>a</THINK><REPORT>b</REPORT>", ""),
    ("< think>a</think>< report>b</report>", ""),
]


@pytest.mark.parametrize("text", WELL_FORMED)
def test_well_formed(text):
    assert parse_completion(text) == ("a", "b", True)
    assert not parse_completion(text, think="absent").well_formed


@pytest.mark.parametrize(("text", "report"), ILL_FORMED)
def test_ill_formed(text, report):
    parsed = parse_completion(text)
    assert (parsed.report, parsed.well_formed) == (report, False)


@pytest.mark.parametrize(
    ("text", "report", "well_formed"),
    [
        ("<report>b</report>", "b", True),
        (" \n<report> b </report>\n", "b", True),
        ("<report> </report>", "", False),
        ("x<report>b</report>", "b", False),
        ("<report>b</report></think>", "b", False),
        ("<report>b</report><report>c</report>", "", False),
        ("<think></think><report>b</report>", "b", False),
        ("b", "", False),
    ],
)
def test_report_alone(text, report, well_formed):
    assert parse_completion(text, think="absent") == ("", report, well_formed)


def test_parts_keep_their_lines_and_other_tags():
    text = "<think>1 < 2\n<b>a</b></think>\n<report>Line one.\nLine <i>two</i>.</report>"
    assert parse_completion(text) == ("1 < 2\n<b>a</b>", "Line one.\nLine <i>two</i>.", True)


def test_score():
    texts = [*WELL_FORMED, *(text for text, _ in ILL_FORMED)]
    score = format_score(texts)
    assert score.dtype == torch.float64
    assert score.tolist() == [1.0] * len(WELL_FORMED) + [0.0] * len(ILL_FORMED)
    assert format_score(["<report>b</report>", WELL_FORMED[0]], think="absent").tolist() == [1.0, 0.0]
    assert format_score([]).shape == (0,)


def test_bad_input():
    with pytest.raises(ValueError, match="'required' or 'absent', but got 'optional'"):
        parse_completion("", think="optional")


@pytest.mark.parametrize("think", ["required", "absent"])
@pytest.mark.parametrize(
    ("prefix", "suffix"),
    [
        ("", ""),
        ("<report>", ""),
        ("", "x<report>a</report>"),
        ("<think>a</think>", "x<report>a</report>"),
        ("<think>a</think><report>a</report>", "x"),
    ],
)
def test_work_is_linear(think, prefix, suffix):
    for unit in (" ", "\n", "a ", "<think>", "<report>", "</report> ", "</think><report>", "<report>a</report>"):
        assert_linear_time(lambda text: parse_completion(text, think), unit, prefix, suffix)


@pytest.mark.parametrize("think", ["required", "absent"])
def test_a_report_has_no_tags(think):
    assert parse_completion("<report><think>A</think>Edema.</report>", think) == ("", "A Edema.", False)
    assert parse_completion("<report><think></think></report>", think) == ("", "", False)


def test_tags_in_the_wrong_order_have_no_report():
    assert parse_completion("</report>b<report>") == ("", "", False)
    assert parse_completion("<report>nan</report>", "absent") == ("", "", False)
