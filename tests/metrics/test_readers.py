import csv
import json

import numpy as np
import pytest
from scipy.stats import kendalltau

from mrg.metrics import RulesLabeler
from mrg.metrics.readers import ReadPair, correlations, kendall, main, read_pairs, reader_scores

REFERENCE = "Pulmonary edema. Left pleural effusion. No pneumothorax."
GOOD, FAIR, BAD = REFERENCE, "Pulmonary edema. No pneumothorax.", "The lungs are clear. No edema."


def write(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def rexval(tmp_path):
    """Three invented studies with three candidates, two readers and two categories, in ReXVal's layout."""
    pairs = [
        {"study_id": 50 + i, "gt_report": REFERENCE, "bleu": GOOD, "s_emb": FAIR, "radgraph": BAD} for i in range(3)
    ]
    errors = [
        {"study_number": study, "candidate_type": kind, "error_category": category, "rater_index": rater}
        | {"num_errors": most if category == 1 else 1, "clinically_significant": category == 1}
        for study in range(3)
        for kind, most in (("bleu", 0), ("s_emb", 1 + study), ("radgraph", 4))
        for rater in (0, 1)
        for category in (1, 2)
    ]
    return write(tmp_path / "pairs.csv", pairs), write(tmp_path / "errors.csv", errors)


def test_kendall_is_that_of_scipy():
    rng = np.random.default_rng(0)
    scores, errors = rng.integers(0, 5, 40).astype(float), rng.integers(0, 4, 40).astype(float)
    weights = rng.integers(0, 3, (2, 40))
    own = kendall(scores, errors, np.concatenate([np.ones((1, 40)), weights]))
    assert own[0] == pytest.approx(kendalltau(scores, -errors).statistic)
    for value, row in zip(own[1:], weights, strict=True):  # a weight is a number of copies
        index = np.arange(40).repeat(row)
        assert value == pytest.approx(kendalltau(scores[index], -errors[index]).statistic)
    assert np.isnan(kendall(np.ones(3), np.arange(3.0), np.ones((1, 3)))[0])


def test_the_layout_of_rexval(rexval):
    pairs = read_pairs(*rexval, "num_errors")
    assert len(pairs) == 9
    assert [pair.errors for pair in pairs if pair.candidate == FAIR] == [2, 3, 4]
    assert {pair.errors for pair in read_pairs(*rexval, "num_errors", True) if pair.candidate == GOOD} == {0}


def test_the_command_prints_every_score(rexval, tmp_path, capsys):
    main([str(rexval[0]), "--errors", str(rexval[1]), "--output", str(tmp_path / "out.json")])
    printed = capsys.readouterr().out
    assert "9 reports of 3 studies." in printed
    for name in ("MCCS", "CE-F1 example-13+", "BLEU-4", "ROUGE-L"):
        line = next(line for line in printed.splitlines() if line.startswith(name))
        assert float(line.removeprefix(name).split()[0]) > 0.8
    assert (tmp_path / "out.json").is_file()


def test_scores_of_reports_have_the_margin_of_the_command():
    """One of three findings is missed, cosine 2 / 6 ** 0.5."""
    pair = ReadPair("1", FAIR, REFERENCE, 1.0)
    for margin in (0.0, 0.25):
        expected = (2 / 6**0.5 - margin) / (1 - margin)
        assert reader_scores([pair], RulesLabeler(), margin)["MCCS"].tolist() == pytest.approx([expected])


def test_one_row_per_report(tmp_path):
    rows = [{"id": i // 2, "reference": REFERENCE, "candidate": FAIR, "total": i} for i in range(4)]
    pairs = read_pairs(write(tmp_path / "wide.csv", rows), None, "total")
    assert pairs[3] == ReadPair("1", FAIR, REFERENCE, 3.0)


def test_intervals_resample_studies():
    """Reports of one study move together: with two studies, half of the samples have only one of them."""
    pairs = [ReadPair(name, "", "", errors) for name, errors in (("a", 0), ("a", 1), ("b", 2), ("b", 3))]
    result = correlations(pairs, {"with": np.array([3.0, 2, 1, 0]), "against": np.arange(4.0)})
    assert list(result) == ["with", "against"]
    assert result["with"] == {"value": 1, "low": 1, "high": 1}
    assert result["against"]["value"] == -1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"reference": "a", "candidate": "b", "num_errors": "many"}], "row 1: expected num_errors to be a number of"),
        (
            [{"reference": "a", "candidate": "b", "errors": 1}],
            "a column num_errors (errors): name it with --column",
        ),
        ([{"report": "a", "num_errors": 1}], "to have a column gt_report or reference or target or ground_truth"),
        ([{"reference": "a", "candidate": "b", "num_errors": 1}], "at least 2 studies for a correlation, but got 1"),
    ],
)
def test_files_that_do_not_fit(tmp_path, capsys, rows, message):
    with pytest.raises(SystemExit) as stop:
        main([str(write(tmp_path / "pairs.csv", rows))])
    error = capsys.readouterr().err
    assert (stop.value.code, message in error, error.count("\n")) == (2, True, 1), error


def test_files_of_readers_that_do_not_fit(tmp_path, rexval):
    pairs, errors = rexval
    rows = [{"reference": REFERENCE, "candidate": FAIR, "num_errors": i} for i in (0, 2)]
    plain = write(tmp_path / "plain.csv", rows)
    assert read_pairs(plain, None, "num_errors") == [ReadPair(str(i), FAIR, REFERENCE, 2 * i) for i in (0, 1)]
    with pytest.raises(ValueError, match="--significant needs --errors"):
        read_pairs(plain, None, "num_errors", True)
    with pytest.raises(ValueError, match=r"counts errors of bleu, s_emb, radgraph, but .*plain\.csv has no such"):
        read_pairs(plain, errors, "num_errors")
    counted = {"candidate_type": "bleu", "rater_index": 0, "num_errors": 1}
    more = write(tmp_path / "more.csv", [{"study_id": i, **counted} for i in (50, 51, 99)])
    with pytest.raises(ValueError, match=r"counts errors of 3 reports, but .*pairs.csv has only 0 of them"):
        read_pairs(pairs, more, "num_errors")
    some = write(tmp_path / "some.csv", [{"study_id": i, **counted} for i in (50, 52)])
    assert [(pair.study, pair.errors) for pair in read_pairs(pairs, some, "num_errors")] == [("50", 1), ("52", 1)]
    unnamed = write(tmp_path / "unnamed.csv", [counted, counted, counted])
    assert [pair.study for pair in read_pairs(pairs, unnamed, "num_errors")] == ["0", "1", "2"]
    with pytest.raises(ValueError, match=r"to have a column clinically_significant \(errors\)"):
        read_pairs(pairs, some, "num_errors", True)
    for words in ("True", "1", "1.0", "yes", "no"):
        kind = write(tmp_path / "kind.csv", [{"study_id": 50, **counted, "clinically_significant": words}])
        assert read_pairs(pairs, kind, "num_errors", True)[0].errors == (words != "no")
    for number in ("-1", "inf", "nan", ""):
        bad = write(tmp_path / "bad.csv", [{**rows[0], "num_errors": 0}, {**rows[0], "num_errors": number}])
        with pytest.raises(ValueError, match=f"row 2: expected num_errors to be a number of errors, got '{number}'"):
            read_pairs(bad, None, "num_errors")


def test_names_of_columns_of_readers(tmp_path):
    for reference in ("gt_report", "reference", "target", "ground_truth"):
        for candidate in ("candidate", "prediction", "generated"):
            for study in ("study_number", "study_id", "id", "study"):
                row = {study: "s", reference: REFERENCE, candidate: FAIR, "num_errors": 1}
                found = read_pairs(write(tmp_path / "p.csv", [row]), None, "num_errors")
                assert found == [ReadPair("s", FAIR, REFERENCE, 1)]


def test_what_the_readers_command_prints(tmp_path, capsys):
    """Tau of words is -1: the better report is the shorter one; equal scores have none, and come last."""
    rows = [
        {"id": i, "reference": "No edema.", "prediction": text, "total": errors}
        for i in range(3)
        for text, errors in (("No edema.", 0), ("Edema. Fracture of a rib.", 2))
    ]
    path = str(write(tmp_path / "p.csv", rows))
    scorers = ["--scorer", "tests.metrics.test_scorer:length", "--scorer", "tests.metrics.test_readers:one"]
    main([path, "--column", "total", *scorers, "--output", str(tmp_path / "o.json"), "--margin", "0.25"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "6 reports of 3 studies. Kendall's tau-b, 95 % bootstrap intervals over studies."
    assert lines[1] == "MCCS                      1.000  [+1.000, +1.000]"
    assert lines[-2] == "tests.metrics.test_scorer:length -1.000  [-1.000, -1.000]"
    assert lines[-1].split() == ["tests.metrics.test_readers:one", "nan", "[+nan,", "+nan]"]
    saved = json.loads((tmp_path / "o.json").read_text())
    assert (saved["num_reports"], saved["margin"]) == (6, 0.25)
    assert saved["correlations"]["MCCS"] == {"value": 1, "low": 1, "high": 1}


def one(preds, target):
    return [1.0] * len(preds)


DOWNWARD = """
def missing(preds, target):
    return [len(set(t.split()) - set(p.split())) for p, t in zip(preds, target)]

missing.higher_is_better = False
"""


def test_a_scorer_of_which_lower_is_better(rexval, tmp_path, monkeypatch, capsys):
    """Words of the reference that a report lacks agree with the errors as well as any score that rises."""
    (tmp_path / "downward_scores.py").write_text(DOWNWARD)
    monkeypatch.syspath_prepend(tmp_path)
    output = tmp_path / "out.json"
    main([str(rexval[0]), "--errors", str(rexval[1]), "--scorer", "downward_scores:missing", "--output", str(output)])
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("downward_scores:missing"))
    assert line.startswith("downward_scores:missing (lower is better) ")
    assert float(line.split()[4]) > 0.8
    result = json.loads(output.read_text())
    assert result["lower_is_better"] == ["downward_scores:missing"]
    assert result["correlations"]["downward_scores:missing"]["value"] > 0.8
