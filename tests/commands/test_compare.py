"""Two runs compared from the command line."""

import json
import re
import subprocess
import sys

import pytest
import torch
import yaml

from mrg.cli import main
from mrg.datamodules.demo import World, make_study
from mrg.files import write_json, write_lines
from mrg.metrics import CONDITIONS
from mrg.metrics.labels import Labeler
from tests.pages.test_tested_run import write_run


@pytest.fixture
def runs(tmp_path):
    """Two runs on four synthetic studies: A writes the reference, B that of the study before."""
    studies = [make_study(World(), 3, "test", index, 112) for index in range(4)]
    rows = write_run(tmp_path / "a", studies)
    write_run(tmp_path / "b", studies)
    shifted = [{**row, "prediction": rows[i - 1]["target"]} for i, row in enumerate(rows)]
    write_lines(tmp_path / "b" / "predictions.jsonl", shifted[::-1])  # paired by id, not by place
    return tmp_path / "a", tmp_path / "b"


def failure(capsys, *argv):
    with pytest.raises(SystemExit) as stop:
        main(["compare", *map(str, argv)])
    err = capsys.readouterr().err.strip()
    assert stop.value.code == 2
    assert "\n" not in err
    return err


def test_table_and_page(runs, capsys):
    a, b = runs
    main(["compare", str(a), str(b), "--trials", "50"])
    out = capsys.readouterr().out
    assert "A: a\nB: b\n4 studies, labeler rules, MCCS margin 0.3." in out
    assert re.search(r"^MCCS +100\.0", out, re.MULTILINE)
    assert out.splitlines()[-1] == f"Page: {a / 'compare-b.html'}"
    text = (a / "compare-b.html").read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])
    assert data["systems"] == ["a", "b"]
    assert data["sort"] == "changes"
    changes = [sum(map(len, study["outputs"][1]["change"].values())) for study in data["studies"]]
    assert changes == sorted(changes, reverse=True)
    assert changes[0] > 0
    assert all(study["views"] for study in data["studies"])  # made again from the run's configuration
    assert "constant normal" in text


def test_mistakes_are_one_line(runs, tmp_path, capsys):
    a, b = runs
    assert "holds no predictions.jsonl" in failure(capsys, a, tmp_path)
    assert "are the same run" in failure(capsys, a, a)
    assert "Expected --trials to be at least 1" in failure(capsys, a, b, "--trials", 0)
    assert "set --output" in failure(capsys, a, b, "--output", tmp_path / "none" / "page.html")
    assert "but got 'all'" in failure(capsys, a, b, "--images", "all")
    write_json(b / "results.json", {"margin": 0.5})
    assert "MCCS margin of 0.3, b with 0.5: choose one with --margin" in failure(capsys, a, b)
    rows = (b / "predictions.jsonl").read_text().splitlines()
    (b / "predictions.jsonl").write_text(rows[0] + "\n")
    assert "3 only in a" in failure(capsys, a, b, "--margin", 0.5)


class Shouting(Labeler):
    """Everything that says "effusion" shows an edema."""

    name = "shouting"

    def __init__(self, word: str = "effusion"):
        self.word = word

    def __call__(self, texts):
        labels = torch.zeros(len(texts), 14, dtype=torch.int64)
        labels[:, CONDITIONS.index("Edema")] = torch.tensor([int(self.word in text) for text in texts])
        return labels


def test_a_labeler_of_ones_own(runs, capsys):
    a, b = runs
    main(
        [
            "compare",
            str(a),
            str(b),
            "--trials",
            "5",
            "--images",
            "none",
            "--labeler",
            "tests.commands.test_compare.Shouting",
        ]
    )
    out, err = capsys.readouterr()
    assert "4 studies, labeler shouting" in out
    assert "Warning: b was tested with the labeler rules; here both are labelled by shouting" in err
    assert "mutually exclusive" in failure(capsys, a, b, "--labeler", "a.b", "--chexbert", "x.pth")


def test_the_labeler_of_the_runs_is_taken(runs, capsys):
    a, b = runs
    labeler = {"class_path": "tests.commands.test_compare.Shouting", "init_args": {"word": "a"}}
    for run in runs:
        write_json(run / "results.json", {"margin": 0.3, "labeler": "shouting"})
        (run / "config.yaml").write_text(yaml.safe_dump({"model": {"init_args": {"labeler": labeler}}}))
    main(["compare", str(a), str(b), "--trials", "5", "--images", "none"])
    out, err = capsys.readouterr()
    assert "4 studies, labeler shouting" in out
    assert "was tested with" not in err
    for run in runs:
        labeler["class_path"] = "gone.Shouting"
        (run / "config.yaml").write_text(yaml.safe_dump({"model": {"init_args": {"labeler": labeler}}}))
    message = failure(capsys, a, b)
    assert "a was tested with the labeler shouting, which cannot be made here" in message
    assert "choose one with --labeler" in message


def test_another_labeler_is_named(runs, capsys):
    a, b = runs
    write_json(a / "results.json", {"margin": 0.3, "labeler": "chexbert"})
    main(["compare", str(a), str(b), "--trials", "5", "--images", "none"])
    warning = "Warning: a was tested with the labeler chexbert; here both are labelled by rules."
    assert warning in capsys.readouterr().err


def test_a_reader_that_closes_early(runs):
    a, b = runs
    command = f"{sys.executable} -m mrg compare {a} {b} --trials 5 --images none | head -1"
    result = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert result.stdout == "A: a\n"
    assert result.stderr == ""
    assert (a / "compare-b.html").is_file()  # the work is done all the same
