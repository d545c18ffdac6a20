"""No text of a report in log lines and in messages of errors: these leave the hospital in tickets and mails."""

import csv
import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mrg.cli import main
from mrg.datamodules.collate import StudyCollator
from mrg.datamodules.iu.openi import read_openi
from mrg.datamodules.r2gen import read_items
from mrg.datamodules.rexrank import read_entries
from mrg.datamodules.study import Study, View
from mrg.datamodules.table.formats import open_table
from mrg.errors import MrgError
from mrg.metrics.labelers.rules import RulesLabeler
from mrg.metrics.labels import run_labeler
from mrg.metrics.predictions import read_predictions
from mrg.metrics.texts import read_texts
from mrg.modules.completion import check_targets
from mrg.modules.rl.audit import warn_of_exploits
from mrg.modules.rl.reward import Reward
from mrg.pages.run import write_run_page
from mrg.pages.tested_run import TestedRun
from tests.command_line import sft
from tests.trees import write_annotation

SECRET = "zebraic"
REPORT = f"The {SECRET} heart is enlarged, {SECRET}."


def put(folder: Path, name: str, content: object) -> Path:
    file = folder / name
    text = content if isinstance(content, str) else json.dumps(content)
    file.write_text(text, encoding="utf-8", errors="surrogatepass")
    return file


def annotation(**changes: object) -> dict[str, list[dict[str, object]]]:
    item = {"id": "a", "report": REPORT, "image_path": ["a.png"], **changes}
    return {split: [item] for split in ("train", "val", "test")}


def rows(*rows: dict[str, object]) -> str:
    return "\n".join(json.dumps(row) for row in rows)


PAIR = {"id": "a", "prediction": REPORT, "target": REPORT}
XML = f'<eCitation><uId id="CXR1"/><AbstractText Label="FINDINGS">{REPORT}</AbstractText>'

FILES: dict[str, tuple[Callable[[Path], object], str, object]] = {
    "two splits": (read_items, "annotation.json", annotation()),
    "a list": (read_items, "annotation.json", annotation(report=[REPORT])),
    "no images": (read_items, "annotation.json", annotation(image_path=[])),
    "half a pair": (read_items, "annotation.json", json.dumps(annotation(report=f"{REPORT} \ud83d"))),
    "no JSON": (read_items, "annotation.json", json.dumps(annotation())[:-3]),
    "an entry": (read_entries, "rexrank.json", {"a": {"image_path": "a.png", "report": [REPORT]}}),
    "XML": (read_openi, "a.tar", XML),
    "no target": (read_predictions, "a.jsonl", rows({"id": "a", "prediction": REPORT})),
    "an id twice": (read_predictions, "a.jsonl", rows(PAIR, PAIR)),
    "no id": (read_predictions, "a.jsonl", rows(PAIR, {**PAIR, "id": None})),
    "a report that is a list": (read_predictions, "a.jsonl", rows({**PAIR, "target": [REPORT]})),
    "a line that is no JSON": (read_predictions, "a.jsonl", f"{rows(PAIR)}\n{REPORT}"),
    "a list of texts": (read_predictions, "a.json", [REPORT]),
    "an open quote": (read_predictions, "a.csv", f'id,prediction,target\n1,"{REPORT}'),
    "a long row": (read_predictions, "a.csv", f"id,prediction,target\n1,x,{REPORT}"),
    "no column": (lambda file: read_texts(file, "preds", None, "x"), "a.csv", f'id,prediction\n1,"{REPORT}"'),
    "a table": (lambda file: open_table(file.name, file.parent, ["x"]), "a.jsonl", f"{rows(PAIR)}\n{REPORT}"),
    "a CSV table": (lambda file: open_table(file.name, file.parent, ["id"]), "a.csv", f'id,r\n1,"{REPORT}\n'),
}


def assert_silent(read: Callable[[], object], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "mrg"), pytest.raises(MrgError) as error:
        read()
    for text in (str(error.value), caplog.text):
        assert SECRET not in text


@pytest.mark.parametrize("name", FILES)
def test_errors_of_files(tmp_path, caplog, name):
    read, file, content = FILES[name]
    path = put(tmp_path, file, content)
    assert_silent(lambda: read(path), caplog)


def test_a_file_without_a_header(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "mrg"):
        texts = read_texts(put(tmp_path, "a.csv", f'"{REPORT}"\nClear.\n'), "preds")
    assert texts.texts[0] == REPORT
    assert "has no header line" in caplog.text
    assert SECRET not in caplog.text


def test_errors_of_a_run(tmp_path, caplog):
    put(tmp_path, "config.yaml", "name: a\n")
    put(tmp_path, "predictions.jsonl", rows({**PAIR, "images": [[REPORT]]}))
    assert_silent(lambda: TestedRun.read(tmp_path).studies(), caplog)
    put(tmp_path, "samples.jsonl", rows({"completion": REPORT, "reward": REPORT}, {"reward": 1.0}))
    assert_silent(lambda: write_run_page(tmp_path), caplog)


def test_errors_of_texts(policy, caplog, monkeypatch):
    image = View(np.zeros((8, 8), dtype=np.uint8))
    mark = policy.processor.tokenizer.all_special_tokens[0]
    study = Study("a", (image,), REPORT, indication=f"{SECRET} {mark}")
    collator = StudyCollator(policy.processor, "Report:", use_indication=True)
    collator.marks = (mark,)
    assert_silent(lambda: collator([study]), caplog)
    unknown = policy.processor.tokenizer.convert_tokens_to_ids(policy.processor.tokenizer.tokenize(REPORT)[0])
    monkeypatch.setattr(type(policy), "banned_ids", property(lambda self: [unknown]))
    assert_silent(lambda: check_targets(policy, [REPORT], ["a"], 8), caplog)
    assert_silent(lambda: run_labeler(lambda texts: texts, [REPORT]), caplog)


def test_the_warning_of_a_cheap_reward(caplog):
    """Its cheapest exploit is the best constant, a training report."""
    studies = [Study(str(number), (), REPORT) for number in range(20)]
    with caplog.at_level(logging.INFO, "mrg"):
        warn_of_exploits(Reward(RulesLabeler(), 1.0, 0.0, margin=0.0, think="absent"), studies)
    assert "best constant" in caplog.text
    assert SECRET not in caplog.text


def test_commands(tmp_path, iu_tree, capsys, caplog):
    """Standard error of training, test and prediction, with a warning of each kind."""
    folder, content = iu_tree
    for entries in content.values():
        for number, entry in enumerate(entries):
            entry["report"] = f"{REPORT} {entry['report']} {number % 2}"
    write_annotation(folder, content)
    with caplog.at_level(logging.INFO, "mrg"):
        for command in ("fit", "test", "predict"):
            main([command, *sft(tmp_path)])
    errors = capsys.readouterr().err
    assert "truncated" in errors
    assert SECRET not in errors + caplog.text
    with next((tmp_path / "runs").glob("*/metrics.csv")).open() as file:
        assert not any(SECRET in cell for row in csv.reader(file) for cell in row)
