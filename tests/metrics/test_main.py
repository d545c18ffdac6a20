"""`python -m mrg.metrics`."""

import json
import subprocess
import sys

import pytest
import torch

from mrg.metrics import CONDITIONS
from mrg.metrics.__main__ import main
from mrg.metrics.labels import Labeler
from tests.metrics.test_predictions import write

TARGET = ["Cardiomegaly. No edema.", "Edema. Left effusion.", "The lungs are clear.", "The lungs are clear."]
PREDS = ["Cardiomegaly.", "Edema.", "The lungs are clear.", "Small effusion."]


def rows(preds):
    return [{"id": f"s{i}", "prediction": p, "target": t} for i, (p, t) in enumerate(zip(preds, TARGET, strict=True))]


@pytest.fixture
def predictions(tmp_path):
    return write(tmp_path / "predictions.jsonl", rows(PREDS))


def fails(capsys, *args):
    with pytest.raises(SystemExit) as error:
        main([str(a) for a in args])
    assert error.value.code == 2
    text = capsys.readouterr().err
    assert text.startswith("mrg.metrics: ")
    assert text.count("\n") == 1
    return text


def test_table_and_json(predictions, capsys):
    main([str(predictions)])
    text = capsys.readouterr().out
    result = json.loads(predictions.with_name("predictions.jsonl.scores.json").read_text())
    assert list(result["systems"]) == ["constant normal", "most frequent reference", "predictions"]
    scores = result["systems"]["predictions"]["scores"]
    # 2 correct, 1 hallucinated, 1 missed.
    assert scores["CE-F1 micro-13+"]["value"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert scores["CE-F1 micro-13+"]["low"] < scores["CE-F1 micro-13+"]["value"] < scores["CE-F1 micro-13+"]["high"]
    assert result["systems"]["constant normal"]["scores"]["CE-F1 micro-13+"]["value"] == 0
    line = next(line for line in text.splitlines() if line.startswith("micro-13+"))
    assert line.split()[1:4] == ["66.7", "66.7", "66.7"]
    assert line.split()[-2:] == ["0.0", "0.0"]
    condition = next(line for line in text.splitlines() if line.startswith("Pleural Effusion"))
    # Informedness: no case is found, and 1 of 3 others is stated.
    assert condition.split()[2:] == ["0.0", "0.0", "0.0", "-33.3", "1", "1"]
    assert "Without training reports (--train FILE), the best constant report of each score is not known." in text
    assert "predictions.jsonl.scores.json" in text
    assert "Reports: 'prediction'; references: 'target'; ids: 'id'." in text
    assert "4 studies are few" in text
    assert "occurs more than once" not in text


def test_the_order_of_a_file_decides_no_baseline(tmp_path, capsys):
    given = [{"id": i, "prediction": p, "target": t} for i, (p, t) in enumerate(zip(PREDS, TARGET[:3], strict=False))]
    scores = []
    for order in (1, -1):
        file = write(tmp_path / f"p{order}.jsonl", given[::order])
        main([str(file)])
        result = json.loads(file.with_name(f"{file.name}.scores.json").read_text())
        scores.append(result["systems"]["most frequent reference"]["scores"]["CE-F1 micro-13+"]["value"])
        assert "No reference occurs more than once: the row 'most frequent reference'" in capsys.readouterr().out
    assert scores[0] == scores[1]


def test_training_reports(predictions, tmp_path, capsys):
    train = write(tmp_path / "train.csv", [{"id": i, "report": t} for i, t in enumerate([*TARGET, ""])])
    annotation = tmp_path / "annotation.json"
    splits = {"train": [{"id": "1", "report": t} for t in TARGET], "test": [{"id": "2", "report": "Edema."}]}
    annotation.write_text(json.dumps(splits))
    for file in (train, annotation):
        main([str(predictions), "--train", str(file), "--min_cases", "2"])
        text = capsys.readouterr().out
        best = json.loads(predictions.with_name("predictions.jsonl.scores.json").read_text())["best_constant"]
        assert best["reports"] == {"MCCS": "The lungs are clear."}
        assert best["num_reports"] == 4
        assert "predictions - best constant, MCCS: " in text
        assert "Without training reports" not in text
    line = next(line for line in text.splitlines() if line.startswith("micro-13+"))
    assert line.split()[-1] == "40.0"  # all three conditions in each report: 2 * 3 / (3 * 4 + 3)
    assert "informedness is undefined: no condition has at least 2 cases" in text
    assert "holds no reports in its column 'report'" in fails(
        capsys, predictions, "--train", write(tmp_path / "none.json", [{"report": " "}])
    )
    listed = write(tmp_path / "listed.json", [{"report": "Edema."}, {"report": ["Edema."]}, {"report": None}])
    message = "listed.json: 'report' is not a text in 1 of 3 rows: 2."
    assert message in fails(capsys, predictions, "--train", listed)
    other = predictions.with_name("other.jsonl")
    assert "--train is for scoring one file" in fails(capsys, predictions, "--train", train, "--compare", other)
    assert "Expected --compare to be another file than" in fails(capsys, predictions, "--compare", predictions)
    assert "--min_cases to be at least 1" in fails(capsys, predictions, "--min_cases", "0")


def test_compare(predictions, tmp_path, capsys):
    other = write(tmp_path / "other.csv", rows(TARGET)[::-1])
    output = tmp_path / "out.json"
    main([str(predictions), "--compare", str(other), "--trials", "200", "--output", str(output)])
    text = capsys.readouterr().out
    assert "A: predictions.jsonl\nB: other.csv\n4 studies" in text
    result = json.loads(output.read_text())
    assert result["scores"]["CE-F1 micro-13+"]["difference"] == pytest.approx(2 / 3 - 1)
    assert {row["id"]: row["worse"] for row in result["changed"]} == {
        "s1": ["Pleural Effusion"],
        "s3": ["Pleural Effusion"],
    }


def test_compare_counts_the_conditions_with_enough_cases(predictions, tmp_path, capsys):
    other = write(tmp_path / "other.csv", rows(TARGET))
    output = tmp_path / "out.json"
    words = [str(predictions), "--compare", str(other), "--trials", "5", "--output", str(output), "--min_cases"]
    for min_cases, has_informedness in (("10", False), ("1", True)):
        main([*words, min_cases])
        result = json.loads(output.read_text())
        assert result["min_cases"] == int(min_cases)
        assert ("informedness" in result["scores"]) == has_informedness


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--bertscore", "encoder"], "--bertscore is for --scores: add bertscore or radcliq"),
        (["--judge", "http://localhost:1", "m", "--scores", "ce"], "--judge is for --scores: add judge"),
        (["--normalization", "r2gen-iu"], "--normalization requires --nlg"),
    ],
)
def test_an_option_that_would_be_ignored_is_an_error(predictions, capsys, words, message):
    assert message in fails(capsys, predictions, *words)


def test_mistakes_are_one_line(predictions, tmp_path, capsys):
    assert "There is no file" in fails(capsys, tmp_path / "none.jsonl")
    few = write(tmp_path / "few.jsonl", rows(PREDS)[:2])
    assert "2 only in predictions.jsonl (s2, s3)" in fails(capsys, predictions, "--compare", few)
    nameless = write(tmp_path / "nameless.jsonl", [{k: r[k] for k in ("prediction", "target")} for r in rows(PREDS)])
    assert "nameless.jsonl has no column of ids" in fails(capsys, predictions, "--compare", nameless)
    assert "cannot be written" in fails(capsys, predictions, "--output", tmp_path / "none" / "x.json")
    assert "cannot be written" in fails(capsys, predictions, "--output", tmp_path)
    before = predictions.read_text()
    assert "is a file of predictions" in fails(capsys, predictions, "--output", predictions)
    assert predictions.read_text() == before
    assert "--seed to be at least 0, but got -1" in fails(capsys, predictions, "--seed", "-1")
    assert "--nlg scores one file" in fails(capsys, predictions, "--nlg", "--compare", few)
    assert "--tokenizer requires --chexbert" in fails(capsys, predictions, "--tokenizer", "x")
    spec = "tests.metrics.test_main:fails_always"
    assert f"The scorer {spec} failed: KeyError: 'boom' ({__file__}, line " in fails(
        capsys, predictions, "--scorer", spec
    )
    with pytest.raises(SystemExit):
        main([str(predictions), "--normalization", "r2"])
    assert "'r2' (choose from " in capsys.readouterr().err
    assert "margin" in fails(capsys, predictions, "--margin", "1")
    assert "--trials" in fails(capsys, predictions, "--trials", "0")
    assert "no column for the generated report" in fails(capsys, predictions, "--preds", "text")
    assert not list(tmp_path.glob("*.scores.json"))


def test_each_of_two_files_has_its_own_columns(predictions, tmp_path, capsys):
    """A given column need be in one file only: the other one falls back on the usual names."""
    renamed = [{"id": r["id"], "hyp": r["target"], "gt": r["target"], "prediction": "Edema."} for r in rows(PREDS)]
    other = write(tmp_path / "other.json", renamed)
    given = ["--preds", "hyp", "--target", "gt", "--trials", "20"]
    results = []
    for files in ((predictions, other), (other, predictions)):
        output = tmp_path / "out.json"
        main([str(files[0]), "--compare", str(files[1]), "--output", str(output), *given])
        results.append(json.loads(output.read_text())["scores"]["CE-F1 micro-13+"])
    usual, own = (
        "Reports: 'prediction'; references: 'target'; ids: 'id'.",
        "Reports: 'hyp'; references: 'gt'; ids: 'id'.",
    )
    text = capsys.readouterr().out
    assert f"predictions.jsonl: {usual}\nother.json: {own}" in text
    assert f"other.json: {own}\npredictions.jsonl: {usual}" in text
    assert [(r["value"], r["other"]) for r in results] == [(pytest.approx(2 / 3), 1.0), (1.0, pytest.approx(2 / 3))]


def test_two_files_with_unusual_columns(predictions, tmp_path):
    first = write(
        tmp_path / "a.csv", [{"id": r["id"], "mine": r["prediction"], "gt": r["target"]} for r in rows(PREDS)]
    )
    second = write(tmp_path / "b.csv", [{"id": r["id"], "hyp": r["target"], "gt": r["target"]} for r in rows(PREDS)])
    output = tmp_path / "out.json"
    main([str(first), "--compare", str(second), "--preds", "mine", "--preds", "hyp", "--target", "gt", "--trials", "9",
          "--output", str(output)])  # fmt: skip
    result = json.loads(output.read_text())
    assert (result["a_columns"]["preds"], result["b_columns"]["preds"]) == ("mine", "hyp")
    assert result["scores"]["MCCS"]["other"] == 1


def test_a_column_that_no_file_has_is_refused(predictions, tmp_path, capsys):
    other = write(tmp_path / "other.csv", rows(TARGET))
    assert "no column for the generated report (looked for 'hpy')" in fails(
        capsys, predictions, "--compare", other, "--preds", "hpy"
    )
    assert "(looked for 'hpy')" in fails(capsys, predictions, "--preds", "prediction", "--preds", "hpy")


class Shouting(Labeler):
    """Everything in capitals is an edema."""

    name = "shouting"

    def __call__(self, texts):
        labels = torch.zeros(len(texts), 14, dtype=torch.int64)
        labels[:, CONDITIONS.index("Edema")] = torch.tensor([int(text.isupper()) for text in texts])
        return labels


def shouting(texts):
    """The same as a function."""
    return Shouting()(texts)


def fails_to_label(texts):
    raise KeyError("boom")


def labels_in_fives(texts):
    return torch.full((len(texts), 14), 5)


@pytest.mark.parametrize("name", ["tests.metrics.test_main.Shouting", "tests.metrics.test_main:shouting"])
def test_a_labeler_of_ones_own(tmp_path, capsys, name):
    given = [
        {"id": i, "prediction": p, "target": t} for i, (p, t) in enumerate([("A.", "B."), ("a.", "B."), ("a.", "b.")])
    ]
    file = write(tmp_path / "p.jsonl", given)
    main([str(file), "--labeler", name])
    result = json.loads((tmp_path / "p.jsonl.scores.json").read_text())
    assert result["labeler"] == "shouting"
    assert result["systems"]["p"]["scores"]["CE-F1 micro-13+"]["value"] == pytest.approx(2 / 3)  # 1 right, 1 missed
    assert "labeler shouting" in capsys.readouterr().out
    main([str(file), "--compare", str(write(tmp_path / "q.jsonl", given)), "--labeler", name, "--trials", "5"])
    assert "labeler shouting" in capsys.readouterr().out


def test_a_labeler_that_cannot_be_had_is_one_line(predictions, capsys):
    def line(name):
        return fails(capsys, predictions, "--labeler", name)

    assert "form 'package.module:Class', but got 'german'" in line("german")
    assert "could not be imported: ModuleNotFoundError" in line("no_such_module.German")
    assert "has no such attribute 'German'" in line("tests.metrics.test_main.German")
    here = "tests.metrics.test_main"
    assert f"The labeler {here}:fails_to_label failed: KeyError: 'boom'" in line(f"{here}.fails_to_label")
    assert "return label classes 0..3, but got 5..5" in line(f"{here}.labels_in_fives")
    assert "to return a tensor (" in line("tests.metrics.test_main:len_of")
    assert "mutually exclusive" in fails(capsys, predictions, "--labeler", "a.b", "--chexbert", "x.pth")
    assert not list(predictions.parent.glob("*.scores.json"))


def len_of(texts):
    return [len(text) for text in texts]


@pytest.mark.slow  # METEOR starts Java
def test_scorers_and_nlg(predictions, capsys):
    pytest.importorskip("pycocoevalcap")
    main([str(predictions), "--scorer", "tests.metrics.test_main:overlap", "--nlg", "--normalization", "r2gen-iu"])
    text = capsys.readouterr().out
    result = json.loads(predictions.with_name("predictions.jsonl.scores.json").read_text())
    score = result["systems"]["predictions"]["scores"]["tests.metrics.test_main:overlap"]["value"]
    assert score == pytest.approx((1 / 3 + 1 / 3 + 1 + 0) / 4)
    assert result["nlg"]["normalization"] == "r2gen-iu"
    assert 0 < result["nlg"]["predictions"]["BLEU-1"] < 1
    row = next(line for line in text.splitlines() if line.startswith("predictions "))
    assert f" {score:.3f} [" in row
    assert "similarity of wording, not of findings" in text


def fails_always(preds, target):
    raise KeyError("boom")


def overlap(preds, target):
    """Share of the reference's words that the report holds."""
    return [len(set(p.split()) & set(t.split())) / len(set(t.split())) for p, t in zip(preds, target, strict=True)]


def test_as_a_command_without_lightning(predictions):
    code = "import sys, runpy; sys.argv[0] = 'mrg.metrics'; runpy.run_module('mrg.metrics', run_name='__main__'); "
    code += "print('lightning' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code, str(predictions)], capture_output=True, text=True, check=True)
    assert result.stdout.strip().endswith("False")
    assert result.stderr == ""


def test_a_file_named_like_a_baseline_keeps_the_baseline(tmp_path, capsys):
    main([str(write(tmp_path / "constant normal.jsonl", rows(TARGET)))])
    result = json.loads((tmp_path / "constant normal.jsonl.scores.json").read_text())
    assert list(result["systems"]) == ["constant normal", "most frequent reference", "constant normal (file)"]
    assert result["systems"]["constant normal"]["scores"]["CE-F1 micro-13+"]["value"] == 0


def test_a_reader_that_closes_early(predictions):
    command = f"{sys.executable} -m mrg.metrics {predictions} | head -1"
    result = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert result.stdout.startswith("Reports: ")
    assert result.stderr == ""


def test_scores_are_kept_where_wording_cannot_be_scored(predictions, capsys, monkeypatch):
    pytest.importorskip("pycocoevalcap")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit):
        main([str(predictions), "--nlg"])
    printed = capsys.readouterr()
    assert "Expected `java` on the PATH" in printed.err
    assert "micro-13+" in printed.out
    assert "predictions" in json.loads(predictions.with_name("predictions.jsonl.scores.json").read_text())["systems"]


def test_comparisons_with_two_runs_are_two_files(predictions, tmp_path, capsys):
    for run in ("a", "b"):
        (tmp_path / run).mkdir()
        other = write(tmp_path / run / "predictions.jsonl", rows(TARGET))
        main([str(predictions), "--compare", str(other), "--trials", "10"])
        assert (tmp_path / f"predictions.jsonl.vs.{run}.predictions.jsonl.json").is_file()
        assert f"B: {other}" in capsys.readouterr().out


def test_missing_words_are_counted_and_earn_nothing(tmp_path, capsys):
    """s3 has no prediction, s6 an empty one; s4 and s5 have no reference."""
    path = tmp_path / "p.csv"
    path.write_text(
        "study_id,prediction,reference\ns1,The lungs are clear. No effusion.,No acute disease. No pleural effusion.\n"
        "s2,Small left effusion.,Moderate left pleural effusion.\ns3,nan,The heart is normal.\ns4,Cardiomegaly.,nan\n"
        "s5,None,None\ns6,,Edema.\n"
    )
    main([str(path), "--trials", "10"])
    text = capsys.readouterr().out
    assert "Excluded: 2 of 6 studies have no reference: s4, s5." in text
    assert "2 of 4 reports are empty and scored as such, of which 1 hold a word such as nan: s3." in text
    result = json.loads((tmp_path / "p.csv.scores.json").read_text())
    assert (result["num_studies"], result["no_reference"], result["no_prediction"]) == (4, ["s4", "s5"], ["s3"])
    # Pleural Effusion is predicted in 1 of 2 studies with a finding, and Edema is missed.
    assert result["systems"]["p"]["scores"]["CE-F1 micro-13+"]["value"] == pytest.approx(2 / 3)
    empty = path.with_name("empty.csv")
    empty.write_text(path.read_text().replace("nan,The", ",The"))
    main([str(empty), "--trials", "10"])
    same = json.loads((tmp_path / "empty.csv.scores.json").read_text())
    assert same["systems"]["empty"]["scores"] == result["systems"]["p"]["scores"]


def test_completions_that_are_scored_as_reports_are_counted(tmp_path, capsys):
    """Findings of the think section would count."""
    texts = ["<think>Edema</think><report>The lungs are clear.</report>", "Edema.", "<report>Edema.</report>"]
    path = write(tmp_path / "p.json", [{"prediction": text, "target": "Edema."} for text in texts])
    main([str(path), "--trials", "5"])
    assert "2 of 3 reports have <think> or <report> tags and are scored with all that is in" in capsys.readouterr().out


def test_a_comparison_excludes_studies_without_a_reference(predictions, tmp_path, capsys):
    rows = [json.loads(line) for line in predictions.read_text().splitlines()]
    rows[0]["target"], rows[1]["prediction"] = "nan", None
    first, second = (tmp_path / name for name in ("a.jsonl", "b.jsonl"))
    first.write_text("".join(json.dumps(row) + "\n" for row in rows))
    second.write_text(first.read_text())
    main([str(first), "--compare", str(second), "--trials", "10"])
    text = capsys.readouterr().out
    assert text.count(f"Excluded: 1 of {len(rows)} studies have no reference: {rows[0]['id']}.") == 2
    assert text.count("hold a word such as nan") == 2


def test_numbers_of_trials_by_default(tmp_path):
    """1,000 for one file and for a leaderboard, 10,000 for a comparison."""
    given = [{"id": i, "prediction": PREDS[i % 4], "target": TARGET[i % 3]} for i in range(29)]
    first = write(tmp_path / "first.jsonl", given)
    other = write(tmp_path / "other.csv", [{**row, "prediction": TARGET[i % 4]} for i, row in enumerate(given)])
    for arguments, number in (([], 1000), ([str(other)], 1000), (["--compare", str(other)], 10_000)):
        found = []
        for trials in ([], ["--trials", str(number)], ["--trials", str(number + 1)]):
            main([str(first), *arguments, *trials, "--output", str(tmp_path / "out.json")])
            found.append(json.loads((tmp_path / "out.json").read_text()))
        assert found[0] == found[1] != found[2]
    assert found[0]["num_trials"] == 10_000
