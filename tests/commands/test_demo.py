"""The demo from end to end in its quick form, and the table of its study."""

import json

import pytest

from mrg.commands.demo import _new_folder, main, study_table
from tests.pages.browser import CHROMIUM, launched, opened


@pytest.mark.slow
def test_quick_demo_leaves_three_runs_and_one_table(tmp_path, capsys):
    main(["--quick", "--full", "--num_seeds", "1", "--runs", str(tmp_path / "demo")])
    out = capsys.readouterr().out
    folder = tmp_path / "demo" / "seed0"
    results = json.loads((folder / "results.json").read_text())
    assert list(results["systems"]) == [
        "constant normal",
        "most frequent report",
        "SFT",
        "GRPO from SFT",
        "SFT continued",
    ]
    assert {(gap["a"], gap["b"]) for gap in results["differences"]} == {
        ("GRPO from SFT", "SFT"),
        ("SFT continued", "SFT"),
        ("GRPO from SFT", "SFT continued"),
    }
    for name in ("sft", "grpo", "continued"):
        lines = (folder / name / "predictions.jsonl").read_text().splitlines()
        assert len(lines) == results["num_studies"] == 64
        own = json.loads((folder / name / "results.json").read_text())["protocol"]
        title = {"sft": "SFT", "grpo": "GRPO from SFT", "continued": "SFT continued"}[name]
        assert own["checkpoint"] == str(folder / name / "checkpoints" / "best.ckpt")
        assert results["protocol"]["systems"][title] == {k: own[k] for k in ("policy", "checkpoint", "fingerprint")}
    assert set(results["protocol"]["baselines"]) == {"constant normal", "most frequent report"}
    assert "checkpoint" not in results["protocol"]
    assert "GRPO from SFT - SFT, MCCS:" in out
    assert "these scores show that all stages run, nothing else.\n" in out
    assert results["best_constant"]["scores"]["MCCS"]["value"] >= 0
    assert results["best_constant"]["num_reports"] == 320
    assert (tmp_path / "demo" / "study.md").read_text() in out
    assert f"Open {folder / 'gallery.html'} in a browser" in out
    # Images are drawn, so there is no file to name.
    assert json.loads(lines[0])["images"][0] == "frontal"
    if CHROMIUM is not None:
        open_gallery(folder / "gallery.html")


def open_gallery(file):
    """The page that the demo ends with: three policies side by side, filtered, and without any request."""
    with launched() as browser, opened(browser, file) as page:
        assert page.inner_text("#count") == "64 studies, 1 to 20 shown"
        assert page.locator("header table").first.locator("tbody tr").count() == 5 + 1 + 3  # the best constant
        study = page.locator(".study").first
        assert study.locator("section").count() == 4
        assert study.locator("img").first.evaluate("image => image.naturalWidth") == 112
        page.select_option("#kind", "missed")
        assert 0 < int(page.inner_text("#count").split()[0]) <= 64


def test_a_second_demo_takes_a_new_folder(tmp_path):
    assert _new_folder(tmp_path).name == "demo-1"
    (tmp_path / "demo-1").mkdir()
    assert _new_folder(tmp_path).name == "demo-2"


def test_study_table():
    score = {"value": 0.5, "low": 0.4, "high": 0.6}
    scores = {"MCCS": score, "CE-F1 micro-13+": score}
    study = {
        "seed": 7,
        "seconds": {"SFT": 12.4},
        "systems": {
            "constant normal": {"scores": scores, "distinct": 0.01, "format": None},
            "SFT": {"scores": scores, "distinct": 0.5, "format": 0.99},
        },
        "differences": [{"a": "SFT", "b": "constant normal", "score": name, **score} for name in scores],
    }
    assert study_table([study]).splitlines()[2:] == [
        "| 7 | constant normal | 50.0 [40.0, 60.0] | 50.0 [40.0, 60.0] | 1 % |  |  |",
        "| 7 | SFT | 50.0 [40.0, 60.0] | 50.0 [40.0, 60.0] | 50 % | 99 % | 12 |",
        "| 7 | SFT - constant normal | **+50.0 [+40.0, +60.0]** | **+50.0 [+40.0, +60.0]** | | | |",
    ]
