"""Pages of runs whose files are damaged: a page, or one line that names the file."""

import json

import pytest

from mrg.errors import UserError
from mrg.metrics import RulesLabeler
from mrg.metrics.constants import BestConstants
from mrg.metrics.evaluation import CONSTANT_NORMAL, evaluate_systems
from mrg.pages.run import write_run_page
from mrg.pages.tested_run import TestedRun

OTHERS = (None, True, 7, -1.5, float("nan"), float("inf"), "", "x", [], [1], {}, {"a": 1})
STATE = {
    "state": "running", "error": None, "started": "2026-01-01T00:00:00+00:00", "updated": "2026-01-01T00:00:00+00:00",
    "policy": "tiny", "studies": {"train": 8}, "step": 3, "num_steps": 9, "seconds": 7.5, "seconds_left": 3.0,
    "page_seconds": 0.1, "constant_normal": {"val/mccs": 0.3}, "best_constant": {"val/mccs": 0.4},
}  # fmt: skip
ROWS = [{"id": str(n), "images": [], "positions": [], "prediction": "Clear.", "target": "No edema."} for n in range(3)]
SAMPLE = {"round": 1, "id": "a", "completion": "x", "reward": 0.5, "mccs": 0.5, "truncated": False, "target": "y"}


@pytest.fixture(scope="module")
def results():
    target, labeler = ["Large effusion.", "No edema.", "Clear."], RulesLabeler()
    systems = {"constant normal": [CONSTANT_NORMAL] * 3, "model": ["Clear."] * 3}
    best = BestConstants.of(target, labeler, 0.5)
    found = evaluate_systems(systems, target, labeler, 0.5, None, [("model", "constant normal")], best=best)
    protocol = {"fingerprint": "", "checkpoint": "a.ckpt", "baselines": {"constant normal": CONSTANT_NORMAL}}
    return json.loads(json.dumps({"protocol": protocol, **found}))


@pytest.fixture
def run(tmp_path, results):
    (tmp_path / "config.yaml").write_text("name: run\n")
    (tmp_path / "run.json").write_text(json.dumps(STATE))
    (tmp_path / "results.json").write_text(json.dumps(results))
    (tmp_path / "samples.jsonl").write_text(json.dumps(SAMPLE) + "\n")
    (tmp_path / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


def variants(value, others):
    """The value with each part replaced by each of the others, or left out."""
    yield from others
    if isinstance(value, dict):
        for key in value:
            rest = {name: part for name, part in value.items() if name != key}
            yield rest
            yield from ({**value, key: part} for part in variants(value[key], others))
    elif isinstance(value, list):
        for place, part in enumerate(value[:2]):
            yield from ([*value[:place], other, *value[place + 1 :]] for other in variants(part, others))


def page_or_line(run, file):
    """1 where there is a page, 0 where there is an error of one line that names the file."""
    message = ""
    try:
        write_run_page(run)
        TestedRun.read(run)
    except UserError as error:
        message = str(error)
    assert not message or str(run / file) in message
    assert "\n" not in message
    return int(not message)


def test_an_intact_run_has_a_page(run):
    assert page_or_line(run, "") == 1


@pytest.mark.parametrize("file", ["run.json", "samples.jsonl"])
def test_values_of_any_other_type(run, file):
    value = STATE if file == "run.json" else SAMPLE
    pages = []
    for other in variants(value, OTHERS):
        (run / file).write_text(json.dumps(other) + "\n")
        pages.append(page_or_line(run, file))
    assert sum(pages) > 0
    assert len(pages) > 100


def test_results_of_any_other_type(run, results):
    pages = []
    for number, other in enumerate(variants(results, (None, "x", [1], {"a": 1}))):
        if number % 7 == 0:  # of thousands
            (run / "results.json").write_text(json.dumps(other))
            pages.append(page_or_line(run, "results.json"))
    assert 0 < sum(pages) < len(pages)


@pytest.mark.parametrize("file", ["run.json", "results.json"])
@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff", b"[" * 100_000, b'{"a": 1, "a": 2}', b'{"state": "\\ud800"}', b"9" * 5000]
)
def test_text_that_is_no_object(run, file, content):
    (run / file).write_bytes(content)
    with pytest.raises(UserError) as error:
        write_run_page(run)
    assert str(run / file) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content",
    [
        b"step,val/mccs\nnan,0.5\n", b"step,val/mccs\ninf,0.5\n1e400,1\n", b"step,val/mccs\n1,\xff\n",
        b"step,val/mccs\n1,nan\n2,inf\n3,-inf\n", b"step,step\n1,2\n", b"\0", b"step,val/mccs\n1,0.5\n1\n", b"",
        b'step,val/mccs\n1,"' + b"9" * 200_000 + b'"\n', b"step,val/mccs\n1,1e308\n2,-1e308\n", b"step,\xc3\xa9\n1,2\n",
        b"step,val/mccs\n99999999999999999999,0.5\n",
    ],
)  # fmt: skip
def test_a_damaged_table(run, content):
    (run / "metrics.csv").write_bytes(content)
    page_or_line(run, "")


WRONG = [{"id": 1}, {"prediction": None}, {"target": ["b"]}]


@pytest.mark.parametrize("row", [7, [], {}, *({**ROWS[1], **change} for change in WRONG)])
def test_rows_without_a_text(run, row):
    (run / "predictions.jsonl").write_text(json.dumps(ROWS[0]) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(UserError, match="row 2") as error:
        TestedRun.read(run)
    assert str(run / "predictions.jsonl") in str(error.value)


@pytest.mark.parametrize(
    "changes", [{"images": 7}, {"images": [7]}, {"images": ["config.yaml"], "positions": ["a", "b"]}]
)
def test_images_of_another_type(run, changes, monkeypatch):
    monkeypatch.chdir(run)
    (run / "predictions.jsonl").write_text(json.dumps({**ROWS[0], **changes}) + "\n")
    with pytest.raises(UserError, match=r"predictions\.jsonl is not what mrg writes"):
        TestedRun.read(run).studies()


@pytest.mark.parametrize("content", ["a: [", "a: &a [*a]", "a: 1\na: 2\n", "[" * 500, "a: ${b"])
def test_a_damaged_configuration(run, content):
    (run / "config.yaml").write_text(content)
    with pytest.raises(UserError) as error:
        TestedRun.read(run).config()
    assert str(run / "config.yaml") in str(error.value)
    assert "\n" not in str(error.value)
