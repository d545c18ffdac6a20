import json

import pytest

from mrg.metrics import RulesLabeler
from mrg.metrics.evaluation import CONSTANT_NORMAL, evaluate_systems
from mrg.pages.gallery import Gallery
from mrg.pages.run import write_run_page
from tests.pages.browser import launched
from tests.pages.galleries import rows


@pytest.fixture(scope="module")
def browser():
    with launched() as browser:
        yield browser


@pytest.fixture(scope="package")
def cohort():
    """45 synthetic studies: three pages."""
    from mrg.datamodules.demo import World, make_study

    return [make_study(World(lateral=0.5), 0, "test", index, 112) for index in range(45)]


@pytest.fixture(scope="package")
def gallery(cohort, tmp_path_factory):
    """Two policies: one writes the report of the next study, the other is right every third time."""
    texts = [study.report for study in cohort]
    after = texts[1:] + texts[:1]
    better = [own if place % 3 == 0 else other for place, (own, other) in enumerate(zip(texts, after, strict=True))]
    labeler = RulesLabeler()
    systems = {"constant normal": [CONSTANT_NORMAL] * len(texts), "one": better, "two": after}
    results = evaluate_systems(systems, texts, labeler, 0.3, {"one": 1.0}, [("one", "two")], num_resamples=50)
    file = tmp_path_factory.mktemp("gallery") / "gallery.html"
    views = {study.id: study.views for study in cohort}
    Gallery(
        {"one": rows(cohort, better), "two": rows(cohort, after)}, labeler, 0.3, views, results=results, title="Two"
    ).write(file)
    return file


@pytest.fixture
def whole(tmp_path):
    """The page of a run with all that it can show."""
    score = {"value": 0.5, "low": 0.4, "high": 0.6}
    sample = {
        "id": "a",
        "completion": "Clear. " * 40,
        "target": "Edema.",
        "reward": 0.25,
        "mccs": 0.1,
        "truncated": True,
    }
    (tmp_path / "metrics.csv").write_text("step,reward/total,val/mccs,train/kl\n0,0.1,,0\n1,0.2,,0.1\n1,,0.3,\n")
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps({"round": n, **sample}) + "\n" for n in range(3)))
    (tmp_path / "results.json").write_text(
        json.dumps({"num_studies": 7, "systems": {"model": {"scores": {"MCCS": score}, "distinct": 0.25}}})
    )
    (tmp_path / "config.yaml").write_text("model:\n  class_path: mrg.modules.grpo.GRPOModule\n" + "x" * 300)
    state = {
        "state": "stopped",
        "error": "no memory",
        "step": 2,
        "num_steps": 4,
        "seconds": 9,
        "constant_normal": {"val/mccs": 0.34},
    }
    (tmp_path / "run.json").write_text(json.dumps(state))
    return write_run_page(tmp_path)
