import numpy as np
import pytest
import torch

from mrg.metrics import RulesLabeler, ce_f1, convention
from mrg.metrics.arguments import ReportingLabeler
from mrg.metrics.constants import BestConstants
from mrg.metrics.leaderboard import NORMAL, REFERENCE, best_reference, format_leaderboard, leaderboard
from mrg.metrics.leaderboard_page import write_page
from mrg.metrics.resampling import ranks

TARGET = ["Cardiomegaly.", "Left effusion.", "Cardiomegaly and effusion.", "The lungs are clear.", "Rib fracture."] * 6
LABELER = RulesLabeler()


@pytest.fixture(scope="module")
def result():
    systems = {"copies": list(TARGET), "blind": ["Rib fracture."] * len(TARGET)}
    return leaderboard(systems, TARGET, LABELER, num_resamples=200)


def test_best_reference_is_the_best_of_all_references():
    def score(text):
        return float(ce_f1([text] * len(TARGET), TARGET, **convention("micro-13+"), labeler=LABELER))

    best = best_reference(TARGET, LABELER)
    assert score(best) == max(map(score, TARGET))
    assert best == "Cardiomegaly and effusion."  # 24 of 60 findings right, 12 missed, 36 hallucinated
    assert score(best) == pytest.approx(2 * 24 / (60 + 30))
    with pytest.raises(ValueError, match="at least one reference"):
        best_reference([], LABELER)


def test_ranking(result):
    assert list(result["ranking"]["systems"]) == ["copies", REFERENCE, "blind", NORMAL]
    assert result["ranking"]["systems"]["copies"] == {"rank": 1, "low": 1, "high": 1, "first": 1.0}
    assert result["beats"]["copies"]["beats"]
    assert not result["beats"]["blind"]["beats"]
    assert result["systems"]["copies"]["scores"]["CE-F1 micro-13+"]["value"] == 1


def test_ranks_by_hand():
    values = {"a": {"x": 0.5}, "b": {"x": 0.7}, "c": {"x": 0.5}}
    drawn = {"a": {"x": np.array([0.9, 0.1])}, "b": {"x": np.array([0.5, 0.6])}, "c": {"x": np.array([0.1, 0.1])}}
    got = ranks(values, drawn, "x")
    assert list(got) == ["b", "a", "c"]
    assert [got[name]["rank"] for name in "abc"] == [2, 1, 2]
    assert [got[name]["first"] for name in "abc"] == [0.5, 0.5, 0]
    assert (got["c"]["low"], got["c"]["high"]) == (2, 3)


def test_printed_form(result):
    text = format_leaderboard(result)
    lines = text.splitlines()
    assert "30 studies, labeler rules, ranked by CE-F1 micro-13+" in lines[0]
    assert lines[4].split()[:3] == ["copies", "1", "[1-1]"]
    assert "MCCS margin 0.5." in text
    assert "+: uncertain counts as positive" in lines[-1]
    assert any("copies" in line and line.endswith("beats it") and "not" not in line for line in lines)
    assert any("blind" in line and line.endswith("does not beat it") for line in lines)
    assert sum(line.startswith(("micro-", "macro-", "weighted-", "example-")) for line in lines) == 24


def test_page(result, tmp_path):
    result = {**result, "best_reference": "<b>&"}
    write_page(result, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;&amp;" in page
    assert "<b>" not in page
    assert page.count("<tr>") == 1 + 4 + 1 + 24
    assert page.count("<title>copies, ") == 13
    assert "MCCS margin 0.5" in page
    assert "http" not in page


def test_bad_input():
    with pytest.raises(ValueError, match="'constant normal' is the name of a baseline"):
        leaderboard({NORMAL: TARGET}, TARGET, LABELER)
    with pytest.raises(ValueError, match=r"to rank by to be one of MCCS, .*but got 'BLEU'"):
        leaderboard({"a": TARGET}, TARGET, LABELER, rank_by="BLEU")
    with pytest.raises(ValueError, match="system 'a' to have 30 reports, but got 1"):
        leaderboard({"a": ["x"]}, TARGET, LABELER)


def test_best_constants_on_training_reports_are_rows(tmp_path):
    best = BestConstants.of(TARGET[:20], LABELER)
    systems = {"copies": list(TARGET), "blind": ["Rib fracture."] * len(TARGET)}
    result = leaderboard(systems, TARGET, LABELER, num_resamples=100, best=best)
    row = torch.tensor([best.rows["CE-F1 micro-13+"]] * len(TARGET))
    value = float(ce_f1(row, LABELER(TARGET), **convention("micro-13+")))
    assert result["best_constant"]["scores"]["CE-F1 micro-13+"]["value"] == pytest.approx(value)
    assert set(result["beats"]) == {"copies", "blind"}
    assert result["beats"]["copies"]["value"] == pytest.approx(1 - value)
    text = format_leaderboard(result)
    line = next(line for line in text.splitlines() if line.startswith("best constant "))
    assert line.split()[2:4] == ["-", f"{100 * value:.1f}"]
    assert "Differences from the best constant of CE-F1 micro-13+ on 20 training reports" in text
    write_page(result, tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text(encoding="utf-8").count("<tr>") == 1 + 5 + 1 + 24


def test_progress_of_many_reports(caplog):
    caplog.set_level("INFO", logger="mrg")
    texts = [f"Effusion {i % 25}." for i in range(60)]
    labeler = ReportingLabeler(RulesLabeler(), block=10, seconds=0)
    assert labeler.name == "rules"
    assert labeler(texts).tolist() == RulesLabeler()(texts).tolist()
    assert caplog.messages == [f"Labelled {n} of 25 distinct reports." for n in (10, 20, 25)]
    caplog.clear()
    labeler(texts[:10])
    assert caplog.messages == []


def test_the_printed_leaderboard():
    def words(preds, target):
        return [float(len(pred.split())) for pred in preds]

    target = ["Cardiomegaly.", "Left effusion."]
    systems = {"copies": target, "blind": ["Rib fracture."] * 2}
    best = BestConstants.of(target, LABELER)
    result = leaderboard(systems, target, LABELER, num_resamples=4, scorers={"words": words}, best=best)
    text = """2 studies, labeler rules, ranked by CE-F1 micro-13+, in percent, with 95 % bootstrap intervals over studies.
rank: with the 95 % interval over the samples. first: share of the samples in which no other is better.

                    rank            micro-13+  macro-13+  micro-14+  micro-5+  example-14   MCCS   words  first  distinct
copies           1 [1-1]  100.0 [100.0,100.0]       15.4      100.0     100.0       100.0  100.0   1.500  100 %     100 %
"""  # noqa: E501
    assert format_leaderboard(result).startswith(text)
    lines = format_leaderboard(result).splitlines()
    assert [line.split()[:2] for line in lines[5:8]] == [["best", "reference"], ["blind", "3"], ["constant", "normal"]]
    assert lines[8].split()[-8:] == ["10.3", "66.7", "66.7", "66.7", "50.0", "-", "-", "-"]
    assert lines[9:14] == [
        "",
        "Differences from the best constant of CE-F1 micro-13+ on 2 training reports: Cardiomegaly + Pleural Effusion",
        "  copies  +33.3 [+33.3, +33.3]: beats it",
        "  blind   -66.7 [-66.7, -66.7]: does not beat it",
        "",
    ]
    assert lines[14] == "CE-F1         copies  best reference  blind  constant normal  best constant"
    assert lines[16] == "macro-13+       15.4             5.1    0.0              0.0           10.3"
    by_mccs = leaderboard(systems, target, LABELER, num_resamples=4, rank_by="MCCS")
    assert by_mccs["beats"]["copies"]["value"] == 0.5  # the best reference is right in one of two studies
    head = format_leaderboard(by_mccs).splitlines()[3].split()
    assert head == [
        "rank",
        "MCCS",
        "micro-13+",
        "macro-13+",
        "micro-14+",
        "micro-5+",
        "example-14",
        "first",
        "distinct",
    ]
    assert (by_mccs["margin"], by_mccs["min_cases"], by_mccs["against"]) == (0.5, 10, REFERENCE)


def test_the_page_of_a_leaderboard(tmp_path):
    target = ["Cardiomegaly.", "Left effusion."]
    best = BestConstants.of(target, LABELER)
    result = leaderboard({"a&b": target, "blind": ["Fracture."] * 2}, target, LABELER, num_resamples=4, best=best)
    write_page(result, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert '<tr><td>a&amp;b</td><td data-value="1">1 [1-1]</td><td data-value="1.0">100.0 [100.0, 100.0]</td>' in page
    assert '<td data-value="1.0">100 %</td><td data-value="1.0">100 %</td><td>yes</td></tr>' in page
    assert "<td>no</td></tr>" in page
    assert "<tr><td>best constant</td><td>-</td><td " in page
    assert page.count("<td>-</td><td>-</td><td>-</td></tr>") == 1
    assert '<th scope="col"><button>beats the best constant</button></th></tr></thead>' in page
    assert '<tr><td>micro-13+</td><td data-value="100.0">100.0</td>' in page
    # Four systems: a square each, then groups of 4 * 9 + 14 pixels from 4 * 18 + 18; bars of 420 at least 1 pixel wide.
    assert '<rect x="0" y="21" width="11" height="11" fill="#bf3989"/><text x="18" y="30">' in page
    assert f'<text x="0" y="{90 + 50 + 25.0}">Cardiomegaly (1)</text>' in page
    assert (
        '<rect x="230" y="140" width="420.0" height="7" fill="#0969da"><title>a&amp;b, Cardiomegaly: 100.0</title>'
        in page
    )
    assert '<rect x="230" y="149" width="' in page
    assert '<rect x="230" y="90" width="1.0" height="7" fill="#0969da">' in page
    assert f'width="670" height="{90 + 13 * 50}" font-size="13"' in page
