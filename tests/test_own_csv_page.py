"""The commands of docs/own_csv.md, in order, on a generated table."""

import csv
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mrg.cli import main
from mrg.datamodules.demo import World, make_study

PAGE = (Path(__file__).parents[1] / "docs" / "own_csv.md").read_text(encoding="utf-8")
QUICK = {
    "fit": [
        "--trainer.max_steps=2", "--trainer.val_check_interval=2", "--model.init_args.max_new_tokens=8",
        "--trainer.enable_progress_bar=false", "--data.init_args.batch_size=4", "--data.init_args.num_workers=0",
    ],
    "data": ["--data.init_args.num_workers=0"],
}  # fmt: skip
"""What makes a command of the page take seconds."""


def commands(fence):
    """The commands in blocks of a fence."""
    blocks = re.findall(rf"```{fence}\n(.*?)```", PAGE, re.DOTALL)
    return [
        shlex.split(line)[3:] for block in blocks for line in block.splitlines() if line.startswith("python -m mrg")
    ]


@pytest.fixture
def hospital(tmp_path, monkeypatch):
    """The table and the configuration of the page."""
    monkeypatch.chdir(tmp_path)
    images = tmp_path / "hospital" / "images"
    images.mkdir(parents=True)
    header = re.search(r"```csv\n(.*?)\n", PAGE)[1].split(",")
    with (tmp_path / "hospital" / "studies.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(header)
        for index in range(24):
            study, names = make_study(World(lateral=0.5), 0, "train", index, 112), []
            for view in study.views:
                names.append(f"{index:04d}_{view.position}.png")
                Image.fromarray(np.asarray(view.image)).save(images / names[-1])
            views = ";".join({"frontal": "PA", "lateral": "LATERAL"}[view.position] for view in study.views)
            table.writerow([f"{index:04d}", f"p{index // 2}", ";".join(names), views, study.report])
    (tmp_path / "hospital.yaml").write_text(re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[1])
    (tmp_path / "new.png").write_bytes((images / "0000_frontal.png").read_bytes())
    return tmp_path


def test_every_command_runs_and_writes_what_the_page_names(hospital, capsys):
    found = commands("")
    assert [words[0] for words in found] == ["data", "fit", "test", "predict"]
    for words in found:
        main([*words, *QUICK.get(words[0], [])])
    assert "constant normal" in capsys.readouterr().out
    for file in ("data_check/hospital/data_check.html", "runs/hospital/gallery.html", "new.jsonl"):
        assert file in PAGE
        assert (hospital / file).is_file()
    splits = json.loads((hospital / "data_check" / "hospital" / "data_check.json").read_text())
    assert "24 rows" in splits["data"]["description"]
    (row,) = [json.loads(line) for line in (hospital / "new.jsonl").read_text().splitlines()]
    assert row["images"] == ["new.png"]


def test_the_configurations_of_the_last_step_fit_the_table(hospital, capsys):
    """A 7B model is not trained here: the configuration that `fit` would use is printed."""
    (hospital / "runs" / "hospital_sft" / "policy").mkdir(parents=True)
    for words in commands("bash"):
        with pytest.raises(SystemExit) as stop:
            main([*words, "--print_config"])
        assert not stop.value.code
        printed = capsys.readouterr().out
        assert "TableDataModule" in printed
        assert f"name: {words[words.index('--name') + 1]}" in printed
