"""Several files and separate references on the command line."""

import json
import re
import shutil
from pathlib import Path

import pytest

from mrg.metrics.__main__ import main

DOCS = Path(__file__).parents[2] / "docs"
REFS = {"s1": "Mild cardiomegaly.", "s2": "Small left effusion.", "s3": "The lungs are clear.", "s4": "Left opacity."}


@pytest.fixture
def files(tmp_path):
    (tmp_path / "refs.json").write_text(json.dumps({name: [text] for name, text in REFS.items()}))
    (tmp_path / "a.json").write_text(json.dumps({name: [text] for name, text in reversed(REFS.items())}))
    (tmp_path / "b.json").write_text(json.dumps(dict.fromkeys(REFS, "Cardiomegaly.")))
    (tmp_path / "a.csv").write_text("".join(f"{text}\n" for text in REFS.values()))
    (tmp_path / "three.json").write_text(json.dumps({**dict.fromkeys(("s1", "s2"), "Edema."), "s5": "Edema."}))
    (tmp_path / "blank.json").write_text(json.dumps(dict.fromkeys(REFS, "nan")))
    (tmp_path / "alone.jsonl").write_text('{"id": "s1", "generated": "Edema."}\n')
    return tmp_path


def run(files, *arguments):
    main([str(files / a) if (files / a).suffix and not a.startswith("-") else a for a in arguments])


def test_leaderboard(files, capsys):
    run(files, "a.json", "b.json", "--references", "refs.json", "--page", "page.html", "--trials", "50")
    out = capsys.readouterr().out
    assert "1 [1-" in out
    result = json.loads((files / "a.json.leaderboard.json").read_text())
    assert result["systems"]["a"]["scores"]["CE-F1 micro-14+"]["value"] == 1
    assert set(result["systems"]) == {"a", "b", "constant normal", "best reference"}
    assert "<h1>Leaderboard</h1>" in (files / "page.html").read_text()


def test_nearest_image_is_a_row(files):
    run(files, "b.json", "--nearest_image", "a.json", "--references", "refs.json", "--trials", "20")
    result = json.loads((files / "b.json.leaderboard.json").read_text())
    assert result["systems"]["nearest image"]["scores"]["CE-F1 micro-13+"]["value"] == 1


def test_one_file_with_references(files, capsys):
    run(files, "a.json", "--references", "refs.json", "--trials", "20")
    assert "ids: 'id'" in capsys.readouterr().out
    result = json.loads((files / "a.json.scores.json").read_text())
    assert result["systems"]["a"]["scores"]["CE-F1 micro-13+"]["value"] == 1


def test_by_row(files, capsys):
    run(files, "a.csv", "--references", "refs.json", "--by_row", "--trials", "20")
    assert "a.csv has no header line: its first line, of 2 words, is read as a report." in capsys.readouterr().err
    result = json.loads((files / "a.csv.scores.json").read_text())
    assert result["systems"]["a"]["scores"]["CE-F1 micro-13+"]["value"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a.csv", "--references", "refs.json"), "has no ids"),
        (("a.json", "--by_row"), "--by_row joins reports with the file of --references"),
        (("a.json", "b.json", "--compare", "b.json"), "--compare pairs two files"),
        (("a.json", "--page", "p.html", "--references", "refs.json"), "--page is the page of a leaderboard"),
        (("a.json", "--rank_by", "BLEU"), "--rank_by to be one of MCCS"),
        (("a.json", "b.json"), "has no column for the generated report"),
        (("b.json", "a.json", "--rank_by", "CE-F1 micro-15", "--references", "refs.json"), "but got 'CE-F1 micro-15'"),
        (("alone.jsonl",), "has no column for the reference report"),
        (("alone.jsonl",), "name it with --target, or give a file of references with --references."),
        (("a.json", "--references", "blank.json"), "blank.json has no reference report"),
        (("a.json", "--references", "three.json"), "2 of the 4 ids of {folder}/a.json are not in "),
        (("a.json", "--references", "three.json"), "three.json (s4, s3) and 1 of the 3 ids of {folder}/three.json "),
        (("a.json", "--references", "three.json"), "three.json are not in {folder}/a.json (s5)."),
        (("a.csv", "--by_row", "--references", "three.json"), "a.csv has 4 and {folder}/three.json 3."),
        (("a.json", "a.json", "--references", "refs.json"), "one is given twice"),
    ],
)
def test_bad_input_is_one_line(files, capsys, arguments, message):
    with pytest.raises(SystemExit) as caught:
        run(files, *arguments)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert message.format(folder=files) in error
    # A file without a header line is named in a line before.
    assert sum("has no header line" not in line for line in error.splitlines()) == 1


def test_the_best_constants_of_training_reports(files, capsys):
    (files / "train.jsonl").write_text(
        '{"report": "Left effusion."}\n{"report": "The lungs are clear."}\n{"report": "nan"}\n'
    )
    run(files, "a.json", "b.json", "--references", "refs.json", "--train", str(files / "train.jsonl"), "--trials", "20")
    assert "Differences from the best constant of CE-F1 micro-13+ on 2 training reports" in capsys.readouterr().out
    result = json.loads((files / "a.json.leaderboard.json").read_text())
    assert result["best_constant"]["scores"]["CE-F1 micro-13+"]["value"] == 2 / 7  # one of 3 findings, on 4 studies


def test_missing_texts_of_two_files(files, capsys):
    (files / "gaps.csv").write_text("id,report\ns1,Mild cardiomegaly.\ns2,nan\ns3,\ns4,Left opacity.\n")
    (files / "c.csv").write_text("id,generated\ns1,NaN\ns2,Edema.\ns3,Edema.\ns4,Left opacity.\n")
    run(files, "c.csv", "--references", "gaps.csv", "--trials", "20")
    out = capsys.readouterr().out
    assert "Excluded: 2 of 4 studies have no reference: s2, s3." in out
    assert "1 of 2 reports are empty and scored as such, of which 1 hold a word such as nan: s1." in out
    result = json.loads((files / "c.csv.scores.json").read_text())
    assert (result["num_studies"], result["no_reference"], result["no_prediction"]) == (2, ["s2", "s3"], ["s1"])


def test_the_documentation_shows_what_the_command_prints(tmp_path, monkeypatch, capsys):
    text = (DOCS / "metrics.md").read_text(encoding="utf-8").partition("\n## Leaderboard\n")[2]
    command, printed = re.findall(r"```\n(.*?)```", text, re.DOTALL)[:2]
    shutil.copytree(DOCS / "examples" / "leaderboard", tmp_path / "leaderboard")
    monkeypatch.chdir(tmp_path / "leaderboard")
    python, option, module, *arguments = command.replace("\\\n", " ").split()
    assert (python, option, module) == ("python", "-m", "mrg.metrics")
    main(arguments)
    assert printed in capsys.readouterr().out
    assert (tmp_path / "leaderboard" / "leaderboard.html").is_file()
