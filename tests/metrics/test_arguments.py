"""Options of `python -m mrg.metrics`: their defaults, their names, and what does not go together."""

import os
import re
from pathlib import Path

import pytest

from mrg.errors import UserError
from mrg.metrics.arguments import check, make_labeler, make_scorers, output_file, parser
from mrg.metrics.labelers.rules import RulesLabeler

DEFAULTS = {
    "references": None, "by_row": False, "nearest_image": None, "rank_by": "CE-F1 micro-13+", "page": None,
    "compare": None, "id": [], "preds": [], "target": [], "labeler": None, "chexbert": None, "tokenizer": None,
    "train": None, "margin": 0.5, "min_cases": 10, "nlg": False, "normalization": "none", "scores": None,
    "bertscore": None, "radgraph": None, "ratescore": None, "judge": None, "scorer": [], "trials": None, "seed": 0,
    "changed": 10, "output": None,
}  # fmt: skip


def parse(*words):
    options = parser().parse_args(words)
    options.systems, options.predictions = options.predictions, options.predictions[0]
    return options


def test_defaults():
    options = vars(parser().parse_args(["a.csv"]))
    assert options.pop("predictions") == [Path("a.csv")]
    assert options == DEFAULTS


def test_every_option_is_read():
    paths = ("references", "nearest_image", "page", "compare", "train", "output")
    for name in (*paths, "nearest-image"):
        assert getattr(parse("a", f"--{name}", "f"), name.replace("-", "_")) == Path("f"), name
    for name in ("rank_by", "rank-by", "labeler", "chexbert", "tokenizer", "scores"):
        assert getattr(parse("a", f"--{name}", "x"), name.replace("-", "_")) == "x", name
    for name in ("id", "preds", "target", "scorer"):
        assert getattr(parse("a", f"--{name}", "x", f"--{name}", "y"), name) == ["x", "y"], name
    for name in ("bertscore", "radgraph", "ratescore", "judge"):
        assert getattr(parse("a", f"--{name}", "x", "y"), name) == ["x", "y"], name
    for name in ("min_cases", "trials", "seed", "changed"):
        assert getattr(parse("a", f"--{name}", "7"), name) == 7, name
    assert parse("a", "--margin", "0.25").margin == 0.25
    assert parse("a", "--by-row").by_row is parse("a", "--by_row").by_row is parse("a", "--nlg").nlg is True
    assert parse("a", "--normalization", "ptb").normalization == "ptb"
    assert parse("a", "b").systems == [Path("a"), Path("b")]


def test_the_usage_names_what_an_option_takes():
    usage = " ".join(parser().format_usage().split())
    assert usage.startswith("usage: python -m mrg.metrics [-h] ")
    for name, value in {
        "references": "FILE", "nearest_image": "FILE", "rank_by": "SCORE", "page": "FILE", "compare": "FILE",
        "id": "COLUMN", "preds": "COLUMN", "target": "COLUMN", "labeler": "MODULE.CLASS", "chexbert": "CHECKPOINT",
        "tokenizer": "FOLDER", "train": "FILE", "scores": "NAMES", "bertscore": "ENCODER [LAYER ...]",
        "radgraph": "CHECKPOINT [ENCODER ...]", "ratescore": "NER [ENCODER ...]", "judge": "URL MODEL",
        "scorer": "PACKAGE.MODULE:FUNCTION", "output": "FILE",
    }.items():  # fmt: skip
        assert f"[--{name} {value}]" in usage, name
    text = " ".join(parser().format_help().split())
    assert "id, study_id" in text
    assert "default: the first of target, reference, report, ground_truth, section_findings" in text
    assert len(re.findall(r"\(default: ", text)) == 13


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("a --by_row", "--by_row joins reports with the file of --references"),
        ("a b --compare c", "--compare pairs two files"),
        ("a --nearest_image n --compare c", "--compare pairs two files"),
        ("a --page p", "--page is the page of a leaderboard"),
        ("a --rank_by BLEU", "--rank_by to be one of MCCS, .*but got 'BLEU'"),
        ("a --rank_by MCCS", "--rank_by ranks several files"),
        ("a --changed 3", "--changed is for the list of --compare"),
        ("a --trials 0", "--trials to be at least 1, but got 0"),
        ("a --seed -1", "--seed to be at least 0, but got -1"),
        ("a --changed -1", "--changed to be at least 0, but got -1"),
        ("a --min_cases 0", "--min_cases to be at least 1, but got 0"),
        ("a b --scores ce", "--scores is the table of one file"),
        ("a --scores ce --compare c", "--scores is the table of one file"),
        ("a --scores ce --nlg", "write nlg among its names"),
        ("a --compare c --nlg", "--nlg scores one file"),
        ("a --compare c --train t", "--train is for scoring one file"),
        ("a --labeler l --chexbert c", "--labeler and --chexbert are mutually exclusive"),
        ("a --tokenizer t", "--tokenizer requires --chexbert"),
    ],
)
def test_what_does_not_go_together(words, message):
    with pytest.raises(UserError, match=message):
        check(parse(*words.split()))


@pytest.mark.parametrize(
    "words",
    [
        "a", "a b --page p", "a --nearest_image n --page p", "a --references r --by_row", "a --compare c",
        "a --trials 1 --seed 0 --min_cases 1", "a b --nlg --train t", "a b --rank_by MCCS", "a --compare c --changed 0",
        "a --scores ce,nlg --train t", "a --chexbert c --tokenizer t", "a --labeler l",
    ],
)  # fmt: skip
def test_what_goes_together(words):
    check(parse(*words.split()))


def test_the_file_to_write(tmp_path):
    file = tmp_path / "p.jsonl"
    (tmp_path / "none").mkdir()
    assert output_file(parse(str(file)), "scores.json") == tmp_path / "p.jsonl.scores.json"
    assert output_file(parse(str(file), "--output", str(tmp_path / "o")), "scores.json") == tmp_path / "o"
    for name in ("compare", "references", "nearest_image", "train"):
        with pytest.raises(UserError, match="is a file of predictions or references"):
            output_file(
                parse(str(file), "--output", f"{tmp_path}/none/../x", f"--{name}", f"{tmp_path}/x"), "scores.json"
            )
    with pytest.raises(UserError, match="is a file of predictions"):
        output_file(parse(str(file), f"{tmp_path}/x", "--output", f"{tmp_path}/x"), "scores.json")
    for path in (tmp_path, tmp_path / "absent" / "x"):
        with pytest.raises(UserError, match="cannot be written: set --output"):
            output_file(parse(str(file), "--output", str(path)), "scores.json")


def test_a_folder_without_write_permission(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: (path, mode) != (tmp_path, os.W_OK))
    with pytest.raises(UserError, match="cannot be written"):
        output_file(parse(str(tmp_path / "p.jsonl")), "scores.json")


def test_labelers_and_scorers():
    assert type(make_labeler(parse("a"))) is RulesLabeler
    own = make_labeler(parse("a", "--labeler", "mrg.metrics.RulesLabeler"))
    assert (own.name, own.block, own.seconds) == ("rules", 10_000, 5)
    scorers = make_scorers(parse("a", "--scorer", "tests.metrics.test_main:overlap"))
    assert list(scorers) == ["tests.metrics.test_main:overlap"]
    assert list(scorers["tests.metrics.test_main:overlap"](["no edema"], ["no edema seen here"])) == [0.5]
    with pytest.raises(UserError, match="same length"):
        scorers["tests.metrics.test_main:overlap"](["a"], [])
