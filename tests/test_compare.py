"""Two runs compared from the command line."""

import json
import re

import pytest

from mrg.cli import main
from mrg.datamodules.demo import World, make_study
from mrg.files import write_json, write_lines
from tests.pages.test_runs import write_run


@pytest.fixture
def runs(tmp_path):
    """Two runs on four drawn studies: A writes the reference, B that of the study before."""
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
    assert all(study["views"] for study in data["studies"])  # drawn again from the run's configuration
    assert "constant normal" in text


def test_mistakes_are_one_line(runs, tmp_path, capsys):
    a, b = runs
    assert "holds no predictions.jsonl" in failure(capsys, a, tmp_path)
    assert "are the same run" in failure(capsys, a, a)
    assert "Expected --trials to be at least 1" in failure(capsys, a, b, "--trials", 0)
    assert "with --output" in failure(capsys, a, b, "--output", tmp_path / "none" / "page.html")
    assert "but got 'all'" in failure(capsys, a, b, "--images", "all")
    write_json(b / "results.json", {"margin": 0.5})
    assert "MCCS margin of 0.3, b with 0.5: choose one with --margin" in failure(capsys, a, b)
    rows = (b / "predictions.jsonl").read_text().splitlines()
    (b / "predictions.jsonl").write_text(rows[0] + "\n")
    assert "3 only in a" in failure(capsys, a, b, "--margin", 0.5)


def test_another_labeler_is_named(runs, capsys):
    a, b = runs
    write_json(a / "results.json", {"margin": 0.3, "labeler": "chexbert"})
    main(["compare", str(a), str(b), "--trials", "5", "--images", "none"])
    assert "a was tested with the labeler chexbert; here both are read by rules." in capsys.readouterr().out
